"""Accuracy against cost: what the paper prints as open markers, what was measured here as filled ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator

from r2viz.errors import OutputError, one_line
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, missing_glyphs_allowed
from r2viz.version import __version__

# Okabe and Ito's blue and vermilion, told apart by colour-blind eyes; the markers differ too, for grey print.
_BASELINE, _RES2NET = "#0072B2", "#D55E00"
_LETTERS = 6.2  # points
_MARKER = 4.6
_NEAR = 5.0  # points; a name farther from its marker gets a leader
_KEPT = 80  # places for a name that are worth a second look


@dataclass(frozen=True)
class Point:
    """One accuracy of one network.

    Attributes:
        label: the network's name in the figure; pairs speak of it.
        accuracy: top-1 in percent.
        macs, params: None where nobody counted; the point is then not in that panel.
        data: what the accuracy was measured on; each data set has its own axes.
        res2net: whether it has Res2Net blocks.
        interval: 95 % (low, high) in percent where it was measured here; None for a printed number.
    """

    label: str
    accuracy: float
    macs: int | None
    params: int | None
    data: str
    res2net: bool
    interval: tuple[float, float] | None = None


def tradeoff(points: Sequence[Point], pairs: Sequence[tuple[str, str]] = (), *, note: str = "") -> Figure:
    """A row of two panels for each data set: top-1 accuracy against multiply-adds, and against parameters.

    Args:
        points: see `Point`.
        pairs: labels of (baseline, the same with Res2Net blocks), joined by a line where both are in a panel.
        note: a line beneath, say on how the labels are shortened.

    Raises:
        OutputError: no point has a cost.
    """
    drawable = [one for one in points if one.macs is not None or one.params is not None]
    if not drawable:
        raise OutputError("no network of these tables has both an accuracy and a counted cost; nothing can be drawn")
    data = {name: [one for one in drawable if one.data == name] for name in dict.fromkeys(p.data for p in drawable)}
    heights = [min(5.0, 1.5 + 0.15 * len({one.label for one in inside})) for inside in data.values()]
    left, right, top, above, below, gap = 0.52, 0.1, 0.06, 0.24, 0.42, 0.18
    foot = 0.42 if note else 0.28
    width = 7.2
    height = top + sum(heights) + len(heights) * (above + below) + foot
    drawing = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)
    panel = (width - left - right - gap) / 2
    edge = height - top
    for (name, inside), tall in zip(data.items(), heights, strict=True):
        edge -= above + tall
        axes = [
            drawing.add_axes(
                ((left + i * (panel + gap)) / width, edge / height, panel / width, tall / height),
            )
            for i in range(2)
        ]
        drawing.text(
            left / width, (edge + tall + 0.07) / height, one_line(name, 80), fontsize=8, fontweight="bold", color=INK,
            va="bottom", **TEXT,
        )  # fmt: skip
        _panel(axes[0], inside, pairs, lambda one: one.macs, "multiply-adds per picture", (panel, tall))
        _panel(axes[1], inside, pairs, lambda one: one.params, "parameters", (panel, tall))
        axes[0].set_ylabel("top-1 accuracy, %", fontsize=7, color=INK, labelpad=3)
        axes[1].tick_params(labelleft=False)
        edge -= below
    _legend(drawing, drawable, (width, height), 0.24 if note else 0.1)
    drawing.text(0.5, 0.08 / height, one_line(note, 160), fontsize=6.5, color=GREY, ha="center", va="bottom", **TEXT)
    return drawing


def described(points: Sequence[Point], pairs: Sequence[tuple[str, str]] = ()) -> str:
    """What the figure embeds: its points and their digest, as one JSON object."""
    content = {"points": [asdict(one) for one in points], "pairs": [list(pair) for pair in pairs]}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"r2viz": __version__, "digest": digest, **content}, ensure_ascii=False)


def _panel(
    ax: Axes,
    points: Sequence[Point],
    pairs: Sequence[tuple[str, str]],
    cost: Callable[[Point], int | None],
    title: str,
    inches: tuple[float, float],
) -> None:
    shown = [one for one in points if cost(one) is not None]
    if not shown:
        ax.set_axis_off()
        return
    largest = max(_cost(one, cost) for one in shown)
    unit, sign = (1e9, "G") if largest >= 1e9 else (1e6, "M")
    xs = np.array([_cost(one, cost) / unit for one in shown])
    ys = np.array([one.accuracy for one in shown])
    low = [one.interval[0] if one.interval else one.accuracy for one in points]
    high = [one.interval[1] if one.interval else one.accuracy for one in points]
    ax.set_xlim(*_span(xs.min(), xs.max(), least=0.25 * xs.mean(), pad=0.24))
    ax.set_ylim(*_span(min(low), max(high), least=1.2, pad=0.12))
    at = {one.label: (x, one.accuracy) for one, x in zip(shown, xs, strict=True) if one.interval is not None}
    at = {one.label: (x, one.accuracy) for one, x in zip(shown, xs, strict=True) if one.interval is None} | at
    joined = [(at[first], at[second]) for first, second in pairs if first in at and second in at]
    for (x0, y0), (x1, y1) in joined:
        ax.plot([x0, x1], [y0, y1], color="#9a9a9a", linewidth=0.7, zorder=1)
    for one, x in zip(shown, xs, strict=True):
        colour = _RES2NET if one.res2net else _BASELINE
        if one.interval is not None:
            ax.vlines(x, *one.interval, color=colour, linewidth=0.9, zorder=2)
        ax.plot(
            [x], [one.accuracy], marker="s" if one.res2net else "o", markersize=_MARKER - (0.4 if one.res2net else 0),
            markeredgecolor=colour, markerfacecolor=colour if one.interval is not None else "white",
            markeredgewidth=0.9, linestyle="none", zorder=3,
        )  # fmt: skip
    _labels(ax, shown, xs, ys, joined, inches)
    ax.set_xlabel(f"{title}, {sign}", fontsize=7, color=INK, labelpad=2)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(7))
    ax.tick_params(labelsize=6.5, length=2.5, width=0.4, color=GREY, labelcolor=INK, pad=2)
    ax.grid(True, linewidth=0.3, color="#e3e3e3")
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color(GREY)


def _cost(one: Point, cost: Callable[[Point], int | None]) -> int:
    return cost(one) or 0


def _span(low: float, high: float, *, least: float, pad: float) -> tuple[float, float]:
    """Limits with a margin, and no narrower than `least`: half a percent of difference must not fill the panel."""
    room = max(high - low, least)
    middle = (low + high) / 2
    return middle - room * (0.5 + pad), middle + room * (0.5 + pad)


# --- Labels ----------------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def _labels(
    ax: Axes,
    points: Sequence[Point],
    xs: np.ndarray,
    ys: np.ndarray,
    joined: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    inches: tuple[float, float],
) -> None:
    """Each network's name once, near its marker and over nothing else; with a thin leader where it stands apart."""

    def on_paper(x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        return (x - x0) / (x1 - x0) * inches[0] * 72, (y - y0) / (y1 - y0) * inches[1] * 72

    dots = [on_paper(x, y) for x, y in zip(xs, ys, strict=True)]
    first = {one.label: number for number, one in reversed(list(enumerate(points)))}
    words = {number: one_line(label, 40) for label, number in first.items()}
    sizes = {number: _size(word) for number, word in words.items()}
    lines = [(on_paper(*start), on_paper(*end)) for start, end in joined]
    lines += [
        (on_paper(x, one.interval[0]), on_paper(x, one.interval[1]))
        for one, x in zip(points, xs, strict=True)
        if one.interval is not None
    ]
    bounds = (1.5, 1.5, inches[0] * 72 - 1.5, inches[1] * 72 - 1.5)
    placed = _placed(dots, sizes, lines, bounds)
    for number, (box, end) in placed.items():
        colour = _RES2NET if points[number].res2net else _BASELINE
        x, y = dots[number]
        if end is not None:
            ax.annotate(
                "", (x, y), end, xycoords=("axes points", "axes points"), textcoords=("axes points", "axes points"),
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colour, "alpha": 0.7, "shrinkA": 0,
                            "shrinkB": _MARKER / 2},
            )  # fmt: skip
        ax.annotate(
            words[number], (box[0] + 1.2, (box[1] + box[3]) / 2), xycoords="axes points", fontsize=_LETTERS,
            color=colour, ha="left", va="center", annotation_clip=False, zorder=4, **TEXT,
        )  # fmt: skip


