"""Pictures for numbers: where one network's measure is furthest above the other's, furthest below, and at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from r2viz.errors import OutputError
from r2viz.figures.coverage_captions import better, is_gain, title_of
from r2viz.figures.grid import grid
from r2viz.records import CamRecord


@dataclass(frozen=True, eq=False)
class Case:
    """One picture: its maps with the object (`record.region`), and a measure's value for each network."""

    record: CamRecord
    values: tuple[float, ...]

    @property
    def difference(self) -> float | None:
        """Second network minus first; None where there are not two."""
        return self.values[1] - self.values[0] if len(self.values) == 2 else None


def cases(groups: Mapping[str, Sequence[Case]], *, measure: str, note: str = "") -> Figure:
    """The picture with its object outlined, every network's map, the measure beneath each, the difference above.

    Args:
        groups: heading → pictures, say "largest gain", "largest loss", "drawn at random"; three of each fit a page.
        measure: name in `r2viz.coverage.MEASURES`.
        note: how the pictures were chosen, of which data set; for the caption.

    Raises:
        OutputError: no pictures.
    """
    found = [(heading, case) for heading, group in groups.items() for case in group]
    if not found:
        raise OutputError("no picture was given; cases need at least one", code="output.nothing")
    labels = []
    for _, case in found:
        names = " / ".join(dict.fromkeys(view.target.label for view in case.record.views))
        labels.append([names] if case.difference is None else [names, f"{_signed(case.difference)} points"])
    paired = any(case.difference is not None for _, case in found)
    title = title_of(measure)
    said = f"Second line: {title[:1].lower()}{title[1:]} ({better(measure)}). The object is outlined."
    if paired:
        said += f" Above: the difference in points, {found[0][1].record.views[1].title} minus the other network."
    return grid(
        [case.record for _, case in found],
        headings=[heading for heading, _ in found],
        labels=labels,
        numbers=[[_value(value, measure) for value in case.values] for _, case in found],
        note=f"{said} {note}".strip(),
    )


def _value(value: float, measure: str) -> str:
    if not np.isfinite(value):
        return "not seen"
    return f"{_signed(value)} points" if is_gain(measure) else f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
