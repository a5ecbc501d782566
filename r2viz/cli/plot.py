"""`r2viz plot`: draw a saved record or panel again."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("plot")
@click.argument("record", type=click.Path())
@click.option(
    "-o", "--output", default=None, type=click.Path(), help="File to draw to: .png, .pdf or .svg. [beside the record]"
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def command(record: str, output: str | None, overwrite: bool) -> None:
    """Draw a saved record (NAME.cam.json, .erf.json, .splits.json) or panel (.panel.json) again, computing nothing."""
    from r2viz.erf_records import ErfRecord
    from r2viz.figures import drawn, render
    from r2viz.split_records import SplitRecord
    from r2viz.store import open_any, refuse_existing, write_set

    target = Path(output) if output else Path(record).with_suffix(".png")
    refuse_existing([target], overwrite=overwrite)
    found = open_any(record)
    if isinstance(found, ErfRecord):
        from r2viz.cli.erf import figure_of
        from r2viz.figures import erf_provenance

        drawing, provenance = figure_of(found), erf_provenance(found)
    elif isinstance(found, SplitRecord):
        from r2viz.cli.splits import figure_of as split_figure_of
        from r2viz.figures import splits_provenance

        drawing, provenance = split_figure_of(found), splits_provenance(found)
    else:
        drawing, provenance = drawn(found)
    kind = target.suffix.lstrip(".").lower()
    write_set({target: render(drawing, kind, provenance=provenance)}, overwrite=overwrite)
    click.echo(str(target))