def _size(word: str) -> tuple[float, float]:
    with missing_glyphs_allowed():
        width, _, _ = TextToPath().get_text_width_height_descent(word, FontProperties(size=_LETTERS), ismath=False)
    return width + 2.5, _LETTERS * 1.12


def _placed(
    dots: Sequence[tuple[float, float]],
    sizes: dict[int, tuple[float, float]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    bounds: Box,
) -> dict[int, tuple[Box, tuple[float, float] | None]]:
    """(box, where its leader ends) by point: of some hundred places each, the cheapest, in rounds until none moves.

    All in points (1/72 inch) from the panel's lower left corner.
    """
    half = _MARKER / 2 + 1.0
    markers = np.array([(x - half, y - half, x + half, y + half) for x, y in dots])
    grains = np.array([point for start, end in lines for point in _along(start, end)] or [(-1e3, -1e3)])
    places = {number: _places(dots[number], size, half) for number, size in sizes.items()}
    fixed = {}
    for number, found in places.items():
        boxes, ends = np.array([box for box, _, _ in found]), np.array([end for _, end, _ in found])
        far = np.array([distance for _, _, distance in found])
        own = np.arange(len(markers)) == number
        leaders = _leaders(dots[number], ends)
        cost = far + 60.0 * _overlaps(boxes, markers).sum(1) + 2.5 * _holds(boxes, grains).sum(1)
        # A name nearer to another marker than to its own would be read as that one's.
        others = [_gap(boxes, dot) for index, dot in enumerate(dots) if index != number and dot != dots[number]]
        if others:
            cost += 3.0 * (np.min(others, axis=0) < _gap(boxes, dots[number]) + 1.5)
        outside = (boxes[:, :2] < np.array(bounds[:2])) | (boxes[:, 2:] > np.array(bounds[2:]))
        cost += 400.0 * outside.any(1)
        hit = np.any(_holds(markers[~own], leaders.reshape(-1, 2)).any(0).reshape(leaders.shape[:2]), axis=1)
        cost += 8.0 * (hit & (far > _NEAR))
        best = np.argsort(cost, kind="stable")[:_KEPT]
        fixed[number] = (boxes[best], ends[best], leaders[best], far[best], cost[best])
    chosen = dict.fromkeys(sizes, 0)
    for _ in range(12):
        before = dict(chosen)
        for number in sizes:
            boxes, ends, leaders, _, cost = fixed[number]
            total = cost.copy()
            for other, place in chosen.items():
                if other == number:
                    continue
                there, end, leader = (array[place] for array in fixed[other][:3])
                total += 100.0 * _overlaps(boxes, there[None])[:, 0] + 15.0 * _holds(boxes, leader).any(1)
                total += 15.0 * np.any(_holds(there[None], leaders.reshape(-1, 2)).reshape(leaders.shape[:2]), axis=1)
                total += 15.0 * _cross(np.array(dots[number]), ends, np.array(dots[other]), end)
            chosen[number] = int(total.argmin())
        if chosen == before:
            break
    result: dict[int, tuple[Box, tuple[float, float] | None]] = {}
    for number, place in chosen.items():
        boxes, ends, _, far, _ = fixed[number]
        x0, y0, x1, y1 = map(float, boxes[place])
        end_x, end_y = map(float, ends[place])
        result[number] = ((x0, y0, x1, y1), (end_x, end_y) if far[place] > _NEAR else None)
    return result


def _places(
    dot: tuple[float, float], size: tuple[float, float], half: float
) -> list[tuple[Box, tuple[float, float], float]]:
    """(box, its point nearest to the marker, cost of the distance): all around the marker, ever farther."""
    (x, y), (width, height) = dot, size
    found = []
    for distance in (1.2, 4, 8, 13, 19, 26, 34, 44, 56):
        for step in range(24):
            angle = 2 * math.pi * step / 24
            dx, dy = math.cos(angle), math.sin(angle)
            reach = half + distance
            # Beyond the circle of `reach`: the box's side that faces the marker touches it.
            cx = x + dx * (reach + width / 2 if abs(dx) > 0.05 else 0.0)
            cy = y + dy * (reach + height / 2)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            gap = math.dist(dot, end) - half
            found.append((box, end, max(0.0, gap) + (0.0 if step == 0 else 0.8)))
    return found


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points on a line, not farther than 2 apart."""
    count = max(2, int(math.dist(start, end) / 2) + 1)
    return [(float(x), float(y)) for x, y in np.linspace(start, end, count)]


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bool `(N, M)`."""
    a, b = boxes[:, None], others[None]
    return (a[..., 0] < b[..., 2]) & (b[..., 0] < a[..., 2]) & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])


