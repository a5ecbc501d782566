"""Statistics of splits as heat maps over blocks, and how alike splits are: cells with their numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.split_captions import (
    HATCH,
    block_paths,
    first_said,
    last_line,
    made_of,
    short,
    shown_blocks,
    warned,
)
from r2viz.split_records import FIRST, PERMUTED, STATISTICS, Likeness, Network, Split, SplitRecord, Statistic

_WIDTH, _MARGIN = 7.0, 0.08
_COLOURS = "cividis"
_EMPTY = "#e9e9e9"
_WIDE = 0.15
"""Half an interval's width from which a figure warns."""


def split_heatmap(record: SplitRecord, statistic: str, *, permuted: bool = True) -> Figure:
    """One statistic of every split: a row per block, a column per split, a panel per network, all on one scale.

    A stage's first block is hatched, since nothing cascades in it. ResNet's groups of channels stand beside.

    Args:
        record: of one network or two.
        statistic: of those in the record.
        permuted: whether a ResNet's groups in random order are drawn as well.

    Raises:
        UnknownName: the record has no such statistic.
    """
    rows = record.select(statistic)
    about = STATISTICS.get(statistic, Statistic(statistic, "", ""))
    columns = {network.model: _columns(network, permuted) for network in record.networks}
    blocks = max(len(block_paths(network)) for network in record.networks)
    widths = [len(some) for some in columns.values()]
    left, gap, head, under, bar = 0.56, 0.62, 0.36, 0.2, 0.42
    cell = min(0.42, (_WIDTH - left - _MARGIN - gap * (len(widths) - 1)) / sum(widths))
    tall = max(0.13, min(0.2, 3.6 / blocks))
    total = max(3.6, left + cell * sum(widths) + gap * (len(widths) - 1) + _MARGIN)
    values = np.array([row.interval.mean for row in rows if permuted or row.split.kind != PERMUTED])
    scale = _scale(values)
    half = np.array([(row.interval.high - row.interval.low) / 2 for row in rows])
    unit = f" ({about.unit})" if about.unit else ""
    said = [
        f"{about.title[:1].upper()}{about.title[1:]}{unit} of each split"
        + (f": {about.definition}." if about.definition else "."),
        *made_of(record, [row.split for row in rows if permuted or row.split.kind != PERMUTED]),
        "Hatched: first block of a Res2Net's stage." if any(row.split.kind == FIRST for row in rows) else "",
        *first_said([row.split for row in rows]),
    ]
    if np.isfinite(half).any():
        said.append(f"95 % intervals over pictures reach ± {np.nanmedian(half):.2g} (median over cells).")
    else:
        said.append("Too few pictures for intervals.")
    caption = wrapped([one for one in said if one], warned(record), last_line(record), total)
    drawing = sheet(total, 2 * _MARGIN + head + blocks * tall + under + bar + LINE * len(caption) + 0.04)
    x = left
    for network, some in zip(record.networks, columns.values(), strict=True):
        paths = block_paths(network)
        ax = placed(drawing, x, _MARGIN + head, cell * len(some), tall * len(paths))
        found = {(row.split.path, short(row.split)): row for row in rows if row.split.model == network.model}
        grid = np.full((len(paths), len(some)), math.nan)
        for i, path in enumerate(paths):
            for j, name in enumerate(some):
                row = found.get((path, name))
                grid[i, j] = math.nan if row is None else row.interval.mean
                if row is not None and row.split.kind == FIRST:
                    _hatched(ax, i, j)
        _cells(ax, grid, scale, room=(cell, tall))
        ax.set_yticks(range(len(paths)), paths)
        ax.set_xticks(range(len(some)), some)
        for place in [n for n, (one, other) in enumerate(pairwise(some)) if one[0] != other[0] and other[0] == "p"]:
            ax.axvline(place + 0.5, color="white", linewidth=2.5, zorder=3)
        _quiet(ax)
        note = "groups g, in random order p" if any(one[0] == "p" for one in some) else "splits"
        titles(ax, network.title, "channel groups" if note == "splits" and some[0][0] == "g" else note, least=1.2)
        x += cell * len(some) + gap
    _bar(drawing, scale, f"{about.title}{unit}", left, _MARGIN + head + blocks * tall + under + 0.06)
    write(drawing, caption)
    return drawing


