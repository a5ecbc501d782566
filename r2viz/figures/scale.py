"""Theoretical and measured size against the number of splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2viz.errors import OutputError, one_line
from r2viz.figures.axes import LINE, NETWORK_COLOURS, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.statistics import Interval
from r2viz.version import __version__

_WIDTH, _MARGIN = 7.0, 0.08
_LETTERS = 6.5


@dataclass(frozen=True)
class ScalePoint:
    """One network among its variants.

    Attributes:
        label: what the figure calls it, say `26w-4s`.
        scale: number of splits; 1 for the plain block.
        theory: (min, max) in input pixels; `max` is None where it is unbounded.
        measured: sizes in input pixels by name, with their intervals.
        trained: whether the weights were trained.
    """

    label: str
    scale: int
    theory: tuple[int, int | None]
    measured: Mapping[str, Interval]
    trained: bool = False


def scale_figure(
    points: Sequence[ScalePoint], *, sizes: Sequence[str] = ("sigma",), titled: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:  # fmt: skip
    """The theoretical field's limits, and each measured size, against the number of splits.

    Args:
        points: see `ScalePoint`; one network may come twice, trained and untrained.
        sizes: names in `measured`, a panel each.
        titled: what the figure calls these, by name.
        note: what stands beneath, say which layer, inputs and weights.

    Raises:
        OutputError: no points.
    """
    if not points:
        raise OutputError("no network was given; size against scale needs at least one", code="output.nothing")
    names = {"sigma": "σ", "square50": "square with 50 %", "square95": "square with 95 %", **(titled or {})}
    panels = 1 + len(sizes)
    left, gap, head, tall, key = 0.46, 0.4, 0.24, 2.1, 0.2
    wide = min(2.7, (_WIDTH - left - _MARGIN - (panels - 1) * gap) / panels)
    total = left + panels * wide + (panels - 1) * gap + _MARGIN
    longest = max(len(point.label) for point in points)
    letters = min(6.0, 118 * wide / len({point.label for point in points}) / (longest + 1))
    upright = letters < 4.5
    letters = 5.8 if upright else letters
    under = min(1.2, 0.06 * longest + 0.12) if upright else 0.34
    said = [
        "Sizes in input pixels, by the number s of splits in a block. Left: from the smallest path's field to the "
        "largest, which counts what lies beyond the picture."
    ]
    if any(found.low < found.high for point in points for found in point.measured.values()):
        said.append("Bars through measured sizes: 95 % intervals of the mean.")
    caption = wrapped([*said, *([one_line(note, 2000)] if note else [])], [], "", total)
    drawing = sheet(total, 2 * _MARGIN + head + tall + under + key + LINE * len(caption) + 0.04)
    axes = [placed(drawing, left + n * (wide + gap), _MARGIN + head, wide, tall) for n in range(panels)]
    order = sorted({(point.scale, point.label): None for point in points}, key=lambda one: one[0])
    at = [order.index((point.scale, point.label)) for point in points]
    _theory(axes[0], points, at)
    for ax, size in zip(axes[1:], sizes, strict=True):
        _measured(ax, points, at, size)
        titles(ax, f"measured {names.get(size, size)}", least=wide)
    for ax in axes:
        ax.set_xticks(range(len(order)), [f"{one_line(label, 24)}\ns = {scale}" for scale, label in order])
        ax.set_xlim(-0.6, len(order) - 0.4)
        ax.set_ylim(0, ax.get_ylim()[1] * 1.1)
        quiet(ax)
        ax.tick_params(axis="x", labelsize=letters, labelrotation=90 if upright else 0)
        for text in ax.get_xticklabels():
            text.set_parse_math(False)
    axes[0].set_ylabel("input pixels", fontsize=_LETTERS, color=INK, labelpad=2)
    _markers(drawing, points, _MARGIN + head + tall + under, left)
    write(drawing, caption)
    return drawing


def scale_provenance(points: Sequence[ScalePoint], *, note: str = "") -> str:
    """What the figure embeds: its points and their digest, as one JSON object."""
    found = [
        {
            **{key: value for key, value in asdict(point).items() if key != "measured"},
            "measured": {name: value.as_dict() for name, value in point.measured.items()},
        }
        for point in points
    ]
    content = {"points": found, "note": note}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"r2viz": __version__, "digest": digest, **content}, ensure_ascii=False)


def _colour(point: ScalePoint) -> str:
    return NETWORK_COLOURS[0 if point.scale == 1 else 1]


def _theory(ax: Axes, points: Sequence[ScalePoint], at: Sequence[int]) -> None:
    titles(ax, "theory")
    largest = max([high for point in points for high in [point.theory[1]] if high is not None], default=1)
    for x, point in dict(zip(at, points, strict=True)).items():
        low, high = point.theory
        top = 1.05 * largest if high is None else high
        ax.vlines(
            x, low, top, color=_colour(point), linewidth=2.2, alpha=0.55, label=point.label,
            linestyle="dotted" if high is None else "solid",
        )  # fmt: skip
        ends = [low] if high is None else [low, high]
        ax.plot([x] * len(ends), ends, linestyle="none", marker="_", markersize=6, color=_colour(point))
        ax.annotate(
            "unbounded" if high is None else str(high), (x, top), (0, 4), textcoords="offset points", ha="center",
            va="bottom", fontsize=5.8, color=_colour(point), **TEXT,
        )  # fmt: skip


def _measured(ax: Axes, points: Sequence[ScalePoint], at: Sequence[int], size: str) -> None:
    for point, x in zip(points, at, strict=True):
        found = point.measured.get(size)
        if found is None or not found.n:
            continue
        if found.low < found.high:
            ax.vlines(x, found.low, found.high, color=_colour(point), linewidth=0.9)
        ax.plot(
            [x], [found.mean], linestyle="none", marker="o" if point.scale == 1 else "s", markersize=4.2,
            markeredgecolor=_colour(point), markerfacecolor=_colour(point) if point.trained else "white",
            markeredgewidth=0.9, label=point.label, zorder=3,
        )  # fmt: skip


def _markers(drawing: Figure, points: Sequence[ScalePoint], top: float, left: float) -> None:
    width, height = drawing.get_size_inches()
    rows = [("plain block", "o", NETWORK_COLOURS[0], True)] if any(p.scale == 1 for p in points) else []
    rows += [("Res2Net block", "s", NETWORK_COLOURS[1], True)] if any(p.scale > 1 for p in points) else []
    for trained, word in ((True, "trained"), (False, "untrained")):
        if any(p.trained is trained for p in points):
            rows.append((word, "o", GREY, trained))
    handles = [
        Line2D([], [], marker=marker, linestyle="none", markersize=4.2, markeredgewidth=0.9, color=colour,
               markerfacecolor=colour if full else "white")
        for _, marker, colour, full in rows
    ]  # fmt: skip
    drawing.legend(
        handles, [row[0] for row in rows], loc="upper left", bbox_to_anchor=(left / width, 1 - top / height),
        ncol=len(rows), frameon=False, fontsize=6.5, borderpad=0, borderaxespad=0, handletextpad=0.2,
        columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip
