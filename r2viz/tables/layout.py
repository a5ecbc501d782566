"""Compared tables as text, CSV, LaTeX or JSON. Nothing in a name is taken for an instruction."""

from __future__ import annotations

import csv
import io
import json
import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from r2viz.errors import UnknownName, nearest, one_line
from r2viz.tables.comparison import OTHER, Cell, Column, Line, Table
from r2viz.tables.published import SOURCE

SCHEMA = 1
_WIDTH = 110

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": r"{-}",  # else -- is a dash, and ?` or << other letters
    "–": "--",
    "−": r"$-$",
    "×": r"$\times$",
    "…": r"\dots{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "’": "'",
}


def render(tables: Sequence[Table], kind: str, **more: Any) -> str:
    """The tables as `kind`: "text", "csv", "latex" or "json"; `more` goes into the JSON document.

    Raises:
        UnknownName: no such kind.
    """
    if kind == "text":
        return "\n\n".join(text(table) for table in tables) + "\n"
    if kind == "csv":
        return as_csv(tables)
    if kind == "latex":
        return latex(tables)
    if kind == "json":
        return as_json(tables, **more)
    known = ("text", "csv", "latex", "json")
    raise UnknownName(f"no format {kind!r}{nearest(kind, known)}; there are {', '.join(known)}")


