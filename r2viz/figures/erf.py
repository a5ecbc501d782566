"""Effective receptive fields of several networks and layers, and of a block's splits, on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2viz.erf_records import Erf, ErfRecord, ErfView
from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, placed, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.erf_captions import SIZES, last_line, made_of, noted, size_lines, warned
from r2viz.figures.field import common_scale, draw_erf, scale_bar, window_of

_WIDTH, _MARGIN, _GAP, _HEAD, _BESIDE = 7.0, 0.08, 0.14, 0.34, 0.3
_UNDER, _BAR = 0.16, 0.32


@dataclass(frozen=True)
class Cell:
    """One map to be drawn: whose, of what, and a remark on it."""

    view: ErfView
    erf: Erf
    title: str
    note: str


def erf_figure(
    record: ErfRecord, *, layers: Sequence[str] | None = None, source: str | None = None, columns: int = 4
) -> Figure:
    """Each network's field at each layer (first unit), all in the same pixels and colours; sizes beneath.

    Args:
        record: of one network or several.
        layers: of the record; all unless given.
        source: "pictures" or "noise" where the record has both; pictures unless given.
        columns: maps side by side, at most.

    Raises:
        UnknownName: the record has no such layer or source.
        OutputError: no field is left to draw.
    """
    wanted = list(record.layers if layers is None else layers)
    if len(wanted) > len(record.views):  # layers go across, networks down, in bands
        bands = [wanted[at : at + columns] for at in range(0, len(wanted), columns)]
        rows = [[_cell(view, layer, source) for layer in band] for band in bands for view in record.views]
    else:
        rows = [[_cell(view, layer, source) for view in record.views] for layer in wanted]
    return _figure(record, rows, [])


def split_figure(record: ErfRecord, *, block: str | None = None, source: str | None = None, columns: int = 4) -> Figure:
    """The field of every split of a block, in code order: a row per block and network.

    Args:
        record: measured at splits such as `layer3.1.split0`.
        block: only this one.
        source: as for `erf_figure`.
        columns: splits side by side, at most; more are drawn in bands.

    Raises:
        OutputError: the record holds no such splits.
    """
    rows, remarks = [], set[str]()
    for view in record.views:
        names = dict.fromkeys(erf.layer for erf in view.erfs)
        splits = [name for name in names if name.rpartition(".")[2].removeprefix("split").isdigit()]
        for parent in dict.fromkeys(name.rpartition(".")[0] for name in splits):
            if block in (None, parent):
                erfs = [view.at(name, source=source) for name in splits if name.rpartition(".")[0] == parent]
                erfs.sort(key=lambda erf: _number(erf.layer))
                fate = _fate(erfs)
                remarks.add(fate)
                notes = [parent] * (len(erfs) - 1) + [f"{parent}, {fate}" if fate else parent]
                row = [
                    Cell(view, erf, f"split{_number(erf.layer)}", note) for erf, note in zip(erfs, notes, strict=True)
                ]
                bands = math.ceil(len(row) / columns)
                across = math.ceil(len(row) / bands)  # bands of nearly one length
                rows += [row[at : at + across] for at in range(0, len(row), across)]
    if not rows:
        about = "" if block is None else f" of {block!r}"
        raise OutputError(
            f"the record holds no splits{about}; it has {', '.join(record.layers)}; measure BLOCK.split0 and so on",
            code="output.nothing",
        )
    said = ["Splits in code order."]
    if "passed through" in remarks:
        said.append("The last one is passed through: no 3 × 3 convolution sees it (the first one in the paper).")
    if "pooled" in remarks:
        said.append("In the first block of a stage nothing cascades, and the last split is averaged over 3 × 3.")
    networks = {id(cell.view) for row in rows for cell in row}
    return _figure(record, rows, said, beside=len(networks) > 1)


def _number(layer: str) -> int:
    return int(layer.rpartition("split")[2])


def _fate(erfs: Sequence[Erf]) -> str:
    """What becomes of the last of a block's splits, as far as fields tell; nothing where too few were measured.

    Every other split passes a 3 × 3 convolution, so one that reaches less far is passed through. All reach equally far
    only where nothing cascades, and there the last one is pooled as widely as the others are convolved.
    """
    reaches = [erf.theory.max for erf in erfs if erf.theory is not None]
    if len(reaches) != len(erfs) or len(erfs) < 2:
        return ""
    if reaches[-1] < min(reaches[:-1]):
        return "passed through"
    return "pooled" if len(set(reaches)) == 1 else ""


def _cell(view: ErfView, layer: str, source: str | None) -> Cell:
    erf = view.at(layer, source=source)
    return Cell(view, erf, view.title, f"{layer}, unit ({erf.unit[0]}, {erf.unit[1]})")


def _figure(record: ErfRecord, rows: Sequence[Sequence[Cell]], said: list[str], *, beside: bool = False) -> Figure:
    cells = [cell for row in rows for cell in row]
    if not cells:
        raise OutputError("the record holds no field to draw", code="output.nothing")
    erfs = [cell.erf for cell in cells]
    window, scale = window_of(erfs), common_scale(erfs)
    aspect = (window[2] - window[0]) / (window[3] - window[1])
    columns = max(len(row) for row in rows)
    left = _MARGIN + _BESIDE + (0.14 if beside else 0)
    wide = min(2.6, (_WIDTH - left - _MARGIN - (columns - 1) * _GAP) / columns)
    tall = wide * aspect
    if tall > 3.2:
        wide, tall = max(0.3, 3.2 / aspect), 3.2
    pitch = max(wide, 1.0)
    under = _UNDER + 0.105 * (1 + len(SIZES))
    total = max(3.4, left + columns * pitch + (columns - 1) * _GAP + _MARGIN)
    said = [*made_of(record, erfs), *said, *_drawn(erfs), *_ratios(record, erfs)]
    caption = wrapped(said, warned(record), last_line(record), total)
    height = 2 * _MARGIN + len(rows) * (_HEAD + tall + under) + _BAR + LINE * len(caption)
    drawing = sheet(total, height)
    for number, row in enumerate(rows):
        top = _MARGIN + _HEAD + number * (_HEAD + tall + under)
        for column, cell in enumerate(row):
            ax = placed(drawing, left + column * (pitch + _GAP) + (pitch - wide) / 2, top, wide, tall)
            draw_erf(ax, cell.erf, scale=scale, window=window)
            titles(ax, cell.title, cell.note, least=pitch)
            if column:
                ax.tick_params(labelleft=False)
            _sizes(ax, cell.erf, wide=pitch)
        if beside:
            drawing.text(
                (_MARGIN + 0.06) / total, 1 - (top + tall / 2) / height, row[0].view.title, rotation=90, ha="center",
                va="center", fontsize=6.5, color=INK, **TEXT,
            )  # fmt: skip
    scale_bar(drawing, scale, left, height - 2 * _MARGIN - LINE * len(caption) - _BAR + 0.12, total - left)
    write(drawing, caption)
    return drawing


def _sizes(ax: Axes, erf: Erf, *, wide: float) -> None:
    size = 5.8 if wide > 1.25 else 5.2
    for number, line in enumerate(size_lines(erf)):
        ax.annotate(
            line, (0.5, 0), (0, -11 - 7.4 * number), xycoords="axes fraction", textcoords="offset points", ha="center",
            va="top", fontsize=size, color=GREY if not number else INK, annotation_clip=False, **TEXT,
        )  # fmt: skip


def _drawn(erfs: Sequence[Erf]) -> list[str]:
    """Sentences on how maps are drawn and what the numbers are."""
    said = ["Axes in input pixels, the same for all maps, and one logarithmic colour scale; numbers are linear."]
    shown = "Blue square: all that the unit could see; green, dashed: the smallest path's field."
    if any(erf.theory is not None and erf.theory.unbounded for erf in erfs):
        shown += " Unbounded: a gate or pooling over the whole picture is on the way."
    said.append(shown)
    outside = window_of(erfs)
    height, width = erfs[0].input_size
    if outside[0] < 0 or outside[1] < 0 or outside[2] > height or outside[3] > width:
        said.append("Grey lies beyond the picture.")
    said.append(
        "σ and sides of squares about the unit's centre that hold 50 and 95 % of the mass: means over the inputs' own "
        "maps" + (", with 95 % bootstrap intervals." if max(erf.inputs for erf in erfs) > 2 else ".")
    )
    return [*said, *noted(erfs)]


def _ratios(record: ErfRecord, erfs: Sequence[Erf]) -> list[str]:
    """How much larger the second network's fields are, where the record can say."""
    if len({len(view.erfs) for view in record.views}) != 1:  # one of them has no splits
        return []
    found = [
        f"{erf.layer} × {ratio.mean:.2f}" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low < ratio.high else "")
        for erf, ratio in zip(record.views[0].erfs, record.ratios("sigma"), strict=True)
        if ratio is not None and ratio.n and any(erf is drawn for drawn in erfs)
    ]
    if not found:
        return []
    first, second = record.views
    return [f"σ of {second.title} over that of {first.title}, on the same inputs: {', '.join(found)}."]
