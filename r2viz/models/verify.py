"""Whether the weights that lie here are those that were published, and fit their network."""

from __future__ import annotations

import json
import re
from pathlib import Path

from r2viz.errors import BadWeights, WeightsUnavailable, one_line
from r2viz.models import zoo
from r2viz.models.model import load
from r2viz.models.pairs import local
from r2viz.models.row import Row


def verify(name: str) -> str:
    """What was found right of the public or embedded weights of network `name`, in words. No network is used.

    Raises:
        WeightsUnavailable: they are not here, or not whole.
        BadWeights: they are not what their hash says, or do not fit the network.
    """
    row = zoo.row(name)
    path = local(row)
    if path is None:
        raise WeightsUnavailable(f"{name}: no whole file is here; run r2viz weights fetch {one_line(name)}")
    expected = _expected(row, path)
    found = load(name, weights="imagenet" if row.public else "mini").weights.sha256
    if expected is not None and not found.startswith(expected):
        raise BadWeights(
            f"{one_line(str(path))} was changed: its sha256 begins {found[:12]}, expected {expected[:12]}; "
            "remove it and fetch it again",
            code="weights_hash",
        )
    return f"sha256 {found[:12]}… as published, fits" if expected else f"sha256 {found[:12]}… (none known), fits"


def _expected(row: Row, path: Path) -> str | None:
    """The sha256 that the file should have, or how it begins; None where nobody says."""
    if row.hub is not None:  # the hub's cache calls a file by its hash, and links to it
        blob = path.resolve().name
        return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None
    if row.url is not None:
        begins = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
        return begins[1] if begins else None
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return str(card["weights"]["sha256"])
