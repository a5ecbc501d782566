"""Every network that r2viz can name: one visible table, and the pairs that it compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from r2viz.errors import UnknownName, nearest
from r2viz.geometry import Preprocess
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.resnet import ResNet


@dataclass(frozen=True)
class Row:
    """A network: how it is built, where its public weights are, and how those want their pictures.

    `build(num_classes=…)` gives the module with fresh weights. `top1` is the paper's ImageNet accuracy in percent.
    """

    title: str
    build: Callable[..., nn.Module]
    hub: str | None
    preprocess: Preprocess
    classes: str
    citation: str
    licence: str
    aliases: tuple[str, ...] = ()
    top1: float | None = None


_IMAGENET = Preprocess(resize=256, crop=(224, 224))
_HE = "He et al. 2016, arXiv 1512.03385"
_GAO = "Gao et al. 2021, arXiv 1904.01169"

ZOO: dict[str, Row] = {
    "resnet50": Row(
        title="ResNet-50",
        build=partial(ResNet, Bottleneck, (3, 4, 6, 3)),
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
        build=partial(ResNet, Res2NetBlock, (3, 4, 6, 3), base_width=26, scale=4),
        hub="timm/res2net50_26w_4s.in1k",
        preprocess=_IMAGENET,
        classes="imagenet",
        citation=_GAO,
        licence="the authors' weights are for non-commercial use (CC BY-NC-SA)",
        aliases=("res2net50", "res2net50_26w_4s.in1k"),
        top1=77.99,
    ),
}


@dataclass(frozen=True)
class Pair:
    """Two networks that may be compared: trained alike, or as the paper compares them. The baseline comes first."""

    models: tuple[str, str]
    note: str


PAIRS: dict[str, Pair] = {
    "imagenet": Pair(
        ("resnet50", "res2net50_26w_4s"),
        "the paper's pair: torchvision's first ResNet-50 weights beside the authors' Res2Net-50 26w-4s",
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


def pair(name: str) -> Pair:
    """The pair of that name.

    Raises:
        UnknownName: there is none.
    """
    if name in PAIRS:
        return PAIRS[name]
    raise UnknownName(
        f"no pair {name!r}{nearest(name, [*PAIRS, 'auto'])}; there are auto, {', '.join(PAIRS)}",
        code="unknown_name.pair",
    )
