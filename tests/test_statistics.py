"""Intervals: against SciPy's, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from r2viz.statistics import Interval, mean_interval


@pytest.mark.parametrize("draw", ["normal", "exponential", "bernoulli"])
def test_equals_scipys_bca(draw: str) -> None:
    chance = np.random.default_rng(1)
    data = {
        "normal": chance.normal(3, 2, 60),
        "exponential": chance.exponential(1, 60),
        "bernoulli": (chance.random(60) < 0.2).astype(float),
    }[draw]
    found = mean_interval(data)
    expected = stats.bootstrap((data,), np.mean, n_resamples=9999, method="BCa", rng=0).confidence_interval
    width = expected.high - expected.low
    assert found.mean == pytest.approx(data.mean())
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    inside = 0
    for number in range(300):
        found = mean_interval(chance.normal(0, 1, 40), resamples=999, seed=number)
        inside += found.low <= 0 <= found.high
    assert 0.90 <= inside / 300 <= 0.98


def test_large_data_is_drawn_in_parts_and_alike() -> None:
    data = np.random.default_rng(0).random(50_000)
    found = mean_interval(data, resamples=199)
    error = data.std() / np.sqrt(data.size)
    assert found.low == pytest.approx(data.mean() - 1.96 * error, abs=0.6 * error)
    assert found.high == pytest.approx(data.mean() + 1.96 * error, abs=0.6 * error)
    assert found == mean_interval(data, resamples=199)


def test_what_has_no_interval_says_so() -> None:
    assert str(mean_interval(np.array([1.0, 2.0]))) == "1.5 (n = 2, no interval)"
    assert mean_interval(np.array([])).n == 0
    assert mean_interval(np.array([np.nan, np.inf])).as_dict()["mean"] is None
    assert mean_interval(np.full(5, 2.0)) == Interval(2.0, 2.0, 2.0, 5)
    assert mean_interval(np.array([1.0, np.nan, 2.0, 3.0])).n == 3
