"""One page that leads to several reports.

python -m analyses.index out/receptive_fields out/coverage_by_size -o out
"""

from __future__ import annotations

import sys

import click

from r2viz.errors import R2VizError
from r2viz.report import join


@click.command()
@click.argument("reports", nargs=-1, required=True, metavar="REPORT_DIR …")
@click.option("-o", "--output", default="out", show_default=True, help="Folder for index.html; links are relative.")
@click.option("--overwrite", is_flag=True, help="Replace a page that exists.")
def main(reports: tuple[str, ...], output: str, overwrite: bool) -> None:
    """Join reports, in the order named, into one page with their findings, verdicts and links."""
    try:
        page = join(reports, output, overwrite=overwrite)
    except R2VizError as error:
        click.echo(f"index: {error}", err=True)
        sys.exit(1)
    click.echo(f"→ {page}")


if __name__ == "__main__":
    main()
