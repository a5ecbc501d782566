"""r2viz: what does Res2Net see that ResNet doesn't? Class activation maps, receptive fields, splits, coverage.

`import r2viz` loads neither torch nor matplotlib; the first call that needs them does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from r2viz.errors import R2VizError
from r2viz.version import __version__

if TYPE_CHECKING:
    from r2viz.attribution import cam_maps
    from r2viz.erf_records import ErfRecord
    from r2viz.explain import cam, compare
    from r2viz.figures import figure
    from r2viz.image import decode
    from r2viz.models.model import Model, load, load_pair
    from r2viz.partition.verbs import splits
    from r2viz.receptive.effective import erf
    from r2viz.receptive.verbs import theoretical_rf
    from r2viz.records import CamRecord
    from r2viz.split_records import SplitRecord
    from r2viz.store import open_record, save

_ROOMS = {
    "CamRecord": "r2viz.records",
    "ErfRecord": "r2viz.erf_records",
    "Model": "r2viz.models.model",
    "SplitRecord": "r2viz.split_records",
    "cam": "r2viz.explain",
    "cam_maps": "r2viz.attribution",
    "compare": "r2viz.explain",
    "decode": "r2viz.image",
    "erf": "r2viz.receptive.effective",
    "figure": "r2viz.figures",
    "load": "r2viz.models.model",
    "load_pair": "r2viz.models.model",
    "open_record": "r2viz.store",
    "save": "r2viz.store",
    "splits": "r2viz.partition.verbs",
    "theoretical_rf": "r2viz.receptive.verbs",
}

__all__ = [
    "CamRecord",
    "ErfRecord",
    "Model",
    "R2VizError",
    "SplitRecord",
    "__version__",
    "cam",
    "cam_maps",
    "compare",
    "decode",
    "erf",
    "figure",
    "load",
    "load_pair",
    "open_record",
    "save",
    "splits",
    "theoretical_rf",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'r2viz' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
