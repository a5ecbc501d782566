"""What the figure of accuracy against cost shows of compared tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from r2viz.figures.tradeoff import Point
from r2viz.models.pairs import PAIRS
from r2viz.models.zoo import ZOO
from r2viz.tables.comparison import Table
from r2viz.tables.published import COMPARED, networks
from r2viz.tables.published import PAIRS as PAPER_PAIRS

_SETTING = re.compile(r"^Res2Net-50-([0-9]+w-[0-9]+s)$")


def points(tables: Sequence[Table]) -> list[Point]:
    """The accuracies in compared tables, each network once per data set: printed ones, then measured ones."""
    data = {table: one.dataset for table in COMPARED for numbers in networks(table).values() for one in numbers}
    printed: dict[tuple[str, str], Point] = {}
    measured: dict[tuple[str, str], Point] = {}
    for table in tables:
        for line in table.lines:
            facts, called = line.facts, _label(line.called)
            cost = facts.get("macs"), facts.get("params")
            res2 = "res2" in line.called.casefold()
            error = line.cells.get(f"paper_{data.get(table.name)}_top1_error")
            if error is not None and table.name in COMPARED:
                key = (data[table.name], line.network or line.called)
                printed.setdefault(key, Point(called, float(100 - Decimal(error.text)), *cost, key[0], res2))
            if "measured_top1_error" in facts:
                key = (facts["measured_on"], line.network or line.called)
                low, high = 100 - facts["measured_top1_error_high"], 100 - facts["measured_top1_error_low"]
                value = 100 - facts["measured_top1_error"]
                measured.setdefault(key, Point(called, value, *cost, key[0], res2, (low, high)))
    return [*printed.values(), *measured.values()]


def joined(found: Sequence[Point]) -> list[tuple[str, str]]:
    """Labels of the pairs among the points: the paper's, and this project's."""
    labels = {one.label for one in found}
    ours = [(ZOO[first].title, ZOO[second].title) for first, second in (pair.models for pair in PAIRS.values())]
    both = [(_label(first), _label(second)) for first, second in PAPER_PAIRS] + ours
    return list(dict.fromkeys(pair for pair in both if labels.issuperset(pair)))


def note(found: Sequence[Point]) -> str:
    """What the shortened labels stand for, of those that are there."""
    labels = [one.label for one in found]
    said = {
        "14w-8s: Res2Net-50 with 8 scales of width 14; Res2Net-50 itself is 26w-4s.": "14w-8s" in labels,
        "8c×64w: 29 layers, 8 groups of width 64.": any("8c×64w" in label for label in labels),
    }
    return " ".join(text for text, there in said.items() if there)


def _label(called: str) -> str:
    return _SETTING.sub(r"\1", called.replace(" x ", "×").replace("-29, ", " ").replace(" - ", " "))
