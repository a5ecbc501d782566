"""What the splits of networks carry, asked by the networks' names and of pictures as they come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2viz.errors import ModelError, R2VizError
from r2viz.explain import versions
from r2viz.image import Picture, decode
from r2viz.models.model import Model, fitted, load, load_pair
from r2viz.partition.intervals import GROUPS
from r2viz.partition.measure import FAMILIES, Measured, families
from r2viz.partition.places import SCALE, Block, blocks
from r2viz.split_records import Network, SplitRecord
from r2viz.taps import device_of, unwrapped

Refused = Callable[[Any, R2VizError], None]


def splits(
    images: Any,
    *,
    model: str | Model | None = None,
    pair: str | Sequence[str | Model] | None = None,
    weights: str = "auto",
    layers: Sequence[str] | None = None,
    statistics: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    eps: float = 0.0,
    seed: int = 0,
    batch: int = 16,
    device: str = "cpu",
    fit: str = "crop",
    refused: Refused | None = None,
    progress: Callable[[int], None] | None = None,
) -> SplitRecord:
    """Statistics of the splits of a network's blocks over pictures; of a pair, over the same pictures.

    A ResNet has no splits: its middle channels are cut into as many groups as the other network of a pair has (else
    four), in their own order and in a random one, as the control.

    Args:
        images: a picture (path, encoded bytes, array `(H, W, 3)`, Pillow image, `Picture`), or an iterable of such.
        model: a name as for `r2viz.load`, or a loaded model.
        pair: a pair's name, or two networks, the baseline first; "auto" unless `model` is given.
        weights: as for `r2viz.load`, where a network is given by name; `device` too.
        layers: stages (`layer3`), blocks (`layer3.2`) or splits, whose blocks are taken; None takes all.
        statistics: names in `r2viz.split_records.STATISTICS` or families of them; None takes all.
        labels: class numbers, one per picture, for class selectivity.
        eps: values up to here count as zero.
        seed: of the random orders of channels and labels.
        batch: how many pictures at once; decides nothing else.
        device: as for `r2viz.load`.
        fit: as for `r2viz.models.model.fitted`.
        refused: told of a picture that cannot be read, which is then left out; without it, that is an error.
        progress: called with the number of pictures done since the last call.

    Raises:
        R2VizError: of the kind that says what was wrong.
    """
    if model is not None and pair is not None:
        raise ModelError("both a model and a pair were given; give one of them")
    chosen = families(statistics, labelled=labels is not None)
    models = _models(model, pair, weights, device, fit)
    places = _places(models, layers, seed)
    wanted = None if statistics is None else _wanted(statistics, chosen)
    measured = [Measured(found, chosen, eps, seed) for found in places]
    digest = hashlib.sha256()
    given = None if labels is None else np.asarray(labels, dtype=np.int64)
    shuffled = None if given is None else np.random.default_rng(seed).permutation(given)
    for numbers, tensors in _batches(images, models, batch, refused, digest, given):
        first = measured[0].pictures
        some = (None if given is None else given[numbers], None if shuffled is None else shuffled[numbers])
        for one, network, tensor in zip(measured, models, tensors, strict=True):
            one.take(network.module, tensor, first=first, labels=some[0], shuffled=some[1])
        if progress is not None:
            progress(len(numbers))
    if measured[0].pictures == 0:
        raise ModelError("no pictures came; statistics need at least one")
    module = unwrapped(models[0].module)
    return SplitRecord(
        networks=tuple(_network(one, found) for one, found in zip(models, places, strict=True)),
        rows=tuple(row for one in measured for row in one.rows() if wanted is None or row.statistic in wanted),
        pictures=measured[0].pictures,
        spectra=tuple(curve for one in measured for curve in one.spectra()),
        histograms=tuple(histogram for one in measured for histogram in one.histograms()),
        likenesses=tuple(matrix for one in measured for matrix in one.likenesses())
        + tuple(measured[0].likenesses(measured[1]) if len(measured) == 2 else ()),
        pictures_sha256=digest.hexdigest(),
        settings={
            "statistics": list(chosen),
            "eps": eps,
            "seed": seed,
            "interval_groups": GROUPS,
            "labels_sha256": None if given is None else hashlib.sha256(given.tobytes()).hexdigest(),
        },
        versions=versions(),
        device=str(device_of(module)),
        dtype=str(next(module.parameters()).dtype).removeprefix("torch."),
        notes=tuple(_notes(models, places)),
    )


def _models(
    model: str | Model | None, pair: str | Sequence[str | Model] | None, weights: str, device: str, fit: str
) -> list[Model]:
    if model is not None:
        given: Sequence[str | Model] = [model]
    elif pair is None or isinstance(pair, str):
        given = load_pair(pair or "auto", weights=weights, device=device)
    else:
        given = pair
    if len(given) > 2:
        raise ModelError(f"a pair has two networks; {len(given)} came")
    loaded = [load(one, weights=weights, device=device) if isinstance(one, str) else one for one in given]
    return [fitted(one, fit) for one in loaded]


def _places(models: Sequence[Model], layers: Sequence[str] | None, seed: int) -> list[tuple[Block, ...]]:
    """Blocks of each network; a ResNet is cut as finely as the other one is."""

    def of(one: Model, groups: int) -> tuple[Block, ...]:
        return blocks(unwrapped(one.module), name=one.name, layers=layers, groups=groups, seed=seed)

    found = [of(one, SCALE) for one in models]
    scales = {some[0].scale for some in found if some[0].cascaded}
    if len(scales) == 1 and scales != {SCALE}:
        (scale,) = scales
        found = [some if some[0].cascaded else of(one, scale) for one, some in zip(models, found, strict=True)]
    return found


def _wanted(statistics: Sequence[str], chosen: Sequence[str]) -> set[str]:
    """Names of single statistics: those asked for, and all of the families asked for."""
    return {name for asked in statistics for name in (FAMILIES[asked] if asked in chosen else (asked,))}


def _batches(
    images: Any,
    models: Sequence[Model],
    size: int,
    refused: Refused | None,
    digest: Any,
    labels: np.ndarray | None,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Places of pictures in what was given, and each network's input of them; pictures of one size at a time."""
    held: list[tuple[int, list[Tensor]]] = []
    number = -1
    for number, image in enumerate(_each(images)):
        try:
            picture = image if isinstance(image, Picture) else decode(image)
            inputs = [model.preprocess(picture.rgb)[0] for model in models]
        except R2VizError as error:
            if refused is None:
                raise
            refused(image, error)
            continue
        if labels is not None and number >= len(labels):
            raise ModelError(f"{len(labels)} labels came for more pictures than that; give one label per picture")
        digest.update(picture.sha256.encode())
        if held and (len(held) == size or [one.shape for one in held[0][1]] != [one.shape for one in inputs]):
            yield _together(held)
            held = []
        held.append((number, inputs))
    if labels is not None and len(labels) != number + 1:
        raise ModelError(f"{len(labels)} labels came for {number + 1} pictures; give one label per picture")
    if held:
        yield _together(held)


