"""What one block shows of a few pictures, and memory that is used again for the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from r2viz.errors import ModelError
from r2viz.partition.intervals import GROUPS


@dataclass
class Scratch:
    """Working memory by name. Fresh memory costs more than what is computed in it (touching it for the first time)."""

    held: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def like(self, name: str, shape: tuple[int, ...], strides: tuple[int, ...], example: Tensor) -> Tensor:
        """Uninitialised, dense in the order of `strides`, of the example's type and device."""
        size, key = math.prod(shape), (name, example.dtype)
        kept = self.held.get(key)
        if kept is None or kept.numel() < size or kept.device != example.device:
            kept = self.held[key] = torch.empty(size, dtype=example.dtype, device=example.device)
        return kept[:size].as_strided(shape, strides)


@dataclass(frozen=True, eq=False)
class Look:
    """Some pictures' features in front of a block's `conv3`.

    Attributes:
        values: `(N, C, H, W)`, float32 or float64.
        index: int64 `(N,)`, the pictures' numbers in the whole data set.
        labels: int64 `(N,)`, their classes, and `shuffled` those in random order; None without labels.
        input_size: (H, W) of the network's input.
    """

    values: Tensor
    index: np.ndarray
    scratch: Scratch
    input_size: tuple[int, int]
    labels: np.ndarray | None = None
    shuffled: np.ndarray | None = None

    @property
    def flat(self) -> Tensor:
        """`(N, C, H·W)`, the same memory in whichever order it lies."""
        return self.values.flatten(2)

    @property
    def groups(self) -> np.ndarray:
        """Each picture's group, for intervals."""
        return self.index % GROUPS

    def buffer(self, name: str) -> Tensor:
        """Scratch `(N, C, H·W)` in the order that `flat` has."""
        flat = self.flat
        return self.scratch.like(name, tuple(flat.shape), torch.empty_like(flat, device="meta").stride(), flat)


@dataclass
class PerPicture:
    """One number for each picture and column: int64 `(n,)` numbers of pictures, float32 `(n, k)` values."""

    index: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)

    def add(self, index: np.ndarray, values: np.ndarray) -> None:
        """Values `(N, k)` of some more pictures."""
        self.index.append(np.asarray(index, dtype=np.int64))
        self.values.append(values.astype(np.float32))

    def merged(self, other: PerPicture) -> PerPicture:
        """Of both."""
        return PerPicture([*self.index, *other.index], [*self.values, *other.values])

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """All, by the pictures' numbers, so that the order of measuring does not count.

        Raises:
            ModelError: a picture came twice.
        """
        if not self.index:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        index, values = np.concatenate(self.index), np.concatenate(self.values)
        order = np.argsort(index, kind="stable")
        index, values = index[order], values[order]
        twice = index[1:][index[1:] == index[:-1]]
        if len(twice):
            raise ModelError(
                f"picture number {int(twice[0])} was measured twice; give each shard's first number with first=N"
            )
        return index, values
