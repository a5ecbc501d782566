"""Class selectivity of splits: by how much the class that a channel likes best stands out among all.

Per channel, from the classes' means of its spatial mean: (μ_max - μ_rest) / (μ_max + μ_rest), μ_rest the mean of the
other classes' means (Morcos et al. 2018, arXiv 1803.06959, equation 1, without its ε: channels that are zero for all
classes are left out). Fit for what comes after a ReLU. Few pictures per class raise it, so it is also computed with
the labels in random order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from r2viz.partition.look import Look
from r2viz.partition.places import Block


@dataclass(eq=False)
class Classes:
    """Of one block's channels: sums of spatial means by (shuffled or not, group of pictures, class)."""

    block: Block
    keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    totals: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, look: Look, means: np.ndarray) -> None:
        """Take some pictures in; `means` `(N, C)` are their maps' spatial means."""
        assert look.labels is not None
        assert look.shuffled is not None
        for shuffled, labels in enumerate((look.labels, look.shuffled)):
            keys = np.stack([np.full(len(labels), shuffled), look.groups, labels], axis=1)
            self._gather(keys, np.ones(len(labels)), means)

    def _gather(self, keys: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> None:
        if len(self.keys):
            keys, counts = np.concatenate([self.keys, keys]), np.concatenate([self.counts, counts])
            totals = np.concatenate([self.totals, totals])
        self.keys, place = np.unique(keys, axis=0, return_inverse=True)
        self.counts = np.bincount(place.ravel(), counts, minlength=len(self.keys))
        self.totals = np.zeros((len(self.keys), totals.shape[1]))
        np.add.at(self.totals, place.ravel(), totals)

    def merge(self, other: Classes) -> Classes:
        """Of both."""
        result = Classes(self.block, self.keys, self.counts, self.totals)
        if len(other.keys):
            result._gather(other.keys, other.counts, other.totals)
        return result

    def selectivity(self, groups: np.ndarray, *, shuffled: bool) -> np.ndarray:
        """Of each part, from some groups' pictures: `(parts,)`; NaN with fewer than two classes."""
        chosen = (self.keys[:, 0] == shuffled) & groups[self.keys[:, 1]]
        classes, place = np.unique(self.keys[chosen, 2], return_inverse=True)
        if len(classes) < 2:
            return np.full(len(self.block.parts), np.nan)
        totals = np.zeros((len(classes), self.totals.shape[1]))
        np.add.at(totals, place.ravel(), self.totals[chosen])
        means = totals / np.bincount(place.ravel(), self.counts[chosen])[:, None]
        best = means.max(axis=0)
        rest = (means.sum(axis=0) - best) / (len(classes) - 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            each = (best - rest) / (best + rest)
        found = [each[part.channels] for part in self.block.parts]
        return np.array([one[np.isfinite(one)].mean() if np.isfinite(one).any() else np.nan for one in found])

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the block, to be sent elsewhere."""
        return {"keys": self.keys, "counts": self.counts, "totals": self.totals}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        self.keys, self.counts, self.totals = state["keys"], state["counts"], state["totals"]
