"""The command line's promises: streams, exit codes, files, and one line for whatever is wrong.

Most runs are in this process with tiny networks in place of the 50-layer ones; what only a process of its own can
show (signals, pipes, imports, time) is run as one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tiny import network, one_thread, photo

from r2viz import cli
from r2viz.explain import batch as batch_room
from r2viz.models import model as model_room
from r2viz.models import pairs
from r2viz.models.zoo import canonical
from r2viz.store import open_record


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def notices(self) -> list[str]:
        return self.err.splitlines()


Run = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tiny() -> dict[tuple[str, str], Any]:
    names = {"resnet50": "resnet_tiny", "res2net50_26w_4s": "res2net_tiny"}
    return {
        (name, kind): network(small, kind="random" if kind == "random" else "hub")
        for name, small in names.items()
        for kind in ("auto", "random")
    }


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: dict[tuple[str, str], Any],
) -> Run:
    """`run("cam", "a.png", …)` as the console script would, in a folder of its own, with tiny networks."""
    real = model_room.load

    def load(name: str, *, weights: Any = "auto", **options: Any) -> Any:
        known = tiny.get((canonical(name), str(weights)))
        return known if known is not None and "classes" not in options else real(name, weights=weights, **options)

    monkeypatch.setattr(model_room, "load", load)
    monkeypatch.setattr(pairs, "fetch", lambda repository: None)  # as if the public weights were in the cache
    monkeypatch.setattr(batch_room, "_said", set())
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str, stdin: bytes = b"") -> Ran:
        capsys.readouterr()
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["r2viz", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as left:
                cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(left.value.code or 0), out, err)

    return go


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures; beside it one file that is none."""
    folder = tmp_path / "p"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(photo(70, 90, seed)).save(folder / name)
    (tmp_path / "text.jpg").write_text("no picture")
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def three(*names: str) -> list[str]:
    return sorted(f"{name}.cam.{kind}" for name in names for kind in ("json", "npz", "png"))


# --- one picture, many pictures --------------------------------------------------------------------------------------


def test_one_picture(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "p/a.png")
    assert done.code == 0
    assert done.err == ""
    assert listing(tmp_path / "r2viz-out") == three("a")
    lines = done.out.splitlines()
    assert lines[0].startswith("a.png: Grad-CAM of ")
    assert lines[-1] == "  → r2viz-out/a.cam.png"
    record = open_record(tmp_path / "r2viz-out/a.cam.json")
    assert [view.model for view in record.views] == ["resnet_tiny", "res2net_tiny"]
    assert Image.open(tmp_path / "r2viz-out/a.cam.png").text["r2viz"]  # type: ignore[attr-defined]


def test_a_folder_and_mirrored_names(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "deep").mkdir()
    Image.fromarray(photo()).save(pictures / "deep" / "a.png")
    done = run("cam", "p", "-o", "out", "--recursive", "--batch", "2")
    assert done.code == 0
    assert listing(tmp_path / "out") == sorted([*three("a", "b", "c"), *three("deep/a")])
    assert [line for line in done.out.splitlines() if "→" in line] == [
        f"  → out/{name}.cam.png" for name in ("a", "b", "c", "deep/a")
    ]


