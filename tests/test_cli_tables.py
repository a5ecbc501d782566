"""`r2viz tables`: what it prints, where it writes, what it refuses, and that nothing is lost on Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import one_thread, photo

from r2viz import cli
from r2viz.tables import measure
from r2viz.tables.folder import kept

MINI = ("--models", "resnet26_mini,res2net26_mini", "--device", "cpu", "--batch", "4")


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def go(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["r2viz", "tables", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(left.value.code or 0), out, err

    return go


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes that the mini pair knows, five pictures each."""
    for number, name in enumerate(("n01443537", "n01629819")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for index in range(5):
            Image.fromarray(photo(64, 64, seed=10 * number + index)).save(tmp_path / "val" / name / f"{index}.png")
    return tmp_path / "val"


def test_tables_are_data_on_stdout(run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert [f"Table {number}." in out for number in range(1, 6)] == [True] * 4 + [False]
    assert "Table 9" in run("9")[1]


@pytest.mark.parametrize("kind", ["csv", "json", "latex"])
def test_formats(run, kind: str) -> None:
    code, out, _ = run("T3", "--format", kind)
    assert code == 0
    if kind == "csv":
        assert len(list(csv.DictReader(io.StringIO(out)))) == 7
    elif kind == "json":
        assert json.loads(out)["tables"][0]["table"] == "T3"
    else:
        assert out == run("T3", "--latex")[1]
        assert out.rstrip().endswith(r"\end{document}")


def test_counting_anew_changes_nothing(run) -> None:
    assert run("T2", "--count")[1] == run("T2")[1]


def test_measured_tables_and_files(run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, err = run("--images", images, *MINI, "-o", out)
    assert code == 0
    assert "Measured, in none of the tables above" in shown
    assert "ResNet-26 mini" in shown
    assert "Res2Net-26 mini: top-1" in err
    assert sorted(path.name for path in out.iterdir()) == [
        "measured.json", "tables.csv", "tables.json", "tables.tex", "tables.txt",
        "tradeoff.pdf", "tradeoff.png", "tradeoff.svg",
    ]  # fmt: skip
    assert (out / "tables.txt").read_text() == shown
    assert [one.pictures for one in kept(out)] == [10, 10]
    code, _, err = run("--images", images, *MINI, "-o", out)
    assert code == 1
    assert "exists already; use --overwrite" in err
    before = (out / "tables.csv").read_bytes()
    code, again, err = run("--images", images, *MINI, "-o", out, "--resume")
    assert code == 0
    assert err.count("(from the folder)") == 2
    assert again == shown
    assert (out / "tables.csv").read_bytes() == before


def test_without_names_who_knows_the_classes_is_measured(run, images: Path) -> None:
    code, out, _ = run("T2", "--images", images, "--limit", 4, "--device", "cpu", "--format", "json")
    assert code == 0
    measured = json.loads(out)["measured"]
    assert {one["network"] for one in measured} >= {"resnet26_mini", "res2net26_mini"}
    assert {one["pictures"] for one in measured} == {4}


def test_bad_pictures_are_said_and_counted(run, images: Path) -> None:
    (images / "n01443537/bad.jpg").write_bytes(b"nothing")
    code, out, err = run("T2", "--images", images, *MINI)
    assert code == 3
    assert err.count("bad.jpg") == 1
    assert "1 picture could not be decoded and is left out." in out
    assert run("T2", "--images", images, *MINI, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["T11"], 2, "no table 'T11'"),
        (["--models", "resnet26_mini"], 2, "name the pictures with --images"),
        (["--limit", "3"], 2, "name the pictures with --images"),
        (["--images", "IMAGES", "--resume"], 2, "--resume needs the folder to go on in"),
        (["--images", "IMAGES", "--models", "resnet51"], 2, "no model 'resnet51'; did you mean 'resnet50'?"),
        (["--images", "nowhere"], 1, "nowhere: no such folder; give a folder of class folders"),
        (["--images", "IMAGES/n01443537", "--models", "resnet26_mini"], 1, "holds no class folder with pictures"),
        (["--images", "IMAGES", "--device", "abacus"], 1, "device 'abacus' cannot be used"),
        (["--format", "word"], 2, "'word' is not one of"),
        (["--limit", "0", "--images", "IMAGES"], 2, "0 is not in the range"),
    ],
)
def test_what_is_refused(run, images: Path, arguments: list[str], code: int, said: str) -> None:
    found, out, err = run(*(one.replace("IMAGES", str(images)) for one in arguments))
    assert found == code
    assert said in err
    assert out == ""


def test_interrupted_after_a_network_it_goes_on_from_there(
    run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", measure.measure
    seen = []

    def first_only(model, *arguments, **options):
        if seen:
            raise KeyboardInterrupt
        seen.append(model.name)
        return real(model, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", first_only)
        code, _, err = run("--images", images, *MINI, "-o", out)
    assert code == 130
    assert "interrupted" in err
    assert [one.network for one in kept(out)] == ["resnet26_mini"]
    assert [path.name for path in out.iterdir()] == ["measured.json"]
    code, _, err = run("--images", images, *MINI, "-o", out, "--resume")
    assert code == 0
    assert "ResNet-26 mini: top-1" in err
    assert err.count("(from the folder)") == 1
    assert [one.network for one in kept(out)] == ["resnet26_mini", "res2net26_mini"]


def test_a_real_interruption_leaves_whole_files(images: Path, tmp_path: Path) -> None:
    for number in range(400):
        Image.fromarray(photo(64, 64, seed=number)).save(images / "n01443537" / f"more{number}.png", compress_level=1)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "r2viz", "tables", "--images", images, *MINI, "-o", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "measured.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert [one.network for one in kept(out)] == ["resnet26_mini"]
    assert [path.name for path in out.iterdir()] == ["measured.json"]


def test_a_folder_of_something_else(run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/measured.json").write_text("{}")
    code, _, err = run("--images", images, *MINI, "-o", tmp_path / "out", "--resume")
    assert code == 1
    assert "measured.json holds no measurements of r2viz tables; remove it" in err
    assert (tmp_path / "out/measured.json").read_text() == "{}"


def test_readme_shows_what_is_printed(run) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("$ r2viz tables 3\n") :].split("\n", 1)[1].split("```")[0]
    printed = run("3")[1].splitlines()
    assert [line for line in block.splitlines() if line != "…" and line not in printed] == []
