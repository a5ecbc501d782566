"""Masks guessed from boxes: for pictures that have no drawn ones. Always labelled as guessed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from r2viz.coverage import Box
from r2viz.errors import BadRegion

ROUNDS = 5


def grabcut(rgb: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """The object inside boxes: boolean `(H, W)`, the same at every call.

    Each box is cut by itself; what lies outside of it is background. A box that fills the picture leaves no background
    to learn from: then the outermost pixels are taken for it.

    Args:
        rgb: uint8 `(H, W, 3)`.
        boxes: (x0, y0, x1, y1), x1 and y1 exclusive.

    Raises:
        BadRegion: GrabCut finds no object in any box.

    Source: Rother, Kolmogorov & Blake 2004, "GrabCut", doi 10.1145/1015706.1015720; OpenCV's implementation.
    """
    height, width = rgb.shape[:2]
    found = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        left, top = max(1, round(x0)), max(1, round(y0))
        right, bottom = min(width - 1, round(x1)), min(height - 1, round(y1))
        if right - left < 2 or bottom - top < 2:
            continue
        marks = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
        marks[top:bottom, left:right] = cv2.GC_PR_FGD
        cv2.setRNGSeed(0)  # its colour clusters start at random
        cv2.grabCut(
            np.ascontiguousarray(rgb[..., ::-1]),
            marks,
            None,  # type: ignore[call-overload]
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            ROUNDS,
            cv2.GC_INIT_WITH_MASK,
        )
        found |= (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    if not found.any():
        raise BadRegion("GrabCut finds no object in the boxes; measure with the boxes themselves")
    return found
