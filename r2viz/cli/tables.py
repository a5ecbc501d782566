"""`r2viz tables`: the paper's tables beside what is counted and measured."""

from __future__ import annotations

from pathlib import Path

import click

from r2viz.cli.codes import DONE, FAILED, PARTLY


@click.command("tables")
@click.argument("tables", nargs=-1, metavar="[T1 … T10]")
@click.option(
    "--images",
    default=None,
    type=click.Path(),
    metavar="VAL_DIR",
    help="Measure on these: class folders (WordNet id, label or index), or Parquet shards (image, label).",
)
@click.option(
    "--models",
    default=None,
    metavar="NAMES",
    help="Networks to measure, with commas. [those whose weights are at hand]",
)
@click.option("--limit", default=None, type=click.IntRange(1), help="Measure on so many pictures, drawn evenly.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Pictures per forward pass.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--count", is_flag=True, help="Build every network and count anew, instead of reading the zoo's counts.")
@click.option(
    "--format",
    "kind",
    default="text",
    show_default=True,
    type=click.Choice(["text", "csv", "latex", "json"]),
    help="What is printed.",
)
@click.option("--latex", "kind", flag_value="latex", help="Short for --format latex.")
@click.option(
    "-o",
    "--output",
    default=None,
    type=click.Path(),
    help="Folder for the tables in every format and the figure of accuracy against cost (PNG, PDF, SVG).",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option(
    "--resume", is_flag=True, help="Take what the folder has measured on the same pictures; go on from there."
)
@click.option("--strict", is_flag=True, help="Fail (1) where a picture could not be decoded, instead of 3.")
def command(
    tables: tuple[str, ...],
    images: str | None,
    models: str | None,
    limit: int | None,
    batch: int,
    device: str,
    count: bool,
    kind: str,
    output: str | None,
    overwrite: bool,
    resume: bool,
    strict: bool,
) -> int:
    """The paper's tables beside what is counted here and, with --images, measured.

    Tables 1 to 4 (ImageNet and CIFAR classification) are compared, and are what is shown unless you name others;
    5 to 10 are listed as printed.
    """
    from r2viz.tables.comparison import compare, names
    from r2viz.tables.folder import about, check, keep, kept, write
    from r2viz.tables.layout import render
    from r2viz.tables.measure import Measured, measure_each
    from r2viz.tables.published import chosen
    from r2viz.tables.validation import read

    wanted = chosen(tables)
    named = None if models is None else names(models)
    if images is None and (models is not None or limit is not None or resume):
        raise click.UsageError("--models, --limit and --resume are for measuring; name the pictures with --images")
    if resume and output is None:
        raise click.UsageError("--resume needs the folder to go on in; name it with -o")
    folder = None if output is None else Path(output)
    if folder is not None:
        check(folder, overwrite=overwrite or resume)
    before: list[Measured] = kept(folder) if resume and folder is not None else []
    measured: list[Measured] = []
    said: set[str] = set()
    if images is not None:
        found = measure_each(read(images), named, device=device, limit=limit, batch=batch, known=before)
        for one, refused, was_kept in found:
            measured.append(one)
            if folder is not None:
                done = {result.network for result in measured}
                keep(folder, [*measured, *(result for result in before if result.network not in done)])
            for line in refused:
                if line not in said:
                    click.echo(f"r2viz: {line}", err=True)
            said.update(refused)
            click.echo(
                f"r2viz: {one.title}: top-1 {one.top1 / one.pictures:.2%} of {one.pictures:,} pictures"
                f"{' (from the folder)' if was_kept else ''}",
                err=True,
            )
    compared = compare(wanted, measured, counted=_counted(wanted) if count else None)
    click.echo(render(compared, kind, **about(measured)), nl=False)
    if folder is not None:
        for path in write(folder, compared, measured):
            click.echo(f"  → {path}", err=True)
    if not any(one.refused for one in measured):
        return DONE
    return FAILED if strict else PARTLY


def _counted(wanted: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    from tqdm import tqdm

    from r2viz.models.zoo import ZOO
    from r2viz.tables.measure import recount

    names = [name for name, row in ZOO.items() if any(one.table in wanted for one in row.published)]
    return {name: recount(name) for name in tqdm(names, desc="counting", unit="network", disable=None, leave=False)}
