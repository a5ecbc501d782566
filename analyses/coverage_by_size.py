"""Whether Res2Net covers more of large objects than ResNet: measures by object size, found and chosen, and a verdict.

    python -m analyses.coverage_by_size [--dataset PATH] -o out/coverage

The objects of the examples, cut out by their masks, stand at chosen sizes and places on backgrounds of the other
pictures, and on noise: size is manipulated, not merely found. Beside that the examples as they are, and any data set
with boxes or masks. Several methods, the centre-Gaussian, chance, and networks with random weights; the verdict
follows from the decision table of `r2viz.statistics`, which was fixed beforehand.

Scenes of one object are not independent: their intervals are over objects, Student's t, since there are few.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import click
import numpy as np
import pandas as pd

from r2viz.attribution import METHODS
from r2viz.cli.progress import counted
from r2viz.contrasts import Judged, finding, judge, large, pairs, response
from r2viz.coverage import MEASURES
from r2viz.datasets import DataSet, Located, open_dataset
from r2viz.datasets.scenes import scenes
from r2viz.errors import R2VizError
from r2viz.explain import explain
from r2viz.explain.survey import survey
from r2viz.figures.coverage_cases import Case, cases
from r2viz.models.model import Model, load
from r2viz.models.pairs import PAIRS
from r2viz.report import Drawing, Report, Section, Table, write
from r2viz.report.folder import refuse
from r2viz.report.surveyed import headline, limits, points, provenance, section, verdict_table
from r2viz.surveys import Survey

EXAMPLES = Path(__file__).parents[1] / "examples"
WITHOUT_BOXES = tuple(name for name, row in MEASURES.items() if not {"box_iou", "largest_iou"} & set(row.keeps))
"""What scenes are measured by: boxes at every threshold cost as much as all the rest, and decide nothing here."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        pair: the baseline first.
        methods: on scenes and pictures; HiResCAM is not among them, since before a pooling and a linear layer it is
            Grad-CAM. Noise and random weights see the first.
        shares: of the picture, that objects are scaled to.
        side: pixels of a scene; the mini pair sees half.
        backgrounds: for each object; one of noise.
        random_seeds: of untrained networks.
        shown: pictures in each group of cases.
    """

    pair: tuple[str, str] = PAIRS["mini"].models
    methods: tuple[str, ...] = ("gradcam", "gradcam++", "layercam")
    shares: tuple[float, ...] = (0.03, 0.07, 0.15, 0.3)
    places: tuple[tuple[float, float], ...] = ((0.5, 0.5), (0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7))
    side: int = 128
    backgrounds: int = 2
    random_seeds: int = 2
    shown: int = 3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """Surveys by condition: the deciding one is called "scenes"; and untrained networks' by seed."""

    surveys: Mapping[str, Survey]
    untrained: Sequence[Survey]
    scenes: DataSet


def measure(
    plan: Plan, sample: DataSet, dataset: DataSet | None, models: Sequence[Model], done: Callable[[str], None]
) -> Measured:
    """Look at every condition; `done` is told when a part is."""
    objects = _opened(sample)

    def composed(kind: Literal["pictures", "noise"], backgrounds: int) -> DataSet:
        found = scenes(
            objects, shares=plan.shares, places=plan.places, size=(plan.side, plan.side), backgrounds=backgrounds,
            kind=kind, seed=plan.seed,
        )  # fmt: skip
        return replace(found, name=f"scenes on {'photographs' if kind == 'pictures' else 'noise'}")

    def look(
        data: DataSet, networks: Sequence[Model], methods: Sequence[str], measures: Sequence[str] | None
    ) -> Survey:
        with _bar(data) as progress:
            return survey(data, networks, methods=methods, measures=measures, progress=progress)

    on_photographs = composed("pictures", plan.backgrounds)
    found = {"scenes": look(on_photographs, models, plan.methods, WITHOUT_BOXES)}
    done("scenes")
    found["noise"] = look(composed("noise", 1), models, plan.methods[:1], WITHOUT_BOXES)
    done("noise")
    found["sample"] = look(sample, models, plan.methods, None)
    done("sample")
    if dataset is not None:
        found["dataset"] = look(dataset, models, plan.methods[:1], None)
        done("dataset")
    fewer = composed("pictures", 1)
    untrained = []
    for number in range(plan.random_seeds):
        networks = [load(name, weights="random", seed=number) for name in plan.pair]
        untrained.append(look(fewer, networks, plan.methods[:1], WITHOUT_BOXES))
    done("random weights")
    return Measured(found, untrained, on_photographs)


