"""What one network or two see, with what it was made from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from r2viz.erf_records.field import Erf
from r2viz.errors import UnknownName, nearest
from r2viz.geometry import Geometry
from r2viz.image import Picture
from r2viz.statistics import Interval, mean_interval

ERF_SCHEMA = 1

_BETWEEN = " / "  # stands between the names of two networks' layers where they differ, as in `CamRecord.layers`


@dataclass(frozen=True, eq=False)
class ErfView:
    """One network's effective receptive fields.

    Attributes:
        model: name in the table; `title` is what a figure calls it.
        weights: kind, source, sha256, note.
        seed: of random weights.
        preprocess: what was done to pictures before the network saw them; empty for noise and for given tensors.
        geometry: where the one picture's pixels are in the input; None for several, noise and given tensors.
        erfs: of pictures, then of noise where there are both; of every layer in order; of every unit in order.
    """

    model: str
    title: str
    weights: Mapping[str, str]
    seed: int | None
    preprocess: Mapping[str, Any]
    erfs: tuple[Erf, ...]
    geometry: Geometry | None = None

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that the field is that of the architecture before any learning."""
        return self.weights["kind"] == "random"

    def at(self, layer: str, *, unit: tuple[int, int] | None = None, source: str | None = None) -> Erf:
        """The field at `layer`, a tap's name or one of `ErfRecord.layers`.

        The first unit's, of pictures where there are both, unless named.

        Raises:
            UnknownName: the record has none such.
        """
        found = [erf for erf in self.erfs if erf.layer in (layer, *layer.split(_BETWEEN))]
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
        picture: the one picture, if there was only one: fields may be drawn over it.
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
    picture: Picture | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order asked for; both names (`"layer4 / level5"`) where each network has its own."""
        rows = zip(*([erf.layer for erf in view.erfs] for view in self.views), strict=True)
        return tuple(dict.fromkeys(_BETWEEN.join(dict.fromkeys(row)) for row in rows))

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
        }


def _asked(view: ErfView) -> list[list[Any]]:
    return [[erf.source, erf.layer, list(erf.unit), erf.calibrated] for erf in view.erfs]


def _ratio(first: Erf, second: Erf, size: str) -> Interval | None:
    if first.skipped or second.skipped or size not in first.each or size not in second.each:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = mean_interval(np.log(second.each[size]) - np.log(first.each[size]))
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n, found.level)
