"""Boxes around what a map holds above each of many thresholds, and how well they fit the object's box.

The published way looks for contours anew at every threshold. Here most thresholds are skipped: from one to the next
the pieces of a level set only grow, unless a piece is born, two meet, or a hole opens or closes, and all of that
happens at pixels that can be told by their eight neighbours alone (the critical pixels of discrete Morse theory).
Between such thresholds the box of a piece or hole is read off its largest value in every row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

PixelBox = tuple[int, int, int, int]
THRESHOLDS = 100
_WORTH = 3
"""To follow a piece through a run of thresholds takes about as long as to find all contours at so many of them."""


@dataclass(frozen=True, eq=False)
class LevelBoxes:
    """The boxes of a map at every threshold.

    Attributes:
        boxes: int `(n, 4)`, (x0, y0, x1, y1) in the published convention: x1 and y1 one past the last pixel, but never
            past the picture's last.
        level: int `(n,)`, the level set that each belongs to, in no order.
        of_threshold: int `(count,)`, the level set of each threshold; several thresholds may share one.
    """

    boxes: np.ndarray
    level: np.ndarray
    of_threshold: np.ndarray

    def best_iou(self, truths: Sequence[PixelBox]) -> np.ndarray:
        """At each threshold, the largest IoU of any box with any of the object's: `(count,)`, 0 where there is none."""
        best = np.zeros(len(self.of_threshold))
        if len(self.boxes):
            np.maximum.at(best, self.level, box_iou(self.boxes, np.asarray(truths)).max(axis=1))
        return best[self.of_threshold]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes `(n, 4)` and `(m, 4)` as `(n, m)`, both corners counted as inside, as published."""
    one, other = first.T[:, :, None], second.T[:, None]
    width = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0]) + 1
    height = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1]) + 1
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return common / (areas[0] + areas[1] - common)


def pixel_box(mask: np.ndarray) -> PixelBox:
    """The box around a mask that marks something, in the convention of `LevelBoxes`."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    right, bottom = min(int(columns[-1]) + 1, width - 1), min(int(rows[-1]) + 1, height - 1)
    return int(columns[0]), int(rows[0]), right, bottom


