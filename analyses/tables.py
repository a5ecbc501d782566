"""The paper's tables 1 to 4 beside what is counted here, as a report that joins the index.

    python -m analyses.tables -o out/tables

Accuracy is what the paper prints and what public weights are known to reach; `r2viz tables --images VAL_DIR` measures
it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import pandas as pd

from r2viz.errors import R2VizError
from r2viz.figures import tradeoff
from r2viz.figures.tradeoff import described
from r2viz.report import Drawing, Report, Section, Table, write
from r2viz.report.folder import refuse
from r2viz.tables import comparison
from r2viz.tables.points import joined, note, points
from r2viz.tables.published import chosen
from r2viz.version import __version__


def report(tables: list[comparison.Table]) -> Report:
    """The tables as sections, the figure of accuracy against cost first."""
    shown = points(tables)
    drawn = Drawing(
        "tradeoff",
        tradeoff(shown, joined(shown), note=note(shown)),
        alt=described(shown, joined(shown)),
        caption="Top-1 accuracy against multiply-adds and parameters, as counted here.",
        provenance=described(shown, joined(shown)),
    )
    differing = sum(_differs(line) for table in tables for line in table.lines)
    counted = sum(line.network is not None for table in tables for line in table.lines)
    said = (
        f"{counted} of the networks in tables 1 to 4 are in the zoo, and are counted there to the last digit. "
        f"Of their printed parameters and multiply-adds, {differing} networks have a number that is not the count, "
        "also when that is rounded alike; each says so below."
    )
    return Report(
        "The paper's tables beside what is counted",
        said,
        (Section("Accuracy against cost", figures=(drawn,)), *map(_section, tables)),
        {"r2viz": __version__},
    )


def _differs(line: comparison.Line) -> bool:
    return any(remark.startswith("Not what is counted") for cell in line.cells.values() for remark in cell.notes)


def _section(table: comparison.Table) -> Section:
    rows = []
    remarks: dict[str, list[str]] = {}
    for line in table.lines:
        row = {"network": line.called}
        for column in table.columns:
            cell = line.cells.get(column.key, comparison.Cell())
            row[f"{column.title} ({column.group})"] = cell.text
            for remark in cell.notes:
                remarks.setdefault(remark, []).append(f"{line.called}, {column.title}")
        for remark in line.notes:
            remarks.setdefault(remark, []).append(line.called)
        rows.append(row)
    notes = [
        f"{remark} ({'; '.join(where) if len(where) < 6 else f'{len(where)} cells'})"
        for remark, where in remarks.items()
    ]
    return Section(
        f"Table {table.name[1:]}",
        "\n\n".join([*table.notes, *notes]),
        tables=(Table(f"table_{table.name[1:]}", pd.DataFrame(rows), f"{table.title}"),),
    )


@click.command()
@click.option("-o", "--output", default="out/tables", show_default=True, help="Folder for page, figure and tables.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def main(output: str, overwrite: bool) -> None:
    """Write the report; needs no weights and no pictures."""
    begun = time.perf_counter()
    try:
        refuse(Path(output), overwrite=overwrite)
        found = report(comparison.compare(chosen(())))
        page = write(
            found, output, overwrite=overwrite, run={"seconds": {"all": round(time.perf_counter() - begun, 3)}}
        )
    except R2VizError as error:
        click.echo(f"tables: {error}", err=True)
        sys.exit(1)
    click.echo(f"{found.verdict}\n→ {page}")


if __name__ == "__main__":
    main()
