"""One unit's effective receptive field: its map, its sizes, and what these are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from r2viz.errors import UnknownName, nearest
from r2viz.statistics import Interval, mean_interval

SHARES = (20, 30, 50, 95, 99)
"""Per cent of the map's mass that areas and squares are measured for."""

GOOD_FIT = 0.9
"""Least R² of a Gaussian fit whose full width at half maximum is given; below it the width describes no map."""


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None


Pair = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Gaussian:
    """The Gaussian of least squared distance to a map over the whole picture, axes along rows and columns, no offset.

    Attributes:
        centre: (y, x) in input pixels.
        sigma: (y, x) in input pixels.
        height: value at its centre, in the map's unit.
        r2: share of the map's variance over the picture that it explains.
    """

    centre: Pair
    sigma: Pair
    height: float
    r2: float

    @property
    def good(self) -> bool:
        """Whether the map looks like it: R² of at least `GOOD_FIT`."""
        return self.r2 >= GOOD_FIT

    @property
    def fwhm(self) -> float | None:
        """Full width at half maximum in pixels, 2.3548 · √(σ_y σ_x); None unless the fit is good."""
        return 2 * math.sqrt(2 * math.log(2) * self.sigma[0] * self.sigma[1]) if self.good else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "centre": list(self.centre),
            "sigma": list(self.sigma),
            "height": self.height,
            "r2": self.r2,
            "fwhm": self.fwhm,
        }


@dataclass(frozen=True)
class Sizes:
    """How large a map is; masses are linear, lengths in input pixels, areas in square pixels.

    Attributes:
        area: by per cent of the mass, the number of pixels of the smallest set that holds it.
        square: by per cent of the mass, the side of the smallest square that holds it, centred on the unit's centre;
            what lies beyond the picture holds nothing.
        sigma: root of the mean of the variances along rows and columns, about the mass's own centre.
        sigma_yx: roots of these variances.
        mass_centre: (y, x) of the mass.
        luo: root of the number of pixels above 1 - 0.9545 of the value at the unit's centre (Luo et al. 2016);
            NaN where that is zero.
        gaussian: the fit, where it was asked for and found.
    """

    area: Mapping[int, int]
    square: Mapping[int, float]
    sigma: float
    sigma_yx: Pair
    mass_centre: Pair
    luo: float
    gaussian: Gaussian | None = None

    def named(self) -> dict[str, float]:
        """All lengths by name: `side20` (root of the area) …, `square20` …, `sigma`, `luo`, and the fit's if good."""
        found = {f"side{share}": float(np.sqrt(area)) for share, area in self.area.items()}
        found |= {f"square{share}": float(side) for share, side in self.square.items()}
        found |= {"sigma": self.sigma, "luo": self.luo}
        if self.gaussian is not None and self.gaussian.fwhm is not None:
            found["fwhm"] = self.gaussian.fwhm
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "area": {str(share): area for share, area in self.area.items()},
            "square": {str(share): side for share, side in self.square.items()},
            "sigma": self.sigma,
            "sigma_yx": list(self.sigma_yx),
            "mass_centre": list(self.mass_centre),
            "luo": finite(self.luo),
            "gaussian": None if self.gaussian is None else self.gaussian.as_dict(),
        }


@dataclass(frozen=True)
class Reach:
    """What theory says of the measured unit, in input pixels, counting what lies beyond the picture.

    Attributes:
        min: size of the smallest path.
        max: from the first to the last pixel of any path; rows.
        box: what the unit can see, (y0, x0, y1, x1), the last ones exclusive.
        jump: (y, x) between units.
        aligned: whether all paths have one centre.
        unbounded: whether some path sees the whole picture; then the sizes hold for the others.
    """

    min: int
    max: int
    box: Box
    jump: Pair
    aligned: bool
    unbounded: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "min": self.min,
            "max": self.max,
            "box": list(self.box),
            "jump": list(self.jump),
            "aligned": self.aligned,
            "unbounded": self.unbounded,
        }


