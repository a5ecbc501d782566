"""`r2viz splits`: what each split of Res2Net's blocks carries."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.cli import ablation, networks, progress, results
from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.cli.erf import aligned
from r2viz.errors import OutputError, R2VizError, UnknownName, nearest, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from r2viz.causal_records import CausalRecord
    from r2viz.image import Picture
    from r2viz.inputs import Input
    from r2viz.models.model import Model
    from r2viz.split_records import Row, SplitRecord

MAIN = ("energy", "sparsity", "dead", "effective_share", "centroid", "correlation_length")
"""Statistics that the table and the heat maps show unless others are asked for."""

FAMILIES = ("moments", "covariance", "spectra", "quantiles", "cka")
HEADS = {
    "dead": "dead",
    "effective_share": "rank / width",
    "centroid": "centroid",
    "correlation_length": "corr. length",
}


@click.command("splits")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
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
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="layer3, layer3.2, …; repeatable. [all]")
@click.option(
    "--stat",
    "statistics",
    multiple=True,
    metavar="NAME",
    help="centroid, energy, … or moments, covariance, spectra, quantiles, cka; repeatable. [all]",
)
@click.option("--ablate", is_flag=True, help="Also change every split in turn and see what the network loses: slow.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, help="Pictures at once.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the control's random order, of weights."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
@click.option("-o", "--output", default=None, type=click.Path(), help="Folder for figures, tables and record.")
@click.option("--format", "formats", multiple=True, metavar="F", help="png (default), pdf, svg; repeatable.")
@click.option("--recursive", is_flag=True, help="Look into the folders of folders.")
@click.option("--json", "as_json", is_flag=True, help="The record on stdout, one object.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any picture was bad.")
def command(images: tuple[str, ...], **options: Any) -> None:
    """Statistics of every split of Res2Net's blocks, beside equal groups of a ResNet's channels.

    \b
    energy        share of the block's sum of squares
    sparsity      share of values that are 0;  dead: share of channels that always are
    rank / width  effective number of dimensions, per channel
    centroid      mean spatial frequency, cycles per input pixel
    corr. length  where the autocorrelation falls below 1/e, input pixels

    The table's numbers are means over a stage's blocks, its first block apart (nothing cascades in it). DIR of -o gets
    figures (heat maps, likeness, spectra, values), NETWORKS.splits.csv and .parquet with intervals over pictures, and
    the record, NETWORKS.splits.json with .npz; with --ablate also NETWORKS.effects.splits.png, .csv and .parquet. Of
    one picture also NETWORK.TAP.maps.splits.png: the most active channels of the last block's splits, over the picture.
    """  # noqa: D301 - the backspace itself, which tells click to keep the lines
    sys.exit(_splits(images, options))


def _splits(images: Sequence[str], options: dict[str, Any]) -> int:
    from r2viz.inputs import gather

    _check_usage(options)
    items = gather(images, recursive=options["recursive"])
    if options["output"] is not None:
        results.prepare(Path(options["output"]))
    asked = networks.named(options["models"], options["pair"], options["weights"])
    paths = _paths(asked, options)

    from r2viz.store import refuse_existing

    refuse_existing(paths.values(), overwrite=options["overwrite"])
    models = _told_apart(networks.loaded(asked, device=options["device"], seed=options["seed"]))
    bad: list[R2VizError] = []
    kept: list[Picture] | None = [] if options["ablate"] else None
    record = _measured(items, models, bad, kept, options)
    chosen = {key: options[key] for key in ("layers", "seed")}
    effects = [] if kept is None else ablation.ablated(kept, models, record, **chosen)
    written = _write(record, effects, paths, options) if paths else []
    if written and len(items) == 1:
        written += _over_the_picture(items[0], models, options)
    if options["as_json"]:
        from r2viz.store import as_dict

        document = as_dict(record, arrays=paths["npz"].name if paths else None)
        left_out = [str(error) for error in bad]
        document |= {"left_out": left_out, "files": [str(path) for path in written]}
        document |= {"effects": [one.as_dict() for one in effects]} if effects else {}
        click.echo(json.dumps(document, allow_nan=False, ensure_ascii=False))
    else:
        for line in lines(record, options["statistics"]):
            click.echo(line)
        for line in ablation.lines(effects, [network.title for network in record.networks]) if effects else ():
            click.echo(line)
        if written:
            click.echo(f"→ {one_line(str(written[0]), 1000)} and {len(written) - 1} more files beside it")
    for note in dict.fromkeys([*record.notes, *(note for one in effects for note in one.notes)]):
        click.echo(f"note: {note}", err=True)
    if bad:
        click.echo(f"{len(bad)} of {len(bad) + record.pictures} pictures could not be used", err=True)
    return DONE if not bad else FAILED if options["strict"] else PARTLY


def _check_usage(options: dict[str, Any]) -> None:
    """What can be refused before torch is imported."""
    from r2viz.split_records import STATISTICS

    known = [*(name for name in STATISTICS if not name.startswith("selectivity")), *FAMILIES]
    for name in options["statistics"]:
        if name not in known:
            hint = nearest(name, known) or f"; there are {', '.join(known)}"
            raise UnknownName(f"no statistic {one_line(name, 60)!r}{hint}", code="unknown_name.statistic")
    for kind in options["formats"]:
        if kind not in ("png", "pdf", "svg"):
            raise click.UsageError(f"no figure format {kind!r}; there are png, pdf and svg")


def _told_apart(models: Sequence[Model]) -> list[Model]:
    """One network with two kinds of weights is two networks: trained and untrained, say."""
    if len({model.name for model in models}) == len(models):
        return list(models)
    return [
        replace(
            model, name=f"{model.name}#{number}", title=f"{model.title} ({one_line(str(model.weights.source), 24)})"
        )
        for number, model in enumerate(models, 1)
    ]


def _measured(
    items: Sequence[Input],
    models: Sequence[Model],
    bad: list[R2VizError],
    kept: list[Picture] | None,
    options: dict[str, Any],
) -> SplitRecord:
    """One pass over the pictures; what cannot be used is named at once and left out, what can is kept if asked for."""
    from r2viz.inputs import decoded
    from r2viz.partition.verbs import splits

    def refuse(error: R2VizError, item: Input) -> None:
        bad.append(error)
        click.echo(f"r2viz: {results.about(item, error)}", err=True)

    def usable() -> Iterator[Picture]:
        pairs = zip(items, decoded(items), strict=True)
        for item, found in progress.counted(pairs, len(items), "picture"):
            if isinstance(found, R2VizError):
                refuse(found, item)
                continue
            try:
                for model in models:
                    model.preprocess(found.rgb)
            except R2VizError as error:
                refuse(error, item)
                continue
            if kept is not None:
                kept.append(found)
            yield found

    try:
        return splits(
            usable(),
            pair=models,
            layers=options["layers"] or None,
            statistics=options["statistics"] or None,
            seed=options["seed"],
            batch=options["batch"],
        )
    except R2VizError:
        if len(bad) == len(items):
            raise bad[0] from None
        raise


# --- Files -----------------------------------------------------------------------------------------------------------


def _paths(asked: Sequence[tuple[str, str]], options: dict[str, Any]) -> dict[str, Path]:
    """By what is written: figures as `cka.png`, tables, arrays, record."""
    if options["output"] is None:
        return {}
    names = [re.sub(r"[^\w.-]+", "_", Path(name).name) for name, _ in asked]
    stem = "-".join(dict.fromkeys(names))[:150]
    kinds = list(dict.fromkeys(options["formats"])) or ["png"]
    figures = [f"{name}.{kind}" for name in _figures(options["statistics"]) for kind in kinds]
    folder = Path(options["output"])
    drawn = {figure: folder / "{}.{}.splits.{}".format(stem, *figure.rsplit(".", 1)) for figure in figures}
    if options["ablate"]:
        drawn |= {f"effects.{end}": folder / f"{stem}.effects.splits.{end}" for end in (*kinds, "csv", "parquet")}
    return drawn | {end: folder / f"{stem}.splits.{end}" for end in ("csv", "parquet", "npz", "json")}


def _figures(statistics: Sequence[str]) -> dict[str, Callable[[SplitRecord], Figure]]:
    """What draws each figure of what was asked for, by its name in a file's name."""

    def heatmap(name: str) -> Callable[[SplitRecord], Figure]:
        def draw(record: SplitRecord) -> Figure:
            from r2viz.figures import split_heatmap

            return split_heatmap(record, name)

        return draw

    def likeness(record: SplitRecord) -> Figure:
        from r2viz.figures import cka_figure

        return cka_figure(record)

    def spectra(record: SplitRecord) -> Figure:
        from r2viz.figures import spectrum_figure

        return spectrum_figure(record)

    def values(record: SplitRecord) -> Figure:
        from r2viz.figures import split_ridgelines

        return split_ridgelines(record)

    single = [name for name in statistics if name not in FAMILIES]
    shown = {name: heatmap(name) for name in (single or () if statistics else MAIN)}
    for family, name in (("moments", ("energy", "sparsity", "dead")), ("covariance", ("effective_share",))):
        if family in statistics:
            shown |= {one: heatmap(one) for one in name}
    if "spectra" in statistics:
        shown |= {name: heatmap(name) for name in ("centroid", "correlation_length")}
    more = {"cka": likeness, "spectra": spectra, "quantiles": values}
    named = {"cka": "cka", "spectra": "spectra", "quantiles": "values"}
    return shown | {named[family]: draw for family, draw in more.items() if not statistics or family in statistics}


