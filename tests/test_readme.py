"""README keeps its word: its Python runs, its links and pictures are there, its options exist."""

import re
import warnings
from pathlib import Path

import torch
from tiny import one_thread

from r2viz.attribution import METHODS
from r2viz.cli import cam
from r2viz.cli.methods import NEEDS
from r2viz.errors import WeightsUnavailable
from r2viz.models import pairs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs(monkeypatch, tmp_path):
    def refuse(repository):
        raise WeightsUnavailable(f"the weights {repository} are away; connect once")

    monkeypatch.setattr(pairs, "fetch", refuse)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {"batch": torch.zeros(2, 3, 64, 64)}
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)
    assert names["record"].views[0].target.label == "bison"
    assert names["model"].classes[50] == "bison"
    assert {layer: tuple(map_.shape) for layer, map_ in names["maps"].items()} == {
        "layer2": (2, 8, 8),
        "layer4": (2, 8, 8),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "bison.cam.json", "bison.cam.npz"}


def test_links_and_pictures_are_there():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if not target.startswith("http")]
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_options_exist():
    known = {option for parameter in cam.command.params for option in parameter.opts}
    block = TEXT[TEXT.index("| you want | say |") : TEXT.index("Data goes to standard output")]
    asked = set(re.findall(r"(--[a-z]+)", block))
    assert len(asked) > 8
    assert asked <= known


def test_the_table_of_methods_is_the_table():
    block = TEXT[TEXT.index("## Methods") : TEXT.index("### Is a map to be trusted?")]
    rows = [line for line in block.splitlines() if line.startswith("| ") and "`--method`" not in line]
    assert rows == [
        f"| {row.title} | `{name}` | {row.citation} | {NEEDS[row.needs]} |" for name, row in METHODS.items()
    ]
