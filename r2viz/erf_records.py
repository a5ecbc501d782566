"""Effective receptive fields as frozen results: maps, sizes and what they hold against. NumPy only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from r2viz.errors import UnknownName, nearest
from r2viz.statistics import Interval, mean_interval

ERF_SCHEMA = 1

SHARES = (20, 30, 50, 95, 99)
"""Per cent of the map's mass that areas and squares are measured for."""

GOOD_FIT = 0.9
"""Least R² of a Gaussian fit whose full width at half maximum is given; below it the width describes no map."""

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
        luo: root of the number of pixels above 1 - 0.9545 of the value at the unit's centre (Luo et al. 2016).
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
            "luo": self.luo,
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
            "computed_on": list(self.computed_on),
            "calibrated": self.calibrated,
            "theory": None if self.theory is None else self.theory.as_dict(),
            "sizes": None if self.sizes is None else self.sizes.as_dict(),
            "pixels": named,
            "to_theory": {name: self.to_theory(name) for name in named},
            "to_picture": {name: self.to_picture(name) for name in named},
            "each": {name: self.interval(name).as_dict() for name in self.each},
            "own_sizes": dict(self.own_sizes),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class ErfView:
    """One network's effective receptive fields.

    Attributes:
        model: name in the table; `title` is what a figure calls it.
        weights: kind, source, sha256, note.
        seed: of random weights.
        preprocess: what was done to pictures before the network saw them; empty for noise and for given tensors.
        erfs: of pictures, then of noise where there are both; of every layer in order; of every unit in order.
    """

    model: str
    title: str
    weights: Mapping[str, str]
    seed: int | None
    preprocess: Mapping[str, Any]
    erfs: tuple[Erf, ...]

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that the field is that of the architecture before any learning."""
        return self.weights["kind"] == "random"

    def at(self, layer: str, *, unit: tuple[int, int] | None = None, source: str | None = None) -> Erf:
        """The field at `layer`: the first unit's, of pictures where there are both, unless named.

        Raises:
            UnknownName: the record has none such.
        """
        found = [erf for erf in self.erfs if erf.layer == layer]
        if not found:
            known = list(dict.fromkeys(erf.layer for erf in self.erfs))
            raise UnknownName(f"the record has no layer {layer!r}{nearest(layer, known)}; it has {', '.join(known)}")
        for erf in found:
            if unit in (None, erf.unit) and source in (None, erf.source):
                return erf
        known = list(dict.fromkeys(f"{erf.unit} of {erf.source}" for erf in found))
        asked = " of ".join(str(part) for part in (unit, source) if part is not None)
        raise UnknownName(f"the record has no field of {asked} at {layer!r}; it has {', '.join(known)}")


@dataclass(frozen=True)
class Inputs:
    """What was averaged over, so that it can be had again.

    Attributes:
        pictures: (name, sha256) of each, in order; as in `Picture`. Given tensors have the name "<tensor>".
        noise: how many inputs of independent standard normal noise, made from `seed`.
        left_out: (name, reason) of pictures that could not be used.
    """

    pictures: tuple[tuple[str, str], ...] = ()
    noise: int = 0
    seed: int | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "pictures": [{"name": name, "sha256": sha256} for name, sha256 in self.pictures],
            "noise": self.noise,
            "seed": self.seed,
            "left_out": [{"name": name, "error": error} for name, error in self.left_out],
        }


@dataclass(frozen=True, eq=False)
class ErfRecord:
    """Effective receptive fields of one network, or of two on the same inputs (the baseline first).

    Attributes:
        protocol: name in `r2viz.receptive.protocols.PROTOCOLS`; `protocol_title` is what a figure calls it.
        source: what the inputs were: "pictures", "noise" or "both", which are measured apart (see `Erf.source`).
        input_size: (H, W) of the networks' inputs.
        versions: of r2viz and the libraries that computed.
        device: where it was computed; `dtype` in what.
        notes: plain remarks on the whole; those on one field are its own.
        settings: options of the computation that departed from their defaults.
    """

    views: tuple[ErfView, ...]
    protocol: str
    protocol_title: str
    source: str
    input_size: tuple[int, int]
    inputs: Inputs
    versions: Mapping[str, str]
    device: str
    dtype: str
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order asked for."""
        return tuple(dict.fromkeys(erf.layer for erf in self.views[0].erfs))

    @property
    def keys(self) -> tuple[str, ...]:
        """A distinct name for each view: the network's, numbered where one stands beside itself (`x#1`, `x#2`)."""
        names = [view.model for view in self.views]
        return tuple(f"{name}#{n + 1}" if names.count(name) > 1 else name for n, name in enumerate(names))

    @property
    def random(self) -> bool:
        """Whether any network has random weights."""
        return any(view.random for view in self.views)

    def view(self, name: str) -> ErfView:
        """The view of that name in `keys`, or of that network (then the first).

        Raises:
            UnknownName: there is none.
        """
        for key, view in zip(self.keys, self.views, strict=True):
            if name in (key, view.model):
                return view
        raise UnknownName(
            f"the record has no network {name!r}{nearest(name, self.keys)}; it has {', '.join(self.keys)}"
        )

    def ratios(self, size: str) -> tuple[Interval | None, ...]:
        """The second network's size over the first's, for each of the views' `erfs`, with its interval over inputs.

        The geometric mean of the ratios of each input's own maps; the networks saw the same inputs, so that what
        differs between inputs cancels. None with one network, or where one of the two left inputs out.
        """
        if len(self.views) != 2:
            return tuple(None for _ in self.views[0].erfs)
        first, second = self.views
        return tuple(_ratio(*both, size) for both in zip(first.erfs, second.erfs, strict=True))

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides the result: inputs, weights, options, versions. Not device, not time."""
        decides = {
            "schema": ERF_SCHEMA,
            "views": [[view.model, view.weights["sha256"], dict(view.preprocess), _asked(view)] for view in self.views],
            "protocol": self.protocol,
            "source": self.source,
            "input_size": self.input_size,
            "inputs": [self.inputs.pictures, self.inputs.noise, self.inputs.seed],
            "versions": dict(self.versions),
            "settings": dict(self.settings),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the maps; numbers are not rounded."""
        return {
            "schema": ERF_SCHEMA,
            "kind": "erf",
            "digest": self.digest,
            "protocol": self.protocol,
            "protocol_title": self.protocol_title,
            "source": self.source,
            "input_size": list(self.input_size),
            "inputs": self.inputs.as_dict(),
            "layers": list(self.layers),
            "views": [
                {
                    "key": key,
                    "model": view.model,
                    "title": view.title,
                    "weights": dict(view.weights),
                    "random": view.random,
                    "seed": view.seed,
                    "preprocess": dict(view.preprocess),
                    "erfs": [erf.as_dict() for erf in view.erfs],
                }
                for key, view in zip(self.keys, self.views, strict=True)
            ],
            "versions": dict(self.versions),
            "device": self.device,
            "dtype": self.dtype,
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }


def _asked(view: ErfView) -> list[list[Any]]:
    return [[erf.source, erf.layer, list(erf.unit), erf.calibrated] for erf in view.erfs]


def _ratio(first: Erf, second: Erf, size: str) -> Interval | None:
    if first.skipped or second.skipped or size not in first.each or size not in second.each:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = mean_interval(np.log(second.each[size]) - np.log(first.each[size]))
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n, found.level)
