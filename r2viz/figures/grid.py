"""The grid of the paper's figure 4: a column per picture, gathered under headings where there are some."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2viz.errors import OutputError, one_line
from r2viz.figures.cam import draw_region
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, WARNING, cut, percent
from r2viz.figures.overlay import MAP_COLOURS, blend, grey_of, map_bar, map_opacity, resize, shrunk
from r2viz.records import CamRecord, View

_LABEL, _GAP, _LINE = 0.22, 0.04, 0.1
_WIDEST, _LARGEST, _SMALLEST = 7.4, 1.0, 0.72
_LETTERS_PER_INCH = 20


def grid(
    records: Sequence[CamRecord],
    *,
    layer: str | None = None,
    headings: Sequence[str] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    numbers: Sequence[Sequence[str]] | None = None,
    note: str = "",
) -> Figure:
    """The paper's figure 4: a column per picture; rows are the picture and each network's map.

    All records must hold the same networks. Pictures are shown by their seen part, the object outlined where the
    record knows it; beneath each map stands the network's probability of the class, and what `numbers` adds.

    Args:
        records: one a column.
        layer: of the records; each one's first unless given.
        headings: above each column; columns side by side with one heading stand under it together.
        labels: lines above each column; the class that the maps explain unless given.
        numbers: for each column a line for each network, beneath its map.
        note: what the caption says beyond method, layer and weights.

    Raises:
        OutputError: no records.
    """
    if not records:
        raise OutputError("a grid of no pictures cannot be drawn; give at least one", code="output.nothing")
    first, count = records[0], len(records)
    rows = 1 + len(first.views)
    above = [[" / ".join(dict.fromkeys(view.target.label for view in record.views))] for record in records]
    above = above if labels is None else [list(lines) for lines in labels]
    cell = max(_SMALLEST, min(_LARGEST, (_WIDEST - _LABEL - 0.06) / count - _GAP))
    title = 0.12 * max(len(lines) for lines in above) + 0.08
    head = title + (0.2 if headings is not None else 0.02)
    beneath = _LINE * (1 if numbers is None else 2) + 0.03
    width = _LABEL + count * (cell + _GAP) + 0.06
    caption = _caption(records, layer or first.layers[0], note, int(max(width, 2.4) * _LETTERS_PER_INCH))
    foot = 0.44 + 0.125 * len(caption)
    height = head + cell + _GAP + (rows - 1) * (cell + beneath + _GAP) + foot
    drawing = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)
    for column, record in enumerate(records):
        for row in range(rows):
            left = _LABEL + column * (cell + _GAP)
            top = head + (0 if row == 0 else cell + _GAP + (row - 1) * (cell + beneath + _GAP))
            ax = drawing.add_axes((left / width, 1 - (top + cell) / height, cell / width, cell / height))
            view = record.views[max(0, row - 1)]
            said = _panel(ax, record, view, layer or record.layers[0], map_=row > 0)
            if row > 0:
                lines = [said] if numbers is None else [said, numbers[column][row - 1]]
                _lines(ax, [cut(line, int(cell * 27)) for line in lines], -0.02, down=True)
            else:
                _lines(ax, [cut(line, int(cell * 18)) for line in above[column]], 1.03, size=min(7, 7.4 * cell))
            if column == 0:
                ax.text(
                    -0.06, 0.5, "picture" if row == 0 else cut(view.title, int(cell * 19)), transform=ax.transAxes,
                    rotation=90, ha="right", va="center", fontsize=min(7, 7.4 * cell), color=INK, **TEXT,
                )  # fmt: skip
    if headings is not None:
        _headings(drawing, headings, cell, (width, height))
    bar = drawing.add_axes((_LABEL / width, (foot - 0.14) / height, min(2.0, width / 2) / width, 0.07 / height))
    map_bar(bar)
    for number, (line, colour) in enumerate(caption):
        up = 0.125 * (len(caption) - number) + 0.03
        drawing.text(_LABEL / width, up / height, line, fontsize=6, color=colour, va="top", **TEXT)
    return drawing


def _panel(ax: Axes, record: CamRecord, view: View, layer: str, *, map_: bool) -> str:
    """The picture's seen part, or a map over it; what is said beneath a map."""
    height, width = record.picture.rgb.shape[:2]
    y0, x0, y1, x1 = view.geometry.seen
    shown, _ = shrunk(np.ascontiguousarray(record.picture.rgb[y0:y1, x0:x1]), 400)
    laid = view.on_source(layer)[y0:y1, x0:x1]
    empty = view.map(layer).constant or not np.nanmax(laid) > 0
    if map_ and not empty:
        grey = grey_of(shown)
        over = resize(laid, grey.shape[:2])
        share = np.clip(over / np.nanmax(laid), 0, 1)
        shown = blend(grey, share, colormaps[MAP_COLOURS], map_opacity(share), np.isfinite(over))
    ax.imshow(shown, extent=(x0, x1, y1, y0), interpolation="antialiased", aspect="equal")
    draw_region(ax, record, (min(height, 400), min(width, 400)))
    ax.set_xlim(x0, x1)
    ax.set_ylim(y1, y0)
    ax.set_axis_off()
    said = [percent(view.target.probability)]
    said += ["constant map"] if empty else []
    said += ["random weights"] if view.random else []
    return ", ".join(said)


def _lines(ax: Axes, lines: Sequence[str], y: float, *, size: float = 5.6, down: bool = False) -> None:
    for number, line in enumerate(lines if down else reversed(lines)):
        step = 72 * (_LINE if down else 0.115) * number
        ax.annotate(
            line, (0.5, y), (0, -step if down else step), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="top" if down else "bottom", fontsize=size, color=INK, **TEXT,
        )  # fmt: skip


def _headings(drawing: Figure, headings: Sequence[str], cell: float, size: tuple[float, float]) -> None:
    width, height = size
    start = 0
    for heading, members in groupby(headings):
        count = len(list(members))
        left, right = _LABEL + start * (cell + _GAP), _LABEL + (start + count) * (cell + _GAP) - _GAP
        letters = int((right - left) * 16)
        drawing.text(
            (left + right) / 2 / width, 1 - 0.04 / height, cut(heading, letters), fontsize=7.5, fontweight="bold",
            color=INK, ha="center", va="top", **TEXT,
        )  # fmt: skip
        across = [(left + 0.02) / width, (right - 0.02) / width]
        drawing.add_artist(Line2D(across, [1 - 0.185 / height] * 2, color=GREY, linewidth=0.5))
        start += count


def _caption(records: Sequence[CamRecord], layer: str, note: str, characters: int) -> list[tuple[str, str]]:
    first = records[0]
    weights = "; ".join(f"{view.title}: {view.weights['source']}" for view in first.views)
    said = [
        f"{first.method_title} at {layer}, each map divided by its own maximum; the number is the network's "
        f"probability of the class above. {weights}."
    ]
    said += [one_line(note, 2000)] if note else []
    lines = [(line, GREY) for line in textwrap.wrap(one_line(" ".join(said), 3000), characters)]
    if any(record.random for record in records):
        sentence = "RANDOM WEIGHTS: untrained networks; the maps say nothing about learning."
        lines += [(line, WARNING) for line in textwrap.wrap(sentence, max(characters, 80))]
    return lines
