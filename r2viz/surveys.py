"""A data set looked at by networks: every map held against its object, picture by picture. NumPy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from r2viz.coverage import MEASURES, Rows, data_set_value
from r2viz.errors import UnknownName, nearest

if TYPE_CHECKING:
    import pandas as pd

SURVEY_SCHEMA = 1


@dataclass(frozen=True)
class Failure:
    """A picture that could not be measured: its name in the data set, a stable code, and the reason."""

    name: str
    code: str
    error: str


@dataclass(frozen=True, eq=False)
class Look:
    """One network's maps by one method, measured.

    Attributes:
        model: name in the table; `title` is what a figure calls it.
        weights: kind, source, sha256, note.
        seed: of random weights.
        preprocess: what was done to pictures before the network saw them.
        method: name in the table of methods; `method_title` is what a figure calls it.
        layer: tap name.
        rows: of every picture, in the survey's order.
        probability: of the class that the map explains, `(N,)`.
    """

    model: str
    title: str
    weights: Mapping[str, str]
    seed: int | None
    preprocess: Mapping[str, Any]
    method: str
    method_title: str
    layer: str
    rows: Rows
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class Survey:
    """What networks' maps cover of the objects of a data set; all looks are at the same pictures.

    Attributes:
        dataset: its name; `format` is how it is stored, `kind` what its regions are: box, mask or pseudo-mask.
        looks: networks in the order asked for (the baseline first), methods within each.
        gaussian: the same measures of the centre-Gaussian, which knows no picture.
        labels: the objects' classes as the data set names them, "" where it does not.
        items: what a composed scene shares with those that differ from it in size only; the name, for other pictures.
        seconds: not part of the result: how long each part took, by name.
        failures: pictures that could not be measured.
        settings: options that departed from their defaults.
        objects: whom the pictures show: the same in scenes that are composed of one object; empty where every picture
            shows another.
        pixels: the object's area in pixels of the picture as it is kept, `(N,)`; None where it was not counted.
        chosen: the share of the picture that a composed scene was made to show, `(N,)`, NaN for others; None for none.
    """

    dataset: str
    format: str
    kind: str
    target: str
    registration: str
    looks: tuple[Look, ...]
    gaussian: Rows
    labels: tuple[str, ...]
    items: tuple[str, ...]
    failures: tuple[Failure, ...]
    versions: Mapping[str, str]
    device: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures that were measured."""
        return self.gaussian.names

    @property
    def area(self) -> np.ndarray:
        """Share of the picture that the object takes, `(N,)`: of what was seen of it."""
        return self.gaussian.area

    @property
    def models(self) -> tuple[str, ...]:
        """The networks' names, once each."""
        return tuple(dict.fromkeys(look.model for look in self.looks))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' names, once each."""
        return tuple(dict.fromkeys(look.method for look in self.looks))

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that a single picture has a value of."""
        return tuple(self.gaussian.values)

    @property
    def pooled(self) -> tuple[str, ...]:
        """The measures that only the pictures together have a value of."""
        return tuple(name for name, row in MEASURES.items() if row.of == "data set" and self._can(name))

    def look(self, model: int | str, method: str | None = None) -> Look:
        """A network's look by its name or number, by one method or the first.

        Raises:
            UnknownName: none such.
        """
        wanted = self.models[model] if isinstance(model, int) else model
        method = self.methods[0] if method is None else method
        for look in self.looks:
            if (look.model, look.method) == (wanted, method):
                return look
        known = [f"{look.model} by {look.method}" for look in self.looks]
        asked = f"{wanted} by {method}"
        raise UnknownName(f"the survey has no {asked}{nearest(asked, known)}; it has {', '.join(known)}")

    def take(self, which: np.ndarray) -> Survey:
        """The same of some pictures only: places, or a boolean array `(N,)`."""
        places = np.arange(len(self))[which].tolist()
        looks = tuple(
            replace(look, rows=look.rows.take(which), probability=look.probability[which]) for look in self.looks
        )
        return replace(
            self,
            looks=looks,
            gaussian=self.gaussian.take(which),
            labels=tuple(self.labels[place] for place in places),
            items=tuple(self.items[place] for place in places),
            objects=tuple(self.objects[place] for place in places) if self.objects else (),
            pixels=None if self.pixels is None else self.pixels[which],
            chosen=None if self.chosen is None else self.chosen[which],
        )

    def both_right(self) -> np.ndarray:
        """Pictures that every network classifies rightly, boolean `(N,)`; none where classes are not known."""
        found = np.ones(len(self), dtype=bool)
        for look in self.looks:
            found &= np.zeros(len(self), dtype=bool) if look.rows.correct is None else look.rows.correct.astype(bool)
        return found

    def frame(self) -> pd.DataFrame:
        """One line for each picture, network and method: area, correctness, probability, measures and their chance."""
        import pandas as pd

        parts = []
        for look in (*self.looks, None):
            rows = self.gaussian if look is None else look.rows
            columns: dict[str, Any] = {
                "picture": self.names,
                "label": self.labels,
                "item": self.items,
                "area": self.area,
                "model": "centre-Gaussian" if look is None else look.model,
                "method": "" if look is None else look.method,
                "correct": None if look is None else rows.correct,
                "probability": np.nan if look is None else look.probability,
                "constant": rows.constant,
                "seen": rows.seen,
                **rows.values,
                **{f"{name}_chance": values for name, values in rows.chance.items() if np.isfinite(values).any()},
            }
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One line for each network and method (and the centre-Gaussian): every measure over the whole data set."""
        import pandas as pd

        lines = []
        for look in (*self.looks, None):
            rows = self.gaussian if look is None else look.rows
            line: dict[str, Any] = {
                "model": "centre-Gaussian" if look is None else look.title,
                "method": "" if look is None else look.method_title,
                "pictures": len(rows),
                "constant maps": int(rows.constant.sum()),
                "top-1": np.nan if rows.correct is None else float(rows.correct.mean()),
            }
            line |= {name: float(data_set_value(name, rows)) for name in self.measures}
            line |= {name: self._pooled(name, rows) for name in self.pooled}
            lines.append(line)
        return pd.DataFrame(lines)

    def _can(self, name: str) -> bool:
        return name != "coverage_curve" and all(
            getattr(self.gaussian, kept) is not None for kept in MEASURES[name].keeps
        )

    @staticmethod
    def _pooled(name: str, rows: Rows) -> float:
        if name == "top1_loc" and rows.correct is None:
            return float("nan")
        return float(np.asarray(data_set_value(name, rows)).squeeze())

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides the result: pictures, objects, weights, options. Not device, not time."""
        decides = {
            "schema": SURVEY_SCHEMA,
            "dataset": [self.dataset, self.kind, self.target, self.registration],
            "pictures": self.names,
            "area": hashlib.sha256(np.ascontiguousarray(self.area).tobytes()).hexdigest(),
            "looks": [
                [look.model, look.weights["sha256"], dict(look.preprocess), look.method, look.layer]
                for look in self.looks
            ],
            "measures": self.measures,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
