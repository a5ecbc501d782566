"""The paper's figure 4: class activation maps of ResNet and Res2Net in a grid, one picture per column.

    python -m analyses.figure4_gradcam [PICTURE … or FOLDER] -o out/figure4

A picture whose file name begins with a WordNet id (n02799071_baseball.jpg) is explained by that class where the
networks know it. Pictures of the paper's seven classes stand in its order under its headings; of a folder that has
any, only these are taken unless --all. Other pictures stand by their object's share of the picture, where a mask
(NAME_mask.png beside NAME.jpg) or an objects.csv says where it is. Without pictures: those of examples/.

The paper names neither layer, target class nor colours; here: the last stage, one class for both networks, each map
divided by its own maximum.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure

from r2viz.attribution.labels import output_of
from r2viz.coverage import Region, measure, read_mask
from r2viz.datasets import Located, open_dataset
from r2viz.errors import R2VizError
from r2viz.explain import explain
from r2viz.figures import grid, provenance, render
from r2viz.image import Picture
from r2viz.inputs import Input, decoded, gather
from r2viz.models.model import Model, load_pair
from r2viz.records import CamRecord
from r2viz.store import as_dict, write_set
from r2viz.summary import lines

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL, MIDDLE, BIG, OTHER = "small objects", "middle objects", "big objects", "size not known"
PAPER: dict[str, tuple[str, str]] = {
    "n02799071": ("baseball", SMALL),
    "n02056570": ("king penguin", SMALL),
    "n07614500": ("ice cream", MIDDLE),
    "n01560419": ("bulbul", BIG),
    # The paper's "mountain dog" may be either of two classes.
    "n02107574": ("mountain dog", BIG),
    "n02107683": ("mountain dog", BIG),
    "n02783161": ("ballpoint", BIG),
    "n03788195": ("mosque", BIG),
}
"""The paper's columns, in its order: name, and the size that its text on figure 4 says (arXiv 1904.01169)."""

LIMITS = ((0.25, SMALL), (0.5, MIDDLE), (1.0, BIG))
"""Of other pictures, by the object's share; the paper names no limits."""

_WNID = re.compile(r"n[0-9]{8}(?![0-9])")


@dataclass(frozen=True, eq=False)
class Column:
    """A picture in the figure: under which heading, what it is called, and whether the networks know its class."""

    record: CamRecord
    heading: str
    name: str | None
    known: bool
    place: tuple[float, ...]


