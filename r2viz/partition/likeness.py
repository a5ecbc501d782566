"""Linear CKA between splits, of one network or of two: whether they tell the same pictures apart.

The samples are pictures, a split's features of one are the spatial means of its channels. Positions would be far more
samples, but dependent ones, and two networks' positions need not lie on one grid. With fewer pictures than channels the
usual estimate of CKA is near 1 for anything, so HSIC is the unbiased one (Song et al. 2012, equation 5), as the inner
product of U-centred kernels (Székely & Rizzo 2014).

Of at most `KEPT` pictures the means are kept: those with the smallest hashes of their numbers, so that memory is
bounded, the choice is the same on every machine and in every order, and two networks measured apart can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from r2viz.partition.intervals import GROUPS, jackknifed
from r2viz.partition.look import Look
from r2viz.partition.places import Block

KEPT = 512


@dataclass(eq=False)
class Likeness:
    """Spatial means of one block's channels for a fixed sample of pictures, in the order of their numbers."""

    block: Block
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    means: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, look: Look, means: np.ndarray) -> None:
        """Take some pictures in; `means` `(N, C)` are their maps' spatial means."""
        self._keep(look.index, means.astype(np.float32))

    def _keep(self, index: np.ndarray, means: np.ndarray) -> None:
        if len(self.index):
            index, means = np.concatenate([self.index, index]), np.concatenate([self.means, means])
        chosen = np.argsort(_hashed(index), kind="stable")[:KEPT]
        chosen = chosen[np.argsort(index[chosen], kind="stable")]
        self.index, self.means = index[chosen], means[chosen]

    def merge(self, other: Likeness) -> Likeness:
        """Of both."""
        result = Likeness(self.block, self.index, self.means)
        if len(other.index):
            result._keep(other.index, other.means)
        return result

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the block, to be sent elsewhere."""
        return {"index": self.index, "means": self.means}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        self.index, self.means = state["index"], state["means"]


def compared(first: Likeness, second: Likeness) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """CKA of every part of one block with every part of another (or the same), over the pictures that both kept.

    Returns:
        Values, low and high, `(parts, parts)` each, and the number of pictures; NaN below four pictures.
    """
    index, mine, theirs = np.intersect1d(first.index, second.index, assume_unique=True, return_indices=True)
    features = [first.means[mine][:, part.channels] for part in first.block.parts]
    features += [second.means[theirs][:, part.channels] for part in second.block.parts]
    kernels = [_kernel(one.astype(np.float64)) for one in features]
    group, size = index % GROUPS, len(first.block.parts)

    def matrix(groups: np.ndarray) -> np.ndarray:
        chosen = np.flatnonzero(groups[group])
        return cka([kernel[np.ix_(chosen, chosen)] for kernel in kernels])[:size, size:]

    value, low, high = jackknifed(matrix, np.bincount(group, minlength=GROUPS).tolist())
    return value, low, high, len(index)


def cka(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Unbiased linear CKA between all kernels `(n, n)` over the same n pictures; NaN where a kernel is constant."""
    count = len(kernels[0])
    if count < 4:
        return np.full((len(kernels), len(kernels)), np.nan)
    centred = np.stack([_u_centred(kernel).ravel() for kernel in kernels])
    products = centred @ centred.T
    own = np.sqrt(np.maximum(products.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(own, own)


def _kernel(features: np.ndarray) -> np.ndarray:
    mean = features.mean(axis=0)
    apart = features - mean  # changes nothing but rounding
    apart[:, features.std(axis=0) <= 1e-6 * np.abs(mean)] = 0  # constant, as far as float32 can tell
    return apart @ apart.T


def _u_centred(kernel: np.ndarray) -> np.ndarray:
    count = len(kernel)
    rest = kernel - np.diag(kernel.diagonal())
    rows = rest.sum(axis=0)
    found = rest - (rows[:, None] + rows[None]) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(found, 0)
    return found


def _hashed(index: np.ndarray) -> np.ndarray:
    """Splitmix64 of each number: uint64, different for different numbers."""
    with np.errstate(over="ignore"):
        mixed = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
