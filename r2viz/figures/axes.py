"""What figures of receptive fields share: a network's colour, quiet axes, lines beneath, words for sizes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from r2viz.errors import one_line
from r2viz.figures.canvas import DPI, GREY, INK, TEXT, WARNING
from r2viz.statistics import Interval

Line = Literal["solid"] | tuple[float, Sequence[float]]
"""A line's pattern: solid, or where it starts and the lengths of dashes and gaps."""

# Okabe and Ito's colours, told apart by colour-blind eyes; the baseline comes first. Lines and markers differ as well,
# for grey print.
NETWORK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NETWORK_LINES: tuple[Line, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (3, 3)), (0, (8, 2)))
LINE = 0.125
"""Height of a line of a caption in inches."""
_LETTERS_PER_INCH = 21.5


def sheet(width: float, height: float) -> Figure:
    """An empty white figure; inches."""
    drawing = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawing)
    return drawing


def placed(drawing: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    wide, tall = drawing.get_size_inches()
    return drawing.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))


def quiet(ax: Axes, *, grid: bool = True) -> Axes:
    """Thin grey axes with small numbers."""
    ax.tick_params(labelsize=6, length=2.2, width=0.4, color=GREY, labelcolor=INK, pad=1.5, which="major")
    ax.tick_params(length=1.2, width=0.3, color=GREY, which="minor")
    if grid:
        ax.grid(True, linewidth=0.3, color="#e3e3e3")
        ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color(GREY)
    return ax


def wrapped(said: Sequence[str], warned: Sequence[str], last: str, width: float) -> list[tuple[str, str]]:
    """Lines of a caption with their colours, for a figure of that many inches."""
    letters = int((width - 0.16) * _LETTERS_PER_INCH)
    lines = [(line, GREY) for line in textwrap.wrap(one_line(" ".join(said), 4000), letters)]
    for sentence in warned:
        lines += [(line, WARNING) for line in textwrap.wrap(sentence, letters)]
    return [*lines, *([(last, GREY)] if last else [])]


def write(drawing: Figure, lines: Sequence[tuple[str, str]], *, left: float = 0.08) -> None:
    """A caption at the figure's foot."""
    wide, tall = drawing.get_size_inches()
    for number, (line, colour) in enumerate(lines):
        up = 0.08 + LINE * (len(lines) - number) - 0.02
        drawing.text(left / wide, up / tall, line, fontsize=6, color=colour, va="top", **TEXT)


def pixels(value: float) -> str:
    """A length in as many digits as it deserves."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def with_interval(found: Interval) -> str:
    """A mean with its interval, where it has one."""
    if not found.n:
        return "unknown"
    if not (found.low < found.high):
        return pixels(found.mean)
    return f"{pixels(found.mean)} [{pixels(found.low)}, {pixels(found.high)}]"


def power(exponent: float) -> str:
    """A power of ten as people write it."""
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
