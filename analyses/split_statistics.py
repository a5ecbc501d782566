"""What each split of a Res2Net block carries, how far it sees, and what is lost without it.

    python -m analyses.split_statistics --dataset val.parquet -o out/split_statistics

Do later splits of a cascade carry lower spatial frequencies and larger fields, and is that in ResNet's channel groups,
in random orders of the same channels, in blocks without a cascade, or in networks before training, too? The trained
pair's unit is the picture, that of random weights the seed. The rule is the table in `split_statistics_verdict`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from r2viz.causal_records import EFFECTS, INTERVENTIONS, CausalRecord
from r2viz.datasets import open_dataset
from r2viz.datasets.located import DataSet
from r2viz.errors import R2VizError
from r2viz.figures.split_captions import splits_provenance
from r2viz.figures.split_causal import causal_figure
from r2viz.figures.split_curves import spectrum_figure
from r2viz.figures.splits import cka_figure, split_heatmap
from r2viz.models.model import Model, load
from r2viz.partition.places import blocks
from r2viz.report import Drawing, Report, Section, Table, write
from r2viz.report.folder import refuse
from r2viz.split_records import CASCADE, CONTROL, KINDS, PASSED, PERMUTED, STATISTICS, Split, SplitRecord
from r2viz.statistics import mean_interval
from r2viz.version import __version__

from .split_statistics_measured import (
    QUICK,
    Given,
    Plan,
    as_inputs,
    deep,
    field_series,
    frequencies,
    interventions,
    pair_record,
    read,
    untrained,
)
from .split_statistics_verdict import MARGIN, SAID, Series, Trend, judge, trends

EXAMPLES = Path(__file__).parents[1] / "examples"


# --- The report ------------------------------------------------------------------------------------------------------


def analyse(
    plan: Plan, models: Sequence[Model], given: Given, examples: Given, *, timings: dict[str, float] | None = None
) -> Report:
    """Measure, judge and lay out; `timings` takes the seconds of each part."""
    timings = {} if timings is None else timings
    started = time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        now = time.perf_counter()
        timings[part], started = round(now - started, 3), now

    record = pair_record(models, given)
    done("statistics")
    series: list[Series] = []
    orders: list[Series] = []
    for model in models:
        inputs = as_inputs(model, given.pictures)
        series += frequencies(model, inputs, weights="trained")
        orders += frequencies(model, inputs[: plan.ordered], weights="trained", orders=plan.orders)
    done("frequencies")
    wide = as_inputs(models[1], given.pictures[: plan.field_pictures], plan.field_side)
    for model in models:
        series += field_series(model, wide, weights="trained")
    done("fields")
    some = plan.causal
    causal = [interventions(model, as_inputs(model, given.pictures[:some]), given.first(some)) for model in models]
    done("interventions")
    series += untrained(plan, as_inputs(models[1], given.pictures[: plan.untrained]), wide)
    done("before training")
    series += deep(plan, examples.pictures)
    done("50 layers")
    found = trends(series, orders)
    baseline, network = models
    finding, verdict = judge(found, network=network.title, control=baseline.title)
    report = Report(
        "Split statistics: what each scale inside a Res2Net block carries",
        "\n\n".join([verdict, _weight(models, causal), *_small(given)]),
        (
            _frequency_section(record, found, given),
            _field_section(plan, models, series, found),
            _causal_section(record, causal),
            _untrained_section(plan, found, models),
            _other_section(record),
        ),
        _provenance(plan, models, given, record),
        finding,
    )
    done("intervals and figures")
    return report


def _small(given: Given) -> list[str]:
    if len(given.pictures) >= 1000:
        return []
    return [
        f"These are {len(given.pictures)} pictures ({given.name}): enough to look at the report, not at the question. "
        "Give a data set with --dataset."
    ]


def _frequency_section(record: SplitRecord, found: Sequence[Trend], given: Given) -> Section:
    trained = [one for one in found if one.weights == "trained" and one.statistic != "sigma"]
    passed = _passed(record)
    return Section(
        "Spatial frequencies",
        f"{len(given.pictures)} pictures of {given.name}, each network's own preprocessing. The spectral centroid and "
        "the autocorrelation length of every split's maps, by its place in the cascade: split 0 is convolved, each "
        "later one has the output of the one before added first. What is passed through or pooled is not part of a "
        "trend, and first blocks of stages, where nothing cascades, stand apart as a control.\n\n"
        "Shuffling the pixels of a map gives one number for all splits of a block, so that a trend of shuffled maps is "
        "exactly 1; the table says how far below it each split lies. A length is known to one unit of the map at best: "
        "4 or 8 px here.\n\n"
        "With thousands of pictures any grouping of channels differs from the next, surely and meaninglessly: the "
        "interval over pictures knows nothing of which channels are in which group. So the same channels are dealt "
        "out in random orders, and a trend is carried only where it goes further than 95 % of those.\n\n"
        + _beside(record),
        (
            _heatmap(record, "centroid", "falls along the splits where later ones carry lower frequencies"),
            Drawing(
                "spectra",
                spectrum_figure(record),
                "Power by spatial frequency of every split of each stage's last block, with the splits' theoretical "
                "fields as bars beneath.",
                "Spectra of the splits.",
                splits_provenance(record),
            ),
            _heatmap(record, "correlation_length", "in input pixels"),
        ),
        (
            Table("trends", _trend_table(trained), _TREND),
            Table(
                "centroids",
                passed,
                "Each split's spectral centroid, and as a share of what shuffled pixels give on the same grid.",
                dict.fromkeys(("centroid", "low", "high", "shuffled"), "cycles per px"),
                64,
            ),
        ),
    )


_TREND = (
    "Factor from one split to the next (geometric mean over units, 95 % interval), p of no trend after Holm over "
    "stages, and the share of random orders as extreme (orders). Not carried: the whole interval short of a factor of "
    f"{MARGIN} in the direction that was foretold."
)


def _heatmap(record: SplitRecord, statistic: str, more: str) -> Drawing:
    rows = record.select(statistic, model=record.networks[-1].model, kinds=[CASCADE])
    told = "; ".join(f"{row.split.tap} {row.interval.mean:.3g}" for row in rows)
    return Drawing(
        f"{statistic}_heatmap",
        split_heatmap(record, statistic),
        f"Heat map over blocks and splits, {more}. {record.networks[-1].title}: {told}.",
        f"{STATISTICS[statistic].title.capitalize()} of every split.",
        splits_provenance(record),
    )


def _beside(record: SplitRecord) -> str:
    """What is passed through, beside the last split of the cascade before it."""
    model = record.networks[-1]
    passed = {row.split.path: row for row in record.select("centroid", model=model.model, kinds=[PASSED])}
    last = {row.split.path: row for row in record.select("centroid", model=model.model, kinds=[CASCADE])}
    told = "; ".join(f"{path} {passed[path].interval} beside {last[path].interval}" for path in passed if path in last)
    return f"The centroid of what {model.title} passes through, beside that of the cascade's last split: {told}."


def _passed(record: SplitRecord) -> pd.DataFrame:
    """Centroids beside their null."""
    frame = record.frame()
    frame = frame[frame.kind != PERMUTED]
    keys = ["model", "stage", "block", "split", "kind"]
    own = frame[frame.statistic == "centroid"].set_index(keys)
    null = frame[frame.statistic == "centroid_shuffled"].set_index(keys).value
    table = own[["value", "low", "high"]].rename(columns={"value": "centroid"})
    return table.assign(shuffled=null, share=table.centroid / null).reset_index()


def _trend_table(found: Sequence[Trend]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "network": one.network,
            "weights": one.weights,
            "kind": one.kind,
            "stage": one.stage,
            "statistic": one.statistic,
            "answer": one.answer,
            "factor": one.ratio.mean,
            "low": one.ratio.low,
            "high": one.ratio.high,
            "p (Holm)": one.p,
            "orders": np.nan if one.chance is None else one.chance,
            "n": one.ratio.n,
            "unit": one.unit,
        }
        for one in found
    )


def _field_section(plan: Plan, models: Sequence[Model], series: Sequence[Series], found: Sequence[Trend]) -> Section:
    theory = {
        (part.model, part.stage, part.block, part.split): part.field for model in models for part in _parts(model)
    }
    names = {model.title: model.name for model in models}
    rows = []
    for one in series:
        if one.statistic != "sigma" or one.weights != "trained":
            continue
        for place, values in enumerate(one.values.T):
            interval = mean_interval(values)
            rows.append(
                {"network": one.network, "stage": one.stage, "block": one.block, "split": place, "kind": one.kind}
                | {"theory": theory[names[one.network], one.stage, one.block, place]}
                | {"sigma": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
            )
    trained = [one for one in found if one.weights == "trained" and one.statistic == "sigma"]
    return Section(
        "Receptive fields",
        f"What each split could see (theory: its largest field) and does see: σ of the effective field at "
        f"{plan.field_side} px, on {len(rows) and rows[0]['n']} pictures, so that few fields reach the border; the "
        "trained pair usually sees smaller pictures. A ResNet's channel groups share one convolution, so their "
        "theoretical fields are equal by construction, and their effective ones were not measured.",
        tables=(
            Table(
                "fields",
                pd.DataFrame(rows).astype({"theory": "Int64"}),
                "Fields of the convolved splits; first blocks have no cascade.",
                dict.fromkeys(("theory", "sigma", "low", "high"), "px"),
            ),
            Table("field_trends", _trend_table(trained), _TREND),
        ),
    )


def _parts(model: Model) -> Iterator[Split]:
    return (part.split for block in blocks(model.module, name=model.name) for part in block.parts)


# --- Interventions ---------------------------------------------------------------------------------------------------


def _changes(
    record: CausalRecord, stage: str, kinds: Sequence[str], intervention: str, effect: str
) -> np.ndarray | None:
    """Mean over splits of one stage's effect, picture by picture `(N,)`."""
    some = [
        dict(record.changes(one)).get(effect)
        for one in record.effects
        if (one.split.stage, one.intervention) == (stage, intervention) and one.split.kind in kinds
    ]
    known = [one for one in some if one is not None]
    return np.mean(known, axis=0) if known else None


