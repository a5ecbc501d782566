"""Composed scenes: a measure while the same object grows; and coverage, spill and overlap at every threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2viz.coverage import Rows, coverage_curve
from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, NETWORK_COLOURS, NETWORK_LINES, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, titles
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
from r2viz.statistics import seed_interval
from r2viz.surveys import Survey

_PANELS = (
    ("coverage", "object above the threshold", "higher is better"),
    ("spill", "background above the threshold", "lower is better"),
    ("iou", "IoU of object and level set", "higher is better"),
)


def scale_response(
    survey: Survey,
    *,
    measures: Sequence[str] | None = None,
    method: str | None = None,
    objects: Sequence[str] | None = None,
    note: str = "",
) -> Figure:
    """Composed scenes: each measure against the share of the picture that the object was given (logarithmic).

    A thin line is one object, its mean over backgrounds and places; the thick one is the mean over objects, with a 95 %
    t-interval: scenes of one object are not independent of each other.

    Args:
        survey: of scenes (`r2viz.datasets.scenes`), in which every item comes in several sizes.
        measures: of the survey, a panel each; the three that one would ask for first unless given.
        method: of the survey; its first unless given.
        objects: what each scene shows, `(N,)`; unless given, what its item says before " on ".
        note: what else the caption says.

    Raises:
        UnknownName: no such measure or method.
        OutputError: the survey holds no item in more than one size.
    """
    looks = looks_of(survey, method)
    wanted = wanted_measures(survey, measures, 3)
    shown = [item.partition(" on ")[0] for item in survey.items] if objects is None else list(objects)
    sizes, names = _sizes(survey)
    who = list(dict.fromkeys(shown))
    across, left, gap, head, tall, under, foot = min(3, len(wanted)), 0.42, 0.38, 0.36, 1.9, 0.36, 0.2
    down = math.ceil(len(wanted) / across)
    wide = min(3.4, (WIDTH - left - MARGIN - (across - 1) * gap) / across)
    total = max(4.6, left + across * wide + (across - 1) * gap + MARGIN)
    said = made_of(survey, looks)
    said.append(
        f"{len(who)} object{'' if len(who) == 1 else 's'}, cut out by masks, each at {len(names)} sizes on the same "
        "backgrounds and places: what changes with size changes because of it. Thin: one object's mean; thick: mean "
        "over objects with its 95 % t-interval. Centre-Gaussian: the map that knows no picture. Chance: an even map."
    )
    caption = wrapped(with_note(said, note), warned(looks), last_line(survey), total)
    drawing = sheet(total, 2 * MARGIN + down * (head + tall + under) + foot + LINE * len(caption) + 0.04)
    areas = np.array([survey.area[sizes == level].mean() for level in range(len(names))])
    for number, name in enumerate(wanted):
        top = MARGIN + head + (number // across) * (head + tall + under)
        ax = placed(drawing, left + (number % across) * (wide + gap), top, wide, tall)
        for rows, place in ((survey.gaussian.values[name], -1), (chance_of(survey.gaussian, name), -2)):
            _baseline(ax, areas, _table(rows, shown, who, sizes), place)
        for place, look in enumerate(looks):
            _response(ax, areas, _table(look.rows.values[name], shown, who, sizes), place, len(looks))
        share_axis(ax, areas)
        ax.set_xticks(areas, names)
        value_axis(ax, name)
        quiet(ax)
        titles(ax, title_of(name), better(name), least=wide)
        ax.set_xlabel("object's share of the picture", fontsize=LETTERS, color=INK, labelpad=1)
    signs, called = network_handles(looks)
    more, others = baseline_handles()
    key(drawing, [*signs, *more], [*called, *others], MARGIN + down * (head + tall + under) + 0.04, left)
    write(drawing, caption)
    return drawing


def _sizes(survey: Survey) -> tuple[np.ndarray, list[str]]:
    """Which size each scene shows, `(N,)`, and the sizes' names, ascending: what a scene's name adds to its item."""
    added = [name.removeprefix(item).strip() for name, item in zip(survey.names, survey.items, strict=True)]
    names = sorted(set(added), key=lambda name: float(np.mean(survey.area[[one == name for one in added]])))
    if len(names) < 2:
        raise OutputError(
            f"{survey.dataset} holds no object in more than one size; the response to size needs composed scenes",
            code="output.nothing",
        )
    return np.array([names.index(name) for name in added]), [_whole(name) for name in names]


def _whole(name: str) -> str:
    return name.replace(".0%", "%").replace("%", " %")


def _table(values: np.ndarray, shown: Sequence[str], who: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Means of each object at each size, `(objects, sizes)`; NaN where there is none."""
    index = np.array([who.index(name) for name in shown])
    table = np.full((len(who), int(sizes.max()) + 1), np.nan)
    for row in range(len(who)):
        for level in range(table.shape[1]):
            cell = values[(index == row) & (sizes == level)]
            cell = cell[np.isfinite(cell)]
            if cell.size:
                table[row, level] = cell.mean()
    return table


