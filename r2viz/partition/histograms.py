"""Histograms of splits' values with fixed bins, eight per octave: what quantiles are read from, after any merge.

A float32's bits, without the lowest 20, number the bin: sign, exponent and three bits of the fraction. Zeros of both
signs, and what is too small for a normal number's first bin, are bin 0 of their sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from r2viz.partition.intervals import GROUPS
from r2viz.partition.look import Look
from r2viz.partition.places import Block

BINS = 2048
"""On each side of zero."""

_DROPPED = 20


@dataclass(eq=False)
class Histograms:
    """Of one block's splits by group of pictures: int64 `(groups, parts, 2 · BINS)`, from the most negative bin."""

    block: Block
    counts: np.ndarray

    @classmethod
    def empty(cls, block: Block) -> Histograms:
        """Without values."""
        return cls(block, np.zeros((GROUPS, len(block.parts), 2 * BINS), np.int64))

    def add(self, look: Look) -> None:
        """Take some pictures in."""
        flat = look.flat.to(torch.float32).transpose(1, 2)  # channels last: the order that ours come in
        bits = (flat if flat.is_contiguous() else flat.contiguous()).view(torch.int32)
        bins = look.scratch.like("bins", tuple(bits.shape), bits.stride(), bits)
        torch.bitwise_right_shift(bits, _DROPPED, out=bins)
        positive = int(bins.min()) >= 0
        if not positive:
            bins = torch.where(bins < 0, -(bins + BINS) - 1, bins) + BINS  # -1 - b: bin b of the negative side
        size = BINS if positive else 2 * BINS
        bins += torch.from_numpy(look.groups.astype(np.int32) * size).to(bins.device)[:, None, None]
        for number, part in enumerate(self.block.parts):
            cut = part.span if part.span is not None else torch.from_numpy(part.channels).to(bins.device)
            found = torch.bincount(bins[..., cut].reshape(-1), minlength=GROUPS * size)
            self.counts[:, number, -size:] += found.cpu().numpy().reshape(GROUPS, size)

    def merge(self, other: Histograms) -> Histograms:
        """Of both."""
        return Histograms(self.block, self.counts + other.counts)

    def of(self, number: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """Edges, counts and zeros of part `number`, cut to the bins with values; of some groups' pictures or all."""
        counts = self.counts[slice(None) if groups is None else groups, number].sum(axis=0)
        zeros = int(counts[BINS - 1 : BINS + 1].sum())
        counts[BINS - 1 : BINS + 1] = 0
        filled = np.flatnonzero(counts)
        if not len(filled):
            return np.zeros(1), np.zeros(0, np.int64), zeros
        first, last = int(filled[0]), int(filled[-1])
        return edges()[first : last + 2], counts[first : last + 1], zeros

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the block, to be sent elsewhere."""
        return {"counts": self.counts}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        self.counts = state["counts"]


def edges() -> np.ndarray:
    """Rising edges of all bins, float64 `(2 · BINS + 1,)`; the outermost ones are infinite or no numbers."""
    with np.errstate(invalid="ignore"):
        upper = (np.arange(BINS + 1, dtype=np.int64) << _DROPPED).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.concatenate([-upper[:0:-1], upper])
