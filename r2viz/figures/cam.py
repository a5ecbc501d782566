"""A CAM record as a figure: the picture, each map, and what differs."""

from __future__ import annotations

import base64
import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from r2viz.errors import one_line
from r2viz.figures.canvas import DPI, GREY, TEXT, WARNING, percent, render, titles
from r2viz.figures.overlay import (
    DIFFERENCE_COLOURS,
    MAP_COLOURS,
    blend,
    colour_bar,
    grey_of,
    map_bar,
    map_opacity,
    pale,
    resize,
    shown_colours,
    shrunk,
    strength,
)
from r2viz.records import CamRecord, LayerMap, View


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches. A cell is a panel with its title lines above it."""

    columns: int
    cell: float
    panel: tuple[float, float]
    title: float

    gap = 0.12
    bars = 0.34
    margin = 0.08


def figure(record: CamRecord) -> Figure:
    """One row per layer: source, each network's map, and the signed difference where both explain one class.

    Wide pictures get two columns or one instead of four, so that panels stay readable.
    """
    height, width = record.picture.rgb.shape[:2]
    panels = 1 + len(record.views) + (1 if record.shared else 0)
    layout = _layout(width / height, panels, title=0.34 if record.region is None else 0.45)
    rows = math.ceil(panels / layout.columns)
    caption = _caption(record, characters=int(layout.columns * (layout.cell + layout.gap) * 21.5))
    caption_height = 0.125 * len(caption) + 0.06
    cell_height = layout.title + layout.panel[1]
    total_width = 2 * layout.margin + layout.columns * layout.cell + (layout.columns - 1) * layout.gap
    total_height = (
        layout.margin
        + len(record.layers) * rows * (cell_height + layout.gap)
        + layout.bars
        + caption_height
        + layout.margin
    )
    drawing = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)

    def place(row: int, column: int) -> Axes:
        left = layout.margin + column * (layout.cell + layout.gap) + (layout.cell - layout.panel[0]) / 2
        top = layout.margin + row * (cell_height + layout.gap) + layout.title
        return drawing.add_axes(
            (
                left / total_width,
                1 - (top + layout.panel[1]) / total_height,
                layout.panel[0] / total_width,
                layout.panel[1] / total_height,
            )
        )

    drawn = []
    for number, layer in enumerate(record.layers):
        axes = [place(number * rows + index // layout.columns, index % layout.columns) for index in range(panels)]
        draw_source(axes[0], record, note=layer if len(record.layers) > 1 else "")
        for view, ax in zip(record.views, axes[1:], strict=False):
            draw_map(ax, record, view, layer)
        if record.shared:
            drawn.append(draw_difference(axes[-1], record, layer))

    bar_top = total_height - layout.margin - caption_height - layout.bars + 0.02
    _bars(drawing, record, layout, bar_top, (total_width, total_height), any(drawn))
    for number, (line, colour) in enumerate(caption):
        drawing.text(
            layout.margin / total_width,
            (layout.margin + 0.125 * (len(caption) - number) - 0.02) / total_height,
            line,
            fontsize=6,
            color=colour,
            va="top",
            **TEXT,
        )
    return drawing


def _layout(aspect: float, panels: int, title: float) -> _Layout:
    columns = panels if aspect <= 2.2 else min(panels, 2) if aspect <= 4.5 else 1
    cell = (7.0 - 2 * _Layout.margin - (columns - 1) * _Layout.gap) / max(columns, 3 if columns > 2 else columns)
    width, height = cell, cell / aspect
    tallest = 4.6
    if height > tallest:
        width, height = tallest * aspect, tallest
    return _Layout(columns, cell, (max(width, 0.08), max(height, 0.08)), title)


def draw_source(ax: Axes, record: CamRecord, *, note: str = "") -> Axes:
    """The picture as it came, the region outlined, what no network saw dimmed."""
    shown, _ = shrunk(record.picture.rgb)
    draw_frame(ax, shown, record)
    height, width = record.picture.rgb.shape[:2]
    blank = [""] if record.region is not None else []  # so that titles of a row stand on one line
    titles(ax, record.picture.name, note or f"{width} × {height}", *blank)
    return ax


def draw_map(ax: Axes, record: CamRecord, view: View, layer: str) -> Axes:
    """One network's map over the greyed picture, divided by its own maximum; a constant map is said, not drawn."""
    target = view.target
    probability = f"{target.label}  {percent(target.probability)}"
    grey = grey_of(shrunk(record.picture.rgb)[0])
    laid = view.on_source(layer)
    # A tiny picture may lie wholly between a map's units, where a map that is not constant is zero all the same.
    if view.map(layer).constant or not np.nanmax(laid) > 0:
        draw_frame(ax, grey, record, view)
        ax.text(
            0.5, 0.5, "constant map:\nnothing to show", transform=ax.transAxes, ha="center", va="center", fontsize=7,
            color=WARNING, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}, **TEXT,
        )  # fmt: skip
        titles(ax, view.title, probability)
        return ax
    map_ = resize(strength(laid, pixels=of_pixels(view.map(layer))), grey.shape[:2])
    share = np.nan_to_num(map_)
    draw_frame(ax, blend(grey, share, colormaps[MAP_COLOURS], map_opacity(share), np.isfinite(map_)), record, view)
    inside = record.inside(view, layer)
    marked = [] if inside is None else [str(inside)]
    titles(ax, view.title, probability, *marked)
    if view.random:
        ax.text(
            0.5, 0.5, "random weights", transform=ax.transAxes, ha="center", va="center", rotation=20, fontsize=11,
            color="white", alpha=0.8, fontweight="bold", clip_on=True,
            path_effects=[withStroke(linewidth=1.2, foreground="#333333", alpha=0.6)], **TEXT,
        )  # fmt: skip
    return ax


