"""Theoretical receptive fields through a network's depth: every size at every split, shaded by its number of paths."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from r2viz.errors import OutputError, one_line
from r2viz.figures.axes import LINE, Line, placed, power, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.overlay import colour_bar
from r2viz.version import __version__

LARGEST, SMALLEST, PICTURE = "#0072B2", "#009E73", "#D55E00"
_WIDTH, _MARGIN, _GAP = 7.0, 0.08, 0.14
_COLOURS = "cividis_r"
_ROWS = 1200  # of the picture that shades are drawn from: more than a page shows


@dataclass(frozen=True)
class Stairs:
    """One network's theoretical fields.

    Attributes:
        title: what the figure calls it.
        taps: by tap name, in order of depth: number of paths by size in input pixels (`Field.sizes`).
        unbounded: taps that some path reaches from the whole picture; the sizes hold for the others.
    """

    title: str
    taps: Mapping[str, Mapping[int, int]]
    unbounded: frozenset[str] = field(default_factory=frozenset)


def staircase(networks: Sequence[Stairs], *, picture: int | None = None, top: float | None = None) -> Figure:
    """A panel per network: sizes upwards, depth to the right, the number of paths of each size as shade (logarithmic).

    Args:
        networks: see `Stairs`; two stand side by side.
        picture: the shorter side of the networks' input, drawn as a line.
        top: where the axis of sizes ends; above the largest size unless given.

    Raises:
        OutputError: nothing to draw.
    """
    if not networks or any(not network.taps for network in networks):
        raise OutputError("a staircase needs at least one network with at least one tap", code="output.nothing")
    columns = min(2, len(networks))
    rows = math.ceil(len(networks) / columns)
    left, head, under, tall, bar = 0.46, 0.36, 0.42, 2.5 if rows < 3 else 1.9, 0.36
    wide = (_WIDTH - left - _MARGIN - (columns - 1) * _GAP) / columns
    caption = wrapped(_said(networks, picture), [], "", _WIDTH)
    drawing = sheet(_WIDTH, 2 * _MARGIN + rows * (head + tall + under) + bar + LINE * len(caption))
    largest = max(max(sizes) for network in networks for sizes in network.taps.values())
    shade = shades(networks)
    limit = 1.05 * max(largest, picture or 0) if top is None else top
    for number, network in enumerate(networks):
        ax = placed(
            drawing,
            left + (number % columns) * (wide + _GAP),
            _MARGIN + head + (number // columns) * (head + tall + under),
            wide,
            tall,
        )
        draw_stairs(ax, network, shade=shade, top=limit, picture=picture)
        counts = [len(sizes) for sizes in network.taps.values()]
        last = list(network.taps.values())[-1]
        titles(
            ax, network.title,
            f"largest {max(map(max, network.taps.values()))} px; up to {max(counts)} sizes at once, "
            f"{_count(sum(last.values()))} paths",
            least=wide,
        )  # fmt: skip
        if number % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("size, input pixels", fontsize=6.5, color=INK, labelpad=2)
    _shade_bar(drawing, shade, left, drawing.get_size_inches()[1] - 2 * _MARGIN - LINE * len(caption) - bar + 0.1)
    write(drawing, caption)
    return drawing


def draw_stairs(ax: Axes, network: Stairs, *, shade: Normalize, top: float, picture: int | None = None) -> Axes:
    """One network's sizes on axes whose x counts taps from 0; `shade` is of log10 of the number of paths."""
    sizes = list(network.taps.values())
    count = len(sizes)
    ax.imshow(
        _table(sizes, top), cmap=colormaps[_COLOURS].with_extremes(bad="white"), norm=shade, origin="lower",
        extent=(-0.5, count - 0.5, 0, top), aspect="auto", interpolation="nearest",
    )  # fmt: skip
    edges = np.arange(count + 1) - 0.5
    for colour, line, label, values in (
        (LARGEST, "solid", "max", [max(found) for found in sizes]),
        (SMALLEST, (0, (3, 1.2)), "min", [min(found) for found in sizes]),
    ):
        ax.stairs(values, edges, baseline=None, color=colour, linestyle=line, linewidth=0.9, label=label)
    for number, tap in enumerate(network.taps):
        if tap in network.unbounded:
            ax.plot([number], [max(sizes[number])], marker="^", markersize=2.2, color=LARGEST, linestyle="none")
    if picture is not None:
        ax.axhline(picture, color=PICTURE, linewidth=0.8, linestyle=(0, (6, 2)), label="picture")
        ax.annotate(
            f"picture, {picture} px", (0, picture), (3, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=5.8, color=PICTURE, ha="left", va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}, **TEXT,
        )  # fmt: skip
    ax.set_xlim(-0.5, count - 0.5)
    ax.set_ylim(0, top)
    quiet(ax, grid=False)
    ax.yaxis.set_major_locator(MaxNLocator(7, integer=True))
    _depth(ax, list(network.taps))
    return ax


def staircase_provenance(networks: Sequence[Stairs], *, picture: int | None = None) -> str:
    """What the figure embeds: a digest of all sizes and path counts, networks and taps, as one JSON object."""
    content = [
        [one.title, {tap: [[size, str(paths)] for size, paths in sizes.items()] for tap, sizes in one.taps.items()},
         sorted(one.unbounded)]
        for one in networks
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps([content, picture]).encode()).hexdigest()
    about = [
        {"network": one.title, "taps": {tap: [min(sizes), max(sizes)] for tap, sizes in one.taps.items()}}
        for one in networks
    ]
    return json.dumps(
        {"r2viz": __version__, "digest": digest, "picture": picture, "networks": about}, ensure_ascii=False
    )