def against_control(causal: Sequence[CausalRecord], intervention: str = "mean") -> pd.DataFrame:
    """Of each stage, what the loss of a split does and what that of a ResNet's group does, and their difference."""
    rows = []
    baseline, network = causal
    for stage in dict.fromkeys(one.split.stage for one in network.effects):
        for effect in ("logit", "accuracy"):
            for kind in (CASCADE, PASSED):
                own = _changes(network, stage, (kind,), intervention, effect)
                other = _changes(baseline, stage, (CONTROL,), intervention, effect)
                if own is None or other is None:
                    continue
                row: dict[str, object] = {"stage": stage, "effect": effect, "kind": kind}
                for name, values in (("split", own), ("group", other), ("difference", own - other)):
                    found = mean_interval(values)
                    row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
                rows.append(row | {"n": len(own)})
    return pd.DataFrame(rows)


def places(causal: CausalRecord, intervention: str = "mean") -> pd.DataFrame:
    """Change of the target's logit from one place in the cascade to the next, by stage: is a later split worth more?"""
    rows = []
    for stage in dict.fromkeys(one.split.stage for one in causal.effects):
        some = [
            one.logit
            for one in causal.effects
            if (one.split.stage, one.intervention, one.split.kind) == (stage, intervention, CASCADE)
        ]
        if len(some) < 2:
            continue
        place = np.arange(len(some)) - (len(some) - 1) / 2
        found = mean_interval(np.stack(some, axis=1) @ place / (place @ place))
        answer = "later matter more" if found.high < 0 else "later matter less" if found.low > 0 else "undecided"
        rows.append({"stage": stage, "logit per place": found.mean, "low": found.low, "high": found.high,
                     "n": found.n, "answer": answer})  # fmt: skip
    return pd.DataFrame(rows)


