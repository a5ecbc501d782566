"""Records on disk: read back equal, written whole or not at all, damaged files refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import pair, photo

from r2viz import store
from r2viz.coverage import box_region, mask_region
from r2viz.errors import BadRecord, OutputError
from r2viz.explain import explain, panel
from r2viz.figures import drawn, figure, provenance, render
from r2viz.image import decode
from r2viz.panels import Missing, Panel, panel_of
from r2viz.records import CamRecord
from r2viz.store import files, npz, open_any, open_record, refuse_existing, save, write_set


@pytest.fixture(scope="module")
def record() -> CamRecord:
    return explain(decode(photo(71, 95), name="photo.jpg"), pair(), layers=("layer3", "layer4"))


def listing(folder: Path) -> list[str]:
    """Every name below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", ["", "box", "mask"])
def test_round_trip(tmp_path: Path, record: CamRecord, marked: str) -> None:
    size = record.picture.rgb.shape[:2]
    region = {
        "": None,
        "box": box_region((20.5, 10, 70, 60), size),
        "mask": mask_region(np.arange(size[0] * size[1]).reshape(size) % 7 == 0, size, "mask.png"),
    }[marked]
    record = dataclasses.replace(record, region=region, notes=("a remark",))
    path = save(record, tmp_path / "photo.cam.json")
    opened = open_record(path)
    assert listing(tmp_path) == ["photo.cam.json", "photo.cam.npz"]
    assert opened.digest == record.digest
    assert npz(opened) == npz(record)
    assert store.as_dict(opened) == store.as_dict(record)
    np.testing.assert_array_equal(opened.picture.rgb, record.picture.rgb)
    for mine, theirs in zip(opened.views, record.views, strict=True):
        assert mine.geometry == theirs.geometry
        assert mine.target == theirs.target
        assert mine.top == theirs.top
        assert mine.seed == theirs.seed
        for a, b in zip(mine.maps, theirs.maps, strict=True):
            np.testing.assert_array_equal(a.raw, b.raw)
            assert a.raw.dtype == np.float32
            assert (a.layer, a.start, a.jump, a.registration, a.gradient) == (
                b.layer, b.start, b.jump, b.registration, b.gradient,
            )  # fmt: skip
        if region is not None:
            assert opened.inside(mine, "layer4") == record.inside(theirs, "layer4")
    drawn = [render(figure(one), "png", provenance=provenance(one)) for one in (record, opened)]
    assert drawn[0] == drawn[1]


