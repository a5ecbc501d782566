"""What is known of one network: how it is built, where its weights are, what it costs, what was published of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from r2viz.geometry import Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Published:
    """Accuracy that the paper prints: 100 − error, in percent.

    Attributes:
        table: of arXiv 1904.01169, say `"T1"`.
        called: what that table calls the network.
    """

    table: str
    called: str
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class Row:
    """A network: how it is built, where its weights are, how those want their pictures, where it comes from.

    Attributes:
        title: what a figure calls it.
        factory: `module:function` that builds it from `arguments` and `num_classes`.
        classes: the vocabulary of its weights.
        params: parameters, as `r2viz.models.count.params` counts them.
        macs: multiply-adds of one picture of the row's own `size`, as `r2viz.models.count.macs` counts them.
        hub: repository of its public weights, or None.
        url: address of its public weights, where they are in no repository of the hub.
        embedded: file of its weights in the package, or None.
        aliases: other names for it, timm's among them.
        published: what the paper's tables say of it.
        measured_top1: ImageNet accuracy of the public weights in percent, as timm measured it.
        oracle: the same network elsewhere, which it must equal: `"timm:NAME"` or `"torchvision:NAME"`.
        note: where sources disagree, and why something is missing.
    """

    title: str
    factory: str
    preprocess: Preprocess
    classes: str
    citation: str
    licence: str
    params: int
    macs: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    hub: str | None = None
    url: str | None = None
    embedded: str | None = None
    aliases: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    measured_top1: float | None = None
    oracle: str | None = None
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the input that its weights were trained for."""
        side = self.preprocess.resize or 224
        return self.preprocess.crop or (side, side)

    @property
    def top1(self) -> float | None:
        """The paper's accuracy in percent, or None."""
        return self.published[0].top1 if self.published else None

    @property
    def public(self) -> bool:
        """Whether its weights can be downloaded."""
        return self.hub is not None or self.url is not None

    @property
    def lent(self) -> bool:
        """Whether another library or a user's file builds it: nothing is then known of how it does so."""
        return self.factory.startswith("r2viz.models.elsewhere:")

    def build(self, **more: Any) -> nn.Module:
        """The network with fresh weights; `more` (say `num_classes`) goes over the row's arguments."""
        room, _, function = self.factory.partition(":")
        return getattr(import_module(room), function)(**{**self.arguments, **more})