def _weight(models: Sequence[Model], causal: Sequence[CausalRecord]) -> str:
    """The paragraph on what each split matters."""
    table = against_control(causal)
    if table.empty:
        return ""
    effect = "accuracy" if "accuracy" in set(table.effect) else "logit"
    table = table[(table.effect == effect) & (table.kind == CASCADE)]
    factor, unit, digits = (100, "points of accuracy", 1) if effect == "accuracy" else (1, "of the top-1 logit", 2)

    def shown(row: object, name: str) -> str:
        mean, low, high = (factor * getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")

    table = table.rename(columns=lambda name: name.replace(" ", "_"))
    told = "; ".join(
        f"{row.stage} {shown(row, 'split')}, ResNet's group {shown(row, 'group')}, "
        f"difference {shown(row, 'difference')}"
        for row in table.itertuples()
    )
    later = places(causal[1])
    said = "; ".join(f"{row.stage} {row.answer}" for row in later.itertuples())
    return (
        f"How much does a split matter? Where one convolved split of each stage's last block is replaced by its "
        f"channel means, {models[1].title} changes by ({unit}, mean over the convolved splits, 95 % interval over "
        f"{causal[1].pictures} pictures): {told}. By the target's logit, from split to split: {said or 'not measured'}."
    )


def _causal_section(record: SplitRecord, causal: Sequence[CausalRecord]) -> Section:
    asked = dict.fromkeys(name for record in causal for name in record.interventions)
    levels = pd.concat([record.frame("stage") for record in causal], ignore_index=True)
    each = pd.concat([record.frame("split") for record in causal], ignore_index=True)
    follows = causal[1].settings["targets"]
    what = "the picture's own class" if follows == "labels" else "each picture's own top-1; without labels no accuracy"
    units = {"value": "", "low": "", "high": ""}
    return Section(
        "What each split matters",
        f"Each split of every stage's last block is changed in turn, and what follows is run again, on "
        f"{causal[1].pictures} pictures. Target: {what}. "
        + " ".join(f"{name}: {INTERVENTIONS[name].definition}." for name in asked)
        + " Stages' first blocks were not intervened on. A ResNet's channel group has as much of its block's channels, "
        "but nothing is added from one to the next.",
        tuple(_causal_figure(record, causal, effect) for effect in ("logit", "accuracy") if effect in set(each.effect)),
        (
            Table("causal_stages", levels.drop(columns=["block", "split", "tap"]), "Means by stage and kind of split.",
                  units),
            Table("causal_compared", against_control(causal),
                  "Replaced by channel means: one split of Res2Net beside one group of ResNet, same pictures."),
            Table("causal_places", places(causal[1]),
                  "Along the cascade: slope of the change of the target's logit. No Holm: read stages together."),
            Table("causal_splits", each, "Every split.", units, 24),
        ),
    )  # fmt: skip


def _causal_figure(record: SplitRecord, causal: Sequence[CausalRecord], effect: str) -> Drawing:
    told = "; ".join(
        f"{row.stage} {row.interval.mean:.3g} [{row.interval.low:.3g}, {row.interval.high:.3g}]"
        for row in causal[1].rows("stage")
        if (row.effect, row.intervention, row.kind) == (effect, "mean", CASCADE)
    )
    return Drawing(
        f"causal_{effect}",
        causal_figure(causal, effect=effect, networks=record.networks),
        f"{EFFECTS[effect]}. Convolved splits of {record.networks[1].title} replaced by their means: {told}.",
        f"What each intervention does: {EFFECTS[effect]}.",
        splits_provenance(record),
    )


def _untrained_section(plan: Plan, found: Sequence[Trend], models: Sequence[Model]) -> Section:
    random = [one for one in found if one.weights == "random"]
    titles = {model.title for model in models}
    small = [one for one in random if one.network in titles]
    large = [one for one in random if one.network not in titles]
    return Section(
        "Before training",
        f"The same networks with random weights ({plan.seeds} seeds, {plan.untrained} of the pictures at most), and "
        f"networks of 50 layers ({plan.deep_seeds} seeds, {plan.deep_pictures} examples of {plan.deep_side} px; fields "
        f"on noise, in {', '.join(plan.deep_blocks)}). No branch is zeroed, and batch normalisation takes its "
        "statistics from the inputs. The unit is the seed: intervals are Student's t.",
        tables=(
            Table("untrained_trends", _trend_table(small), f"The pair before training. {_TREND}", {}, 64),
            Table("deep_trends", _trend_table(large), f"50 layers. {_TREND}", {}, 64),
        ),
    )


def _other_section(record: SplitRecord) -> Section:
    return Section(
        "What else splits carry",
        "Energy is what a split has of its block's squares once conv3 has weighed it; the participation ratio says how "
        "many directions its channels use; likeness is linear CKA.",
        (
            _heatmap(record, "energy_conv3", "as shares"),
            _heatmap(record, "participation_share", "as shares of the width"),
            Drawing(
                "cka",
                cka_figure(record),
                "Matrices of linear CKA between the splits of each stage's last block.",
                "How alike splits are.",
                splits_provenance(record),
            ),
        ),
        (
            Table(
                "statistics",
                record.frame(),
                "Every statistic of every split with its interval over pictures. "
                + " ".join(f"{name}: {said}." for name, said in KINDS.items()),
                {},
                24,
            ),
        ),
    )


def _provenance(plan: Plan, models: Sequence[Model], given: Given, record: SplitRecord) -> dict[str, str]:
    weights = {
        f"weights of {one.title}": f"{one.weights.source}, sha256 {one.weights.sha256}, preprocessing "
        f"{one.preprocess.as_dict()}"
        for one in models
    }
    return {
        "definitions": "; ".join(
            f"{one.title} ({one.unit}): {one.definition}"
            for one in (STATISTICS[name] for name in SAID if name in STATISTICS)
        ),
        "options": ", ".join(f"{name} {value}" for name, value in asdict(plan).items()),
        **weights,
        "pictures": f"{len(given.pictures)} of {given.name}, sha256 {record.pictures_sha256}",
        "left out": "; ".join(given.refused) or "none",
        "versions": f"r2viz {__version__}, torch {torch.__version__}, numpy {np.__version__}",
    }


# --- The command -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--dataset", default=None, type=click.Path(), help="Labelled pictures (see r2viz coverage).  [examples]")
@click.option("--count", default=None, type=click.IntRange(1), help="Pictures drawn from it.  [2000]")
@click.option("--causal", default=None, type=click.IntRange(1), help="Of these, for interventions.  [500]")
@click.option("-o", "--output", default="out/split_statistics", show_default=True, help="Folder for the report.")
@click.option("--quick", is_flag=True, help="Few pictures and seeds: a look at the report, not at the question.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def main(dataset: str | None, count: int | None, causal: int | None, output: str, quick: bool, overwrite: bool) -> None:
    """One report on splits: frequencies, fields, interventions, controls, and a verdict.

    Exit codes are those of `r2viz cam`.
    """
    plan = QUICK if quick else Plan()
    plan = replace(plan, pictures=count or plan.pictures, causal=causal or plan.causal)
    timings: dict[str, float] = {}
    try:
        refuse(output, overwrite=overwrite)
        data: DataSet = open_dataset(dataset or EXAMPLES).sample(plan.pictures)
        models = [load(name) for name in plan.pair]
        given = read(data, models[0])
        for line in given.refused:
            click.echo(f"left out: {line}", err=True)
        examples = read(open_dataset(EXAMPLES).sample(plan.deep_pictures), models[0])
        report = analyse(plan, models, given, examples, timings=timings)
        page = write(report, output, overwrite=overwrite, run={"seconds": timings})
    except R2VizError as error:
        click.echo(f"split_statistics: {error}", err=True)
        sys.exit(1)
    click.echo(f"{report.finding}\n\n{report.verdict}\n")
    click.echo(f"→ {page}")
    sys.exit(3 if given.refused else 0)


if __name__ == "__main__":
    main()
