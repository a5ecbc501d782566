"""What a network loses without one of its splits, picture by picture, as frozen results. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r2viz.errors import UnknownName, nearest
from r2viz.split_records import Split
from r2viz.statistics import Interval, stratified_intervals

if TYPE_CHECKING:
    import pandas as pd

CAUSAL_SCHEMA = 1

Level = Literal["split", "block", "stage"]


@dataclass(frozen=True)
class Intervention:
    """A row of the table of interventions.

    Attributes:
        value: what takes the place of a split's output y_i: `zero`, `mean`, `shuffle`; `link`: y_i without y_{i-1}.
        cascade: whether the later splits of the block are computed again from it; else only `conv3` is given it.
        control: whether it can be done to a group of a ResNet's channels, which have no cascade.
        definition: one sentence.
    """

    value: Literal["zero", "mean", "shuffle", "link"]
    cascade: bool
    control: bool
    definition: str


INTERVENTIONS: Mapping[str, Intervention] = MappingProxyType(
    {
        "zero": Intervention(
            "zero", True, True, "the split's output is 0, for conv3 and for the splits that it is added to"
        ),
        "mean": Intervention(
            "mean", True, True, "each channel of the split's output is its mean over pictures and positions, for both"
        ),
        "shuffle": Intervention(
            "shuffle", True, True, "the channels of the split's output are in a random (seeded) order, for both"
        ),
        "zero_direct": Intervention(
            "zero", False, False, "the split's output is 0 for conv3 only; the next split still gets it"
        ),
        "mean_direct": Intervention(
            "mean", False, False, "each channel is its mean for conv3 only; the next split still gets what it was"
        ),
        "cut": Intervention(
            "link", True, False, "the previous split's output is not added to this split's input: y_i = K_i(x_i)"
        ),
    }
)
"""All interventions by name. Where nothing is added to another split (the first block of a stage, the last two splits)
`zero` and `zero_direct` are the same, and so are the means; links are into splits 1 … s-2 of the other blocks."""

EFFECTS: Mapping[str, str] = MappingProxyType(
    {
        "logit": "change of the target's logit, after less before",
        "probability": "change of the target's probability, after less before",
        "accuracy": "change of the share of pictures whose label is the network's top-1, after less before",
        "map": "1 - Spearman's rank correlation of the Grad-CAM maps (signed, unscaled) before and after, same target",
    }
)
"""What an intervention may change; means over pictures, with intervals over pictures."""

CAUSAL_COLUMNS = (
    "model", "stage", "block", "split", "kind", "tap", "intervention", "effect", "value", "low", "high", "n",
)  # fmt: skip
"""Of tables in long form; `block`, `split` and `tap` are missing where a row speaks of more than one."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What one intervention on one split did to each of N pictures.

    Attributes:
        logit: float64 `(N,)`, change of the target's logit; `probability` of its probability.
        correct: bool `(N,)`, whether the label is the top-1 afterwards; None without labels.
        map: float64 `(N,)`, 1 - Spearman of the maps, NaN where one is constant; None where not asked for.
    """

    split: Split
    intervention: str
    logit: np.ndarray
    probability: np.ndarray
    correct: np.ndarray | None = None
    map: np.ndarray | None = None


@dataclass(frozen=True)
class CausalRow:
    """One effect with its interval over pictures: of a split, or the mean of those of one kind in a block or stage."""

    model: str
    stage: str
    block: int | None
    split: int | None
    kind: str
    tap: str | None
    intervention: str
    effect: str
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, in long form; what is not finite becomes None."""
        found = self.interval.as_dict()
        plain = {name: getattr(self, name) for name in CAUSAL_COLUMNS[:8]}
        return {**plain, "value": found["mean"], "low": found["low"], "high": found["high"], "n": found["n"]}