def shades(networks: Sequence[Stairs]) -> Normalize:
    """log10 of path counts, from one path to the most that any network has of one size."""
    most = max(max(sizes.values()) for network in networks for sizes in network.taps.values())
    return Normalize(0, max(1.0, _log10(most)))


def _log10(count: int) -> float:
    # Path counts of deep networks are whole numbers beyond any float.
    return math.log10(count)


def _table(sizes: Sequence[Mapping[int, int]], top: float) -> np.ndarray:
    """log10 of the number of paths at heights up to `top`, `(rows, taps)`; NaN where no size is near.

    Every size fills half the distance to the next ones, so that a set without gaps is drawn without gaps.
    """
    rows = max(2, min(_ROWS, math.ceil(top)))
    heights = (np.arange(rows) + 0.5) * top / rows
    table = np.full((rows, len(sizes)), np.nan)
    for column, found in enumerate(sizes):
        values = np.array(sorted(found), dtype=np.float64)
        logs = np.array([_log10(found[int(size)]) for size in values])
        steps = np.diff(values)
        half = max(float(steps.min()) / 2 if len(steps) else 1.0, top / rows)
        nearest = np.abs(heights[:, None] - values[None]).argmin(axis=1)
        near = np.abs(heights - values[nearest]) <= half
        table[near, column] = logs[nearest[near]]
    return table


def _depth(ax: Axes, taps: Sequence[str]) -> None:
    """Stage names beneath, a line between stages, a small tick at every block."""
    stages, blocks = ([".".join(tap.split(".")[:parts]) for tap in taps] for parts in (1, 2))
    starts = [n for n in range(len(taps)) if n == 0 or stages[n] != stages[n - 1]]
    spans = list(zip(starts, [*starts[1:], len(taps)], strict=True))
    for start, _ in spans[1:]:
        ax.axvline(start - 0.5, color=GREY, linewidth=0.3)
    ax.set_xticks([n - 0.5 for n in range(1, len(taps)) if blocks[n] != blocks[n - 1]], minor=True)
    ax.set_xticks([])
    room = ax.get_position().width * ax.figure.get_size_inches()[0] * 72 / len(taps)  # type: ignore[union-attr]
    taken: list[tuple[float, float]] = []
    for start, stop in sorted(spans, key=lambda span: span[0] - span[1]):  # the widest stages are named first
        name = one_line(stages[start], 24)
        half = 1.85 * len(name)
        if (stop - start) * room < 0.6 * half:  # its name would stand beneath its neighbours
            continue
        middle = min(max((start + stop) / 2 * room, half), len(taps) * room - half)
        if any(middle - half < right + 3 and left - 3 < middle + half for left, right in taken):
            continue
        taken.append((middle - half, middle + half))
        ax.annotate(
            name, (middle / room - 0.5, 0), (0, -5), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=6, color=INK, ha="center", va="top", annotation_clip=False, **TEXT,
        )  # fmt: skip
    ax.annotate(
        "depth: splits and blocks in code order →", (0.5, 0), (0, -15), xycoords="axes fraction",
        textcoords="offset points", fontsize=6, color=GREY, ha="center", va="top", annotation_clip=False, **TEXT,
    )  # fmt: skip


def _shade_bar(drawing: Figure, shade: Normalize, left: float, top: float) -> None:
    most = float(shade.vmax or 1)
    step = max(1, math.ceil(most / 6))
    ticks = [float(tick) for tick in range(0, math.floor(most) + 1, step)]
    bar = placed(drawing, left, top, 2.0, 0.07)
    colour_bar(bar, colormaps[_COLOURS], (0, most), ticks, [power(tick) if tick else "1" for tick in ticks])
    bar.get_xticklabels()[-1].set_horizontalalignment("center")
    bar.annotate(
        "paths of one size", (1, 0.5), (6, 0), xycoords="axes fraction", textcoords="offset points", ha="left",
        va="center", fontsize=6, color=GREY, annotation_clip=False, **TEXT,
    )  # fmt: skip
    lines: list[tuple[str, Line, str]] = [
        (LARGEST, "solid", "largest size"),
        (SMALLEST, (0, (3, 1.2)), "smallest size"),
    ]
    for number, (colour, line, word) in enumerate(lines):
        x, wide, tall = 4.0 + 1.3 * number, *drawing.get_size_inches()
        y = 1 - (top + 0.035) / tall
        drawing.add_artist(Line2D((x / wide, (x + 0.22) / wide), (y, y), color=colour, linestyle=line, linewidth=0.9))
        drawing.text((x + 0.28) / wide, y, word, fontsize=6, color=GREY, va="center", **TEXT)


def _said(networks: Sequence[Stairs], picture: int | None) -> list[str]:
    said = [
        "Theoretical receptive fields: the sizes of all paths from the input to a unit, counting what lies beyond the "
        "picture; the shade is the number of paths of one size, logarithmic and the same for all panels. The number of "
        "paths above is that at the last tap."
    ]
    if picture is not None:
        said.append("Above the dashed line a field is larger than the picture.")
    if any(network.unbounded for network in networks):
        said.append("▲: some path sees the whole picture (a gate made by global pooling); sizes are the other paths'.")
    return said


def _count(count: int) -> str:
    if count < 10**6:
        return f"{count:,}"
    exponent, rest = divmod(_log10(count), 1)
    return f"{10**rest:.1f} × {power(exponent)}"
