"""What a report shows of a survey: figures, tables, the verdict in words, and what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r2viz.contrasts import Judged, differences, judge_all, levels, manipulated, pairs, primary, units
from r2viz.coverage import MEASURES
from r2viz.errors import OutputError
from r2viz.figures.coverage import StratumDifference, coverage_by_size, difference_by_stratum
from r2viz.figures.coverage_curves import coverage_curves, scale_response
from r2viz.report.content import Drawing, Section, Table
from r2viz.statistics import CRITERIA, Interval
from r2viz.surveys import Survey

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KINDS = {
    "box": "boxes: coverage and evenness, which need a shape, are not measured",
    "mask": "drawn masks",
    "pseudo-mask": "masks that GrabCut guessed from boxes, which is not what a person would draw",
}
_FOREST = ("leakage", "evenness", "least_part")
_SHOWN, _PICTURES = 15, 4


def section(
    survey: Survey, title: str, text: str = "", *, prefix: str = "", by: str = "share", seed: int = 0
) -> Section:
    """A survey's figures and tables.

    Args:
        survey: of one network or two.
        title: of the section.
        text: what it says before that.
        prefix: of the names of figures and tables, to tell surveys of one report apart.
        by: what strata go by, see `r2viz.contrasts.STRATA`.
        seed: of bootstraps.
    """
    about = levels(survey, by=by, seed=seed)
    contrasts = differences(survey, by=by, seed=seed) if pairs(survey) else None
    return Section(
        title,
        "\n\n".join(part for part in (text, said(survey)) if part),
        tuple(_figures(survey, contrasts, prefix, by)),
        tuple(_tables(survey, about, contrasts, prefix)),
    )


def said(survey: Survey) -> str:
    """How many pictures of what kind, which class was explained, what could not be used."""
    constant = sum(int(look.rows.constant.sum()) for look in survey.looks)
    counted = f"{len(survey):,} pictures"
    if units(survey) == "objects":
        counted += f" of {len(set(survey.objects))} objects, over whose means all intervals are"
    told = [f"{survey.dataset}: {counted}; regions are {KINDS[survey.kind]}."]
    told.append(
        "Maps explain the class that the data set names."
        if survey.target == "label" and any(survey.labels)
        else "Maps explain one class for both networks: the one that they hold most probable together."
    )
    right = int(survey.both_right().sum())
    if right:
        told.append(f"Every network is right in {right:,} of them.")
    told.append(
        f"{len(survey.failures):,} pictures could not be used, see the table of failures."
        if survey.failures
        else "No picture was left out."
    )
    told.append(f"{constant:,} of {len(survey) * len(survey.looks):,} maps are constant, and counted as they are.")
    return " ".join(told)


# --- Figures ---------------------------------------------------------------------------------------------------------


def _figures(survey: Survey, contrasts: pd.DataFrame | None, prefix: str, by: str) -> list[Drawing]:
    makers: list[tuple[str, str, Callable[[], Figure]]] = []
    if manipulated(survey):
        makers.append(("scale_response", "Measures while the same objects grow.", lambda: scale_response(survey)))
    else:
        makers.append(("by_size", "Measures against the object's share.", lambda: coverage_by_size(survey)))
    if contrasts is not None:
        makers.append(
            (
                "differences",
                "The second network minus the first, by size, with intervals.",
                lambda: difference_by_stratum(
                    _rows(survey, contrasts), networks=(survey.looks[0].title, survey.looks[-1].title),
                    note=f"{survey.dataset}; means, intervals and n are of {units(survey)}; sizes by "
                    f"{'share of the picture' if by == 'share' else 'pixels'}.",
                ),
            )
        )  # fmt: skip
    if survey.gaussian.inside is not None:
        makers.append(
            (
                "curves",
                "Coverage, spill and IoU at every threshold.",
                lambda: coverage_curves(survey, note=_bands(survey)),
            )
        )
    found = []
    for name, caption, make in makers:
        try:
            image = make()
        except OutputError as error:
            if error.code != "output.nothing":
                raise
            continue
        found.append(Drawing(prefix + name, image, _alt(survey, contrasts, name), caption, survey.digest))
    return found


def _bands(survey: Survey) -> str:
    return (
        "" if units(survey) == "pictures" else "Bands take scenes of one object for independent: they are too narrow."
    )


def _rows(survey: Survey, contrasts: pd.DataFrame) -> list[StratumDifference]:
    titles = {look.method: look.method_title for look in survey.looks}
    wanted = [headline(survey), *(name for name in _FOREST if name in survey.measures)]
    wanted += [name for name in ("maxboxaccv2", "pxap") if name in survey.pooled and units(survey) == "pictures"]
    found = []
    for name in dict.fromkeys(wanted):
        # The claim's measure by every method, the others by the first.
        for method in survey.methods if name == wanted[0] else survey.methods[:1]:
            part = contrasts[(contrasts.measure == name) & (contrasts.method == method)]
            for line in part.to_dict("records"):
                group = MEASURES[name].title + (f", {titles[method]}" if len(survey.methods) > 1 else "")
                found.append(
                    StratumDifference(group, line["stratum"], _interval(line), MEASURES[name].higher_is_better)
                )
    return found


def _interval(line: Mapping[str, Any]) -> Interval:
    return Interval(line["difference"], line["difference low"], line["difference high"], int(line["n"]))


def _alt(survey: Survey, contrasts: pd.DataFrame | None, name: str) -> str:
    if contrasts is None or name == "curves":
        return f"{name.replace('_', ' ')} of {', '.join(look.title for look in survey.looks)} on {survey.dataset}."
    name = headline(survey)
    part = contrasts[(contrasts.measure == name) & (contrasts.method == survey.methods[0])]
    told = "; ".join(
        f"{line['stratum']} {points(line['of first'])} and {points(line['of second'])}"
        for line in part.to_dict("records")
    )
    first, second = survey.looks[0].title, survey.looks[-1].title
    return f"{MEASURES[name].title} in points of {first} and {second}, by size: {told}."


# --- Tables ----------------------------------------------------------------------------------------------------------


def _tables(survey: Survey, about: pd.DataFrame, contrasts: pd.DataFrame | None, prefix: str) -> list[Table]:
    over = units(survey)
    found = [
        Table(
            f"{prefix}summary",
            survey.summary(),
            "Every measure over the whole data set. A threshold that is chosen is the best for these very pictures.",
        )
    ]
    if contrasts is not None:
        main = contrasts[contrasts.measure.isin([headline(survey), "leakage", "evenness"])]
        found.append(
            Table(
                f"{prefix}differences_main",
                main.drop(columns=["test", "pictures", "centre-Gaussian"]).reset_index(drop=True),
                "The measures of the claim by size: means, second network minus first with 95 % intervals over "
                f"{over}, p before and after Holm's correction over all measures and strata of a method.",
                shown=40,
            )
        )
        found.append(Table(f"{prefix}differences", contrasts, "The same of all measures.", shown=_SHOWN))
    found.append(
        Table(
            f"{prefix}strata",
            about,
            f"Every network's mean of every measure in every stratum, with its 95 % interval over {over}.",
            shown=_SHOWN,
        )
    )
    found.append(
        Table(f"{prefix}pictures", survey.frame(), "Every picture, network and method, and the centre-Gaussian.",
              shown=_PICTURES)
    )  # fmt: skip
    if survey.failures:
        found.append(failures(survey, f"{prefix}failures"))
    return found


def failures(survey: Survey, name: str = "failures") -> Table:
    """Pictures that could not be used, and why."""
    import pandas as pd

    rows = [{"picture": one.name, "code": one.code, "error": one.error} for one in survey.failures]
    return Table(
        name, pd.DataFrame(rows, columns=["picture", "code", "error"]), "Pictures that could not be used.", shown=30
    )


# --- Words -----------------------------------------------------------------------------------------------------------


def verdict_table(found: Sequence[Judged], name: str = "verdicts") -> Table:
    """Every criterion's interval and what it says, by condition and method."""
    import pandas as pd

    rows = [
        {
            "data": one.dataset,
            "method": one.method,
            "measure": one.measure,
            "criterion": CRITERIA[criterion].what,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": interval.n,
            "over": one.units,
            "says": one.decision.outcomes[criterion],
            "rule": CRITERIA[criterion].meaning,
        }
        for one in found
        for criterion, interval in one.intervals.items()
    ]
    return Table(
        name, pd.DataFrame(rows), "The decision table, fixed beforehand, and what each interval says: as shares, "
        "0.02 is two points.",
    )  # fmt: skip


