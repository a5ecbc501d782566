"""Coverage against the object's size, and the difference between two networks in each stratum of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2viz.errors import OutputError, one_line
from r2viz.figures.axes import LINE, NETWORK_COLOURS, NETWORK_LINES, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.coverage_captions import (
    LETTERS,
    MARGIN,
    MARKERS,
    WIDTH,
    baseline_handles,
    better,
    chance_of,
    key,
    last_line,
    looks_of,
    made_of,
    network_handles,
    share_axis,
    title_of,
    value_axis,
    wanted_measures,
    warned,
    with_note,
)
from r2viz.statistics import MARGIN as TWO_POINTS
from r2viz.statistics import SIZES, Interval, strata_of, stratified_intervals
from r2viz.surveys import Look, Survey

_MOST_POINTS = 1500


@dataclass(frozen=True)
class StratumDifference:
    """A row of a forest plot.

    Attributes:
        group: what rows that belong together share, say the measure's title, or method and measure.
        stratum: which objects.
        found: second network minus first, as a share (0.02 = two points); `n` is printed.
        higher_is_better: False for leakage: its rows say so.
    """

    group: str
    stratum: str
    found: Interval
    higher_is_better: bool = True


def coverage_by_size(
    survey: Survey,
    *,
    measures: Sequence[str] | None = None,
    method: str | None = None,
    strata: Mapping[str, tuple[float, float]] = SIZES,
    note: str = "",
) -> Figure:
    """Each measure against the object's share of the picture (logarithmic): pictures faint, means of strata in front.

    Every network, the centre-Gaussian and chance; bars are 95 % intervals of a stratum's mean over pictures, as
    `r2viz.statistics.stratified_intervals` gives them.

    Args:
        survey: of one network or several.
        measures: of the survey, a panel each; the four that one would ask for first unless given.
        method: of the survey; its first unless given.
        strata: lower limit out, upper in.
        note: what else the caption says.

    Raises:
        UnknownName: no such measure or method.
        OutputError: no picture, or no measure, is left to draw.
    """
    looks = looks_of(survey, method)
    wanted = wanted_measures(survey, measures, 4)
    if not np.isfinite(survey.area).any():
        raise OutputError("no object was seen, so there is no size to draw against", code="output.nothing")
    members = strata_of(survey.area, strata)
    members = {name: which for name, which in members.items() if which.any()}
    columns = {(place, name): look.rows.values[name] for place, look in enumerate(looks) for name in wanted}
    columns |= {(-1, name): survey.gaussian.values[name] for name in wanted}
    columns |= {(-2, name): chance_of(survey.gaussian, name) for name in wanted}
    means = stratified_intervals({f"{place} {name}": values for (place, name), values in columns.items()}, members)

    across = 1 if len(wanted) == 1 else 2
    down = math.ceil(len(wanted) / across)
    left, gap, head, tall, under, foot = 0.46, 0.42, 0.36, 1.9, 0.36, 0.2
    wide = (WIDTH - left - 2 * MARGIN - (across - 1) * gap) / across
    caption = wrapped(_said(survey, looks, members, note), warned(looks), last_line(survey), WIDTH)
    drawing = sheet(WIDTH, 2 * MARGIN + down * (head + tall + under) + foot + LINE * len(caption) + 0.04)
    for number, name in enumerate(wanted):
        top = MARGIN + head + (number // across) * (head + tall + under)
        ax = placed(drawing, left + (number % across) * (wide + gap), top, wide, tall)
        for place, look in enumerate(looks):
            _points(ax, survey.area, look.rows.values[name], place)
        for place in range(-2, len(looks)):
            _means(
                ax, survey.area, members, [means[f"{place} {name}", stratum] for stratum in members], place, len(looks)
            )
        share_axis(ax, survey.area[np.isfinite(survey.area)])
        value_axis(ax, name)
        _strata(ax, strata, members)
        quiet(ax)
        ax.grid(False, axis="x")
        titles(ax, title_of(name), better(name), least=wide)
        ax.set_xlabel("object's share of the picture", fontsize=LETTERS, color=INK, labelpad=1)
    known = any(np.isfinite(columns[-2, name]).any() for name in wanted)
    signs, names = network_handles(looks)
    more, called = baseline_handles(chance=known)
    key(drawing, [*signs, *more], [*names, *called], MARGIN + down * (head + tall + under) + 0.04, left)
    write(drawing, caption)
    return drawing


def _said(survey: Survey, looks: Sequence[Look], members: Mapping[str, np.ndarray], note: str) -> list[str]:
    said = made_of(survey, looks)
    said.append(
        "Faint: single pictures" + (f" ({_MOST_POINTS} of them)" if len(survey) > _MOST_POINTS else "") + ". Joined "
        "signs: means of strata, at the mean log share, with 95 % intervals over pictures (bootstrap, BCa)."
    )
    beyond = int((~np.logical_or.reduce(list(members.values()))).sum()) if members else len(survey)
    if beyond:
        said.append(f"{beyond} picture{'' if beyond == 1 else 's'} in no stratum.")
    said.append(
        "Centre-Gaussian: the map that knows no picture (σ a quarter of each side). Chance: what an even map gets."
    )
    return with_note(said, note)


def _points(ax: Axes, areas: np.ndarray, values: np.ndarray, place: int) -> None:
    step = max(1, -(-len(areas) // _MOST_POINTS))
    ax.plot(
        areas[::step], values[::step], linestyle="none", marker=MARKERS[place], markersize=1.8, markeredgewidth=0,
        color=NETWORK_COLOURS[place], alpha=0.28 if len(areas) > 60 else 0.5, rasterized=True, label=f"pictures{place}",
    )  # fmt: skip


def _means(
    ax: Axes, areas: np.ndarray, members: Mapping[str, np.ndarray], found: Sequence[Interval], place: int,
    networks: int,
) -> None:  # fmt: skip
    middle = np.array([math.exp(float(np.log(areas[which]).mean())) for which in members.values()])
    means = np.array([interval.mean for interval in found])
    if not np.isfinite(means).any():
        return
    if place < 0:
        name, style = (("gaussian", "--"), ("chance", ":"))[-place - 1]
        ax.plot(middle, means, color=GREY, linestyle=style, linewidth=1, zorder=2.5, label=name)
        return
    # Beside each other, so that neither bar hides the other.
    at = middle * 1.035 ** (2 * place - networks + 1)
    colour = NETWORK_COLOURS[place]
    ax.plot(
        at, means, color=colour, linestyle=NETWORK_LINES[place], linewidth=1, marker=MARKERS[place], markersize=3.8,
        markeredgecolor="white", markeredgewidth=0.4, zorder=4, label=f"means{place}",
    )  # fmt: skip
    for x, interval in zip(at, found, strict=True):
        if math.isfinite(interval.low):
            ax.vlines(x, interval.low, interval.high, color=colour, linewidth=1.1, zorder=3)


def _strata(ax: Axes, strata: Mapping[str, tuple[float, float]], members: Mapping[str, np.ndarray]) -> None:
    """Limits as thin lines; each stratum's name and its number of pictures at the top, where there is room."""
    low, high = ax.get_xlim()
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + 0.14 * (top - bottom))
    for edge in {edge for limits in strata.values() for edge in limits if low < edge < high}:
        ax.axvline(edge, color="#c8c8c8", linewidth=0.5, zorder=0.5)
    for name, which in members.items():
        start, end = max(strata[name][0], low), min(strata[name][1], high)
        room = math.log(end / start) / math.log(high / low) * ax.get_position().width * WIDTH
        ax.annotate(
            f"{name}\nn = {int(which.sum())}", (math.sqrt(start * end), 1), (0, -2),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="top",
            fontsize=min(5.5, 17 * room), color=GREY, linespacing=1.05, **TEXT,
        )  # fmt: skip


