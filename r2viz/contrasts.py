"""Two networks' surveys held against each other: by size, with intervals over what is independent, and as a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from r2viz.coverage import Rows, data_set_value
from r2viz.errors import BadData, UnknownName, nearest
from r2viz.statistics import (
    COCO,
    SIZES,
    Decision,
    Interval,
    Test,
    decide,
    difference_interval,
    holm,
    interaction_interval,
    mcnemar,
    mean_interval,
    percentile_interval,
    resampled,
    seed_interval,
    strata_of,
    stratified_intervals,
    wilcoxon,
    within_interaction_interval,
)
from r2viz.surveys import Look, Survey

if TYPE_CHECKING:
    import pandas as pd

STRATA = {"share": SIZES, "coco": COCO}
"""What sizes may be told by: the object's share of what was seen of the picture, or its pixels in the picture."""

ALL = "all"
FEW = 20
"""Fewer objects than this have t-intervals: a bootstrap of so few is too narrow."""

SAME = {"energy": "leakage", "energy_gain": "leakage", "area_coverage": "area_coverage_gain"}
"""Measures whose difference between networks is that of another one, but for its sign: one hypothesis, not two."""

POOLED_RESAMPLES = 1000
_LARGE, _SMALL = (0.5, 0.8), (0.0, 0.25)


def primary(survey: Survey) -> str | None:
    """The measure that decides: coverage needs masks, a box allows the energy inside above chance; None unmeasured."""
    wanted = "energy_gain" if survey.kind == "box" else "area_coverage_gain"
    return wanted if wanted in survey.measures else None


def pairs(survey: Survey) -> list[tuple[Look, Look]]:
    """Both networks' looks, method by method, the baseline first; empty for one network."""
    count = len(survey.methods)
    if len(survey.looks) != 2 * count:
        return []
    return list(zip(survey.looks[:count], survey.looks[count:], strict=True))


def manipulated(survey: Survey) -> bool:
    """Whether sizes were chosen, so that each object is shown at several: composed scenes."""
    return survey.chosen is not None and bool(np.isfinite(survey.chosen).all())


def strata(survey: Survey, by: str = "share") -> dict[str, np.ndarray]:
    """All pictures, and those of each size, as boolean `(N,)`; sizes without a picture are left out.

    Raises:
        UnknownName: sizes are not told so.
        BadData: the survey does not know its objects' pixels.
    """
    if by not in STRATA:
        raise UnknownName(f"no strata {by!r}{nearest(by, STRATA)}; there are {', '.join(STRATA)}")
    if by == "coco" and survey.pixels is None:
        raise BadData(f"{survey.dataset}: the survey does not know how many pixels its objects have")
    sizes = survey.area if by == "share" or survey.pixels is None else survey.pixels
    found = {name: which for name, which in strata_of(sizes, STRATA[by]).items() if which.any()}
    return {ALL: np.ones(len(survey), dtype=bool), **found}


def clusters(survey: Survey) -> np.ndarray | None:
    """Which object each picture shows, as numbers `(N,)`; None where every picture shows another one."""
    if not survey.objects or len(set(survey.objects)) == len(survey):
        return None
    return np.unique(np.array(survey.objects), return_inverse=True)[1]


def units(survey: Survey) -> str:
    """What intervals are over, in words."""
    of = clusters(survey)
    return "pictures" if of is None else "objects"


# --- Means, differences ----------------------------------------------------------------------------------------------


def levels(survey: Survey, *, by: str = "share", seed: int = 0) -> pd.DataFrame:
    """Every network's mean of every measure in every stratum, with its interval, chance and the centre-Gaussian."""
    import pandas as pd

    looks: list[Look | None] = [*survey.looks, None]
    rows = [survey.gaussian if look is None else look.rows for look in looks]
    columns = {f"{n} {name}": one.values[name] for n, one in enumerate(rows) for name in survey.measures}
    among = strata(survey, by)
    found = _means(columns, among, clusters(survey), seed)
    lines = []
    for number, (look, one) in enumerate(zip(looks, rows, strict=True)):
        for name in survey.measures:
            for stratum, which in among.items():
                lines.append(
                    {
                        "network": "centre-Gaussian" if look is None else look.title,
                        "method": "" if look is None else look.method,
                        "measure": name,
                        "stratum": stratum,
                        "pictures": int(which.sum()),
                        **_ends(found[f"{number} {name}", stratum]),
                        "chance": _mean(one.chance[name][which]),
                        "constant maps": int(one.constant[which].sum()),
                    }
                )
    return pd.DataFrame(lines)


