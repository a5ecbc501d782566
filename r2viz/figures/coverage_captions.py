"""What figures of coverage share: words for a survey, a network's ink, axes of size and of shares, the key beneath."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from r2viz.coverage import MEASURES, Rows
from r2viz.errors import OutputError, UnknownName, nearest, one_line
from r2viz.figures.axes import NETWORK_COLOURS, NETWORK_LINES, Line
from r2viz.figures.canvas import GREY, INK
from r2viz.surveys import Look, Survey
from r2viz.version import __version__

WIDTH, MARGIN, LETTERS = 7.0, 0.08, 6.5
MARKERS = ("o", "s", "^", "D", "v", "P")
GAUSSIAN, CHANCE = "centre-Gaussian", "chance"
_DEFAULT = ("area_coverage_gain", "energy_gain", "evenness", "leakage", "pointing")
_TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)
_KINDS = {"box": "boxes", "mask": "masks", "pseudo-mask": "pseudo-masks (GrabCut from boxes)"}
_TARGETS = {"label": "of the class that the data set names", "shared": "of the class most probable to all networks"}


def looks_of(survey: Survey, method: str | None) -> list[Look]:
    """Each network's look by one method, or by the first.

    Raises:
        UnknownName: no such method.
    """
    return [survey.look(number, method) for number in range(len(survey.models))]


def wanted_measures(survey: Survey, measures: Sequence[str] | None, most: int) -> list[str]:
    """The measures asked for, or the first `most` of those that one would ask for.

    Raises:
        UnknownName: the survey has no such measure.
        OutputError: it has none at all.
    """
    if measures is None:
        found = [name for name in _DEFAULT if name in survey.measures] or list(survey.measures)
        if not found:
            raise OutputError("the survey has no measure of single pictures to draw", code="output.nothing")
        return found[:most]
    for name in measures:
        if name not in survey.measures:
            raise UnknownName(
                f"the survey has no measure {name!r}{nearest(name, survey.measures)}; it has "
                f"{', '.join(survey.measures)}",
                code="unknown_name.measure",
            )
    if not measures:
        raise OutputError("no measure was named; name at least one", code="output.nothing")
    return list(measures)


def made_of(survey: Survey, looks: Sequence[Look]) -> list[str]:
    """Sentences about data set, pictures, networks, weights and method."""
    count = len(survey)
    said = [f"{survey.dataset}: {count} picture{'' if count == 1 else 's'} with {_KINDS[survey.kind]}"]
    said[0] += f", {len(survey.failures)} more could not be measured." if survey.failures else "."
    said.append(f"{how(looks[0])}, {_TARGETS[survey.target]}.")
    said.append("Weights: " + "; ".join(f"{look.title}, {look.weights['source']}" for look in looks) + ".")
    constant = [int(look.rows.constant.sum()) for look in looks]
    if any(constant):
        said.append(f"Constant maps, which count as even ones: {' and '.join(map(str, constant))}.")
    if survey.registration == "grid":
        said.append("Maps are laid as by resizing, not by receptive-field centres.")
    return said


def how(look: Look) -> str:
    """Method and layer."""
    return f"{look.method_title} at {look.layer}"


def warned(looks: Sequence[Look]) -> list[str]:
    """Sentences in red."""
    if any(look.weights["kind"] == "random" for look in looks):
        return ["RANDOM WEIGHTS: untrained networks; these numbers say nothing about what training learns."]
    return []


def last_line(survey: Survey) -> str:
    return f"r2viz {survey.versions.get('r2viz', __version__)} · {survey.digest[:16]}"


def with_note(said: Sequence[str], note: str) -> list[str]:
    return [*said, *([one_line(note, 2000)] if note else [])]


def title_of(measure: str) -> str:
    return MEASURES[measure].title


def better(measure: str) -> str:
    return "higher is better" if MEASURES[measure].higher_is_better else "lower is better"


def is_gain(measure: str) -> bool:
    """Whether a measure is a difference already, in points rather than per cent."""
    return measure.endswith("_gain")


def chance_of(rows: Rows, measure: str) -> np.ndarray:
    """What a map that knows nothing would get in each picture, `(N,)`; NaN where there is no such number."""
    return rows.chance.get(measure, np.full(len(rows), np.nan))


def share_axis(ax: Axes, areas: np.ndarray) -> None:
    """A logarithmic x axis of the object's share of the picture, with numbers that people use."""
    ax.set_xscale("log")
    low, high = float(areas.min()), float(areas.max())
    ax.set_xlim(low / 1.15, min(1.02, high * 1.15) if high <= 1 else high * 1.15)
    ticks = [tick for tick in _TICKS if low / 1.15 <= tick <= max(high * 1.15, low)]
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def value_axis(ax: Axes, measure: str) -> None:
    """A y axis of shares: per cent, or for gains points."""
    gain = is_gain(measure)

    def said(value: float, _: int) -> str:
        # Room above 100 % is for words, not for values.
        return _signed(value) if gain else f"{100 * value:.0f} %" if value < 1.001 else ""

    ax.yaxis.set_major_formatter(FuncFormatter(said))
    ax.set_ylabel("points" if is_gain(measure) else "", fontsize=LETTERS, color=INK, labelpad=1)


def _signed(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-", "−") if round(100 * value) else "0"


def network_handles(looks: Sequence[Look], *, line: bool = True) -> tuple[list[Line2D], list[str]]:
    """Handles and names of the networks for a key."""
    handles = [
        Line2D(
            [], [], color=NETWORK_COLOURS[n], linestyle=NETWORK_LINES[n] if line else "none", linewidth=1,
            marker=MARKERS[n], markersize=3.4,
        )
        for n in range(len(looks))
    ]  # fmt: skip
    return handles, [one_line(look.title, 40) for look in looks]


def baseline_handles(*, gaussian: bool = True, chance: bool = True) -> tuple[list[Line2D], list[str]]:
    """Handles and names of what maps without knowledge get."""
    rows: list[tuple[str, Line]] = [(GAUSSIAN, (0, (4, 2)))] * gaussian + [(CHANCE, (0, (1, 1.5)))] * chance
    handles = [Line2D([], [], color=GREY, linestyle=style, linewidth=1) for _, style in rows]
    return handles, [name for name, _ in rows]


def key(drawing: Figure, handles: Sequence[Line2D], names: Sequence[str], top: float, left: float) -> None:
    """A row of signs and their names, `top` inches beneath the figure's upper edge."""
    width, height = drawing.get_size_inches()
    legend = drawing.legend(
        handles, names, loc="upper left", bbox_to_anchor=(left / width, 1 - top / height), ncol=len(handles),
        frameon=False, fontsize=6.5, borderpad=0, borderaxespad=0, columnspacing=1.4, handlelength=2.4, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