def draw_difference(ax: Axes, record: CamRecord, layer: str) -> bool:
    """Second network's unit-mass map minus the first's, on a symmetric scale; says whether there was one to draw.

    The scale's end stands above the panel in multiples of the density of an even map.
    """
    grey = grey_of(shrunk(record.picture.rgb)[0])
    difference = record.difference(layer)
    ratio = record.maximum_ratio(layer)
    title = "difference"
    notes = [] if ratio is None else [f"raw maxima × {ratio:.2g}"]
    blank = [""] if record.region is not None else []
    if difference is None:
        draw_frame(ax, grey, record)
        ax.text(
            0.5, 0.5, "no difference:\na map is constant", transform=ax.transAxes, ha="center", va="center", fontsize=7,
            color=WARNING, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}, **TEXT,
        )  # fmt: skip
        titles(ax, title, *(notes or [""]), *blank)
        return False
    # Per source pixel of the drawing; the sign and the relative size are what the colours show.
    small = resize(difference, grey.shape[:2])
    limit = float(np.nanmax(np.abs(small)))
    signed = np.nan_to_num(small) / limit if limit > 0 else np.nan_to_num(small)
    colours = colormaps[DIFFERENCE_COLOURS]
    draw_frame(
        ax, blend(pale(grey), (signed + 1) / 2, colours, 0.85 * np.sqrt(np.abs(signed)), np.isfinite(small)), record
    )
    # In multiples of a map that is the same everywhere: a unit that people can read, and that pictures share.
    notes.append(f"± {float(np.nanmax(np.abs(difference))) * np.isfinite(difference).sum():.2g}")
    titles(ax, title, ",  scale ".join(notes), *blank)
    return True


def provenance(record: CamRecord) -> str:
    """What a figure embeds: the content digest and what it was made from, as one JSON object: no times, no paths."""
    return json.dumps(
        {
            "r2viz": record.versions["r2viz"],
            "digest": record.digest,
            "picture": {"name": record.picture.name, "sha256": record.picture.sha256},
            "networks": [
                {"model": view.model, "weights": dict(view.weights), "target": view.target.label}
                for view in record.views
            ],
            "layers": list(record.layers),
            "method": record.method,
            "registration": record.registration,
            **({"settings": dict(record.settings)} if record.settings else {}),
            "versions": dict(record.versions),
        },
        ensure_ascii=False,
    )


