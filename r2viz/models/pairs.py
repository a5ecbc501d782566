"""The pairs that may be compared, and which of them can be had here and now. Imports no torch.

Whether weights can be had is asked before torch is imported: without network, the sentence that says so should come
in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from r2viz.errors import UnknownName, nearest
from r2viz.models.hub import fetch
from r2viz.models.zoo import ZOO


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


def choose(name: str = "auto", weights: str = "auto") -> str:
    """The pair that `name` means with these weights; its public weights, if it is to have them, are then cached.

    Raises:
        UnknownName: no such pair.
        WeightsUnavailable: its public weights are neither cached nor reachable.
    """
    chosen = "imagenet" if name == "auto" else name
    obtain([(model, weights) for model in pair(chosen).models])
    return chosen


def obtain(networks: Iterable[tuple[str, str]]) -> None:
    """Make sure that the public weights of these (network, weights) are in the cache, where they are asked for.

    Raises:
        WeightsUnavailable: they are neither cached nor reachable.
    """
    for model, weights in networks:
        repository = ZOO[model].hub
        if weights in ("auto", "imagenet") and repository is not None:
            fetch(repository)