def test_saved_twice_gives_the_same_bytes(tmp_path: Path, record: CamRecord) -> None:
    first = save(record, tmp_path / "a" / "x.json")
    time.sleep(2.1)  # zip keeps times to two seconds
    second = save(open_record(first), tmp_path / "b" / "x.json")
    for suffix in (".json", ".npz"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


def test_npz_names_and_arrays(record: CamRecord) -> None:
    with np.load(io.BytesIO(npz(record)), allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            "picture",
            *(f"{model}/{kind}" for model in ("resnet_tiny", "res2net_tiny") for kind in ("raw", "map")),
            *(
                f"{model}/{layer}/{kind}"
                for model in ("resnet_tiny", "res2net_tiny")
                for layer in ("layer3", "layer4")
                for kind in ("raw", "map")
            ),
        }
        for view in record.views:
            np.testing.assert_array_equal(arrays[f"{view.model}/raw"], view.map("layer3").raw)
            np.testing.assert_array_equal(arrays[f"{view.model}/map"], view.on_source("layer3"))
            np.testing.assert_array_equal(arrays[f"{view.model}/layer4/map"], view.on_source("layer4"))
        assert all(arrays[name].dtype != object for name in arrays.files)
    one = dataclasses.replace(
        record, views=tuple(dataclasses.replace(view, maps=view.maps[:1]) for view in record.views)
    )
    with np.load(io.BytesIO(npz(one)), allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            "picture", "resnet_tiny/raw", "resnet_tiny/map", "res2net_tiny/raw", "res2net_tiny/map",
        }  # fmt: skip


def test_one_network_beside_itself(tmp_path: Path, record: CamRecord) -> None:
    """Two fine-tuned versions of one network have one name, but two maps."""
    twin = dataclasses.replace(
        record, views=(record.views[0], dataclasses.replace(record.views[1], model="resnet_tiny"))
    )
    opened = open_record(save(twin, tmp_path / "x.json"))
    np.testing.assert_array_equal(opened.views[1].map("layer4").raw, record.views[1].map("layer4").raw)
    assert store.view_keys(twin) == ["resnet_tiny#1", "resnet_tiny#2"]


def test_json_is_plain_and_says_what_was_done(tmp_path: Path, record: CamRecord) -> None:
    text = save(record, tmp_path / "x.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["schema"] == 1
    assert document["kind"] == "cam"
    assert document["arrays"] == "x.npz"
    assert document["picture"]["sha256"] == record.picture.sha256
    assert text.endswith("}\n")
    assert str(tmp_path) not in text
    score = record.views[0].target
    assert document["views"][0]["target"]["probability"] == score.probability  # not rounded


def test_a_map_without_mass_is_json_too(tmp_path: Path, record: CamRecord) -> None:
    region = box_region((20, 10, 70, 60), record.picture.rgb.shape[:2])
    views = tuple(
        dataclasses.replace(
            view, maps=tuple(dataclasses.replace(map_, raw=np.full((2, 2), -1, np.float32)) for map_ in view.maps)
        )
        for view in record.views
    )
    path = save(dataclasses.replace(record, views=views, region=region), tmp_path / "x.json")
    document = json.loads(path.read_text())
    assert document["views"][0]["maps"][0]["share_inside"] is None
    assert document["views"][0]["maps"][0]["constant"] is True
    assert open_record(path).views[0].map("layer4").constant


def test_names_that_are_no_utf8(tmp_path: Path, record: CamRecord) -> None:
    name = os.fsdecode(b"p\xff.cam.json")
    opened = open_record(save(record, tmp_path / name))
    assert opened.digest == record.digest
    assert b"p\\udcff.cam.npz" in (tmp_path / name).read_bytes()
    (tmp_path / name).read_bytes().decode("utf-8")


def test_save_wants_json(tmp_path: Path, record: CamRecord) -> None:
    with pytest.raises(OutputError, match=r"photo\.npz does not end in \.json"):
        save(record, tmp_path / "photo.npz")


# --- what cannot be read back ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, record: CamRecord) -> Path:
    return save(record, tmp_path / "x.cam.json")


def refused(path: Path, *says: str) -> None:
    with pytest.raises(BadRecord) as caught:
        open_record(path)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    assert len(text) < 500
    for part in says:
        assert part in text


def edited(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rearranged(path: Path, change: Any) -> None:
    """The NPZ with other arrays."""
    arrays = path.with_suffix(".npz")
    with np.load(arrays) as opened:
        held = dict(opened)
    change(held)
    np.savez_compressed(arrays, **held)


def test_missing_record(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "there is no record", "`r2viz cam IMAGE` writes one")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b'"cam"',
        b"[" * 100_000,
        b'{"kind": "table"}',
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["empty", "cut", "binary", "list", "null", "text", "deep", "foreign", "picture"],
)
def test_what_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    refused(path)


def test_a_folder_is_no_record(tmp_path: Path) -> None:
    refused(tmp_path, "is not a record")


def test_a_newer_schema(saved: Path) -> None:
    edited(saved, lambda document: document.update(schema=2))
    refused(saved, "has schema 2; this r2viz reads schema 1")


def test_missing_arrays(saved: Path) -> None:
    saved.with_suffix(".npz").unlink()
    refused(saved, "lacks its arrays", "x.cam.npz", "keep the two together")


@pytest.mark.parametrize("key", ["picture", "views", "arrays", "versions", "region", "method"])
def test_missing_keys(saved: Path, key: str) -> None:
    edited(saved, lambda document: document.pop(key))
    refused(saved, "damaged", key)


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [[]], [None]])
@pytest.mark.parametrize("key", ["picture", "views", "arrays"])
def test_wrong_kinds_of_values(saved: Path, key: str, value: Any) -> None:
    edited(saved, lambda document: document.update({key: value}))
    refused(saved)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1, -30])
def test_cut_arrays(saved: Path, keep: float) -> None:
    arrays = saved.with_suffix(".npz")
    content = arrays.read_bytes()
    arrays.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(saved)