def _response(ax: Axes, areas: np.ndarray, table: np.ndarray, place: int, networks: int) -> None:
    colour = NETWORK_COLOURS[place]
    for row in table:
        ax.plot(areas, row, color=colour, linewidth=0.4, alpha=0.35, zorder=2, label=f"object{place}")
    found = [seed_interval(column) for column in table.T]
    at = areas * 1.02 ** (2 * place - networks + 1)
    ax.plot(
        at, [one.mean for one in found], color=colour, linestyle=NETWORK_LINES[place], linewidth=1.3,
        marker=MARKERS[place], markersize=3.8, markeredgecolor="white", markeredgewidth=0.4, zorder=4,
        label=f"means{place}",
    )  # fmt: skip
    for x, one in zip(at, found, strict=True):
        if math.isfinite(one.low):
            ax.vlines(x, one.low, one.high, color=colour, linewidth=1.1, zorder=3)


def _baseline(ax: Axes, areas: np.ndarray, table: np.ndarray, place: int) -> None:
    if np.isfinite(table).any():
        name, style = (("gaussian", "--"), ("chance", ":"))[-place - 1]
        ax.plot(areas, np.nanmean(table, axis=0), color=GREY, linestyle=style, linewidth=1, zorder=2.5, label=name)


def coverage_curves(survey: Survey, *, method: str | None = None, subset: str = "", note: str = "") -> Figure:
    """Coverage, spill and IoU at every share of the map's maximum: no single threshold decides.

    Lines are means over pictures, bands their pointwise 95 % intervals (normal). A map of ones covers everything: read
    coverage beside spill. For some sizes only, give `survey.take(which)` and say so in `subset`.

    Args:
        survey: with masks, whose measures include coverage by threshold.
        method: of the survey; its first unless given.
        subset: which objects these are, for the caption.
        note: what else the caption says.

    Raises:
        UnknownName: no such method.
        OutputError: the survey kept no histograms, as of boxes.
    """
    looks = looks_of(survey, method)
    if any(rows.inside is None for rows in (survey.gaussian, *(look.rows for look in looks))):
        raise OutputError(
            f"the survey of {survey.dataset} kept no histograms of pixels; curves need masks and the measure pxap, iou "
            "or coverage_curve",
            code="output.nothing",
        )
    left, gap, head, tall, under, foot = 0.42, 0.34, 0.36, 1.8, 0.36, 0.2
    wide = (WIDTH - left - 2 * MARGIN - 2 * gap) / 3
    said = made_of(survey, looks)
    if subset:
        said.append(f"Only {subset}.")
    said.append(
        "Means over pictures of what lies above a share of each map's own maximum; bands: 95 % intervals, each point "
        "by itself. A map of ones covers everything: read coverage beside spill. Centre-Gaussian: the map that "
        "knows no picture."
    )
    caption = wrapped(with_note(said, note), warned(looks), last_line(survey), WIDTH)
    drawing = sheet(WIDTH, 2 * MARGIN + head + tall + under + foot + LINE * len(caption) + 0.04)
    axes = [placed(drawing, left + n * (wide + gap), MARGIN + head, wide, tall) for n in range(3)]
    for place, rows in enumerate([survey.gaussian, *(look.rows for look in looks)], start=-1):
        _curves(axes, rows, place)
    for ax, (name, title, better_) in zip(axes, _PANELS, strict=True):
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02 if name != "iou" else None)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "max"])
        value_axis(ax, name)
        quiet(ax)
        titles(ax, title, better_, least=wide)
        ax.set_xlabel("threshold, share of the map's maximum", fontsize=LETTERS, color=INK, labelpad=1)
    signs, called = network_handles(looks)
    for sign in signs:
        sign.set_marker("")
    more, others = baseline_handles(chance=False)
    key(drawing, [*signs, *more], [*called, *others], MARGIN + head + tall + under + 0.04, left)
    write(drawing, caption)
    return drawing


def _curves(axes: Sequence[Axes], rows: Rows, place: int) -> None:
    curve = coverage_curve(rows)
    deviations = _deviations(rows)
    for ax, (name, _, _) in zip(axes, _PANELS, strict=True):
        means = getattr(curve, name)
        if place < 0:
            ax.plot(curve.thresholds, means, color=GREY, linestyle="--", linewidth=1, label="gaussian")
            continue
        ax.plot(
            curve.thresholds, means, color=NETWORK_COLOURS[place], linestyle=NETWORK_LINES[place], linewidth=1.2,
            label=f"means{place}", zorder=3,
        )  # fmt: skip
        half = 1.96 * deviations[name]
        ax.fill_between(
            curve.thresholds, means - half, means + half, color=NETWORK_COLOURS[place], alpha=0.18, linewidth=0,
            label=f"band{place}",
        )  # fmt: skip


def _deviations(rows: Rows) -> dict[str, np.ndarray]:
    """Standard errors of the three means at every threshold."""
    inside, outside = (np.asarray(counts, dtype=np.int64) for counts in (rows.inside, rows.outside))
    above = [np.cumsum(counts[:, :0:-1], axis=1)[:, ::-1] for counts in (inside, outside)]
    whole = [counts.sum(axis=1, keepdims=True) for counts in (inside, outside)]
    shares = {
        "coverage": _share(above[0], whole[0]),
        "spill": _share(above[1], whole[1]),
        "iou": above[0] / np.maximum(whole[0] + above[1], 1),
    }
    return {name: np.nanstd(values, axis=0) / math.sqrt(max(1, len(rows) - 1)) for name, values in shares.items()}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
