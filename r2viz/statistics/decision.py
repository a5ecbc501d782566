"""The decision table: what intervals must be for a claim to be supported, refuted or left open; fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from r2viz.statistics.intervals import Interval

Verdict = Literal["supported", "not supported", "undecided"]
MARGIN = 0.02
"""Two points: the least difference that would matter, and the most leakage that a gain may cost."""


@dataclass(frozen=True)
class Criterion:
    """A row of the table.

    Attributes:
        what: of the interval, as a phrase.
        met: the interval speaks for the claim; `failed`: it speaks against.
        failed: see `met`; what is neither leaves the claim undecided.
        meaning: why it counts.
    """

    what: str
    met: Callable[[Interval], bool]
    failed: Callable[[Interval], bool]
    meaning: str


@dataclass(frozen=True)
class Decision:
    """What came of a claim: the verdict, what each criterion said of its interval, and the sentence for the report."""

    verdict: Verdict
    outcomes: dict[str, Verdict]
    sentence: str


CRITERIA: dict[str, Criterion] = {
    "difference": Criterion(
        "the gain for large objects",
        met=lambda found: found.low > 0 and found.mean >= MARGIN,
        failed=lambda found: found.high < MARGIN,
        meaning="above 0, and at least two points; refuted when the whole interval lies below two points",
    ),
    "interaction": Criterion(
        "how much more is gained for large than for small objects",
        met=lambda found: found.low > 0,
        failed=lambda found: found.high <= 0,
        meaning="the claim is about large objects: a gain at every size is another one",
    ),
    "leakage": Criterion(
        "the change in leakage",
        met=lambda found: found.high < MARGIN,
        failed=lambda found: found.low >= MARGIN,
        meaning="not inferior by two points: a map that merely spreads covers more and leaks more",
    ),
    "baseline": Criterion(
        "the lead over the centre-Gaussian",
        met=lambda found: found.low > 0,
        failed=lambda found: found.high <= 0,
        meaning="a map that knows no picture must do worse",
    ),
    "entropy_matched": Criterion(
        "the gain at equal map entropy",
        met=lambda found: found.low > 0,
        failed=lambda found: found.high <= 0,
        meaning="more than blur; for coverage only, for evenness this is circular",
    ),
    "control": Criterion(
        "the gain beyond that of the control with ResNet's receptive field (48w2s)",
        met=lambda found: found.low > 0,
        failed=lambda found: found.high <= 0,
        meaning="asked where the receptive field is said to be why",
    ),
}

REQUIRED = ("difference", "interaction", "leakage")


def decide(intervals: Mapping[str, Interval], *, claim: str = "Res2Net covers more of large objects") -> Decision:
    """Hold intervals against the table: one that fails refutes, one that is open leaves open, else it is supported.

    An interval that holds 0 leaves a claim open, unless all of it lies below the margin: then the effect is known to be
    smaller than what was said beforehand to matter.

    Args:
        intervals: by a criterion's name, as shares (0.02 = two points); `difference`, `interaction` and `leakage` are
            required: what is missing is open. Further ones count as much.
        claim: a clause that the sentence can take up.

    Raises:
        ValueError: no such criterion.
    """
    unknown = [name for name in intervals if name not in CRITERIA]
    if unknown:
        raise ValueError(f"no criterion {unknown[0]!r}; there are {', '.join(CRITERIA)}")
    asked = [name for name in CRITERIA if name in intervals or name in REQUIRED]
    outcomes = {name: _outcome(CRITERIA[name], intervals.get(name)) for name in asked}
    by_verdict = {kind: [name for name in asked if outcomes[name] == kind] for kind in ("not supported", "undecided")}
    verdict: Verdict = "supported"
    if by_verdict["not supported"]:
        verdict = "not supported"
    elif by_verdict["undecided"]:
        verdict = "undecided"
    reasons = by_verdict.get(verdict, asked)
    said = "; ".join(_said(name, intervals.get(name)) for name in reasons)
    return Decision(verdict, outcomes, f"“{claim}” is {verdict}: {said}.")


def _outcome(criterion: Criterion, found: Interval | None) -> Verdict:
    if found is None or not (np.isfinite(found.low) and np.isfinite(found.high)):
        return "undecided"
    return "supported" if criterion.met(found) else "not supported" if criterion.failed(found) else "undecided"


def _said(name: str, found: Interval | None) -> str:
    what = CRITERIA[name].what
    if found is None:
        return f"{what} was not measured"
    if not np.isfinite(found.low):
        return f"{what} is {_points(found.mean)} without an interval (n = {found.n})"
    bounds = f"{_points(found.low)} to {_points(found.high)}"
    return f"{what} is {_points(found.mean)} points ({found.level:.0%} interval {bounds}, n = {found.n})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
