"""Means with intervals: over pictures by bootstrap, over a few seeds by Student's t, over both in two levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `n` values went into it."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.mean:.3g} (n = {self.n}, no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n})"

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON-able; what is not finite becomes None."""
        values = {"mean": self.mean, "low": self.low, "high": self.high}
        return {
            **{name: value if np.isfinite(value) else None for name, value in values.items()},
            "n": self.n,
            "level": self.level,
        }


def mean_interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """The mean of independent values `(n,)` and its bias-corrected and accelerated bootstrap interval.

    NaNs are left out. Fewer than three values, or equal ones, have no interval beyond themselves (NaN, or the mean).

    Source: Efron 1987, "Better Bootstrap Confidence Intervals", equations 2.3 and 4.4; the acceleration from the
    jackknife. `scipy.stats.bootstrap(method="BCa")` is the same with other random numbers.
    """
    data = np.asarray(values, dtype=np.float64).ravel()
    data = data[np.isfinite(data)]
    count = data.size
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, level)
    mean = float(data.mean())
    if np.ptp(data) == 0:
        return Interval(mean, *((mean, mean) if count > 2 else (float("nan"), float("nan"))), count, level)
    if count < 3:
        return Interval(mean, float("nan"), float("nan"), count, level)
    from scipy.special import ndtr, ndtri

    means = _resampled_means(data, resamples, seed)
    below = (np.sum(means < mean) + np.sum(means <= mean)) / (2 * resamples)
    bias = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    spread = data - mean
    acceleration = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    tails = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = bias + (bias + tails) / (1 - acceleration * (bias + tails))
    low, high = np.percentile(means, 100 * ndtr(shifted))
    return Interval(mean, float(low), float(high), count, level)


def _resampled_means(data: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws with replacement; memory stays below some ten megabytes."""
    chance = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // data.size)
    parts = []
    for start in range(0, resamples, at_once):
        drawn = chance.integers(0, data.size, (min(at_once, resamples - start), data.size), dtype=np.int32)
        parts.append(data[drawn].mean(axis=1))
    return np.concatenate(parts)


def seed_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """The mean over training seeds `(s,)` and its t-interval; one seed has none.

    A bootstrap over so few covers 74 % instead of 95 % at 3 seeds, and 83 % at 5. NaNs are left out.
    """
    data = np.asarray(values, dtype=np.float64).ravel()
    data = data[np.isfinite(data)]
    mean = float(data.mean()) if data.size else float("nan")
    if data.size < 2:
        return Interval(mean, float("nan"), float("nan"), data.size, level)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, data.size - 1) * data.std(ddof=1) / np.sqrt(data.size))
    return Interval(mean, mean - half, mean + half, data.size, level)


def two_level_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """The mean over seeds and pictures `(s, n)`: what another training *and* other pictures could have given.

    Seeds and pictures are crossed (every seed sees the same pictures), so the variance of the mean is that of the
    seeds' means plus that of the pictures' means, minus that of what is left, which both contain. Degrees of freedom
    after Satterthwaite, never below those of the seeds. NaN where a picture has no value leaves that picture out.

    Source: Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111, section 4; Satterthwaite 1946.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[:, np.isfinite(data).all(axis=0)]
    seeds, pictures = data.shape
    mean = float(data.mean()) if data.size else float("nan")
    if seeds < 2 or pictures < 2:
        return Interval(mean, float("nan"), float("nan"), pictures, level)
    from scipy.stats import t

    rows, columns = data.mean(axis=1), data.mean(axis=0)
    left = data - rows[:, None] - columns + mean
    parts = np.array([rows.var(ddof=1) / seeds, columns.var(ddof=1) / pictures])
    common = float((left**2).sum() / ((seeds - 1) * (pictures - 1)) / (seeds * pictures))
    variance = max(float(parts.sum()) - common, float(parts.max()))
    if variance == 0:
        return Interval(mean, mean, mean, pictures, level)
    freedom = variance**2 / float((parts**2 / np.array([seeds - 1, pictures - 1])).sum())
    half = float(t.ppf((1 + level) / 2, max(freedom, seeds - 1)) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half, pictures, level)
