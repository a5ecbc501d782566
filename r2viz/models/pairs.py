"""The pairs that may be compared, and which of them can be had here and now. Imports no torch.

Whether weights can be had is asked before torch is imported: without network, the sentence that says so should come
in seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from r2viz.errors import UnknownName, WeightsUnavailable, nearest, one_line
from r2viz.models import zoo
from r2viz.models.hub import cached, cached_url, fetch, fetch_url
from r2viz.models.row import Row


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
    "mini": Pair(
        ("resnet26_mini", "res2net26_mini"),
        "trained by this project, one recipe for both, on 200 classes at 64 px; inside the package",
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


def of_network(name: str) -> list[str]:
    """The pairs that a network of the table is in."""
    return [key for key, known in PAIRS.items() if name in known.models]


def choose(name: str = "auto", weights: str = "auto") -> str:
    """The pair that `name` means with these weights; its public weights, if it is to have them, are then cached.

    `"auto"` is the paper's pair where its weights are cached or can be fetched, else the mini pair, which ships with
    the package; a warning then says so in one sentence.

    Raises:
        UnknownName: no such pair.
        WeightsUnavailable: public weights were asked for by name, and are neither cached nor reachable.
    """
    if name != "auto":
        obtain([(model, weights) for model in pair(name).models])
        return name
    if weights == "mini":
        return "mini"
    try:
        obtain([(model, weights) for model in PAIRS["imagenet"].models])
    except WeightsUnavailable as error:
        if weights != "auto":
            raise
        reason = str(error).split("; ")[0]
        warnings.warn(
            f"{reason}; so the mini pair is used, which ships with r2viz (200 classes, 64 px); --pair imagenet insists",
            stacklevel=2,
        )
        return "mini"
    return "imagenet"


def obtain(networks: Iterable[tuple[str, str]]) -> None:
    """Make sure that the public weights of these (network, weights) are in the cache, where they are asked for.

    Raises:
        WeightsUnavailable: they are neither cached nor reachable, or there are none.
    """
    for model, weights in networks:
        row = zoo.row(model)
        if weights not in ("auto", "imagenet"):
            continue
        if row.hub is not None:
            fetch(row.hub)
        elif row.url is not None:
            fetch_url(row.url)
        elif weights == "imagenet" or row.embedded is None:
            raise no_weights(model, row)


def local(row: Row) -> Path | None:
    """The file of the weights that the network has by itself, public or in the package, if it is here and whole."""
    if row.hub is not None:
        return cached(row.hub)
    if row.url is not None:
        return cached_url(row.url)
    return None if row.embedded is None else Path(__file__).with_name("embedded") / row.embedded


def no_weights(name: str, row: Row) -> WeightsUnavailable:
    """The error for a network whose public weights were asked for, and that has none."""
    others = "--weights mini, FILE or random" if row.embedded is not None else "--weights FILE or --weights random"
    why = f" ({row.note})" if row.note else ""
    return WeightsUnavailable(f"{one_line(name)} has no public weights{why}; give {others}", code="weights_none")
