"""The paper's tables joined with the zoo's counts and with what was measured: lines of cells with footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from r2viz.models.zoo import ZOO, canonical
from r2viz.tables.measure import Measured
from r2viz.tables.published import COMPARED, SOURCE, TITLES, Printed, networks, remarks

OTHER = "other"
_HEADS = {  # in the order of the columns
    "top1_error": "top-1 err. %",
    "top5_error": "top-5 err. %",
    "params": "params M",
    "flops": "FLOPs G",
    "runtime": "runtime ms",
    "F_measure": "F",
    "AP_small": "AP small",
    "AP_medium": "AP medium",
    "AP_large": "AP large",
}
_DIFFERS = "Not what is counted, also when that is rounded alike."
_PAPER, _COUNTED, _RELEASED, _MEASURED = "paper", "counted", "public weights (timm)", "measured"


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and what they should know of it."""

    text: str = "–"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """`group` stands above the titles of neighbours that share it."""

    key: str
    group: str
    title: str


@dataclass(frozen=True)
class Line:
    """One network of a table.

    Attributes:
        called: what the table calls it.
        network: its name in the zoo, or None.
        cells: by column key; a missing one is empty.
        facts: the same for programs, unrounded.
        notes: on the whole line.
    """

    called: str
    network: str | None
    cells: Mapping[str, Cell]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper, or the networks measured that are in none (`name` is then `OTHER`)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())


def compare(
    tables: Sequence[str],
    measured: Sequence[Measured] = (),
    *,
    counted: Mapping[str, tuple[int, int]] | None = None,
) -> list[Table]:
    """The tables, each network beside what the zoo counts for it and what was measured of it.

    Args:
        tables: names as `r2viz.tables.published.chosen` gives them.
        measured: goes to the networks by name; who is in none of `tables` gets a table of their own.
        counted: (params, macs) counted anew; the zoo's own numbers stand for networks that are not in it.
    """
    found = [_paper_table(name, measured, counted or {}) for name in tables]
    placed = {line.network for table in found for line in table.lines}
    others = [one for one in measured if one.network not in placed]
    if others:
        lines = tuple(_line(OTHER, one.title, one.network, (), one, counted or {}) for one in others)
        found.append(_table(OTHER, "Measured, in none of the tables above", lines, _measured_notes(others)))
    return found


def in_zoo(table: str, called: str) -> str | None:
    """The zoo's name of a network that a table of the paper prints, or None."""
    for name, row in ZOO.items():
        if any(one.table == table and one.called == called for one in row.published):
            return name
    return None


def _paper_table(table: str, measured: Sequence[Measured], counted: Mapping[str, tuple[int, int]]) -> Table:
    by_network = {one.network: one for one in measured} if table in COMPARED else {}
    lines = []
    for called, numbers in networks(table).items():
        network = in_zoo(table, called) if table in COMPARED else None
        lines.append(_line(table, called, network, numbers, by_network.get(network or ""), counted))
    here = [by_network[line.network] for line in lines if line.network in by_network]
    return _table(
        table, f"{TITLES[table]}. Printed numbers: {SOURCE}, table {table[1:]}.", lines, _measured_notes(here)
    )


def _table(name: str, title: str, lines: Sequence[Line], notes: tuple[str, ...]) -> Table:
    present = {key for line in lines for key in line.cells}
    return Table(name, title, tuple(column for column in _columns(name) if column.key in present), tuple(lines), notes)


def _columns(table: str) -> list[Column]:
    datasets = dict.fromkeys(one.dataset for numbers in networks(table).values() for one in numbers)
    order = list(_HEADS)
    columns = []
    for dataset in datasets:
        group = _PAPER if len(datasets) == 1 else f"{_PAPER}, {dataset}"
        numbers = [one for inside in networks(table).values() for one in inside if one.dataset == dataset]
        keys = dict.fromkeys(one.metric for one in numbers)
        keys_in_order = sorted(keys, key=lambda key: order.index(key) if key in order else len(order))
        columns += [Column(f"paper_{dataset}_{key}", group, _HEADS.get(key, key)) for key in keys_in_order]
    return [
        *columns,
        Column("params", _COUNTED, "params M"),
        Column("macs", _COUNTED, "MACs G"),
        Column("released", _RELEASED, "top-1 err. %"),
        Column("top1", _MEASURED, "top-1 err. % [95 %]"),
        Column("top5", _MEASURED, "top-5 err. % [95 %]"),
        Column("speed", _MEASURED, "pictures/s"),
    ]


