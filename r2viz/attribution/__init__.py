"""Attribution: which part of a picture speaks for a class."""

from r2viz.attribution.cam import PIXELS, Pass, cam_maps, forward_pass
from r2viz.attribution.methods import METHODS, Method, method_named
from r2viz.attribution.rerun import Rerun
from r2viz.attribution.scores import Contrast, Pixels, Targets, class_indices

__all__ = [
    "METHODS",
    "PIXELS",
    "Contrast",
    "Method",
    "Pass",
    "Pixels",
    "Rerun",
    "Targets",
    "cam_maps",
    "class_indices",
    "forward_pass",
    "method_named",
]
