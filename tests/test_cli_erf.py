"""`r2viz erf`: streams, files and exit codes, with the pair that ships with the package."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tiny import one_thread, photo

from r2viz import cli, store
from r2viz.cli import erf as room
from r2viz.erf_records import ErfRecord


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
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("--pair", "mini", …)` as the console script would, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object, stdin: bytes = b"") -> Ran:
        capsys.readouterr()
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["r2viz", "erf", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as left:
                cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(left.value.code or 0), out, err)

    return go


SMALL = ("--pair", "mini", "--layer", "layer1", "--size", 64)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "p"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(photo(70, 90, seed)).save(folder / name)
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_table_for_a_folder_and_nothing_written_unless_asked(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("p", *SMALL)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "effective receptive fields (Luo et al.) of 3 pictures at 64 px; sizes in px"
    assert lines[1].split() == ["network", "layer", "theory", "σ", "√A50", "√A95", "of", "theory", "of", "input"]
    assert [line.split("  ")[0] for line in lines[2:6:2]] == ["ResNet-26 mini", "Res2Net-26 mini"]
    assert lines[3].split()[:2] == ["each", "input"]
    assert lines[3].count("[") == 3
    assert len({len(line) for line in (lines[1], lines[2], lines[4])}) == 1  # columns stand beneath each other
    assert any(line.startswith("Res2Net-26 mini over ResNet-26 mini at layer1: σ × ") for line in lines)
    assert listing(tmp_path) == ["p"]


def test_files_and_drawing_them_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("p/a.png", *SMALL, "-o", "out", "--format", "png", "--format", "svg")
    assert done.code == 0
    stem = "resnet26_mini-res2net26_mini.erf"
    over = [f"resnet26_mini-res2net26_mini.unit.erf.{kind}" for kind in ("png", "svg")]
    assert listing(tmp_path / "out") == [*(f"{stem}.{kind}" for kind in ("json", "npz", "png", "svg")), *over]
    assert done.out.splitlines()[-1] == f"→ out/{stem}.png"
    record = store.open_record(tmp_path / "out" / f"{stem}.json")
    assert isinstance(record, ErfRecord)
    assert room.lines(record) == done.out.splitlines()[:-1]
    with np.load(tmp_path / "out" / f"{stem}.npz") as arrays:
        np.testing.assert_array_equal(arrays["resnet26_mini/layer1/raw"], record.views[0].erfs[0].raw)
        np.testing.assert_array_equal(arrays["picture"], photo(70, 90, 0))
    again = run("p/a.png", *SMALL, "-o", "out")
    assert again.code == 1
    assert f"out/{stem}.png exists already; use --overwrite" in again.err
    assert run("p/a.png", *SMALL, "-o", "out", "--overwrite").code == 0
    drawn = (tmp_path / "out" / f"{stem}.png").read_bytes()
    from click.testing import CliRunner

    redrawn = CliRunner().invoke(cli.cli, ["plot", f"out/{stem}.json", "-o", "again.png"], catch_exceptions=False)
    assert redrawn.stdout.strip() == "again.png"
    assert (tmp_path / "again.png").read_bytes() == drawn


def test_json_is_one_object(run: Run, pictures: Path) -> None:
    done = run("p", *SMALL, "--unit", "centre", "--unit", "2,3", "--source", "both", "--samples", 2, "--json")
    assert done.code == 0
    document = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["schema"], document["kind"], document["files"]) == (1, "erf", [])
    assert [view["model"] for view in document["views"]] == ["resnet26_mini", "res2net26_mini"]
    erfs = document["views"][1]["erfs"]
    assert [(erf["source"], erf["unit"] == [2, 3]) for erf in erfs] == [
        ("pictures", False), ("pictures", True), ("noise", False), ("noise", True),
    ]  # fmt: skip
    assert all(erf["inputs"] == 2 for erf in erfs)
    assert set(erfs[0]["pixels"]) >= {"sigma", "side50", "side95", "square95"}
    assert set(erfs[0]["each"]["sigma"]) == {"mean", "low", "high", "n", "level"}
    assert {"name", "sha256"} == set(document["inputs"]["pictures"][0])


def test_bad_pictures_are_named_and_the_others_go_on(run: Run, pictures: Path) -> None:
    (pictures / "bad.jpg").write_text("no picture")
    done = run("p", "gone.png", *SMALL)
    assert done.code == 3
    assert "of 3 pictures at 64 px" in done.out
    said = done.err.splitlines()
    assert [line.split(": ")[1] for line in said[:2]] == ["bad.jpg", "gone.png"]
    assert said[-1] == "2 of 5 pictures could not be used"
    assert run("p", "gone.png", *SMALL, "--strict").code == 1
    none = run("p/bad.jpg", "gone.png", *SMALL)
    assert (none.code, none.out) == (1, "")
    assert "none of 2 pictures can be used: bad.jpg: " in none.err


def test_standard_input(run: Run, pictures: Path) -> None:
    done = run("-", *SMALL, "--json", stdin=(pictures / "b.png").read_bytes())
    assert done.code == 0
    assert [one["name"] for one in json.loads(done.out)["inputs"]["pictures"]] == ["stdin"]
    assert run("-", *SMALL, stdin=b"no picture").code == 1


def test_noise_splits_and_one_untrained_network(run: Run) -> None:
    done = run("--model", "res2net26_mini", "--weights", "random", "--seed", 3, "--layer", "layer1", "--split",
               "--samples", 3, "--size", 64, "--json")  # fmt: skip
    assert done.code == 0
    document = json.loads(done.out)
    assert document["layers"] == [f"layer1.1.split{index}" for index in range(4)]
    assert (document["inputs"]["noise"], document["inputs"]["seed"], document["views"][0]["seed"]) == (3, 3, 3)
    assert document["views"][0]["erfs"][0]["calibrated"] == 3


def test_splits_are_drawn_side_by_side(run: Run, tmp_path: Path) -> None:
    asked = ("--model", "res2net26_mini", "--layer", "layer1", "--split", "--samples", 1, "--size", 64)
    assert run(*asked, "-o", "out", "--format", "svg").code == 0
    assert listing(tmp_path / "out") == [f"res2net26_mini.erf.{kind}" for kind in ("json", "npz", "svg")]
    assert "split3" in (tmp_path / "out/res2net26_mini.erf.svg").read_text()


def test_an_input_too_small_for_the_field_is_noticed(run: Run) -> None:
    done = run(*SMALL, "--samples", 1, "--unit", "0,0")
    assert done.code == 0
    assert "note: Res2Net-26 mini layer1 (0, 0): the input (64 x 64) is too small: the square with 95 %" in done.err
    assert "too small" not in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--unit", "here"), "--unit 'here' is no unit; expected centre, or Y,X"),
        (("--unit", "-1,2"), "--unit '-1,2' is no unit"),
        (("--size", "0"), "--size 0 is out of range; give a whole number from 1 to 4096"),
        (("--size", "99999"), "--size 99999 is out of range"),
        (("--size", "large"), "'large' is not a valid integer"),
        (("--samples", "0"), "--samples 0 is out of range"),
        (("--protocol", "replk"), "no protocol 'replk'; did you mean 'replknet'"),
        (("--source", "pixels"), "no source 'pixels'"),
        (("--source", "pictures"), "--source pictures needs pictures; name a file or a folder"),
        (("p", "--source", "noise"), "--source noise looks at no pictures"),
        (("--format", "gif"), "no figure format 'gif'; there are png, pdf and svg"),
        (("--model", "resnet26_mini"), "--pair and --model exclude each other"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_computed(
    run: Run, arguments: tuple[str, ...], says: str, pictures: Path
) -> None:
    done = run(*arguments, "--pair", "mini")
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_what_only_the_network_can_refuse(run: Run) -> None:
    outside = run(*SMALL, "--unit", "64,0", "--samples", 1)
    assert outside.code == 1
    assert "unit (64, 0) is outside 'layer1', which has" in outside.err
    unknown = run("--pair", "mini", "--layer", "layer9")
    assert unknown.code == 2
    assert "no layer 'layer9' in resnet26_mini" in unknown.err


def test_names_in_the_command_line_are_those_of_the_engine() -> None:
    from r2viz.receptive.effective import LARGEST, SOURCES
    from r2viz.receptive.protocols import PROTOCOLS

    assert tuple(PROTOCOLS) == room.PROTOCOLS
    assert SOURCES == room.SOURCES
    assert LARGEST == 4096


def test_columns_are_aligned() -> None:
    rows: list[Any] = [["a", "b", "c"], ["long name", "x", "10.0"], ["n"]]
    assert room.aligned(rows) == ["a          b     c", "long name  x  10.0", "n"]