def verdict(survey: Survey, *, seed: int = 0) -> tuple[str, str]:
    """The finding in a word, and the paragraphs that say why and what it cannot say; "" and a sentence for one network.

    A verdict over several surveys is an analysis's business: see `r2viz.contrasts.finding`.
    """
    if not pairs(survey):
        return "", f"One network, {survey.looks[0].title}: how it covers objects, compared with nothing."
    found = next(iter(judge_all(survey, seed=seed)), None)
    if found is None:
        return "", "The measure that decides was not asked for, so there is no verdict. " + limits([survey])
    return found.decision.verdict, "\n\n".join([found.decision.sentence, limits([survey])])


def limits(surveys: Sequence[Survey]) -> str:
    """What the numbers cannot say, whatever they are."""
    told = []
    kinds = {survey.kind for survey in surveys}
    if "box" in kinds:
        told.append(
            "Boxes have no shape: coverage and evenness are not measured with them, and the share of the map inside "
            "stands for coverage."
        )
    if "pseudo-mask" in kinds:
        told.append("Masks were guessed from boxes by GrabCut.")
    told.append(
        "One training of each network was looked at (n = 1): intervals say what other pictures or objects could have "
        "given, not what another training could have."
    )
    if any("mini" in look.model for survey in surveys for look in survey.looks):
        told.append(
            "The mini pair is small, trained on pictures of 64 px, and its receptive fields exceed its pictures: it "
            "is not the paper's pair."
        )
    told.append(
        "Entropy-matched maps, a control of equal receptive field (48w-2s) and further seeds are not part of this, "
        "and leave what they would decide open."
    )
    return " ".join(told)


def provenance(surveys: Sequence[Survey]) -> dict[str, str]:
    """Weights, options, versions and the surveys' digests."""
    found: dict[str, str] = {}
    for survey in surveys:
        for look in survey.looks:
            seed = "" if look.seed is None else f", seed {look.seed}"
            found[f"weights of {look.title}{seed}"] = f"{look.weights['kind']}, sha256 {look.weights['sha256']}"
    for survey in surveys:
        name, number = f"survey of {survey.dataset}", 2
        while name in found:
            name, number = f"survey of {survey.dataset} ({number})", number + 1
        layers = ", ".join(dict.fromkeys(look.layer for look in survey.looks))
        found[name] = (
            f"{survey.format}, {len(survey)} pictures, layer {layers}, registration {survey.registration}, "
            f"sha256 {survey.digest}"
        )
    found["versions"] = ", ".join(f"{name} {version}" for name, version in surveys[0].versions.items())
    return found


def headline(survey: Survey) -> str:
    """The measure that decides, or the first, where that was not taken."""
    return primary(survey) or (*survey.measures, *survey.pooled)[0]


def points(share: float) -> str:
    """A share in points: hundredths."""
    return f"{100 * share:.1f}".replace("-", "−")
