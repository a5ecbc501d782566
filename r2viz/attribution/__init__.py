"""Attribution: which part of a picture speaks for a class."""

from r2viz.attribution.cam import Pass, cam_maps, class_indices, forward_pass, method_named
from r2viz.attribution.methods import METHODS, Method

__all__ = ["METHODS", "Method", "Pass", "cam_maps", "class_indices", "forward_pass", "method_named"]
