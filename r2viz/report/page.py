"""A report as one page of HTML that needs nothing beside it: no network, no script, no file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from r2viz.report import pictures, tables
from r2viz.report.content import Drawing, Report, Table
from r2viz.version import __version__

LIMIT = 15_000_000
"""Bytes of a page."""

_FRAME = 4_000
"""Bytes of a figure's or a row's surroundings, at most."""


def page(report: Report, images: dict[str, bytes]) -> bytes:
    """The page, with its figures (PNG by name) within it, made smaller where they would be too much."""
    # Base64 takes four bytes for three; what is not a figure is counted on the safe side.
    text = sum(len(section.text) for section in report.sections) + len(report.verdict)
    rows = sum(min(len(one.data), one.shown) * (len(one.data.columns) * 80) for one in report.tables())
    small = pictures.fitted(images, (LIMIT - 2 * text - rows - _FRAME * (len(images) + 20)) * 3 // 4)
    figures = [_figure(number, one, small[one.name]) for number, one in enumerate(report.figures(), start=1)]
    shown = [_table(number, one) for number, one in enumerate(report.tables(), start=1)]
    sections = []
    for number, section in enumerate(report.sections, start=1):
        sections.append(
            {
                "id": f"s{number}",
                "title": section.title,
                "paragraphs": paragraphs(section.text),
                "figures": [figures.pop(0) for _ in section.figures],
                "tables": [shown.pop(0) for _ in section.tables],
            }
        )
    return filled(
        "report.html",
        title=report.title,
        finding=report.finding,
        verdict=paragraphs(report.verdict),
        sections=sections,
        provenance=report.provenance,
    )


def filled(template: str, **values: Any) -> bytes:
    """A page of this room with its blanks filled in and escaped; a name that is no text is shown by its bytes."""
    return _templates().get_template(template).render(version=__version__, **values).encode("utf-8", "backslashreplace")


def paragraphs(text: str) -> list[str]:
    """The text's parts between empty lines."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("r2viz.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figure(number: int, drawing: Drawing, content: bytes) -> dict[str, Any]:
    return {
        "number": number,
        "name": drawing.name,
        "alt": drawing.alt,
        "caption": drawing.caption,
        "data": pictures.uri(content),
        "width": pictures.width_on_page(drawing, content),
    }


def _table(number: int, table: Table) -> dict[str, Any]:
    rows: Sequence[Sequence[str]] = tables.rows(table)
    return {
        "number": number,
        "name": table.name,
        "caption": table.caption,
        "columns": tables.columns(table),
        "rows": rows,
        "more": len(table.data) - len(rows),
    }