def level_boxes(
    map_: np.ndarray,
    *,
    count: int = THRESHOLDS,
    largest: bool = False,
    reach: tuple[Sequence[PixelBox], float] | None = None,
) -> LevelBoxes:
    """The boxes of all contours, or of the largest, at the thresholds `k / count` of the map's maximum.

    As published: the map as `uint8`, above `int(k / count · maximum)`; every contour has a box, those of holes too,
    one pixel beyond the hole on each side; the largest contour is the one whose polygon has the largest area.

    Args:
        map_: `(H, W)`, non-negative; where it is NaN it is never above a threshold. A constant map has no boxes.
        count: how many thresholds.
        largest: only the largest contour of each threshold (MaxBoxAcc) instead of all (MaxBoxAccV2).
        reach: the object's boxes and an IoU: boxes that do not reach it may be left out, which is much faster.

    Source: Choe et al. 2020, arXiv 2001.07437, sections 3.3 and 4.1 and the authors' evaluation.
    """
    import cv2  # not for those who only read records

    values: np.ndarray = np.array(map_, dtype=np.float32)
    cv2.patchNaNs(values, 0)
    highest = values.max()
    if values.min() == highest:
        return LevelBoxes(
            np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(count, dtype=np.int64)
        )
    values /= highest
    image = (values * np.float32(255)).astype(np.uint8)
    above, same, table = _grey_thresholds(count)
    ranks = cv2.LUT(image, table)
    # Beyond the box of the lowest level set nothing is ever above a threshold.
    x, y, width, height = cv2.boundingRect(ranks)
    ranks, values = (np.ascontiguousarray(part[y : y + height, x : x + width]) for part in (ranks, values))
    changes = np.bincount(ranks[_critical(values).nonzero()], minlength=len(above) + 1) > 0
    # A run of thresholds ends below ranks that hold a critical pixel: there pieces or holes change.
    tops = np.flatnonzero(changes[1:] | (np.arange(1, len(above) + 1) == ranks.max()))
    whole = _sides(ranks, np.arange(len(above)))
    if reach is not None:
        # Level sets are nested: what cannot reach the object's boxes now will not at any higher threshold.
        reach = [tuple(np.subtract(truth, (x, y, x, y)).tolist()) for truth in reach[0]], reach[1]
        within = _reaching(whole, reach)
        last = int(np.flatnonzero(within)[-1]) if within.any() else -1
        tops = np.append(tops[tops < last], last)
    boxes: list[np.ndarray] = []
    levels: list[np.ndarray] = []
    for low, high in zip(np.concatenate([[0], tops[:-1] + 1]).tolist(), tops.tolist(), strict=True):
        run = np.arange(low, high + 1)
        if not run.size:
            break
        contours, is_hole = _contours(ranks, whole[low], low)
        if len(contours) == 1:
            boxes.append(whole[low : high + 1])
            levels.append(run)
            continue
        found = _rectangles(contours, whole[low])
        wanted = np.ones(len(found), dtype=bool) if reach is None else _reaching(found, reach)
        pieces = np.flatnonzero(wanted & ~is_hole).tolist()
        if not pieces:
            break
        if not largest and _WORTH * len(pieces) < high - low:
            tracked = [_tracked(ranks, whole[low], contours[piece], run) for piece in pieces]
            if is_hole.any():
                contours, is_hole = _contours(ranks, whole[high], high)
                holes = is_hole if reach is None else is_hole & _reaching(_rectangles(contours, whole[high]), reach)
                for hole in np.flatnonzero(holes).tolist():
                    tracked.append(_tracked(ranks, whole[high], contours[hole], run, hole=True))
            boxes += tracked
            levels += [run] * len(tracked)
            continue
        for level in run.tolist():
            if level > low:
                contours, _ = _contours(ranks, whole[level], level)
                found = _rectangles(contours, whole[level])
            if largest:
                place = max(range(len(contours)), key=lambda place: cv2.contourArea(contours[place]))
                found = found[place : place + 1]
            boxes.append(found)
            levels.append(np.full(len(found), level))
    if not boxes:
        return LevelBoxes(np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64), same)
    joined = np.concatenate(boxes) + np.array((x, y, x, y))
    np.minimum(joined[:, 2:], (image.shape[1] - 1, image.shape[0] - 1), out=joined[:, 2:])
    return LevelBoxes(joined, np.concatenate(levels), same)


def _contours(ranks: np.ndarray, box: np.ndarray, level: int) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Contours of a level set in the coordinates of its box, where alone they are looked for; which are of holes."""
    import cv2  # not for those who only read records

    x0, y0, x1, y1 = box.tolist()
    mask = (ranks[y0:y1, x0:x1] > level).view(np.uint8)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return contours, hierarchy[0, :, 3] >= 0


def _where(contours: Sequence[np.ndarray], chosen: np.ndarray) -> list[np.ndarray]:
    return [contour for contour, keep in zip(contours, chosen, strict=True) if keep]


def _rectangles(contours: Sequence[np.ndarray], box: np.ndarray) -> np.ndarray:
    import cv2  # not for those who only read records

    boxes = np.array([cv2.boundingRect(contour) for contour in contours])
    boxes[:, :2] += box[:2]
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _reaching(boxes: np.ndarray, reach: tuple[Sequence[PixelBox], float]) -> np.ndarray:
    """Which boxes, and what lies within them, could have the IoU: those that share so much of the object's box."""
    may = np.zeros(len(boxes), dtype=bool)
    x0, y0, x1, y1 = boxes.T
    for left, top, right, bottom in reach[0]:
        width = np.minimum(x1, right) - np.maximum(x0, left) + 1
        height = np.minimum(y1, bottom) - np.maximum(y0, top) + 1
        needed = (reach[1] - 1e-9) * (right - left + 1) * (bottom - top + 1)
        may |= (width > 0) & (height > 0) & (width * height >= needed)
    return may