def _write(
    record: SplitRecord, effects: Sequence[CausalRecord], paths: dict[str, Path], options: dict[str, Any]
) -> list[Path]:
    """All or none; a figure for which there were too few pictures is left out, and that is said."""
    from r2viz.figures import causal_figure, render, splits_provenance
    from r2viz.store import files, splits_csv, splits_parquet, write_set

    provenance = splits_provenance(record)
    drawn: dict[Path, bytes] = {}
    for name, draw in _figures(options["statistics"]).items():
        try:
            drawing = draw(record)
        except OutputError as error:
            click.echo(f"r2viz: no figure {name}: {error}", err=True)
            continue
        for kind in list(dict.fromkeys(options["formats"])) or ["png"]:
            drawn[paths[f"{name}.{kind}"]] = render(drawing, kind, provenance=provenance)
    if effects:
        drawing, table = causal_figure(effects, networks=record.networks), ablation.frame(effects)
        for kind in list(dict.fromkeys(options["formats"])) or ["png"]:
            drawn[paths[f"effects.{kind}"]] = render(drawing, kind, provenance=provenance)
        drawn[paths["effects.csv"]] = table.to_csv(index=False, lineterminator="\n").encode()
        drawn[paths["effects.parquet"]] = table.to_parquet(index=False)
    tables = {paths["csv"]: splits_csv(record), paths["parquet"]: splits_parquet(record)}
    every = {**drawn, **tables, **files(record, paths["json"])}
    write_set(every, overwrite=options["overwrite"])
    return list(every)


