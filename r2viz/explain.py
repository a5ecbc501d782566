"""The only pipeline: pictures and networks in, records out. Command line, app and analyses all call this."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2viz.attribution import Pass, forward_pass, method_named
from r2viz.attribution.targets import TargetPolicy, policy
from r2viz.coverage import Region
from r2viz.errors import BadRegion, BadTarget, ModelError, R2VizError, UnknownName
from r2viz.geometry import Geometry
from r2viz.image import Picture, decode
from r2viz.models.model import Model, fitted, load, load_pair
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids
from r2viz.records import CamRecord, ClassScore, LayerMap, View
from r2viz.taps import device_of, lock, point, unwrapped
from r2viz.version import __version__

REGISTRATIONS = ("rf", "grid")


def cam(
    image: Any,
    model: Model | str = "res2net50_26w_4s",
    *,
    weights: str = "auto",
    device: str = "cpu",
    fit: str = "crop",
    **options: Any,
) -> CamRecord:
    """One network's class activation map of one picture.

    `weights` and `device` as for `r2viz.load`, where `model` is a name; `fit` as for `r2viz.models.model.fitted`;
    `options` as for `explain`.
    """
    return explain(image, [_ready(model, weights, device, fit)], **options)


def compare(
    image: Any,
    models: str | Sequence[Model | str] = "auto",
    *,
    weights: str = "auto",
    device: str = "cpu",
    fit: str = "crop",
    **options: Any,
) -> CamRecord:
    """Two networks' class activation maps of one picture; `models` is a pair's name or two networks.

    Other arguments as for `cam`.
    """
    both: Sequence[Model | str] = (
        load_pair(models, weights=weights, device=device) if isinstance(models, str) else models
    )
    return explain(image, [_ready(model, weights, device, fit) for model in both], **options)


def explain(
    image: Any,
    models: Sequence[Model],
    *,
    layers: Sequence[str] = ("layer4",),
    method: str = "gradcam",
    target: str | int = "shared",
    region: Region | None = None,
    registration: str = "rf",
) -> CamRecord:
    """Class activation maps of one picture.

    Args:
        image: a path, encoded bytes, an array `(H, W, 3)`, a Pillow image or a decoded `Picture`.
        models: one network, or two of which the first is the baseline.
        layers: tap names (see `r2viz.taps`).
        method: a name in `r2viz.attribution.METHODS`.
        target: `"shared"` (the class with the highest mean probability of the networks), `"top1"` (each its own),
            `"agree"` (the common top-1, or an error), a label, or an index.
        region: the object, for the share of the map's mass inside it.
        registration: `"rf"` lays map units where their receptive fields are centred, `"grid"` as resizing would.

    Raises:
        R2VizError: of the kind that says what was wrong.
    """
    picture = image if isinstance(image, Picture) else decode(image)
    result = explain_batch(
        [picture], models, layers=layers, method=method, target=target, regions=[region], registration=registration
    )[0]
    if isinstance(result, R2VizError):
        raise result
    return result


def explain_many(
    pictures: Iterable[Picture | R2VizError],
    models: Sequence[Model],
    *,
    batch: int = 8,
    region: Callable[[tuple[int, int]], Region] | None = None,
    **options: Any,
) -> Iterator[CamRecord | R2VizError]:
    """`explain` for many pictures, in order, `batch` at a time; what fails is handed on as the error that it is.

    Memory holds one batch. `region` makes the object's region from the picture's `(H, W)`; other `options` as for
    `explain_batch`.
    """
    waiting: list[Picture | R2VizError] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == batch:
            yield from _flush(waiting, models, region, options)
            waiting = []
    yield from _flush(waiting, models, region, options)


def _flush(
    waiting: list[Picture | R2VizError],
    models: Sequence[Model],
    region: Callable[[tuple[int, int]], Region] | None,
    options: dict[str, Any],
) -> Iterator[CamRecord | R2VizError]:
    good: list[Picture] = []
    regions: list[Region | None] = []
    for number, item in enumerate(waiting):
        if isinstance(item, Picture):
            try:
                regions.append(None if region is None else region(item.rgb.shape[:2]))
                good.append(item)
            except R2VizError as error:
                waiting[number] = error
    results = iter(explain_batch(good, models, regions=regions, **options))
    for item in waiting:
        yield next(results) if isinstance(item, Picture) else item


def explain_batch(
    pictures: Sequence[Picture],
    models: Sequence[Model],
    *,
    layers: Sequence[str] = ("layer4",),
    method: str = "gradcam",
    target: str | int = "shared",
    regions: Sequence[Region | None] | None = None,
    registration: str = "rf",
) -> list[CamRecord | R2VizError]:
    """`explain` for a batch: one forward pass per network.

    A picture that the networks cannot take, or that has no target, gives its error; others go on.

    Raises:
        R2VizError: what is wrong for all pictures: an unknown layer, method or label, networks that do not fit.
    """
    if not 1 <= len(models) <= 2:
        raise ModelError(f"{len(models)} networks came; expected one, or two to compare")
    if registration not in REGISTRATIONS:
        raise UnknownName(
            f"no registration {registration!r}; there are {' and '.join(REGISTRATIONS)}",
            code="unknown_name.registration",
        )
    regions = [None] * len(pictures) if regions is None else regions
    method_named(method)
    layers = (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))
    policy_ = policy(target, [model.classes for model in models])
    for model in models:
        for layer in layers:
            point(unwrapped(model.module), layer, called=model.name)
    prepared = [_prepared(picture, region, models) for picture, region in zip(pictures, regions, strict=True)]
    fit = [one for one in prepared if isinstance(one, _Prepared)]
    results = iter(_run(fit, models, layers, method, policy_, registration) if fit else ())
    return [next(results) if isinstance(one, _Prepared) else one for one in prepared]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A picture with each network's input and its geometry."""

    picture: Picture
    region: Region | None
    inputs: list[tuple[Tensor, Geometry]]


