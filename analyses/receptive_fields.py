"""What each split could see, what it does see, and whether Res2Net sees more than ResNet.

    python -m analyses.receptive_fields [PICTURE …] -o out/receptive_fields

Theory per split as path counts; effective receptive fields at every stage, of 50-layer networks with random weights
and of the trained mini pair; growth with the scale s; untrained against trained; and a verdict by the rule in
`judge`, with Res2Net-50 48w-2s, whose theoretical field is ResNet-50's, as negative control.

Random weights are calibrated (batch normalisation takes its statistics from the inputs) and no branch is zeroed.
Their unit is the seed: intervals are Student's t over seeds, since a bootstrap of five values is too narrow. The
trained pair's unit is the picture: bootstrap intervals over pictures, both networks on the same ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from r2viz.erf_records import ErfRecord, ErfView, Inputs
from r2viz.errors import R2VizError
from r2viz.figures.erf import erf_figure, split_figure
from r2viz.figures.erf_captions import erf_provenance
from r2viz.figures.radial import radial_figure
from r2viz.figures.scale import ScalePoint, scale_figure, scale_provenance
from r2viz.figures.staircase import Stairs, staircase, staircase_provenance
from r2viz.image import Picture
from r2viz.inputs import decoded, gather
from r2viz.models.zoo import row
from r2viz.receptive.protocols import protocol_named
from r2viz.receptive.verbs import theoretical_rf
from r2viz.report import Drawing, Report, Section, Table, write
from r2viz.report.folder import refuse
from r2viz.statistics import Interval, seed_interval
from r2viz.version import __version__

from .receptive_measured import QUICK, STAGES, Measured, Plan, random_networks, theory, trained_pair
from .receptive_verdict import LAST, SIZES, Comparison, compare, judge

EXAMPLES = Path(__file__).parents[1] / "examples"


# --- Compared --------------------------------------------------------------------------------------------------------


def comparisons(plan: Plan, random: pd.DataFrame, trained: pd.DataFrame) -> list[Comparison]:
    """All that the verdict rests on, and the same at the other stages."""
    found = []
    for what, name in (("random", plan.network), ("control", plan.control)):
        found += compare(what, random, {"network": plan.baseline}, {"network": name}, unit="seed")
    first, second = plan.pair
    for what, side in zip(("trained", "trained, own size"), plan.sides, strict=True):
        of = {"side": side, "weights": "trained"}
        found += compare(what, trained, of | {"network": first}, of | {"network": second}, unit="picture")
    side = plan.sides[0]
    for name in plan.pair:
        of = {"side": side, "network": name}
        what = f"training of {row(name).title}"
        found += compare(what, trained, of | {"weights": "random"}, of | {"weights": "trained"}, unit="picture")
    of = {"side": side, "weights": "random"}
    for_seeds = trained.assign(unit=trained.seed)
    found += compare("untrained", for_seeds, of | {"network": first}, of | {"network": second}, unit="seed")
    return found


# --- The report ------------------------------------------------------------------------------------------------------


def analyse(plan: Plan, pictures: Sequence[Picture], *, timings: dict[str, float] | None = None) -> Report:
    """Measure, compare, judge and lay out; `timings` takes the seconds of each part."""
    timings = {} if timings is None else timings
    started = time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        now = time.perf_counter()
        timings[part], started = round(now - started, 3), now

    taps, paths, stairs = theory(dict.fromkeys((*plan.random, *plan.pair)))
    done("theory")
    random = random_networks(plan)
    done("random weights")
    trained = trained_pair(plan, pictures)
    done("trained pair")
    found = comparisons(plan, random.rows, trained.rows)
    finding, verdict = judge(found)
    report = Report(
        "Receptive fields: what Res2Net could see, and what it does see",
        verdict,
        (
            _theory_section(plan, taps, paths, stairs),
            _random_section(plan, random, found),
            _scale_section(plan, random),
            _trained_section(plan, trained, found, pictures),
            _training_section(plan, trained, found, pictures),
        ),
        _provenance(plan, pictures, trained),
        finding,
    )
    done("intervals")
    return report


def _theory_section(plan: Plan, taps: pd.DataFrame, paths: pd.DataFrame, stairs: dict[str, Stairs]) -> Section:
    splits = taps[taps.tap.str.contains(r"split\d+$")]
    blocks = taps.drop(splits.index)
    stages = blocks[blocks.tap.isin(STAGES)]
    units = {"min": "px", "max": "px", "jump": "px"}
    drawn = [stairs[plan.baseline], stairs[plan.network]]
    last = [f"{one.title}: {len(one.taps[LAST])} sizes up to {max(one.taps[LAST])} px" for one in drawn]
    return Section(
        "What each unit could see",
        "The theoretical receptive field, as the set of all paths from the input to a unit: a path goes through one "
        "branch wherever branches meet, and paths of one size are counted. Every 3 × 3 convolution that a path passes "
        "makes it longer, so the cascade of a Res2Net block, whose splits pass none, one, two and more of them, mixes "
        "sizes that a ResNet block does not have.\n\nSplits are in code order: the last one is passed through, and is "
        "the first in the paper. In the first block of a stage they do not cascade.",
        figures=(
            Drawing(
                "staircase",
                staircase(drawn, picture=224),
                f"Sizes of all paths against depth. At the end of {LAST}, {'; '.join(last)}.",
                "All theoretical sizes at every split and block, shaded by their number of paths.",
                staircase_provenance(drawn, picture=224),
            ),
        ),
        tables=(
            Table(
                "theory_stages",
                stages.reset_index(drop=True),
                "Last unit of every stage: smallest and largest path, number of different sizes, number of paths, and "
                "pixels between neighbouring units.",
                units,
            ),
            Table("theory_splits", splits.reset_index(drop=True), "Every split of every block.", units, 12),
            Table("theory_blocks", blocks.reset_index(drop=True), "Stem, stages and blocks.", units, 12),
            Table("theory_paths", paths, "Number of paths by size, for each of these.", {"size": "px"}, 12),
        ),
    )


def _random_section(plan: Plan, random: Measured, found: Sequence[Comparison]) -> Section:
    names = (plan.baseline, plan.network, plan.control)
    views = [random.views[name, "random", plan.side] for name in names]
    record = _record(views, Inputs(noise=plan.samples, seed=0), plan.side)
    rows = _those_at(random.rows, LAST)
    told = "; ".join(f"{row(name).title} {rows[rows.network == name].sigma.mean():.1f} px" for name in names)
    return Section(
        "Random weights",
        f"Networks of 50 layers before any training, {plan.seeds} seeds, {plan.samples} inputs of noise of {plan.side} "
        "px for each, the same for all networks of a seed. Batch normalisation takes its statistics from these inputs "
        "and no branch is zeroed: otherwise every variant would show the same few pixels. The control 48w-2s has "
        "splits, too, but with s = 2 nothing cascades: its theoretical field is ResNet-50's.",
        (
            Drawing(
                "erf_random",
                erf_figure(record, layers=STAGES),
                f"Maps of the effective receptive field at four stages; second-moment σ at {LAST}, mean over seeds: "
                f"{told}.",
                "Effective receptive fields with random weights, seed 0, at the end of every stage.",
                erf_provenance(record),
            ),
            Drawing(
                "radial_random",
                radial_figure(record),
                f"Share of the mass against the distance from the unit's centre. At {LAST} σ is {told}.",
                "The same fields by distance from the unit's centre.",
                erf_provenance(record),
            ),
        ),
        (_comparisons("random", [one for one in found if one.what in ("random", "control")]),
         Table("random_sizes", random.rows, "Every network, seed and stage.", _pixels(), 12)),
    )  # fmt: skip


def _scale_section(plan: Plan, random: Measured) -> Section:
    table = scales(plan, random.rows)
    note = f"{LAST}, random weights, noise of {plan.side} px, Student's t over seeds."
    points = [
        ScalePoint(
            f"{one.width}w-{one.s}s" if one.s > 1 else one.network,
            one.s,
            (one.smallest, None if pd.isna(one.theory) else int(one.theory)),
            {"sigma": Interval(one.sigma, one.low, one.high, one.seeds)},
        )
        for one in table.itertuples()
    ]
    told = "; ".join(f"{one.network}: s = {one.s}, σ {one.sigma:.1f} px" for one in table.itertuples())
    return Section(
        "Growth with the scale s",
        f"More splits, larger fields: {LAST} of Res2Net-50 by its number of splits, random weights as above. The "
        "theoretical field grows by 352 px with each split more than two. "
        + _outgrown(table, plan.side),
        (
            Drawing(
                "scales",
                scale_figure(points, note=note),
                f"σ against the scale: {told}.",
                f"Theoretical limits and σ at {LAST} against the scale s.",
                scale_provenance(points, note=note),
            ),
        ),
        (Table("scales", table, "Means over seeds with Student's t-intervals.", _pixels(low="px", high="px")),),
    )  # fmt: skip


def scales(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """σ at the last stage by network in the order of their scale, with its interval over seeds."""
    found = []
    for name in (plan.baseline, *plan.scales):
        part = _those_at(rows, LAST)
        part = part[part.network == name]
        arguments = row(name).arguments
        interval = seed_interval(part.sigma.to_numpy(float))
        found.append(
            {"network": row(name).title, "s": arguments.get("scale", 1), "width": arguments.get("base_width", 64)}
            | {"smallest": theoretical_rf(name, [LAST])[LAST].min, "theory": part.theory.iloc[0]}
            | {"sigma": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n}
        )
    return pd.DataFrame(found).astype({"theory": "Int64"})


def _outgrown(table: pd.DataFrame, side: int) -> str:
    if not (table.theory > side).any():
        return ""
    return (
        f"Theoretical fields above {side} px leave the input, whose border cuts them off: those effective fields are, "
        "if anything, larger than measured here."
    )


def _trained_section(
    plan: Plan, trained: Measured, found: Sequence[Comparison], pictures: Sequence[Picture]
) -> Section:
    side = plan.sides[0]
    record = _record([trained.views[name, "trained", side] for name in plan.pair], _inputs(pictures), side)
    main = next(one for one in found if one.what == "trained" and one.layer == LAST and one.size == "sigma")
    told = f"σ at {LAST}: {main.second} {main.mean_second:.1f} px, {main.first} {main.mean_first:.1f} px"
    figures = [
        Drawing(
            "erf_trained",
            erf_figure(record, layers=STAGES),
            f"Maps of the effective receptive field of the trained pair at four stages. {told}.",
            f"The trained pair on {len(pictures)} pictures of {side} px.",
            erf_provenance(record),
        )
    ]
    splits = [trained.views[key] for name in plan.pair if (key := (name, "splits", side)) in trained.views]
    if splits:
        block = _record(splits, _inputs(pictures), side)
        figures.append(
            Drawing(
                "erf_splits",
                split_figure(block),
                "Maps of the effective receptive field of every split of the last block that cascades: each split sees "
                "farther than the one before, and the last one, which is passed through, no farther than the block's "
                "input.",
                "What each split of one block does see.",
                erf_provenance(block),
            )
        )
    return Section(
        "The trained pair",
        f"The pair that ships with r2viz, trained alike on pictures of {plan.sides[-1]} px. Theoretical fields are "
        f"larger than that, so fields are compared on the same {len(pictures)} pictures at {side} px, where no border "
        f"cuts them, and beside that at {plan.sides[-1]} px, where one does.",
        tuple(figures),
        (
            _comparisons("trained", [one for one in found if one.what.startswith("trained")]),
            Table("trained_sizes", trained.rows, "Every network, seed, size, stage and picture.", _pixels(), 12),
        ),
    )


def _training_section(
    plan: Plan, trained: Measured, found: Sequence[Comparison], pictures: Sequence[Picture]
) -> Section:
    side = plan.sides[0]
    views = [
        replace(trained.views[name, weights, side], title=f"{row(name).title}, {weights}")
        for name in plan.pair
        for weights in ("random", "trained")
    ]
    record = _record(views, _inputs(pictures), side)
    changes = [one for one in found if one.what.startswith("training") and one.layer == LAST and one.size == "sigma"]
    told = " ".join(
        f"{one.what.removeprefix('training of ')}: σ {one.mean_first:.1f} px with random weights, "
        f"{one.mean_second:.1f} px trained, ratio {one.ratio.mean:.2f} [{one.ratio.low:.2f}, {one.ratio.high:.2f}], so "
        f"training {_changed(one)}."
        for one in changes
    )
    return Section(
        "Untrained against trained",
        f"The same networks, the same {len(pictures)} pictures of {side} px: sizes with random weights are means over "
        f"{plan.seeds} seeds. At {LAST}: {told} The intervals are over pictures; of trained weights there is one draw.",
        (
            Drawing(
                "erf_training",
                erf_figure(record, layers=(LAST,)),
                f"Maps at {LAST} with random and with trained weights. {told}",
                f"Both networks at {LAST}, with random weights (seed 0) and trained.",
                erf_provenance(record),
            ),
        ),
        (_comparisons("training", [one for one in found if one.what.startswith(("training", "untrained"))]),),
    )


def _changed(one: Comparison) -> str:
    if one.ratio.low > 1:
        return "made the field larger"
    return "made it smaller" if one.ratio.high < 1 else "changed it by less than the interval tells"


def _comparisons(name: str, found: Sequence[Comparison]) -> Table:
    rows = [
        {
            "first": one.first,
            "second": one.second,
            "input": one.side,
            "layer": one.layer,
            "size": one.size,
            "of first": one.mean_first,
            "of second": one.mean_second,
            **{f"ratio{end}": value for end, value in _ends(one.ratio)},
            **{f"difference{end}": value for end, value in _ends(one.difference)},
            "n": one.ratio.n,
            "unit": one.unit,
            "answer": one.answer,
        }
        for one in found
    ]
    units = dict.fromkeys(("input", "of first", "of second", "difference", "difference low", "difference high"), "px")
    said = "; ".join(f"{size}: {what}" for size, what in SIZES.items())
    return Table(
        f"{name}_compared",
        pd.DataFrame(rows),
        f"The second network beside the first: means, ratio and difference with 95 % intervals over units ({said}).",
        units,
    )


def _ends(one: Interval) -> list[tuple[str, float]]:
    return [("", one.mean), (" low", one.low), (" high", one.high)]


def _pixels(**more: str) -> dict[str, str]:
    return {"theory": "px", "sigma": "px"} | (more or {"side": "px", "side50": "px", "side95": "px"})


def _those_at(rows: pd.DataFrame, layer: str) -> pd.DataFrame:
    return rows[rows.layer == layer]


def _record(views: Sequence[ErfView], inputs: Inputs, side: int) -> ErfRecord:
    protocol = protocol_named(views[0].erfs[0].protocol)
    return ErfRecord(
        tuple(views), views[0].erfs[0].protocol, protocol.title, views[0].erfs[0].source, (side, side), inputs,
        versions(), "cpu", "float32",
    )  # fmt: skip


def _inputs(pictures: Sequence[Picture]) -> Inputs:
    return Inputs(tuple((picture.name, picture.sha256) for picture in pictures))


def versions() -> dict[str, str]:
    """Of r2viz and what computes."""
    return {"r2viz": __version__, "torch": torch.__version__, "numpy": np.__version__}


def _provenance(plan: Plan, pictures: Sequence[Picture], trained: Measured) -> dict[str, str]:
    weights = {
        f"weights of {view.title}": f"{view.weights['source']}, sha256 {view.weights['sha256']}"
        for (_, kind, side), view in trained.views.items()
        if kind == "trained" and side == plan.sides[0]
    }
    return {
        "protocol": protocol_named("luo").definition + f" ({protocol_named('luo').citation})",
        "options": ", ".join(f"{name} {value}" for name, value in asdict(plan).items()),
        **weights,
        "pictures": "; ".join(f"{picture.name} {picture.sha256[:16]}" for picture in pictures),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


# --- The command -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("pictures", nargs=-1)
@click.option("-o", "--output", default="out/receptive_fields", show_default=True, help="Folder for the report.")
@click.option("--samples", default=None, type=click.IntRange(1), help="Inputs of noise for each seed.  [2]")
@click.option("--seeds", default=None, type=click.IntRange(2), help="Seeds of random weights that are compared.  [5]")
@click.option("--quick", is_flag=True, help="Smaller inputs, two seeds: a look at the report, not at the question.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def main(
    pictures: tuple[str, ...], output: str, samples: int | None, seeds: int | None, quick: bool, overwrite: bool
) -> None:
    """One report on receptive fields: theory, measured with random and trained weights, and a verdict.

    PICTURES are what the trained pair sees, by default the examples of r2viz. Exit codes are those of `r2viz cam`.
    """
    plan = QUICK if quick else Plan()
    plan = replace(plan, samples=samples or plan.samples, seeds=seeds or plan.seeds)
    timings: dict[str, float] = {}
    try:
        refuse(output, overwrite=overwrite)
        inputs = gather(pictures or [str(EXAMPLES)])
        usable: list[Picture] = []
        for item, picture in zip(inputs, decoded(inputs), strict=True):
            if isinstance(picture, R2VizError):
                click.echo(f"left out: {item.shown}: {picture}", err=True)
            else:
                usable.append(picture)
        if not usable:
            raise R2VizError(f"none of the {len(inputs)} pictures could be used; the trained pair needs at least one")
        report = analyse(plan, usable, timings=timings)
        page = write(report, output, overwrite=overwrite, run={"seconds": timings})
    except R2VizError as error:
        click.echo(f"receptive_fields: {error}", err=True)
        sys.exit(1)
    click.echo(f"{report.finding}\n\n{report.verdict}\n")
    click.echo(f"→ {page}")
    sys.exit(0 if len(usable) == len(inputs) else 3)


if __name__ == "__main__":
    main()
