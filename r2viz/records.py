"""Results: frozen, NumPy only, with what they were made from. Records neither draw nor save themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from r2viz.agreement import Agreement, agreement
from r2viz.coverage import Inside, Region, energy_inside
from r2viz.errors import UnknownName, nearest
from r2viz.geometry import Geometry
from r2viz.image import Picture

SCHEMA = 1
BETWEEN = " / "
"""Stands between the names of two networks' layers where they differ."""


@dataclass(frozen=True)
class ClassScore:
    """What a network says of one class."""

    index: int
    label: str
    probability: float
    logit: float


def label_key(label: str) -> str:
    """Equal for labels that a target policy takes for one class: case, underscores and spaces do not count."""
    return " ".join(label.replace("_", " ").split()).casefold()


@dataclass(frozen=True, eq=False)
class LayerMap:
    """A signed map at a layer's own resolution, and where its units sit on the network's input.

    Attributes:
        layer: tap name.
        raw: float32 `(h, w)`, signed, never rescaled.
        start: (y, x) of unit (0, 0), in input pixels, 0-based centre.
        jump: (y, x) between units, in input pixels.
        registration: `"rf"` (receptive-field centres) or `"grid"` (half-pixel resizing).
        gradient: `"total"`, or `"direct"` for a split's direct path into `conv3`.
    """

    layer: str
    raw: np.ndarray
    start: tuple[float, float]
    jump: tuple[float, float]
    registration: str
    gradient: str

    @cached_property
    def positive(self) -> np.ndarray:
        """The map after its ReLU, float32 `(h, w)`."""
        return np.maximum(self.raw, 0)

    @property
    def constant(self) -> bool:
        """Whether the map after its ReLU is the same everywhere (mostly: zero), so that it points at nothing."""
        return bool(np.ptp(self.positive) == 0)


@dataclass(frozen=True, eq=False)
class View:
    """One network's look at the picture.

    Attributes:
        model: name in the table; `title` is what a figure calls it.
        weights: kind, source, sha256, note.
        preprocess: what was done to the picture before the network saw it.
        target: the class that the maps explain.
        top: the five most probable classes.
        maps: one per layer.
    """

    model: str
    title: str
    weights: Mapping[str, str]
    seed: int | None
    preprocess: Mapping[str, Any]
    geometry: Geometry
    target: ClassScore
    top: tuple[ClassScore, ...]
    maps: tuple[LayerMap, ...]

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that maps show the architecture and no learning."""
        return self.weights["kind"] == "random"

    def map(self, layer: str) -> LayerMap:
        """The map at `layer`, a tap's name or one of `CamRecord.layers`.

        Raises:
            UnknownName: the record has no such layer.
        """
        for candidate in self.maps:
            if candidate.layer in (layer, *layer.split(BETWEEN)):
                return candidate
        known = [candidate.layer for candidate in self.maps]
        raise UnknownName(f"the record has no layer {layer!r}{nearest(layer, known)}; it has {', '.join(known)}")

    def on_source(self, layer: str) -> np.ndarray:
        """The map after its ReLU over the source picture: float32 `(H, W)`, unscaled, NaN where nothing was seen."""
        map_ = self.map(layer)
        return self.geometry.lay(map_.positive, start=map_.start, jump=map_.jump)


@dataclass(frozen=True, eq=False)
class CamRecord:
    """Class activation maps of one picture by one network, or by two beside each other (the baseline first).

    Attributes:
        policy: how the target was chosen: shared, top1, agree, a label or an index.
        registration: what was asked for; each map says what it got.
        region: the object, where the user marked it.
        versions: of r2viz and the libraries that computed.
        device: where it was computed; `dtype` in what.
        notes: plain remarks, for instance that a registration fell back.
        settings: options of the computation that departed from their defaults (`fuse`, `smooth`, `seed`, `channels`).
    """

    picture: Picture
    views: tuple[View, ...]
    policy: str
    method: str
    method_title: str
    registration: str
    region: Region | None
    versions: Mapping[str, str]
    device: str
    dtype: str
    notes: tuple[str, ...] = field(default=())
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order asked for; both names (`"layer4 / level5"`) where each network has its own."""
        rows = zip(*([map_.layer for map_ in view.maps] for view in self.views), strict=True)
        return tuple(BETWEEN.join(dict.fromkeys(row)) for row in rows)

    @property
    def shared(self) -> bool:
        """Whether two networks' maps explain one class, so that a difference between them means something."""
        # A policy that looks for a common class takes spellings for one; ImageNet's Cardigan, a dog, is no cardigan.
        labels = {view.target.label if self.policy == "top1" else label_key(view.target.label) for view in self.views}
        return len(self.views) == 2 and len(labels) == 1

    @property
    def random(self) -> bool:
        """Whether any network has random weights."""
        return any(view.random for view in self.views)

    def inside(self, view: View, layer: str) -> Inside | None:
        """Share of the map's mass inside the region, and chance; None without a region."""
        return None if self.region is None else energy_inside(view.on_source(layer), self.region)

    def difference(self, layer: str) -> np.ndarray | None:
        """Second network's unit-mass map minus the first's: float32 `(H, W)`, NaN where either saw nothing.

        None where the difference would mean nothing: one network, different classes, or a constant map.
        """
        if not self.shared or any(view.map(layer).constant for view in self.views):
            return None
        first, second = (view.on_source(layer) for view in self.views)
        seen = np.isfinite(first) & np.isfinite(second)
        masses = [float(map_[seen].sum(dtype=np.float64)) for map_ in (first, second)]
        if min(masses) <= 0:
            return None
        return np.where(seen, second / masses[1] - first / masses[0], np.nan).astype(np.float32)

    def maximum_ratio(self, layer: str) -> float | None:
        """Second network's raw maximum over the first's. Grad-CAM has no common unit: a fact, not a comparison."""
        if not self.shared:
            return None
        first, second = (float(view.map(layer).raw.max()) for view in self.views)
        return second / first if first > 0 and second > 0 else None

    def agreement(self, layer: str) -> Agreement | None:
        """How far the two networks' maps agree over the source picture; None where `difference` would mean nothing."""
        if not self.shared or any(view.map(layer).constant for view in self.views):
            return None
        first, second = (view.on_source(layer) for view in self.views)
        if not (np.isfinite(first) & np.isfinite(second)).any():
            return None
        return agreement(first, second)

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides the result: picture, weights, precision, options, versions. Not device, not time."""
        decides = {
            "schema": SCHEMA,
            "picture": self.picture.sha256,
            "views": [
                [view.model, view.weights["sha256"], dict(view.preprocess), view.target.index, view.target.label]
                for view in self.views
            ],
            "layers": self.layers,
            "method": self.method,
            "policy": self.policy,
            "registration": self.registration,
            "region": None
            if self.region is None
            else hashlib.sha256(np.packbits(self.region.mask).tobytes()).hexdigest(),
            "versions": dict(self.versions),
            **({"settings": dict(self.settings)} if self.settings else {}),
            **({"dtype": self.dtype} if self.dtype != "float32" else {}),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def _repr_html_(self) -> str:
        """What a notebook shows. Drawing is imported only when one asks."""
        from r2viz.figures import html

        return html(self)
