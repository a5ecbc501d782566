"""Surveys of planted numbers: what is independent, what is found, what is not, and the verdict."""

import numpy as np
import pytest
from scipy import stats

from r2viz.contrasts import (
    ALL,
    by_cluster,
    clusters,
    differences,
    finding,
    interaction,
    judge,
    large,
    levels,
    manipulated,
    pairs,
    primary,
    response,
    strata,
    units,
)
from r2viz.coverage import Rows
from r2viz.errors import BadData, UnknownName
from r2viz.statistics import SIZES
from r2viz.surveys import Look, Survey

SHARES = (0.03, 0.1, 0.3)


def rows(values: dict[str, np.ndarray], area: np.ndarray) -> Rows:
    count = len(area)
    chance = {name: np.zeros(count) for name in values}
    names = tuple(f"picture {number}" for number in range(count))
    return Rows(names, values, chance, np.zeros(count, bool), area, np.ones(count), np.ones(count, bool))


def planted(
    gain: np.ndarray | float,
    area: np.ndarray,
    *,
    leak: float = 0.0,
    noise: float = 0.02,
    kind: str = "mask",
    objects: tuple[str, ...] = (),
    chosen: np.ndarray | None = None,
    seed: int = 0,
    networks: int = 2,
) -> Survey:
    """Two networks, the second of which covers `gain` more and leaks `leak` more, picture by picture."""
    chance = np.random.default_rng(seed)
    count = len(area)
    name = "energy_gain" if kind == "box" else "area_coverage_gain"
    before = {name: 0.3 + 0.1 * chance.random(count), "leakage": 0.4 + 0.1 * chance.random(count)}
    after = {
        name: before[name] + gain + noise * chance.standard_normal(count),
        "leakage": before["leakage"] + leak + noise * chance.standard_normal(count),
    }
    nothing = {name: np.full(count, 0.1), "leakage": np.full(count, 0.6)}
    looks = tuple(
        Look(model, title, {"kind": "file", "source": "", "sha256": model}, None, {}, "gradcam", "Grad-CAM", "layer4",
             rows(values, area), np.full(count, 0.5))
        for model, title, values in (("a", "A", before), ("b", "B", after))[:networks]
    )  # fmt: skip
    labels = tuple("" for _ in range(count))
    gaussian = rows(nothing, area)
    items = gaussian.names
    return Survey(
        "planted", "none", kind, "shared", "rf", looks, gaussian, labels, items, (), {}, "cpu", objects=objects,
        pixels=area * 1e5, chosen=chosen,
    )  # fmt: skip


def found_sizes(count: int = 400) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 0.78, count)


def of_scenes(slope: float, *, objects: int = 8, each: int = 6, spread: float = 0.0, **options) -> Survey:
    """Every object at every share, several times; the gain grows by `slope` from the smallest to the largest."""
    chance = np.random.default_rng(7)
    who = np.repeat(np.arange(objects), each * len(SHARES))
    chosen = np.tile(np.repeat(SHARES, each), objects)
    along = np.log(chosen / SHARES[0]) / np.log(SHARES[-1] / SHARES[0])
    gain = slope * along + spread * chance.standard_normal(objects)[who]
    return planted(gain, chosen, objects=tuple(f"object {one}" for one in who), chosen=chosen, **options)


# --- What is independent ---------------------------------------------------------------------------------------------


def test_pictures_of_one_object_are_one_unit():
    survey = of_scenes(0.0)
    assert units(survey) == "objects"
    assert units(planted(0.0, found_sizes(20))) == "pictures"
    assert clusters(planted(0.0, found_sizes(3), objects=("x", "y", "z"))) is None
    table = differences(survey)
    assert set(table[table.measure == "area_coverage_gain"].n) == {8}


def test_cluster_means_against_a_loop():
    values, of = np.array([1.0, np.nan, 3.0, 5.0, np.nan]), np.array([0, 0, 2, 2, 1])
    slow = [np.mean([v for v, k in zip(values, of, strict=True) if k == c and np.isfinite(v)] or [np.nan])
            for c in range(3)]  # fmt: skip
    assert np.allclose(by_cluster(values, of), slow, equal_nan=True)


