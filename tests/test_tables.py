"""The paper's tables: printed numbers, joins and footnotes, layouts, and measuring on real and hostile folders."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import network, one_thread, photo

from r2viz.errors import BadData, BadRecord, OutputError, UnknownName
from r2viz.image import decode
from r2viz.models.model import EMBEDDED, class_names, load
from r2viz.models.zoo import ZOO
from r2viz.tables import folder as results
from r2viz.tables.comparison import Cell, Column, Line, Table, compare, in_zoo
from r2viz.tables.layout import escape, render
from r2viz.tables.measure import Measured, as_dict, from_dict, measure, measure_each, recount, suits, wilson
from r2viz.tables.points import joined, points
from r2viz.tables.published import COMPARED, PAIRS, TITLES, chosen, networks, printed, remarks
from r2viz.tables.validation import outputs, read

HOSTILE = (
    r"\input{/etc/passwd}",
    "$x^2_1$ & 50% #1 ~ {unbalanced",
    "\"quoted\" 'single' `back` <b>|</b>",
    "日本語 写真 é ß Ð þ ÷",
    "one\ntwo\x00\x1b[31m",
    "-- --- ?` <<>>",
    "x" * 300,
    "",
)


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def a_measurement(**changes: object) -> Measured:
    one = Measured(
        network="resnet50", title="ResNet-50", weights={"source": "a file", "sha256": "0" * 64}, data="ImageNet-1k",
        digest="d:10", pictures=1000, refused=0, top1=762, top5=929, params=25_557_032, macs=4_089_184_256,
        size=(224, 224), speed=12.5, device="CPU, 1 thread", batch=4,
    )  # fmt: skip
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def fill(folder: Path, classes: dict[str, int]) -> Path:
    """Class folders with so many pictures each."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(photo(40, 50, seed=10 * number + index)).save(folder / name / f"{index}.png")
    return folder


# --- What is printed -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_numbers_in_the_package_are_the_facts(shared: Path) -> None:
    ours = Path(sys.modules["r2viz.tables"].__path__[0], "paper_tables.csv")
    assert ours.read_bytes() == (shared / "facts/paper_tables.csv").read_bytes()


def test_every_table_has_numbers_and_digits_are_kept() -> None:
    assert {one.table for one in printed()} == set(TITLES)
    assert next(one.value for one in printed() if one.model == "Wide ResNet") == "20.50"
    with pytest.raises(dataclasses.FrozenInstanceError):
        printed()[0].value = "0"  # type: ignore[misc]


def test_the_zoo_publishes_what_the_tables_print() -> None:
    for name, row in ZOO.items():
        for published in row.published:
            numbers = {one.metric: one.number for one in networks(published.table)[published.called]}
            assert float(100 - numbers["top1_error"]) == pytest.approx(published.top1), name
            if published.top5 is not None and "top5_error" in numbers:
                assert float(100 - numbers["top5_error"]) == pytest.approx(published.top5), name


def test_pairs_and_remarks_speak_of_networks_that_are_there() -> None:
    known = {model for table in COMPARED for model in networks(table)}
    assert known.issuperset(name for pair in PAIRS for name in pair)
    assert remarks("T1", "Res2Net-DLA-60", "top1_error")[0].endswith("1.27; its table gives 1.79.")
    assert remarks("T3", "Res2Net-50-14w-8s", "top1_error") == ()
    dla = {model: one[0].number for model, one in networks("T1").items()}
    assert float(dla["DLA-60"] - dla["Res2Net-DLA-60"]) == 1.79
    keypoints = {model: float(one[0].number) for model, one in networks("T10").items()}
    assert keypoints["Res2Net-50"] - keypoints["ResNet-50"] == pytest.approx(1.1)
    assert keypoints["Res2Net-101"] - keypoints["ResNet-101"] == pytest.approx(0.8)


