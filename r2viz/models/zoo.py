"""Every network that r2viz can name, in one visible table. Reading it imports no torch; building a network does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from r2viz.errors import UnknownName, nearest
from r2viz.geometry import Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """A network: how it is built, where its weights are, how those want their pictures, where it comes from.

    Attributes:
        title: what a figure calls it.
        factory: `module:function` that builds it from `arguments` and `num_classes`.
        hub: repository of its public weights, or None.
        embedded: file of its weights in the package, or None.
        classes: the vocabulary of those weights.
        top1: the paper's ImageNet accuracy in percent.
    """

    title: str
    factory: str
    preprocess: Preprocess
    classes: str
    citation: str
    licence: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    hub: str | None = None
    embedded: str | None = None
    aliases: tuple[str, ...] = ()
    top1: float | None = None

    def build(self, **more: Any) -> nn.Module:
        """The network with fresh weights; `more` (say `num_classes`) goes over the row's arguments."""
        room, _, function = self.factory.partition(":")
        return getattr(import_module(room), function)(**{**self.arguments, **more})


_IMAGENET = Preprocess(resize=256, crop=(224, 224))
# The mini pair: for 64x64 pictures, small enough to be trained alike on two cores, 8x8 maps from layer2 on (total
# stride 8). Early stages are narrow because there memory sets the pace. With 26 channels per 64 planes and four groups
# the Res2Net has 99.4 % of the ResNet's parameters and 99.5 % of its multiply-adds, the rule by which the paper
# matches its own pairs. The first block of a stage does not cascade, so four of its eight blocks do.
_MINI = {"depths": (2, 2, 2, 2), "widths": (16, 48, 96, 160), "strides": (1, 2, 1, 1), "stem": "3x3", "stem_width": 24}
_SMALL = Preprocess(resize=64, crop=(64, 64))
_OURS = "Apache-2.0, like r2viz; trained on Tiny-ImageNet, whose pictures are for research use"
_HE = "He et al. 2016, arXiv 1512.03385"
_GAO = "Gao et al. 2021, arXiv 1904.01169"
_RESNET, _RES2NET = "r2viz.models.resnet:resnet", "r2viz.models.resnet:res2net"

ZOO: dict[str, Row] = {
    "resnet50": Row(
        title="ResNet-50",
        factory=_RESNET,
        arguments={"depths": (3, 4, 6, 3)},
        # torchvision's first weights: the paper's baseline. The later ones were trained by another recipe.
        hub="timm/resnet50.tv_in1k",
        preprocess=_IMAGENET,
        classes="imagenet",
        citation=_HE,
        licence="BSD-3-Clause (torchvision)",
        aliases=("resnet50.tv_in1k",),
        top1=76.15,
    ),
    "res2net50_26w_4s": Row(
        title="Res2Net-50 26w-4s",
        factory=_RES2NET,
        arguments={"depths": (3, 4, 6, 3), "base_width": 26, "scale": 4},
        hub="timm/res2net50_26w_4s.in1k",
        preprocess=_IMAGENET,
        classes="imagenet",
        citation=_GAO,
        licence="the authors' weights are for non-commercial use (CC BY-NC-SA)",
        aliases=("res2net50", "res2net50_26w_4s.in1k"),
        top1=77.99,
    ),
    "resnet26_mini": Row(
        title="ResNet-26 mini",
        factory=_RESNET,
        arguments={**_MINI, "num_classes": 200},
        embedded="resnet26_mini.safetensors",
        preprocess=_SMALL,
        classes="tiny-imagenet",
        citation=_HE,
        licence=_OURS,
    ),
    "res2net26_mini": Row(
        title="Res2Net-26 mini",
        factory=_RES2NET,
        arguments={**_MINI, "num_classes": 200, "base_width": 26, "scale": 4},
        embedded="res2net26_mini.safetensors",
        preprocess=_SMALL,
        classes="tiny-imagenet",
        citation=_GAO,
        licence=_OURS,
    ),
}


def canonical(name: str) -> str:
    """The table's name for `name` or one of its aliases.

    Raises:
        UnknownName: no such network; the message suggests the nearest.
    """
    known = {alias: key for key, row in ZOO.items() for alias in (key, *row.aliases)}
    if name in known:
        return known[name]
    raise UnknownName(f"no model {name!r}{nearest(name, known)}; there are {', '.join(ZOO)}", code="unknown_name.model")