@dataclass(frozen=True, eq=False)
class CausalRecord:
    """Interventions on the splits of one network over N pictures.

    Attributes:
        effects: one for each block, split and intervention, in the network's order.
        target: int64 `(N,)`, the class whose logit is followed.
        logit: float64 `(N,)`, of the target, before; `probability` likewise.
        labels: int64 `(N,)`, None where there are none; `correct` bool `(N,)`, whether the top-1 is the label, before.
        map_layer: whose Grad-CAM maps were compared; None: no maps.
        settings: what was asked for: interventions, seed, where the targets come from.
        device: where it was computed; `dtype` in what.
        notes: plain remarks, say, what has no links to cut.
    """

    effects: tuple[Effect, ...]
    target: np.ndarray
    logit: np.ndarray
    probability: np.ndarray
    labels: np.ndarray | None = None
    correct: np.ndarray | None = None
    map_layer: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        """How many."""
        return len(self.target)

    @property
    def interventions(self) -> tuple[str, ...]:
        """Names of those that were done, in the effects' order."""
        return tuple(dict.fromkeys(effect.intervention for effect in self.effects))

    def of(self, tap: str, intervention: str) -> Effect:
        """The effect of one intervention on one split, `layer3.2.split1`.

        Raises:
            UnknownName: it was not done there.
        """
        for effect in self.effects:
            if (effect.split.tap, effect.intervention) == (tap, intervention):
                return effect
        done = [f"{effect.split.tap} {effect.intervention}" for effect in self.effects]
        asked = f"{tap} {intervention}"
        raise UnknownName(f"the record has no effect {asked!r}{nearest(asked, done)}", code="unknown_name.intervention")

    def changes(self, effect: Effect) -> Iterator[tuple[str, np.ndarray]]:
        """Names in `EFFECTS` with float64 `(N,)`; a picture's accuracy changes by -1, 0 or 1."""
        yield "logit", effect.logit
        yield "probability", effect.probability
        if effect.correct is not None and self.correct is not None:
            yield "accuracy", effect.correct.astype(np.float64) - self.correct
        if effect.map is not None:
            yield "map", effect.map

    def rows(self, by: Level = "split") -> tuple[CausalRow, ...]:
        """Effects with intervals over pictures, of each split, or averaged picture by picture within a block or stage.

        Averages never mix kinds of splits (`r2viz.split_records.KINDS`): a stage's first block stands apart, and so
        does the split that is passed through.
        """
        groups: dict[tuple[Any, ...], list[np.ndarray]] = {}
        for one in self.effects:
            at = one.split
            block = None if by == "stage" else at.block
            split, tap = (at.split, at.tap) if by == "split" else (None, None)
            for name, values in self.changes(one):
                key = (at.model, at.stage, block, split, at.kind, tap, one.intervention, name)
                groups.setdefault(key, []).append(values)
        everyone = {"": np.ones(self.pictures, bool)}
        means = {str(number): np.mean(values, axis=0) for number, values in enumerate(groups.values())}
        found = stratified_intervals(means, everyone)
        named = (dict(zip(CAUSAL_COLUMNS[:8], key, strict=True)) for key in groups)
        return tuple(CausalRow(**key, interval=found[str(number), ""]) for number, key in enumerate(named))

    def frame(self, by: Level | Sequence[Level] = "split") -> pd.DataFrame:
        """`rows` in long form: model, stage, block, split, kind, tap, intervention, effect, value, low, high, n."""
        import pandas as pd

        levels = (by,) if isinstance(by, str) else by
        rows = [row.as_dict() for level in levels for row in self.rows(level)]
        frame = pd.DataFrame.from_records(rows, columns=CAUSAL_COLUMNS)
        whole = dict.fromkeys(("block", "split"), "Int64")
        return frame.astype({**whole, **dict.fromkeys(("value", "low", "high"), np.float64)})

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, per split; pictures are counted, not listed."""
        return {
            "schema": CAUSAL_SCHEMA,
            "kind": "causal",
            "pictures": self.pictures,
            "accuracy": None if self.correct is None else float(self.correct.mean()),
            "rows": [row.as_dict() for row in self.rows()],
            "map_layer": self.map_layer,
            "settings": dict(self.settings),
            "device": self.device,
            "dtype": self.dtype,
            "notes": list(self.notes),
        }