def _opened(sample: DataSet) -> list[Located]:
    """Pictures whose objects can be cut out; what cannot be opened is named by the survey of them."""
    found = []
    for entry in sample:
        try:
            found.append(entry.open())
        except R2VizError:
            continue
    return found


class _bar:
    """A bar of pictures on a terminal's standard error."""

    def __init__(self, data: DataSet) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=len(data), unit="picture", desc=data.name, file=sys.stderr, disable=None)

    def __enter__(self) -> Callable[[int], None]:
        return self._bar.update

    def __exit__(self, *_: object) -> None:
        self._bar.close()


# --- Judged ----------------------------------------------------------------------------------------------------------


def judged(found: Measured, plan: Plan) -> list[Judged]:
    """The deciding verdict first: scenes on photographs by the first method; then its other methods, then the rest."""
    scenes_ = found.surveys["scenes"]
    rows = [judge(one, method=method, seed=plan.seed) for one in found.surveys.values() for method in one.methods]
    right = scenes_.both_right()
    if right.sum() > plan.shown:
        part = replace(scenes_.take(right), dataset=f"{scenes_.dataset} that both networks classify rightly")
        rows.insert(len(scenes_.methods), judge(part, seed=plan.seed))
    return rows


def verdict(found: Measured, plan: Plan) -> tuple[str, str, list[Judged]]:
    """The finding, the paragraphs that say why, and what they rest on."""
    rows = judged(found, plan)
    decided = finding(rows)
    first, others = rows[0], rows[1:]
    said = [
        f"By the table fixed beforehand: {decided}. {first.decision.sentence} This is {_called(first)}, the same "
        f"objects at sizes that were chosen; intervals are over {first.units}.",
        "Elsewhere: " + "; ".join(
            f"{_called(one)}: {one.decision.verdict} (gain {_signed(one)} points, n = {one.intervals['difference'].n} "
            f"{one.units})"
            for one in others
        ) + "." if others else "",
    ]  # fmt: skip
    even = judge(found.surveys["scenes"], measure="evenness", seed=plan.seed)
    said.append(f"Beside coverage, evenness: {even.decision.sentence}")
    confident = first.probability
    said.append(
        f"Coverage is not confidence: the mean probability of the explained class on the scenes is "
        f"{100 * confident[0]:.0f} % and {100 * confident[1]:.0f} % for the two networks. "
        + limits(list(found.surveys.values()))
    )
    return decided, "\n\n".join(part for part in said if part), [*rows, even]


def _called(one: Judged) -> str:
    return f"{one.dataset} by {METHODS[one.method].title}"


def _signed(one: Judged) -> str:
    found = one.intervals["difference"]
    text = f"{100 * found.mean:+.1f}"
    if np.isfinite(found.low):
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return text.replace("-", "−")


# --- The report ------------------------------------------------------------------------------------------------------