@click.command()
@click.argument("pictures", nargs=-1)
@click.option("--pair", default="auto", show_default=True, help="The two networks.")
@click.option("--weights", default="auto", show_default=True, help="auto or random.")
@click.option("--layer", default=None, help="The tap. [each network's last stage]")
@click.option("--target", default=None, help="shared, a label or an index. [the picture's class if known, else shared]")
@click.option("--columns", default=7, show_default=True, type=click.IntRange(1), help="Pictures per figure, at most.")
@click.option("--all", "everything", is_flag=True, help="Of a folder, also pictures of other classes than the paper's.")
@click.option("-o", "--output", default="out/figure4", show_default=True, help="Folder for figures and numbers.")
@click.option("--overwrite", is_flag=True, help="Replace figures that exist.")
def main(pictures: tuple[str, ...], pair: str, weights: str, output: str, overwrite: bool, **options: Any) -> None:
    """Draw the grid as PNG and PDF, with each panel's numbers as JSON and CSV. Exit codes are those of `r2viz cam`."""
    try:
        inputs = gather(pictures or [str(EXAMPLES)])
        if not options["everything"] and any(Path(name).is_dir() for name in pictures):
            inputs = _of_the_paper(inputs)
        models = load_pair(pair, weights=weights)
        columns = []
        for item, picture in zip(inputs, decoded(inputs), strict=True):
            try:
                column = _column(item, picture, models, options["layer"], options["target"])
            except R2VizError as error:
                click.echo(f"left out: {item.shown}: {error}", err=True)
            else:
                columns.append(column)
                click.echo("\n".join(lines(column.record)))
        if not columns:
            raise R2VizError(f"none of the {len(inputs)} pictures could be used, so there is nothing to draw")
        columns.sort(key=lambda column: column.place)
        _write(columns, options["columns"], Path(output), overwrite, examples=not pictures)
    except R2VizError as error:
        click.echo(f"figure4: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if len(columns) == len(inputs) else 3)


def _of_the_paper(inputs: Sequence[Input]) -> list[Input]:
    """One picture for each of the paper's columns, if there are any; else all."""
    found: dict[str, Input] = {}
    for item in inputs:
        wnid = _wnid(item)
        if wnid in PAPER:
            first = found.setdefault(PAPER[wnid][0], item)
            if first is not item:
                click.echo(f"not drawn: {item.shown}: {first.shown} stands for “{PAPER[wnid][0]}”", err=True)
    if found and len(found) < len(inputs):
        click.echo(
            f"{len(found)} of {len(inputs)} pictures are of the paper's classes; --all draws others too", err=True
        )
    return list(found.values()) or list(inputs)


def _wnid(item: Input) -> str:
    match = None if item.path is None else _WNID.match(item.path.name)
    return match[0] if match else ""


def _column(
    item: Input, picture: Picture | R2VizError, models: Sequence[Model], layer: str | None, target: str | None
) -> Column:
    if isinstance(picture, R2VizError):
        raise picture
    wnid = _wnid(item)
    located = _located(item)
    label = wnid or (located.label if located is not None else None)
    outputs = [] if label is None else [output_of(label, model) for model in models]
    known = bool(outputs) and None not in outputs
    region = located.region if located is not None else _mask(item, picture)
    record = explain(
        picture,
        models,
        layers=[layer] if layer else None,
        target=target or (_target(outputs, models) if known else "shared"),
        region=region,
    )
    name, heading = PAPER.get(wnid, (None, None))
    if name is None and label is not None:
        name = item.path.stem.partition("_")[2].replace("_", " ") if wnid and item.path else label
    share = math.nan if region is None else float(region.mask.mean())
    if heading is not None:
        place: tuple[float, ...] = (0, list(PAPER).index(wnid))
    else:
        heading = next((called for limit, called in LIMITS if share <= limit), OTHER)
        place = (1, share) if region is not None else (2,)
    return Column(record, heading, name, known or label is None, place)


def _target(outputs: Sequence[int | None], models: Sequence[Model]) -> str:
    """The class as both networks take it: its index, or where they number classes differently its label."""
    first = outputs[0]
    assert first is not None
    return str(first) if len(set(outputs)) == 1 else models[0].classes[first]


def _located(item: Input) -> Located | None:
    """What an objects.csv beside the picture says of it."""
    if item.path is None or not (item.path.parent / "objects.csv").is_file():
        return None
    for entry in open_dataset(item.path.parent / "objects.csv"):
        if entry.name == item.path.name:
            return entry.open()
    return None


def _mask(item: Input, picture: Picture) -> Region | None:
    if item.path is None:
        return None
    path = item.path.with_name(f"{item.path.stem}_mask.png")
    return read_mask(path, picture.rgb.shape[:2]) if path.is_file() else None


def _numbers(record: CamRecord) -> list[dict[str, float]]:
    """How each network's map covers the object: what its region allows; nothing where there is none."""
    if record.region is None:
        return [{} for _ in record.views]
    wanted = ["energy"] if record.region.box is not None else ["energy", "area_coverage"]
    found = []
    for view in record.views:
        row = measure(view.on_source(record.layers[0]), record.region, measures=wanted)
        found.append({**row.values, "chance": row.area})
    return found


def _shown(numbers: dict[str, float]) -> str:
    for name, word in (("area_coverage", "covers"), ("energy", "inside")):
        if name in numbers and np.isfinite(numbers[name]):
            return f"{word} {100 * numbers[name]:.0f} %"
    return ""


def _drawn(columns: Sequence[Column], *, examples: bool) -> Figure:
    """The columns of one figure, with what their caption must say of them."""
    numbers = [[_shown(found) for found in _numbers(column.record)] for column in columns]
    labels = []
    for column in columns:
        explained = " / ".join(dict.fromkeys(view.target.label for view in column.record.views))
        labels.append([column.name or explained, ""] if column.known else [f"{column.name} †", f"as “{explained}”"])
    if not any(second for _, second in labels):
        labels = [[first] for first, _ in labels]
    said = []
    if examples:
        said.append("Pictures: the project's own examples, not the paper's.")
    elif any(column.place[0] == 0 for column in columns):
        said.append("Classes and their sizes as the paper has them; the pictures are others, it does not name its own.")
    if any(column.place[0] == 1 for column in columns):
        said.append("Small: up to 25 % of the picture is object; middle: up to 50 %; big: more.")
    if any("covers" in text for row in numbers for text in row):
        said.append("Covers: the share of the outlined object that as many strongest pixels cover as it has.")
    if any("inside" in text for row in numbers for text in row):
        said.append("Inside: the share of the map's mass in the object's box.")
    if not all(column.known for column in columns):
        said.append(f"† {_titles(columns)} do not know this class: the map explains what they hold most probable.")
    several = any(column.heading != OTHER for column in columns)
    return grid(
        [column.record for column in columns],
        headings=[column.heading for column in columns] if several else None,
        labels=labels,
        numbers=numbers if any(any(row) for row in numbers) else None,
        note=" ".join(said),
    )


def _titles(columns: Sequence[Column]) -> str:
    return " and ".join(view.title for view in columns[0].record.views)


def _write(columns: Sequence[Column], most: int, folder: Path, overwrite: bool, *, examples: bool) -> None:
    files: dict[Path, bytes] = {}
    number_of_figures = math.ceil(len(columns) / most)
    size = math.ceil(len(columns) / number_of_figures)
    for number in range(number_of_figures):
        part = columns[number * size : (number + 1) * size]
        drawing = _drawn(part, examples=examples)
        embedded = "[" + ", ".join(provenance(column.record) for column in part) + "]"
        for kind in ("png", "pdf"):
            files[folder / f"figure4-{number + 1}.{kind}"] = render(drawing, kind, provenance=embedded)
    numbers = [as_dict(column.record) for column in columns]
    files[folder / "figure4.json"] = (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode()
    files[folder / "figure4.csv"] = _csv(columns)
    write_set(files, overwrite=overwrite)
    for path in files:
        click.echo(f"→ {path}")


def _csv(columns: Sequence[Column]) -> bytes:
    """A line for each panel with a map."""
    text = io.StringIO()
    names = ("energy", "area_coverage", "chance")
    head = ("picture", "shows", "class_known", "size", "network", "explains", "probability", "top1", "top1_probability")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*head, *names])
    for column in columns:
        record = column.record
        for view, numbers in zip(record.views, _numbers(record), strict=True):
            top = view.top[0]
            row = [record.picture.name, column.name or "", column.known, column.heading, view.title]
            row += [view.target.label, view.target.probability, top.label, top.probability]
            table.writerow([*row, *(numbers.get(name, "") for name in names)])
    return text.getvalue().encode()


if __name__ == "__main__":
    main()