@dataclass(frozen=True, eq=False)
class Erf:
    """The effective receptive field of one unit of one feature map, averaged over inputs.

    Attributes:
        layer: tap name.
        unit: (row, column) in the feature map.
        centre: (y, x) where theory centres the unit, in input pixels; 0 is the centre of the first pixel.
        protocol: name in `r2viz.receptive.protocols.PROTOCOLS`; `definition` says in a sentence what was averaged.
        source: what the inputs were: pictures or noise.
        inputs: how many were averaged; `skipped` were left out because their gradient was not finite.
        input_size: (H, W).
        raw: float32 `(h, w)`, non-negative, in the protocol's own scale (see `definition`); only the part of the input
            that the unit can see. Everywhere else the map is zero.
        corner: (y, x) of `raw[0, 0]` in the input.
        computed_on: (y0, x0, y1, x1) of the input that the network was run on.
        theory: None where theory says nothing.
        sizes: of the mean map; None where it has no mass.
        each: by name as in `Sizes.named`, one value for each input, of that input's own map (NaN without mass).
        own_sizes: the sizes that the protocol itself defines, by name; None where its own search finds none.
        calibrated: number of inputs that batch normalisation was calibrated on; 0 for the network's own statistics.
        notes: plain remarks, such as that the input is too small.
    """

    layer: str
    unit: tuple[int, int]
    centre: Pair
    protocol: str
    definition: str
    source: str
    inputs: int
    skipped: int
    input_size: tuple[int, int]
    raw: np.ndarray
    corner: tuple[int, int]
    computed_on: tuple[int, int, int, int]
    theory: Reach | None
    sizes: Sizes | None
    each: Mapping[str, np.ndarray]
    own_sizes: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    calibrated: int = 0
    notes: tuple[str, ...] = ()

    @property
    def map(self) -> np.ndarray:
        """Over the whole input: float32 `(H, W)`."""
        whole = np.zeros(self.input_size, dtype=np.float32)
        (y, x), (height, width) = self.corner, self.raw.shape
        whole[y : y + height, x : x + width] = self.raw
        return whole

    @property
    def cropped(self) -> bool:
        """Whether the network was run on a part of the input only; the result is that of the whole."""
        return self.computed_on != (0, 0, *self.input_size)

    def interval(self, size: str) -> Interval:
        """Mean over inputs of a size of each input's own map, with its bootstrap interval.

        Not the size of the mean map: averaging fills the gaps between single inputs' gradients.

        Raises:
            UnknownName: no such size.
        """
        if size not in self.each:
            raise UnknownName(f"no size {size!r}{nearest(size, self.each)}; there are {', '.join(self.each)}")
        return mean_interval(self.each[size])

    def to_theory(self, size: str) -> float | None:
        """A size of the mean map over the largest theoretical one; None where either is missing or unbounded."""
        if self.theory is None or self.theory.unbounded or self.sizes is None:
            return None
        found = self._named(size)
        return None if found is None else found / self.theory.max

    def to_picture(self, size: str) -> float | None:
        """A size of the mean map over the picture's shorter side."""
        found = None if self.sizes is None else self._named(size)
        return None if found is None else found / min(self.input_size)

    def _named(self, size: str) -> float | None:
        named = {} if self.sizes is None else self.sizes.named()
        if size not in named and size != "fwhm":
            raise UnknownName(f"no size {size!r}{nearest(size, named)}; there are {', '.join(named)}")
        return named.get(size)

    def radial(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and cumulative mass by distance from the unit's centre.

        Returns:
            Distances in whole pixels from 0, the map's mean over the pixels that lie nearest to each, and the share of
            the mass up to there; all `(n,)`. Pixels beyond the picture do not count.
        """
        rows = np.arange(self.input_size[0])[:, None] - self.centre[0]
        columns = np.arange(self.input_size[1])[None] - self.centre[1]
        ring = np.rint(np.hypot(rows, columns)).astype(np.intp)
        mass = np.bincount(ring.ravel(), self.map.ravel().astype(np.float64))
        pixels = np.bincount(ring.ravel())
        total = mass.sum()
        share = np.cumsum(mass) / total if total > 0 else np.zeros_like(mass)
        return np.arange(len(mass)), mass / np.maximum(pixels, 1), share

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the map; sizes in pixels, and as ratios to theory and to the picture's shorter side."""
        named = {} if self.sizes is None else self.sizes.named()
        return {
            "layer": self.layer,
            "unit": list(self.unit),
            "centre": list(self.centre),
            "protocol": self.protocol,
            "definition": self.definition,
            "source": self.source,
            "inputs": self.inputs,
            "skipped": self.skipped,
            "input_size": list(self.input_size),
            "corner": list(self.corner),
            "computed_on": list(self.computed_on),
            "calibrated": self.calibrated,
            "theory": None if self.theory is None else self.theory.as_dict(),
            "sizes": None if self.sizes is None else self.sizes.as_dict(),
            "pixels": {name: finite(value) for name, value in named.items()},
            "to_theory": {name: finite(self.to_theory(name)) for name in named},
            "to_picture": {name: finite(self.to_picture(name)) for name in named},
            "each": {name: self.interval(name).as_dict() for name in self.each},
            "own_sizes": {name: finite(value) for name, value in self.own_sizes.items()},
            "notes": list(self.notes),
        }