def differences(survey: Survey, *, by: str = "share", seed: int = 0) -> pd.DataFrame:
    """The second network minus the first in every stratum: means, interval, p and p after Holm; by method and measure.

    Pictures of one object are not independent: where objects come more than once, intervals and tests are over the
    objects' means. Holm's family is all measures and strata of a method, each hypothesis once. Measures of the data
    set as a whole have percentile intervals where there are enough pictures, and no p.

    Raises:
        BadData: the survey has one network only.
    """
    import pandas as pd

    found_pairs = _paired(survey)
    among, of = strata(survey, by), clusters(survey)
    lines = []
    for first, second in found_pairs:
        values = {name: second.rows.values[name] - first.rows.values[name] for name in survey.measures}
        found = _means(values, among, of, seed)
        tests = {
            (name, stratum): _test(name, first, second, which, of)
            for name in survey.measures
            for stratum, which in among.items()
        }
        adjusted = _holm(tests)
        for name in survey.measures:
            for stratum, which in among.items():
                lines.append(
                    {
                        **_about(first, name, stratum, which, survey),
                        "of first": _mean(first.rows.values[name][which]),
                        "of second": _mean(second.rows.values[name][which]),
                        **_ends(found[name, stratum], "difference"),
                        "p": tests[name, stratum].p,
                        "p (Holm)": adjusted[name, stratum],
                        "test": tests[name, stratum].name,
                    }
                )
        lines += _pooled(survey, first, second, among, of, seed)
    return pd.DataFrame(lines)


def _paired(survey: Survey) -> list[tuple[Look, Look]]:
    found = pairs(survey)
    if not found:
        raise BadData(f"{survey.dataset}: one network has no difference; survey two")
    return found


def _about(look: Look, name: str, stratum: str, which: np.ndarray, survey: Survey) -> dict[str, str | int | float]:
    objects = len({survey.objects[place] for place in np.flatnonzero(which)}) if survey.objects else int(which.sum())
    gaussian = survey.gaussian.values.get(name)
    return {
        "method": look.method,
        "measure": name,
        "stratum": stratum,
        "pictures": int(which.sum()),
        "objects": objects,
        "centre-Gaussian": float("nan") if gaussian is None else _mean(gaussian[which]),
    }


def _means(
    values: Mapping[str, np.ndarray], among: Mapping[str, np.ndarray], of: np.ndarray | None, seed: int
) -> dict[tuple[str, str], Interval]:
    if of is None:
        return stratified_intervals(values, among, seed=seed)
    return {
        (name, stratum): _interval(by_cluster(np.where(which, column, np.nan), of), seed)
        for name, column in values.items()
        for stratum, which in among.items()
    }


def _interval(values: np.ndarray, seed: int) -> Interval:
    known = values[np.isfinite(values)]
    return seed_interval(known) if known.size < FEW else mean_interval(known, seed=seed)


