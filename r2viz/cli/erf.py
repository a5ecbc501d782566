"""`r2viz erf`: what the units of networks do see."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.cli import networks, progress, results
from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.errors import BadImage, R2VizError, nearest, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from r2viz.erf_records import Erf, ErfRecord
    from r2viz.models.model import Model

PROTOCOLS = ("luo", "replknet", "openerf")
SOURCES = ("pictures", "noise", "both")
_OVER = "unit.erf."
COLUMNS = {"sigma": "σ", "side50": "√A50", "side95": "√A95"}


@click.command("erf")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--pair", default=None, metavar="NAME", help="Two networks to compare: auto (default), imagenet, mini.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="One or two networks instead of a pair: of `r2viz models`, timm:NAME, torchvision:NAME, net.py:factory.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="W",
    help="auto, imagenet, mini, random (untrained), or a file; twice for two files.",
)
@click.option(
    "--layer", "layers", multiple=True, metavar="TAP", help="layer3, layer4.2, …; repeatable. [each one's last stage]"
)
@click.option("--split", "splits", is_flag=True, help="Every split of the layers' last block (code order).")
@click.option(
    "--unit", "units", multiple=True, metavar="WHERE", help="centre (default) or Y,X in the feature map; repeatable."
)
@click.option(
    "--protocol", default="luo", show_default=True, metavar="NAME", help="luo, replknet or openerf, which differ."
)
@click.option("--source", default=None, metavar="WHAT", help="pictures, noise or both, each by itself. [what came]")
@click.option(
    "--size", type=int, default=None, metavar="N", help="Side of the inputs in pixels. [as large as the field, to 512]"
)
@click.option(
    "--samples", type=int, default=None, metavar="N", help="So many of the pictures at most; so many inputs of noise."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of noise, of drawing, of random weights."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
@click.option(
    "-o", "--output", default=None, type=click.Path(), help="Folder for figure, maps and record. [only text is printed]"
)
@click.option("--format", "formats", multiple=True, metavar="F", help="png (default), pdf, svg; repeatable.")
@click.option("--recursive", is_flag=True, help="Look into the folders of folders.")
@click.option("--json", "as_json", is_flag=True, help="The record on stdout, one object.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any picture was bad.")
def command(images: tuple[str, ...], **options: Any) -> None:
    """Effective receptive fields: what units do see, beside what they could.

    \b
    σ           root of the mean variance of the mean map, in input pixels
    √A50, √A95  side of the square with the area of the smallest set that holds 50 or 95 % of its mass
    of theory, of input  √A95 beside the largest theoretical size, and the input's side

    IMAGE is a file, a folder, a pattern or - for standard input; without any, noise is looked at. DIR of -o gets
    NETWORKS.erf.png, NETWORKS.erf.npz (raw maps) and NETWORKS.erf.json (everything else); of one picture also
    NETWORKS.unit.erf.png, the last layer's field over it.
    """  # noqa: D301 - the backspace itself, which tells click to keep the lines
    sys.exit(_erf(images, options))


def _erf(images: Sequence[str], options: dict[str, Any]) -> int:
    units = _check_usage(images, options)
    pictures = _pictures(images, options)
    if options["output"] is not None:
        results.prepare(Path(options["output"]))
    asked = networks.named(options["models"], options["pair"], options["weights"])
    paths = _paths(asked, options, over=len(pictures) == 1 and options["source"] != "both")

    from r2viz.receptive.effective import erf
    from r2viz.store import refuse_existing

    refuse_existing(paths, overwrite=options["overwrite"])
    models: list[Model] = networks.loaded(asked, device=options["device"], seed=options["seed"])
    passed = {key: options[key] for key in ("layers", "splits", "protocol", "source", "size", "samples", "seed")}
    bar = progress.Steps()
    try:
        record = erf(pictures or None, model=models, units=units, progress=bar, **passed)
    finally:
        bar.close()
    for name, reason in record.inputs.left_out:
        click.echo(f"r2viz: {name}: {reason}", err=True)
    if paths:
        _write(record, paths, options)
    if options["as_json"]:
        from r2viz.store import as_dict

        document = as_dict(record, arrays=paths[-2].name if paths else None) | {"files": [str(path) for path in paths]}
        click.echo(json.dumps(document, allow_nan=False, ensure_ascii=False))
    else:
        for line in lines(record):
            click.echo(line)
        if paths:
            click.echo(f"→ {one_line(str(paths[0]), 1000)}")
    for note in notes(record):
        click.echo(f"note: {note}", err=True)
    bad = len(record.inputs.left_out)
    if bad:
        click.echo(f"{bad} of {bad + len(record.inputs.pictures)} pictures could not be used", err=True)
    return DONE if not bad else FAILED if options["strict"] else PARTLY


def _check_usage(images: Sequence[str], options: dict[str, Any]) -> list[Any]:
    """What can be refused before torch is imported; returns the units."""
    for kind, known in (("protocol", PROTOCOLS), ("source", (*SOURCES, None))):
        if options[kind] not in known:
            names = [name for name in known if name]
            hint = nearest(options[kind], names) or f"; there are {', '.join(names)}"
            raise click.UsageError(f"no {kind} {options[kind]!r}{hint}")
    if bool(images) == (options["source"] == "noise") and options["source"] is not None:
        raise click.UsageError(
            "--source noise looks at no pictures; leave them out, or take --source both"
            if images
            else f"--source {options['source']} needs pictures; name a file or a folder"
        )
    for kind, most in (("size", 4096), ("samples", 10**6)):
        if options[kind] is not None and not 1 <= options[kind] <= most:
            raise click.UsageError(f"--{kind} {options[kind]} is out of range; give a whole number from 1 to {most}")
    for kind in options["formats"]:
        if kind not in ("png", "pdf", "svg"):
            raise click.UsageError(f"no figure format {kind!r}; there are png, pdf and svg")
    units: list[Any] = []
    for text in options["units"] or ("centre",):
        row_column = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text.replace(" ", ""))
        if row_column is None and text != "centre":
            raise click.UsageError(
                f"--unit {one_line(text, 40)!r} is no unit; expected centre, or Y,X: row and column in the feature map"
            )
        units.append("centre" if row_column is None else (int(row_column[1]), int(row_column[2])))
    return units


def _pictures(images: Sequence[str], options: dict[str, Any]) -> list[Any]:
    """Paths, so that one picture is in memory at a time; and what is known to be wrong already."""
    from r2viz.image import decode
    from r2viz.inputs import gather

    found: list[Any] = []
    for item in gather(images, recursive=options["recursive"]) if images else []:
        if item.error is not None or item.path is not None:
            found.append(item.error or item.path)
            continue
        try:
            found.append(decode(sys.stdin.buffer, name="stdin"))
        except BadImage as error:
            found.append(error)
    if found and all(isinstance(one, R2VizError) for one in found):
        raise found[0]
    return found


def _paths(asked: Sequence[tuple[str, str]], options: dict[str, Any], *, over: bool) -> list[Path]:
    """Figures, NPZ, JSON, named after the networks; the figures `over` one picture between them."""
    if options["output"] is None:
        return []
    names = [re.sub(r"[^\w.-]+", "_", Path(name).name) for name, _ in asked]
    stem = "-".join(dict.fromkeys(names))[:150]
    kinds = list(dict.fromkeys(options["formats"])) or ["png"]
    ends = [*kinds, *(f"{_OVER}{kind}" for kind in kinds if over), "npz", "json"]
    return [Path(options["output"], f"{stem}.{end if end.startswith(_OVER) else f'erf.{end}'}") for end in ends]


def _write(record: ErfRecord, paths: Sequence[Path], options: dict[str, Any]) -> None:
    from r2viz.figures import erf_provenance, render, unit_figure
    from r2viz.store import files, write_set

    provenance = erf_provenance(record)
    drawings = {False: figure_of(record)}
    if record.picture is not None:
        drawings[True] = unit_figure(record)
    drawn = {path: render(drawings[_OVER in path.name], path.suffix[1:], provenance=provenance) for path in paths[:-2]}
    write_set({**drawn, **files(record, paths[-1])}, overwrite=options["overwrite"])


def figure_of(record: ErfRecord) -> Figure:
    """All fields of a record: splits side by side, others by layer and network."""
    from r2viz.figures import erf_figure, split_figure

    return split_figure(record) if all(".split" in layer for layer in record.layers) else erf_figure(record)


# --- Text ------------------------------------------------------------------------------------------------------------


def lines(record: ErfRecord) -> list[str]:
    """A table of sizes in input pixels, and of two networks the ratios."""
    side = " x ".join(map(str, dict.fromkeys(record.input_size)))
    counted = [(len(record.inputs.pictures), "picture"), (record.inputs.noise, "noise input")]
    of = " and ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counted if count)
    said = [f"effective receptive fields ({record.protocol_title}) of {of} at {side} px; sizes in px"]
    erfs = record.views[0].erfs
    units, sources = len({erf.unit for erf in erfs}) > 1, record.source == "both"
    rows = [["network", "layer", "theory", *COLUMNS.values(), "of theory", "of input"]]
    for view in record.views:
        for erf in view.erfs:
            layer = _place(erf, units, sources)
            rows.append([view.title, layer, _theory(erf), *(_size(erf, size) for size in COLUMNS)])
            rows[-1] += [_percent(erf.to_theory("side95")), _percent(erf.to_picture("side95"))] if erf.sizes else []
            if erf.inputs > 2:
                rows.append(["", "  each input", "", *(_interval(erf, size) for size in COLUMNS)])
    said += aligned(rows)
    if any(erf.inputs > 2 for view in record.views for erf in view.erfs):
        said.append("each input: mean of the sizes of single inputs' maps [95 % interval]")
    said += _ratios(record, units, sources)
    said += [f"{view.title}: weights {view.weights['source']}" for view in record.views]
    if record.random:
        said.append("RANDOM WEIGHTS: untrained networks; their fields say nothing about learning")
    return said


def notes(record: ErfRecord) -> list[str]:
    """Remarks on the record and on single fields, each once."""
    said = dict.fromkeys(record.notes)
    for view in record.views:
        for erf in view.erfs:
            said |= dict.fromkeys(f"{view.title} {erf.layer} {erf.unit}: {note}" for note in erf.notes)
    return list(said)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, words to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if column < 2 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def _place(erf: Erf, units: bool, sources: bool) -> str:
    return erf.layer + (f" {erf.unit[0]},{erf.unit[1]}" if units else "") + (f" {erf.source}" if sources else "")


def _theory(erf: Erf) -> str:
    if erf.theory is None:
        return "unknown"
    return f"{erf.theory.min}-{erf.theory.max}" + (", unbounded" if erf.theory.unbounded else "")


def _size(erf: Erf, size: str) -> str:
    return "no gradient" if erf.sizes is None else f"{erf.sizes.named()[size]:.1f}"


def _interval(erf: Erf, size: str) -> str:
    if size not in erf.each:
        return ""
    found = erf.interval(size)
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]" if math.isfinite(found.low) else f"{found.mean:.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _ratios(record: ErfRecord, units: bool, sources: bool) -> list[str]:
    if len(record.views) != 2:
        return []
    first, second = record.views
    said = []
    for number, erf in enumerate(first.erfs):
        shown = []
        for size, title in COLUMNS.items():
            found = record.ratios(size)[number]
            if found is not None and found.n:
                interval = f" [{found.low:.2f}, {found.high:.2f}]" if math.isfinite(found.low) else ""
                shown.append(f"{title} × {found.mean:.2f}{interval}")
        if shown:
            said.append(f"{second.title} over {first.title} at {_place(erf, units, sources)}: {', '.join(shown)}")
    if said:
        said.append("(geometric means of single inputs' ratios, the same inputs for both)")
    return said
