"""Bootstrap of many means at once: how often each picture is drawn, times the data, is one matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from r2viz.statistics.intervals import Interval

RESAMPLES = 10_000
_AT_ONCE = 4_000_000


def resample_counts(pictures: int, resamples: int = RESAMPLES, *, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each picture is drawn: float64 `(r, N)` in parts that add up to `resamples` rows; rows sum to N."""
    chance = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // pictures)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = chance.integers(0, pictures, (rows, pictures), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * pictures
        yield np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures).astype(np.float64)


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], pictures: int, resamples: int = RESAMPLES, *, seed: int = 0
) -> np.ndarray:
    """A statistic of the counts `(r, N) → (r, …)` in every resample: `(resamples, …)`.

    What a data set has as a whole (PxAP, MaxBoxAccV2) takes counts, see `r2viz.coverage.data_set_value`. The same
    seed and number of pictures give the same draws, so differences of two such arrays are paired.
    """
    return np.concatenate([statistic(counts) for counts in resample_counts(pictures, resamples, seed=seed)])


def percentile_interval(value: float, draws: np.ndarray, *, n: int, level: float = 0.95) -> Interval:
    """A statistic with the percentiles of its resamples `(R,)`."""
    low, high = np.nanpercentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(value), float(low), float(high), n, level)


def stratified_intervals(
    values: Mapping[str, np.ndarray],
    strata: Mapping[str, np.ndarray],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """The mean of every measure in every stratum, with its bias-corrected and accelerated interval.

    Pictures are drawn from the whole, so a stratum's size varies with the draw, and all means of a draw belong
    together. NaNs are left out; fewer than three values have no interval, equal ones none beyond themselves.

    Args:
        values: measure → `(N,)`; for a paired comparison, the difference picture by picture.
        strata: stratum → boolean `(N,)`; may overlap, need not cover all.
        level: of confidence.
        resamples: how many.
        seed: of the draws.

    Returns:
        `{(measure, stratum): Interval}`.

    Source: Efron 1987, equations 2.3 and 4.4, as `mean_interval` and `scipy.stats.bootstrap`.
    """
    keys = [(measure, stratum) for measure in values for stratum in strata]
    if not keys:
        return {}
    data = np.stack(
        [np.where(strata[stratum], values[measure], np.nan).astype(np.float64) for measure, stratum in keys]
    )
    used = np.isfinite(data)
    counts = used.sum(axis=1)
    sums = np.where(used, data, 0)
    # Measures share the pictures that they know, mostly: each such set is summed once.
    members, which = np.unique(used, axis=0, return_inverse=True)
    columns = np.concatenate([sums, members]).T.astype(np.float64)

    def means(drawn: np.ndarray) -> np.ndarray:
        product = drawn @ columns
        # A draw without any picture of a stratum has no mean; with three pictures of it one draw in twenty is such.
        weights = product[:, len(keys) :][:, which.ravel()]
        return product[:, : len(keys)] / np.where(weights > 0, weights, np.nan)

    draws = resampled(means, data.shape[1], resamples, seed=seed)
    return {
        key: _accelerated(data[place][used[place]], draws[:, place], int(counts[place]), level)
        for place, key in enumerate(keys)
    }


def _accelerated(data: np.ndarray, draws: np.ndarray, count: int, level: float) -> Interval:
    mean = float(data.mean()) if count else float("nan")
    if count < 3:
        return Interval(mean, float("nan"), float("nan"), count, level)
    if np.ptp(data) == 0:
        return Interval(mean, mean, mean, count, level)
    from scipy.special import ndtr, ndtri

    draws = draws[np.isfinite(draws)]
    below = (np.sum(draws < mean) + np.sum(draws <= mean)) / (2 * len(draws))
    bias = ndtri(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    spread = data - mean
    acceleration = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    tails = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = bias + (bias + tails) / (1 - acceleration * (bias + tails))
    low, high = np.percentile(draws, 100 * ndtr(shifted))
    return Interval(mean, float(low), float(high), count, level)
