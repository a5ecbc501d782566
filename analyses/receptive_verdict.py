"""Fields held against each other, and the rule that turns the numbers into a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from r2viz.statistics import Interval, mean_interval, seed_interval

LAST = "layer4"
SIZES = {
    "sigma": "second-moment σ",
    "side50": "√ of the smallest area with 50 % of the mass",
    "side95": "√ of the smallest area with 95 % of the mass",
}
MARGIN = 1.05
"""Ratios below this are no growth worth the name, however sure."""


@dataclass(frozen=True)
class Comparison:
    """One network's field beside another's at one layer, by one size.

    Attributes:
        what: "random", "control", "trained", …: the role in the verdict.
        ratio: the second over the first, geometric mean over units.
        difference: the second minus the first, in input pixels.
        unit: what the interval is over.
    """

    what: str
    first: str
    second: str
    layer: str
    size: str
    side: int
    mean_first: float
    mean_second: float
    ratio: Interval
    difference: Interval
    unit: str

    @property
    def answer(self) -> str:
        """The decision rule: "larger", "not larger" (below the margin) or "undecided"."""
        if self.ratio.low > 1:
            return "larger"
        return "not larger" if self.ratio.high < MARGIN else "undecided"


def compare(
    what: str, rows: pd.DataFrame, first: dict[str, Any], second: dict[str, Any], *, unit: str
) -> list[Comparison]:
    """The rows that are `second` beside those that are `first`, unit by unit, at every layer and by every size.

    Several rows of one unit (seeds of one picture) are averaged first. Intervals: over pictures BCa bootstrap, over
    seeds Student's t; of the ratio, on its logarithm.
    """
    interval = seed_interval if unit == "seed" else mean_interval
    sides = [_those(rows, one) for one in (first, second)]
    found = []
    for layer in dict.fromkeys(rows.layer):
        for size in SIZES:
            a, b = (part[part.layer == layer].groupby("unit", sort=False)[size].mean() for part in sides)
            a, b = a.align(b, join="inner")
            logs = interval(np.log(b.to_numpy(float)) - np.log(a.to_numpy(float)))
            mean, low, high = (float(np.exp(value)) for value in (logs.mean, logs.low, logs.high))
            found.append(
                Comparison(
                    what,
                    _called(sides[0], sides[1]),
                    _called(sides[1], sides[0]),
                    layer,
                    size,
                    int(sides[0].side.iloc[0]),
                    float(a.mean()),
                    float(b.mean()),
                    Interval(mean, low, high, logs.n, logs.level),
                    interval(b.to_numpy(float) - a.to_numpy(float)),
                    unit,
                )
            )
    return found


def _those(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def _called(rows: pd.DataFrame, other: pd.DataFrame) -> str:
    """The network's name, with its weights where the other's differ."""
    title, weights = rows.title.iloc[0], rows.weights.iloc[0]
    return str(title) if weights == other.weights.iloc[0] else f"{title}, {weights}"


# --- The verdict -----------------------------------------------------------------------------------------------------


def judge(found: Sequence[Comparison]) -> tuple[str, str]:
    """The finding in a word or two, and the paragraphs that say why: σ at the last stage decides.

    With "larger" where the ratio's whole interval lies above 1 and "not larger" where it lies below `MARGIN`:

    | random | trained | control | finding |
    |---|---|---|---|
    | larger | larger | not larger | supported |
    | larger | larger | else, or not larger at the size of training | supported in part |
    | larger in one of the two | | any | supported in part |
    | not larger | not larger | any | not supported |
    | else | | | undecided |
    """
    main = {one.what: one for one in found if one.layer == LAST and one.size == "sigma"}
    random, control, trained = main["random"], main["control"], main["trained"]
    answers = [random.answer, trained.answer]
    own = main.get("trained, own size")
    if answers == ["larger", "larger"]:
        whole = control.answer == "not larger" and (own is None or own.answer == "larger")
        finding = "supported" if whole else "supported in part"
    elif "larger" in answers:
        finding = "supported in part"
    else:
        finding = "not supported" if answers == ["not larger", "not larger"] else "undecided"
    said = [
        f"Is Res2Net's effective receptive field larger? {_HEADS[finding]}",
        f"With random weights: {_numbers(random)}. {_agreeing(found, random)}",
        f"The control has splits, but no larger theoretical field: {_numbers(control)}. {_control(random, control)}",
        f"Trained: {_numbers(trained)}. {_agreeing(found, trained)}",
    ]
    if own is not None:
        said[-1] += (
            f" On pictures of the size that they were trained with, whose border cuts the fields: {_numbers(own)}."
        )
    said.append(
        "This is one trained pair of small networks, and networks of 50 layers before training: it says nothing of "
        "trained networks of 50 layers. A larger field is not yet a better one."
    )
    return finding, "\n\n".join(said)


_HEADS = {
    "supported": "Yes, by this measurement: both with random weights and trained, while the control does not grow.",
    "supported in part": "In part: not all that would have to hold does, as follows.",
    "not supported": "No: neither with random weights nor trained is it larger by as much as 5 %.",
    "undecided": "Undecided: the intervals allow both a larger field and none worth the name.",
}
_ANSWERS = {
    "larger": "larger",
    "not larger": f"not larger by as much as {MARGIN - 1:.0%}".replace("%", " %"),
    "undecided": "undecided, since the interval allows both",
}


def _numbers(one: Comparison) -> str:
    units = f"{one.ratio.n} {one.unit}s"
    return (
        f"{one.second} has σ {one.mean_second:.1f} px, {one.first} {one.mean_first:.1f} px, at {one.layer} on inputs "
        f"of {one.side} px; ratio {_interval(one.ratio, 2)}, difference {_interval(one.difference, 1)} px, 95 % "
        f"interval over {units}: {_ANSWERS[one.answer]}"
    )


def _interval(one: Interval, digits: int) -> str:
    if not np.isfinite(one.low):
        return f"{one.mean:.{digits}f} (no interval)"
    return f"{one.mean:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]".replace("-", "−")


def _agreeing(found: Sequence[Comparison], main: Comparison) -> str:
    others = [one for one in found if one.what == main.what and one.layer == LAST and one.size != "sigma"]
    if not others:
        return ""
    told = [f"{SIZES[one.size]}: ratio {_interval(one.ratio, 2)}, {one.answer}" for one in others]
    same = all(one.answer == main.answer for one in others)
    return f"Other sizes {'say the same' if same else 'differ'} ({'; '.join(told)})."


def _control(random: Comparison, control: Comparison) -> str:
    if random.answer != "larger":
        return "With no growth to explain, it explains nothing."
    if control.answer == "not larger":
        return "So splitting alone does not make the field larger; what does goes with the larger theoretical field."
    if control.answer == "undecided":
        return "So it stays open whether splitting alone makes the field larger."
    if control.ratio.high < random.ratio.low:
        return "So splitting alone makes it larger, too, if by less: the theoretical field is not the only reason."
    return "It grows as much: the growth cannot be put down to the larger theoretical field."
