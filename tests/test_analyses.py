"""The scripts of analyses/, by a tiny pair."""

import json
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from PIL import Image


@pytest.fixture
def figure4(monkeypatch, tmp_path):
    from analyses import figure4_gradcam

    monkeypatch.setattr(figure4_gradcam, "load_pair", lambda *_, **__: tiny.pair())
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(tiny.photo(70, 90, seed)).save(tmp_path / name)
    (tmp_path / "no.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        with tiny.one_thread():
            return CliRunner().invoke(figure4_gradcam.main, [*arguments, "-o", "out"])

    return run


def test_figure4_draws_as_many_grids_as_it_takes(figure4):
    done = figure4("a.png", "b.png", "c.png", "--columns", "2")
    assert done.exit_code == 0, done.output
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"figure4-1.png", "figure4-1.pdf", "figure4-2.png", "figure4-2.pdf", "figure4.json"}
    assert [record["picture"]["name"] for record in json.loads(Path("out/figure4.json").read_text())] == [
        "a.png",
        "b.png",
        "c.png",
    ]


def test_figure4_goes_on_past_a_bad_picture_and_says_so(figure4):
    done = figure4("a.png", "no.png", "c.png")
    assert done.exit_code == 3
    assert "left out: no.png" in done.stderr
    assert len(json.loads(Path("out/figure4.json").read_text())) == 2


def test_figure4_draws_nothing_of_nothing_and_overwrites_nothing(figure4):
    done = figure4("no.png")
    assert done.exit_code == 1
    assert "nothing to draw" in done.stderr
    assert not Path("out").exists()
    assert figure4("a.png").exit_code == 0
    again = figure4("b.png")
    assert again.exit_code == 1
    assert "exists already; use --overwrite" in again.stderr
    assert figure4("b.png", "--overwrite").exit_code == 0