def _holds(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bool `(N, P)`: which boxes hold which points."""
    a, p = boxes[:, None], points[None]
    return (a[..., 0] < p[..., 0]) & (p[..., 0] < a[..., 2]) & (a[..., 1] < p[..., 1]) & (p[..., 1] < a[..., 3])


def _gap(boxes: np.ndarray, dot: tuple[float, float]) -> np.ndarray:
    """Distance of each box from a point, `(N,)`."""
    beside = np.maximum(np.maximum(boxes[:, 0] - dot[0], dot[0] - boxes[:, 2]), 0)
    above = np.maximum(np.maximum(boxes[:, 1] - dot[1], dot[1] - boxes[:, 3]), 0)
    return np.hypot(beside, above)


def _leaders(dot: tuple[float, float], ends: np.ndarray) -> np.ndarray:
    """Points on the lines from a marker to the places of its name, `(N, 9, 2)`."""
    share = np.linspace(0, 1, 9)[None, :, None]
    return np.array(dot) * (1 - share) + ends[:, None] * share


def _cross(start: np.ndarray, ends: np.ndarray, other: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which of the lines from `start` to `ends` cross that from `other` to `end`, bool `(N,)`."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        a, b = q - p, r - p
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    apart = side(start, ends, other) * side(start, ends, end) < 0
    return apart & (side(other, end, start) * side(other, end, ends) < 0)


def _legend(drawing: Figure, points: Sequence[Point], size: tuple[float, float], bottom: float) -> None:
    def handle(colour: str, marker: str, filled: bool) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=colour, markerfacecolor=colour if filled else "white", linestyle="none",
            markersize=_MARKER, markeredgewidth=0.9,
        )  # fmt: skip

    handles = [(handle(_BASELINE, "o", False), "baseline"), (handle(_RES2NET, "s", False), "with Res2Net blocks")]
    if any(one.interval is None for one in points):
        handles.append((handle(GREY, "o", False), "printed in the paper"))
    if any(one.interval is not None for one in points):
        handles.append((handle(GREY, "o", True), "measured here, 95 % interval over pictures"))
    handles.append((Line2D([], [], color="#9a9a9a", linewidth=0.7), "a pair"))
    legend = drawing.legend(
        [one for one, _ in handles], [name for _, name in handles], loc="lower center", ncol=len(handles),
        bbox_to_anchor=(0.5, bottom / size[1]), frameon=False, fontsize=6.5, handletextpad=0.2, columnspacing=1.4,
        borderpad=0, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
