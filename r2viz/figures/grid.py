"""The grid of the paper's figure 4: a column per picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from r2viz.errors import OutputError, one_line
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, WARNING, cut, percent
from r2viz.figures.overlay import MAP_COLOURS, blend, grey_of, map_bar, map_opacity, resize, shrunk
from r2viz.records import CamRecord


def grid(records: Sequence[CamRecord], *, layer: str | None = None) -> Figure:
    """The paper's figure 4: a column per picture; rows are the picture and each network's map.

    All records must hold the same networks. Pictures are shown by their seen part, cropped square.
    """
    if not records:
        raise OutputError("a grid of no pictures cannot be drawn; give at least one")
    first = records[0]
    rows = 1 + len(first.views)
    cell, label, gap, head = 1.0, 0.22, 0.04, 0.36
    width = label + len(records) * (cell + gap) + 0.06
    caption = _grid_caption(records, layer or first.layers[0], int(width * 18.5))
    foot = 0.5 + 0.125 * len(caption)
    height = head + rows * (cell + gap) + foot
    drawing = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)
    for column, record in enumerate(records):
        layer_ = layer or record.layers[0]
        for row in range(rows):
            ax = drawing.add_axes(
                (
                    (label + column * (cell + gap)) / width,
                    1 - (head + row * (cell + gap) + cell) / height,
                    cell / width,
                    cell / height,
                )
            )
            view = record.views[max(0, row - 1)]
            y0, x0, y1, x1 = view.geometry.seen
            crop = np.ascontiguousarray(record.picture.rgb[y0:y1, x0:x1])
            shown, _ = shrunk(crop, 400)
            laid = view.on_source(layer_)[y0:y1, x0:x1]
            empty = view.map(layer_).constant or not np.nanmax(laid) > 0
            if row > 0 and not empty:
                grey = grey_of(shown)
                map_ = resize(laid, grey.shape[:2])
                share = np.clip(map_ / np.nanmax(laid), 0, 1)
                shown = blend(grey, share, colormaps[MAP_COLOURS], map_opacity(share), np.isfinite(map_))
            ax.imshow(shown, interpolation="antialiased", aspect="equal")
            ax.set_axis_off()
            if row == 0:
                labels = dict.fromkeys(view.target.label for view in record.views)
                ax.text(
                    0.5, 1.04, cut(" / ".join(labels), 18), transform=ax.transAxes, ha="center", va="bottom",
                    fontsize=7, color=INK, **TEXT,
                )  # fmt: skip
            else:
                text = percent(view.target.probability)
                if empty:
                    text += ", constant map"
                if view.random:
                    text += ", random weights"
                ax.text(
                    0.03, 0.03, text, transform=ax.transAxes, ha="left", va="bottom", fontsize=5.5, color="white",
                    bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.55, "pad": 1}, **TEXT,
                )  # fmt: skip
            if column == 0:
                ax.text(
                    -0.06, 0.5, "picture" if row == 0 else view.title, transform=ax.transAxes, rotation=90,
                    ha="right", va="center", fontsize=7, color=INK, **TEXT,
                )  # fmt: skip
    bar = drawing.add_axes((label / width, (foot - 0.16) / height, min(2.0, width / 2) / width, 0.07 / height))
    map_bar(bar)
    for number, (line, colour) in enumerate(caption):
        drawing.text(
            label / width, (0.125 * (len(caption) - number)) / height, line, fontsize=6, color=colour, va="top", **TEXT
        )
    return drawing


def _grid_caption(records: Sequence[CamRecord], layer: str, characters: int) -> list[tuple[str, str]]:
    first = records[0]
    weights = "; ".join(f"{view.title}: {view.weights['source']}" for view in first.views)
    text = (
        f"{first.method_title} at {layer}, each map divided by its own maximum; the number is the network's "
        f"probability of the class above. {weights}."
    )
    lines = [(line, GREY) for line in textwrap.wrap(one_line(text, 1000), characters)]
    if any(record.random for record in records):
        lines.append(("RANDOM WEIGHTS: untrained networks; the maps say nothing about learning.", WARNING))
    return lines
