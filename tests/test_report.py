"""The folder of a report: self-contained, escaped, small enough, and the same bytes when made twice."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from r2viz.errors import BadRecord, OutputError, R2VizError, one_line
from r2viz.report import Drawing, Report, Section, Table, join, write
from r2viz.report.pictures import fitted
from r2viz.report.tables import columns, rows

HOSTILE = '<script src="https://evil.example/x.js"></script>"><img src=//evil.example/y onerror=alert(1)>.jpg'


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def line(title: str = "sizes") -> Figure:
    drawing = Figure(figsize=(3, 2))
    drawing.add_subplot().plot([1, 2, 3], [1, 4, 9])
    drawing.suptitle(title, parse_math=False)
    return drawing


def noise(side: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def report(name: str = "cat.jpg") -> Report:
    data = pd.DataFrame(
        {
            "picture": pd.Series([name, "b.jpg"], dtype=object),
            "sigma": [12.3456789, float("nan")],
            "paths": [8**30, 1],
            "correct": [True, False],
        }
    )
    return Report(
        f"About {name}",
        f"It is {name}.\n\nOn the other hand it is not.",
        (
            Section(
                f"Section {name}",
                f"Text of {name}.",
                figures=(
                    Drawing("line", line(one_line(name)), f"a line through {name}", f"Caption of {name}"),
                    Drawing("square", noise(40), "noise"),
                ),
                tables=(Table("sizes", data, f"Sizes of {name}", {"sigma": "px"}),),
            ),
        ),
        {"pictures": name},
        "undecided",
    )


def read(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_twice_and_run_json_apart(tmp_path):
    assert write(report(), tmp_path / "a", run={"seconds": {"theory": 1.5}}) == tmp_path / "a" / "index.html"
    write(report(), tmp_path / "b", run={"seconds": {"theory": 2.5}})
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    expected = {"index.html", "report.json", "run.json", "tables/sizes.csv", "tables/sizes.parquet"}
    assert set(first) == expected | {f"figures/{name}.{kind}" for name in ("line", "square") for kind in ("png", "pdf")}
    assert {name for name in first if first[name] != second[name]} == {"run.json"}
    run = json.loads(first["run.json"])
    assert run["seconds"] == {"theory": 1.5}
    assert run["argv"] == sys.argv
    assert run["versions"]["numpy"] == np.__version__
    assert str(tmp_path).encode() not in b"".join(content for name, content in first.items() if name != "run.json")


def test_hostile_names_are_shown_and_never_obeyed(tmp_path):
    page = Page(write(report(HOSTILE), tmp_path / "a").read_text())
    assert not page.all("script")
    assert [one for one in page.all("img") if not str(one["src"]).startswith("data:image/png;base64,")] == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 6  # title twice, verdict, headline, text, caption, cell, provenance
    assert any(HOSTILE in str(one["alt"]) for one in page.all("img"))
    join([tmp_path / "a"], tmp_path / "joined")
    joined = Page((tmp_path / "joined" / "index.html").read_text())
    assert not joined.all("script")
    assert not joined.all("img")
    assert HOSTILE in joined.text


def test_names_that_are_no_text_are_kept_by_their_bytes(tmp_path):
    write(report("caf\udce9.jpg"), tmp_path)
    assert "caf\\udce9.jpg" in (tmp_path / "index.html").read_text()
    assert pq.read_table(tmp_path / "tables" / "sizes.parquet")["picture"][0].as_py() == "caf\\udce9.jpg"
    assert "caf\\udce9.jpg" in (tmp_path / "tables" / "sizes.csv").read_text()


def test_a_page_asks_nobody_for_anything(tmp_path):
    text = write(report(), tmp_path).read_text()
    page = Page(text)
    assert "default-src 'none'" in str(page.all("meta"))
    assert not page.all("link")
    assert not page.all("iframe")
    # Beside what it holds it names only its own folder's files and its own sections.
    links = [one["href"] for one in page.all("a")]
    assert links
    assert all(re.fullmatch(r"#\w+|(figures|tables)/\w+\.(png|pdf|csv|parquet)", str(link)) for link in links)
    assert "http" not in re.sub(r"http-equiv", "", text.replace("https://evil", ""))
    assert "url(" not in text


def test_every_figure_has_its_words_and_every_number_its_side(tmp_path):
    page = Page(write(report(), tmp_path).read_text())
    assert [one["alt"] for one in page.all("img")] == ["a line through cat.jpg", "noise"]
    assert [one.get("class") for one in page.all("th")] == [None, "number", "number", None]
    with pytest.raises(OutputError, match="figure 'x' has no alt text"):
        Drawing("x", line(), "  ")


def test_tables_keep_on_disk_what_the_page_rounds(tmp_path):
    page = Page(write(report(), tmp_path).read_text())
    assert "12.35" in page.text
    assert "12.3456789" not in page.text
    kept = pq.read_table(tmp_path / "tables" / "sizes.parquet")
    assert kept["sigma"].to_pylist()[0] == 12.3456789
    assert int(kept["paths"][0].as_py()) == 8**30
    assert kept.schema.field("sigma").metadata == {b"unit": b"px"}
    assert (tmp_path / "tables" / "sizes.csv").read_text().splitlines()[1] == f"cat.jpg,12.3456789,{8**30},True"


def test_cells():
    values = [0.0, 1234.5, 123.45, 12.345, 1.2345, -0.5, 0.00012345, float("inf"), float("nan"), None]
    table = Table("x", pd.DataFrame({"a": pd.Series(values, dtype=float), "b": ["<b>"] * 10}), shown=9)
    assert [row[0] for row in rows(table)] == [
        "0.000", "1,234", "123.5", "12.35", "1.234", "−0.500", "0.000123", "∞", "–",
    ]  # fmt: skip
    assert [one.right for one in columns(table)] == [True, False]
    assert rows(Table("n", pd.DataFrame({"n": [1234567, 8**30]})))[1][0] == "1.238e+27"
    some = Table("n", pd.DataFrame({"n": pd.Series([12345, None], dtype="Int64")}))
    assert (rows(some), columns(some)[0].right) == ([["12,345"], ["–"]], True)


def test_the_page_says_how_many_rows_it_leaves_to_the_files(tmp_path):
    table = Table("long", pd.DataFrame({"n": range(100)}), shown=10)
    page = Page(write(Report("t", "v", (Section("s", tables=(table,)),)), tmp_path).read_text())
    assert "90 more rows in the files" in page.text
    assert len((tmp_path / "tables" / "long.csv").read_text().splitlines()) == 101


def test_large_figures_are_made_smaller_on_the_page_only(tmp_path):
    pictures = {f"n{seed}": noise(1500, seed) for seed in range(3)}  # 20 MB of noise
    assert sum(map(len, pictures.values())) > 20_000_000
    drawings = tuple(Drawing(name, content, "noise") for name, content in pictures.items())
    page = write(Report("t", "v", (Section("s", figures=drawings),)), tmp_path)
    assert 3_000_000 < page.stat().st_size <= 15_000_000
    assert all((tmp_path / "figures" / f"{name}.png").read_bytes() == content for name, content in pictures.items())
    assert fitted(pictures, 10**9) == pictures


def test_nothing_that_exists_is_overwritten_unless_asked(tmp_path):
    write(report(), tmp_path)
    before = read(tmp_path)
    with pytest.raises(OutputError, match=r"index\.html exists already; use --overwrite"):
        write(report("other.jpg"), tmp_path)
    assert read(tmp_path) == before
    write(report("other.jpg"), tmp_path, overwrite=True)
    assert "other.jpg" in (tmp_path / "index.html").read_text()
    with pytest.raises(OutputError, match="is a file; choose a folder"):
        write(report(), tmp_path / "run.json")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a.png", "a b", "x" * 101])
def test_names_of_files_are_plain(name):
    with pytest.raises(OutputError, match="expected letters, digits"):
        Drawing(name, line(), "a line")
    with pytest.raises(OutputError, match="expected letters, digits"):
        Table(name, pd.DataFrame({"a": [1]}))


def test_two_of_one_name_are_refused():
    drawing = Drawing("one", line(), "a line")
    with pytest.raises(OutputError, match="two figures of a report are called 'one'"):
        Report("t", "v", (Section("a", figures=(drawing,)), Section("b", figures=(drawing,))))
    with pytest.raises(OutputError, match=r"units for columns that it has not: \['b'\]"):
        Table("x", pd.DataFrame({"a": [1]}), units={"b": "px"})


def test_several_reports_are_joined_by_relative_links(tmp_path):
    write(report(), tmp_path / "a b")
    write(report("dog.jpg"), tmp_path / "dogs")
    page = Page(join([tmp_path / "a b", tmp_path / "dogs"], tmp_path, title="All").read_text())
    assert [one["href"] for one in page.all("a")] == ["a%20b/index.html", "dogs/index.html"]
    assert "About dog.jpg" in page.text
    assert "On the other hand" in page.text
    assert page.text.count("undecided") == 2
    with pytest.raises(OutputError, match="exists already"):
        join([tmp_path / "dogs"], tmp_path)
    with pytest.raises(BadRecord, match="figures holds no report"):
        join([tmp_path / "dogs" / "figures"], tmp_path / "c")
    with pytest.raises(R2VizError, match="no report came"):
        join([], tmp_path / "c")


def test_the_room_needs_no_torch():
    code = "import sys, r2viz.report, r2viz.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_analyses_are_listed_without_being_imported():
    listed = run("report", "--list", "--json")
    known = json.loads(listed.stdout)
    assert {"figure4_gradcam", "index", "receptive_fields"} <= set(known)
    assert "receptive_verdict" not in known  # shared by scripts, none itself
    assert all(said.endswith((".", "?")) for said in known.values())
    assert all(name in run("report", "--list").stdout for name in known)


def test_an_analysis_is_run_from_any_folder(tmp_path):
    for name in ("a", "b"):
        write(report(f"{name}.jpg"), tmp_path / name)
    done = run("report", "index", "a", "b", "-o", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "About b.jpg" in (tmp_path / "all" / "index.html").read_text()
    again = run("report", "index", "a", "-o", "all", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already; use --overwrite" in again.stderr
    assert run("report", "index", "a", "-o", "all", "--overwrite", cwd=tmp_path).returncode == 0


def test_unknown_analyses_are_refused_with_the_nearest(tmp_path):
    done = run("report", "receptive_field", cwd=tmp_path)
    assert done.returncode == 2
    assert "no analysis 'receptive_field'; did you mean 'receptive_fields'?" in done.stderr
    assert run("report").returncode == 2


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "r2viz", *arguments], cwd=cwd, capture_output=True, text=True)
