"""What measuring coverage costs: boxes at all thresholds beside the published way, and all resamples at once.

Figures are of this machine and this run. `--only PATTERN` measures some parts. `--data PATH` names a data set with
boxes (Tiny-ImageNet's val.parquet) for the whole way of the mini pair; `--limit N` takes fewer of its pictures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from benchmarks.harness import Line, absolute_line, interleaved, main, ratio_line, say, speed_line
from r2viz.coverage import level_boxes
from r2viz.coverage.boxes import THRESHOLDS, PixelBox, box_iou
from r2viz.coverage.pooled import DELTAS
from r2viz.statistics import SIZES, Interval, strata_of, stratified_intervals

PICTURES = 8000
RESAMPLES = 10_000
MEASURES = 15


def _maps(side: int, units: int, count: int = 40) -> list[np.ndarray]:
    """Smooth maps as networks give them: `units` × `units`, rectified, laid over the picture."""
    chance = np.random.default_rng(0)
    maps: list[np.ndarray] = []
    while len(maps) < count:
        coarse: np.ndarray = cv2.GaussianBlur(chance.normal(size=(units, units)).astype(np.float32), (0, 0), 1.0)
        middle = slice(units // 3, 2 * units // 3)
        coarse[middle, middle] += np.float32(0.5)
        laid = np.maximum(cv2.resize(coarse, (side, side)), 0)
        if laid.max() > 0:
            maps.append(laid / laid.max())
    return maps


def _published(map_: np.ndarray, truth: PixelBox, count: int) -> np.ndarray:
    """Contours at every threshold, the best IoU of their boxes at each: `(count,)` (Choe et al. 2020)."""
    height, width = map_.shape
    grey = (map_ * np.float32(255)).astype(np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    first = []
    for threshold in np.arange(0, 1, 1 / count):
        _, mask = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        first.append(len(boxes))
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
    return np.maximum.reduceat(box_iou(np.array(boxes), np.array([truth]))[:, 0], first)


def _boxes(side: int, units: int, count: int = THRESHOLDS) -> list[Line]:
    maps, truth = _maps(side, units), (side // 4, side // 4, 3 * side // 4, 2 * side // 3)

    def ours() -> list[np.ndarray]:
        return [level_boxes(map_, count=count, reach=([truth], DELTAS[0])).best_iou([truth]) for map_ in maps]

    def peer() -> list[np.ndarray]:
        return [_published(map_, truth, count) for map_ in maps]

    found, expected = np.array(ours()), np.array(peer())
    unlike = sum(int(((found >= delta) != (expected >= delta)).sum()) for delta in DELTAS)
    seconds = interleaved(ours, peer, pairs=15 if count == THRESHOLDS else 5)
    work = f"MaxBoxAccV2, {count} thresholds, {len(maps)} maps of {side} px from {units} × {units} units: published"
    note = f"of {found.size * len(DELTAS):,} hits and misses at IoU 0.3, 0.5 and 0.7, {unlike} differ"
    return [speed_line(work, seconds[:, 0], seconds[:, 1], at_least=5, note=note)]


def _resampling() -> list[Line]:
    chance = np.random.default_rng(0)
    areas = chance.random(PICTURES)
    strata = {"all": areas >= 0, **strata_of(areas)}
    values = {f"measure {number}": chance.gamma(1 + number, size=PICTURES) for number in range(MEASURES)}
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        found = stratified_intervals(values, strata, resamples=RESAMPLES)
        seconds.append(time.perf_counter() - begun)
    beside = _beside_scipy(values["measure 0"], found["measure 0", "all"])
    note = f"{MEASURES} measures, {len(SIZES)} strata and all; {beside}"
    work = f"{RESAMPLES:,} resamples of {PICTURES:,} pictures"
    return [absolute_line(work, seconds, "s", at_most=10, note=note)]


def _beside_scipy(data: np.ndarray, found: Interval) -> str:
    from scipy import stats

    begun = time.perf_counter()
    expected = stats.bootstrap((data,), np.mean, n_resamples=RESAMPLES, method="BCa", batch=200).confidence_interval
    took = time.perf_counter() - begun
    apart = max(abs(found.low - expected.low), abs(found.high - expected.high)) / (expected.high - expected.low)
    return f"SciPy took {took:.1f} s for one of them, and its limits are {apart:.1%} of the interval's width away"


def _survey(path: str | None, limit: int) -> list[Line]:
    """Pictures all the way through both networks, beside decoding them and two bare forwards; and memory."""
    if path is None:
        say("the survey was not run: name a data set with boxes by --data")
        return []
    import torch

    from benchmarks.memory import _status
    from r2viz.coverage import measures_for
    from r2viz.datasets import open_dataset
    from r2viz.explain.survey import BATCH, survey
    from r2viz.models.model import load
    from r2viz.models.pairs import PAIRS

    models = [load(name) for name in PAIRS["mini"].models]
    dataset = open_dataset(path).sample(limit)
    kin = {"maxboxacc", "maxboxaccv2", "gt_known_loc", "top1_loc"}
    wanted = [name for name in measures_for("box" if dataset.kind == "box" else "mask") if name not in kin]
    resident: list[tuple[int, float]] = []
    count = 0

    def watch(done: int) -> None:
        nonlocal count
        count += done
        resident.append((count, _status("VmRSS")))

    def bare() -> None:
        waiting = []
        for number, entry in enumerate(dataset, 1):
            waiting.append(entry.open().picture.rgb)
            if len(waiting) == BATCH or number == len(dataset):
                for model in models:
                    with torch.inference_mode():
                        model.module(torch.cat([model.preprocess(rgb)[0] for rgb in waiting]))
                waiting = []

    survey(dataset.sample(2 * BATCH), models, measures=wanted)  # what is loaded at first use is not the work's
    begun = time.perf_counter()
    found = survey(dataset, models, measures=wanted, progress=watch)
    middle = time.perf_counter()
    bare()
    seconds = np.array([[middle - begun, time.perf_counter() - middle]])
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in found.seconds.items())
    work = f"{len(found):,} pictures, both networks, {len(wanted)} measures / decoding and two bare forwards"
    early = next(memory for done, memory in resident if done >= min(1000, len(dataset) // 2))
    return [
        ratio_line(work, seconds, at_most=1.3, note=f"{parts}; one round"),
        absolute_line(
            f"resident memory after all {len(found):,} pictures / after {min(1000, len(dataset) // 2):,}",
            [resident[-1][1] / early], "×", at_most=1.1, note=f"{early:.0f} MB, {resident[-1][1]:.0f} MB",
        ),
    ]  # fmt: skip


def _options() -> argparse.Namespace:
    """This file's own options; the rest is the harness's."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", default=None)
    parser.add_argument("--limit", type=int, default=8000)
    options, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return options


PARTS: dict[str, Callable[[], list[Line]]] = {
    "boxes 64": partial(_boxes, 64, 4),
    "boxes 224": partial(_boxes, 224, 7),
    "published thresholds": partial(_boxes, 64, 4, 1000),
    "resampling": _resampling,
}

if __name__ == "__main__":
    _own = _options()
    PARTS["survey"] = partial(_survey, _own.data, _own.limit)
    main("benchmarks.coverage", PARTS)
