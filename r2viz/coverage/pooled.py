"""Measures of a whole data set: a threshold is chosen for all pictures, or their pixels are pooled.

Every function takes `counts` `(R, N)`, how often each picture is drawn in each of R resamples, and then gives `(R,)`:
one matrix product, with thresholds chosen anew in every resample unless held-out rows choose them once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r2viz.coverage.rows import Rows

DELTAS = (0.3, 0.5, 0.7)


@dataclass(frozen=True, eq=False)
class Curve:
    """Means over pictures at every threshold `(n,)`, shares of the map's maximum."""

    thresholds: np.ndarray
    coverage: np.ndarray
    spill: np.ndarray
    iou: np.ndarray


def max_box_acc(
    rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None, delta: float = 0.5
) -> np.ndarray:
    """Share of pictures whose largest contour's box reaches IoU `delta`, at the threshold best for the data set.

    With `held_out`, at the threshold best for those. Source: Choe et al. 2020, arXiv 2001.07437, section 3.3.
    """
    hits = _kept(rows, "largest_iou") >= delta
    return _at_best(hits, counts, None if held_out is None else _kept(held_out, "largest_iou") >= delta)


def max_box_acc_v2(rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None) -> np.ndarray:
    """The same of any contour's box, averaged over δ = 0.3, 0.5, 0.7, each at its own best threshold.

    Source: Choe et al. 2020, arXiv 2007.04178, section 3.3.
    """
    ious, other = _kept(rows, "box_iou"), None if held_out is None else _kept(held_out, "box_iou")
    found = [_at_best(ious >= delta, counts, None if other is None else other >= delta) for delta in DELTAS]
    return np.mean(found, axis=0)


def gt_known_loc(rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None) -> np.ndarray:
    """Share of pictures whose box, for the true class, reaches IoU 0.5: MaxBoxAcc at δ = 0.5 under its older name."""
    return max_box_acc(rows, counts=counts, held_out=held_out)


def top1_loc(rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None) -> np.ndarray:
    """The same, counted only where the network's first class is right, too.

    Raises:
        ValueError: rows do not say which pictures were classified rightly.
    """
    hits = (_kept(rows, "largest_iou") >= 0.5) & _kept(rows, "correct")[:, None].astype(bool)
    other = None if held_out is None else (_kept(held_out, "largest_iou") >= 0.5)
    return _at_best(hits, counts, other)


def pxap(rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None) -> np.ndarray:
    """Average precision of the pixels of all pictures together: `Σ P_k (R_k − R_{k−1})` over thresholds.

    Pixels at zero, which no threshold is below, come last. `held_out` is not used: no threshold is chosen.

    Source: Choe et al. 2020, arXiv 2001.07437, section 3.3.
    """
    hits, misses = (np.cumsum(_summed(_kept(rows, name), counts)[:, ::-1], axis=1) for name in ("inside", "outside"))
    precision = hits / np.maximum(hits + misses, 1)
    gained = np.diff(hits, axis=1, prepend=0) / hits[:, -1:]
    return _shaped((precision * gained).sum(axis=1), counts)


def threshold_iou(rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None) -> np.ndarray:
    """Mean IoU of object and level set at one threshold for all pictures; it belongs to be chosen on `held_out`."""
    return _at_best(_ious(rows), counts, None if held_out is None else _ious(held_out))


def best_threshold(rows: Rows) -> float:
    """The share of its maximum above which a map fits the object best, in mean IoU."""
    ious = _ious(rows)
    return int(ious.mean(axis=0).argmax()) / ious.shape[1]


def coverage_curve(rows: Rows) -> Curve:
    """At every threshold, means of the object's share above it, of the rest's share above it, and of the IoU."""
    inside, outside = (_above(_kept(rows, name)) for name in ("inside", "outside"))
    thresholds = np.arange(inside.shape[1]) / inside.shape[1]
    objects, rests = (_kept(rows, name).sum(axis=1, dtype=np.int64)[:, None] for name in ("inside", "outside"))
    return Curve(thresholds, _mean_share(inside, objects), _mean_share(outside, rests), _ious(rows).mean(axis=0))


def _mean_share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    known = whole[:, 0] > 0
    return (part[known] / whole[known]).mean(axis=0) if known.any() else np.full(part.shape[1], np.nan)


def _kept(rows: Rows, name: str) -> np.ndarray:
    column = getattr(rows, name)
    if column is None:
        raise ValueError(f"the rows keep no {name}; measure them with what needs it (r2viz.coverage.MEASURES)")
    return column


def _above(histogram: np.ndarray) -> np.ndarray:
    """Pixels above each threshold: `(N, n + 1)` → `(N, n)`."""
    return np.cumsum(histogram[:, :0:-1], axis=1, dtype=np.int64)[:, ::-1]


def _ious(rows: Rows) -> np.ndarray:
    inside, outside = _above(_kept(rows, "inside")), _above(_kept(rows, "outside"))
    object_ = _kept(rows, "inside").sum(axis=1, dtype=np.int64)[:, None]
    return inside / np.maximum(object_ + outside, 1)


def _at_best(values: np.ndarray, counts: np.ndarray | None, held_out: np.ndarray | None) -> np.ndarray:
    means = _summed(values, counts) / (len(values) if counts is None else counts.sum(axis=1, keepdims=True))
    best = means.max(axis=1) if held_out is None else means[:, int(held_out.mean(axis=0).argmax())]
    return _shaped(best, counts)


def _summed(values: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    if counts is None:
        return values.sum(axis=0, keepdims=True, dtype=np.float64)
    return counts @ values.astype(counts.dtype)


def _shaped(values: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    return values if counts is not None else values[0]
