"""From networks' finished passes to records."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2viz.attribution import PIXELS, Contrast, Pass, forward_pass, method_named
from r2viz.attribution.rerun import Progress
from r2viz.attribution.targets import VERSUS
from r2viz.coverage import Region
from r2viz.errors import BadTarget, ModelError, R2VizError
from r2viz.explain.fusion import fused
from r2viz.explain.request import Ask, Request
from r2viz.explain.smoothing import VARIANTS, merged, varied
from r2viz.geometry import Geometry
from r2viz.image import Picture
from r2viz.models.model import Model
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids
from r2viz.records import CamRecord, ClassScore, LayerMap, View
from r2viz.taps import device_of, unwrapped
from r2viz.version import __version__


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture with each network's input and its geometry; `targets` where its class is known for each network."""

    picture: Picture
    region: Region | None
    inputs: list[tuple[Tensor, Geometry]]
    targets: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """A network's finished forward pass over the batch; what is said of classes is said of the pictures themselves."""

    model: Model
    result: Pass
    geometries: list[Geometry]
    input_size: tuple[int, int]
    probabilities: np.ndarray
    logits: np.ndarray


def look(model: Model, inputs: Sequence[tuple[Tensor, Geometry]], request: Request) -> Seen:
    """One forward pass over the batch, and over its variants where the request is to smooth.

    Raises:
        ModelError: the network gives scores that cannot be used.
    """
    batch = torch.cat([tensor for tensor, _ in inputs])
    seen = varied(batch) if request.smooth else batch
    result = forward_pass(model.module, seen, request.layers_of(model), compile=request.compile)
    logits = result.logits.detach()[: len(batch)].float()
    if logits.shape[1] != len(model.classes):
        raise ModelError(
            f"{model.name} gives {logits.shape[1]} classes, but has {len(model.classes)} class names; "
            "give one name per class"
        )
    if not logits.isfinite().all():
        raise ModelError(
            f"{model.name} gives class scores that are not finite; its weights or its precision are not usable"
        )
    probabilities = logits.double().softmax(dim=1) if logits.device.type != "mps" else logits.softmax(dim=1)
    height, width = batch.shape[-2:]
    return Seen(
        model,
        result,
        [geometry for _, geometry in inputs],
        (height, width),
        probabilities.cpu().numpy(),
        logits.cpu().numpy(),
    )


def records(
    prepared: Sequence[Prepared],
    seen: Sequence[Seen],
    ask: Ask,
    request: Request,
    *,
    keep: bool,
    progress: Progress,
) -> list[CamRecord | R2VizError]:
    """One record per picture, or the error that stands in its place.

    Args:
        prepared: the pictures.
        seen: each network's pass over them.
        ask: the method and the rule for targets.
        request: the rest.
        keep: whether the passes will be asked again.
        progress: told by methods that run the network many times.

    Raises:
        ModelError: values that are not finite.
    """
    method, rule = method_named(ask.method), ask.policy
    chosen: list[tuple[int, ...] | BadTarget] = []
    for index, picture in enumerate(prepared):
        if picture.targets is not None:
            chosen.append(picture.targets)
            continue
        try:
            chosen.append(rule.choose([one.probabilities[index] for one in seen]))
        except BadTarget as error:
            chosen.append(error)
    notes: list[str] = [method.note] if method.note else []
    by_network = [_maps(one, number, chosen, ask, request, keep, progress, notes) for number, one in enumerate(seen)]

    titles = [one.model.title for one in seen]
    if len(set(titles)) < len(titles):  # one network with two sets of weights
        titles = [f"{title} #{number}" for number, title in enumerate(titles, start=1)]
    device = str(device_of(seen[0].model.module))
    results: list[CamRecord | R2VizError] = []
    for index, (one, pick) in enumerate(zip(prepared, chosen, strict=True)):
        if isinstance(pick, BadTarget):
            results.append(pick)
            continue
        views = tuple(
            _view(
                there,
                titles[number],
                index,
                pick[number],
                None if rule.against is None else rule.against[number],
                by_network[number][index],
                request,
            )
            for number, there in enumerate(seen)
        )
        results.append(
            CamRecord(
                picture=one.picture,
                views=views,
                policy=rule.name,
                method=ask.method,
                method_title=method.title,
                registration=request.registration,
                region=one.region,
                versions=versions(),
                device=device,
                dtype=str(seen[0].result.logits.dtype).removeprefix("torch."),
                notes=tuple(dict.fromkeys(notes)),
                settings=request.settings,
            )
        )
    return results