def html(record: CamRecord) -> str:
    """The figure as an HTML image, with a table of the numbers: what a notebook shows."""
    image = base64.b64encode(render(figure(record), "png")).decode()
    head = ("network", "target", "probability", "top-1", "layer", "raw maximum")
    rows = [
        (
            view.title,
            view.target.label,
            percent(view.target.probability),
            f"{view.top[0].label} {percent(view.top[0].probability)}",
            map_.layer,
            "constant" if map_.constant else f"{map_.raw.max():.4g}",
        )
        for view in record.views
        for map_ in view.maps
    ]
    cells = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    alt = escape(f"Class activation maps of {record.picture.name} by " + " and ".join(v.title for v in record.views))
    return (
        f'<figure><img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{image}">'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{cells}</tbody></table></figure>"
    )


def of_pixels(map_: LayerMap) -> bool:
    """Whether the map's units are the pixels of the network's input."""
    return map_.layer.partition("@")[0] == "input" and tuple(map_.jump) == (1, 1)


def scaled(maps: Iterable[LayerMap]) -> str:
    """How the maps are brought onto the colour scale, as a sentence."""
    pixels = {of_pixels(map_) for map_ in maps}
    if pixels == {False}:
        return "Each map is divided by its own maximum."
    rest = "" if pixels == {True} else "Each map is divided by its own maximum, "
    return rest + (f"{'maps' if rest else 'Maps'} of pixels by their 99th percentile, above which they are drawn as 1.")


def made_how(record: CamRecord) -> list[str]:
    """Sentences for a caption about what departs from the defaults: smoothing, fusion, channels, precision, seed."""
    settings, said = record.settings, list[str]()
    if settings.get("smooth"):
        said.append("Each map is the mean over six flips and zooms of the picture.")
    if settings.get("fuse"):
        joined = {"mean": "mean", "max": "maximum"}[settings["fuse"]]
        said.append(f"{record.layers[-1]}: the {joined} of the layers' maps, each divided by its own maximum.")
    if settings.get("channels"):
        said.append(f"Methods that go channel by channel took the {settings['channels']} most varying ones.")
    if record.dtype != "float32":
        said.append(f"Computed in {record.dtype}.")
    if settings.get("seed"):
        said.append(f"What is random was drawn from seed {settings['seed']}.")
    return said


def _caption(record: CamRecord, characters: int) -> list[tuple[str, str]]:
    """Caption lines with their colours, wrapped to the figure's width."""
    lines: list[tuple[str, str]] = []
    policy = record.policy if record.policy in ("shared", "top1", "agree") else "named by the user"
    targets = " / ".join(dict.fromkeys(view.target.label for view in record.views))
    layers = ", ".join(
        name + ("" if map_.gradient == "total" else " (direct path only)")
        for name, map_ in zip(record.layers, record.views[0].maps, strict=True)
    )
    said = [f"{record.method_title} of “{targets}” (target: {policy}) at {layers}. {scaled(record.views[0].maps)}"]
    for view in record.views:
        top = view.top[0]
        said.append(f"{view.title}: top-1 {top.label} {percent(top.probability)}; weights: {view.weights['source']}.")
    if record.shared:
        first, second = record.views
        said.append(
            f"Difference: {second.title} minus {first.title}, each map scaled to unit mass; its colours span the scale "
            "above it, in multiples of an even map."
        )
        said += _agreements(record)
    elif len(record.views) == 2:
        said.append("The networks' targets differ, so no difference is drawn.")
    said += made_how(record)
    if any(map_.registration == "grid" for view in record.views for map_ in view.maps):
        said.append("Maps are laid as by resizing, not by receptive-field centres.")
    said += [f"Note: {note}." for note in (*record.picture.notes, *record.notes)]
    for line in textwrap.wrap(one_line(" ".join(said), 2000), characters):
        lines.append((line, GREY))
    if record.random:
        for line in textwrap.wrap(
            "RANDOM WEIGHTS: these maps show an untrained network. They say nothing about what training learns.",
            characters,
        ):
            lines.append((line, WARNING))
    lines.append((f"r2viz {record.versions['r2viz']} · {record.digest[:16]}", GREY))
    return lines


