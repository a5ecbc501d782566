"""One map held against one object: every measure that a single picture gives, and what chance would give beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from r2viz.coverage.region import Region
from r2viz.errors import BadRegion

CELLS = 5
PRECISION = 0.8
_TOLERANCE = 15 / 500
_KMEANS_PIXELS = 2000


@dataclass(frozen=True, eq=False)
class Held:
    """A map `(H, W)`, non-negative and NaN where the network saw nothing, over a picture with an object.

    What was not seen belongs to nothing: mass, areas and ranks are counted over seen pixels, as in `energy_inside`.
    Boxes are the exception: they lie over the picture, and what was not seen is above no threshold.
    A constant map (zero, or one value) says nothing of where the object is. It stays in every mean: it misses where a
    place is asked for, and gets what an even map would where a share is.

    Raises:
        BadRegion: map and region differ in size, or the map is negative somewhere.
    """

    map: np.ndarray
    region: Region

    def __post_init__(self) -> None:
        if self.map.shape != self.region.mask.shape:
            sizes = (
                " x ".join(str(side) for side in shape[::-1]) for shape in (self.map.shape, self.region.mask.shape)
            )
            raise BadRegion("the map is {}, but the region's picture is {}; lay the map over it first".format(*sizes))
        if self.map.size and np.nanmin(np.where(np.isfinite(self.map), self.map, 0)) < 0:
            raise BadRegion("the map has negative values; measures take its positive part: np.maximum(map, 0)")

    @cached_property
    def seen(self) -> np.ndarray:
        """Boolean `(H, W)`: where the network saw the picture."""
        return np.isfinite(self.map)

    @cached_property
    def values(self) -> np.ndarray:
        """The map where it was seen, float64 `(n,)`."""
        return self.map[self.seen].astype(np.float64)

    @cached_property
    def inside(self) -> np.ndarray:
        """Whether each seen pixel belongs to the object, `(n,)`."""
        return self.region.mask[self.seen]

    @cached_property
    def constant(self) -> bool:
        """Whether the map has one value wherever it was seen, or nothing was."""
        return not self.values.size or float(np.ptp(self.values)) == 0

    @cached_property
    def area(self) -> float:
        """The object's share of the seen pixels, `a = |M| / HW`; NaN when nothing was seen."""
        return float(self.inside.mean()) if self.inside.size else float("nan")

    @cached_property
    def near(self) -> np.ndarray:
        """Whether each seen pixel lies within the pointing game's tolerance of the object, `(n,)`."""
        import cv2

        away = cv2.distanceTransform((~self.region.mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return away[self.seen] < max(1.0, _TOLERANCE * max(self.map.shape))

    @cached_property
    def top(self) -> np.ndarray:
        """How far each seen pixel belongs to the map's strongest |M|: 1, 0, or for ties their common share, `(n,)`."""
        size = int(self.inside.sum())
        if size == 0:
            return np.zeros(self.values.size)
        least = np.partition(self.values, self.values.size - size)[self.values.size - size]
        above, tied = self.values > least, self.values == least
        return above + tied * ((size - above.sum()) / tied.sum())

    @cached_property
    def part_coverage(self) -> np.ndarray:
        """How far the map's strongest |M| pixels cover each part of the object, `(k,)`; empty where none was seen."""
        if not self.inside.any():
            return np.zeros(0)
        cells = part_cells(self.region.mask & self.seen)
        return np.bincount(cells, weights=self.top[self.inside]) / np.bincount(cells)


def pointing(held: Held) -> float:
    """Whether the map's maximum lies in the object or near it; ties give their share of hits, a constant map 0."""
    return 0.0 if held.constant else float(held.near[held.values == held.values.max()].mean())


def pointing_chance(held: Held) -> float:
    """The hit rate of a random pixel."""
    return float(held.near.mean()) if held.near.size else float("nan")


def energy(held: Held) -> float:
    """`Σ_M S / Σ S`; for a map without mass what an even one has, `|M| / HW`."""
    total = float(held.values.sum())
    return float(held.values[held.inside].sum()) / total if total > 0 else held.area


def leakage(held: Held) -> float:
    """`1 − Σ_M S / Σ S`: the share of the map's mass beside the object."""
    return 1 - energy(held)


def energy_gain(held: Held) -> float:
    """`Σ_M S / Σ S − |M| / HW`: above 0 where the map prefers the object."""
    return energy(held) - held.area


def area_coverage(held: Held) -> float:
    """The share of the object that the map's |M| strongest pixels cover; ties at their expected value."""
    return float(held.top[held.inside].mean()) if held.inside.any() else float("nan")


def area_coverage_gain(held: Held) -> float:
    """Area-matched coverage above chance, `c − a`; unlike `(c − a) / (1 − a)` it stays bounded for big objects."""
    return area_coverage(held) - held.area


def coverage_at_precision(held: Held) -> float:
    """The largest share of the object above any threshold above which at least 80 % is object; 0 where none is."""
    size = int(held.inside.sum())
    if size == 0:
        return float("nan")
    order = np.argsort(-held.values, kind="stable")
    ranked, hits = held.values[order], np.cumsum(held.inside[order])
    # A threshold takes all pixels of one value or none.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    # A threshold at zero takes in what the map does not claim.
    ends = ends[ranked[ends] > 0]
    enough = ends[hits[ends] >= PRECISION * (ends + 1)]
    return float(hits[enough].max() / size) if enough.size else 0.0


def coverage_at_precision_chance(held: Held) -> float:
    """An even map covers all of an object that fills 80 % of the picture, and nothing of a smaller one."""
    return float(held.area >= PRECISION)


def evenness(held: Held) -> float:
    """`exp(H(S|M)) / |M|`: how many pixels the map spreads over inside the object, as a share of it; 0 without mass."""
    within = held.values[held.inside]
    if within.size == 0:
        return float("nan")
    share = within[within > 0] / within.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / within.size) if share.size else 0.0


def least_part(held: Held) -> float:
    """Coverage of that one of the object's parts which is covered least, by the map's |M| strongest pixels."""
    parts = held.part_coverage
    return float(parts.min()) if parts.size else float("nan")


def parts_covered(held: Held) -> float:
    """The share of the object's parts of which at least half is covered by the map's |M| strongest pixels."""
    parts = held.part_coverage
    return float((parts >= 0.5).mean()) if parts.size else float("nan")


def parts_covered_chance(held: Held) -> float:
    """An even map covers each part to `|M| / HW`."""
    return float(held.area >= 0.5)


def part_cells(mask: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """K-means cells of a mask's pixels, in the order of reading: int `(|M|,)`, each of 0..k-1 at least once.

    Deterministic: centres start at the pixel nearest to the centroid and go on with the pixel farthest from those
    there are. Objects beyond 2,000 pixels are clustered on every n-th and assigned whole.
    """
    from scipy.cluster.vq import kmeans2, vq

    points = np.argwhere(mask).astype(np.float64)
    some = points[:: -(-len(points) // _KMEANS_PIXELS)]
    away = ((some - some.mean(axis=0)) ** 2).sum(axis=1)
    centres = [some[int(away.argmin())]]
    away = ((some - centres[0]) ** 2).sum(axis=1)
    while len(centres) < cells and away.max() > 0:
        centres.append(some[int(away.argmax())])
        away = np.minimum(away, ((some - centres[-1]) ** 2).sum(axis=1))
    found, _ = kmeans2(some, np.array(centres), minit="matrix", missing="raise")
    return np.unique(vq(points, found)[0], return_inverse=True)[1]


def centre_gaussian(size: tuple[int, int], *, sigma: float = 0.25) -> np.ndarray:
    """The baseline that knows no picture: a Gaussian at the centre of `(H, W)`, float32, largest value 1.

    `sigma` is a share of each side. Boxes at thresholds do not depend on it, shares of mass do.
    """
    bells = [np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (sigma * side)) ** 2) for side in size]
    return np.outer(*bells).astype(np.float32)
