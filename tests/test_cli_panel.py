"""`r2viz cam` with several methods or targets, with options of the pipeline, with --check; `r2viz methods`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import Run, few_threads, listing, pictures, run, tiny
from tiny import photo

from r2viz.attribution import METHODS
from r2viz.checks import SUMMARISED
from r2viz.cli import cam
from r2viz.cli.methods import NEEDS
from r2viz.cli.progress import Steps
from r2viz.explain import explain, panel
from r2viz.explain.trust import check
from r2viz.image import decode
from r2viz.panels import Panel
from r2viz.records import CamRecord
from r2viz.statistics import mean_interval
from r2viz.store import open_any, open_record

__all__ = ["few_threads", "pictures", "run", "tiny"]  # fixtures, taken from where they are defined

FAST = ("--method", "gradcam", "--method", "layercam")


def opened(path: Path) -> Panel:
    found = open_any(path)
    assert isinstance(found, Panel)
    return found


# --- panels ----------------------------------------------------------------------------------------------------------


def test_several_methods_make_a_panel(run: Run, pictures: Path, tmp_path: Path, tiny: dict) -> None:
    done = run("cam", "p/a.png", *FAST, "--target", "cat", "--target", "cat vs dog", "-o", "out")
    assert (done.code, done.err) == (0, "")
    assert listing(tmp_path / "out") == ["a.panel.json", "a.panel.npz", "a.panel.png"]
    lines = done.out.splitlines()
    assert lines[0] == "a.png: 2 methods of 2 targets"
    assert lines[-1] == "  → out/a.panel.png"
    assert sum(line.startswith(("  Grad-CAM, cat", "  Layer-CAM, cat")) for line in lines) == 4
    found = opened(tmp_path / "out/a.panel.json")
    assert [(one.method, one.policy) for one in found.records] == [
        (method, target) for method in ("gradcam", "layercam") for target in ("cat", "cat vs dog")
    ]
    models = [tiny[(name, "auto")] for name in ("resnet50", "res2net50_26w_4s")]
    for record in found.records:
        alone = explain(decode(pictures / "a.png"), models, method=record.method, target=record.policy)
        assert record.digest == alone.digest
        for mine, theirs in zip(record.views, alone.views, strict=True):
            np.testing.assert_allclose(mine.maps[0].raw, theirs.maps[0].raw, atol=1e-6)
        row = next(line for line in lines if line.startswith(f"  {record.method_title}, {record.policy} "))
        agreement = record.agreement("layer4")
        if agreement is not None:
            assert f"{agreement.spearman:.2f}" in row


def test_top_k_is_a_panel_of_classes(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "p/a.png", "--target", "top3", "-o", "out")
    assert done.out.startswith("a.png: Grad-CAM of 3 targets\n")
    found = opened(tmp_path / "out/a.panel.json")
    assert [one.policy for one in found.records] == ["shared", "shared, rank 2", "shared, rank 3"]


def test_all_methods_and_why_some_are_missing(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "p/a.png", "--method", "all", "--layer", "layer3", "--channels", "2", "-o", "out", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["kind"] == "panel"
    assert document["schema"] == 1
    known = [one["method"] for one in document["records"]] + [one["method"] for one in document["missing"]]
    assert sorted(known) == sorted(METHODS)
    (plain,) = [one for one in document["missing"] if one["method"] == "cam"]
    assert plain["title"] == "CAM"
    assert "\n" not in plain["error"]
    assert {view["maps"][0]["layer"] for one in document["records"] for view in one["views"]} == {
        "layer3",
        "input",
        "input@layer3",
    }
    saved = json.loads((tmp_path / "out/a.panel.json").read_text())
    ours = {key: value for key, value in document.items() if key not in ("input", "status", "files")}
    assert ours == {key: value for key, value in saved.items() if key != "request"}
    shown = run("cam", "p/a.png", "--method", "cam", "--method", "gradcam", "--layer", "layer3", "-o", "other").out
    assert f"  not used: CAM: {plain['error']}" in shown


def test_all_methods_look_at_few_channels_unless_told_otherwise() -> None:
    assert cam.CHANNELS_OF_ALL == 128
    (option,) = [one for one in cam.command.params if one.name == "methods"]
    assert "--channels 128 unless you say otherwise" in str(option.help)  # type: ignore[attr-defined]


def test_where_no_method_can_be_used_the_picture_failed(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run("cam", "p/a.png", "--method", "cam", "--target", "cat", "--target", "dog", "--layer", "layer3")
    assert done.code == 1
    assert len(done.notices) == 1
    assert done.notices[0].startswith("r2viz: p/a.png: CAM")
    assert not (tmp_path / "r2viz-out").exists()


def test_many_panels_are_a_line_each(run: Run, pictures: Path) -> None:
    done = run("cam", "p", "text.jpg", *FAST, "--json")
    assert done.code == 3
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert [document["status"] for document in documents] == ["ok", "ok", "ok", "failed"]
    assert all(len(document["records"]) == 2 for document in documents[:3])


def test_panels_that_exist_are_kept_resumed_or_replaced(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/b.png", *FAST, "-o", "out").code == 0
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    refused = run("cam", "p", *FAST, "-o", "out")
    assert refused.notices == ["r2viz: out/b.panel.png exists already; use --overwrite, or another folder with -o"]
    resumed = run("cam", "p", *FAST, "-o", "out", "--resume")
    assert resumed.notices == ["1 of 3 pictures have their results already"]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in kept} == kept
    assert len(listing(tmp_path / "out")) == 9
    assert run("cam", "p/b.png", *FAST, "-o", "out", "--overwrite").code == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in kept} == kept  # equal runs, equal bytes


@pytest.mark.parametrize(
    "other",
    [
        ["--smooth"],
        ["--channels", "3"],
        ["--seed", "1"],
        ["--target", "cat"],
        ["--method", "xgradcam"],
        ["--check"],
        ["--layer", "layer3", "--layer", "layer4", "--fuse", "max"],
    ],
    ids=" ".join,
)
def test_resume_never_mixes_panels(run: Run, pictures: Path, other: list[str]) -> None:
    assert run("cam", "p/a.png", *FAST, "-o", "out").code == 0
    done = run("cam", "p/a.png", *FAST, "-o", "out", "--resume", *other)
    assert done.code == 1
    assert "was made from another picture or with other options" in done.err


def test_figures_of_panels_are_not_taken_for_pictures(run: Run, pictures: Path) -> None:
    assert run("cam", "p", *FAST, "-o", "p").code == 0
    again = run("cam", "p", "-o", "out", "--json")
    assert [json.loads(line)["picture"]["name"] for line in again.out.splitlines()] == ["a.png", "b.png", "c.png"]


def test_plot_draws_the_panel_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("cam", "p/a.png", *FAST, "--method", "cam", "--layer", "layer3", "-o", "out").code == 0
    done = run("plot", "out/a.panel.json", "-o", "again.png")
    assert (done.code, done.out) == (0, "again.png\n")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out/a.panel.png").read_bytes()
    said = json.loads(Image.open(tmp_path / "again.png").text["r2viz"])  # type: ignore[attr-defined]
    assert said["digest"] == opened(tmp_path / "out/a.panel.json").digest
    assert [one["method"] for one in said["records"]] == ["gradcam", "layercam"]
    (tmp_path / "out/a.panel.npz").unlink()
    broken = run("plot", "out/a.panel.json", "-o", "third.png")
    assert broken.code == 1
    assert broken.notices == [
        "r2viz: out/a.panel.json lacks its arrays, out/a.panel.npz; keep the two together",
    ]


# --- options of the pipeline -----------------------------------------------------------------------------------------


def test_options_reach_the_record(run: Run, pictures: Path, tmp_path: Path) -> None:
    layers = ("--layer", "layer3", "--layer", "layer4")
    done = run("cam", "p/a.png", *layers, "--fuse", "mean", "--smooth", "--channels", "3", "--seed", "5", "-o", "out")
    assert done.code == 0, done.err
    record = open_record(tmp_path / "out/a.cam.json")
    assert record.layers == ("layer3", "layer4", "mean(layer3, layer4)")
    assert record.settings == {"fuse": "mean", "smooth": True, "seed": 5, "channels": 3}


def test_a_seed_is_of_methods_that_draw_and_of_random_weights(run: Run, pictures: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert run("cam", "p/a.png", "--method", "random", "--seed", seed, "-o", f"out{seed}").code == 0
    one, other = (open_record(tmp_path / f"out{seed}/a.cam.json") for seed in "12")
    assert not np.array_equal(one.views[0].maps[0].raw, other.views[0].maps[0].raw)
    assert one.views[0].seed is None


# --- checks ----------------------------------------------------------------------------------------------------------


def test_check_of_one_picture(run: Run, pictures: Path, tmp_path: Path, tiny: dict) -> None:
    done = run("cam", "p/a.png", "--check", "-o", "out", "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)["check"]
    assert said == json.loads((tmp_path / "out/a.cam.json").read_text())["check"]
    models = [tiny[(name, "auto")] for name in ("resnet50", "res2net50_26w_4s")]
    record = open_record(tmp_path / "out/a.cam.json")
    expected = check(record, models)
    assert said["layer"] == "layer4"
    for network, verdict in zip(said["networks"], expected, strict=True):
        assert network["faithfulness"]["road"] == pytest.approx(verdict.faithfulness.road)
        assert network["randomisation"]["spearman"] == pytest.approx(list(verdict.randomisation.spearman))  # type: ignore[union-attr]
        assert network["warnings"] == list(verdict.warnings)
    text = run("cam", "p/a.png", "--check", "-o", "other").out
    for view, verdict in zip(record.views, expected, strict=True):
        (row,) = [line for line in text.splitlines() if re.match(rf"  {view.title}  +-?\d\.\d\d ", line)]
        faith, gate = verdict.faithfulness, verdict.randomisation
        assert gate is not None
        numbers = (faith.deletion_gain, faith.insertion_gain, faith.road, faith.drop, gate.spearman[-1])
        assert row.split()[-5:] == [f"{number:.2f}" for number in numbers]
        for warning in verdict.warnings:
            assert f"  warning: {warning}: " in text


def test_check_of_panels_and_of_pixels(run: Run, pictures: Path) -> None:
    done = run("cam", "p/a.png", "--check", "--method", "gradcam", "--method", "saliency", "--json")
    document = json.loads(done.out)
    assert [one["layer"] for one in document["check"]] == ["layer4", "input"]
    assert all(len(one["networks"]) == 2 for one in document["check"])


def test_checks_over_pictures_have_intervals(run: Run, pictures: Path) -> None:
    done = run("cam", "p", "--check", "--target", "cat", "--json", "-o", "out")
    *pages, last = [json.loads(line) for line in done.out.splitlines()]
    assert [page["status"] for page in pages] == ["ok"] * 3
    assert (last["kind"], last["status"]) == ("check", "summary")
    assert [row["network"] for row in last["over_pictures"]] == ["ResNet tiny", "Res2Net tiny"]
    for number, row in enumerate(last["over_pictures"]):
        assert row["map"] == "Grad-CAM (cat)"
        networks = [page["check"]["networks"][number] for page in pages]
        for name in SUMMARISED:
            values = np.array([network["faithfulness"][name] for network in networks], dtype=float)
            assert row[name] == pytest.approx(mean_interval(values).as_dict())
        left = np.array([network["randomisation"]["spearman"][-1] for network in networks])
        assert row["spearman_randomised"] == pytest.approx(mean_interval(left).as_dict())
    text = run("cam", "p/a.png", "p/b.png", "--check", "--target", "cat", "-o", "other").err
    assert text.startswith(
        "checks over the pictures: mean [95 % interval] (n = pictures)\n  Grad-CAM (cat), ResNet tiny"
    )
    assert text.count("(n = 2") == 2 * (len(SUMMARISED) + 2)


@pytest.mark.parametrize("more", [[], ["--target", "dog"]], ids=["records", "panels"])
def test_the_summary_of_a_resumed_run_is_that_of_the_whole(
    run: Run, pictures: Path, tmp_path: Path, more: list[str]
) -> None:
    """Verdicts of pictures that are kept are read from their records."""
    # Picture by picture: a batch of another size differs in the last digits.
    asked = ("p/a.png", "p/b.png", "--model", "resnet50", "--check", "--target", "cat", *more, "--json", "--batch", "1")
    whole = json.loads(run("cam", *asked).out.splitlines()[-1])
    assert whole["status"] == "summary"
    assert all(row["road"]["n"] == 2 for row in whole["over_pictures"])
    for path in (tmp_path / "r2viz-out").glob("a.*"):
        path.unlink()
    resumed = [json.loads(line) for line in run("cam", *asked, "--resume").out.splitlines()]
    assert [line["status"] for line in resumed] == ["kept", "ok", "summary"]
    assert resumed[-1] == whole
    again = [json.loads(line) for line in run("cam", *asked, "--resume").out.splitlines()]
    assert [line["status"] for line in again] == ["kept", "kept", "summary"]
    assert again[-1] == whole
    (record,) = (tmp_path / "r2viz-out").glob("b.*.json")
    document = json.loads(record.read_text())
    del document["check"]
    record.write_text(json.dumps(document))
    refused = run("cam", *asked, "--resume")
    assert refused.code == 1
    assert "does not hold the checks that --resume goes on from (KeyError); use --overwrite" in refused.err


# --- the table of methods --------------------------------------------------------------------------------------------


def test_methods_lists_the_table(run: Run) -> None:
    text = run("methods").out
    for name, row in METHODS.items():
        assert re.search(rf"^{re.escape(name)} .*{re.escape(NEEDS[row.needs])}.*{re.escape(row.citation)}$", text, re.M)
        assert row.note in text
    table = json.loads(run("methods", "--json").out)
    assert list(table) == list(METHODS)
    assert table["gradcam"] == {
        "title": "Grad-CAM",
        "citation": METHODS["gradcam"].citation,
        "needs": "gradients",
        "per_class": True,
        "note": METHODS["gradcam"].note,
    }


# --- bars ------------------------------------------------------------------------------------------------------------


def test_a_bar_is_of_the_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2viz.cli.progress.AFTER", 0)
    steps = Steps()
    for done in (1, 2, 3):
        steps(done, 3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for total in (3, 5):
        for done in range(1, total + 1):
            steps(done, total)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3" in err
    assert "5" in err


def test_the_pipeline_tells_bars_what_they_need(tiny: dict) -> None:
    told: list[tuple[int, int]] = []
    panel(photo(), [tiny[("resnet50", "auto")]], methods=["scorecam"], progress=lambda *step: told.append(step))
    assert told
    assert told[-1][0] == told[-1][1]
    assert all(isinstance(one, CamRecord) for one in panel(photo(), [tiny[("resnet50", "auto")]], methods=["gradcam"]))
