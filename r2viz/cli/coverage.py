"""`r2viz coverage`: how far networks' maps cover the objects of a data set."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.cli import networks, results
from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.errors import nearest, one_line

if TYPE_CHECKING:
    import pandas as pd

    from r2viz.datasets import DataSet
    from r2viz.surveys import Survey

SCHEMA = 1
TARGETS = ("label", "shared")
STRATA = ("share", "coco")
_NAMED = 10


@click.command("coverage")
@click.argument("dataset", metavar="DATASET", type=click.Path())
@click.option("--pair", default=None, metavar="NAME", help="Two networks to compare: auto (default), imagenet, mini.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="One or two networks instead of a pair: of `r2viz models`, timm:NAME, torchvision:NAME, net.py:factory.",
)
@click.option(
    "--weights", multiple=True, metavar="W", help="auto, imagenet, mini, random, or a file; twice for two files."
)
@click.option(
    "--method",
    "--methods",
    "methods",
    multiple=True,
    default=("gradcam",),
    metavar="NAME",
    help="How maps are made: gradcam (default) or others of `r2viz methods`; repeatable, or a list with commas.",
)
@click.option(
    "--measure",
    "--measures",
    "measures",
    multiple=True,
    metavar="NAME",
    help="pointing, energy, maxboxaccv2, …; repeatable, or a list with commas. [all that the data set allows]",
)
@click.option("--layer", default=None, metavar="TAP", help="layer3, layer4.1, …  [each network's last stage]")
@click.option(
    "--target",
    default="label",
    show_default=True,
    metavar="T",
    help="Class to explain: label (the data set's, where it names one) or shared (most probable to both).",
)
@click.option(
    "--strata",
    default="share",
    show_default=True,
    metavar="HOW",
    help="Sizes by the object's share of the picture, or coco: by its pixels.",
)
@click.option("--limit", type=click.IntRange(1), default=None, metavar="N", help="So many pictures, drawn with --seed.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of drawing, intervals, random weights."
)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Pictures per forward pass.")
@click.option("--grabcut", is_flag=True, help="Guess masks from boxes, for the measures that need masks; said so.")
@click.option("--annotations", default=None, type=click.Path(), help="Where XML boxes are, if not below DATASET.")
@click.option("--pictures", default=None, type=click.Path(), help="Where COCO's pictures are, if not beside the file.")
@click.option("--registration", default="rf", show_default=True, metavar="HOW", help="rf (unit centres) or grid.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
@click.option(
    "-o", "--output", default=None, type=click.Path(), help="Folder for the report. [only the table is printed]"
)
@click.option("--json", "as_json", is_flag=True, help="Means, differences and failures on stdout, one object.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any picture was bad.")
def command(dataset: str, **options: Any) -> None:
    """Hold networks' maps against the objects of a data set: coverage, leakage, localisation, by object size.

    DATASET is a Parquet file or a folder of them, a CSV file or a folder with objects.csv, COCO's JSON, a folder as
    ImageNet's, ImageNet-S's or VOC's, or NAME.jpg beside NAME_mask.png. Boxes allow fewer measures than masks. With -o
    the folder gets index.html, figures, and tables as CSV and Parquet: per picture, summary, strata, failures.
    """
    sys.exit(_coverage(dataset, options))


def _coverage(place: str, options: dict[str, Any]) -> int:
    _check_usage(options)
    dataset = _dataset(place, options)
    out = options["output"]
    if out is not None:
        results.prepare(Path(out))
        if os.path.lexists(Path(out) / "index.html") and not options["overwrite"]:
            from r2viz.store import refuse_existing

            refuse_existing([Path(out) / "index.html"], overwrite=False)
    asked = networks.named(options["models"], options["pair"], options["weights"])

    from tqdm import tqdm

    from r2viz.explain.survey import survey

    models = networks.loaded(asked, device=options["device"], seed=options["seed"])
    with tqdm(total=len(dataset), unit="picture", file=sys.stderr, disable=None) as bar:
        found = survey(
            dataset,
            models,
            methods=_listed(options["methods"]),
            measures=_listed(options["measures"]) or None,
            target=options["target"],
            batch=options["batch"],
            layers=options["layer"],
            registration=options["registration"],
            seed=options["seed"],
            progress=bar.update,
        )
    if out is not None:
        _write(found, out, options)
    if options["as_json"]:
        click.echo(json.dumps(document(found, options), allow_nan=False, ensure_ascii=False))
    else:
        _print(found, options)
        if out is not None:
            click.echo(f"→ {one_line(str(Path(out) / 'index.html'), 1000)}")
    return _failures(found, options)


def _check_usage(options: dict[str, Any]) -> None:
    """What can be refused before anything is read."""
    for kind, known in (("target", TARGETS), ("strata", STRATA), ("registration", ("rf", "grid"))):
        if options[kind] not in known:
            raise click.UsageError(
                f"no {kind} {one_line(options[kind], 60)!r}{nearest(options[kind], known)}; there are "
                f"{' and '.join(known)}"
            )
    if options["pair"] and options["models"]:
        raise click.UsageError("--pair and --model exclude each other; give one of them")


def _listed(values: tuple[str, ...]) -> list[str]:
    """Names from repeated options and from lists with commas, once each."""
    return list(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


def _dataset(place: str, options: dict[str, Any]) -> DataSet:
    from r2viz.datasets import open_dataset

    found = open_dataset(place, annotations=options["annotations"], pictures=options["pictures"])
    if options["grabcut"]:
        found = found.with_grabcut()
    return found.sample(options["limit"], seed=options["seed"])


def _failures(found: Survey, options: dict[str, Any]) -> int:
    """Names what could not be used; returns the exit code."""
    if not found.failures:
        return DONE
    total = len(found) + len(found.failures)
    shown = found.failures[:_NAMED]
    for failure in shown:
        text = failure.error
        click.echo(f"r2viz: {text if text.startswith(failure.name) else f'{failure.name}: {text}'}", err=True)
    more = len(found.failures) - len(shown)
    told = (
        ""
        if not more
        else f"; {more} more are not named here"
        + (", see tables/failures.csv" if options["output"] is not None else ", -o or --json lists them")
    )
    click.echo(f"{len(found.failures)} of {total} pictures could not be used{told}", err=True)
    return FAILED if options["strict"] else PARTLY


# --- Shown -----------------------------------------------------------------------------------------------------------


def _write(found: Survey, out: str, options: dict[str, Any]) -> None:
    from r2viz.contrasts import judge_all
    from r2viz.report import Report, Section, write
    from r2viz.report.surveyed import provenance, section, verdict, verdict_table

    seed = options["seed"]
    finding, text = verdict(found, seed=seed)
    sections = [section(found, "Measures by object size", by=options["strata"], seed=seed)]
    judged = judge_all(found, seed=seed)
    if judged:
        sections.append(Section("How the verdict was reached", tables=(verdict_table(judged),)))
    title = f"How {' and '.join(dict.fromkeys(look.title for look in found.looks))} cover objects: {found.dataset}"
    about = provenance([found]) | {
        "options": f"target {found.target}, strata {options['strata']}, limit {options['limit']}, seed {seed}"
    }
    write(
        Report(title, text, tuple(sections), about, finding),
        out,
        overwrite=options["overwrite"],
        run={"seconds": {part: round(value, 3) for part, value in found.seconds.items()}, "device": found.device},
    )


def _print(found: Survey, options: dict[str, Any]) -> None:
    from r2viz.contrasts import ALL, differences, levels, pairs, primary, units
    from r2viz.coverage import MEASURES
    from r2viz.report.surveyed import said, verdict

    seed = options["seed"]
    click.echo(said(found))
    about = levels(found, by=options["strata"], seed=seed)
    whole = about[about.stratum == ALL]
    summary = found.summary()
    names = [*dict.fromkeys(look.title for look in found.looks), "centre-Gaussian"]
    room = max(len(MEASURES[name].title) for name in MEASURES) + 2
    wide = max(21, *(len(name) + 2 for name in names))
    for method in found.methods:
        title = next(look.method_title for look in found.looks if look.method == method)
        click.echo(f"\n{title + ', %':{room}}{''.join(f'{name:>{wide}}' for name in names)}{'chance':>9}")
        for measure in found.measures:
            lines = whole[(whole.measure == measure) & whole.method.isin([method, ""])]
            cells = "".join(f"{_with_interval(line):>{wide}}" for line in lines.to_dict("records"))
            click.echo(f"  {MEASURES[measure].title:{room - 2}}{cells}{_percent(lines.chance.iloc[0]):>9}")
        for measure in found.pooled:
            values = summary[summary.method.isin([title, ""])][measure]
            click.echo(f"  {MEASURES[measure].title:{room - 2}}{''.join(f'{_percent(v):>{wide}}' for v in values)}")
    if pairs(found):
        _print_differences(differences(found, by=options["strata"], seed=seed), found, room)
        click.echo(f"\n{verdict(found, seed=seed)[1]}")
    decides = primary(found) if pairs(found) else None
    rests = f"; the verdict rests on {MEASURES[decides].title}" if decides else ""
    click.echo(f"Brackets: 95 % intervals over {units(found)}{rests}.")


def _print_differences(contrasts: pd.DataFrame, found: Survey, room: int) -> None:
    from r2viz.coverage import MEASURES

    first, second = found.looks[0].title, found.looks[-1].title
    among = list(dict.fromkeys(contrasts.stratum))
    for method in found.methods:
        own = contrasts[contrasts.method == method]
        counted = {line.stratum: line.pictures for line in own.itertuples()}
        heads = "".join(f"{f'{name} (n = {counted[name]})':>24}" for name in among)
        title = next(look.method_title for look in found.looks if look.method == method)
        click.echo(f"\n{title + ', points':{room}}{heads}\n  {second} − {first}")
        for measure in dict.fromkeys(own.measure):
            lines = own[own.measure == measure].to_dict("records")
            cells = "".join(f"{_difference(line):>24}" for line in lines)
            click.echo(f"  {MEASURES[measure].title:{room - 2}}{cells}")


def _percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.1f}".replace("-", "−")


def _with_interval(line: dict[str, Any]) -> str:
    if not math.isfinite(line["low"]):
        return _percent(line["mean"])
    return f"{_percent(line['mean'])} [{_percent(line['low'])}, {_percent(line['high'])}]"


def _difference(line: dict[str, Any]) -> str:
    if not math.isfinite(line["difference"]):
        return "–"
    text = f"{100 * line['difference']:+.1f}"
    if math.isfinite(line["difference low"]):
        text += f" [{100 * line['difference low']:+.1f}, {100 * line['difference high']:+.1f}]"
    return text.replace("-", "−")


def document(found: Survey, options: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints."""
    from r2viz.contrasts import differences, judge_all, levels, pairs

    seed, by = options["seed"], options["strata"]
    return {
        "schema": SCHEMA,
        "kind": "coverage",
        "dataset": found.dataset,
        "format": found.format,
        "regions": found.kind,
        "pictures": len(found),
        "networks": [
            {"model": look.model, "title": look.title, "weights": dict(look.weights), "method": look.method,
             "layer": look.layer}
            for look in found.looks
        ],
        "summary": _records(found.summary()),
        "strata": _records(levels(found, by=by, seed=seed)),
        "differences": _records(differences(found, by=by, seed=seed)) if pairs(found) else [],
        "verdicts": [
            {
                "method": one.method,
                "measure": one.measure,
                "verdict": one.decision.verdict,
                "sentence": one.decision.sentence,
                "intervals": {name: interval.as_dict() for name, interval in one.intervals.items()},
            }
            for one in judge_all(found, seed=seed)
        ],
        "failures": [{"picture": one.name, "code": one.code, "error": one.error} for one in found.failures],
        "digest": found.digest,
        "output": options["output"],
    }  # fmt: skip


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