def analyse(
    plan: Plan, sample: DataSet, dataset: DataSet | None = None, *, timings: dict[str, float] | None = None
) -> Report:
    """Measure, judge and lay out; `timings` takes the seconds of each part."""
    timings = {} if timings is None else timings
    started = time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        now = time.perf_counter()
        timings[part], started = round(now - started, 3), now

    models = [load(name) for name in plan.pair]
    found = measure(plan, sample, dataset, models, done)
    decided, text, rows = verdict(found, plan)
    done("verdict")
    shown = found.surveys
    sections = [
        section(
            shown["scenes"],
            "The same objects at chosen sizes",
            "Objects of the examples that their picture shows whole, cut out by their masks and laid on pieces of the "
            f"other pictures, at {', '.join(f'{share:.0%}'.replace('%', ' %') for share in plan.shares)} of the "
            f"picture and {len(plan.places)} places: what changes with size changes because of it. The claim is about "
            "the largest. “More gained for large objects” is the growth of the difference from the smallest to the "
            "largest size within each object. Edges are cut, not photographed, and networks know these classes: "
            "scenes test size, not realism.",
            prefix="scenes_",
            seed=plan.seed,
        ),
        _cases_section(found, models, plan),
        section(
            shown["noise"],
            "The same objects on noise",
            "Nothing but the object can be looked at: noise with photographs' spectrum, one for each object.",
            prefix="noise_",
            seed=plan.seed,
        ),
        _baselines(found, plan),
        section(
            shown["sample"],
            "The examples as they are",
            "Sizes are found, and go with place and class: most large objects hold the picture's centre. So few "
            "pictures show how to read the figures, and decide nothing.",
            prefix="sample_",
            seed=plan.seed,
        ),
    ]
    if "dataset" in shown:
        text_ = "Sizes are found, and go with place and class."
        sections.append(
            section(shown["dataset"], f"The data set {shown['dataset'].dataset}", text_, prefix="dataset_",
                    seed=plan.seed)
        )  # fmt: skip
    sections.append(
        Section(
            "How the verdict was reached",
            "Supported: every criterion holds. Not supported: one is refuted, as when the whole interval lies below "
            "two points. Undecided: what is left. The finding is that of scenes on photographs by the first method; it "
            "is no longer supported where another condition or method refutes it, or has the other sign.",
            tables=(verdict_table(rows),),
        )
    )
    report = Report(
        "Object coverage: does Res2Net cover more of large objects?",
        text,
        tuple(sections),
        provenance([*shown.values(), *found.untrained])
        | {"options": ", ".join(f"{name} {value}" for name, value in asdict(plan).items())},
        decided,
    )
    done("figures")
    return report


def _baselines(found: Measured, plan: Plan) -> Section:
    name = headline(found.surveys["scenes"])
    lines = []
    for one, weights in [
        (found.surveys["scenes"], "trained"),
        *((one, f"random, seed {number}") for number, one in enumerate(found.untrained)),
    ]:
        for measure_ in (name, "leakage", "evenness"):
            table = response(one, measure_, seed=plan.seed)
            table = table[table.method.isin(["", plan.methods[0]])]
            if weights != "trained":
                table = table[table.method != ""]
            lines.append(
                table.assign(weights=["" if method == "" else weights for method in table.method]).drop(
                    columns=["method"]
                )
            )
    table = pd.concat(lines, ignore_index=True)
    largest = table[(table.share == table.share.max()) & (table.measure == name)]
    told = "; ".join(
        f"{line.network}{f', {line.weights}' if line.weights else ''} {points(line.mean)}"
        for line in largest.itertuples()
    )
    return Section(
        "What knows nothing",
        f"{MEASURES[name].title} of the largest objects, in points: {told}. Chance is 0. What a network does better "
        "than the centre-Gaussian and than itself before training is what it learned to see.",
        tables=(
            Table(
                "baselines",
                table,
                "Scenes on photographs by size: trained networks, the same with random weights, the centre-Gaussian; "
                "95 % intervals over objects.",
                shown=60,
            ),
        ),
    )


