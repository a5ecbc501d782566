"""How every benchmark measures: interleaved pairs in one run, the median ratio with a bootstrap interval, a bar."""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """One line of the table. `ours` and `peer` are medians in `unit`; `low` and `high` bound the ratio (95 %).

    Where the bar is a least value, the ratio is the peer's figure over ours, else ours over the peer's.
    """

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
    seconds = rounds({"ours": ours, "peer": peer}, pairs)
    return np.stack([seconds["ours"], seconds["peer"]], axis=1)


def rounds(sides: Mapping[str, Callable[[], object]], count: int = 9) -> dict[str, np.ndarray]:
    """Seconds `(count,)` of every side, in turn: two in alternating order, more in a new (seeded) one every round.

    What runs before leaves caches and freed memory behind, and must not always be the same.
    """
    generator = np.random.default_rng(0)
    for run in sides.values():
        run()
    seconds = {name: np.empty(count) for name in sides}
    for number in range(count):
        order = list(sides)[:: 1 if number % 2 == 0 else -1]
        if len(order) > 2:
            order = [order[place] for place in generator.permutation(len(order))]
        for name in order:
            gc.collect()
            begun = time.perf_counter()
            sides[name]()
            seconds[name][number] = time.perf_counter() - begun
        say(f"  round {number + 1} of {count}")
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


def speed_line(
    work: str, ours: np.ndarray, peer: np.ndarray, *, at_least: float, unit: str = "s", note: str = ""
) -> Line:
    """Peer / ours, pair by pair, of seconds or bytes: its median must be at least the bar."""
    ratios = np.asarray(peer) / np.asarray(ours)
    low, high = _interval(ratios)
    ratio, pairs = float(np.median(ratios)), len(ratios)
    medians = float(np.median(ours)), float(np.median(peer))
    return Line(work, *medians, unit, ratio, low, high, pairs, f"≥ {at_least:g} ×", ratio >= at_least, note)


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


def say(message: str) -> None:
    """How far it is, on standard error."""
    print(message, file=sys.stderr, flush=True)


def main(title: str, measure: Callable[[], list[Line]] | Mapping[str, Callable[[], list[Line]]]) -> None:
    """Parse `--json` and `--only`, measure, print, and exit with 1 when a bar is missed or a part failed.

    Args:
        title: what is printed above the table.
        measure: gives all lines; or, by name, several that each give some: `--only` chooses among them, and where one
            fails, its error is printed and the others go on.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parts = {title: measure} if callable(measure) else measure
    if not callable(measure):
        parser.add_argument("--only", metavar="PATTERN", default="", help=f"parts that match: {', '.join(parts)}")
    options = parser.parse_args()
    lines, failed = [], []
    for name, part in parts.items():
        if not callable(measure) and not re.search(options.only, name):
            continue
        begun = time.perf_counter()
        say(f"{name} …")
        try:
            found = part()
        except Exception:
            if callable(measure):
                raise
            traceback.print_exc()
            failed.append(name)
            continue
        lines += found
        for line in found:
            say(_row(line))
        say(f"{name}: {time.perf_counter() - begun:.0f} s\n")
    if options.json:
        print(json.dumps({"benchmark": title, "lines": [asdict(line) for line in lines]}, indent=1, ensure_ascii=False))
    else:
        print(f"{title}\n")
        print(f"{'work':<84} {'ours':>11} {'peer':>11} {'ratio':>8}  {'95 % interval':<16} {'bar':<12} met")
        for line in lines:
            print(_row(line))
        for name in failed:
            print(f"{name}: failed, see above")
    sys.exit(0 if lines and not failed and all(line.met for line in lines) else 1)


def _row(line: Line) -> str:
    ours, peer = (f"{value:.4g} {line.unit}" for value in (line.ours, line.peer))
    return (
        f"{line.work:<84} {ours:>11} {peer:>11} {line.ratio:>8.3f}  "
        f"{f'{line.low:.3g} … {line.high:.3g}':<16} {line.bar:<12} {'yes' if line.met else 'NO'}"
        + (f"\n    {line.note}" if line.note else "")
    )