def _prepared(picture: Picture, region: Region | None, models: Sequence[Model]) -> _Prepared | R2VizError:
    size = picture.rgb.shape[:2]
    if region is not None and region.mask.shape != size:
        came = " x ".join(map(str, region.mask.shape[::-1]))
        return BadRegion(f"the region is {came}, but the picture is {size[1]} x {size[0]}; they must be equal")
    try:
        return _Prepared(picture, region, [model.preprocess(picture.rgb) for model in models])
    except R2VizError as error:
        return error


def _run(
    prepared: list[_Prepared],
    models: Sequence[Model],
    layers: tuple[str, ...],
    method: str,
    policy_: TargetPolicy,
    registration: str,
) -> list[CamRecord | R2VizError]:
    """`explain_batch` after its checks. A device that runs out of memory gets half the batch, then the CPU."""
    rest = (models, layers, method, policy_, registration)
    inputs = [[one.inputs[number] for one in prepared] for number in range(len(models))]
    if any(len({tensor.shape for tensor, _ in one}) > 1 for one in inputs):
        # Without a crop, inputs differ in size and cannot share a batch.
        return [_run([one], *rest)[0] for one in prepared]
    try:
        seen = [_look(model, one, layers) for model, one in zip(models, inputs, strict=True)]
        return _records(prepared, seen, method, policy_, registration)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        # Nothing is computed in this handler: while it runs, the traceback keeps the failed tensors alive.
        seen = []
    if len(prepared) > 1:
        half = len(prepared) // 2
        _say_once("the device ran out of memory; going on with smaller batches")
        return _run(prepared[:half], *rest) + _run(prepared[half:], *rest)
    if any(device_of(model.module).type != "cpu" for model in models):
        _say_once("the device ran out of memory with a single picture; going on with the CPU")
        for model in models:
            with lock(unwrapped(model.module)):  # another thread may be in the middle of a forward pass
                model.module.to("cpu")
        torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
        return _run(prepared, *rest)
    return [ModelError("out of memory with a single picture on the CPU; use a smaller network or input", code="memory")]


def _out_of_memory(error: Exception) -> bool:
    # Only CUDA's allocator has an exception of its own; the CPU's and MPS's say it in words.
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    said = str(error).casefold()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in said for word in words)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A network's finished forward pass over the batch."""

    model: Model
    result: Pass
    geometries: list[Geometry]
    input_size: tuple[int, int]
    probabilities: np.ndarray
    logits: np.ndarray


def _look(model: Model, prepared: Sequence[tuple[Tensor, Geometry]], layers: Sequence[str]) -> _Seen:
    batch = torch.cat([tensor for tensor, _ in prepared])
    result = forward_pass(model.module, batch, layers)
    logits = result.logits.detach().float()
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
    return _Seen(
        model,
        result,
        [geometry for _, geometry in prepared],
        (height, width),
        probabilities.cpu().numpy(),
        logits.cpu().numpy(),
    )


