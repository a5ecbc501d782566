"""How every benchmark measures: interleaved pairs in one run, the median ratio with a bootstrap interval, a bar."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """One line of the table. `ours` and `peer` are medians in `unit`; `low` and `high` bound the ratio (95 %)."""

    work: str
    ours: float
    peer: float
    unit: str
    ratio: float
    low: float
    high: float
    pairs: int
    bar: str
    met: bool
    note: str = ""


def interleaved(ours: Callable[[], object], peer: Callable[[], object], *, pairs: int = 11) -> np.ndarray:
    """Seconds `(pairs, 2)` of both, measured in turn, each pair in the other order than the one before."""
    ours(), peer()
    seconds = np.empty((pairs, 2))
    for number in range(pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            gc.collect()
            begun = time.perf_counter()
            (ours, peer)[side]()
            seconds[number, side] = time.perf_counter() - begun
    return seconds


def ratio_line(work: str, seconds: np.ndarray, *, at_most: float, note: str = "") -> Line:
    """Ours / peer, pair by pair: its median must be at most the bar. A machine's drift hits both sides of a pair."""
    ratios = seconds[:, 0] / seconds[:, 1]
    low, high = _interval(ratios)
    ours, peer = np.median(seconds, axis=0)
    ratio = float(np.median(ratios))
    return Line(
        work, float(ours), float(peer), "s", ratio, low, high, len(seconds), f"≤ {at_most:g} ×", ratio <= at_most, note
    )


def absolute_line(work: str, values: Sequence[float], unit: str, *, at_most: float, note: str = "") -> Line:
    """A plain figure: its median must be at most the bar."""
    low, high = _interval(np.asarray(values, dtype=float))
    median = float(np.median(values))
    met = median <= at_most
    return Line(
        work, median, at_most, unit, median / at_most, low, high, len(values), f"≤ {at_most:g} {unit}", met, note
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of the median."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def main(title: str, measure: Callable[[], list[Line]]) -> None:
    """Parse `--json`, measure, print, and exit with 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    as_json = parser.parse_args().json
    lines = measure()
    if as_json:
        print(json.dumps({"benchmark": title, "lines": [asdict(line) for line in lines]}, indent=1, ensure_ascii=False))
    else:
        print(f"{title}\n")
        print(f"{'work':<76} {'ours':>11} {'peer':>11} {'ratio':>7}  {'95 % interval':<16} {'bar':<12} met")
        for line in lines:
            ours, peer = (f"{value:.4g} {line.unit}" for value in (line.ours, line.peer))
            print(
                f"{line.work:<76} {ours:>11} {peer:>11} {line.ratio:>7.3f}  "
                f"{f'{line.low:.3g} … {line.high:.3g}':<16} {line.bar:<12} {'yes' if line.met else 'NO'}"
                + (f"\n    {line.note}" if line.note else "")
            )
    sys.exit(0 if all(line.met for line in lines) else 1)
