"""Several records of one picture side by side: methods, or targets, of the same networks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from r2viz.errors import one_line
from r2viz.figures.cam import draw_frame
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, WARNING, cut, percent, titles
from r2viz.figures.overlay import MAP_COLOURS, blend, grey_of, map_bar, map_opacity, resize, shrunk
from r2viz.records import CamRecord, View

_WIDTH, _MARGIN, _GAP, _LABEL, _TITLE, _BARS = 7.0, 0.08, 0.06, 0.16, 0.34, 0.34
_SMALL = 400
"""Longest side of a cell in drawn pixels."""


def panel(records: Sequence[CamRecord], *, columns: int = 7, missing: Sequence[str] = ()) -> Figure:
    """One column per record, one row per network, in bands of `columns`; the picture itself comes first.

    A column is headed by its method, or by its target where all methods are one; for two networks the rank
    correlation of their maps stands beneath. Of records with several layers, the last one is drawn.

    Args:
        records: of one picture and the same networks.
        columns: cells per band, at most.
        missing: what could not be drawn, and why: listed in the caption.

    Raises:
        ValueError: no records, or of different pictures or networks.
    """
    if not records:
        raise ValueError("a panel needs at least one record")
    first = records[0]
    if any(
        record.picture.sha256 != first.picture.sha256
        or [view.title for view in record.views] != [view.title for view in first.views]
        for record in records
    ):
        raise ValueError("the records of a panel are of one picture and the same networks")
    height, width = first.picture.rgb.shape[:2]
    networks = len(first.views)
    bands = math.ceil((len(records) + 1) / columns)
    columns = math.ceil((len(records) + 1) / bands)  # bands of nearly one length
    cell = min((_WIDTH - 2 * _MARGIN - _LABEL - (columns - 1) * _GAP) / columns, 2.4)
    aspect = height / width
    tall = min(cell * aspect, 2.4)
    wide = min(cell, tall / aspect)
    caption = _caption(records, missing, characters=int((columns * (cell + _GAP) + _LABEL) * 21.5))
    band = _TITLE + networks * tall + (networks - 1) * _GAP + _GAP
    total_width = 2 * _MARGIN + _LABEL + columns * cell + (columns - 1) * _GAP
    total_height = 2 * _MARGIN + bands * band + _BARS + 0.125 * len(caption) + 0.06
    drawing = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)

    def place(number: int, row: int) -> Axes:
        left = _MARGIN + _LABEL + (number % columns) * (cell + _GAP) + (cell - wide) / 2
        top = _MARGIN + (number // columns) * band + _TITLE + row * (tall + _GAP)
        return drawing.add_axes(
            (left / total_width, 1 - (top + tall) / total_height, wide / total_width, tall / total_height)
        )

    source = place(0, 0)
    draw_frame(source, shrunk(first.picture.rgb, _SMALL)[0], first)
    titles(source, first.picture.name, f"{width} × {height}", least=0)
    by_method = len({record.method for record in records}) > 1
    for number, record in enumerate(records, start=1):
        for row, view in enumerate(record.views):
            ax = place(number, row)
            _cell(ax, record, view)
            if row == 0:
                _head(ax, record, by_method)
    for number in range(bands):
        for row, view in enumerate(first.views):
            top = _MARGIN + number * band + _TITLE + row * (tall + _GAP) + tall / 2
            size = min(6.5, max(4.0, 118 * tall / max(1, len(view.title))))
            drawing.text(
                (_MARGIN + _LABEL / 2) / total_width, 1 - top / total_height, cut(view.title, int(tall * 118 / size)),
                rotation=90, ha="center", va="center", fontsize=size, color=INK, **TEXT,
            )  # fmt: skip
    bar_top = _MARGIN + bands * band + 0.02
    bar = drawing.add_axes(
        ((_MARGIN + _LABEL) / total_width, 1 - (bar_top + 0.07) / total_height, 2.0 / total_width, 0.07 / total_height)
    )
    map_bar(bar)
    for number, (line, colour) in enumerate(caption):
        drawing.text(
            _MARGIN / total_width, (_MARGIN + 0.125 * (len(caption) - number) - 0.02) / total_height, line,
            fontsize=6, color=colour, va="top", **TEXT,
        )  # fmt: skip
    return drawing


def _head(ax: Axes, record: CamRecord, by_method: bool) -> None:
    target = " / ".join(dict.fromkeys(view.target.label for view in record.views))
    agreement = record.agreement(record.layers[-1])
    if by_method:
        note = "" if agreement is None else f"ρ {agreement.spearman:.2f}"
        titles(ax, record.method_title, note, least=0)
    else:
        shares = " / ".join(percent(view.target.probability) for view in record.views)
        titles(ax, target, shares if agreement is None else f"{shares},  ρ {agreement.spearman:.2f}", least=0)


def _cell(ax: Axes, record: CamRecord, view: View) -> None:
    layer = view.maps[-1].layer
    grey = grey_of(shrunk(record.picture.rgb, _SMALL)[0])
    laid = view.on_source(layer)
    if view.map(layer).constant or not np.nanmax(laid) > 0:
        draw_frame(ax, grey, record, view)
        ax.text(
            0.5, 0.5, "constant", transform=ax.transAxes, ha="center", va="center", fontsize=6, color=WARNING,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}, **TEXT,
        )  # fmt: skip
        return
    map_ = resize(laid, grey.shape[:2])
    share = np.clip(np.nan_to_num(map_) / np.nanmax(laid), 0, 1)
    draw_frame(ax, blend(grey, share, colormaps[MAP_COLOURS], map_opacity(share), np.isfinite(map_)), record, view)


def _caption(records: Sequence[CamRecord], missing: Sequence[str], characters: int) -> list[tuple[str, str]]:
    first = records[0]
    layers = dict.fromkeys(view.maps[-1].layer for record in records for view in record.views)
    targets = dict.fromkeys(" / ".join(dict.fromkeys(view.target.label for view in one.views)) for one in records)
    methods = dict.fromkeys(one.method_title for one in records)
    said = [
        (f"{len(records)} methods" if len(methods) > 1 else next(iter(methods)))
        + (f" for “{next(iter(targets))}”" if len(targets) == 1 else f" for {len(targets)} targets")
        + f" at {', '.join(layers)}. Each map is divided by its own maximum."
    ]
    for view in first.views:
        top = view.top[0]
        said.append(f"{view.title}: top-1 {top.label} {percent(top.probability)}; weights: {view.weights['source']}.")
    if len(first.views) == 2:
        said.append("ρ: rank correlation of the two networks' maps over the picture.")
    if missing:
        said.append("Not drawn: " + "; ".join(missing) + ".")
    lines = [(line, GREY) for line in textwrap.wrap(one_line(" ".join(said), 4000), characters)]
    if first.random:
        said_so = "RANDOM WEIGHTS: these maps show untrained networks. They say nothing about what training learns."
        lines += [(line, WARNING) for line in textwrap.wrap(said_so, characters)]
    lines.append((f"r2viz {first.versions['r2viz']} · " + " ".join(one.digest[:8] for one in records[:6]), GREY))
    return lines