def test_names_of_tables() -> None:
    assert chosen([]) == COMPARED
    assert chosen(["3", "t1", "T10", "3"]) == ("T1", "T3", "T10")
    with pytest.raises(UnknownName, match=r"no table 'T11'; did you mean 'T1\d?'\?; there are T1, T2, .*T10"):
        chosen(["T11"])


# --- What joins it ---------------------------------------------------------------------------------------------------


def test_a_line_is_joined_with_the_zoo() -> None:
    table = compare(["T3"])[0]
    line = next(line for line in table.lines if line.network == "res2net50_14w_8s")
    assert line.facts["params"] == 25_059_816
    assert line.facts["macs"] == 4_178_898_944
    assert line.facts["paper_top1_error"] == 21.86
    assert line.cells["macs"].text == "4.179"
    assert in_zoo("T3", "ResNet-50 (64w)") == "resnet50"
    assert in_zoo("T4", "Wide ResNet") is None


@pytest.mark.parametrize(
    ("called", "differs"),
    [
        ("ResNet-50 (64w)", True),
        ("Res2Net-50-26w-4s", True),
        ("Res2Net-50-14w-8s", False),
        ("Res2Net-50-26w-8s", False),
    ],
)
def test_a_printed_count_that_is_not_counted_has_a_footnote(called: str, differs: bool) -> None:
    line = next(line for line in compare(["T3"])[0].lines if line.called == called)
    cell = next(cell for key, cell in line.cells.items() if key.endswith("flops"))
    assert any(note.startswith("Not what is counted") for note in cell.notes) is differs


def test_measured_networks_stand_in_their_tables_or_in_one_of_their_own() -> None:
    mini = a_measurement(network="resnet26_mini", title="ResNet-26 mini", data="tiny", params=5, macs=6, refused=2)
    tables = compare(["T1", "T3"], [a_measurement(), mini])
    assert [table.name for table in tables] == ["T1", "T3", "other"]
    for table in tables[:2]:
        line = next(line for line in table.lines if line.network == "resnet50")
        assert line.facts["measured_top1_error"] == pytest.approx(23.8)
        assert line.facts["pictures_per_second"] == 12.5
        assert "CPU, 1 thread, batch 4" in " ".join(table.notes)
        assert all("measured_top1_error" not in other.facts for other in table.lines if other is not line)
    own = tables[2].lines[0]
    assert own.called == "ResNet-26 mini"
    assert "paper_top1_error" not in own.facts
    assert own.cells["top1"].notes == ("2 pictures could not be decoded and are left out.",)


def test_listed_tables_are_only_listed() -> None:
    table = compare(["T5"], [a_measurement()])[0]
    assert [column.group for column in table.columns] == ["paper, VOC07", "paper, COCO", "paper, COCO"]
    assert {line.called: line.cells["paper_COCO_AP50"].text for line in table.lines} == {
        "ResNet-50": "51.4",
        "Res2Net-50": "53.6",
    }


def test_counting_anew_gives_the_zoo_s_numbers() -> None:
    for name in ("res2net50_14w_8s", "resnet26_mini"):
        assert recount(name) == (ZOO[name].params, ZOO[name].macs)
    changed = compare(["T3"], counted={"resnet50": (1, 2)})[0]
    assert changed.lines[0].facts["params"] == 1


def test_points_hold_each_network_once_and_pairs_are_among_them() -> None:
    found = points(compare(list(COMPARED), [a_measurement(), a_measurement(network="other", title="Other")]))
    by_data = [(one.data, one.label, one.interval is None) for one in found]
    assert len(by_data) == len(set(by_data))
    printed_here = {one.label: one for one in found if one.interval is None}
    assert printed_here["Res2Net-50"].accuracy == 77.99
    assert printed_here["48w-2s"].res2net
    assert not printed_here["ResNet-50"].res2net
    measured = [one for one in found if one.interval is not None]
    assert [one.label for one in measured] == ["ResNet-50", "Other"]
    assert measured[0].accuracy == pytest.approx(76.2)
    assert measured[0].interval[0] < 76.2 < measured[0].interval[1]
    assert ("ResNet-50", "Res2Net-50") in joined(found)
    assert all(label in {one.label for one in found} for pair in joined(found) for label in pair)