def _agreements(record: CamRecord) -> list[str]:
    found = [(layer, record.agreement(layer)) for layer in record.layers]
    numbers = [f"{layer} {agreement}" for layer, agreement in found if agreement is not None]
    if not numbers:
        return []
    if len(record.layers) == 1:
        return [f"The two maps agree with {found[0][1]}."]
    return [f"The two maps agree: {'; '.join(numbers)}."]


def _bars(
    drawing: Figure,
    record: CamRecord,
    layout: _Layout,
    top: float,
    size: tuple[float, float],
    with_difference: bool,
) -> None:
    """Colour bars beneath the panels that they belong to (side by side where there is one column)."""
    width, height = size
    across = layout.columns > 2
    start = layout.margin + (layout.cell + layout.gap if across else 0)
    length = min(2.4, layout.cell * (1.3 if across else 0.45))
    bar = drawing.add_axes((start / width, 1 - (top + 0.07) / height, length / width, 0.07 / height))
    map_bar(bar)
    if not with_difference:
        return
    first, second = record.views
    start = (
        layout.margin + (layout.columns - 1) * (layout.cell + layout.gap) if across else width - layout.margin - length
    )
    length = layout.cell if across else length
    bar = drawing.add_axes((start / width, 1 - (top + 0.07) / height, length / width, 0.07 / height))
    colours = shown_colours(colormaps[DIFFERENCE_COLOURS], lambda x: 0.85 * np.sqrt(np.abs(2 * x - 1)), 225)
    colour_bar(bar, colours, (-1, 1), [-1, 1], [f"more {_short(first.title)}", f"more {_short(second.title)}"])


def draw_frame(ax: Axes, shown: np.ndarray, record: CamRecord, view: View | None = None) -> None:
    """The picture on the axes in source coordinates, with what was not seen dimmed and the region outlined."""
    height, width = record.picture.rgb.shape[:2]
    seen = [one.geometry.seen for one in ([view] if view is not None else record.views)]
    y0, x0 = min(box[0] for box in seen), min(box[1] for box in seen)
    y1, x1 = max(box[2] for box in seen), max(box[3] for box in seen)
    if (y0, x0, y1, x1) != (0, 0, height, width):
        rows, columns = shown.shape[0] / height, shown.shape[1] / width
        outside = np.ones(shown.shape[:2], dtype=bool)
        outside[round(y0 * rows) : round(y1 * rows), round(x0 * columns) : round(x1 * columns)] = False
        shown = shown.copy()
        shown[outside] = (0.35 * shown[outside] + 0.65 * 255).astype(np.uint8)
    ax.imshow(shown, extent=(0, width, height, 0), interpolation="antialiased", aspect="auto")
    if (y0, x0, y1, x1) != (0, 0, height, width):
        ax.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=GREY, linewidth=0.4, linestyle=(0, (3, 2)))
        )
    draw_region(ax, record, (shown.shape[0], shown.shape[1]))
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color(GREY)


def draw_region(ax: Axes, record: CamRecord, size: tuple[int, int]) -> None:
    """The object's outline in source coordinates, where the record knows it; a mask's drawn at `size` (h, w)."""
    region = record.region
    height, width = record.picture.rgb.shape[:2]
    if region is not None and region.box is not None:
        x0, y0, x1, y1 = region.box
        for colour, line in (("black", 1.6), ("white", 0.8)):
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=line))
    elif region is not None:
        mask = resize(region.mask.astype(np.float32), size)
        rows, columns = np.linspace(0, height, mask.shape[0]), np.linspace(0, width, mask.shape[1])
        if min(mask.shape) > 1:
            for colour, line in (("black", 1.6), ("white", 0.8)):
                ax.contour(columns, rows, mask, levels=[0.5], colors=colour, linewidths=line)


def _short(title: str) -> str:
    return next(iter(title.split()), title)