def difference_by_stratum(
    rows: Sequence[StratumDifference],
    *,
    networks: tuple[str, str],
    margin: float = TWO_POINTS,
    note: str = "",
    last: str = "",
) -> Figure:
    """A forest plot: second network minus first, per group and stratum, with its interval, in points.

    Zero is a line; differences smaller than the margin, which would not matter, are shaded; each row says its mean,
    interval and number of pictures.

    Args:
        rows: in order; those of a group stand together.
        networks: titles of the first and the second.
        margin: half the shaded band, as a share.
        note: what the caption says beyond that: data set, weights, method.
        last: the caption's last line, say version and digest.

    Raises:
        OutputError: no rows.
    """
    if not rows:
        raise OutputError("no difference was given; the plot needs at least one row", code="output.nothing")
    groups = {row.group: [one for one in rows if one.group == row.group] for row in rows}
    each, space, head, under, left, right = 0.15, 0.2, 0.26, 0.42, 1.0, 1.75
    tall = sum(space + each * len(members) for members in groups.values())
    levels = {row.found.level for row in rows}
    first, second = (one_line(name, 40) for name in networks)
    said = [
        f"Mean of {second} minus {first}, picture by picture, in points (hundredths), with "
        f"{' or '.join(f'{100 * level:g} %' for level in sorted(levels))} intervals; n pictures. Shaded: differences "
        f"below {100 * margin:g} points, fixed beforehand as too small to matter. Full "
        "signs: intervals without 0, in the colour of the network that they favour."
    ]
    if any(not row.higher_is_better for row in rows):
        said.append("↓: lower is better, so a difference to the left favours the second network.")
    caption = wrapped(with_note(said, note), [], last, WIDTH)
    drawing = sheet(WIDTH, 2 * MARGIN + head + tall + under + LINE * len(caption) + 0.04)
    drawing.text(
        (left + (WIDTH - left - right) / 2) / WIDTH, 1 - 0.1 / drawing.get_size_inches()[1], f"{second} − {first}",
        fontsize=8, fontweight="bold", color=INK, ha="center", va="top", **TEXT,
    )  # fmt: skip
    limit, top = _limit(rows, margin), MARGIN + head
    for group, members in groups.items():
        ax = placed(drawing, left, top + space, WIDTH - left - right, each * len(members))
        ax.set_xlim(-limit, limit)
        ax.set_ylim(len(members) - 0.5, -0.5)
        _forest(ax, members, margin)
        lower = any(not row.higher_is_better for row in members)
        _beside(ax, 0, -(left - MARGIN) * 72, -0.95, one_line(group, 90) + (" ↓" if lower else ""), "left", bold=True)
        for y, row in enumerate(members):
            _beside(ax, 0, -(left - MARGIN - 0.12) * 72, y, one_line(row.stratum, 24), "left")
            _beside(ax, 1, 5, y, _points_of(row.found), "left")
            _beside(ax, 1, right * 72 - 6, y, f"n = {row.found.n}", "right", colour=GREY)
        top += space + each * len(members)
        ax.tick_params(labelbottom=group == list(groups)[-1])
    ax.set_xlabel("points", fontsize=LETTERS, color=INK, labelpad=2)
    for x, text, align in ((0, f"← higher for {first}", "left"), (1, f"higher for {second} →", "right")):
        ax.annotate(
            text, (x, 0), (0, -17), xycoords="axes fraction", textcoords="offset points", ha=align, va="center",
            fontsize=6, color=INK, **TEXT,
        )  # fmt: skip
    write(drawing, caption)
    return drawing