# --- Layouts ---------------------------------------------------------------------------------------------------------


def hostile_table() -> Table:
    columns = (Column("a", "one", "x & y"), Column("b", "two_2", "%"))
    lines = tuple(
        Line(name, None, {"a": Cell(name, (f"note {name}",)), "b": Cell("1.5", ("shared",))}, {"value": name}, (name,))
        for name in HOSTILE
    )
    return Table("T1", HOSTILE[0] + HOSTILE[1], columns, lines, (HOSTILE[3],))


def test_text_lines_up() -> None:
    shown = render(compare(["T3"]), "text").splitlines()
    rows = [line for line in shown if re.match(r"Res2Net-50-\d|ResNet-50 ", line)]
    assert len(rows) == 7
    assert len({row.index(".") for row in rows}) == 1
    assert shown[-1].startswith("[")
    marks = re.findall(r"^\[([a-z]+)\]", "\n".join(shown), re.M)
    assert marks == [chr(97 + index) for index in range(len(marks))]
    for mark in marks:
        assert f"[{mark}]" in "\n".join(line for line in shown if not line.startswith("[")) or any(
            mark in found.split(",") for found in re.findall(r"\[([a-z,]+)\]", "\n".join(shown))
        )
    assert "\x1b" not in render([hostile_table()], "text")


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(render(compare(list(COMPARED), [a_measurement()]), "csv"))))
    assert len(rows) == sum(len(networks(table)) for table in COMPARED)
    row = next(row for row in rows if row["called"] == "Res2Net-50-26w-6s")
    assert (row["table"], row["network"], row["params"]) == ("T3", "res2net50_26w_6s", "37051448")
    assert row["paper_runtime"] == row["measured_top1_error"] == ""
    measured = next(row for row in rows if row["network"] == "resnet50")
    assert float(measured["measured_top1_error"]) == pytest.approx(23.8, abs=1e-9)
    names = [row["called"] for row in csv.DictReader(io.StringIO(render([hostile_table()], "csv")))]
    assert names == list(HOSTILE)


def test_json_reads_back() -> None:
    document = json.loads(render(compare(["T3"]), "json", measured=[]))
    line = document["tables"][0]["lines"][0]
    assert line["called"] == "ResNet-50 (64w)"
    assert line["paper_flops"] == 4.2
    assert any("Not what is counted" in note for note in line["notes"])
    assert [one["called"] for one in json.loads(render([hostile_table()], "json"))["tables"][0]["lines"]] == list(
        HOSTILE
    )


def test_an_unknown_format() -> None:
    with pytest.raises(UnknownName, match="no format 'lates'; did you mean 'latex'"):
        render([], "lates")


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_escapes_every_letter_that_means_something(text: str) -> None:
    shown = escape(text)
    assert shown.isascii() or set(re.sub(r"[ -~]", "", shown)) <= set("éß")
    commands = set(re.findall(r"\\([a-z]+)", shown))
    assert commands <= {
        "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar",
        "textquotesingle", "textasciigrave", "texttt",
    }  # fmt: skip
    bare = re.sub(r"\\([{}$&#%_]|[a-z]+(\{\})?)", "", shown)
    assert not set(bare) & set("$&#%_^~\\")
    assert bare.count("{") == bare.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="not run: needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    # Every table of the paper fits its page; the worst names compile.
    real = compare(list(TITLES), [a_measurement()])
    for name, tables in {"real": real, "worst": [*real, hostile_table()]}.items():
        (tmp_path / f"{name}.tex").write_text(render(tables, "latex"), encoding="utf-8")
        ran = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", f"{name}.tex"],
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=False,
        )
        said = ran.stdout.decode(errors="replace")
        assert ran.returncode == 0, said[-2000:]
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert name == "worst" or "Overfull" not in said