def test_every_damaged_byte_is_survived(saved: Path) -> None:
    """Whatever byte is wrong: a record, or one line; in a zip's comment or times it does no harm."""
    arrays = saved.with_suffix(".npz")
    content = arrays.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        arrays.write_bytes(damaged)
        with contextlib.suppress(BadRecord):
            open_record(saved)


def test_pickles_are_not_opened(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(witness),))

    rearranged(saved, lambda arrays: arrays.update({"resnet_tiny/layer3/raw": np.array([Evil()], dtype=object)}))
    refused(saved, "damaged")
    assert not witness.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(picture=arrays["picture"][:-1]),
        lambda arrays: arrays.update(picture=arrays["picture"].astype(np.float32)),
        lambda arrays: arrays.update(picture=arrays["picture"][:, :, 0]),
        lambda arrays: arrays.pop("picture"),
        lambda arrays: arrays.pop("res2net_tiny/layer4/raw"),
        lambda arrays: arrays.update({"res2net_tiny/layer4/raw": np.zeros((3, 3), np.float32)}),
        lambda arrays: arrays.update({"res2net_tiny/layer4/raw": np.zeros((2, 2), np.float64)}),
        lambda arrays: arrays.update({"res2net_tiny/layer4/raw": np.full((2, 2), np.nan, np.float32)}),
        lambda arrays: arrays.update({"res2net_tiny/layer4/raw": np.zeros(4, np.float32)}),
    ],
)
def test_arrays_that_do_not_fit(saved: Path, change: Any) -> None:
    rearranged(saved, change)
    refused(saved, "damaged")


def test_a_region_that_does_not_fit(tmp_path: Path, record: CamRecord) -> None:
    marked = dataclasses.replace(record, region=box_region((0, 0, 9, 9), record.picture.rgb.shape[:2]))
    path = save(marked, tmp_path / "x.json")
    rearranged(path, lambda arrays: arrays.update(region=np.ones((3, 3), dtype=bool)))
    refused(path, "damaged")


def test_an_array_that_claims_to_be_huge(saved: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1 << 15, 3)}
    )
    with zipfile.ZipFile(saved.with_suffix(".npz"), "w") as archive:
        archive.writestr("picture.npy", header.getvalue())
    refused(saved, "damaged")