def cka_figure(record: SplitRecord, *, blocks: Sequence[str] | None = None, permuted: bool = False) -> Figure:
    """Linear CKA between the splits of each block, within each network and between the two, as matrices.

    Args:
        record: with likenesses.
        blocks: say `["layer3.1"]`; each stage's last one unless given.
        permuted: whether a ResNet's groups in random order are drawn as well.

    Raises:
        OutputError: the record holds no such matrices, or there were too few pictures for any.
        UnknownName: no such block.
    """
    if not record.likenesses:
        raise OutputError(
            "the record holds no likeness between splits; measure with the statistic 'cka'", code="output.nothing"
        )
    lines = _matrices(record, blocks, permuted)
    if not any(np.isfinite(one.values).any() for _, some in lines for one in some):
        of = "one picture" if record.pictures == 1 else f"{record.pictures} pictures"
        raise OutputError(
            f"likeness between splits is not known from {of}; give more, four at least",
            code="output.nothing",
        )
    across = max(len(some) for _, some in lines)
    left, gap, head, under, between, bar = 0.4, 0.42, 0.3, 0.26, 0.0, 0.5
    side = min(1.5, (_WIDTH - left - _MARGIN - gap * (across - 1)) / across)
    total = max(3.6, left + across * side + gap * (across - 1) + _MARGIN)
    shown = [split for _, some in lines for one in some for split in (*one.rows, *one.columns)]
    said = [
        "Linear CKA (unbiased, over pictures) between splits of one block: 1 where two carry the same up to rotation "
        "and scale, about 0 where they share nothing; it may fall below 0 a little.",
        *made_of(record, shown),
        *first_said(shown),
    ]
    half = np.concatenate([((one.high - one.low) / 2).ravel() for _, some in lines for one in some])
    red = warned(record)
    if np.isfinite(half).any():
        reach = float(np.nanmedian(half))
        said.append(f"95 % intervals over pictures reach ± {reach:.2g} (median over cells).")
        if reach > _WIDE:
            red.append(f"Few pictures: intervals reach ± {reach:.2g}, so that most of these numbers may be noise.")
    if not all(np.isfinite(one.values).any() for _, some in lines for one in some):
        said.append("A dash: not known, since nothing varies.")
    caption = wrapped(said, red, last_line(record), total)
    heights = [max(side * len(one.rows) / len(one.columns) for one in some) for _, some in lines]
    heights = [min(side, height) for height in heights]
    body = sum(heights) + len(lines) * (head + under) + between * (len(lines) - 1)
    drawing = sheet(total, 2 * _MARGIN + body + bar + LINE * len(caption) + 0.04)
    scale = Normalize(0, 1)
    y = _MARGIN
    for (title, some), tall in zip(lines, heights, strict=True):
        for number, one in enumerate(some):
            ax = placed(drawing, left + number * (side + gap), y + head, side, tall)
            _cells(ax, one.values, scale, room=(side / len(one.columns), tall / len(one.rows)), digits=2)
            ax.set_yticks(range(len(one.rows)), [short(split) for split in one.rows])
            ax.set_xticks(range(len(one.columns)), [short(split) for split in one.columns])
            _quiet(ax)
            here = one.rows[0]
            titles(ax, here.path, title + (", first of stage" if here.kind == FIRST else ""), least=side)
            if one.between:
                ax.set_ylabel(_title(record, here), fontsize=5.5, color=INK, labelpad=2)
                ax.set_xlabel(_title(record, one.columns[0]), fontsize=5.5, color=INK, labelpad=1)
        y += head + tall + under + between
    _bar(drawing, scale, "linear CKA", left, y + 0.14)
    write(drawing, caption)
    return drawing


def _columns(network: Network, permuted: bool) -> list[str]:
    return list(dict.fromkeys(short(split) for split in network.splits if permuted or split.kind != PERMUTED))