# --- Labelled pictures -----------------------------------------------------------------------------------------------


def test_class_folders_by_id_label_and_index(tmp_path: Path) -> None:
    tiny = load("resnet26_mini")
    names = {"n01443537": 0, "n01629819_salamander": 1, "European_fire_salamander": 1, "goldfish": 0, "7": 7}
    for name, index in names.items():
        pictures = read(fill(tmp_path / f"set-{name}", {name: 2}))
        assert pictures.count == 2
        assert pictures.classes == (name,)
        assert outputs(pictures, tiny).tolist() == [index]
    assert read(fill(tmp_path / "whole/val", {"goldfish": 1}).parent).name == "whole"
    imagenet = dataclasses.replace(tiny, name="resnet50", classes=class_names("imagenet"))
    assert outputs(read(tmp_path / "set-n01443537"), imagenet).tolist() == [1]


def test_all_ids_in_order_are_the_outputs_in_order() -> None:
    file = Path(sys.modules["r2viz.models"].__path__[0], "wnids.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["wnid"] for row in rows] == sorted(row["wnid"] for row in rows)
    assert [int(row["imagenet"]) for row in rows] == list(range(1000))
    # Names agree where both vocabularies have one: the index by id and the index by name are the same class.
    words, small = class_names("imagenet"), class_names("tiny-imagenet")
    both = [(words[int(row["imagenet"])], small[int(row["tiny-imagenet"])]) for row in rows if row["tiny-imagenet"]]
    assert len(both) == 200
    assert sum(one.casefold() == other.casefold() for one, other in both) > 150


def test_what_a_network_cannot_be_measured_on(tmp_path: Path) -> None:
    tiny = load("resnet26_mini")
    strange = read(fill(tmp_path / "a", {"goldfish": 1, "no such thing": 1, "n01440764": 1}))
    with pytest.raises(
        BadData, match="resnet26_mini knows 200 classes, and 'n01440764' and 1 more of a is none of them; classes are"
    ):
        outputs(strange, tiny)
    twice = read(fill(tmp_path / "b", {"goldfish": 1, "n01443537": 1}))
    with pytest.raises(BadData, match="'goldfish' and 'n01443537' are both class 0 of resnet26_mini; put their"):
        outputs(twice, tiny)
    few = read(fill(tmp_path / "c", {"0": 1, "1": 1}))
    assert outputs(few, tiny).tolist() == [0, 1]
    assert not suits(few, tiny)  # two numbered classes of 200 may be anyone's


@pytest.mark.parametrize("name", ["$(touch x)", "..hidden", "shared", "a b\nc", "日本", "-rf", "%s{0}", "n0144353700"])
def test_hostile_class_folders_are_names_and_nothing_else(tmp_path: Path, name: str) -> None:
    pictures = read(fill(tmp_path / "set", {name: 1, "goldfish": 1})) if not name.startswith(".") else None
    if pictures is None:
        fill(tmp_path / "set", {name: 1})
        with pytest.raises(BadData, match="holds no class folder with pictures"):
            read(tmp_path / "set")
        return
    with pytest.raises(BadData, match="is none of them") as caught:
        outputs(pictures, load("resnet26_mini"))
    assert "\n" not in str(caught.value)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="gone: no such folder; give a folder of class folders or of Parquet shards"):
        read(tmp_path / "gone")
    (tmp_path / "empty/goldfish").mkdir(parents=True)
    with pytest.raises(BadData, match="holds no class folder with pictures; expected CLASS/"):
        read(tmp_path / "empty")
    shard(tmp_path / "shards/train-0.parquet", [0])
    with pytest.raises(BadData, match="has 1 Parquet shards but none called val"):
        read(tmp_path / "shards")
    shard(tmp_path / "none/val.parquet", [])
    with pytest.raises(BadData, match="the shards are empty"):
        read(tmp_path / "none")


