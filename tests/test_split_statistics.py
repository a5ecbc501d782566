"""The analysis of splits: its decision rule on planted numbers, its report by the mini pair."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
from click.testing import CliRunner
from scipy import stats

from analyses import split_statistics
from analyses.split_statistics import main
from analyses.split_statistics_measured import QUICK
from analyses.split_statistics_verdict import Series, Trend, judge, slopes, trends
from r2viz.split_records import CASCADE, CONTROL, FIRST, PERMUTED
from r2viz.statistics import Interval

STAGES = ("layer1", "layer2")
CARRIED, NONE, OPEN = (0.80, 0.90), (0.97, 1.02), (0.85, 1.10)
"""Limits of the centroid's factor per place; of a size, the reciprocals."""


def planted(kind, limits, network="Res2Net", weights="trained", p=0.001, chance=None) -> list[Trend]:
    low, high = limits
    found = []
    for statistic in ("centroid", "correlation_length", "sigma"):
        ends = (low, high) if statistic == "centroid" else (1 / high, 1 / low)
        ratio = Interval(float(np.sqrt(ends[0] * ends[1])), *ends, 100)
        found += [Trend(network, weights, stage, kind, statistic, ratio, p, chance, "picture") for stage in STAGES]
    return found


@pytest.mark.parametrize(
    ("limits", "p", "chance", "answer"),
    [
        (CARRIED, 0.001, None, "carried"),
        (CARRIED, 0.001, 0.025, "carried"),
        (CARRIED, 0.001, 0.3, "undecided"),  # random orders do as much
        (CARRIED, 0.2, None, "undecided"),  # not after Holm
        (OPEN, 0.4, None, "undecided"),
        (NONE, 0.4, None, "not carried"),
        ((1.1, 1.2), 0.001, None, "not carried"),  # the other way
        ((0.96, 0.97), 0.001, 0.025, "not carried"),  # sure, but small
        ((0.94, 0.98), 0.001, 0.025, "undecided"),
        ((float("nan"),) * 2, float("nan"), None, "undecided"),
    ],
)
def test_an_answer_follows_from_interval_p_and_orders(limits, p, chance, answer):
    for one in planted(CASCADE, limits, p=p, chance=chance):
        assert one.answer == answer, one


@pytest.mark.parametrize(
    ("cascade", "groups", "first", "finding", "said"),
    [
        (CARRIED, NONE, NONE, "supported", "Yes, by this measurement"),
        (CARRIED, CARRIED, NONE, "supported in part", "In part"),
        (CARRIED, NONE, CARRIED, "supported in part", "In part"),
        (NONE, NONE, NONE, "not supported", "No: in no stage"),
        (OPEN, NONE, NONE, "undecided", "Undecided."),
    ],
)
def test_the_verdict_follows_from_the_answers(cascade, groups, first, finding, said):
    found = [*planted(CASCADE, cascade), *planted(CONTROL, groups, "ResNet"), *planted(FIRST, first)]
    answer, text = judge(found, network="Res2Net", control="ResNet")
    assert answer == finding
    assert said in text
    assert ("Yes" in text) == (finding == "supported")
    assert "n = 1 seed" in text


def test_a_verdict_needs_the_fields():
    found = [one for one in planted(CASCADE, CARRIED) if one.statistic != "sigma"]
    answer, text = judge(found, network="Res2Net", control="ResNet")
    assert answer == "supported in part"
    assert "effective field's σ was not measured" in text


def test_slopes_are_least_squares_of_logarithms():
    values = np.random.default_rng(0).lognormal(size=(6, 4))
    values[2, 1] = 0
    expected = [np.polyfit(range(4), np.log(row), 1)[0] if row.all() else np.nan for row in values]
    np.testing.assert_allclose(slopes(values), expected, rtol=1e-9)


