"""The table parametrises its own tests: a new row tests itself."""

from __future__ import annotations

import pytest
import torch

from r2viz.models import count, zoo
from r2viz.models.row import Row

ROWS = [pytest.param(name, row, id=name) for name, row in zoo.ZOO.items()]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_counts(name: str, row: Row) -> None:
    with torch.device("meta"):
        module = row.build()
    assert count.params(module) == row.params
    assert count.macs(module, row.size) == row.macs


def test_names_are_unique_and_lead_to_their_row() -> None:
    known = [name for key, row in zoo.ZOO.items() for name in (key, *row.aliases)]
    assert len(known) == len(set(known)), "two networks share a name"
    for key, row in zoo.ZOO.items():
        for name in (key, *row.aliases):
            assert zoo.canonical(name) == key
            assert zoo.row(name) is row