def shard(path: Path, labels: list[int], size: int = 8) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = []
    for index in range(len(labels)):
        file = io.BytesIO()
        Image.fromarray(photo(size, size, seed=index)).save(file, "PNG")
        encoded.append(file.getvalue())
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": pa.array(labels, pa.int64())})
    pq.write_table(table, path)
    return path


def test_parquet_labels(tmp_path: Path) -> None:
    path = shard(tmp_path / "set/val.parquet", [2, 0, 2])
    assert read(path).classes == read(path.parent).classes == ("0", "1", "2")
    assert [label for _, label, _ in read(path).items()] == [2, 0, 2]
    table = path.with_name("classes.csv")
    table.write_text("label,wnid,name\n1,n01629819,salamander\n0,n01443537,goldfish\n2,,bullfrog\n")
    assert read(path).classes == ("n01443537", "n01629819", "bullfrog")
    table.write_text("label,name\n0,goldfish\n1,salamander\n")
    with pytest.raises(BadData, match=r"val.parquet row 0: the label 2 is none of the 2 classes, 0 to 1"):
        list(read(path).items())
    table.write_text("label,name\n0,goldfish\n2,salamander\n")
    with pytest.raises(BadData, match=r"classes.csv: 2 rows must have the labels 0 to 1, each once"):
        read(path)
    table.write_text("number,name\n0,goldfish\n")
    with pytest.raises(BadData, match=r"classes.csv: needs the column label"):
        read(path)


def test_a_sample_is_spread_and_the_same_each_time(tmp_path: Path) -> None:
    pictures = read(fill(tmp_path, {"goldfish": 20, "bullfrog": 20}))
    drawn = [name for _, _, name in pictures.sample(10)]
    assert drawn == [name for _, _, name in pictures.sample(10)]
    assert len(set(drawn)) == 10
    assert len({name.split("/")[0] for name in drawn}) == 2
    assert len(list(pictures.sample(None))) == len(list(pictures.sample(99))) == 40


