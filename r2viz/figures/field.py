"""One effective receptive field as a map with theory outlined, and the scale and window that several share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from r2viz.erf_records import Erf
from r2viz.figures.axes import Line, placed, power, quiet
from r2viz.figures.canvas import GREY, TEXT, WARNING
from r2viz.figures.overlay import colour_bar

LARGEST, SMALLEST = "#0072B2", "#009E73"
"""The theoretical field's outlines: everything a unit could see (solid), and its smallest path (dashed)."""
_DECADES = 6


def draw_erf(ax: Axes, erf: Erf, *, scale: LogNorm, window: tuple[float, float, float, float] | None = None) -> Axes:
    """The map as share of its mass per pixel, in input pixels, theory outlined; what is not drawn is said.

    Args:
        ax: where.
        erf: what.
        scale: of shares per pixel; see `common_scale`.
        window: (y0, x0, y1, x1) of the input that is shown; the picture unless given.
    """
    height, width = erf.input_size
    window = (0, 0, height, width) if window is None else window
    ax.set_facecolor("#e9e9e9")
    ax.add_patch(Rectangle((0, 0), width, height, facecolor="white", edgecolor=GREY, linewidth=0.4, zorder=0.5))
    if erf.sizes is None:
        _say(ax, "no gradient reaches\nthe input: no map", 0.5, WARNING)
    else:
        ax.imshow(
            density(erf), norm=scale, cmap=colours(), extent=(0, width, height, 0), aspect="auto",
            interpolation="antialiased", zorder=1,
        )  # fmt: skip
    ax.set_xlim(window[1], window[3])
    ax.set_ylim(window[2], window[0])
    said = outline(ax, erf, window)
    if said:
        _say(ax, said, 0.035, LARGEST)
    quiet(ax, grid=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    return ax


def outline(ax: Axes, erf: Erf, window: tuple[float, float, float, float]) -> str:
    """Squares of the largest and the smallest theoretical field; returns what they cannot show, in words."""
    theory = erf.theory
    if theory is None:
        return "theory does not say"
    y, x = erf.centre[0] + 0.5, erf.centre[1] + 0.5  # the axes count edges, a centre counts middles
    half = theory.min / 2
    _square(ax, (y - half, x - half, y + half, x + half), SMALLEST, (0, (2, 1)), "min")
    if theory.unbounded:
        return "unbounded: sees the whole picture"
    _square(ax, theory.box, LARGEST, "solid", "max")
    box = theory.box
    hidden = box[0] < window[0] and box[1] < window[1] and box[2] > window[2] and box[3] > window[3]
    remarks = [f"could see {theory.max} px: beyond this panel"] if hidden else []
    if not theory.aligned:
        remarks.append("paths have several centres")
    return "\n".join(remarks)


def _square(ax: Axes, box: tuple[float, float, float, float], colour: str, line: Line, label: str) -> None:
    y0, x0, y1, x1 = box
    ax.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=colour,
            linewidth=0.9,
            linestyle=line,
            zorder=3,
            label=label,
            path_effects=[withStroke(linewidth=1.9, foreground="white", alpha=0.85)],
        )
    )


def _say(ax: Axes, text: str, up: float, colour: str) -> None:
    ax.text(
        0.5, up, text, transform=ax.transAxes, ha="center", va="bottom" if up < 0.3 else "center", fontsize=5.5,
        color=colour, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}, zorder=5, **TEXT,
    )  # fmt: skip


def density(erf: Erf) -> np.ndarray:
    """The share of the mass on each pixel, float64 `(H, W)`."""
    map_ = erf.map.astype(np.float64)
    total = map_.sum()
    return map_ / total if total > 0 else map_


def common_scale(erfs: Iterable[Erf]) -> LogNorm:
    """Shares of mass per pixel for all maps: up to the greatest, down to where 99 % of each map's mass is shown.

    Six powers of ten at most.
    """
    highest, lowest = [], []
    for erf in erfs:
        if erf.sizes is not None:
            values = np.sort(density(erf), axis=None)[::-1]
            highest.append(values[0])
            lowest.append(values[min(int(np.searchsorted(np.cumsum(values), 0.99)), len(values) - 1)])
    if not highest:
        return LogNorm(1e-6, 1)
    top = math.ceil(math.log10(max(highest)) - 1e-9)
    bottom = math.floor(math.log10(max(min(lowest), 1e-30)))
    return LogNorm(10.0 ** max(min(bottom, top - 1), top - _DECADES), 10.0**top)


def colours() -> Colormap:
    """White where there is next to nothing, then yellow to black."""
    return colormaps["inferno_r"].with_extremes(under="white", bad="white")


def scale_bar(drawing: Figure, scale: LogNorm, left: float, top: float, room: float) -> None:
    """The colour scale, and what it is of."""
    low, high = round(math.log10(scale.vmin or 1e-6)), round(math.log10(scale.vmax or 1))
    bar = placed(drawing, left, top, max(0.6, min(2.0, room - 1.65)), 0.07)
    ticks = list(range(low, high + 1))
    colour_bar(bar, colours(), (low, high), [float(tick) for tick in ticks], [power(tick) for tick in ticks])
    bar.annotate(
        "share of the map's mass per pixel", (1, 0.5), (5, 0), xycoords="axes fraction", textcoords="offset points",
        ha="left", va="center", fontsize=6, color=GREY, annotation_clip=False, **TEXT,
    )  # fmt: skip


def window_of(erfs: Sequence[Erf]) -> tuple[float, float, float, float]:
    """What all panels show, (y0, x0, y1, x1): every theoretical field that is not far beyond the picture."""
    height, width = erfs[0].input_size
    boxes: list[tuple[float, float, float, float]] = []
    for erf in erfs:
        theory = erf.theory
        if theory is None or theory.unbounded:
            boxes.append((0, 0, height, width))
            continue
        y0, x0, y1, x1 = theory.box
        fits = y1 - y0 <= 2 * height and x1 - x0 <= 2 * width
        boxes.append(theory.box if fits else (0, 0, height, width))
    y0, x0 = (min(box[side] for box in boxes) for side in (0, 1))
    y1, x1 = (max(box[side] for box in boxes) for side in (2, 3))
    pad = 0.04 * max(y1 - y0, x1 - x0)
    return y0 - pad, x0 - pad, y1 + pad, x1 + pad
