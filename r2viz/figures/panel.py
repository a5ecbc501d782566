"""Several records of one picture side by side: methods, or targets, of the same networks."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from r2viz.errors import one_line
from r2viz.figures.cam import draw_frame, figure, made_how, of_pixels, provenance, scaled
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, WARNING, cut, percent, titles
from r2viz.figures.overlay import (
    MAP_COLOURS,
    blend,
    grey_of,
    map_bar,
    map_opacity,
    resize,
    shrunk,
    strength,
)
from r2viz.panels import Panel
from r2viz.records import CamRecord, View

_WIDTH, _MARGIN, _GAP, _TITLE, _LINE, _BARS = 7.0, 0.08, 0.06, 0.34, 0.114, 0.34
_UPRIGHT, _BESIDE = 0.16, 0.78
"""Width of the networks' names beside the rows: written upwards, or, where rows are too low for that, across."""
_SMALL = 400
"""Longest side of a cell in drawn pixels."""


def drawn(found: CamRecord | Panel) -> tuple[Figure, str]:
    """The figure of a record or of a panel, and what to embed in it."""
    if isinstance(found, Panel):
        reasons: dict[str, list[str]] = {}
        for one in found.missing:
            reasons.setdefault(one.error, []).append(one.title)
        missing = [f"{', '.join(dict.fromkeys(titles_))} ({error})" for error, titles_ in reasons.items()]
        return panel(found.records, missing=missing, digest=found.digest), panel_provenance(found)
    return figure(found), provenance(found)


def panel_provenance(found: Panel) -> str:
    """What a panel's figure embeds: its digest, and each record's method, target and digest."""
    shared = json.loads(provenance(found.records[0]))
    rows = [
        {
            "digest": record.digest,
            "method": record.method,
            "targets": list(dict.fromkeys(view.target.label for view in record.views)),
            "layers": list(record.layers),
        }
        for record in found.records
    ]
    for network in shared["networks"]:
        del network["target"]
    about = {key: shared[key] for key in ("r2viz", "picture", "networks", "registration", "versions")}
    return json.dumps({"digest": found.digest, **about, "records": rows}, ensure_ascii=False)