def test_intervals_over_few_objects_are_students_t():
    survey = of_scenes(0.0, spread=0.05)
    table = differences(survey)
    row = table[(table.measure == "area_coverage_gain") & (table.stratum == ALL)].iloc[0]
    first, second = pairs(survey)[0]
    gain = second.rows.values["area_coverage_gain"] - first.rows.values["area_coverage_gain"]
    means = by_cluster(gain, clusters(survey))
    expected = stats.t.interval(0.95, 7, means.mean(), stats.sem(means))
    assert (row["difference low"], row["difference high"]) == pytest.approx(expected)
    assert row["difference"] == pytest.approx(gain.mean())


def test_a_null_that_objects_share_is_rarely_found_and_would_be_often_if_scenes_counted():
    """Objects differ, networks do not: over objects about one run in twenty finds something, over scenes most do."""
    by_objects = by_scenes = 0
    for seed in range(200):
        chance = np.random.default_rng(seed)
        of = np.repeat(np.arange(7), 40)
        gain = 0.05 * chance.standard_normal(7)[of] + 0.02 * chance.standard_normal(280)
        by_objects += stats.ttest_1samp(by_cluster(gain, of), 0).pvalue < 0.05
        by_scenes += stats.ttest_1samp(gain, 0).pvalue < 0.05
    assert by_objects <= 20
    assert by_scenes > 100


# --- Strata ----------------------------------------------------------------------------------------------------------


def test_strata_hold_what_they_say_and_leave_out_what_is_empty():
    survey = planted(0.0, np.array([0.01, 0.05, 0.2, 0.9]))
    found = strata(survey)
    assert list(found) == [ALL, "≤ 5 %", "5-25 %"]
    assert found["≤ 5 %"].tolist() == [True, True, False, False]
    by_pixels = strata(survey, "coco")
    assert by_pixels["small"].tolist() == [True, False, False, False]
    assert by_pixels["large"].tolist() == [False, False, True, True]
    with pytest.raises(UnknownName, match="no strata 'cocoa'; did you mean 'coco'"):
        strata(survey, "cocoa")


def test_a_planted_difference_stands_in_its_stratum_only():
    area = found_sizes()
    survey = planted(np.where(area > 0.5, 0.06, 0.0), area)
    table = differences(survey)
    own = table[table.measure == "area_coverage_gain"].set_index("stratum")
    assert own.loc["50-80 %", "difference low"] > 0.05
    assert own.loc["50-80 %", "p (Holm)"] < 1e-6
    assert own.loc["5-25 %", "difference low"] < 0 < own.loc["5-25 %", "difference high"]
    assert own.loc["5-25 %", "p (Holm)"] > 0.05
    assert set(own.index) == {ALL, *SIZES}
    for stratum, which in strata(survey).items():
        first, second = pairs(survey)[0]
        gain = (second.rows.values["area_coverage_gain"] - first.rows.values["area_coverage_gain"])[which]
        assert own.loc[stratum, "difference"] == pytest.approx(gain.mean())
        assert own.loc[stratum, "p"] == pytest.approx(stats.wilcoxon(gain, zero_method="pratt").pvalue)


def test_holm_counts_each_hypothesis_once():
    table = differences(planted(0.01, found_sizes()))
    parts = table[table.stratum != ALL]
    least = parts.sort_values("p").iloc[0]
    assert least["p (Holm)"] == pytest.approx(min(1, len(parts) * least.p))
    assert table[table.stratum == ALL]["p (Holm)"].isna().all()


def test_levels_have_every_network_and_the_gaussian():
    table = levels(planted(0.0, found_sizes(60)))
    assert set(table.network) == {"A", "B", "centre-Gaussian"}
    gaussian = table[(table.network == "centre-Gaussian") & (table.measure == "leakage")]
    assert np.allclose(gaussian["mean"], 0.6)


