"""What interventions on splits change, with intervals: a row of panels per intervention, a column per stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2viz.causal_records import EFFECTS, INTERVENTIONS, CausalRecord, CausalRow
from r2viz.errors import OutputError, UnknownName, nearest
from r2viz.figures.axes import LINE, NETWORK_COLOURS, placed, quiet, sheet, wrapped, write
from r2viz.figures.canvas import GREY, INK, titles
from r2viz.figures.split_captions import first_said, weights_of
from r2viz.split_records import CONTROL, FIRST, PASSED, PERMUTED, Network

_WIDTH, _MARGIN = 7.0, 0.08
_MARKERS = ("o", "s")


def causal_figure(
    records: CausalRecord | Sequence[CausalRecord],
    *,
    effect: str = "logit",
    interventions: Sequence[str] | None = None,
    networks: Sequence[Network] = (),
) -> Figure:
    """One effect of each intervention on each split; a mark per block with its 95 % interval over pictures.

    Args:
        records: of one network, or of two (the baseline first) over the same pictures.
        effect: a name in `r2viz.causal_records.EFFECTS`.
        interventions: of those in the records; all unless given.
        networks: what the caption says of weights, and titles; in the records' order.

    Raises:
        UnknownName: no such effect or intervention in the records.
        OutputError: no record, or one without effects.
    """
    records = [records] if isinstance(records, CausalRecord) else list(records)
    if not records or not all(record.effects for record in records):
        raise OutputError("there is no effect of any intervention to draw", code="output.nothing")
    rows = [[row for row in record.rows() if row.kind != PERMUTED] for record in records]
    _known(effect, [row.effect for some in rows for row in some], "effect")
    done = list(dict.fromkeys(name for record in records for name in record.interventions))
    for name in interventions or ():
        _known(name, done, "intervention")
    wanted = list(interventions or done)
    rows = [[row for row in some if row.effect == effect and row.intervention in wanted] for some in rows]
    stages = list(dict.fromkeys(row.stage for some in rows for row in some))
    splits = max(row.split for some in rows for row in some if row.split is not None) + 1
    left, gap, head, tall, under, key, apart = 0.52, 0.1, 0.2, 0.78, 0.3, 0.2, 0.16
    wide = min(2.2, (_WIDTH - left - _MARGIN - gap * (len(stages) - 1)) / len(stages))
    total = max(3.6, left + len(stages) * wide + gap * (len(stages) - 1) + _MARGIN)
    kinds = [one.split for record in records for one in record.effects]
    said = [
        f"{EFFECTS[effect][:1].upper()}{EFFECTS[effect][1:]}; "
        f"means over {records[0].pictures} picture{'s' if records[0].pictures != 1 else ''}, bars: 95 % intervals "
        "over them. Blocks of a stage stand side by side, the first one hollow.",
        *(f"{name}: {INTERVENTIONS[name].definition}." for name in wanted),
        *weights_of(networks),
        "Splits in code order.",
        "The last one is passed through." if any(split.kind == PASSED for split in kinds) else "",
        "A ResNet has no splits: equal groups of its blocks' channels are the control."
        if any(split.kind == CONTROL for split in kinds)
        else "",
        *first_said(kinds),
    ]
    random = [network.title for network in networks if network.random]
    red = [f"RANDOM WEIGHTS in {', '.join(random)}: effects of the architecture, not of learning."] if random else []
    if records[0].pictures < 3:
        red.append("Too few pictures for intervals.")
    caption = wrapped([one for one in said if one], red, "", total)
    body = len(wanted) * (head + tall) + (len(wanted) - 1) * apart + under
    drawing = sheet(total, 2 * _MARGIN + key + body + LINE * len(caption) + 0.04)
    for down, name in enumerate(wanted):
        line = []
        for across, stage in enumerate(stages):
            y = _MARGIN + key + down * (head + tall + apart) + head
            ax = placed(drawing, left + across * (wide + gap), y, wide, tall)
            here = [[row for row in some if (row.intervention, row.stage) == (name, stage)] for some in rows]
            _marks(ax, here, splits)
            titles(ax, f"{stage}: {name}", least=wide)
            if across:
                ax.tick_params(labelleft=False)
            if down + 1 < len(wanted):
                ax.tick_params(labelbottom=False)
            else:
                ax.set_xlabel("split", fontsize=5.8, color=INK, labelpad=1)
            line.append(ax)
        line[0].set_ylabel(f"{effect}", fontsize=6, color=INK, labelpad=2)
        low, high = min(ax.get_ylim()[0] for ax in line), max(ax.get_ylim()[1] for ax in line)
        for ax in line:  # one scale for a row of panels, so that stages are compared
            ax.set_ylim(low, high)
    named = [network.title for network in networks] or [some[0].model for some in rows]
    _key(drawing, named, left)
    write(drawing, caption)
    return drawing


def _known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        there = list(dict.fromkeys(known))
        raise UnknownName(
            f"the record has no {what} {name!r}{nearest(name, there)}; it has {', '.join(there)}",
            code=f"unknown_name.{what}",
        )


def _marks(ax: Axes, here: Sequence[Sequence[CausalRow]], splits: int) -> None:
    ax.axhline(0, color=GREY, linewidth=0.5, zorder=1)
    lanes = sorted({(number, row.block) for number, some in enumerate(here) for row in some if row.block is not None})
    for number, some in enumerate(here):
        ink = NETWORK_COLOURS[number % len(NETWORK_COLOURS)]
        for row in some:
            if row.split is None or row.block is None or not np.isfinite(row.interval.mean):
                continue
            lane = lanes.index((number, row.block))
            x = row.split + (0.72 * ((lane + 0.5) / len(lanes) - 0.5))
            first = row.kind == FIRST or (row.kind == CONTROL and row.block == 0)
            if row.interval.low < row.interval.high:
                ax.vlines(x, row.interval.low, row.interval.high, color=ink, linewidth=0.7, zorder=2)
            ax.plot(
                [x], [row.interval.mean], linestyle="none", marker=_MARKERS[number % 2], markersize=2.8,
                markeredgewidth=0.6, markeredgecolor=ink, markerfacecolor="white" if first else ink, zorder=3,
                label=row.tap,
            )  # fmt: skip
    if not lanes:
        ax.text(0.5, 0.55, "not possible here", transform=ax.transAxes, ha="center", va="bottom", fontsize=5.5,
                color=GREY)  # fmt: skip
    ax.set_xlim(-0.55, splits - 0.45)
    ax.set_xticks(range(splits))
    quiet(ax)
    ax.grid(False, axis="x")
    ax.locator_params(axis="y", nbins=5)


def _key(drawing: Figure, named: Sequence[str], left: float) -> None:
    handles = [
        Line2D([], [], linestyle="none", marker=_MARKERS[number % 2], markersize=3.6, color=NETWORK_COLOURS[number])
        for number in range(len(named))
    ]
    width, height = drawing.get_size_inches()
    drawing.legend(
        handles, named, loc="upper left", bbox_to_anchor=(left / width, 1 - 0.05 / height), ncol=len(named),
        frameon=False, fontsize=6.5, borderpad=0, borderaxespad=0, handletextpad=0.2, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip
