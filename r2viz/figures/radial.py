"""Effective receptive fields as curves: mass by distance from the unit's centre."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from r2viz.erf_records import Erf, ErfRecord
from r2viz.errors import OutputError, one_line
from r2viz.figures.axes import LINE, NETWORK_COLOURS, NETWORK_LINES, Line, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, TEXT, titles
from r2viz.figures.erf_captions import last_line, made_of, noted, warned

_WIDTH, _MARGIN = 7.0, 0.08
_LETTERS = 6.5


def radial_figure(
    record: ErfRecord, *, layers: Sequence[str] | None = None, source: str | None = None, columns: int = 4
) -> Figure:
    """Mean density (above) and share of the mass inside (beneath) by distance from the unit's centre.

    A column for each layer, a line for each network; a dotted line of its colour stands where its theoretical field
    ends along an axis (half its size).

    Args:
        record: of one network or several.
        layers: of the record; all unless given.
        source: "pictures" or "noise" where the record has both.
        columns: layers side by side, at most.

    Raises:
        UnknownName: the record has no such layer or source.
        OutputError: no layer is left to draw.
    """
    wanted = list(record.layers if layers is None else layers)
    if not wanted:
        raise OutputError("the record holds no field to draw", code="output.nothing")
    erfs = {layer: [view.at(layer, source=source) for view in record.views] for layer in wanted}
    every = [erf for row in erfs.values() for erf in row]
    across = min(columns, len(wanted))
    left, gap, head, under, key = 0.5, 0.16, 0.24, 0.34, 0.2
    wide = min(2.4, (_WIDTH - left - _MARGIN - (across - 1) * gap) / across)
    total = max(3.4, left + across * wide + (across - 1) * gap + _MARGIN)
    upper, lower, between = 1.25, 1.0, 0.08
    band = head + upper + between + lower + under
    said = [
        *made_of(record, every),
        "Above: mean share of the map's mass per pixel at each distance from the unit's centre, logarithmic; beneath: "
        "share of the mass up to there. Dotted: half the theoretical size, where the field ends along an axis; its "
        "corners lie √2 times as far.",
        *noted(every),
    ]
    caption = wrapped(said, warned(record), last_line(record), total)
    bands = math.ceil(len(wanted) / columns)
    drawing = sheet(total, 2 * _MARGIN + bands * band + key + LINE * len(caption) + 0.04)
    reach = max(_end(erf) for erf in every)
    floor, top = _decades(every)
    for number, (layer, row) in enumerate(erfs.items()):
        x = left + (number % columns) * (wide + gap)
        y = _MARGIN + (number // columns) * band + head
        above, beneath = placed(drawing, x, y, wide, upper), placed(drawing, x, y + upper + between, wide, lower)
        draw_radial(above, beneath, row)
        above.set_ylim(floor, top)
        titles(above, layer, least=wide)
        for ax in (above, beneath):
            ax.set_xlim(0, reach)
            if number % columns:
                ax.tick_params(labelleft=False)
        if not number % columns:
            above.set_ylabel("mass per pixel", fontsize=_LETTERS, color=INK, labelpad=2)
            beneath.set_ylabel("mass inside", fontsize=_LETTERS, color=INK, labelpad=2)
        beneath.set_xlabel("distance, input pixels", fontsize=_LETTERS, color=INK, labelpad=1)
        _beyond(above, row, reach)
    _key(drawing, [view.title for view in record.views], _MARGIN + bands * band + 0.02, left)
    write(drawing, caption)
    return drawing


def draw_radial(above: Axes, beneath: Axes, erfs: Sequence[Erf]) -> tuple[Axes, Axes]:
    """Density and cumulative share of one field for each network, on two axes; lines are labelled by number."""
    for number, erf in enumerate(erfs):
        colour, line = _ink(number)
        if erf.theory is not None and not erf.theory.unbounded:
            for ax in (above, beneath):
                ax.axvline(erf.theory.max / 2, color=colour, linewidth=0.8, linestyle=":", label=f"theory{number}")
        if erf.sizes is None:
            continue
        distance, density, share = erf.radial()
        mass = float(erf.map.sum(dtype=np.float64))
        some = density > 0
        above.plot(
            distance[some], density[some] / mass, color=colour, linestyle=line, linewidth=1, label=f"density{number}"
        )
        beneath.plot(distance, share, color=colour, linestyle=line, linewidth=1, label=f"share{number}")
    above.set_yscale("log")
    above.tick_params(labelbottom=False)
    beneath.set_ylim(0, 1.03)
    beneath.set_yticks([0, 0.5, 0.95], ["0", "50 %", "95 %"])
    for ax in (quiet(above), quiet(beneath)):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if all(erf.sizes is None for erf in erfs):
        above.text(
            0.5, 0.5, "no gradient reaches\nthe input: no curve", transform=above.transAxes, ha="center", va="center",
            fontsize=6, color=GREY, **TEXT,
        )  # fmt: skip
    return above, beneath


def _ink(number: int) -> tuple[str, Line]:
    return NETWORK_COLOURS[number % len(NETWORK_COLOURS)], NETWORK_LINES[number % len(NETWORK_LINES)]


def _end(erf: Erf) -> float:
    """Where a panel may end: all but a thousandth of the mass, and theory unless it lies more than twice as far."""
    if erf.sizes is None:
        return min(erf.input_size) / 2
    distance, _, share = erf.radial()
    mass = float(distance[int(np.searchsorted(share, 0.999))])
    half = 0.0 if erf.theory is None or erf.theory.unbounded else erf.theory.max / 2
    return 1.05 * max(mass, half if half <= 2 * mass else 0, 2)


def _decades(erfs: Sequence[Erf]) -> tuple[float, float]:
    """From the density at the distance that holds 99.9 % of the most diffuse map, to the greatest."""
    low, high = [], []
    for erf in erfs:
        if erf.sizes is not None:
            _, density, share = erf.radial()
            density = density / float(erf.map.sum(dtype=np.float64))
            inside = density[: int(np.searchsorted(share, 0.999)) + 1]
            low.append(float(inside[inside > 0].min()))
            high.append(float(density.max()))
    return (min(low) / 2, max(high) * 2) if low else (1e-6, 1)


def _beyond(ax: Axes, erfs: Sequence[Erf], reach: float) -> None:
    """Names what theory says where a line could not be drawn."""
    lines = 0
    for number, erf in enumerate(erfs):
        theory, remarks = erf.theory, []
        if theory is None:
            remarks.append("theory unknown")
        elif theory.unbounded:
            remarks.append("theory unbounded")
        elif theory.max / 2 > reach:
            remarks.append(f"theory ends at {theory.max / 2:g} px →")
        if erf.sizes is None and any(one.sizes is not None for one in erfs):
            remarks.append("no curve: no gradient reaches the input")
        for said in remarks:
            ax.text(
                0.97, 0.95 - 0.1 * lines, said, transform=ax.transAxes, ha="right", va="top", fontsize=5.5,
                color=_ink(number)[0], **TEXT,
            )  # fmt: skip
            lines += 1


def _key(drawing: Figure, names: Sequence[str], top: float, left: float) -> None:
    width, height = drawing.get_size_inches()
    handles = [Line2D([], [], color=_ink(n)[0], linestyle=_ink(n)[1], linewidth=1) for n in range(len(names))]
    handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=0.8))
    legend = drawing.legend(
        handles, [*(one_line(name, 40) for name in names), "theory ends"], loc="upper left",
        bbox_to_anchor=(left / width, 1 - top / height), ncol=4, frameon=False, fontsize=6.5, borderpad=0,
        borderaxespad=0, columnspacing=1.4, handlelength=2.4, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
