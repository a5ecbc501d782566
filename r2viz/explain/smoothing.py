"""Test-time augmentation: the mean map over flips and zooms of a picture, made in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from r2viz.receptive.theory import Grid


@dataclass(frozen=True)
class Variant:
    """A picture flipped left to right, and enlarged `zoom` times about its centre (below 1: its mirror images show)."""

    flip: bool = False
    zoom: float = 1.0

    def of(self, batch: Tensor) -> Tensor:
        """`(N, 3, H, W)` of the same size."""
        if self.zoom != 1:
            scale = torch.tensor([[1 / self.zoom, 0, 0], [0, 1 / self.zoom, 0]], dtype=torch.float32)
            grid = F.affine_grid(scale.expand(len(batch), 2, 3), list(batch.shape), align_corners=False)
            grid = grid.to(batch.device, batch.dtype)
            batch = F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
        return batch.flip(3) if self.flip else batch

    def at(self, positions: Tensor, side: int, *, columns: bool) -> Tensor:
        """Where the pixels at `positions` of the picture are in the variant; both in pixels, 0-based centres."""
        centre = (side - 1) / 2
        moved = centre + self.zoom * (positions - centre)
        return side - 1 - moved if self.flip and columns else moved


VARIANTS = (
    Variant(),
    Variant(flip=True),
    Variant(zoom=0.8),
    Variant(flip=True, zoom=0.8),
    Variant(zoom=1.25),
    Variant(flip=True, zoom=1.25),
)
"""The picture itself comes first: what is said of its classes is said of it alone."""


def varied(batch: Tensor) -> Tensor:
    """`(N, 3, H, W)` -> `(V · N, 3, H, W)`, variant by variant."""
    return torch.cat([variant.of(batch) for variant in VARIANTS])


def merged(maps: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    """The mean of the variants' maps `(V · N, h, w)`, laid back onto the picture's own lattice: `(N, h, w)`.

    A unit counts the variants in which it lies inside the picture.

    Args:
        maps: as a network gave them for `varied`.
        grid: where the units of a map sit, in input pixels.
        size: (H, W) of the input.
    """
    by_variant = maps.view(len(VARIANTS), -1, *maps.shape[1:])
    total, count = torch.zeros_like(by_variant[0]), torch.zeros_like(by_variant[0, :1])
    for variant, found in zip(VARIANTS, by_variant, strict=True):
        rows, rows_inside = _places(variant, grid, found.shape[1], size[0], 0)
        columns, columns_inside = _places(variant, grid, found.shape[2], size[1], 1)
        inside = (rows_inside[:, None] & columns_inside[None, :]).to(maps)
        laid = rows.to(maps) @ found @ columns.to(maps).T
        total += laid * inside
        count += inside
    return total / count.clamp(min=1)


def _places(variant: Variant, grid: Grid, units: int, side: int, axis: int) -> tuple[Tensor, Tensor]:
    """A matrix `(units, units)` that interpolates the variant's units at the picture's, and which of them it saw."""
    own = grid.start[axis] + torch.arange(units, dtype=torch.float64) * grid.jump[axis]
    moved = variant.at(own, side, columns=axis == 1)
    inside = (moved >= -0.5) & (moved <= side - 0.5)
    at = ((moved - grid.start[axis]) / grid.jump[axis]).clamp(0, units - 1)
    lower = at.floor().clamp(max=max(units - 2, 0)).long()
    weight = at - lower
    matrix = torch.zeros(units, units, dtype=torch.float64)
    rows = torch.arange(units)
    matrix[rows, lower] += 1 - weight
    if units > 1:
        matrix[rows, lower + 1] += weight
    return matrix, inside | (own < -0.5) | (own > side - 0.5)