def _tracked(
    ranks: np.ndarray, box: np.ndarray, contour: np.ndarray, run: np.ndarray, *, hole: bool = False
) -> np.ndarray:
    """The boxes of a piece, or of a hole, at all thresholds of a run, from its contour where it is largest.

    What else lies within the contour is wrapped by it at every threshold of the run, so it cannot widen its box.
    """
    import cv2  # not for those who only read records

    x, y, width, height = cv2.boundingRect(contour)
    filled = np.zeros((height, width), dtype=np.uint8)
    cv2.drawContours(filled, [contour], 0, 255, cv2.FILLED, offset=(-x, -y))
    x, y = x + int(box[0]), y + int(box[1])
    part = ranks[y : y + height, x : x + width]
    if not hole:
        return _sides(part & filled, run) + np.array((x, y, x, y))
    # A hole is what is not above the threshold: upside down, a piece; its contour runs through the pixels around it.
    top = np.uint8(run[-1] + 1)
    return _sides((top - np.minimum(part, top)) & filled, run[-1] - run) + np.array((x - 1, y - 1, x + 1, y + 1))


def _sides(ranks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The box around all that is above each level, in whatever order these are: int `(n, 4)`; of nothing, nonsense."""
    ends = []
    for axis in (0, 1):
        highest = ranks.max(axis=axis)
        for line in (highest, highest[::-1]):
            ends.append(np.searchsorted(np.maximum.accumulate(line), levels, side="right"))
    sides = np.empty((len(levels), 4), dtype=np.int64)
    sides[:, 0], sides[:, 1] = ends[0], ends[2]
    sides[:, 2], sides[:, 3] = ranks.shape[1] - ends[1], ranks.shape[0] - ends[3]
    return sides


def _critical(values: np.ndarray) -> np.ndarray:
    """Where adding pixels from the largest down changes how many pieces or holes there are; boolean `(H, W)`.

    Pieces are connected over corners, holes over sides. Equal values come in the order of reading.
    """
    import cv2  # not for those who only read records

    height, width = values.shape
    # With a border that comes last, a neighbour is a fixed distance away in one long row.
    bordered = np.full((height + 2, width + 2), -1, dtype=np.float32)
    bordered[1:-1, 1:-1] = values
    flat = bordered.ravel()
    came = np.zeros(flat.size, dtype=np.uint8)
    # Bits run around the pixel, against the clock from its right neighbour; each pair is compared once.
    for bit, distance in ((1, width + 1), (2, width + 2), (3, width + 3), (4, 1)):
        earlier = (flat[:-distance] >= flat[distance:]).view(np.uint8)
        came[distance:] |= earlier * np.uint8(1 << bit)
        came[:-distance] |= (earlier ^ 1) * np.uint8(1 << (bit + 4) % 8)
    return cv2.LUT(came.reshape(bordered.shape), _table())[1:-1, 1:-1].view(bool)


@cache
def _grey_thresholds(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those grey values that are thresholds, which of them each of `count` thresholds is, and a pixel's rank by grey.

    A map's maximum is 255, so not more than 255 thresholds differ. A rank is how many of these the grey is above.
    """
    grey = (np.arange(count) * (1 / count) * 255).astype(np.int64)
    above, same = np.unique(grey, return_inverse=True)
    return above, same, np.searchsorted(above, np.arange(256)).astype(np.uint8)


@cache
def _table() -> np.ndarray:
    """Of the 256 ways in which neighbours can have come before a pixel, those where it changes the topology."""
    critical = np.zeros(256, dtype=np.uint8)
    for pattern in range(256):
        missing = [not pattern >> bit & 1 for bit in range(8)]
        # Yokoi's number for pieces over corners: a pixel is simple when it is 1.
        number = sum(
            missing[at] and not (missing[at] and missing[at + 1] and missing[(at + 2) % 8]) for at in (0, 2, 4, 6)
        )
        critical[pattern] = number != 1
    return critical
