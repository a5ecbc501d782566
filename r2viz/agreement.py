"""How far two maps of one picture agree, as numbers that do not depend on either map's unit. NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AREAS = (0.05, 0.2, 0.5)
LONGEST = 224
"""Maps are compared on every k-th pixel, so that neither side has more than so many: they are smoother than that."""


@dataclass(frozen=True)
class Agreement:
    """Two maps of one picture against each other, over the pixels that both networks saw.

    Attributes:
        spearman: rank correlation, -1 to 1 (ties share their mean rank); NaN for a constant map.
        ssim: structural similarity of the maps, each divided by its own maximum; at most 1.
        overlap: by area, the intersection over union of the two sets of strongest pixels that cover this share of the
            picture. Two unrelated maps of one area a give about a / (2 - a).
    """

    spearman: float
    ssim: float
    overlap: dict[float, float]

    def as_dict(self) -> dict[str, float | dict[str, float] | None]:
        """JSON-able; a NaN becomes None."""
        return {
            "spearman": _finite(self.spearman),
            "ssim": _finite(self.ssim),
            "overlap": {f"{area:g}": value for area, value in self.overlap.items()},
        }

    def __str__(self) -> str:
        return (
            f"rank correlation {self.spearman:.2f}, SSIM {self.ssim:.2f}, "
            f"overlap of the top {100 * AREAS[1]:g} % {self.overlap[AREAS[1]]:.2f}"
        )


def agreement(first: np.ndarray, second: np.ndarray, *, areas: Sequence[float] = AREAS) -> Agreement:
    """Compare two maps `(H, W)` that lie over one picture, NaN where a network saw nothing.

    Raises:
        ValueError: the shapes differ, or nothing was seen by both.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"maps of one picture have one shape (H, W); these have {first.shape} and {second.shape}")
    step = -(-max(first.shape) // LONGEST)
    first, second = first[::step, ::step].astype(np.float64), second[::step, ::step].astype(np.float64)
    seen = np.isfinite(first) & np.isfinite(second)
    if not seen.any():
        raise ValueError("no pixel was seen by both networks")
    one, other = first[seen], second[seen]
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    return Agreement(
        spearman=float("nan") if constant else rank_correlation(one, other),
        ssim=structural_similarity(_by_maximum(first, seen), _by_maximum(second, seen), seen),
        overlap={area: equal_area_overlap(one, other, area) for area in areas},
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors, ties with their mean rank; neither may be constant."""
    # scipy.stats.spearmanr gives the same, and takes longer to import than a picture takes to explain.
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def structural_similarity(first: np.ndarray, second: np.ndarray, seen: np.ndarray) -> float:
    """Mean structural similarity of two maps in 0..1, over the pixels of `seen`.

    Gaussian window of σ = 1.5 pixels, K1 = 0.01, K2 = 0.03, population moments: Wang et al. 2004, equation 13. Where
    the window reaches past the seen pixels, it is renormalised to those.
    """
    import cv2  # not for those who only read records

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_CONSTANT)

    inside = seen.astype(np.float64)
    weight = np.maximum(blur(inside), 1e-12)
    x, y = np.where(seen, first, 0.0), np.where(seen, second, 0.0)
    mean_x, mean_y = blur(x) / weight, blur(y) / weight
    variance_x = np.maximum(blur(x * x) / weight - mean_x**2, 0)
    variance_y = np.maximum(blur(y * y) / weight - mean_y**2, 0)
    covariance = blur(x * y) / weight - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(similarity[seen].mean())


def equal_area_overlap(first: np.ndarray, second: np.ndarray, area: float) -> float:
    """Intersection over union of the strongest `area` of two maps `(P,)`: both sets are equally large by construction.

    Pixels tied at the threshold (a map's zeros, say) belong to the set in equal parts, so that their order in memory
    does not matter: `Σ min(a, b) / Σ max(a, b)` over memberships in 0..1.
    """
    if not 0 < area < 1:
        raise ValueError(f"an area is a share of the picture between 0 and 1, not {area}")
    one, other = _membership(first, area), _membership(second, area)
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _membership(values: np.ndarray, area: float) -> np.ndarray:
    wanted = area * values.size
    threshold = np.partition(values, values.size - max(1, int(np.ceil(wanted))))[
        values.size - max(1, int(np.ceil(wanted)))
    ]
    above, tied = values > threshold, values == threshold
    return above + tied * (wanted - above.sum()) / tied.sum()


def _by_maximum(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    top = values[seen].max()
    return values / top if top > 0 else values


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
