"""What the splits of Res2Net blocks carry, as frozen results: statistics, spectra, histograms, likeness. NumPy only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from r2viz.errors import UnknownName, nearest
from r2viz.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1

COLUMNS = ("model", "stage", "block", "split", "order", "kind", "tap", "statistic", "value", "low", "high", "n")
"""Of tables in long form."""

CASCADE = "cascade"
FIRST = "first of stage"
PASSED = "passed through"
CONTROL = "control group"
PERMUTED = "permuted group"

KINDS: Mapping[str, str] = MappingProxyType(
    {
        CASCADE: "convolved; from split 1 on the previous split's output is added first",
        PASSED: "the last split in code order (the first in the paper's equation): goes on as it came",
        FIRST: "in the first block of a stage: no split is added to another, and the last one is average-pooled",
        CONTROL: "no split: equal parts of a ResNet bottleneck's middle channels, in channel order",
        PERMUTED: "no split: the same parts of the middle channels in a random (seeded) order",
    }
)
"""What a group of channels is. Blocks of kind `FIRST` have no cascade: never average them with the others."""


@dataclass(frozen=True)
class Statistic:
    """A row of the table of statistics: what it is called, its unit (empty: a pure number), and what it means."""

    title: str
    unit: str
    definition: str


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "mean": Statistic("mean", "", "over channels and positions, mean over pictures"),
        "variance": Statistic(
            "variance", "", "of each channel over all positions of all pictures, mean over channels (divisor n)"
        ),
        "sparsity": Statistic("sparsity", "", "share of values at most ε, mean over pictures"),
        "dead": Statistic("dead channels", "", "share of channels that are at most ε at all positions of all pictures"),
        "energy": Statistic("energy share", "", "of the block's sum of squares before conv3, mean over pictures"),
        "energy_conv3": Statistic(
            "energy share after conv3",
            "",
            "of the sum over splits of |W_i y_i|², W_i being conv3's columns of the split, mean over pictures; what "
            "splits have in common (W_i y_i · W_j y_j) is left out",
        ),
        "participation_ratio": Statistic(
            "participation ratio", "dimensions", "(Σλ)² / Σλ², λ eigenvalues of the covariance over positions"
        ),
        "participation_share": Statistic("participation ratio / width", "", "comparable between splits of other width"),
        "effective_rank": Statistic("effective rank", "dimensions", "exp(-Σ p ln p), p = λ / Σλ"),
        "effective_share": Statistic("effective rank / width", "", "comparable between splits of other width"),
        "centroid": Statistic(
            "spectral centroid",
            "cycles per input pixel",
            "Σ |f| |F|² / Σ |F|² over the split's channels, each map less its mean, under a Hann window, f = 0 left "
            "out; mean over pictures",
        ),
        "centroid_shuffled": Statistic(
            "spectral centroid, pixels shuffled",
            "cycles per input pixel",
            "the same of the spectrum averaged over all orders of a map's pixels: what no structure gives on this grid",
        ),
        "correlation_length": Statistic(
            "autocorrelation length",
            "input pixels",
            "where the autocorrelation along rows and columns falls below 1/e, between lags by a straight line; known "
            "to one unit of the map at best; mean over pictures",
        ),
        "correlation_length_shuffled": Statistic(
            "autocorrelation length, pixels shuffled", "input pixels", "the same of the average over all orders"
        ),
        "selectivity": Statistic(
            "class selectivity",
            "",
            "(μ_max - μ_rest) / (μ_max + μ_rest) of the classes' means of a channel's spatial mean, mean over "
            "channels; many classes or few pictures raise it",
        ),
        "selectivity_shuffled": Statistic(
            "class selectivity, labels shuffled", "", "the same with the labels in a random (seeded) order"
        ),
        **{
            f"q{percent:02d}": Statistic(
                f"{percent} % quantile", "", "of all values, from a histogram of eight bins per octave"
            )
            for percent in (5, 25, 50, 75, 95)
        },
    }
)
"""All per-split statistics by name, in the order of tables."""


@dataclass(frozen=True)
class Split:
    """One group of channels inside one block of one network.

    Attributes:
        model: the network's name.
        stage: `layer3`; `block` counts within it from 0.
        split: number in code order, from 0.
        order: which order that is, and which of the paper's equation it is.
        kind: a name in `KINDS`.
        tap: `layer3.2.split1`, or for parts of a ResNet's channels `layer3.2.group1` and `layer3.2.permuted1`.
        path: of the block, `layer3.2`.
        width: number of channels.
        jump: (y, x) input pixels between neighbouring units; None where theory does not know.
        field: size of the largest theoretical receptive field in input pixels; None where theory does not know, or
            it is the whole picture.
    """

    model: str
    stage: str
    block: int
    split: int
    order: str
    kind: str
    tap: str
    path: str
    width: int
    jump: tuple[float, float] | None = None
    field: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "model": self.model,
            "stage": self.stage,
            "block": self.block,
            "split": self.split,
            "order": self.order,
            "kind": self.kind,
            "tap": self.tap,
            "path": self.path,
            "width": self.width,
            "jump": None if self.jump is None else list(self.jump),
            "field": self.field,
        }


@dataclass(frozen=True)
class Row:
    """One statistic of one split with its interval over pictures."""

    split: Split
    statistic: str
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, in long form; what is not finite becomes None."""
        at, found = self.split, self.interval.as_dict()
        return {
            "model": at.model,
            "stage": at.stage,
            "block": at.block,
            "split": at.split,
            "order": at.order,
            "kind": at.kind,
            "tap": at.tap,
            "statistic": self.statistic,
            "value": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "n": found["n"],
        }


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How the power of a split's maps is spread over spatial frequencies, averaged over pictures of equal weight.

    Attributes:
        frequency: float64 `(k,)`, cycles per input pixel, centres of rings of equal width.
        power: float64 `(k,)`, share of the power in each ring; sums to 1.
        low: float64 `(k,)`, lower end of the 95 % interval of the mean over pictures; `high` the upper.
        shuffled: float64 `(k,)`, the same shares with the pixels in all orders: flat up to the rings' areas.
    """

    split: Split
    frequency: np.ndarray
    power: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shuffled: np.ndarray
    n: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        curves = {name: _listed(getattr(self, name)) for name in ("frequency", "power", "low", "high", "shuffled")}
        return {"model": self.split.model, "tap": self.split.tap, **curves, "n": self.n}


@dataclass(frozen=True, eq=False)
class Histogram:
    """All values of a split.

    Attributes:
        edges: float64 `(k + 1,)`, rising; eight bins per octave on either side of zero.
        counts: int64 `(k,)`; a bin holds its edge nearer to zero.
        zeros: number of values that are zero (or closer to it than the first bin).
    """

    split: Split
    edges: np.ndarray
    counts: np.ndarray
    zeros: int

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum()) + self.zeros

    def quantile(self, share: float) -> float:
        """The value below which `share` of all lie, along a straight line inside a bin; NaN without values."""
        below = int(self.counts[self.edges[1:] <= 0].sum())
        target = share * self.total
        if self.total == 0:
            return math.nan
        if self.zeros and below <= target <= below + self.zeros:
            return 0.0
        if target > below:
            target -= self.zeros
        reached = np.cumsum(self.counts)
        place = min(int(np.searchsorted(reached, target)), len(self.counts) - 1)
        inside = self.counts[place]
        part = (target - (reached[place] - inside)) / inside if inside else 0.0
        low, high = self.edges[place : place + 2]
        return float(low + part * (high - low))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "model": self.split.model,
            "tap": self.split.tap,
            "edges": _listed(self.edges),
            "counts": [int(count) for count in self.counts],
            "zeros": self.zeros,
        }


@dataclass(frozen=True, eq=False)
class Likeness:
    """Linear CKA between the splits of two blocks (of one block with itself), over pictures.

    Attributes:
        rows: the splits along the first axis; `columns` those along the second.
        values: float64 `(len(rows), len(columns))`; unbiased, so that it may fall below 0 a little.
        low: of the 95 % interval over pictures, the same shape; `high` its upper end.
        n: number of pictures.
    """

    rows: tuple[Split, ...]
    columns: tuple[Split, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int

    @property
    def between(self) -> bool:
        """Whether two networks are compared."""
        return self.rows[0].model != self.columns[0].model

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "rows": [[split.model, split.tap] for split in self.rows],
            "columns": [[split.model, split.tap] for split in self.columns],
            "values": [_listed(row) for row in self.values],
            "low": [_listed(row) for row in self.low],
            "high": [_listed(row) for row in self.high],
            "n": self.n,
        }


@dataclass(frozen=True, eq=False)
class Network:
    """What was looked into.

    Attributes:
        model: name in the table; `title` is what a figure calls it.
        weights: kind, source, sha256, note.
        preprocess: what was done to the pictures before the network saw them.
        splits: all groups of channels, in the network's order.
    """

    model: str
    title: str
    weights: Mapping[str, str]
    seed: int | None
    preprocess: Mapping[str, Any]
    splits: tuple[Split, ...]

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that numbers show the architecture and no learning."""
        return self.weights.get("kind") == "random"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "model": self.model,
            "title": self.title,
            "weights": dict(self.weights),
            "seed": self.seed,
            "preprocess": dict(self.preprocess),
            "splits": [split.as_dict() for split in self.splits],
        }


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """Statistics of the splits of one network, or of two over the same pictures (the baseline first).

    Attributes:
        rows: one for each split and statistic.
        spectra, histograms: one for each split, where they were asked for.
        likenesses: of the splits of each block, and of blocks of equal place in two networks.
        pictures: how many; `pictures_sha256` is a digest of all of theirs, in order.
        settings: what was asked for: statistics, ε, seed, number of groups of the intervals.
        versions: of r2viz and the libraries that computed.
        device: where it was computed; `dtype` in what.
        notes: plain remarks.
    """

    networks: tuple[Network, ...]
    rows: tuple[Row, ...]
    pictures: int
    spectra: tuple[Spectrum, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    pictures_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    notes: tuple[str, ...] = ()

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics there are, in the rows' order."""
        return tuple(dict.fromkeys(row.statistic for row in self.rows))

    @property
    def random(self) -> bool:
        """Whether any network has random weights."""
        return any(network.random for network in self.networks)

    def select(
        self, statistic: str, *, model: str | None = None, kinds: Sequence[str] | None = None
    ) -> tuple[Row, ...]:
        """The rows of one statistic, of one network or all, of some kinds of splits or all.

        Raises:
            UnknownName: the record has no such statistic.
        """
        if statistic not in self.statistics:
            known = ", ".join(self.statistics)
            raise UnknownName(
                f"the record has no statistic {statistic!r}{nearest(statistic, self.statistics)}; it has {known}",
                code="unknown_name.statistic",
            )
        return tuple(
            row
            for row in self.rows
            if row.statistic == statistic
            and (model is None or row.split.model == model)
            and (kinds is None or row.split.kind in kinds)
        )

    def frame(self) -> pd.DataFrame:
        """Long form: model, stage, block, split, order, kind, tap, statistic, value, low, high, n."""
        import pandas as pd

        frame = pd.DataFrame.from_records([row.as_dict() for row in self.rows], columns=COLUMNS)
        return frame.astype(dict.fromkeys(("value", "low", "high"), np.float64))

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides the result: pictures, weights, options, versions. Not device, not time."""
        decides = {
            "schema": SCHEMA,
            "pictures": [self.pictures, self.pictures_sha256],
            "networks": [
                [one.model, one.weights.get("sha256", ""), dict(one.preprocess), [split.tap for split in one.splits]]
                for one in self.networks
            ],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what is not finite is None."""
        return {
            "schema": SCHEMA,
            "kind": "splits",
            "digest": self.digest,
            "networks": [network.as_dict() for network in self.networks],
            "pictures": self.pictures,
            "pictures_sha256": self.pictures_sha256,
            "rows": [row.as_dict() for row in self.rows],
            "spectra": [one.as_dict() for one in self.spectra],
            "histograms": [one.as_dict() for one in self.histograms],
            "likenesses": [one.as_dict() for one in self.likenesses],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "device": self.device,
            "dtype": self.dtype,
            "notes": list(self.notes),
        }


def _listed(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
