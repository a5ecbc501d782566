"""Splits as curves: how their power is spread over spatial frequencies, and their values over magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.split_captions import colour, first_said, last_line, line_of, made_of, short, shown_blocks, warned
from r2viz.split_records import CONTROL, FIRST, PERMUTED, Histogram, Spectrum, Split, SplitRecord

_WIDTH, _MARGIN, _LETTERS = 7.0, 0.08, 6.5
Of = TypeVar("Of", Spectrum, Histogram)
Panel = tuple[str, str, list[Of]]
"""A network's title, a block's path, and what is drawn of its splits."""


def spectrum_figure(record: SplitRecord, *, blocks: Sequence[str] | None = None, permuted: bool = False) -> Figure:
    """Power by spatial frequency of every split of a block, and beneath how far each could see in theory.

    A row of panels per network, a column per block.

    Args:
        record: with spectra.
        blocks: say `["layer3.1"]`; each stage's last one unless given.
        permuted: whether a ResNet's groups in random order are drawn as well.

    Raises:
        OutputError: the record holds no spectra.
        UnknownName: no such block.
    """
    rows = _panels(record, record.spectra, blocks, permuted, "spectra")
    across = max(len(row) for row in rows)
    splits = [one.split for row in rows for _, _, some in row for one in some]
    most = max(len(some) for row in rows for _, _, some in row)
    left, gap, head, upper, between, under, key = 0.46, 0.3, 0.3, 1.15, 0.3, 0.36, 0.2
    lower = max(0.26, 0.075 * most + 0.06)
    wide = min(2.2, (_WIDTH - left - _MARGIN - gap * (across - 1)) / across)
    total = max(3.6, left + across * wide + gap * (across - 1) + _MARGIN)
    said = [
        "Share of a split's power in rings of equal width of spatial frequency, each channel's map less its mean "
        "and under a Hann window; a tick at the centroid. Bands: 95 % intervals over pictures. Dotted: the same "
        "with each map's pixels shuffled (no structure). Bars: the largest theoretical receptive field.",
        *made_of(record, splits),
        *first_said(splits),
    ]
    if any(split.field is None for split in splits):
        said.append("A bar is missing where theory does not know the field, or it is the whole picture.")
    caption = wrapped(said, warned(record), last_line(record), total)
    band = head + upper + between + lower + under
    drawing = sheet(total, 2 * _MARGIN + key + len(rows) * band + LINE * len(caption) + 0.04)
    widest = max([split.field for split in splits if split.field is not None], default=1)
    columns: dict[int, list[Axes]] = {}
    for down, row in enumerate(rows):
        for number, (title, path, some) in enumerate(row):
            x, y = left + number * (wide + gap), _MARGIN + key + down * band + head
            ax, beneath = placed(drawing, x, y, wide, upper), placed(drawing, x, y + upper + between, wide, lower)
            _spectra(ax, some)
            columns.setdefault(number, []).append(ax)
            _fields(beneath, some, widest)
            note = ", first of stage" if some[0].split.kind == FIRST else ""
            titles(ax, path, title + note, least=wide)
            ax.set_xlabel("cycles per input pixel", fontsize=5.8, color=INK, labelpad=1)
            beneath.set_xlabel("largest theoretical field, input pixels", fontsize=5.8, color=INK, labelpad=1)
            if number == 0:
                ax.set_ylabel("share of power", fontsize=_LETTERS, color=INK, labelpad=2)
    for column in columns.values():  # the networks' panels beneath each other are read against each other
        top = max(ax.get_ylim()[1] for ax in column)
        for ax in column:
            ax.set_ylim(0, top)
    _key(drawing, splits, left)
    write(drawing, caption)
    return drawing


def split_ridgelines(record: SplitRecord, *, blocks: Sequence[str] | None = None, permuted: bool = False) -> Figure:
    """How a split's positive values are spread over magnitudes: a ridge per split, one beneath the other.

    Zeros, which have no place on a logarithmic axis, are written beside; so is a share of negative values.

    Args:
        record: with histograms.
        blocks: say `["layer3.1"]`; each stage's last one unless given.
        permuted: whether a ResNet's groups in random order are drawn as well.

    Raises:
        OutputError: the record holds no histograms.
        UnknownName: no such block.
    """
    rows = _panels(record, record.histograms, blocks, permuted, "histograms")
    across = max(len(row) for row in rows)
    splits = [one.split for row in rows for _, _, some in row for one in some]
    most = max(len(some) for row in rows for _, _, some in row)
    left, gap, head, under = 0.3, 0.6, 0.3, 0.34
    tall = max(0.8, 0.26 * most + 0.2)
    wide = min(2.2, (_WIDTH - left - 0.42 - gap * (across - 1)) / across)
    total = max(3.6, left + across * wide + gap * (across - 1) + 0.42)
    said = [
        "Values of each split by magnitude (logarithmic): height is the share of all values per octave, one scale in "
        "a panel; what the ridge leaves out is zero, the share to its right. A tick at the median of positive values.",
        *made_of(record, splits),
        *first_said(splits),
    ]
    if any((one.counts[one.edges[1:] <= 0] > 0).any() for row in rows for _, _, some in row for one in some):
        said.append("Negative values are not drawn; −: their share.")
    caption = wrapped(said, warned(record), last_line(record), total)
    band = head + tall + under
    drawing = sheet(total, 2 * _MARGIN + len(rows) * band + LINE * len(caption) + 0.04)
    columns: dict[int, list[Axes]] = {}
    for down, row in enumerate(rows):
        for number, (title, path, some) in enumerate(row):
            ax = placed(drawing, left + number * (wide + gap), _MARGIN + down * band + head, wide, tall)
            columns.setdefault(number, []).append(ax)
            _ridges(ax, some)
            note = ", first of stage" if some[0].split.kind == FIRST else ""
            titles(ax, path, title + note, least=wide)
            ax.set_xlabel("activation", fontsize=5.8, color=INK, labelpad=1)
    for column in columns.values():
        limits = [ax.get_xlim() for ax in column]
        for ax in column:
            ax.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    write(drawing, caption)
    return drawing


def _panels(
    record: SplitRecord, found: Sequence[Of], blocks: Sequence[str] | None, permuted: bool, what: str
) -> list[list[Panel[Of]]]:
    if not found:
        family = {"spectra": "spectra", "histograms": "quantiles"}[what]
        raise OutputError(
            f"the record holds no {what} of splits; measure with the statistic {family!r}", code="output.nothing"
        )
    rows: list[list[Panel[Of]]] = []
    for network in record.networks:
        row: list[Panel[Of]] = []
        for path in shown_blocks(network, blocks):
            some = [one for one in found if (one.split.model, one.split.path) == (network.model, path)
                    and (permuted or one.split.kind != PERMUTED)]  # fmt: skip
            if some:
                row.append((network.title, path, some))
        if row:
            rows.append(row)
    return rows


# --- Panels ----------------------------------------------------------------------------------------------------------


def _spectra(ax: Axes, some: Sequence[Spectrum]) -> None:
    for number, one in enumerate(some):
        ink, pattern = colour(one.split, len(some)), line_of(one.split)
        if not np.isfinite(one.power).any():
            continue
        at = one.shuffled > 0  # a ring between the grid's frequencies holds none of them
        if np.isfinite(one.low).any():
            ax.fill_between(
                one.frequency[at], np.maximum(one.low[at], 0), one.high[at], color=ink, alpha=0.16, linewidth=0
            )
        ax.plot(one.frequency[at], one.power[at], color=ink, linestyle=pattern, linewidth=0.9, label=short(one.split))
        centroid = float((one.frequency * one.power).sum() / one.power.sum())
        ax.plot([centroid], [-0.035 - 0.03 * (number % 2)], marker="|", markersize=4, color=ink, clip_on=False,
                transform=ax.get_xaxis_transform(), label=f"centroid{one.split.split}", zorder=5)  # fmt: skip
    known = next((one for one in some if np.isfinite(one.shuffled).any()), None)
    if known is not None:
        at = known.shuffled > 0
        ax.plot(
            known.frequency[at],
            known.shuffled[at],
            color=GREY,
            linestyle=(0, (1, 1.5)),
            linewidth=0.7,
            label="shuffled",
        )
        ax.set_xlim(0, float(known.frequency[-1]))
    else:
        ax.text(0.5, 0.5, "nothing varies:\nno spectrum", transform=ax.transAxes, ha="center", va="center",
                fontsize=6, color=GREY, **TEXT)  # fmt: skip
    ax.set_ylim(bottom=0)
    quiet(ax)
    ax.tick_params(axis="x", pad=5.5)
    ax.locator_params(axis="x", nbins=4)
    ax.locator_params(axis="y", nbins=4)


def _fields(ax: Axes, some: Sequence[Spectrum], widest: int) -> None:
    for number, one in enumerate(some):
        field = one.split.field
        if field is not None:
            ink = colour(one.split, len(some))
            ax.barh([number], [field], height=0.72, color=[ink], linewidth=0, label=short(one.split))
            ax.text(field + 0.015 * widest, number, str(field), va="center", ha="left", fontsize=5, color=INK, **TEXT)
    ax.set_xlim(0, 1.3 * widest)
    ax.set_ylim(len(some) - 0.4, -0.6)
    ax.set_yticks(range(len(some)), [short(one.split) for one in some])
    quiet(ax, grid=False)
    ax.tick_params(axis="y", length=0, labelsize=5)
    ax.locator_params(axis="x", nbins=4)


def _ridges(ax: Axes, some: Sequence[Histogram]) -> None:
    densities = []
    for one in some:
        positive = one.edges[:-1] >= 0
        low, high, counts = one.edges[:-1][positive], one.edges[1:][positive], one.counts[positive]
        octaves = np.log2(np.divide(high, low, out=np.full(len(low), np.inf), where=low > 0))
        share = counts / max(1, one.total) / octaves
        densities.append((low, high, counts, share))
    top = max([float(share.max()) for *_, share in densities if len(share)], default=0.0) or 1.0
    ends = [ends for low, high, counts, _ in densities for ends in [_ends(low, high, counts)] if ends]
    span = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.1, 1.0)
    for number, (one, (low, high, counts, share)) in enumerate(zip(some, densities, strict=True)):
        ink, base = colour(one.split, len(some)), float(len(some) - 1 - number)
        ax.axhline(base, color=GREY, linewidth=0.3, zorder=3 * number)
        centres = np.sqrt(low * high)
        seen = low > 0
        heights = base + 1.45 * share[seen] / top
        ax.fill_between(centres[seen], base, heights, color=ink, alpha=0.55, linewidth=0, zorder=3 * number + 1)
        ax.plot(centres[seen], heights, color=ink, linewidth=0.7, zorder=3 * number + 2, label=short(one.split))
        if counts.sum():
            middle = float(centres[min(int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)), len(centres) - 1)])
            ax.plot([middle, middle], [base, base + 0.16], color=INK, linewidth=0.6, zorder=3 * number + 2)
        negative = int(one.counts[one.edges[1:] <= 0].sum()) / max(1, one.total)
        said = f"{one.zeros / max(1, one.total):.0%} zero" + (f"\n− {negative:.0%}" if negative else "")
        ax.annotate(said, (1, base), (2, 1), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=5, color=INK, va="bottom", ha="left", annotation_clip=False, **TEXT)  # fmt: skip
        if not counts.sum():
            ax.text(0.5, base + 0.1, "dead: no positive value", transform=ax.get_yaxis_transform(), fontsize=5,
                    color=GREY, ha="center", va="bottom", **TEXT)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(*span)
    ax.set_ylim(-0.1, len(some) + 0.5)
    ax.set_yticks(range(len(some))[::-1], [short(one.split) for one in some])
    quiet(ax, grid=False)
    ax.tick_params(axis="y", length=0)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)


def _ends(low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Where nearly all positive values lie."""
    total = int(counts.sum())
    if not total:
        return None
    reached = np.cumsum(counts) / total
    first, last = int(np.searchsorted(reached, 0.005)), min(int(np.searchsorted(reached, 0.9999)), len(counts) - 1)
    floor = float(low[first]) or float(high[first]) / 2
    return floor, max(float(high[last]), floor * 2)


def _key(drawing: Figure, splits: Sequence[Split], left: float) -> None:
    """One line for splits; groups of a ResNet share their numbers' colours."""
    count = max(split.split for split in splits) + 1
    by_number = {split.split: split for split in splits if split.kind != PERMUTED}
    ordered = [by_number[number] for number in sorted(by_number)]
    handles = [Line2D([], [], color=colour(one, count), linestyle=line_of(one), linewidth=1.1) for one in ordered]
    handles.append(Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8))
    width, height = drawing.get_size_inches()
    word = "group" if all(one.kind == CONTROL for one in ordered) else "split"
    named = [f"{word} {one.split}" for one in ordered]
    drawing.legend(
        handles, [*named, "pixels shuffled"], loc="upper left", bbox_to_anchor=(left / width, 1 - 0.05 / height),
        ncol=len(handles), frameon=False, fontsize=6, borderpad=0, borderaxespad=0, handlelength=2,
        handletextpad=0.4, columnspacing=1.1, labelcolor=INK,
    )  # fmt: skip