def by_cluster(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Means of `(N,)` within each cluster, numbered `(N,)`: `(C,)`, NaN where a cluster has no value."""
    known = np.isfinite(values)
    counts = np.bincount(of, known, minlength=int(of.max()) + 1)
    sums = np.bincount(of, np.where(known, values, 0), minlength=len(counts))
    return sums / np.where(counts > 0, counts, np.nan)


def _test(name: str, first: Look, second: Look, which: np.ndarray, of: np.ndarray | None) -> Test:
    a, b = (look.rows.values[name][which] for look in (first, second))
    if of is not None:
        return wilcoxon(by_cluster(a, of[which]), by_cluster(b, of[which]))
    hits = np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()
    return mcnemar(a, b) if name == "pointing" and hits else wilcoxon(a, b)


def _holm(tests: Mapping[tuple[str, str], Test]) -> dict[tuple[str, str], float]:
    """Over the hypotheses of all strata; that of all pictures together is each stratum's again, and stays out."""

    def key(name: str, stratum: str) -> str:
        return f"{SAME.get(name, name)} {stratum}"

    family = {key(*one): test.p for one, test in tests.items() if one[1] != ALL}
    adjusted = holm(family)
    return {one: adjusted.get(key(*one), float("nan")) for one in tests}


def _pooled(
    survey: Survey, first: Look, second: Look, among: Mapping[str, np.ndarray], of: np.ndarray | None, seed: int
) -> list[dict[str, str | int | float]]:
    lines = []
    for name in survey.pooled:
        if name == "top1_loc" and (first.rows.correct is None or second.rows.correct is None):
            continue
        for stratum, which in among.items():
            a, b = first.rows.take(which), second.rows.take(which)
            values = [float(np.squeeze(data_set_value(name, rows))) for rows in (a, b)]
            found = Interval(values[1] - values[0], float("nan"), float("nan"), len(a))
            if of is None and len(a) >= FEW:
                # The same seed draws the same pictures for both: the difference is paired.
                drawn = [resampled(_value_of(name, rows), len(a), POOLED_RESAMPLES, seed=seed) for rows in (a, b)]
                draws = drawn[1] - drawn[0]
                found = percentile_interval(values[1] - values[0], draws, n=len(a))
            lines.append(
                {
                    **_about(first, name, stratum, which, survey),
                    "centre-Gaussian": float(np.squeeze(data_set_value(name, survey.gaussian.take(which))))
                    if name != "top1_loc"
                    else float("nan"),
                    "of first": values[0],
                    "of second": values[1],
                    **_ends(found, "difference"),
                    "p": float("nan"),
                    "p (Holm)": float("nan"),
                    "test": "",
                }
            )
    return lines


def _value_of(name: str, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
    return lambda counts: data_set_value(name, rows, counts=counts)


def _ends(found: Interval, name: str = "mean") -> dict[str, float | int]:
    low, high = ("low", "high") if name == "mean" else (f"{name} low", f"{name} high")
    return {name: found.mean, low: found.low, high: found.high, "n": found.n}


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


# --- Sizes that were chosen ------------------------------------------------------------------------------------------


def response(survey: Survey, measure: str, *, seed: int = 0) -> pd.DataFrame:
    """Each network's mean at each size that was chosen, with its interval over objects; and the centre-Gaussian's."""
    import pandas as pd

    chosen, of = _chosen(survey), clusters(survey)
    looks: list[Look | None] = [*survey.looks, None]
    lines = []
    for look in looks:
        rows = survey.gaussian if look is None else look.rows
        for share in np.unique(chosen):
            which = chosen == share
            values = rows.values[measure][which]
            found = _interval(values if of is None else by_cluster(values, of[which]), seed)
            lines.append(
                {
                    "network": "centre-Gaussian" if look is None else look.title,
                    "method": "" if look is None else look.method,
                    "measure": measure,
                    "share": float(share),
                    "pictures": int(which.sum()),
                    **_ends(found),
                    "chance": _mean(rows.chance[measure][which]),
                }
            )
    return pd.DataFrame(lines)


def _chosen(survey: Survey) -> np.ndarray:
    if survey.chosen is None or not manipulated(survey):
        raise BadData(f"{survey.dataset}: sizes were found, not chosen; compose scenes to choose them")
    return survey.chosen


def interaction(survey: Survey, first: Look, second: Look, measure: str, *, seed: int = 0) -> Interval:
    """How much more the second network gains for large objects than for small ones.

    Found sizes: the mean difference at 50-80 % of the picture minus that up to 25 %, over pictures. Chosen sizes:
    within each object, how much the difference grows from the smallest to the largest share, as a line on log side;
    over objects.
    """
    difference = second.rows.values[measure] - first.rows.values[measure]
    if not manipulated(survey):
        area = survey.area
        return interaction_interval(difference, *((area > low) & (area <= high) for low, high in (_LARGE, _SMALL)))
    chosen = _chosen(survey)
    sizes = np.unique(chosen)
    of = clusters(survey)
    of = np.arange(len(survey)) if of is None else of
    table = np.stack([by_cluster(np.where(chosen == size, difference, np.nan), of) for size in sizes], axis=1)
    slopes = np.array([within_interaction_interval(row[None], sizes).mean for row in table])
    return _interval(slopes * 0.5 * np.log2(sizes[-1] / sizes[0]), seed)


def large(survey: Survey) -> np.ndarray:
    """Which pictures the claim is about, `(N,)`: the largest size chosen, or 50-80 % of the picture where found."""
    if manipulated(survey):
        chosen = _chosen(survey)
        return np.asarray(chosen == chosen.max())
    return (survey.area > _LARGE[0]) & (survey.area <= _LARGE[1])


# --- The verdict -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a survey says of the claim by one method and measure.

    Attributes:
        intervals: by criterion, see `r2viz.statistics.CRITERIA`.
        probability: mean probability of the explained class, of both networks: a confound.
    """

    dataset: str
    method: str
    measure: str
    units: str
    intervals: Mapping[str, Interval]
    decision: Decision
    probability: tuple[float, float]


def judge(survey: Survey, *, measure: str | None = None, method: str | None = None, seed: int = 0) -> Judged:
    """Hold a survey against the decision table.

    Args:
        survey: of two networks.
        measure: that decides; by default `primary`.
        method: by default the survey's first.
        seed: of bootstraps.

    Raises:
        BadData: one network only, or the measure was not taken.
        UnknownName: no such method.
    """
    measure = measure or primary(survey)
    if measure is None:
        raise BadData(f"{survey.dataset}: the measure that decides was not taken; there are {survey.measures}")
    if measure not in survey.measures:
        raise BadData(f"{survey.dataset}: {measure} was not measured; there are {', '.join(survey.measures)}")
    method = survey.methods[0] if method is None else method
    if method not in survey.methods:
        raise UnknownName(f"the survey has no method {method!r}{nearest(method, survey.methods)}")
    first, second = _paired(survey)[survey.methods.index(method)]
    which, of = large(survey), clusters(survey)

    def between(before: np.ndarray, after: np.ndarray) -> Interval:
        if of is None:
            return difference_interval(before[which], after[which], seed=seed)
        return _interval(by_cluster((after - before)[which], of[which]), seed)

    def of_networks(name: str) -> Interval:
        return between(first.rows.values[name], second.rows.values[name])

    intervals = {
        "difference": of_networks(measure),
        "interaction": interaction(survey, first, second, measure, seed=seed),
    }
    if "leakage" in survey.measures:
        intervals["leakage"] = of_networks("leakage")
    if measure != "evenness":  # a blob is even whatever it covers
        leads = [between(survey.gaussian.values[measure], one.rows.values[measure]) for one in (first, second)]
        intervals["baseline"] = min(leads, key=lambda found: found.mean if np.isfinite(found.mean) else np.inf)
    claim = {
        "evenness": f"{second.title} covers large objects more evenly than {first.title}",
        "energy_gain": f"{second.title} puts more of its map on large objects than {first.title}",
    }.get(measure, f"{second.title} covers more of large objects than {first.title}")
    probability = (float(first.probability.mean()), float(second.probability.mean()))
    return Judged(
        survey.dataset, method, measure, units(survey), intervals, decide(intervals, claim=claim), probability
    )


def judge_all(survey: Survey, *, seed: int = 0) -> list[Judged]:
    """By every method; nothing where there is one network, or the measure that decides was not taken."""
    if not pairs(survey) or primary(survey) is None:
        return []
    return [judge(survey, method=method, seed=seed) for method in survey.methods]


def finding(judged: Sequence[Judged]) -> str:
    """The verdict over conditions and methods, the deciding one first.

    It is the first one's, but "supported" only where no other refutes it or has the other sign: then it is undecided.
    """
    verdict = judged[0].decision.verdict
    others = judged[1:]
    against = [one for one in others if one.decision.verdict == "not supported"]
    reversed_ = [one for one in others if one.intervals["difference"].mean <= 0]
    return "undecided" if verdict == "supported" and (against or reversed_) else verdict
