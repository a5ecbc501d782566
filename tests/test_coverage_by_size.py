"""The analysis of coverage by size: its report from a few scenes, by the pair that ships."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny
from click.testing import CliRunner
from PIL import Image

from analyses import coverage_by_size
from analyses.coverage_by_size import QUICK, Plan, main
from r2viz.statistics import CRITERIA

SMALL = Plan(
    methods=("gradcam",), shares=(0.05, 0.3), places=((0.5, 0.5),), side=64, backgrounds=1, random_seeds=1, shown=1
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report beside a data set of boxes, one of whose pictures is not there."""
    folder = tmp_path_factory.mktemp("coverage")
    lines = ["file,label,x0,y0,x1,y1"]
    for number in range(4):
        Image.fromarray(tiny.photo(64, 64, number)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,goldfish,5,5,{30 + 8 * number},{40 + 4 * number}")
    (folder / "objects.csv").write_text("\n".join([*lines, "gone.png,goldfish,1,1,9,9"]))
    with pytest.MonkeyPatch.context() as patch, tiny.one_thread():
        patch.setattr(coverage_by_size, "QUICK", SMALL)
        done = CliRunner().invoke(
            main, ["--quick", "--dataset", str(folder / "objects.csv"), "-o", str(folder / "out")]
        )
    return done, folder / "out"


def test_it_ends_with_a_finding_and_says_what_was_bad(made):
    done, out = made
    assert done.exit_code == 3, done.output
    finding = done.stdout.split("\n")[0]
    assert finding in ("supported", "not supported", "undecided")
    assert f"By the table fixed beforehand: {finding}." in done.stdout
    assert "One training of each network was looked at (n = 1)" in done.stdout
    assert "1 pictures of" in done.stderr
    assert json.loads((out / "report.json").read_text())["finding"] == finding


def test_every_condition_stands_in_the_decision_table(made):
    _, out = made
    table = pd.read_csv(out / "tables/verdicts.csv")
    data = set(table.data)
    assert {"scenes on photographs", "scenes on noise", "examples"} <= data
    assert set(table.criterion) <= {row.what for row in CRITERIA.values()}
    scenes = table[(table.data == "scenes on photographs") & (table.measure == "area_coverage_gain")]
    assert set(scenes.over) == {"objects"}
    assert set(scenes.says) <= {"supported", "not supported", "undecided"}
    assert len(scenes) == 4
    boxes = table[table.measure == "energy_gain"]
    assert set(boxes.data) == {"objects.csv"} or len(set(boxes.data)) == 1


def test_intervals_of_scenes_are_over_objects_not_scenes(made):
    _, out = made
    rows = pd.read_parquet(out / "tables/scenes_pictures.parquet")
    table = pd.read_csv(out / "tables/scenes_differences.csv")
    objects = rows.item.str.partition(" on ")[0].nunique()
    whole = table[(table.stratum == "all") & (table.measure == "evenness")].iloc[0]
    assert whole.n == objects < whole.pictures
    own = rows[rows.model != "centre-Gaussian"]
    means = own.assign(object=own.item.str.partition(" on ")[0]).groupby(["model", "object"]).evenness.mean()
    expected = (means["res2net26_mini"] - means["resnet26_mini"]).mean()
    assert whole.difference == pytest.approx(expected)


def test_untrained_networks_and_the_gaussian_stand_beside_the_trained(made):
    _, out = made
    table = pd.read_csv(out / "tables/baselines.csv")
    assert set(table.weights.fillna("")) == {"", "trained", "random, seed 0"}
    assert set(table.network) == {"ResNet-26 mini", "Res2Net-26 mini", "centre-Gaussian"}
    assert np.allclose(sorted(set(table.share)), SMALL.shares)


def test_the_page_has_its_figures(made):
    _, out = made
    names = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"scenes_scale_response", "scenes_differences", "scenes_curves", "cases", "sample_by_size"} <= names
    assert (out / "index.html").stat().st_size < 15_000_000


def test_what_exists_is_kept(made):
    _, out = made
    again = CliRunner().invoke(main, ["--quick", "-o", str(out)])
    assert again.exit_code == 1
    assert "exists already; use --overwrite" in again.stderr


def test_the_quick_plan_asks_for_less():
    assert len(QUICK.places) * QUICK.backgrounds < len(Plan().places) * Plan().backgrounds
