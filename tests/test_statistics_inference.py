"""Inference against SciPy, and by simulation: how often intervals hold the truth, and tests find what is not there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from r2viz.statistics import (
    COCO,
    CRITERIA,
    Interval,
    decide,
    difference_interval,
    holm,
    interaction_interval,
    mcnemar,
    mean_interval,
    percentile_interval,
    resample_counts,
    resampled,
    seed_interval,
    sign_flip,
    strata_of,
    stratified_intervals,
    two_level_interval,
    wilcoxon,
    within_interaction_interval,
)

# --- Resampling ------------------------------------------------------------------------------------------------------


def test_counts_are_draws_with_replacement() -> None:
    parts = list(resample_counts(50, 400, seed=3))
    counts = np.concatenate(parts)
    assert counts.shape == (400, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)
    np.testing.assert_array_equal(counts, np.concatenate(list(resample_counts(50, 400, seed=3))))
    assert len(list(resample_counts(3_000_000, 3))) == 3  # memory stays flat


def test_all_at_once_equals_scipy_one_by_one() -> None:
    chance = np.random.default_rng(0)
    sizes = chance.random(300)
    values = {"a": chance.exponential(1, 300), "b": (chance.random(300) < 0.3).astype(float)}
    values["a"][::17] = np.nan
    strata = {"all": sizes >= 0, **strata_of(sizes)}
    found = stratified_intervals(values, strata, resamples=9999)
    assert set(found) == {(measure, stratum) for measure in values for stratum in strata}
    for (measure, stratum), interval in found.items():
        data = values[measure][strata[stratum]]
        data = data[np.isfinite(data)]
        assert interval.n == data.size
        assert interval.mean == pytest.approx(data.mean())
        if data.size > 40:
            expected = stats.bootstrap((data,), np.mean, n_resamples=4999, method="BCa", rng=0).confidence_interval
            width = expected.high - expected.low
            assert interval.low == pytest.approx(expected.low, abs=0.06 * width)
            assert interval.high == pytest.approx(expected.high, abs=0.06 * width)


def test_strata_with_few_or_equal_values() -> None:
    found = stratified_intervals(
        {"a": np.array([1.0, 2.0, 5.0, 5.0, 5.0, np.nan])},
        {"two": np.arange(6) < 2, "equal": np.arange(6) >= 2, "none": np.zeros(6, dtype=bool)},
        resamples=99,
    )
    assert str(found["a", "two"]) == "1.5 (n = 2, no interval)"
    assert found["a", "equal"] == Interval(5.0, 5.0, 5.0, 3)
    assert found["a", "none"].n == 0
    assert stratified_intervals({}, {}) == {}


def test_any_statistic_of_counts() -> None:
    data = np.random.default_rng(0).normal(2, 1, 200)
    draws = resampled(lambda counts: counts @ data / 200, 200, 4000)
    found = percentile_interval(data.mean(), draws, n=200)
    expected = stats.bootstrap((data,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_strata_meet_without_overlap() -> None:
    sizes = np.array([0.01, 0.05, 0.051, 0.25, 0.5, 0.8, 0.81])
    found = strata_of(sizes)
    assert [int(part.sum()) for part in found.values()] == [2, 2, 1, 1]
    assert [int(part.sum()) for part in strata_of(np.array([1024.0, 1025, 9216, 9217]), COCO).values()] == [1, 2, 1]


# --- Intervals -------------------------------------------------------------------------------------------------------


def test_seed_interval_is_students() -> None:
    data = np.array([1.0, 2.0, 4.0, np.nan])
    expected = stats.ttest_1samp(data[:3], 0).confidence_interval(0.95)
    found = seed_interval(data)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert str(seed_interval(np.array([1.0]))) == "1 (n = 1, no interval)"


def test_five_seeds_hold_the_truth_as_often_as_said() -> None:
    """Where a bootstrap over seeds does not."""
    chance, found, drawn = np.random.default_rng(0), 0, 0
    for number in range(400):
        data = chance.normal(0, 1, 5)
        found += (interval := seed_interval(data)).low <= 0 <= interval.high
        drawn += (interval := mean_interval(data, resamples=399, seed=number)).low <= 0 <= interval.high
    assert 0.92 <= found / 400 <= 0.98
    assert drawn / 400 < 0.9


@pytest.mark.parametrize(("seed_spread", "picture_spread"), [(0.3, 1.0), (0.0, 1.0), (1.0, 0.2)])
def test_two_levels_hold_the_truth(seed_spread: float, picture_spread: float) -> None:
    chance, inside = np.random.default_rng(1), 0
    for _ in range(400):
        data = (
            seed_spread * chance.normal(size=(5, 1))
            + picture_spread * chance.normal(size=(1, 40))
            + 0.5 * chance.normal(size=(5, 40))
        )
        inside += (found := two_level_interval(data)).low <= 0 <= found.high
    assert 0.92 <= inside / 400 <= 0.99
    assert np.isnan(two_level_interval(data[:1]).low)


def test_interaction_is_welchs() -> None:
    chance = np.random.default_rng(0)
    differences, large = chance.normal(0, 1, 200), np.arange(200) < 60
    differences[large] += 0.8
    found = interaction_interval(differences, large, ~large)
    expected = stats.ttest_ind(differences[large], differences[~large], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 60)
    assert found.low > 0


def test_interaction_within_a_picture_ignores_what_stays_with_it() -> None:
    chance = np.random.default_rng(0)
    areas = np.array([0.05, 0.1, 0.2, 0.4])
    differences = 5 * chance.normal(size=(80, 1)) + 0.1 * np.log2(areas) / 2 + 0.01 * chance.normal(size=(80, 4))
    differences[0, 1] = np.nan
    found = within_interaction_interval(differences, areas)
    assert found.mean == pytest.approx(0.1, abs=0.005)
    assert found.low > 0.09
    assert within_interaction_interval(differences[:, :1], areas[:1]).n == 0


# --- Tests -----------------------------------------------------------------------------------------------------------


def test_tests_are_scipys() -> None:
    chance = np.random.default_rng(0)
    first = chance.normal(size=60)
    second = first + chance.normal(0.3, 1, 60)
    second[:5] = first[:5]
    assert wilcoxon(first, second).p == stats.wilcoxon(second, first, zero_method="pratt").pvalue
    assert sign_flip(first, second).p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)
    hits = chance.random((2, 60)) < [[0.4], [0.6]]
    only = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
    assert mcnemar(*hits).p == stats.binomtest(only[0], sum(only)).pvalue
    assert mcnemar(hits[0], hits[0]).p == 1
    assert wilcoxon(first, first).p == 1
    with pytest.raises(ValueError, match="paired values are of the same pictures"):
        difference_interval(first, second[:3])


def test_a_planted_difference_is_found_and_a_null_is_not() -> None:
    chance = np.random.default_rng(0)
    found = {"interval": 0, "wilcoxon": 0, "sign_flip": 0}
    planted = dict(found)
    for number in range(200):
        first, noise = chance.normal(size=60), chance.normal(size=60)
        for shift, into in ((0.0, found), (0.6, planted)):
            second = first + noise + shift
            interval = difference_interval(first, second, seed=number)
            into["interval"] += not interval.low <= 0 <= interval.high
            into["wilcoxon"] += wilcoxon(first, second).p < 0.05
            into["sign_flip"] += sign_flip(first, second, resamples=199, seed=number).p <= 0.05
    for name in found:
        assert 0.01 <= found[name] / 200 <= 0.10, name
        assert planted[name] / 200 >= 0.97, name


def test_holm_by_hand_and_by_simulation() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")})
    assert {name: round(p, 10) for name, p in adjusted.items() if name != "d"} == {"a": 0.03, "b": 0.06, "c": 0.06}
    assert np.isnan(adjusted["d"])
    chance = np.random.default_rng(0)
    false = sum(min(holm(dict(enumerate(chance.random(20)))).values()) < 0.05 for _ in range(1000))  # type: ignore[arg-type]
    assert 0.03 <= false / 1000 <= 0.07


# --- The decision table ----------------------------------------------------------------------------------------------


def _interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 500)


GOOD = {"difference": _interval(0.03, 0.07), "interaction": _interval(0.01, 0.05), "leakage": _interval(-0.01, 0.01)}


def test_a_supported_claim() -> None:
    found = decide(GOOD)
    assert found.verdict == "supported"
    assert found.sentence == (
        "“Res2Net covers more of large objects” is supported: the gain for large objects is +5.0 points (95% interval "
        "+3.0 to +7.0, n = 500); how much more is gained for large than for small objects is +3.0 points (95% interval "
        "+1.0 to +5.0, n = 500); the change in leakage is +0.0 points (95% interval −1.0 to +1.0, n = 500)."
    )


@pytest.mark.parametrize(
    ("name", "interval", "says"),
    [
        ("difference", _interval(-0.01, 0.015), "the gain for large objects is +0.2 points"),
        ("difference", _interval(0.005, 0.015), "+1.0 points (95% interval +0.5 to +1.5"),
        ("interaction", _interval(-0.05, -0.01), "for small objects is −3.0 points"),
        ("leakage", _interval(0.03, 0.06), "the change in leakage is +4.5 points"),
        ("baseline", _interval(-0.05, -0.01), "the lead over the centre-Gaussian is −3.0 points"),
        ("control", _interval(-0.05, 0.0), "48w2s"),
    ],
)
def test_a_refuted_claim(name: str, interval: Interval, says: str) -> None:
    found = decide({**GOOD, name: interval})
    assert found.verdict == "not supported"
    assert found.outcomes[name] == "not supported"
    assert "is not supported: " in found.sentence
    assert says in found.sentence


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("difference", _interval(-0.01, 0.05)),  # holds 0, and two points
        ("difference", _interval(0.001, 0.03)),  # above 0, but less than two points as far as known
        ("interaction", _interval(-0.01, 0.05)),
        ("leakage", _interval(-0.01, 0.03)),
        ("entropy_matched", Interval(0.05, float("nan"), float("nan"), 2)),
    ],
)
def test_an_undecided_claim(name: str, interval: Interval) -> None:
    found = decide({**GOOD, name: interval}, claim="It sees more")
    assert found.verdict == "undecided"
    assert found.sentence.startswith(f"“It sees more” is undecided: {CRITERIA[name].what} is ")


def test_what_is_missing_leaves_a_claim_open() -> None:
    found = decide({"difference": GOOD["difference"]})
    assert found.verdict == "undecided"
    assert "the change in leakage was not measured" in found.sentence
    with pytest.raises(ValueError, match="no criterion 'gain'; there are difference, interaction"):
        decide({"gain": GOOD["difference"]})