def _limit(rows: Sequence[StratumDifference], margin: float) -> float:
    """Half the axis in points: room for every interval, and for the margin."""
    reach = [abs(value) for row in rows for value in (row.found.mean, row.found.low, row.found.high)]
    return 108 * max([value for value in reach if math.isfinite(value)] + [1.5 * margin])


def _forest(ax: Axes, rows: Sequence[StratumDifference], margin: float) -> None:
    ax.axvspan(-100 * margin, 100 * margin, color="#e6e6e6", linewidth=0, zorder=0, label="margin")
    ax.axvline(0, color=INK, linewidth=0.6, zorder=1, label="zero")
    colours = {True: NETWORK_COLOURS[1], False: NETWORK_COLOURS[0]}
    for y, row in enumerate(rows):
        found = row.found
        if not math.isfinite(found.mean):
            continue
        known = math.isfinite(found.low) and math.isfinite(found.high)
        sure = known and (found.low > 0 or found.high < 0)
        colour = colours[(found.mean > 0) == row.higher_is_better] if sure else GREY
        if known:
            ax.hlines(y, 100 * found.low, 100 * found.high, color=colour, linewidth=1.1, zorder=2)
        ax.plot(
            [100 * found.mean], [y], marker="s" if sure else "o", markersize=3.6, linestyle="none", zorder=3,
            markerfacecolor=colour if sure else "white", markeredgecolor=colour, markeredgewidth=0.8, label=row.stratum,
        )  # fmt: skip
    quiet(ax)
    ax.set_yticks([])
    ax.grid(False, axis="y")
    ax.tick_params(axis="x", labelsize=6)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")


def _beside(
    ax: Axes, x: float, right: float, y: float, text: str, align: str, *, colour: str = INK, bold: bool = False
) -> None:
    ax.annotate(
        text, (x, y), (right, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha=align,
        va="center", fontsize=6.2, color=colour, fontweight="bold" if bold else "normal", annotation_clip=False, **TEXT,
    )  # fmt: skip


def _points_of(found: Interval) -> str:
    if not math.isfinite(found.mean):
        return "not measured"
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (found.mean, found.low, found.high))
    return f"{mean}  [{low}, {high}]" if math.isfinite(found.low) else f"{mean}  (no interval)"
