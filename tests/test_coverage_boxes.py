"""Boxes at thresholds: equal to contours looked for at every threshold, the published way, which is written here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2viz.coverage import level_boxes, pixel_box


def published(map_: np.ndarray, truths: list[tuple[int, int, int, int]], count: int, *, largest: bool) -> np.ndarray:
    """Best IoU `(count,)` by the steps of the published evaluation (Choe et al. 2020), in our words."""
    height, width = map_.shape
    grey = ((map_ / map_.max()) * 255).astype(np.uint8)
    best = []
    for threshold in np.arange(0, 1, 1 / count)[:count]:
        _, mask = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        chosen = [max(contours, key=cv2.contourArea)] if largest else contours
        found = []
        for contour in chosen:
            x, y, w, h = cv2.boundingRect(contour)
            found += [_iou((x, y, min(x + w, width - 1), min(y + h, height - 1)), truth) for truth in truths]
        best.append(max(found))
    return np.array(best)


def _iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]) + 1)
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _map(seed: int, size: tuple[int, int], low: int, way: int, cut: float) -> np.ndarray:
    coarse = np.random.default_rng(seed).normal(size=(low, low)).astype(np.float32)
    map_ = np.maximum(cv2.resize(coarse, size[::-1], interpolation=way) - cut, 0)
    return map_ if np.ptp(map_) > 0 else centre(size)


def centre(size: tuple[int, int]) -> np.ndarray:
    map_ = np.zeros(size, dtype=np.float32)
    map_[size[0] // 2, size[1] // 2] = 1
    return map_


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(2, 70), st.integers(2, 70)),
    low=st.integers(2, 20),
    way=st.sampled_from([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC]),
    cut=st.sampled_from([-2.0, -0.5, 0.0, 0.5]),
    count=st.sampled_from([10, 100]),
)
def test_equal_to_the_published_way(
    seed: int, size: tuple[int, int], low: int, way: int, cut: float, count: int
) -> None:
    map_ = _map(seed, size, low, way, cut)
    chance = np.random.default_rng(seed)
    truths = []
    for _ in range(2):
        x, y = int(chance.integers(0, size[1])), int(chance.integers(0, size[0]))
        truths.append((x, y, int(chance.integers(x, size[1])), int(chance.integers(y, size[0]))))
    for largest in (False, True):
        found = level_boxes(map_, count=count, largest=largest).best_iou(truths)
        expected = published(map_, truths, count, largest=largest)
        np.testing.assert_array_equal(found, expected)
        for least in (0.3, 0.7):
            reached = level_boxes(map_, count=count, largest=largest, reach=(truths, least)).best_iou(truths)
            np.testing.assert_array_equal(reached[expected >= least], expected[expected >= least])
            assert (reached[expected < least] < least).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), values=st.integers(2, 6), side=st.integers(3, 14))
def test_equal_on_plateaus_and_nested_rings(seed: int, values: int, side: int) -> None:
    """Few values on few pixels: ties everywhere, holes, pieces within holes, contact over corners."""
    map_ = np.random.default_rng(seed).integers(0, values, (side, side)).astype(np.float32)
    map_[0, 0] = values
    map_ = np.kron(map_, np.ones((2, 2), dtype=np.float32)) if seed % 2 else map_
    truths = [(side // 3, side // 4, side // 2 + 1, side // 2)]
    for largest in (False, True):
        found = level_boxes(map_, largest=largest).best_iou(truths)
        np.testing.assert_array_equal(found, published(map_, truths, 100, largest=largest))


@pytest.mark.parametrize("count", [100, 1000])
def test_rings_that_close_and_open(count: int) -> None:
    rows, columns = np.indices((90, 120))
    away = np.hypot(rows - 45, columns - 60)
    ring = np.exp(-(((away - 25) / 8) ** 2)) * (1.3 + np.cos(np.arctan2(rows - 45, columns - 60)))
    map_ = (ring + 1.5 * np.exp(-((away / 6) ** 2)) + 0.9 * np.exp(-(((columns - 10) / 9) ** 2))).astype(np.float32)
    truths = [(40, 25, 90, 70), (3, 2, 20, 88)]
    for largest in (False, True):
        found = level_boxes(map_, count=count, largest=largest).best_iou(truths)
        np.testing.assert_array_equal(found, published(map_, truths, count, largest=largest))


def test_by_hand() -> None:
    map_ = np.zeros((10, 12), dtype=np.float32)
    map_[2:5, 3:9] = 1
    found = level_boxes(map_)
    assert set(map(tuple, found.boxes.tolist())) == {(3, 2, 9, 5)}
    assert pixel_box(map_ > 0) == (3, 2, 9, 5)
    np.testing.assert_array_equal(found.best_iou([(3, 2, 9, 5)]), np.ones(100))
    # Two halves of an object: all contours give each half, the largest alone the larger.
    map_[2:5, 5] = 0
    assert level_boxes(map_).best_iou([(6, 2, 9, 5)]).max() == 1
    assert level_boxes(map_, largest=True).best_iou([(3, 2, 5, 5)]).max() < 0.5
    # At the picture's edge x1 and y1 are its last pixel.
    assert pixel_box(np.ones((4, 5), dtype=bool)) == (0, 0, 4, 3)


def test_what_was_not_seen_and_what_is_constant_has_no_box() -> None:
    map_ = np.full((20, 20), np.nan, dtype=np.float32)
    map_[5:15, 5:15] = np.random.default_rng(0).random((10, 10))
    np.testing.assert_array_equal(level_boxes(map_).boxes, level_boxes(np.nan_to_num(map_)).boxes)
    for value in (0.0, 1.0):
        assert not level_boxes(np.full((8, 8), value)).best_iou([(0, 0, 7, 7)]).any()