def test_arrays_elsewhere_are_not_read(saved: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    os.replace(saved.with_suffix(".npz"), outside / "x.cam.npz")
    edited(saved, lambda document: document.update(arrays=str(outside / "x.cam.npz")))
    refused(saved, "lacks its arrays")


# --- panels ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several() -> Panel:
    size = (71, 95)
    methods = ["gradcam", "cam", "saliency"]
    found = panel(
        decode(photo(*size), name="photo.jpg"),
        pair(),
        methods=methods,
        targets=["cat", "cat vs dog"],
        layers=("layer2", "layer3"),
        region=box_region((20, 10, 70, 60), size),
    )
    made = panel_of(found, methods, ["Grad-CAM", "CAM", "Saliency"])
    assert isinstance(made, Panel)
    return made


def test_a_panel_there_and_back(tmp_path: Path, several: Panel) -> None:
    path = save(several, tmp_path / "photo.panel.json")
    assert listing(tmp_path) == ["photo.panel.json", "photo.panel.npz"]
    opened = open_any(path)
    assert isinstance(opened, Panel)
    assert opened.digest == several.digest
    assert opened.missing == several.missing
    assert [one.title for one in several.missing] == ["CAM"]
    assert store.as_dict(opened) == store.as_dict(several)
    assert npz(opened) == npz(several)
    for mine, theirs in zip(opened.records, several.records, strict=True):
        assert mine.picture is opened.picture
        assert (mine.digest, mine.method, mine.policy) == (theirs.digest, theirs.method, theirs.policy)
        for a, b in zip(mine.views, theirs.views, strict=True):
            for layer in mine.layers:
                np.testing.assert_array_equal(a.map(layer).raw, b.map(layer).raw)
    pictures = [render(drawing, "png", provenance=said) for drawing, said in map(drawn, (several, opened))]
    assert pictures[0] == pictures[1]
    again = save(opened, tmp_path / "b" / "photo.panel.json")
    assert [again.with_suffix(kind).read_bytes() for kind in (".json", ".npz")] == [
        path.with_suffix(kind).read_bytes() for kind in (".json", ".npz")
    ]


def test_names_of_a_panel_s_arrays_are_those_that_its_json_says(several: Panel) -> None:
    document = store.as_dict(several)
    said = {map_["array"] for one in document["records"] for view in one["views"] for map_ in view["maps"]}
    with np.load(io.BytesIO(npz(several)), allow_pickle=False) as arrays:
        assert said <= set(arrays.files)
        assert {name.partition("/")[0] for name in arrays.files} == {
            *("0-gradcam", "1-gradcam", "2-saliency", "3-saliency", "picture", "region")
        }
        for one, record in zip(document["records"], several.records, strict=True):
            for view, shown in zip(one["views"], record.views, strict=True):
                for map_, there in zip(view["maps"], shown.maps, strict=True):
                    np.testing.assert_array_equal(arrays[map_["array"]], there.raw)


def test_a_panel_is_no_record(tmp_path: Path, several: Panel) -> None:
    path = save(several, tmp_path / "x.panel.json")
    refused(path, "is a panel of 4 records, not one record", "r2viz.store.open_any")


def test_what_makes_no_panel(several: Panel, record: CamRecord) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        Panel(())
    with pytest.raises(ValueError, match="of one picture and the same networks"):
        Panel((several.records[0], dataclasses.replace(record, views=record.views[:1])))
    other = dataclasses.replace(record, picture=dataclasses.replace(record.picture, sha256="0" * 64))
    with pytest.raises(ValueError, match="of one picture and the same networks"):
        Panel((record, other))


def test_a_digest_changes_with_every_record_and_with_what_is_missing(several: Panel) -> None:
    missing = Missing("cam", "CAM", "model", "no linear head")
    others = [
        Panel(several.records[:-1], several.missing),
        Panel(several.records[::-1], several.missing),
        Panel(several.records),
        Panel(several.records, (missing,)),
    ]
    assert len({several.digest, *(one.digest for one in others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("records"),
        lambda document: document.pop("missing"),
        lambda document: document.pop("picture"),
        lambda document: document.update(records=[]),
        lambda document: document.update(records=[None]),
        lambda document: document.update(records={}),
        lambda document: document.update(missing=[{"method": "x"}]),
        lambda document: document.update(missing=[{"who": "x"}]),
        lambda document: document["records"][0].update(kind="panel"),
        lambda document: document["records"][1]["picture"].update(sha256="0" * 64),
        lambda document: document["records"][1]["views"].pop(),
        lambda document: document["records"][1]["views"][0]["maps"][0].update(array="0-gradcam/none/raw"),
        lambda document: document.update(kind="table"),
        lambda document: document.update(schema=2),
    ],
)
def test_damaged_panels(tmp_path: Path, several: Panel, change: Any) -> None:
    path = save(several, tmp_path / "x.panel.json")
    edited(path, change)
    with pytest.raises(BadRecord) as caught:
        open_any(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_panel_whose_region_is_of_another_size(tmp_path: Path, several: Panel) -> None:
    path = save(several, tmp_path / "x.panel.json")
    rearranged(path, lambda arrays: arrays.update(region=np.ones((3, 3), dtype=bool)))
    refused(path, "damaged", "no mask of the picture's size")


# --- all or none -----------------------------------------------------------------------------------------------------


def content_of(folder: Path, *names: str) -> dict[Path, bytes]:
    return {folder / name: name.encode() * 1000 for name in names}


def test_write_set(tmp_path: Path) -> None:
    wanted = content_of(tmp_path / "new" / "folder", "a", "b", "c")
    write_set(wanted)
    assert {path: path.read_bytes() for path in wanted} == wanted
    assert listing(tmp_path) == ["new", "new/folder", "new/folder/a", "new/folder/b", "new/folder/c"]


def test_no_files(tmp_path: Path) -> None:
    write_set({})
    assert listing(tmp_path) == []


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_set(content_of(tmp_path, "a"))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_existing_files_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"c exists already; use --overwrite, or another folder with -o") as caught:
        write_set(content_of(tmp_path, "a", "b", "c"))
    assert caught.value.code == "output.exists"
    assert listing(tmp_path) == ["c"]
    assert (tmp_path / "c").read_bytes() == b"mine"
    write_set(content_of(tmp_path, "a", "b", "c"), overwrite=True)
    assert (tmp_path / "c").read_bytes() == b"c" * 1000
    assert listing(tmp_path) == ["a", "b", "c"]


def test_a_link_to_nothing_exists(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing([tmp_path / "a"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_way(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="b is a folder; choose another place with -o"):
        write_set(content_of(tmp_path, "a", "b"), overwrite=overwrite)
    assert listing(tmp_path) == ["b"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"cannot be written \((File exists|Not a directory)\); choose a folder"):
        write_set({tmp_path / "a": b"1", tmp_path / "file" / "b": b"2"})
    assert listing(tmp_path) == ["file"]


def test_names_too_long_for_the_disk(tmp_path: Path) -> None:
    wide = "漢" * 83 + ".png"  # 253 bytes: fits, and so must the temporary file
    write_set({tmp_path / wide: b"1"})
    assert listing(tmp_path) == [wide]
    with pytest.raises(OutputError, match="cannot be written"):
        write_set({tmp_path / "a": b"1", tmp_path / ("x" * 300): b"2"})
    assert listing(tmp_path) == [wide]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_rename_that_fails_takes_back_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, error: BaseException
) -> None:
    """Hardly any disk fails here, so the third rename is made to."""
    wanted = content_of(tmp_path, "a", "b", "c", "d")
    before = [f"{name}" for name in "abc"] if overwrite else []
    for name in before:
        (tmp_path / name).write_bytes(b"mine")
    real, calls = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        real(source, target)

    monkeypatch.setattr(store.writing.os, "replace", replace)
    expected: Any = (OutputError, KeyboardInterrupt)
    with pytest.raises(expected):
        write_set(wanted, overwrite=overwrite)
    assert listing(tmp_path) == before
    assert all((tmp_path / name).read_bytes() == b"mine" for name in before)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, where this user may mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("not run: a full disk needs the right to mount a small one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk", "64k") as folder:
            yield folder
    except FileNotFoundError:
        pytest.skip("not run: this system has no `mount`")


def test_a_full_disk_leaves_nothing(disk: Path) -> None:
    noise = np.random.default_rng(0).bytes(40_000)
    with pytest.raises(OutputError) as caught:
        write_set({disk / "a": noise, disk / "b": noise})
    assert str(caught.value) == f"{disk / 'b'} cannot be written: the disk is full; nothing half-written was left"
    assert caught.value.code == "output.disk_full"
    assert listing(disk) == []
    write_set({disk / "a": noise})  # the room is there again


def test_a_full_disk_leaves_earlier_files_as_they_were(disk: Path) -> None:
    (disk / "a").write_bytes(b"mine" * 5000)
    (disk / "b").write_bytes(b"mine")
    with pytest.raises(OutputError, match="the disk is full"):
        write_set({disk / "a": b"x" * 30_000, disk / "b": b"x" * 30_000}, overwrite=True)
    assert listing(disk) == ["a", "b"]
    assert (disk / "a").read_bytes() == b"mine" * 5000
    assert (disk / "b").read_bytes() == b"mine"


def test_a_record_on_a_full_disk(disk: Path, record: CamRecord) -> None:
    assert sum(map(len, files(record, disk / "x.json").values())) > 20_000
    (disk / "ballast").write_bytes(b"x" * 48_000)
    with pytest.raises(OutputError, match="the disk is full"):
        save(record, disk / "x.json")
    assert listing(disk) == ["ballast"]


def test_killed_while_writing(tmp_path: Path) -> None:
    """Whatever moment the process ends at: a file under a final name is complete."""
    script = (
        "import sys; from pathlib import Path; from r2viz.store import write_set; number = 0\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    number += 1\n"
        "    content = str(number % 10).encode() * 3_000_000\n"
        "    write_set({Path(sys.argv[1], name): content for name in 'abc'}, overwrite=True)\n"
    )
    for attempt in range(4):
        child = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.11 + 0.07 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for name in "abc":
            path = tmp_path / name
            if path.exists():
                content = path.read_bytes()
                assert len(content) == 3_000_000
                assert content == content[:1] * 3_000_000
        assert all(name in "abc" or name.startswith(".") for name in listing(tmp_path))
