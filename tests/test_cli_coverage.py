"""`r2viz coverage`: streams, files, exit codes, and rows that are bad, with the pair that ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import one_thread, photo

from r2viz import cli

FEW = "energy_gain,leakage"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("--json", …)` as the console script would, by the mini pair."""

    def go(*arguments: object) -> Ran:
        capsys.readouterr()
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["r2viz", "coverage", "--pair", "mini", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as left:
                cli.main()
        streams = capsys.readouterr()
        return Ran(int(left.value.code or 0), streams.out, streams.err)

    return go


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Six pictures with boxes, all good."""
    folder = tmp_path / "boxed"
    folder.mkdir()
    lines = ["file,label,x0,y0,x1,y1"]
    for number in range(6):
        Image.fromarray(photo(70, 80, number)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,goldfish,{5 * number},10,{30 + 8 * number},{40 + 4 * number}")
    (folder / "objects.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def masked(boxed: Path) -> Path:
    """The same with masks."""
    for number in range(6):
        mask = np.zeros((70, 80), np.uint8)
        mask[10 : 40 + 4 * number, 5 * number : 30 + 8 * number] = 255
        Image.fromarray(mask).save(boxed / f"{number}_mask.png")
    (boxed / "objects.csv").unlink()
    return boxed


def add(folder: Path, *lines: str) -> None:
    with (folder / "objects.csv").open("a") as file:
        file.write("\n" + "\n".join(lines))


# --- What comes out --------------------------------------------------------------------------------------------------


def test_the_table_goes_to_stdout_and_nothing_else(run: Run, boxed: Path):
    done = run(boxed, "--measures", FEW)
    assert done.code == 0, done.err
    assert done.err == ""
    assert (
        "boxed: 6 pictures; regions are boxes: coverage and evenness, which need a shape, are not measured" in done.out
    )
    assert "Res2Net-26 mini − ResNet-26 mini" in done.out
    assert "centre-Gaussian" in done.out
    assert "Energy inside above chance" in done.out
    assert "One training of each network was looked at (n = 1)" in done.out


def test_json_is_one_object_with_everything(run: Run, boxed: Path):
    done = run(boxed, "--measures", FEW, "--method", "gradcam", "--methods", "hirescam,gradcam", "--json", "--limit", 4)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pictures"] == 4
    assert [(one["model"], one["method"]) for one in found["networks"]] == [
        (model, method) for model in ("resnet26_mini", "res2net26_mini") for method in ("gradcam", "hirescam")
    ]
    assert {row["measure"] for row in found["differences"]} == {"energy_gain", "leakage"}
    assert {row["network"] for row in found["strata"]} == {"ResNet-26 mini", "Res2Net-26 mini", "centre-Gaussian"}
    assert [one["verdict"] for one in found["verdicts"]] == ["undecided"] * 2
    by_measure = {row["measure"]: row for row in found["differences"] if row["method"] == "gradcam"}
    assert by_measure["energy_gain"]["difference"] == pytest.approx(-by_measure["leakage"]["difference"])


def test_a_report_is_whole_and_the_same_when_made_twice(run: Run, masked: Path, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    measures = "area_coverage_gain,evenness,leakage,pxap"
    for out in (first, second):
        done = run(masked, "--measures", measures, "--target", "shared", "-o", out)
        assert done.code == 0, done.err
        assert done.out.rstrip().endswith(f"→ {out / 'index.html'}")
    names = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()}
    tables = ("summary", "differences", "differences_main", "strata", "pictures", "verdicts")
    assert names == {"index.html", "report.json", "run.json"} | {
        f"figures/{name}.{kind}" for name in ("by_size", "differences", "curves") for kind in ("png", "pdf")
    } | {f"tables/{name}.{kind}" for name in tables for kind in ("csv", "parquet")}
    for name in names - {"run.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    rows = pd.read_parquet(first / "tables/pictures.parquet")
    assert len(rows) == 6 * 3
    assert {"picture", "area", "evenness", "leakage_chance"} <= set(rows.columns)
    assert not {"http:", "https:", "<script"} & set((first / "index.html").read_text().split('"'))


def test_a_report_that_exists_is_kept_before_anything_is_computed(run: Run, boxed: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("mine")
    done = run(boxed, "-o", out)
    assert done.code == 1
    assert "exists already; use --overwrite" in done.err
    assert (out / "index.html").read_text() == "mine"


def test_strata_by_pixels_and_masks_guessed_from_boxes(run: Run, boxed: Path):
    for number in range(6):  # GrabCut needs something to find
        rgb = photo(70, 80, number) // 4
        rgb[14 : 36 + 4 * number, 5 * number + 4 : 26 + 8 * number] = (230, 200, 40)
        Image.fromarray(rgb).save(boxed / f"{number}.png")
    done = run(boxed, "--grabcut", "--strata", "coco", "--measures", "area_coverage_gain", "--json")
    found = json.loads(done.out)
    assert found["regions"] == "pseudo-mask"
    assert {row["stratum"] for row in found["differences"]} <= {"all", "small", "medium"}


def test_one_network_has_no_difference(run: Run, boxed: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["r2viz", "coverage", str(boxed), "--model", "resnet26_mini", "--measures", FEW, "--json"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == found["verdicts"] == []
    assert len(found["networks"]) == 1


# --- What is bad -----------------------------------------------------------------------------------------------------


def test_bad_rows_are_named_counted_and_written_and_the_run_goes_on(run: Run, boxed: Path, tmp_path: Path):
    for name in ("outside", "empty", "swapped", "missing", "foreign", "whole"):
        Image.fromarray(photo(70, 80, 9)).save(boxed / f"{name}.png")
    (boxed / "broken.png").write_bytes((boxed / "whole.png").read_bytes()[:200])
    add(
        boxed, "outside.png,goldfish,100,100,140,140", "empty.png,goldfish,10,10,10,40",
        "swapped.png,goldfish,40,40,10,10", "missing.png,goldfish,,,,", "foreign.png,no such class,5,5,40,40",
        "broken.png,goldfish,5,5,40,40", "gone.png,goldfish,5,5,40,40",
    )  # fmt: skip
    out = tmp_path / "out"
    done = run(boxed, "--measures", FEW, "-o", out)
    assert done.code == 3
    assert "7 of 13 pictures could not be used" in done.err
    assert "boxed: 6 pictures" in done.out
    rows = pd.read_csv(out / "tables/failures.csv").set_index("picture")
    assert set(rows.index) == {
        f"{name}.png" for name in ("outside", "empty", "swapped", "missing", "foreign", "broken", "gone")
    }
    said = {
        "outside": "outside", "empty": "empty", "swapped": "box", "missing": "neither a box nor a mask",
        "foreign": "its class 'no such class' is none of resnet26_mini's 200",
    }  # fmt: skip
    for name, words in said.items():
        assert words in rows.loc[f"{name}.png", "error"], rows.loc[f"{name}.png", "error"]
        assert f"r2viz: {name}.png: " in done.err
    assert all("\n" not in error for error in rows.error)
    about = json.loads((out / "report.json").read_text())
    assert next(one["rows"] for one in about["tables"] if one["name"] == "failures") == 7
    assert "7 pictures could not be used" in (out / "index.html").read_text()


def test_strict_makes_bad_rows_a_failure(run: Run, boxed: Path):
    add(boxed, "gone.png,goldfish,5,5,40,40")
    assert run(boxed, "--measures", FEW, "--strict").code == 1
    assert run(boxed, "--measures", FEW).code == 3


def test_a_mask_of_the_wrong_size_and_one_that_is_not_there(run: Run, masked: Path):
    Image.fromarray(np.full((30, 30), 255, np.uint8)).save(masked / "0_mask.png")
    (masked / "1_mask.png").unlink()
    done = run(masked, "--measures", "evenness", "--target", "shared", "--json")
    assert done.code == 3
    found = {one["picture"]: one["error"] for one in json.loads(done.out)["failures"]}
    assert "its mask is 30 x 30, but the picture is 80 x 70" in found["0.png"]
    assert "there is no 1_mask.png beside it" in found["1.png"]


def test_names_that_come_twice_in_parquet(run: Run, tmp_path: Path):
    import io

    rows = []
    for number in (0, 1, 1):
        buffer = io.BytesIO()
        Image.fromarray(photo(64, 64, number)).save(buffer, "PNG")
        rows.append({"file_name": f"{number}.png", "image": buffer.getvalue(), "x0": 5, "y0": 5, "x1": 40, "y1": 50})
    pd.DataFrame(rows).to_parquet(tmp_path / "twice.parquet")
    done = run(tmp_path / "twice.parquet", "--measures", FEW)
    assert done.code == 3
    assert "this name came before; names must be unique" in done.err
    assert "1 of 3 pictures could not be used" in done.err


def test_no_usable_picture_is_an_error(run: Run, tmp_path: Path):
    (tmp_path / "objects.csv").write_text("file,x0,y0,x1,y1\ngone.png,1,1,2,2\n")
    done = run(tmp_path, "-o", tmp_path / "out")
    assert done.code == 1
    assert "none of 1 pictures could be used; the first: " in done.err
    assert "gone.png: no such file" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "labl"], 2, "no target 'labl'; did you mean 'label'"),
        (["--strata", "size"], 2, "there are share and coco"),
        (["--registration", "half"], 2, "there are rf and grid"),
        (["--measures", "evenness"], 1, "evenness needs masks, and boxed has boxes"),
        (["--measures", "enrgy"], 2, "no measure 'enrgy'; did you mean 'energy'"),
        (["--method", "gradcan"], 2, "did you mean 'gradcam'"),
        (["--layer", "layer5"], 2, "layer5"),
        (["--limit", "0"], 2, "Invalid value for '--limit'"),
    ],
)
def test_what_cannot_be_asked_says_so(run: Run, boxed: Path, arguments, code, said):
    done = run(boxed, *arguments)
    assert (done.code, said in done.err) == (code, True), done


def test_a_data_set_that_is_not_there(run: Run, tmp_path: Path):
    done = run(tmp_path / "nowhere")
    assert done.code == 1
    assert "there is no such folder or file" in done.err


def test_help_needs_no_torch():
    code = (
        "import sys, click.testing, r2viz.cli as c;"
        "r = click.testing.CliRunner().invoke(c.cli, ['coverage', '--help']); assert r.exit_code == 0, r.output;"
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
