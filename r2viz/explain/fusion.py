"""One map out of several layers' maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r2viz.geometry import interpolation
from r2viz.records import LayerMap


def fused(maps: Sequence[LayerMap], how: str) -> LayerMap:
    """The mean or maximum of several layers' maps, each after its ReLU and divided by its own maximum.

    It lies on the finest of the lattices; the others are interpolated at the places of its units, by where the units
    of each are centred. A constant map counts as zero. Without the division, the layer with the largest gradients
    would speak alone.
    """
    finest = max(maps, key=lambda map_: map_.raw.size)
    layers = []
    for map_ in maps:
        top = float(map_.positive.max())
        scaled = np.zeros_like(map_.positive) if map_.constant or top <= 0 else map_.positive / np.float32(top)
        rows, columns = (_at(finest, map_, axis) for axis in (0, 1))
        layers.append(rows @ scaled @ columns.T)
    stacked = np.stack(layers)
    raw = stacked.mean(axis=0) if how == "mean" else stacked.max(axis=0)
    return LayerMap(
        f"{how}({', '.join(map_.layer for map_ in maps)})",
        raw.astype(np.float32),
        finest.start,
        finest.jump,
        finest.registration,
        finest.gradient if len({map_.gradient for map_ in maps}) == 1 else "total",
    )


def _at(finest: LayerMap, map_: LayerMap, axis: int) -> np.ndarray:
    """Matrix that interpolates `map_`'s units at the places of `finest`'s units."""
    places = finest.start[axis] + np.arange(finest.raw.shape[axis]) * finest.jump[axis]
    return interpolation(map_.raw.shape[axis], (places - map_.start[axis]) / map_.jump[axis])