# --- Interactions ----------------------------------------------------------------------------------------------------


def test_the_interaction_within_objects_is_the_planted_slope():
    survey = of_scenes(0.12, spread=0.1)
    found = interaction(survey, *pairs(survey)[0], "area_coverage_gain")
    assert found.low < 0.12 < found.high
    assert found.mean == pytest.approx(0.12, abs=0.02)
    assert found.n == 8
    assert manipulated(survey)
    assert large(survey).sum() == 48


def test_a_gain_at_every_size_is_no_interaction():
    survey = of_scenes(0.0, spread=0.0, noise=0.01)
    found = interaction(survey, *pairs(survey)[0], "area_coverage_gain")
    assert found.low < 0 < found.high
    area = found_sizes()
    same = planted(0.05, area)
    between = interaction(same, *pairs(same)[0], "area_coverage_gain")
    assert between.low < 0 < between.high
    growing = planted(np.where(area > 0.5, 0.06, 0.0), area)
    assert interaction(growing, *pairs(growing)[0], "area_coverage_gain").low > 0.04


def test_the_response_to_size_is_a_mean_over_objects():
    survey = of_scenes(0.12)
    table = response(survey, "area_coverage_gain")
    assert table[table.network == "B"].share.tolist() == list(SHARES)
    assert set(table.n) == {8}
    with pytest.raises(BadData, match="sizes were found, not chosen"):
        response(planted(0.0, found_sizes(9)), "leakage")


# --- The verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "leak", "noise", "verdict", "said"),
    [
        (0.08, 0.0, 0.02, "supported", "is supported: the gain for large objects is +7"),
        (0.0, 0.0, 0.02, "not supported", "the gain for large objects is"),
        (0.08, 0.1, 0.02, "not supported", "the change in leakage is +"),
        (-0.05, 0.0, 0.02, "not supported", "is not supported: the gain for large objects is −"),
        (0.03, 0.0, 0.6, "undecided", "is undecided: the gain for large objects is"),
    ],
)
def test_planted_numbers_give_their_sentence(gain, leak, noise, verdict, said):
    area = found_sizes()
    found = judge(planted(np.where(area > 0.5, gain, 0.0), area, leak=leak, noise=noise))
    assert found.decision.verdict == verdict
    assert said in found.decision.sentence
    assert "B covers more of large objects than A" in found.decision.sentence


def test_scenes_are_judged_at_the_largest_size_over_objects():
    found = judge(of_scenes(0.12, spread=0.01))
    assert found.decision.verdict == "supported"
    assert found.units == "objects"
    assert found.intervals["difference"].n == 8
    assert found.intervals["difference"].mean == pytest.approx(0.12, abs=0.02)


def test_boxes_are_judged_by_energy_and_claim_no_coverage():
    survey = planted(0.0, found_sizes(), kind="box")
    assert primary(survey) == "energy_gain"
    assert "puts more of its map on large objects" in judge(survey).decision.sentence


def test_supported_needs_the_others_not_to_speak_against():
    area = found_sizes()
    yes, no, open_ = (
        judge(planted(np.where(area > 0.5, gain, 0.0), area, noise=noise))
        for gain, noise in ((0.08, 0.02), (-0.05, 0.02), (0.2, 3.0))
    )
    assert finding([yes, yes]) == "supported"
    assert finding([yes, no]) == "undecided"
    assert finding([no, yes]) == "not supported"
    assert finding([open_, no]) == "undecided"


def test_what_cannot_be_judged_says_why():
    alone = planted(0.0, found_sizes(9), networks=1)
    assert pairs(alone) == []
    with pytest.raises(BadData, match="one network has no difference; survey two"):
        differences(alone)
    survey = planted(0.0, found_sizes(9))
    with pytest.raises(BadData, match="evenness was not measured"):
        judge(survey, measure="evenness")
    with pytest.raises(UnknownName, match="no method 'gradcamm'; did you mean 'gradcam'"):
        judge(survey, method="gradcamm")
