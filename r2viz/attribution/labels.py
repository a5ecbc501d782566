"""Which output of a network a class of a data set is: WordNet ids, labels and indices."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from r2viz.attribution.targets import policy
from r2viz.errors import BadTarget

if TYPE_CHECKING:
    from r2viz.models.model import Model

_WNID = re.compile(r"(n[0-9]{8})(?![0-9])")


def output_of(name: str, model: Model, known: dict[str, int] | None = None) -> int | None:
    """The network's output for a class by the name that a data set gives it; None where it has no such class.

    Args:
        name: begins with a WordNet id, or is a label of the network (underscores may stand for spaces) or an index.
        model: a network with its classes.
        known: what `by_wnid(model)` gave, for many names.
    """
    wnid = _WNID.match(name)
    if wnid is not None:
        return (by_wnid(model) if known is None else known).get(wnid[1])
    for text in (name, name.replace("_", " ")):
        try:
            fixed = policy(text, [model.classes]).fixed
        except BadTarget:
            continue
        if fixed is not None:
            return fixed[0]
    return None


def by_wnid(model: Model) -> dict[str, int]:
    """Output by WordNet id where the network's classes are ImageNet's or Tiny-ImageNet's, else nothing."""
    from r2viz.models.model import class_names

    for name in ("imagenet", "tiny-imagenet"):
        if tuple(model.classes) == class_names(name):
            return {wnid: indices[name] for wnid, indices in _wnids().items() if name in indices}
    return {}


@cache
def _wnids() -> dict[str, dict[str, int]]:
    """ILSVRC 2012's classes: their index in ImageNet-1k and, for 200 of them, in Tiny-ImageNet-200."""
    import r2viz.models

    with Path(r2viz.models.__path__[0], "wnids.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["wnid"]: {key: int(value) for key, value in row.items() if key != "wnid" and value}
            for row in csv.DictReader(file)
        }
