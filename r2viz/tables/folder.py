"""The folder of results: what was measured, kept network by network, and tables and figure when all is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2viz.errors import BadRecord, one_line
from r2viz.store import refuse_existing, write_set
from r2viz.tables.comparison import Table
from r2viz.tables.layout import render
from r2viz.tables.measure import Measured, as_dict, from_dict

SCHEMA = 1
FORMATS = {"text": "txt", "csv": "csv", "latex": "tex", "json": "json"}
FIGURES = ("png", "pdf", "svg")
KEPT = "measured.json"


def check(folder: Path, *, overwrite: bool) -> None:
    """Raise before anything is computed where results stand already.

    Raises:
        OutputError: one does, and `overwrite` is off.
    """
    names = [*(f"tables.{end}" for end in FORMATS.values()), *(f"tradeoff.{end}" for end in FIGURES), KEPT]
    refuse_existing([folder / name for name in names], overwrite=overwrite)


def keep(folder: Path, measured: Sequence[Measured]) -> None:
    """Write all measurements so far; the file is whole at any time.

    Raises:
        OutputError: it cannot be written.
    """
    content = json.dumps({"schema": SCHEMA, **about(measured)}, ensure_ascii=False, indent=1) + "\n"
    write_set({folder / KEPT: content.encode()}, overwrite=True)


def kept(folder: Path) -> list[Measured]:
    """What an earlier run measured; nothing where it kept nothing.

    Raises:
        BadRecord: the file is something else.
    """
    path = folder / KEPT
    if not path.exists():
        return []
    try:
        return [from_dict(one) for one in json.loads(path.read_text(encoding="utf-8"))["measured"]]
    except (OSError, ValueError, KeyError, TypeError, BadRecord):
        raise BadRecord(
            f"{one_line(str(path))} holds no measurements of r2viz tables; remove it, or choose another folder with -o"
        ) from None


def about(measured: Sequence[Measured]) -> dict[str, Any]:
    """The measurements for a JSON document, if there are any."""
    return {"measured": [as_dict(one) for one in measured]} if measured else {}


def write(folder: Path, tables: Sequence[Table], measured: Sequence[Measured]) -> list[Path]:
    """The tables in every format and, where a network has both accuracy and cost, the figure; returns the files.

    Raises:
        OutputError: they cannot be written; then none is.
    """
    from r2viz.figures.canvas import render as drawn
    from r2viz.figures.tradeoff import described, tradeoff
    from r2viz.tables.points import joined, note, points

    files = {
        folder / f"tables.{ending}": render(tables, kind, **about(measured)).encode("utf-8", "backslashreplace")
        for kind, ending in FORMATS.items()
    }
    shown = points(tables)
    if any(one.macs is not None or one.params is not None for one in shown):
        figure, said = tradeoff(shown, joined(shown), note=note(shown)), described(shown, joined(shown))
        files |= {folder / f"tradeoff.{ending}": drawn(figure, ending, provenance=said) for ending in FIGURES}
    write_set(files, overwrite=True)
    return list(files)