def _cases_section(found: Measured, models: Sequence[Model], plan: Plan) -> Section:
    """Where the gain is largest, where the loss is, and what chance draws: pictures of the largest size."""
    one = found.surveys["scenes"]
    name = headline(one)
    first, second = pairs(one)[0]
    gains = second.rows.values[name] - first.rows.values[name]
    among = np.flatnonzero(large(one) & np.isfinite(gains))
    order = among[np.argsort(gains[among], kind="stable")]
    drawn = np.random.default_rng(plan.seed).permutation(among)
    groups = {"largest gain": order[::-1], "largest loss": order, "drawn at random": drawn}
    chosen = {heading: _of_different_objects(one, places, plan.shown) for heading, places in groups.items()}
    wanted = {one.names[place] for places in chosen.values() for place in places}
    shown = {entry.name: entry.open() for entry in found.scenes if entry.name in wanted}
    made: dict[int, Case] = {}
    for place in counted(sorted({place for places in chosen.values() for place in places}), len(wanted), "case"):
        located = shown[one.names[place]]
        record = explain(
            located.picture, models, method=plan.methods[0], target=located.label or "shared", region=located.region
        )
        made[place] = Case(record, (float(first.rows.values[name][place]), float(second.rows.values[name][place])))
    drawing = cases(
        {heading: [made[place] for place in places] for heading, places in chosen.items()},
        measure=name,
        note=f"{one.dataset}, the largest size, {MEASURES[name].title}, {first.method_title}; each object once in "
        "a group.",
    )
    told = "; ".join(
        f"{heading} {', '.join(points(gains[place]) for place in places)}" for heading, places in chosen.items()
    )
    return Section(
        "Pictures for the numbers",
        "The extremes are chosen, and show nothing but how far single pictures lie apart; what is usual stands below "
        "“drawn at random”.",
        (Drawing("cases", drawing, f"Differences in points: {told}.", "Largest gains, largest losses, and at random.",
                 one.digest),),
    )  # fmt: skip


def _of_different_objects(one: Survey, places: np.ndarray, count: int) -> list[int]:
    found: dict[str, int] = {}
    for place in places.tolist():
        found.setdefault(one.objects[place], place)
    return list(found.values())[:count]


# --- The command -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--dataset", default=None, type=click.Path(), help="A data set with boxes or masks, beside what ships.")
@click.option("--limit", default=None, type=click.IntRange(1), help="So many of its pictures, drawn with the seed.")
@click.option(
    "--method", "methods", multiple=True, help="Of `r2viz methods`; repeatable. [gradcam, gradcam++, layercam]"
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of backgrounds and draws.")
@click.option("--quick", is_flag=True, help="Fewer scenes, one method: a look at the report, not at the question.")
@click.option("-o", "--output", default="out/coverage", show_default=True, help="Folder for the report.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def main(
    dataset: str | None,
    limit: int | None,
    methods: tuple[str, ...],
    seed: int,
    quick: bool,
    output: str,
    overwrite: bool,
) -> None:
    """One report on object coverage by size: scenes of chosen sizes, the examples, a data set, and a verdict.

    The mini pair, on what ships with r2viz. Exit codes are those of `r2viz coverage`.
    """
    plan = replace(QUICK if quick else Plan(), seed=seed)
    plan = replace(plan, methods=methods or plan.methods)
    timings: dict[str, float] = {}
    try:
        refuse(output, overwrite=overwrite)
        extra = None if dataset is None else open_dataset(dataset).sample(limit, seed=seed)
        report = analyse(plan, open_dataset(EXAMPLES), extra, timings=timings)
        page = write(report, output, overwrite=overwrite, run={"seconds": timings})
    except R2VizError as error:
        click.echo(f"coverage_by_size: {error}", err=True)
        sys.exit(1)
    click.echo(f"{report.finding}\n\n{report.verdict}\n")
    click.echo(f"→ {page}")
    failed = next((len(one.data) for one in report.tables() if one.name == "dataset_failures"), 0)
    if failed:
        click.echo(f"{failed} pictures of {dataset} could not be used, see dataset_failures.csv", err=True)
    sys.exit(3 if failed else 0)


QUICK = Plan(methods=("gradcam",), places=((0.5, 0.5),), backgrounds=1, random_seeds=1, side=64, shown=2)

if __name__ == "__main__":
    main()