def _together(held: Sequence[tuple[int, list[Tensor]]]) -> tuple[list[int], list[Tensor]]:
    inputs = zip(*(tensors for _, tensors in held), strict=True)
    return [number for number, _ in held], [
        torch.cat(one).contiguous(memory_format=torch.channels_last) for one in inputs
    ]


def _each(images: Any) -> Iterable[Any]:
    """One picture is a list of one; so is an array `(H, W, 3)`."""
    if isinstance(images, (str, bytes, os.PathLike, Picture)) or not isinstance(images, Iterable):
        return [images]
    return [images] if isinstance(images, np.ndarray) and images.ndim == 3 else images


def _network(model: Model, found: Sequence[Block]) -> Network:
    return Network(
        model=model.name,
        title=model.title,
        weights={
            "kind": model.weights.kind,
            "source": model.weights.source,
            "sha256": model.weights.sha256,
            "note": model.weights.note,
        },
        seed=model.seed,
        preprocess=model.preprocess.as_dict(),
        splits=tuple(part.split for block in found for part in block.parts),
    )


def _notes(models: Sequence[Model], places: Sequence[Sequence[Block]]) -> Iterator[str]:
    for model, found in zip(models, places, strict=True):
        if any(part.split.jump is None for block in found for part in block.parts):
            yield f"{model.name}: where units sit is not known here; frequencies assume input size / map size"
        if not found[0].cascaded:
            yield f"{model.name} has no splits: its middle channels are cut into {found[0].scale} groups as the control"
