"""What is asked of a picture and its networks, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from r2viz.attribution import METHODS, method_named
from r2viz.attribution.targets import TargetPolicy, policies
from r2viz.errors import ModelError, R2VizError, UnknownName
from r2viz.models.model import Model
from r2viz.models.outline import last_stage
from r2viz.taps import point, unwrapped

REGISTRATIONS = ("rf", "grid")
FUSIONS = ("mean", "max")


@dataclass(frozen=True)
class Request:
    """How maps are made; what each field means is told at `r2viz.explain.explain`."""

    layers: tuple[str, ...] | None = None
    registration: str = "rf"
    fuse: str | None = None
    smooth: bool = False
    seed: int = 0
    channels: int | None = None
    compile: bool = False

    def layers_of(self, model: Model) -> tuple[str, ...]:
        """The taps of this network: those asked for, else its last stage.

        Raises:
            UnknownName: none was asked for, and its last stage is not known.
        """
        if self.layers is not None:
            return self.layers
        return (last_stage(model.module, called=model.name),)

    @property
    def settings(self) -> dict[str, Any]:
        """What departs from the defaults and decides the result, beyond what a record has fields for."""
        defaults = Request()
        return {
            name: getattr(self, name)
            for name in ("fuse", "smooth", "seed", "channels", "compile")
            if getattr(self, name) != getattr(defaults, name)
        }

    def checked(self, models: Sequence[Model]) -> Request:
        """The request with its layers in order and once each.

        Raises:
            R2VizError: what no picture can change: unknown names, networks that do not fit.
        """
        if not 1 <= len(models) <= 2:
            raise ModelError(f"{len(models)} networks came; expected one, or two to compare")
        for kind, value, known in (("registration", self.registration, REGISTRATIONS), ("fusion", self.fuse, FUSIONS)):
            if value is not None and value not in known:
                raise UnknownName(f"no {kind} {value!r}; there are {' and '.join(known)}", code=f"unknown_name.{kind}")
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        layers = None if layers is None else tuple(dict.fromkeys(layers))
        count = 1 if layers is None else len(layers)
        if self.fuse is not None and count < 2:
            raise UnknownName(
                f"fusion joins the maps of several layers, but {count} came; name more layers, or ask for none",
                code="unknown_name.fusion",
            )
        if self.channels is not None and self.channels < 1:
            raise R2VizError(f"{self.channels} channels came; give at least 1, or none for all")
        for model in models:
            for layer in self.layers_of(model) if layers is None else layers:
                point(unwrapped(model.module), layer, called=model.name)
        return replace(self, layers=layers)


@dataclass(frozen=True)
class Ask:
    """One map of each network and layer: a method and a rule for its target."""

    method: str
    policy: TargetPolicy


def asks(methods: str | Sequence[str], targets: str | int | Sequence[str | int], models: Sequence[Model]) -> list[Ask]:
    """Every method with every target, methods outermost. `"all"` is every method of the table.

    Raises:
        R2VizError: an unknown method or label.
    """
    named = [methods] if isinstance(methods, str) else list(methods)
    if named == ["all"]:
        named = list(METHODS)
    for name in named:
        method_named(name)
    listed = [targets] if isinstance(targets, (str, int)) else list(targets)
    vocabularies = [model.classes for model in models]
    rules = [rule for target in listed for rule in policies(target, vocabularies)]
    return [Ask(name, rule) for name in dict.fromkeys(named) for rule in rules]