def _line(
    table: str,
    called: str,
    network: str | None,
    numbers: Sequence[Printed],
    measured: Measured | None,
    counted: Mapping[str, tuple[int, int]],
) -> Line:
    cells: dict[str, Cell] = {}
    facts: dict[str, Any] = {}
    row = ZOO.get(network or "")
    params, macs = counted.get(network or "", (None, None))
    if row is not None:
        params, macs = params or row.params, macs or row.macs
    elif measured is not None:
        params, macs = measured.params, measured.macs
    for one in numbers:
        count = {"flops": macs, "params": params}.get(one.metric)
        notes = remarks(table, called, one.metric)
        if count is not None and _differs(one, count):
            notes += (_DIFFERS,)
        cells[f"paper_{one.dataset}_{one.metric}"] = Cell(one.value, notes)
        facts[f"paper_{one.metric}" if table in COMPARED else f"paper_{one.dataset}_{one.metric}"] = float(one.number)
    if params is not None and macs is not None:
        cells["params"], cells["macs"] = Cell(f"{params / 1e6:.2f}"), Cell(f"{macs / 1e9:.3f}")
        facts |= {"params": params, "macs": macs}
        size = row.size if row is not None else measured.size if measured is not None else None
        facts["input"] = None if size is None else f"{size[0]}x{size[1]}"
    own = _row_notes(row)
    if row is not None and row.measured_top1 is not None and table in COMPARED:
        cells["released"] = Cell(f"{100 - row.measured_top1:.2f}")
        facts["released_top1_error"] = float(100 - Decimal(str(row.measured_top1)))
    if measured is not None:
        cells |= _measured_cells(measured)
        facts |= _measured_facts(measured)
    return Line(called, network, cells, facts, own)


def _row_notes(row: Any) -> tuple[str, ...]:
    """The zoo's remarks, each a sentence, so that networks share those that are the same."""
    parts = [part.strip().rstrip(".") for part in row.note.split(";")] if row is not None else []
    return tuple(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def _differs(one: Printed, count: int) -> bool:
    """Whether the count, rounded as the paper prints, is another number."""
    unit = {"GMAC": 10**9, "M": 10**6}[one.unit]
    return (Decimal(count) / unit).quantize(one.number, ROUND_HALF_UP) != one.number


def _measured_cells(one: Measured) -> dict[str, Cell]:
    refused = f"{one.refused} {'picture' if one.refused == 1 else 'pictures'} could not be decoded and is left out."
    notes = (refused if one.refused == 1 else refused.replace(" is ", " are "),) if one.refused else ()
    cells = {"top1": Cell("{:.2f} [{:.2f}, {:.2f}]".format(*one.error("top1")), notes)}
    if one.top5 is not None:
        cells["top5"] = Cell("{:.2f} [{:.2f}, {:.2f}]".format(*one.error("top5")))
    if one.speed is not None:
        cells["speed"] = Cell(f"{one.speed:.4g}")
    return cells


def _measured_facts(one: Measured) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for which in ("top1", "top5"):
        if getattr(one, which) is not None:
            value, low, high = one.error(which)
            facts |= {
                f"measured_{which}_error": value,
                f"measured_{which}_error_low": low,
                f"measured_{which}_error_high": high,
            }
    return facts | {
        "measured_on": one.data,
        "pictures": one.pictures,
        "refused": one.refused,
        "pictures_per_second": one.speed,
        "device": one.device,
        "batch": one.batch,
        "weights": one.weights["source"],
        "weights_sha256": one.weights["sha256"],
    }


def _measured_notes(measured: Sequence[Measured]) -> tuple[str, ...]:
    """What holds for all measured numbers of a table."""
    if not measured:
        return ()
    on = dict.fromkeys(f"{one.pictures:,} pictures of {one.data}" for one in measured)
    speed = dict.fromkeys(f"{one.device}, batch {one.batch}" for one in measured if one.speed is not None)
    notes = [
        f"Measured on {'; '.join(on)}, as each network's own preprocessing shows them, with Wilson's 95 % interval "
        "over pictures; another training run may differ by more."
    ]
    if speed:
        notes.append(f"Pictures/s of the forward pass alone: {'; '.join(speed)}.")
    return tuple(notes)


def names(text: str) -> list[str]:
    """The zoo's names of networks given with commas; names of other sources (`timm:NAME`, a file) stay as they are.

    Raises:
        UnknownName: no such network.
    """
    given = [name.strip() for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(name if ":" in name else canonical(name) for name in given))