def series(factor, kind=CASCADE, stage="layer1", weights="trained", seed=None, order=0, spread=0.01) -> Series:
    chance = np.random.default_rng([order, int(1000 * factor), seed or 0])
    picture = chance.lognormal(size=(60, 1))  # pictures differ far more than places do
    values = picture * factor ** np.arange(3) * np.exp(chance.normal(0, spread, (60, 3)))
    return Series("Res2Net", weights, seed, stage, 1, kind, "centroid", values, order)


def test_what_differs_between_pictures_cancels_and_stages_are_one_family():
    found = trends([series(0.9), series(1.0, stage="layer2")])
    assert [one.stage for one in found] == list(STAGES)
    assert found[0].ratio.low < 0.9 < found[0].ratio.high < 0.91
    p = [stats.ttest_1samp(slopes(series(factor).values), 0).pvalue for factor in (0.9, 1.0)]
    assert found[0].p == pytest.approx(2 * p[0])  # Holm: the smaller of two is doubled
    assert (found[0].answer, found[1].answer) == ("carried", "not carried")
    assert found[0].chance is None


def test_random_orders_take_away_what_any_grouping_shows():
    dealt = [series(factor, PERMUTED, order=n) for n, factor in enumerate(np.linspace(0.85, 1.15, 19), start=1)]
    common = trends([series(0.9)], [series(0.9), *dealt])[0]
    assert common.chance == pytest.approx((1 + (np.linspace(0.85, 1.15, 19) < 0.9).sum()) / 20, abs=0.051)
    assert common.answer == "undecided"
    rare = trends([series(0.7)], [series(0.7), *dealt])[0]
    assert rare.chance == pytest.approx(1 / 20)
    assert rare.answer == "carried"


def test_the_unit_of_random_weights_is_the_seed():
    found = trends([series(factor, weights="random", seed=n) for n, factor in enumerate((0.8, 0.9, 1.0))])[0]
    assert (found.unit, found.ratio.n) == ("seed", 3)
    logs = np.log([0.8, 0.9, 1.0])
    expected = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(expected, rel=0.01)


# --- The report ------------------------------------------------------------------------------------------------------

SMALL = replace(
    QUICK, pictures=4, causal=2, ordered=3, orders=2, seeds=2, untrained=2, deep=("res2net50_26w_4s",), deep_seeds=2,
    deep_pictures=2, deep_side=64, deep_blocks=("layer1.1",), field_side=32, field_pictures=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch, tiny.one_thread():
        patch.setattr(split_statistics, "QUICK", SMALL)
        runs = [CliRunner().invoke(main, ["--quick", "-o", str(folder / "out")]) for _ in range(2)]
    return folder, *runs


def test_the_report_is_written_with_all_that_it_promises(made):
    folder, done, *_ = made
    assert done.exit_code == 0, done.output
    out = folder / "out"
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"centroid_heatmap", "correlation_length_heatmap", "spectra", "energy_conv3_heatmap", "cka"} <= names
    for name in ("trends", "centroids", "fields", "field_trends", "causal_stages", "causal_compared", "causal_places",
                 "causal_splits", "untrained_trends", "deep_trends", "statistics"):  # fmt: skip
        csv = pd.read_csv(out / "tables" / f"{name}.csv")
        assert len(csv) == len(pd.read_parquet(out / "tables" / f"{name}.parquet")) > 0
    about = json.loads((out / "report.json").read_text())
    assert about["finding"] in ("supported", "supported in part", "not supported", "undecided")
    assert "n = 1 seed" in about["verdict"]
    assert "These are 4 pictures" in about["verdict"]


def test_the_verdicts_numbers_are_those_of_the_tables(made):
    folder, *_ = made
    table = pd.read_csv(folder / "out" / "tables" / "trends.csv")
    row = table[(table.kind == CASCADE) & (table.statistic == "centroid")].iloc[0]
    assert f"{row.stage} × {row.factor:.3f} [" in json.loads((folder / "out" / "report.json").read_text())["verdict"]


def test_nothing_over_what_is_there(made):
    _, _, refused = made
    assert refused.exit_code == 1
    assert "exists already; use --overwrite" in refused.stderr