def panel(records: Sequence[CamRecord], *, columns: int = 7, missing: Sequence[str] = (), digest: str = "") -> Figure:
    """One column per record, one row per network, in bands of `columns`; the picture itself comes first.

    A column is headed by its method, its target, or both, whatever differs; for two networks the rank correlation of
    their maps stands beneath. Of records with several layers, the last one is drawn.

    Args:
        records: of one picture and the same networks.
        columns: cells per band, at most.
        missing: what could not be drawn, and why: listed in the caption.
        digest: of the panel; the records' own unless given.

    Raises:
        ValueError: no records, or of different pictures or networks.
    """
    whole = Panel(tuple(records))
    first = whole.records[0]
    height, width = first.picture.rgb.shape[:2]
    networks = len(first.views)
    bands = math.ceil((len(records) + 1) / columns)
    columns = math.ceil((len(records) + 1) / bands)  # bands of nearly one length
    aspect = height / width
    longest = max(1, *(len(view.title) for view in first.views))
    for label in (_UPRIGHT, _BESIDE):
        cell = min((_WIDTH - 2 * _MARGIN - label - (columns - 1) * _GAP) / columns, 2.4)
        tall = min(cell * aspect, 2.4)
        if tall * 118 / longest >= 4:  # letters of 4 points or more
            break
    wide, tall = max(0.02, min(cell, tall / aspect)), max(0.02, tall)
    methods, targets = (len({key(record) for record in records}) > 1 for key in (_method, _target))
    head = _TITLE + (_LINE if methods and targets else 0)
    caption = _caption(
        records, missing, digest or whole.digest, characters=int((columns * (cell + _GAP) + label) * 21.5)
    )
    band = head + networks * tall + (networks - 1) * _GAP + _GAP
    total_width = 2 * _MARGIN + label + columns * cell + (columns - 1) * _GAP
    total_height = 2 * _MARGIN + bands * band + _BARS + 0.125 * len(caption) + 0.06
    drawing = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)

    def place(number: int, row: int) -> Axes:
        left = _MARGIN + label + (number % columns) * (cell + _GAP) + (cell - wide) / 2
        top = _MARGIN + (number // columns) * band + head + row * (tall + _GAP)
        return drawing.add_axes(
            (left / total_width, 1 - (top + tall) / total_height, wide / total_width, tall / total_height)
        )

    source = place(0, 0)
    draw_frame(source, shrunk(first.picture.rgb, _SMALL)[0], first)
    titles(source, first.picture.name, f"{width} × {height}", least=cell)
    for number, record in enumerate(records, start=1):
        for row, view in enumerate(record.views):
            ax = place(number, row)
            _cell(ax, record, view)
            if row == 0:
                said = _head(record, methods, targets)
                titles(ax, *said, least=cell, broken=True)
    for number in range(bands):
        for row, view in enumerate(first.views):
            top = _MARGIN + number * band + head + row * (tall + _GAP) + tall / 2
            room = tall if label == _UPRIGHT else label - 0.04
            size = min(6.5, max(4.0, 118 * room / max(1, len(view.title))))
            drawing.text(
                (_MARGIN + (label / 2 if label == _UPRIGHT else label - 0.04)) / total_width, 1 - top / total_height,
                cut(view.title, int(room * 118 / size)), rotation=90 if label == _UPRIGHT else 0,
                ha="center" if label == _UPRIGHT else "right", va="center", fontsize=size, color=INK, **TEXT,
            )  # fmt: skip
    bar_top = _MARGIN + bands * band + 0.02
    bar = drawing.add_axes(
        ((_MARGIN + label) / total_width, 1 - (bar_top + 0.07) / total_height, 2.0 / total_width, 0.07 / total_height)
    )
    map_bar(bar)
    for number, (line, colour) in enumerate(caption):
        drawing.text(
            _MARGIN / total_width, (_MARGIN + 0.125 * (len(caption) - number) - 0.02) / total_height, line,
            fontsize=6, color=colour, va="top", **TEXT,
        )  # fmt: skip
    return drawing


def _method(record: CamRecord) -> str:
    return record.method_title


def _target(record: CamRecord) -> str:
    return " / ".join(dict.fromkeys(view.target.label for view in record.views))


def _head(record: CamRecord, methods: bool, targets: bool) -> list[str]:
    """Lines above a column: what tells it from the others, and how far the networks agree."""
    agreement = record.agreement(record.layers[-1])
    agreeing = "" if agreement is None else f"ρ {agreement.spearman:.2f}"
    if methods:
        return [_method(record), *([_target(record)] if targets else []), agreeing]
    shares = " / ".join(percent(view.target.probability) for view in record.views)
    return [_target(record), f"{shares},  {agreeing}" if agreeing else shares]


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
    map_ = resize(strength(laid, pixels=of_pixels(view.map(layer))), grey.shape[:2])
    share = np.nan_to_num(map_)
    draw_frame(ax, blend(grey, share, colormaps[MAP_COLOURS], map_opacity(share), np.isfinite(map_)), record, view)


def _caption(
    records: Sequence[CamRecord], missing: Sequence[str], digest: str, characters: int
) -> list[tuple[str, str]]:
    first = records[0]
    maps = [record.views[0].maps[-1] for record in records]
    named = zip(records, maps, strict=True)
    layers = list(dict.fromkeys(record.layers[-1] for record, map_ in named if not of_pixels(map_)))
    layers += ["the input"] if any(map(of_pixels, maps)) else []
    targets, methods = dict.fromkeys(map(_target, records)), dict.fromkeys(map(_method, records))
    said = [
        (f"{len(methods)} methods" if len(methods) > 1 else next(iter(methods)))
        + (f" for “{next(iter(targets))}”" if len(targets) == 1 else f" for {len(targets)} targets")
        + f" at {' and '.join(layers)}. {scaled(maps)}"
    ]
    for view in first.views:
        top = view.top[0]
        said.append(f"{view.title}: top-1 {top.label} {percent(top.probability)}; weights: {view.weights['source']}.")
    if len(first.views) == 2:
        said.append("ρ: rank correlation of the two networks' maps over the picture.")
    said += made_how(first)
    if missing:
        said.append("Not drawn: " + "; ".join(missing) + ".")
    lines = [(line, GREY) for line in textwrap.wrap(one_line(" ".join(said), 4000), characters)]
    if first.random:
        said_so = "RANDOM WEIGHTS: these maps show untrained networks. They say nothing about what training learns."
        lines += [(line, WARNING) for line in textwrap.wrap(said_so, characters)]
    lines.append((f"r2viz {first.versions['r2viz']} · {digest[:16]}", GREY))
    return lines