# --- Measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 50), (50, 50), (1, 3), (445, 1000), (3562, 8000)])
def test_wilson_is_scipy_s(hits: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_hits_are_those_of_one_picture_after_another(tmp_path: Path) -> None:
    model = network("res2net_tiny")
    pictures = read(fill(tmp_path, {"apple": 5, "jay": 4, "ice_lolly": 4}))
    found = measure(model, pictures, batch=4)
    top1 = top5 = 0
    for path, label, _ in pictures.items():
        x, _ = model.preprocess(decode(path).rgb)
        with torch.inference_mode():
            order = model.module(x)[0].argsort(descending=True)[:5].tolist()
        wanted = model.classes.index(pictures.classes[label].replace("_", " "))
        top1, top5 = top1 + (order[0] == wanted), top5 + (wanted in order)
    assert (found.top1, found.top5, found.pictures, found.refused) == (top1, top5, 13, 0)
    assert found.size == (64, 64)
    assert found.params == sum(p.numel() for p in model.module.parameters())
    assert found.speed is not None
    assert found.speed > 0
    assert found.device == "CPU, 1 thread"
    assert measure(model, pictures, batch=64).speed is None
    whole = dataclasses.replace(model, preprocess=dataclasses.replace(model.preprocess, crop=None))
    assert measure(whole, pictures, batch=4).pictures == 13


def test_broken_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", {"apple": 3, "bee": 2})
    (folder / "bee/broken.png").write_bytes((folder / "bee/0.png").read_bytes()[:100])
    refused: list[str] = []
    found = measure(network(), read(folder), refused=refused)
    assert (found.pictures, found.refused) == (5, 1)
    assert len(refused) == 1
    assert "bee/broken.png" in refused[0]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(BadData, match="set: none of 6 pictures could be decoded; the first: "):
        measure(network(), read(folder))


@pytest.mark.shared
def test_the_mini_pair_measures_as_its_cards_say(shared: Path) -> None:
    pictures = read(shared / "data/tiny-imagenet")
    assert pictures.count == 8000
    found = {one.network: one for one, _, _ in measure_each(pictures, None, device="cpu", limit=600, batch=100)}
    assert set(found) >= {"resnet26_mini", "res2net26_mini"}
    for name in ("resnet26_mini", "res2net26_mini"):
        card = json.loads((EMBEDDED / f"{name}.json").read_text())
        one = found[name]
        for which in ("top1", "top5"):
            _, low, high = one.error(which)
            assert low <= 100 * (1 - card["score"][which]) <= high
        assert (one.params, one.macs) == (card["parameters"], card["multiply_adds"])
        assert one.weights["sha256"] == card["weights"]["sha256"]


def test_known_results_are_taken_for_the_same_pictures_only(tmp_path: Path) -> None:
    pictures = read(fill(tmp_path / "set", {"goldfish": 3, "bullfrog": 3}))
    first = next(measure_each(pictures, ["resnet26_mini"], device="cpu", batch=2))
    assert first[2] is False
    again = next(measure_each(pictures, ["resnet26_mini"], device="cpu", known=[first[0]]))
    assert again == (first[0], [], True)
    other = next(measure_each(pictures, ["resnet26_mini"], device="cpu", limit=4, known=[first[0]]))
    assert other[2] is False
    assert other[0].pictures == 4


def test_no_network_knows_the_classes(tmp_path: Path) -> None:
    pictures = read(fill(tmp_path / "set", {"unheard of": 1}))
    with pytest.raises(
        BadData, match=r"set: no network whose weights are at hand knows its 1 classes \(unheard of\); name"
    ):
        list(measure_each(pictures, None, device="cpu"))


# --- The folder of results -------------------------------------------------------------------------------------------


def test_what_was_measured_is_kept_and_read_back(tmp_path: Path) -> None:
    both = [a_measurement(), a_measurement(network="b", top5=None, speed=None)]
    assert [from_dict(json.loads(json.dumps(as_dict(one)))) for one in both] == both
    assert results.kept(tmp_path) == []
    results.keep(tmp_path / "new", both)
    assert results.kept(tmp_path / "new") == both
    for content in ("", "[]", "{}", '{"measured": [{"network": 1}]}', '{"measured": 3}'):
        (tmp_path / results.KEPT).write_text(content)
        with pytest.raises(BadRecord, match=r"measured.json holds no measurements of r2viz tables; remove it"):
            results.kept(tmp_path)


def test_all_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    tables = compare(["T2"], [a_measurement()])
    written = results.write(tmp_path / "a", tables, [a_measurement()])
    assert sorted(path.name for path in written) == sorted(
        [*(f"tables.{end}" for end in ("txt", "csv", "tex", "json")), *(f"tradeoff.{end}" for end in results.FIGURES)]
    )
    for path, other in zip(written, results.write(tmp_path / "b", tables, [a_measurement()]), strict=True):
        assert path.read_bytes() == other.read_bytes()
    embedded = json.loads(Image.open(tmp_path / "a/tradeoff.png").text["r2viz"])  # type: ignore[attr-defined]
    assert len(embedded["digest"]) == 64
    assert {one["label"] for one in embedded["points"]} >= {"ResNet-101", "Res2Net-101"}
    with pytest.raises(OutputError, match="exists already"):
        results.check(tmp_path / "a", overwrite=False)
    assert all("tradeoff" not in path.name for path in results.write(tmp_path / "c", compare(["T5"]), []))


def test_printing_tables_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from r2viz.tables.comparison import compare; from r2viz.tables.layout import render; "
        "render(compare(['T1', 'T5']), 'latex'); print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_accuracy_is_a_share_of_what_was_seen() -> None:
    value, low, high = a_measurement(pictures=200, top1=150).error()
    assert value == 25
    assert 0 < low < 25 < high < 100
    assert np.allclose(a_measurement(pictures=10, top1=10, top5=10).error("top5")[:2], 0)
