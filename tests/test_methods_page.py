"""Every method on every kind of network of the zoo: the page that says so is what the code does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from r2viz.attribution import METHODS
from r2viz.errors import ModelError
from r2viz.models.zoo import ZOO

DOCS = Path(__file__).resolve().parents[1] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


draw = script("draw_methods")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Tensor | ModelError]]:
    """Filled by the tests below, one kind of network each."""
    return {}


@pytest.mark.parametrize("title", draw.STRUCTURES)
def test_every_method_where_its_definition_allows(title: str, found: dict[str, dict[str, Tensor | ModelError]]) -> None:
    structure = draw.STRUCTURES[title]
    found[title] = dict(draw.outcomes(structure))
    assert list(found[title]) == list(METHODS)
    for name, outcome in found[title].items():
        if isinstance(outcome, ModelError):
            assert "\n" not in str(outcome)
            assert len(str(outcome)) > 40, "a refusal says why, and what to do instead"
            continue
        assert outcome.ndim == 3
        assert outcome.dtype == torch.float32
        assert outcome.isfinite().all(), name
        if METHODS[name].needs == "pixels":
            assert outcome.shape == (1, structure.size, structure.size)


def test_the_page_is_what_the_code_does(found: dict[str, dict[str, Tensor | ModelError]]) -> None:
    for title, structure in draw.STRUCTURES.items():
        if title not in found:  # this test alone was asked for
            found[title] = dict(draw.outcomes(structure))
    page = draw.page({title: found[title] for title in draw.STRUCTURES})
    same = (DOCS / "methods.md").read_text(encoding="utf-8") == page
    assert same, "docs/methods.md is not what the code does; run: python docs/draw_methods.py"


def test_no_kind_of_network_is_missing() -> None:
    known = {structure.like or structure.factory for structure in draw.STRUCTURES.values()}
    asked = {row.factory for row in ZOO.values() if not row.lent}
    assert asked <= known, f"docs/draw_methods.py has no structure for {', '.join(sorted(asked - known))}"
