"""The scripts of analyses/, by a tiny pair."""

import csv
import json
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from PIL import Image

from r2viz.coverage import read_mask
from r2viz.explain import explain


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
    assert names == {"figure4-1.png", "figure4-1.pdf", "figure4-2.png", "figure4-2.pdf", "figure4.json", "figure4.csv"}
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


def test_figure4_takes_the_papers_classes_of_a_folder_in_its_order(figure4):
    Path("p").mkdir()
    for seed, name in enumerate(
        ("n03788195_mosque", "n02799071_baseball", "n02107574_a", "n02107683_b", "n01443537_x")
    ):
        Image.fromarray(tiny.photo(70, 90, seed)).save(f"p/{name}.png")
    done = figure4("p")
    assert done.exit_code == 0, done.output
    assert "3 of 5 pictures are of the paper's classes; --all draws others too" in done.stderr
    assert "stands for “mountain dog”" in done.stderr
    names = [line.split(",")[:4] for line in Path("out/figure4.csv").read_text().splitlines()[1::2]]
    assert names == [
        ["n02799071_baseball.png", "baseball", "False", "small objects"],
        ["n02107574_a.png", "mountain dog", "False", "big objects"],
        ["n03788195_mosque.png", "mosque", "False", "big objects"],
    ]
    assert figure4("p", "--all", "--overwrite").exit_code == 0
    assert len(Path("out/figure4.csv").read_text().splitlines()) == 11


def test_figure4_measures_where_the_object_is_known(figure4):
    mask = Image.new("L", (90, 70))
    mask.paste(255, (0, 0, 45, 70))
    mask.save("a_mask.png")
    Path("d").mkdir()
    Image.fromarray(tiny.photo(70, 90, 5)).save("d/z.png")
    Path("d/objects.csv").write_text("file,label,x0,y0,x1,y1\nz.png,bee,0,0,10,10\n")
    done = figure4("b.png", "a.png", "d/z.png")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(Path("out/figure4.csv").read_text().splitlines()))
    assert [row["picture"] for row in rows[::2]] == ["z.png", "a.png", "b.png"]
    boxed, masked, plain = rows[::2]
    assert (boxed["size"], boxed["explains"], boxed["class_known"]) == ("small objects", "bee", "True")
    assert (boxed["area_coverage"], plain["energy"], plain["size"]) == ("", "", "size not known")
    record = explain("a.png", tiny.pair(), region=read_mask("a_mask.png", (70, 90)))
    inside = record.inside(record.views[0], record.layers[0])
    assert float(masked["energy"]) == pytest.approx(inside.share, abs=1e-5)
    assert 0 <= float(masked["area_coverage"]) <= 1


@pytest.mark.shared
def test_figure4_explains_a_class_that_the_networks_know(shared, tmp_path):
    from analyses import figure4_gradcam

    pictures = [
        str(shared / "data" / "pictures" / name) for name in ("n02056570_king_penguin.JPEG", "n03788195_mosque.JPEG")
    ]
    done = CliRunner().invoke(figure4_gradcam.main, [*pictures, "--pair", "mini", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "out" / "figure4.csv").read_text().splitlines()))
    assert {row["explains"] for row in rows if row["shows"] == "king penguin"} == {"king penguin"}
    assert [row["class_known"] for row in rows] == ["True", "True", "False", "False"]


def test_the_tables_make_a_report(tmp_path):
    from analyses.tables import main

    result = CliRunner().invoke(main, ["-o", str(tmp_path / "tables")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "tables/tables/table_3.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert rows["Res2Net-50-26w-8s"]["top-1 err. % (paper)"] == "20.80"
    assert rows["Res2Net-50-26w-4s"]["params M (counted)"] == "25.70"
    page = (tmp_path / "tables/index.html").read_text()
    assert "a quarter of a percent below" in page  # footnotes travel
    again = CliRunner().invoke(main, ["-o", str(tmp_path / "tables")])
    assert again.exit_code == 1
    assert "--overwrite" in again.output
