"""Every method, in one visible table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from r2viz.attribution.gradient import gradcam
from r2viz.errors import UnknownName, nearest


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        function: what makes the map; its arguments are what `needs` says.
        needs: `"activations"`: `(activations)`; `"gradients"`: `(activations, gradients)`, both `(N, C, h, w)`;
            `"rerun"`: `(Rerun)`, for methods that run the network, or what follows the layer, again;
            `"pixels"`: `(Rerun)`, for attributions of input pixels, whose map is `(N, H, W)` whatever the layer.
        title: what a figure calls it.
        citation: where it is defined.
        per_class: whether the map depends on the target.
        note: how it departs from its source, or what one must know to read it.
    """

    function: Callable[..., Tensor]
    title: str
    citation: str
    needs: Literal["activations", "gradients", "rerun", "pixels"] = "gradients"
    per_class: bool = True
    note: str = ""


METHODS: dict[str, Method] = {
    "gradcam": Method(gradcam, "Grad-CAM", "Selvaraju et al. 2017, arXiv 1610.02391"),
}


def method_named(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in METHODS:
        raise UnknownName(
            f"no method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}", code="unknown_name.method"
        )
    return METHODS[name]
