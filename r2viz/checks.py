"""Whether a map can be trusted: results of the faithfulness checks as frozen values. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from r2viz.statistics import Interval, mean_interval

CHANGES_BELOW = 0.5
"""A map that keeps a rank correlation of this much with that of a wholly re-initialised network does not depend on
what was learnt. A gate, not a ranking: Adebayo et al. 2018 name no number; 0.5 is ours."""


@dataclass(frozen=True)
class Faithfulness:
    """What happens to the explained class when the picture is taken apart in the map's order.

    Attributes:
        probability: of the class on the untouched picture.
        deletion: area under the probability while the strongest pixels go first; small is good.
        insertion: area while they come first; large is good.
        deletion_random: the same in a random order, seeded.
        insertion_random: likewise.
        road: mean over the shares removed of (probability without the least important pixels - probability without
            the most important ones) / 2; above 0 is good.
        drop: max(0, p - p') / p, p' on the picture dimmed by the map; small is good.
        increase: whether p' > p.
        complexity: mean of the map divided by its maximum: what `drop` has to be read beside, since an even map drops
            nothing.
    """

    probability: float
    deletion: float
    insertion: float
    deletion_random: float
    insertion_random: float
    road: float
    drop: float
    increase: bool
    complexity: float

    @property
    def deletion_gain(self) -> float:
        """How much smaller the deletion area is than in random order, in units of the probability."""
        return (self.deletion_random - self.deletion) / max(self.probability, 1e-12)

    @property
    def insertion_gain(self) -> float:
        """How much larger the insertion area is than in random order, in units of the probability."""
        return (self.insertion - self.insertion_random) / max(self.probability, 1e-12)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "deletion_gain": self.deletion_gain, "insertion_gain": self.insertion_gain}


@dataclass(frozen=True)
class Randomisation:
    """How much of a map is left while the network's weights are re-initialised from the output downwards.

    Attributes:
        stages: the parts re-initialised so far, in order; the last entry has re-initialised all of them.
        spearman: rank correlation with the trained network's map, after each; means over several draws of weights.
        spearman_absolute: the same of the maps' absolute values.
        ssim: structural similarity of the positive maps, each by its own maximum.
    """

    stages: tuple[str, ...]
    spearman: tuple[float, ...]
    spearman_absolute: tuple[float, ...]
    ssim: tuple[float, ...]

    @property
    def depends_on_learning(self) -> bool:
        """Whether the map of the wholly re-initialised network is another one."""
        return not self.spearman[-1] >= CHANGES_BELOW

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; a NaN (a constant map) becomes None."""

        def plain(values: Sequence[float]) -> list[float | None]:
            return [value if np.isfinite(value) else None for value in values]

        return {
            "stages": list(self.stages),
            "spearman": plain(self.spearman),
            "spearman_absolute": plain(self.spearman_absolute),
            "ssim": plain(self.ssim),
            "depends_on_learning": self.depends_on_learning,
        }


@dataclass(frozen=True)
class Verdict:
    """Both checks of one network's map of one picture."""

    faithfulness: Faithfulness
    randomisation: Randomisation | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against trusting the map, in plain sentences; empty if nothing does."""
        said = []
        one = self.faithfulness
        if one.deletion_gain <= 0 and one.insertion_gain <= 0:
            said.append("taking pixels away or adding them in the map's order does no more than in random order")
        if one.road <= 0:
            said.append("removing what the map calls important hurts the class no more than removing the rest (ROAD)")
        if self.randomisation is not None and not self.randomisation.depends_on_learning:
            said.append("the map stays much the same when the network's weights are random")
        return tuple(said)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `as_dict` made `values` of, also after JSON, which has no NaN.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """

        def number(value: Any) -> float:
            return math.nan if value is None else float(value)

        found, gate = values["faithfulness"], values["randomisation"]
        measures = {field.name: number(found[field.name]) for field in fields(Faithfulness) if field.name != "increase"}
        kept = None
        if gate is not None:
            series = {name: tuple(map(number, gate[name])) for name in ("spearman", "spearman_absolute", "ssim")}
            kept = Randomisation(tuple(gate["stages"]), **series)
        return cls(Faithfulness(**measures, increase=bool(found["increase"])), kept)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "faithfulness": self.faithfulness.as_dict(),
            "randomisation": None if self.randomisation is None else self.randomisation.as_dict(),
            "warnings": list(self.warnings),
        }


SUMMARISED = ("deletion_gain", "insertion_gain", "road", "drop", "increase", "complexity")


def over_pictures(verdicts: Sequence[Verdict]) -> Mapping[str, Interval]:
    """Means over pictures with intervals: the measures of `SUMMARISED`, and what is left after re-initialisation."""
    found = {
        name: mean_interval(np.array([float(getattr(one.faithfulness, name)) for one in verdicts]))
        for name in SUMMARISED
    }
    gates = [one.randomisation for one in verdicts if one.randomisation is not None]
    if gates:
        found["spearman_randomised"] = mean_interval(np.array([gate.spearman[-1] for gate in gates]))
        found["depends_on_learning"] = mean_interval(np.array([float(gate.depends_on_learning) for gate in gates]))
    return found