def test_options_reach_the_record(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run(
        *("cam", "p/a.png", "-o", "out", "--model", "res2net50", "--layer", "layer4", "--layer", "layer4.0.split1"),
        *("--target", "Ice_Lolly", "--fit", "whole", "--registration", "grid", "--device", "cpu"),
        *("--format", "svg", "--format", "pdf"),
    )
    assert done.code == 0, done.err
    assert listing(tmp_path / "out") == ["a.cam.json", "a.cam.npz", "a.cam.pdf", "a.cam.svg"]
    record = open_record(tmp_path / "out/a.cam.json")
    assert record.layers == ("layer4", "layer4.0.split1")
    assert [view.model for view in record.views] == ["res2net_tiny"]
    assert record.views[0].target.label == "ice lolly"
    assert record.views[0].preprocess["crop"] is None
    assert record.registration == "grid"


def test_random_weights_are_said(run: Run, pictures: Path) -> None:
    done = run("cam", "p/a.png", "--weights", "random")
    assert "RANDOM WEIGHTS: untrained networks" in done.out


def test_box_and_mask(run: Run, pictures: Path, tmp_path: Path) -> None:
    marked = np.zeros((70, 90), dtype=np.uint8)
    marked[10:60, 20:70] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    by_box = run("cam", "p/a.png", "--box", "20,10,70,60", "-o", "box")
    by_mask = run("cam", "p/a.png", "--mask", "mask.png", "-o", "mask")
    assert by_box.code == by_mask.code == 0
    shares = [line.split("inside")[1] for line in by_box.out.splitlines() if "inside" in line]
    assert len(shares) == 2
    assert shares == [line.split("inside")[1] for line in by_mask.out.splitlines() if "inside" in line]
    y0, x0, y1, x1 = open_record(tmp_path / "box/a.cam.json").views[0].geometry.seen
    chance = 50 * 50 / ((y1 - y0) * (x1 - x0))
    assert f"(chance {chance:.1%})" in shares[0]
    document = json.loads((tmp_path / "box/a.cam.json").read_text())
    assert document["region"] == {"name": "20,10,70,60", "box": [20, 10, 70, 60]}
    assert document["views"][0]["maps"][0]["chance"] == pytest.approx(chance)


def test_standard_input(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "-", "-o", "out", stdin=(pictures / "a.png").read_bytes())
    assert done.code == 0
    assert listing(tmp_path / "out") == three("stdin")
    empty = run("cam", "-", "-o", "other", stdin=b"")
    assert empty.code == 1
    assert empty.err.startswith("r2viz: <stdin>: stdin: is empty (0 bytes)")
    assert not (tmp_path / "other").exists()


def test_data_on_stdout_notices_on_stderr(run: Run, pictures: Path) -> None:
    done = run("cam", "p", "text.jpg", "--json")
    assert all(json.loads(line) for line in done.out.splitlines())
    assert len(done.notices) == 2
    assert done.notices[0].startswith("r2viz: text.jpg: is not a picture that r2viz reads")
    assert done.notices[1] == "1 of 4 pictures could not be used"


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_of_one_picture_is_one_object(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "p/a.png", "--json", "-o", "out")
    document = json.loads(done.out)
    assert document["status"] == "ok"
    assert document["files"] == ["out/a.cam.png", "out/a.cam.npz", "out/a.cam.json"]
    assert all(Path(name).is_file() for name in document["files"])
    saved = json.loads((tmp_path / "out/a.cam.json").read_text())
    assert document["input"] == "p/a.png"
    ours = {key: value for key, value in document.items() if key not in ("input", "status", "files")}
    assert ours == {key: value for key, value in saved.items() if key != "request"}


def test_json_of_many_is_a_line_each_in_order(run: Run, pictures: Path) -> None:
    done = run("cam", "p/b.png", "text.jpg", "p/a.png", "none.png", "--json")
    assert done.code == 3
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert [document["status"] for document in documents] == ["ok", "failed", "ok", "failed"]
    assert documents[0]["picture"]["name"] == "b.png"
    assert [document["input"] for document in documents] == ["p/b.png", "text.jpg", "p/a.png", "none.png"]
    assert all(document["schema"] == 1 for document in documents)
    assert documents[1]["error_code"] == "bad_image.format"
    assert documents[3]["error_code"] == "bad_image.missing"
    assert documents[3]["error"].startswith("none.png: no such file")


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["p/a.png"], 0),
        (["p", "text.jpg"], 3),
        (["p", "text.jpg", "--strict"], 1),
        (["p", "--strict"], 0),
        (["text.jpg"], 1),
        (["text.jpg", "none.png"], 1),
        (["empty"], 1),
        (["p", "empty"], 3),
        (["p", "*.tif"], 3),
        (["*.tif"], 1),
        ([], 2),
        (["p", "--no-such-option"], 2),
    ],
)
def test_exit_codes(run: Run, pictures: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    (tmp_path / "empty").mkdir()
    done = run("cam", *arguments)
    assert done.code == code, done.err
    good = 3 if ("p" in arguments and code in (0, 3)) or arguments == ["p", "text.jpg", "--strict"] else 0
    if arguments != ["p/a.png"]:
        assert done.out.count("→") == good


WRONG = [
    (["--pair", "imagenett"], 2, "no pair 'imagenett'; did you mean 'imagenet'?"),
    (["--model", "resnet5"], 2, "no model 'resnet5'; did you mean 'resnet50"),
    (["--model", "resnet50", "--layer", "layer5"], 2, "no layer 'layer5' in resnet_tiny; did you mean 'layer"),
    (["--target", "dgo"], 2, "no class 'dgo' among the network's 10; did you mean 'dog'?"),
    (["--target", "10"], 2, "no class 10: there are 10 classes, 0 to 9"),
    (["--method", "gradcan"], 2, "no method 'gradcan'; did you mean 'gradcam'?"),
    (["--precision", "int8"], 2, "no precision 'int8'; there are fp32, bf16, fp16"),
    (["--fit", "crp"], 2, "no fit 'crp'; there are crop, squash, whole"),
    (["--registration", "gird"], 2, "no registration 'gird'; there are rf, grid"),
    (["--format", "gif"], 2, "no figure format 'gif'; there are png, pdf and svg"),
    (["--device", "gpu"], 1, "device 'gpu' cannot be used"),
    (["--device", "cuda:99"], 1, "device 'cuda:99' cannot be used"),
    (["--pair", "imagenet", "--model", "resnet50"], 2, "--pair and --model exclude each other"),
    (["--model", "resnet50"] * 3, 2, "3 times --model; give one, or two to compare"),
    (["--box", "1,2,3"], 2, "the box '1,2,3' is not four numbers; expected x0,y0,x1,y1 in pixels"),
    (["--box", "a,b,c,d"], 2, "is not four numbers"),
    (["--box", "50,10,20,60"], 1, "the box 50,10,20,60 is empty"),
    (["--box", "0,0,91,70"], 1, "leaves the picture, which is 90 wide and 70 high"),
    (["--box", "0,0,9,9", "--mask", "m.png"], 2, "--box and --mask exclude each other"),
    (["--mask", "none.png"], 2, "--mask: there is no file 'none.png'"),
    (["--mask", "text.jpg"], 1, "text.jpg: is not a picture"),
    (["--mask", "p/wide.png"], 1, "the mask wide.png is 80 x 60, but the picture is 90 x 70"),
    (["--overwrite", "--resume"], 2, "--overwrite and --resume exclude each other"),
    (["--fuse", "mean"], 2, "--fuse joins the maps of several layers; name at least two with --layer"),
    (["--fuse", "sum", "--layer", "layer3", "--layer", "layer4"], 2, "no fuse 'sum'; there are mean, max"),
    (["--channels", "0"], 2, "0 is not in the range"),
    (["--method", "gradcam", "--method", "gradcan"], 2, "no method 'gradcan'; did you mean 'gradcam'?"),
    (["--target", "top11"], 2, "target 'top11': the networks have 10 classes in common; give 1 to that many"),
    (["--target", "cat vs cat"], 2, "contrasts a class with itself"),
    (["--seed", "-1", "--weights", "random"], 2, "-1 is not in the range"),
    (["--batch", "0"], 2, "0 is not in the range"),
    (["--weights", "random"] * 3, 2, "3 times --weights for 2 networks; give one for each"),
    (["--weights", "text.jpg"], 2, "one weights file for two networks (resnet50, res2net50_26w_4s)"),
    (["--model", "resnet50", "--weights", "text.jpg"], 1, "text.jpg"),
    (["--model", "resnet50", "--weights", "none.safetensors"], 1, "none.safetensors"),
    (
        ["--model", "resnet50", "--weights", "random", "--classes", "none.txt"],
        2,
        "--classes: there is no file 'none.txt'",
    ),
    (["--model", "resnet50", "--weights", "random", "--classes", "two.txt"], 1, "2 class names came for a network of"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_what_is_wrong_is_said_in_one_line(
    run: Run, pictures: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    Image.fromarray(photo(60, 80)).save(pictures / "wide.png")
    done = run("cam", "p/a.png", *arguments)
    assert done.code == code, done.err
    assert done.out == ""
    lines = [line for line in done.notices if line and not line.startswith(("Usage:", "Try '"))]
    assert len(lines) == 1, done.err
    assert says in lines[0]
    assert not (tmp_path / "r2viz-out").exists(), "a run that did nothing left a folder"


def test_box_with_many_pictures(run: Run, pictures: Path) -> None:
    done = run("cam", "p", "--box", "0,0,9,9")
    assert done.code == 2
    assert "--box and --mask belong to one picture, but 3 came" in done.err


def test_disagreement_is_one_picture_s_business(run: Run, pictures: Path) -> None:
    done = run("cam", "p", "--target", "agree", "--json")
    for line in done.out.splitlines():
        document = json.loads(line)
        assert document["status"] == "ok" or document["error_code"] == "bad_target.disagree"
    assert done.code in (0, 1, 3)


# --- what exists stays -----------------------------------------------------------------------------------------------


def test_results_are_not_overwritten(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("cam", "p/b.png", "-o", "out").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(model_room, "load", lambda *_, **__: pytest.fail("refused only after loading networks"))
    refused = run("cam", "p", "-o", "out")
    assert refused.code == 1
    assert refused.notices == ["r2viz: out/b.cam.png exists already; use --overwrite, or another folder with -o"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_overwrite_and_resume(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/b.png", "-o", "out", "--target", "0").code == 0
    kept = (tmp_path / "out/b.cam.json").read_bytes()
    resumed = run("cam", "p", "-o", "out", "--resume", "--target", "0")
    assert resumed.code == 0
    assert resumed.notices == ["1 of 3 pictures have their results already"]
    assert listing(tmp_path / "out") == three("a", "b", "c")
    assert (tmp_path / "out/b.cam.json").read_bytes() == kept
    again = run("cam", "p", "-o", "out", "--resume", "--target", "0")
    assert (again.code, again.out) == (0, "")
    lines = run("cam", "p", "-o", "out", "--resume", "--target", "0", "--json").out.splitlines()
    assert [(json.loads(line)["input"], json.loads(line)["status"]) for line in lines] == [
        (f"p/{name}.png", "kept") for name in "abc"
    ]
    assert run("cam", "p", "-o", "out", "--overwrite", "--target", "1").code == 0
    assert (tmp_path / "out/b.cam.json").read_bytes() != kept


@pytest.mark.parametrize(
    "other", [["--target", "1"], ["--weights", "random"], ["--layer", "layer3"], ["--fit", "squash"]]
)
def test_resume_never_mixes_requests(run: Run, pictures: Path, tmp_path: Path, other: list[str]) -> None:
    assert run("cam", "p/b.png", "-o", "out").code == 0
    kept = (tmp_path / "out/b.cam.json").read_bytes()
    refused = run("cam", "p", "-o", "out", "--resume", *other)
    assert refused.code == 1
    assert len(refused.notices) == 1
    assert "was made from another picture or with other options, so --resume cannot go on from it" in refused.err
    assert (tmp_path / "out/b.cam.json").read_bytes() == kept
    assert listing(tmp_path / "out") == three("b")


def test_resume_never_takes_one_picture_for_another(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    shutil.copy(pictures / "c.png", tmp_path / "q/b.png")
    assert run("cam", "p/b.png", "-o", "out").code == 0
    refused = run("cam", "q/b.png", "-o", "out", "--resume")
    assert refused.code == 1
    assert "was made from another picture" in refused.err


def test_resume_completes_what_is_partly_there(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/b.png", "-o", "out").code == 0
    whole = (tmp_path / "out/b.cam.npz").read_bytes()
    (tmp_path / "out/b.cam.npz").unlink()
    assert run("cam", "p/b.png", "-o", "out", "--resume").code == 0
    assert (tmp_path / "out/b.cam.npz").read_bytes() == whole


def test_resume_gives_the_exit_code_of_a_run_in_one_go(run: Run, pictures: Path) -> None:
    assert run("cam", "p", "text.jpg", "-o", "out").code == 3
    assert run("cam", "p", "text.jpg", "-o", "out", "--resume").code == 3


def test_equal_runs_give_equal_bytes(run: Run, pictures: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert run("cam", "p/a.png", "-o", folder, "--format", "png", "--format", "svg").code == 0
    for name in ("a.cam.png", "a.cam.svg", "a.cam.npz", "a.cam.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("place", ["file", "file/below", "p/a.png"])
def test_output_that_cannot_be_a_folder(run: Run, pictures: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    done = run("cam", "p/a.png", "-o", place)
    assert done.code == 1
    assert len(done.notices) == 1
    assert "is a file, so no folder for results; choose another with -o" in done.err
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk of its own at `disk`, where this user may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def make(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        with contextlib.suppress(FileNotFoundError):
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        if not mounted:
            pytest.skip("not run: a small disk needs the right to mount one")
        return folder

    yield make
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_output_on_a_read_only_disk(run: Run, pictures: Path, mount: Callable[[str], Path]) -> None:
    mount("size=64k,ro")
    done = run("cam", "p/a.png", "-o", "disk/out")
    assert done.code == 1
    assert done.notices == ["r2viz: the folder disk cannot be written to; choose another with -o"]


def test_output_on_a_disk_that_fills_up(run: Run, pictures: Path, mount: Callable[[str], Path]) -> None:
    """There is room for one picture's files: those are whole, the next picture's are not there at all."""
    assert run("cam", "p/a.png", "-o", "out").code == 0
    needed = sum(path.stat().st_size for path in (pictures.parent / "out").iterdir())
    disk = mount(f"size={int(1.5 * needed) // 1024}k")
    done = run("cam", "p", "-o", "disk/out")
    assert done.code == 1
    assert len(done.notices) == 1
    assert "/b.cam." in done.notices[0]
    assert done.notices[0].endswith("cannot be written: the disk is full; nothing half-written was left")
    assert listing(disk / "out") == three("a")
    open_record(disk / "out/a.cam.json")


def test_names_that_are_no_text(run: Run, pictures: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"p/x\xff\n\x1b[31m.png")
    (pictures / "a.png").rename(name)
    done = run("cam", name, "-o", "out")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert r"x\udcff\n\x1b[31m.cam.png" in done.out
    opened = open_record(tmp_path / "out" / os.fsdecode(b"x\xff\n\x1b[31m.cam.json"))
    assert opened.picture.name == r"x\udcff\n\x1b[31m.png"
    document = json.loads(run("cam", name, "-o", "out", "--overwrite", "--json").out)
    assert os.path.exists(document["files"][0])


def test_names_too_long_for_results(run: Run, pictures: Path) -> None:
    name = "p/" + "x" * 249 + ".png"
    (pictures / "a.png").rename(name)
    done = run("cam", name)
    assert done.code == 1
    assert len(done.notices) == 1
    assert "cannot be written (File name too long)" in done.err
    assert run("cam", "y" * 300 + ".png").code == 1


# --- the odd pictures ------------------------------------------------------------------------------------------------

REFUSED = {
    "badcrc.png",
    "trunc_tail.jpg",
    "bomb900MP.png",
    "big100MP.png",
    "svg.jpg",
    "text.jpg",
    "zero.jpg",
    "thin.png",
    "trunc.jpg",
    "trunc.png",
}
EITHER = {"ok.heic", "ok.avif", "ok.jp2"}  # as Pillow was built


@pytest.mark.shared
def test_every_odd_picture_in_one_run(run: Run, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "odd-pictures"
    names = sorted(path.name for path in folder.iterdir())
    done = run("cam", str(folder), "-o", "out", "--json")
    assert done.code == 3
    documents = [json.loads(line) for line in done.out.splitlines()]
    failed = [document for document in documents if document["status"] == "failed"]
    assert len(documents) == len(names)
    bad = {Path(document["input"]).name for document in failed}
    assert bad >= REFUSED
    assert len(done.notices) == len(failed) + 1  # one line for each, and how many
    for document, line in zip(failed, done.notices, strict=False):
        assert line == f"r2viz: {document['error']}"
        assert Path(document["input"]).name in line
        assert document["error_code"].startswith("bad_image.")
    assert done.notices[-1] == f"{len(failed)} of {len(names)} pictures could not be used"
    made = [document["files"] for document in documents if document["status"] == "ok"]
    assert len(made) == len(names) - len(failed)
    assert {name for name in names if name.startswith("ok")} - bad - EITHER >= {"ok.jpg", "ok.gif", "ok.webp", "ok.bmp"}
    for png, npz, document in made:
        assert Image.open(png).size[0] > 300
        assert Path(npz).is_file()
        assert open_record(document).views[0].maps
    assert len(listing(tmp_path / "out")) == 3 * len(made)


# --- plot ------------------------------------------------------------------------------------------------------------


def test_plot_draws_the_same_figure_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/a.png", "-o", "out").code == 0
    first = (tmp_path / "out/a.cam.png").read_bytes()
    refused = run("plot", "out/a.cam.json")
    assert refused.code == 1
    assert "out/a.cam.png exists already; use --overwrite" in refused.err
    again = run("plot", "out/a.cam.json", "-o", "again.png")
    assert (again.code, again.out, again.err) == (0, "again.png\n", "")
    assert (tmp_path / "again.png").read_bytes() == first
    (tmp_path / "out/a.cam.png").unlink()
    assert run("plot", "out/a.cam.json").out == "out/a.cam.png\n"
    assert run("plot", "out/a.cam.json", "-o", "new/folder/a.pdf").code == 0
    assert (tmp_path / "new/folder/a.pdf").read_bytes().startswith(b"%PDF")


def test_plot_refuses(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/a.png", "-o", "out").code == 0
    (tmp_path / "foreign.json").write_text("{}")
    for arguments, says in (
        (["none.json"], "there is no record none.json"),
        (["foreign.json"], "foreign.json is JSON, but no record of r2viz that can be opened (cam, panel, erf, splits)"),
        (["p/a.png", "-o", "x.png"], "p/a.png is not a record"),
        (["out/a.cam.json", "-o", "x.gif"], "no figure format 'gif'; there are png, pdf and svg"),
        (["out/a.cam.json", "-o", "p"], "p is a folder"),
    ):
        done = run("plot", *arguments)
        assert done.code == 1, arguments
        assert len(done.notices) == 1
        assert says in done.err
    assert not (tmp_path / "x.gif").exists()


# --- processes of their own ------------------------------------------------------------------------------------------


def child(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "r2viz", *arguments], capture_output=True, text=True, **options)


def processor_seconds(command: list[str], times: int = 5) -> float:
    """User and system time of a command: what it costs, however busy the machine is. The best of several."""
    best = float("inf")
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


@pytest.mark.parametrize(
    "command", [["-m", "r2viz", "--help"], ["-m", "r2viz", "cam", "--help"], ["-c", "import r2viz"]]
)
def test_help_answers_at_once(command: list[str]) -> None:
    """Under 0.3 s; measured as processor time, which is what a quiet machine's wall clock would show."""
    assert processor_seconds([sys.executable, *command]) < 0.3


def test_help_imports_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys, r2viz\n"
        "from r2viz.cli import main\n"
        "sys.argv = ['r2viz', 'cam', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print([n for n in ('torch', 'torchvision', 'matplotlib', 'cv2', 'streamlit', 'PIL', 'numpy')"
        " if n in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "--overwrite" in done.stdout


def test_usage_errors_do_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from r2viz.cli import main\n"
        "sys.argv = ['r2viz', 'cam', 'x.png', '--fit', 'no']\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")


def test_the_real_pair_as_a_process(tmp_path: Path, pictures: Path) -> None:
    """The 50-layer networks, seeded: streams, files, and stderr silent."""
    done = child("cam", "p/a.png", "--weights", "random", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "RANDOM WEIGHTS" in done.stdout
    record = open_record(tmp_path / "out/a.cam.json")
    assert [view.model for view in record.views] == ["resnet50", "res2net50_26w_4s"]
    assert [view.seed for view in record.views] == [0, 0]
    assert record.views[1].map("layer4").raw.shape == (7, 7)
    assert record.views[1].map("layer4").jump == (32, 32)


def test_interrupted(tmp_path: Path, pictures: Path) -> None:
    """Ctrl-C between pictures: 130, one line, what was finished is whole."""
    for index in range(40):
        Image.fromarray(photo(70, 90, index)).save(pictures / f"{index:03}.png")
    command = [sys.executable, "-m", "r2viz", "cam", "p", "--model", "resnet50", "--weights", "random", "--batch", "1"]
    command += ["-o", "out"]

    def listen() -> None:  # a job in the background of a script is started deaf to Ctrl-C, and so would be its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=tmp_path, preexec_fn=listen, **pipes)
    assert running.stdout is not None
    while "→" not in (line := running.stdout.readline()):
        assert line, "it ended before its first picture"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "r2viz: interrupted; finished results are whole and stay"
    finished = listing(tmp_path / "out")
    assert 3 <= len(finished) < 3 * 43
    assert len(finished) % 3 == 0
    assert not any(name.startswith(".") for name in finished)
    for name in finished:
        if name.endswith(".json"):
            open_record(tmp_path / "out" / name)


def test_without_network_one_sentence(tmp_path: Path, pictures: Path) -> None:
    """At most 5 s to a sentence that says what to do: torch, which takes most of that to import, is not needed for it.

    Processor time, since the rest is waiting for other programs; a hub that never answers is given 3 s (test_weights).
    """
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = child("cam", "p/a.png", "--pair", "imagenet", "-o", "out", cwd=tmp_path, env=environment)
    elapsed, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("r2viz: the weights timm/resnet50.tv_in1k are not in the cache")
    assert "or use --weights random" in lines[0]
    assert not (tmp_path / "out").exists()
    assert elapsed < 30, "it waits for something"
    assert spent < 2


def test_a_reader_that_has_gone(run: Run, tmp_path: Path, pictures: Path) -> None:
    assert run("cam", "p/a.png", "-o", "out").code == 0
    command = [sys.executable, "-m", "r2viz", "plot", "out/a.cam.json", "-o", "again.png"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.close()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err == ""
    assert (tmp_path / "again.png").is_file()