def _records(
    prepared: Sequence[_Prepared],
    seen: Sequence[_Seen],
    method: str,
    policy_: TargetPolicy,
    registration: str,
) -> list[CamRecord | R2VizError]:
    chosen: list[tuple[int, ...] | BadTarget] = []
    for index in range(len(prepared)):
        try:
            chosen.append(policy_.choose([look.probabilities[index] for look in seen]))
        except BadTarget as error:
            chosen.append(error)
    maps: list[dict[str, np.ndarray]] = []
    placings: list[dict[str, tuple[Grid, str]]] = []
    notes: list[str] = []
    for number, look in enumerate(seen):
        # A picture without a target rides along with class 0; its map is dropped below.
        targets = torch.tensor([0 if isinstance(pick, BadTarget) else pick[number] for pick in chosen])
        found = look.result.maps(targets.to(look.result.logits.device), method=method)
        maps.append({layer: _to_host(map_, look.model, layer) for layer, map_ in found.items()})
        placings.append({layer: _placing(look, layer, map_, registration, notes) for layer, map_ in maps[-1].items()})

    titles = [look.model.title for look in seen]
    if len(set(titles)) < len(titles):  # one network with two sets of weights
        titles = [f"{title} #{number}" for number, title in enumerate(titles, start=1)]
    results: list[CamRecord | R2VizError] = []
    for index, (one, pick) in enumerate(zip(prepared, chosen, strict=True)):
        if isinstance(pick, BadTarget):
            results.append(pick)
            continue
        views = tuple(
            _view(look, titles[number], index, pick[number], maps[number], placings[number])
            for number, look in enumerate(seen)
        )
        results.append(
            CamRecord(
                picture=one.picture,
                views=views,
                policy=policy_.name,
                method=method,
                method_title=method_named(method).title,
                registration=registration,
                region=one.region,
                versions=versions(),
                device=str(device_of(seen[0].model.module)),
                dtype=str(seen[0].result.logits.dtype).removeprefix("torch."),
                notes=tuple(dict.fromkeys(notes)),
            )
        )
    return results


def _view(
    look: _Seen,
    title: str,
    index: int,
    target: int,
    maps: dict[str, np.ndarray],
    placings: dict[str, tuple[Grid, str]],
) -> View:
    model = look.model

    def score(class_index: int) -> ClassScore:
        return ClassScore(
            class_index,
            model.classes[class_index],
            float(look.probabilities[index, class_index]),
            float(look.logits[index, class_index]),
        )

    # A stable sort: classes of equal probability come in index order on every machine.
    top = np.argsort(-look.probabilities[index], kind="stable")[:5]
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
        geometry=look.geometries[index],
        target=score(target),
        top=tuple(score(int(class_index)) for class_index in top),
        maps=tuple(
            LayerMap(
                layer,
                map_[index],
                placings[layer][0].start,
                placings[layer][0].jump,
                placings[layer][1],
                look.result.points[layer].gradient,
            )
            for layer, map_ in maps.items()
        ),
    )


def _to_host(map_: Tensor, model: Model, layer: str) -> np.ndarray:
    values = map_.cpu().numpy()
    if not np.isfinite(values).all():
        raise ModelError(
            f"{model.name} gives values that are not finite at {layer!r}; its weights or its precision are not usable"
        )
    return values


def _placing(look: _Seen, layer: str, map_: np.ndarray, registration: str, notes: list[str]) -> tuple[Grid, str]:
    size = (map_.shape[1], map_.shape[2])
    if registration == "rf":
        where = look.result.points[layer]
        grid = grids(unwrapped(look.model.module)).get(where.path + ("_in" if where.into else ""))
        if grid is not None:
            if not grid.aligned:
                notes.append(f"{look.model.name} {layer}: paths with different centres meet; the main path's are used")
            return grid, "rf"
        notes.append(
            f"{look.model.name} {layer}: receptive-field centres are not known here, so the map is laid as by resizing"
        )
    return Grid.resized(look.input_size, size), "grid"


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _ready(model: Model | str, weights: str, device: str, fit: str) -> Model:
    return fitted(load(model, weights=weights, device=device) if isinstance(model, str) else model, fit)


def versions() -> dict[str, str]:
    """Versions of r2viz and of the libraries that compute."""
    found = {"r2viz": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
