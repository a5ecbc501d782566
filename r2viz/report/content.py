"""What a report is made of: text, figures and tables, with what they were made from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from r2viz.errors import OutputError, one_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a report.

    Attributes:
        name: of its files, unique in the report: letters, digits, "-" and "_".
        image: a matplotlib figure, or a picture as the bytes of a PNG.
        alt: what it shows, in words, for those who do not see it; numbers rather than colours.
        caption: what stands below it: what is drawn, and how it is to be read.
        provenance: what the files of a matplotlib figure embed; a PNG keeps what it has.
    """

    name: str
    image: Figure | bytes
    alt: str
    caption: str = ""
    provenance: str = ""

    def __post_init__(self) -> None:
        _check(self.name, "figure")
        if not self.alt.strip():
            raise OutputError(f"the figure {self.name!r} has no alt text; say in words what it shows")


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a report.

    Attributes:
        name: of its files, unique in the report: letters, digits, "-" and "_".
        data: a pandas DataFrame; the index is left out. Written unrounded; the page shows four digits.
        caption: what stands above it.
        units: by column; in the page's head, and in the Parquet's fields.
        shown: how many rows the page shows; the files have all.
    """

    name: str
    data: Any
    caption: str = ""
    units: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    shown: int = 60

    def __post_init__(self) -> None:
        _check(self.name, "table")
        unknown = set(self.units) - set(self.data.columns)
        if unknown:
            raise OutputError(f"the table {self.name!r} has units for columns that it has not: {sorted(unknown)}")


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a report; an empty line in `text` begins a new paragraph."""

    title: str
    text: str = ""
    figures: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """An analysis and what came of it.

    Attributes:
        verdict: a paragraph or two that answer the title, made from the numbers.
        sections: in order.
        provenance: by name, what the numbers were made from: digests, options that matter, versions. No paths and no
            times; those belong to `run.json`.
        finding: the verdict in a word or two, say "supported", "not supported" or "undecided".
    """

    title: str
    verdict: str
    sections: tuple[Section, ...]
    provenance: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    finding: str = ""

    def __post_init__(self) -> None:
        for kind, names in (
            ("figure", [one.name for one in self.figures()]),
            ("table", [one.name for one in self.tables()]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise OutputError(f"two {kind}s of a report are called {twice!r}; each needs a name of its own")

    def figures(self) -> Iterator[Drawing]:
        """All figures in order."""
        return (one for section in self.sections for one in section.figures)

    def tables(self) -> Iterator[Table]:
        """All tables in order."""
        return (one for section in self.sections for one in section.tables)


def _check(name: str, kind: str) -> None:
    # It becomes a file's name: no separators, no dots, nothing that a shell or a browser reads in its own way.
    if not _NAME.fullmatch(name):
        raise OutputError(
            f"a {kind} is called {one_line(repr(name), 80)}; expected letters, digits, '-' and '_', since its files "
            "are called so"
        )
