"""`r2viz splits`: streams, files and exit codes, with the pair that ships with the package."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import one_thread, photo

import r2viz
from r2viz import cli, store
from r2viz.cli import splits as room
from r2viz.split_records import COLUMNS, SplitRecord


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]
STEM = "resnet26_mini-res2net26_mini"
SMALL = ("--pair", "mini", "--layer", "layer4")


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("p", "--pair", "mini", …)` as the console script would, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object, command: str = "splits") -> Ran:
        capsys.readouterr()
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["r2viz", command, *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as left:
                cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(left.value.code or 0), out, err)

    return go


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "p"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(photo(70, 90, seed)).save(folder / name)
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_table_with_first_blocks_apart_and_nothing_written_unless_asked(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    done = run("p", "--pair", "mini", "--layer", "layer4", "--layer", "layer3", "--stat", "energy", "--stat", "dead")
    assert done.code == 0
    assert done.err == "note: resnet26_mini has no splits: its middle channels are cut into 4 groups as the control\n"
    lines = done.out.splitlines()
    assert lines[0] == "statistics of splits over 3 pictures; means over a stage's blocks, splits in code order"
    assert lines[1].split() == ["network", "stage", "split", "energy", "share", "dead"]
    body = [line.split("  ") for line in lines[2:-2]]
    assert len(body) == 2 * 4 * 2 * 2
    found = {tuple(part.strip() for part in row if part)[:3]: float(row[-1]) for row in body}
    assert ("ResNet-26 mini", "layer4, first block", "g3") in found
    assert ("Res2Net-26 mini", "layer3", "3 passed") in found
    assert ("Res2Net-26 mini", "layer3, first block", "3") in found
    assert listing(tmp_path) == ["p"]


def test_the_table_is_the_record_s_numbers(pictures: Path) -> None:
    record = r2viz.splits(sorted(pictures.iterdir()), pair="mini", layers=["layer1"], statistics=["energy", "centroid"])
    rows = [line.split() for line in room.lines(record)[2:-2]]
    for row in record.select("centroid", model="res2net26_mini"):
        shown = [
            cells
            for cells in rows
            if cells[0] == "Res2Net-26" and ("first" in cells) == (row.split.block == 0)
            and (cells[-3] if "passed" not in cells else cells[-4]) == str(row.split.split)
        ]  # fmt: skip
        assert [cells[-1] for cells in shown] == [f"{row.interval.mean:.3g}"]


def test_files_are_written_and_read_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    wanted = (*SMALL, "--stat", "energy", "--stat", "spectra", "--stat", "cka", "-o", "out")
    done = run("p", *wanted)
    assert done.code == 0
    expected = [f"{STEM}.{name}.splits.png" for name in ("energy", "centroid", "correlation_length", "spectra")]
    expected += [f"{STEM}.splits.{end}" for end in ("csv", "parquet", "json", "npz")]
    assert listing(tmp_path / "out") == sorted(expected)
    assert "no figure cka: likeness between splits is not known from 3 pictures; give more, four at least" in done.err
    record = store.open_record(tmp_path / "out" / f"{STEM}.splits.json")
    assert isinstance(record, SplitRecord)
    assert room.lines(record) == done.out.splitlines()[:-1]
    table = pd.read_parquet(tmp_path / "out" / f"{STEM}.splits.parquet")
    assert tuple(table.columns) == COLUMNS
    pd.testing.assert_frame_equal(table, record.frame(), check_dtype=False)
    written = pd.read_csv(tmp_path / "out" / f"{STEM}.splits.csv")
    np.testing.assert_array_equal(written["value"], table["value"])
    again = run("p", *wanted)
    assert again.code == 1
    assert f"{STEM}.energy.splits.png exists already; use --overwrite" in again.err
    redrawn = run(f"out/{STEM}.splits.json", "-o", "again.png", command="plot")
    assert redrawn.code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out" / f"{STEM}.spectra.splits.png").read_bytes()


def test_json_is_one_object_and_bad_pictures_are_named(run: Run, pictures: Path) -> None:
    (pictures / "bad.png").write_bytes(b"no picture")
    done = run("p", "none.jpg", *SMALL, "--stat", "moments", "--json")
    assert done.code == 3
    document: dict[str, Any] = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["kind"], document["pictures"], document["files"]) == ("splits", 3, [])
    assert len(document["left_out"]) == 2
    assert "p/bad.png: " in done.err
    assert "none.jpg" in done.err
    assert "2 of 5 pictures could not be used" in done.err
    assert run("p", *SMALL, "--stat", "moments", "--strict").code == 1
    nothing = run("p/bad.png", *SMALL)
    assert nothing.code == 1
    assert nothing.err.count("bad.png") == 2  # when it was met, and as the reason why there is no result


def test_one_network_with_and_without_training_stays_apart(run: Run, pictures: Path) -> None:
    both = ("--model", "res2net26_mini", "--model", "res2net26_mini", "--weights", "mini", "--weights", "random")
    done = run("p", *both, "--layer", "layer4.1", "--stat", "centroid", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert [network["model"] for network in document["networks"]] == ["res2net26_mini#1", "res2net26_mini#2"]
    values = {(row["model"], row["split"]): row["value"] for row in document["rows"]}
    assert len(values) == len(set(values.values())) == 8


def test_ablation_has_a_table_a_figure_and_files(run: Run, pictures: Path, tmp_path: Path) -> None:
    asked = ("--pair", "mini", "--layer", "layer4.1", "--stat", "energy", "--ablate")
    done = run("p", *asked, "-o", "out")
    assert done.code == 0
    lines = done.out.splitlines()
    assert "interventions over 3 pictures; 95 % intervals over them" in lines
    assert any(line.split()[:4] == ["Res2Net-26", "mini", "layer4", "cascade"] and " cut " in line for line in lines)
    made = [f"{STEM}.effects.splits.{end}" for end in ("csv", "parquet", "png")]
    assert [name for name in listing(tmp_path / "out") if ".effects." in name] == made
    table = pd.read_parquet(tmp_path / "out" / made[1])
    assert set(table["model"]) == {"resnet26_mini", "res2net26_mini"}
    split = table[(table["tap"] == "layer4.1.split1") & (table["effect"] == "logit")]
    assert list(split["intervention"]) == ["zero", "mean", "shuffle", "zero_direct", "mean_direct", "cut"]
    assert split["value"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stat", "centriod"), "no statistic 'centriod'; did you mean 'centroid'"),
        (("--format", "gif"), "no figure format 'gif'; there are png, pdf and svg"),
        (("--layer", "layer9", "--pair", "mini"), "layer9"),
        (("--pair", "mini", "--model", "resnet50"), "--pair and --model exclude each other"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run: Run, pictures: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run("p", *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_one_picture_gets_its_feature_maps(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("p/a.png", *SMALL, "--stat", "energy", "-o", "out")
    assert done.code == 0
    drawn = [name for name in listing(tmp_path / "out") if ".maps.splits." in name]
    assert [name for name in drawn if name.startswith("res2net")] == [
        f"res2net26_mini.layer4.1.split{number}.maps.splits.png" for number in range(4)
    ]
    assert len(drawn) == 8


def test_feature_maps_are_what_goes_into_the_last_convolution() -> None:
    from r2viz.partition.features import features

    model = r2viz.load("res2net26_mini")
    rgb = photo(70, 90, 0)
    given: list[torch.Tensor] = []
    handle = model.module.get_submodule("layer3.1.conv3").register_forward_pre_hook(
        lambda _, args: given.append(args[0])
    )
    with handle, torch.no_grad():
        model.module(model.preprocess(rgb)[0])
    found = features(rgb, model, ["layer3"])
    assert [one.tap for one in found] == [f"layer3.1.split{number}" for number in range(4)]
    assert np.allclose(np.concatenate([one.maps for one in found]), given[0][0].numpy(), atol=1e-5)
    fields = r2viz.theoretical_rf(model, [one.tap for one in found])
    for one in found:
        assert one.reach == fields[one.tap].max
        assert one.start == fields[one.tap].centre
        assert one.jump == fields[one.tap].jump
