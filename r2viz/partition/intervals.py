"""Intervals over pictures for many splits at once: bootstrap of means, jackknife over groups of pictures for the rest.

Positions of one picture are not independent, so no interval here counts them. What is a mean of one number per picture
has the bootstrap interval of `r2viz.statistics.mean_interval`. What is not (eigenvalues, shares of dead channels, CKA)
has the jackknife's: all is computed again without each of `GROUPS` groups of pictures, and the interval is Student's
with `GROUPS - 1` degrees of freedom (Shao & Tu 1995, "The Jackknife and Bootstrap", section 2.3). A Poisson bootstrap
would need a hundred covariances per split instead of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from r2viz.statistics import Interval, mean_interval

GROUPS = 8
"""Groups of pictures; picture number i belongs to group i mod 8, on every machine and in every order."""

_LEVEL = 0.95


def mean_intervals(values: np.ndarray, *, resamples: int = 9999, seed: int = 0) -> list[Interval]:
    """`mean_interval` of each column of `(n, k)`: the same draws for all, one matrix product instead of k passes."""
    data = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(data)
    found: list[Interval | None] = [None] * data.shape[1]
    patterns, which = np.unique(finite, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == number)
        some = data[rows][:, columns]
        plain = np.ptp(some, axis=0) > 0 if len(some) > 2 else np.zeros(len(columns), bool)
        for column in columns[~plain]:
            found[column] = mean_interval(data[:, column], level=_LEVEL, resamples=resamples, seed=seed)
        for column, interval in zip(columns[plain], _bootstrapped(some[:, plain], resamples, seed), strict=True):
            found[column] = interval
    return [interval for interval in found if interval is not None]


def _bootstrapped(data: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    if data.shape[1] == 0:
        return []
    from scipy.special import ndtr, ndtri

    count = len(data)
    chance = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // count)
    means = np.empty((resamples, data.shape[1]))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = chance.integers(0, count, (rows, count), dtype=np.int32) + np.arange(rows)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count) / count
        means[start : start + rows] = weights @ data
    mean = data.mean(axis=0)
    below = ((means < mean).sum(axis=0) + (means <= mean).sum(axis=0)) / (2 * resamples)
    bias = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    spread = data - mean
    acceleration = (spread**3).sum(axis=0) / (6 * (spread**2).sum(axis=0) ** 1.5)
    tails = ndtri(np.array([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))[:, None]
    levels = 100 * ndtr(bias + (bias + tails) / (1 - acceleration * (bias + tails)))
    found = []
    for at in range(data.shape[1]):
        low, high = np.percentile(means[:, at], levels[:, at])
        found.append(Interval(float(mean[at]), float(low), float(high), count, _LEVEL))
    return found


def jackknifed(statistic: Callable[[np.ndarray], np.ndarray], pictures: Sequence[int]) -> tuple[np.ndarray, ...]:
    """A statistic of all groups, and its interval.

    Args:
        statistic: from the groups that count, bool `(groups,)`, to numbers of any shape.
        pictures: in each group.

    Returns:
        Value, low and high, of the statistic's shape; the ends are NaN where fewer than three groups have pictures.
    """
    present = np.asarray(pictures) > 0
    value = np.asarray(statistic(present), dtype=np.float64)
    groups = np.flatnonzero(present)
    if len(groups) < 3:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    from scipy.special import stdtrit

    without = []
    for group in groups:
        rest = present.copy()
        rest[group] = False
        without.append(statistic(rest))
    apart = np.asarray(without) - np.mean(without, axis=0)
    error = np.sqrt((len(groups) - 1) / len(groups) * (apart**2).sum(axis=0))
    reach = stdtrit(len(groups) - 1, (1 + _LEVEL) / 2) * error
    return value, value - reach, value + reach