def _over_the_picture(item: Input, models: Sequence[Model], options: dict[str, Any]) -> list[Path]:
    """The most active channels of each split of the last block; a split in which nothing is active has no figure."""
    from r2viz.figures import feature_maps, render
    from r2viz.inputs import decoded
    from r2viz.partition.features import features
    from r2viz.store import write_set

    (picture,) = decoded([item])
    if isinstance(picture, R2VizError):  # it has been named already
        return []
    drawn: dict[Path, bytes] = {}
    for model in models:
        for one in features(picture, model, options["layers"] or None):
            try:
                drawing = feature_maps(
                    picture.rgb, one.maps, title=one.title, geometry=one.geometry, start=one.start, jump=one.jump,
                    reach=one.reach,
                )  # fmt: skip
            except OutputError as error:
                click.echo(f"r2viz: no figure: {error}", err=True)
                continue
            name = re.sub(r"[^\w.-]+", "_", f"{model.name}.{one.tap}")
            for kind in list(dict.fromkeys(options["formats"])) or ["png"]:
                path = Path(options["output"]) / f"{name}.maps.splits.{kind}"
                drawn[path] = render(drawing, kind, provenance=f"{one.title}; {picture.sha256}")
    write_set(drawn, overwrite=options["overwrite"])
    return list(drawn)


def figure_of(record: SplitRecord) -> Figure:
    """One figure that stands for the record: its spectra, else a heat map of its first statistic."""
    from r2viz.figures import spectrum_figure, split_heatmap

    return spectrum_figure(record) if record.spectra else split_heatmap(record, record.statistics[0])


# --- Text ------------------------------------------------------------------------------------------------------------


def lines(record: SplitRecord, statistics: Sequence[str] = ()) -> list[str]:
    """A table: a line for each network, stage and split; first-of-stage blocks have lines of their own."""
    from r2viz.split_records import PERMUTED, STATISTICS

    single = [name for name in statistics if name not in FAMILIES]
    shown = single if single and len(single) == len(statistics) else [*single, *MAIN]
    shown = [name for name in dict.fromkeys(shown) if name in record.statistics] or list(record.statistics[:6])
    of = f"{record.pictures} picture{'s' if record.pictures != 1 else ''}"
    said = [f"statistics of splits over {of}; means over a stage's blocks, splits in code order"]
    rows = [["network", "stage", "split", *(HEADS.get(name, STATISTICS[name].title) for name in shown)]]
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in record.rows:
        if row.statistic in shown and row.split.kind != PERMUTED:
            cells.setdefault(_line(row), {}).setdefault(row.statistic, []).append(row.interval.mean)
    titles = {network.model: network.title for network in record.networks}
    for (model, stage, split), values in cells.items():
        rows.append([titles[model], stage, split, *(_mean(values.get(name, [])) for name in shown)])
    if shown:
        said += aligned(rows)
    if not shown and record.likenesses:
        said.append(f"{len(record.likenesses)} matrices of likeness; -o DIR draws and keeps them")
    for network in record.networks:
        source = network.weights.get("source", "unknown")
        said.append(f"{network.title}: {source if source.startswith('random') else f'weights {source}'}")
    if record.random:
        said.append("RANDOM WEIGHTS: untrained networks; their splits show the architecture, not learning")
    return said


def _line(row: Row) -> tuple[str, str, str]:
    from r2viz.split_records import CONTROL, FIRST, PASSED

    split = row.split
    apart = split.kind == FIRST or (split.kind == CONTROL and split.block == 0)
    mark = " passed" if split.kind == PASSED else ""
    return split.model, split.stage + (", first block" if apart else ""), f"{_short(row)}{mark}"


def _short(row: Row) -> str:
    from r2viz.split_records import CONTROL

    return f"{'g' if row.split.kind == CONTROL else ''}{row.split.split}"


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{sum(known) / len(known):.3g}" if known else "–"