class _Marks:
    """Footnotes in the order in which they are first met; equal ones share a letter."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def of(self, notes: Sequence[str]) -> str:
        """The letters of these notes, with commas."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
        return ",".join(self.letter(self.notes.index(note)) for note in notes)

    @staticmethod
    def letter(number: int) -> str:
        """The letter of a note: a to z, then aa."""
        letters = string.ascii_lowercase
        return letters[number] if number < 26 else _Marks.letter(number // 26 - 1) + letters[number % 26]


@dataclass(frozen=True)
class _Shown:
    """A table's texts, each with the letters of its footnotes."""

    heads: list[tuple[str, str]]
    rows: list[list[tuple[str, str]]]
    notes: list[tuple[str, str]]


def _shown(table: Table) -> _Shown:
    """Letters in reading order: heads, then line by line. What all of a column share stands at its head."""
    marks = _Marks()
    cells = [[line.cells.get(column.key, Cell()) for column in table.columns] for line in table.lines]
    common = [_common(list(column)) for column in zip(*cells, strict=True)]
    heads = [
        ("network", ""),
        *((column.title, marks.of(notes)) for column, notes in zip(table.columns, common, strict=True)),
    ]
    rows = []
    for line, inside in zip(table.lines, cells, strict=True):
        row = [(line.called, marks.of(line.notes))]
        for cell, shared in zip(inside, common, strict=True):
            row.append((cell.text, marks.of([note for note in cell.notes if note not in shared])))
        rows.append(row)
    return _Shown(heads, rows, [(marks.letter(number), note) for number, note in enumerate(marks.notes)])


def _common(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Notes that every filled cell of a column has."""
    filled = [cell for cell in cells if cell != Cell()]
    if len(filled) < 2:
        return ()
    return tuple(note for note in filled[0].notes if all(note in cell.notes for cell in filled))


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """(title, number of columns) of neighbours under one heading."""
    return [(group, len(list(members))) for group, members in groupby(columns, lambda column: column.group)]


def _caption(table: Table) -> str:
    return table.title if table.name == OTHER else f"Table {table.name[1:]}. {table.title}"


# --- Text ------------------------------------------------------------------------------------------------------------


def text(table: Table) -> str:
    """Aligned columns with footnotes beneath."""
    shown = _shown(table)
    lines = [[(one_line(text, 60), f" [{mark}]" if mark else "") for text, mark in row] for row in shown.rows]
    columns = []
    for index, (head, mark) in enumerate(shown.heads):
        # Numbers stand right under each other; the letters hang over.
        text_room = max(len(line[index][0]) for line in lines)
        mark_room = max(len(line[index][1]) for line in lines)
        if index == 0:
            cells = [text + letters for text, letters in (line[0] for line in lines)]
        else:
            cells = [line[index][0].rjust(text_room) + line[index][1].ljust(mark_room) for line in lines]
        columns.append([head + (f" [{mark}]" if mark else ""), *cells])
    widths = [max(map(len, column)) for column in columns]
    over, start = [" " * widths[0]], 1
    for title, count in _groups(table.columns):
        room = sum(widths[start : start + count]) + 2 * (count - 1)
        if len(title) > room:
            widths[start + count - 1] += len(title) - room
            room = len(title)
        over.append(f" {title} ".center(room, "-") if room > len(title) + 2 else title.center(room))
        start += count
    columns = [
        [cell.ljust(width) if index == 0 else cell.rjust(width) for cell in column]
        for index, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    written = [*textwrap.wrap(one_line(_caption(table), 400), _WIDTH), "  ".join(over)]
    written += ["  ".join(row) for row in zip(*columns, strict=True)]
    for mark, note in shown.notes:
        written += textwrap.wrap(f"[{mark}] {one_line(note, 600)}", _WIDTH, subsequent_indent="    ")
    for note in table.notes:
        written += textwrap.wrap(one_line(note, 600), _WIDTH)
    return "\n".join(line.rstrip() for line in written)


# --- CSV and JSON ----------------------------------------------------------------------------------------------------


def as_csv(tables: Sequence[Table]) -> str:
    """One line per network and table; unrounded, with what is not known left empty."""
    keys = list(dict.fromkeys(key for table in tables for line in table.lines for key in line.facts))
    keys.sort(key=lambda key: not key.startswith("paper"))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "called", "network", *keys, "notes"])
    for table in tables:
        for line in table.lines:
            values = ["" if line.facts.get(key) is None else line.facts[key] for key in keys]
            writer.writerow([table.name, line.called, line.network or "", *values, " ".join(_notes(table, line))])
    return file.getvalue()


def as_json(tables: Sequence[Table], **more: Any) -> str:
    """One object: tables of lines with their facts and notes; `more` beside them."""
    document = {
        "schema": SCHEMA,
        "source": SOURCE,
        "tables": [
            {
                "table": table.name,
                "title": table.title,
                "notes": list(table.notes),
                "lines": [
                    {"called": line.called, "network": line.network, **line.facts, "notes": _notes(table, line)}
                    for line in table.lines
                ],
            }
            for table in tables
        ],
        **more,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _notes(table: Table, line: Line) -> list[str]:
    cells = [line.cells[column.key] for column in table.columns if column.key in line.cells]
    return list(dict.fromkeys([*line.notes, *(note for cell in cells for note in cell.notes)]))


# --- LaTeX -----------------------------------------------------------------------------------------------------------


def latex(tables: Sequence[Table]) -> str:
    """A document of booktabs tables that compiles as it is; each `table` environment can be taken out."""
    head = [
        r"% Written by r2viz tables; compile with pdflatex.",
        r"\documentclass[10pt]{article}",
        r"\usepackage[utf8]{inputenc}",
        # The usual letters are bitmaps in T1 unless Latin Modern is there; in OT1 they never are.
        r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}\usepackage[T1]{fontenc}}{}",
        r"\usepackage{textcomp}",
        r"\usepackage{booktabs}",
        r"\usepackage[a4paper,landscape,margin=18mm]{geometry}",
        r"\setlength{\belowcaptionskip}{5pt}",
        r"\begin{document}",
    ]
    return "\n".join([*head, *(_latex_table(table) for table in tables), r"\end{document}"]) + "\n"


def _latex_table(table: Table) -> str:
    shown = _shown(table)
    groups, rules, start = [], [], 2
    for title, count in _groups(table.columns):
        groups.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(title)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    heads, *rows = [
        " & ".join(escape(text) + _latex_mark(mark, hanging=index > 0) for index, (text, mark) in enumerate(row))
        + r" \\"
        for row in [shown.heads, *shown.rows]
    ]
    notes = [rf"{_latex_mark(mark)}\,{escape(note)}" for mark, note in shown.notes]
    notes += [escape(note) for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize",
            rf"\caption{{{escape(table.title)}}}",
            rf"\begin{{tabular}}{{@{{}}l{'r' * len(table.columns)}@{{}}}}",
            r"\toprule",
            " & ".join(["", *groups]) + r" \\",
            "".join(rules),
            heads,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", r"\begin{minipage}{0.92\linewidth}\scriptsize\raggedright"] if notes else []),
            "\\par\n".join(notes),
            *([r"\end{minipage}"] if notes else []),
            r"\end{table}",
        ]
    )


def _latex_mark(mark: str, *, hanging: bool = False) -> str:
    """The letters, raised; hanging ones take no room, so that numbers stand right under each other."""
    if not mark:
        return ""
    raised = rf"\textsuperscript{{{mark}}}"
    return rf"\rlap{{{raised}}}" if hanging else raised


def escape(shown: str) -> str:
    """Text as LaTeX prints it letter by letter; a letter that pdflatex cannot set stands as its number (U+65E5)."""
    safe = one_line(shown, 2000)
    return "".join(_LATEX.get(c, c) if c in _LATEX or ord(c) < 128 else _foreign(c) for c in safe)


def _foreign(character: str) -> str:
    # Latin-1's letters, but for Iceland's, can be set in every font.
    if "À" <= character <= "ÿ" and character not in "ÐÞðþ÷":
        return character
    return rf"\texttt{{U+{ord(character):04X}}}"
