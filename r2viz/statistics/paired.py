"""Two networks on the same pictures: differences, tests of them, interactions with size, and corrections for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from r2viz.statistics.intervals import Interval, mean_interval

SIZES = {"≤ 5 %": (0.0, 0.05), "5-25 %": (0.05, 0.25), "25-50 %": (0.25, 0.5), "50-80 %": (0.5, 0.8)}
"""Strata by the object's share of the picture, lower limit out, upper in; beyond 80 % chance leaves nothing to gain."""

COCO = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's strata by the object's area in pixels of the original picture."""


@dataclass(frozen=True)
class Test:
    """One test of no difference, two-sided: what it looks at, its statistic, its p-value, how many pictures it used."""

    __test__ = False  # pytest takes it for a test otherwise

    name: str
    statistic: float
    p: float
    n: int


def strata_of(sizes: np.ndarray, limits: Mapping[str, tuple[float, float]] = SIZES) -> dict[str, np.ndarray]:
    """Which of the objects `(N,)` belong to each stratum, as boolean `(N,)`: above the lower limit, up to the upper."""
    return {name: (sizes > low) & (sizes <= high) for name, (low, high) in limits.items()}


def difference_interval(first: np.ndarray, second: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of `second − first`, picture by picture `(N,)`; a picture that one of them lacks is left out.

    With several seeds `(s, N)` give each network's mean over seeds, or the difference to `two_level_interval`.

    Raises:
        ValueError: not the same pictures.
    """
    return mean_interval(_differences(first, second), level=level, seed=seed)


def interaction_interval(
    differences: np.ndarray, large: np.ndarray, small: np.ndarray, *, level: float = 0.95
) -> Interval:
    """How much larger the difference between networks is for large objects than for small ones, over pictures.

    Strata hold different pictures, so the two means are independent: Welch's t-interval of their difference; `n` is the
    smaller number.

    Args:
        differences: second network minus first, `(N,)`.
        large: boolean `(N,)`; `small` likewise.
        small: see `large`.
        level: of confidence.
    """
    known = np.isfinite(differences)
    groups = [differences[part & known] for part in (large, small)]
    count = min(len(group) for group in groups)
    means = [float(group.mean()) if len(group) else float("nan") for group in groups]
    if count < 2:
        return Interval(means[0] - means[1], float("nan"), float("nan"), count, level)
    from scipy.stats import ttest_ind

    if np.ptp(groups[0]) == 0 and np.ptp(groups[1]) == 0:
        return Interval(means[0] - means[1], means[0] - means[1], means[0] - means[1], count, level)
    found = ttest_ind(*groups, equal_var=False).confidence_interval(level)
    return Interval(means[0] - means[1], float(found.low), float(found.high), count, level)


def within_interaction_interval(
    differences: np.ndarray, sizes: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """The same object shown at several sizes: by how much the difference grows as its side doubles.

    In each picture the differences are regressed on log2 of the side; pictures' slopes are averaged. Nothing that
    stays with the picture (its class, where it was taken) can make this interaction.

    Args:
        differences: second network minus first, `(N, k)`; NaN where a size was not shown.
        sizes: the object's area, as a share or in pixels, `(N, k)` or `(k,)`.
        level: of confidence.
        seed: of the bootstrap over pictures.
    """
    sides = np.broadcast_to(0.5 * np.log2(sizes), differences.shape)
    known = np.isfinite(differences) & np.isfinite(sides)
    number = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = np.where(known, sides - np.where(known, sides, 0).sum(axis=1, keepdims=True) / number, 0)
    spread = (centred**2).sum(axis=1)
    slopes = (centred * np.where(known, differences, 0)).sum(axis=1) / np.where(spread > 1e-12, spread, np.nan)
    return mean_interval(slopes, level=level, seed=seed)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values of a family, adjusted so that the chance of any false finding stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure". A NaN stays one and does not count.
    """
    ordered = sorted((name for name in p if np.isfinite(p[name])), key=lambda name: p[name])
    adjusted = {name: float("nan") for name in p}
    least = 0.0
    for place, name in enumerate(ordered):
        least = min(1.0, max(least, (len(ordered) - place) * p[name]))
        adjusted[name] = least
    return adjusted


def wilcoxon(first: np.ndarray, second: np.ndarray) -> Test:
    """Signed ranks of the differences; those of zero are ranked and then left out (Pratt 1959)."""
    from scipy import stats

    differences = _differences(first, second)
    if not differences.any():
        return Test("Wilcoxon signed-rank (Pratt)", 0.0, 1.0, differences.size)
    found = stats.wilcoxon(differences, zero_method="pratt")
    return Test("Wilcoxon signed-rank (Pratt)", float(found.statistic), float(found.pvalue), differences.size)


def sign_flip(first: np.ndarray, second: np.ndarray, *, resamples: int = 9999, seed: int = 0) -> Test:
    """The mean difference against those where networks are swapped at random, picture by picture."""
    from scipy import stats

    differences = _differences(first, second)
    if differences.size == 0:
        return Test("sign-flip permutation", float("nan"), float("nan"), 0)

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return values.mean(axis=axis)

    found = stats.permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        batch=max(1, 2_000_000 // differences.size),
        random_state=np.random.default_rng(seed),
    )
    return Test("sign-flip permutation", float(found.statistic), float(found.pvalue), differences.size)


def mcnemar(first: np.ndarray, second: np.ndarray) -> Test:
    """Hits of two networks `(N,)`, True or False: whether those that only one has are split evenly (exact binomial)."""
    from scipy import stats

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only = int((second & ~first).sum()), int((first & ~second).sum())
    p = 1.0 if sum(only) == 0 else float(stats.binomtest(only[0], sum(only)).pvalue)
    return Test("exact McNemar", float(only[0] - only[1]), p, first.size)


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values are of the same pictures; these have {first.shape} and {second.shape}")
    differences = second - first
    return differences[np.isfinite(differences)]
