"""A report's table as CSV, as Parquet, and as cells of a page."""

from __future__ import annotations

import io
import math
import numbers
from dataclasses import dataclass
from typing import Any

from r2viz.report.content import Table

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column's head on the page; numbers stand to the right."""

    name: str
    unit: str
    right: bool


def csv(table: Table) -> bytes:
    """Unrounded, lines ended by a line feed; what is missing is empty."""
    return _plain(table).to_csv(index=False, lineterminator="\n").encode()


def parquet(table: Table) -> bytes:
    """Equal tables give equal bytes; units are the metadata `unit` of their fields."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = _plain(table)
    columns, fields = [], []
    for name in data.columns:
        # Numbers of paths outgrow 64 bits.
        kind = pa.decimal128(38) if _whole(data[name]) else None
        column = pa.array(data[name], type=kind, from_pandas=True)
        unit = table.units.get(name)
        columns.append(column)
        fields.append(pa.field(str(name), column.type, metadata={"unit": unit} if unit else None))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), buffer)
    return buffer.getvalue()


def columns(table: Table) -> list[Column]:
    """The head."""
    return [
        Column(str(name), table.units.get(name, ""), _numeric(table.data[name]) or _whole(table.data[name]))
        for name in table.data.columns
    ]


def rows(table: Table) -> list[list[str]]:
    """The cells of the rows that the page shows."""
    return [[_cell(value) for value in row] for row in table.data.head(table.shown).itertuples(index=False)]


def _numeric(column: Any) -> bool:
    return column.dtype.kind in "iufc"


def _whole(column: Any) -> bool:
    return (
        column.dtype == object
        and len(column) > 0
        and all(isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in column)
    )


def _plain(table: Table) -> Any:
    """The table with text that UTF-8 can hold: a file's name need not."""
    data = table.data.reset_index(drop=True).copy()
    for name in data.columns:
        if not _numeric(data[name]) and data[name].dtype.kind != "b" and not _whole(data[name]):
            data[name] = data[name].map(_storable)
    return data


def _storable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return MISSING
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return _power(int(value)) if abs(int(value)) >= 10**12 else f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return _digits(float(value))
    return str(_storable(str(value)))


def _power(value: int) -> str:
    return f"{value:.3e}"


def _digits(value: float) -> str:
    """Four digits, none of them spent on what is before the point."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}".replace("-", "−", 1)
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{decimals}f}".replace("-", "−")
