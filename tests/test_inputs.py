"""From names to pictures: order, mirrored places for results, nothing taken twice or for what it is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from r2viz.errors import BadImage
from r2viz.inputs import gather


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def keys(*arguments: str, recursive: bool = False) -> list[str]:
    found = gather(arguments, recursive=recursive)
    assert len({str(item.key).casefold() for item in found}) == len(found), "two results in one place"
    assert not any(".." in item.key.parts or item.key.is_absolute() for item in found), "outside the output folder"
    return [str(item.key) for item in found]


def paths(*arguments: str, recursive: bool = False) -> list[str]:
    return [str(item.path) for item in gather(arguments, recursive=recursive)]


def test_files_in_the_order_named(here: Path) -> None:
    touch(here, "b.jpg", "a.png")
    assert paths("b.jpg", "a.png") == ["b.jpg", "a.png"]
    assert keys("b.jpg", "a.png") == ["b", "a"]


def test_a_missing_file_is_an_input_of_its_own(here: Path) -> None:
    touch(here, "a.jpg")
    found = gather(["none.jpg", "a.jpg"])
    assert [str(item.key) for item in found] == ["none", "a"]
    assert found[0].error is None  # decoding says what is wrong with it, in its turn


def test_folders_are_sorted_and_only_pictures_taken(here: Path) -> None:
    touch(here, "d/c.JPG", "d/a.png", "d/b.webp", "d/notes.txt", "d/.hidden.jpg", "d/deep/e.jpg", "d/noending")
    assert keys("d") == ["a", "b", "c"]
    assert keys("d", recursive=True) == ["a", "b", "c", "deep/e"]


def test_our_own_figures_are_not_taken_for_pictures(here: Path) -> None:
    touch(
        here,
        "d/a.png",
        "d/a.cam.png",
        "d/p.panel.png",
        "d/n.erf.png",
        "d/spectra.splits.png",
        "d/a.cam.json",
        "d/a.cam.npz",
    )
    assert keys("d") == ["a"]
    assert keys("d/*.png") == ["a"]
    assert keys("d/a.cam.png") == ["a.cam"]  # named by the user, so meant


def test_equal_names_in_different_folders_stay_apart(here: Path) -> None:
    touch(here, "p/a/x.jpg", "p/b/x.jpg")
    assert keys("p/a/x.jpg", "p/b/x.jpg") == ["a/x", "b/x"]
    assert keys("p", recursive=True) == ["a/x", "b/x"]
    assert keys("p/a", "p/b") == ["a/x", "b/x"]
    assert keys("p/a", "p/b/x.jpg") == ["a/x", "b/x"]
    assert keys(str(here / "p" / "a"), "p/b") == ["a/x", "b/x"]


def test_names_that_differ_only_in_their_ending(here: Path) -> None:
    touch(here, "x.jpg", "x.png", "y.jpg")
    assert keys("x.jpg", "x.png", "y.jpg") == ["x.jpg", "x.png", "y"]


def test_a_name_that_would_become_anothers(here: Path) -> None:
    touch(here, "x.jpg", "x.png", "x.jpg.png", "x", "y.tar.png", "y.tar")
    assert len(keys("x.jpg", "x.png", "x.jpg.png")) == 3
    assert len(keys("x", "x.jpg")) == 2
    assert len(keys("x.jpg", "x.jpg.png")) == 2
    assert len(keys("y.tar.png", "y.tar")) == 2


def test_names_that_differ_only_in_case(here: Path) -> None:
    touch(here, "X.jpg", "x.png")
    assert keys("X.jpg", "x.png") == ["X.jpg", "x.png"]


def test_one_picture_named_in_several_ways_comes_once(here: Path) -> None:
    touch(here, "d/a.jpg", "d/b.jpg")
    assert paths("d/a.jpg", "./d/a.jpg", str(here / "d/a.jpg"), "d/../d/a.jpg") == ["d/a.jpg"]
    assert paths("d/b.jpg", "d") == ["d/b.jpg", "d/a.jpg"]


def test_results_stay_below_the_output_folder(here: Path) -> None:
    touch(here, "y.jpg", "../elsewhere/x.jpg")
    assert keys("../elsewhere/x.jpg", "y.jpg") == ["elsewhere/x", "here/y"]
    assert keys("../elsewhere/x.jpg") == ["x"]
    assert keys("../elsewhere", ".") == ["elsewhere/x", "here/y"]


def test_links_to_folders_are_not_followed(here: Path) -> None:
    touch(here, "d/a.jpg", "d/deep/b.jpg")
    (here / "d/deep/loop").symlink_to(here / "d")
    (here / "d/other").symlink_to(here / "d/deep")
    assert keys("d", recursive=True) == ["a", "deep/b"]


def test_patterns_do_not_run_in_circles(here: Path) -> None:
    touch(here, "d/a.jpg", "d/deep/b.jpg")
    (here / "d/deep/loop").symlink_to(here / "d")
    assert paths("d/**/*.jpg") == ["d/a.jpg", "d/deep/b.jpg"]


def test_a_link_to_a_picture_is_a_picture(here: Path) -> None:
    touch(here, "store/123.jpg")
    (here / "d").mkdir()
    (here / "d/cat.jpg").symlink_to(here / "store/123.jpg")
    assert keys("d") == ["cat"]


def test_patterns(here: Path) -> None:
    touch(here, "d/b.jpg", "d/a.jpg", "d/c.png", "e/a.jpg")
    assert paths("d/*.jpg") == ["d/a.jpg", "d/b.jpg"]
    assert keys("*/a.jpg") == ["d/a", "e/a"]
    assert paths("d/[bc].*") == ["d/b.jpg", "d/c.png"]
    (here / "d/x[1].jpg").write_bytes(b"x")
    assert paths("d/x[1].jpg") == ["d/x[1].jpg"]  # a file of that very name comes first


def test_standard_input(here: Path) -> None:
    touch(here, "a.jpg", "stdin.jpg", "stdin")
    found = gather(["-", "a.jpg", "-"])
    assert [item.path for item in found] == [None, Path("a.jpg")]
    assert [str(item.key) for item in found] == ["stdin", "a"]
    assert found[0].shown == "<stdin>"
    assert len(keys("-", "stdin")) == 2
    assert len(keys("-", "stdin.jpg")) == 2
    assert keys("-") == ["stdin"]


def test_nothing_to_do(here: Path) -> None:
    (here / "empty").mkdir()
    touch(here, "notes/notes.txt", "deep/er/a.jpg")
    with pytest.raises(
        BadImage, match=r"the folder empty holds no pictures .*; --recursive looks into its folders too"
    ):
        gather(["empty"])
    with pytest.raises(BadImage, match="the folder deep holds no pictures"):
        gather(["deep"])
    with pytest.raises(BadImage, match="the folder empty holds no pictures") as caught:
        gather(["empty"], recursive=True)
    assert "--recursive" not in str(caught.value)
    with pytest.raises(BadImage, match=r"the pattern '\*\.tif' matches no picture"):
        gather(["*.tif"])
    with pytest.raises(BadImage, match="holds no pictures"):
        gather(["notes", "empty", "*.tif"])


def test_an_empty_folder_beside_pictures_stops_none(here: Path) -> None:
    (here / "empty").mkdir()
    touch(here, "a.jpg")
    found = gather(["empty", "a.jpg", "*.tif"])
    assert [item.path for item in found] == [Path("empty"), Path("a.jpg"), Path("*.tif")]
    assert "holds no pictures" in str(found[0].error)
    assert found[1].error is None
    assert "matches no picture" in str(found[2].error)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b.jpg", "d/" * 3000, "~nobody/a.jpg", "[", "**[", "/", "."])
def test_names_that_cannot_be(here: Path, name: str) -> None:
    found = gather([name, "b.jpg"])
    assert len(found) == 2


def test_an_empty_name_is_not_this_folder(here: Path) -> None:
    touch(here, "a.jpg")
    with pytest.raises(BadImage, match="one of the pictures is an empty name"):
        gather([""])


def test_names_that_are_no_text(here: Path) -> None:
    name = os.fsdecode(b"a\xff\n.jpg")
    touch(here, name)
    (found,) = gather(["."])
    assert found.path == Path(name)
    assert found.shown == r"a\udcff\n.jpg"


def test_many_pictures_take_no_time(here: Path) -> None:
    arguments = [f"{index}.jpg" for index in range(20_000)]
    start = time.process_time()
    assert len(gather(arguments)) == 20_000
    assert time.process_time() - start < 5  # it was minutes when names were counted one by one