def _matrices(record: SplitRecord, blocks: Sequence[str] | None, permuted: bool) -> list[tuple[str, list[Likeness]]]:
    """Matrices side by side, line by line: each network's own, then those between the two."""
    lines = []
    for network in record.networks:
        wanted = shown_blocks(network, blocks)
        own = [_without_permuted(one, permuted) for one in record.likenesses
               if not one.between and one.rows[0].model == network.model and one.rows[0].path in wanted]  # fmt: skip
        lines.append((network.title, own))
    wanted = shown_blocks(record.networks[0], blocks)
    both = [_without_permuted(one, permuted) for one in record.likenesses
            if one.between and one.rows[0].path in wanted]  # fmt: skip
    lines.append(("between the two", both))
    return [(title, some) for title, some in lines if some]


def _without_permuted(one: Likeness, permuted: bool) -> Likeness:
    if permuted:
        return one
    down, across = ([n for n, split in enumerate(some) if split.kind != PERMUTED] for some in (one.rows, one.columns))
    chosen = np.ix_(down, across)
    return Likeness(
        tuple(one.rows[n] for n in down), tuple(one.columns[n] for n in across),
        one.values[chosen], one.low[chosen], one.high[chosen], one.n,
    )  # fmt: skip


def _title(record: SplitRecord, split: Split) -> str:
    return next((network.title for network in record.networks if network.model == split.model), split.model)


# --- Cells -----------------------------------------------------------------------------------------------------------


def _scale(values: np.ndarray) -> Normalize:
    """From the least to the greatest value; shares that come near 0 begin there."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    if 0 <= low < 0.25 * high:
        low = 0.0
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0) if high else 1.0
    return Normalize(low, high)


def _cells(
    ax: Axes, values: np.ndarray, scale: Normalize, *, room: tuple[float, float], digits: int | None = None
) -> None:
    """Coloured cells, each with its number where there is room (inches) to read one."""
    ax.imshow(
        np.ma.masked_invalid(values), norm=scale, cmap=_colours(), aspect="auto", interpolation="nearest", zorder=1
    )
    size = min(6.0, 72 * room[1] * 0.62, 72 * room[0] / 2.6)
    if size < 3.4:
        return
    texts = _numbers(values, digits)
    for (i, j), value in np.ndenumerate(values):
        dark = math.isfinite(value) and scale(value) < 0.55
        ax.text(
            j, i, texts[i][j], ha="center", va="center", fontsize=size, color="white" if dark else INK, zorder=4, **TEXT
        )


def _numbers(values: np.ndarray, digits: int | None) -> list[list[str]]:
    """As many digits for all as the largest deserves, unless given."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if len(finite) else 1.0
    if digits is None:
        digits = 0 if top == 0 else max(0, min(4, 1 - math.floor(math.log10(top)) + (0.1 <= top < 1)))

    def shown(value: float) -> str:
        if not math.isfinite(value):
            return "–"
        text = f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero
        return text.replace("0.", ".", 1) if abs(value) < 1 and digits else text

    return [[shown(float(value)) for value in row] for row in values]


def _colours() -> Colormap:
    return colormaps[_COLOURS].with_extremes(bad=_EMPTY)


def _hatched(ax: Axes, i: int, j: int) -> None:
    ax.add_patch(
        Rectangle(
            (j - 0.5, i - 0.5), 1, 1, fill=False, hatch=HATCH, edgecolor=(1, 1, 1, 0.35), linewidth=0, zorder=2,
            label="first of stage",
        )
    )  # fmt: skip


def _quiet(ax: Axes) -> None:
    quiet(ax, grid=False)
    ax.tick_params(length=0)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)


def _bar(drawing: Figure, scale: Normalize, title: str, left: float, top: float) -> None:
    ax = placed(drawing, left, top, 2.2, 0.08)
    drawing.colorbar(ScalarMappable(scale, _colours()), cax=ax, orientation="horizontal")
    ax.tick_params(labelsize=6, length=2, width=0.4, pad=1.5, labelcolor=GREY, color=GREY)
    for spine in ax.spines.values():
        spine.set_linewidth(0.3)
    ax.set_title(title, fontsize=6, color=INK, pad=2, loc="left", **TEXT)