def _maps(
    seen: Seen,
    number: int,
    chosen: Sequence[tuple[int, ...] | BadTarget],
    ask: Ask,
    request: Request,
    keep: bool,
    progress: Progress,
    notes: list[str],
) -> list[list[LayerMap]]:
    """For each picture, the network's map of each layer."""
    if ask.policy.against is not None and ask.policy.fixed is not None:
        targets: Tensor | Contrast = Contrast(ask.policy.fixed[number], ask.policy.against[number])
    else:
        # A picture without a target rides along with class 0; its map is dropped later.
        picks = [0 if isinstance(pick, BadTarget) else pick[number] for pick in chosen]
        targets = torch.tensor(picks * (len(VARIANTS) if request.smooth else 1), device=seen.result.logits.device)
    options: dict[str, Any] = {
        "method": ask.method,
        "keep": keep,
        "seed": request.seed,
        "channels": request.channels,
        "progress": progress,
    }
    if method_named(ask.method).layered:
        parts = {layer: replace(seen.result, points={layer: where}) for layer, where in seen.result.points.items()}
        found = {f"{PIXELS}@{layer}": part.maps(targets, **options)[PIXELS] for layer, part in parts.items()}
    else:
        found = seen.result.maps(targets, **options)
    per_picture: list[list[LayerMap]] = [[] for _ in chosen]
    for layer, map_ in found.items():
        grid, registration = _placing(seen, layer, (map_.shape[1], map_.shape[2]), request.registration, notes)
        if request.smooth:
            map_ = merged(map_, grid, seen.input_size)
        gradient = "total" if _of_pixels(layer) else seen.result.points[layer].gradient
        for maps, raw in zip(per_picture, _to_host(map_, seen.model, layer), strict=True):
            maps.append(LayerMap(layer, raw, grid.start, grid.jump, registration, gradient))
    return per_picture


def _view(
    seen: Seen,
    title: str,
    index: int,
    target: int,
    against: int | None,
    maps: Sequence[LayerMap],
    request: Request,
) -> View:
    model = seen.model

    def score(class_index: int) -> ClassScore:
        return ClassScore(
            class_index,
            model.classes[class_index],
            float(seen.probabilities[index, class_index]),
            float(seen.logits[index, class_index]),
        )

    explained = score(target)
    if against is not None:
        other = score(against)
        explained = ClassScore(
            target, f"{explained.label}{VERSUS}{other.label}", explained.probability, explained.logit - other.logit
        )
    # A stable sort: classes of equal probability come in index order on every machine.
    top = np.argsort(-seen.probabilities[index], kind="stable")[:5]
    if request.fuse is not None and len(maps) > 1:
        maps = (*maps, fused(maps, request.fuse))
    return View(
        model=model.name,
        title=title,
        weights={
            "kind": model.weights.kind,
            "source": model.weights.source,
            "sha256": model.weights.sha256,
            "note": model.weights.note,
        },
        seed=model.seed,
        preprocess=model.preprocess.as_dict(),
        geometry=seen.geometries[index],
        target=explained,
        top=tuple(score(int(class_index)) for class_index in top),
        maps=tuple(maps),
    )


def _to_host(map_: Tensor, model: Model, layer: str) -> np.ndarray:
    values = map_.cpu().numpy()
    if not np.isfinite(values).all():
        raise ModelError(
            f"{model.name} gives values that are not finite at {layer!r}; its weights or its precision are not usable"
        )
    return values


def _placing(seen: Seen, layer: str, size: tuple[int, int], registration: str, notes: list[str]) -> tuple[Grid, str]:
    if _of_pixels(layer):
        return Grid(), "rf"
    if registration == "rf":
        where = seen.result.points[layer]
        grid = grids(unwrapped(seen.model.module)).get(where.path + ("_in" if where.into else ""))
        if grid is not None:
            if not grid.aligned:
                notes.append(f"{seen.model.name} {layer}: paths with different centres meet; the main path's are used")
            return grid, "rf"
        notes.append(
            f"{seen.model.name} {layer}: receptive-field centres are not known here, so the map is laid as by resizing"
        )
    return Grid.resized(seen.input_size, size), "grid"


def _of_pixels(layer: str) -> bool:
    """`input`, or `input@layer4` of a method whose map of the input depends on a layer."""
    return layer.partition("@")[0] == PIXELS


def versions() -> dict[str, str]:
    """Versions of r2viz and of the libraries that compute."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    """Read once: reading packages' metadata is slow."""
    found = {"r2viz": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
