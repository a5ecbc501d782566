"""Is a record to be trusted? Its maps held against what the networks do when pixels, or their weights, are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from r2viz.attribution import PIXELS
from r2viz.attribution.targets import VERSUS
from r2viz.checks import Verdict
from r2viz.errors import ModelError
from r2viz.explain.assemble import Prepared
from r2viz.explain.batch import run
from r2viz.explain.request import Request, asks
from r2viz.faithfulness import faithfulness, probability_of, randomisation
from r2viz.geometry import Geometry
from r2viz.models.model import Model
from r2viz.records import CamRecord, LayerMap, View
from r2viz.taps import device_of


def check(
    record: CamRecord,
    models: Sequence[Model],
    *,
    layer: str | None = None,
    layers: Sequence[str] | None = None,
    forget: bool = True,
    seed: int = 0,
    batch: int = 32,
) -> tuple[Verdict, ...]:
    """Faithfulness and the randomisation gate of each network's map at `layer` (the record's last).

    Args:
        record: what is in question.
        models: the networks that made it, in its order.
        layer: which of the record's layers.
        layers: those asked for, which a record of a method of pixels does not tell.
        forget: whether to run the randomisation gate, which takes one map per part of the network.
        seed: of random orders, noise and random weights.
        batch: variants of the picture per forward pass.

    Raises:
        ModelError: these are not the record's networks.
        UnknownName: no such layer.
    """
    if [model.name for model in models] != [view.model for view in record.views]:
        raise ModelError(
            f"the record is of {', '.join(view.model for view in record.views)}, "
            f"but the networks are {', '.join(model.name for model in models)}; give those that made it"
        )
    layer = record.layers[-1] if layer is None else layer
    return tuple(
        _verdict(record, view, model, layer, layers, forget, seed, batch)
        for view, model in zip(record.views, models, strict=True)
    )


def _verdict(
    record: CamRecord,
    view: View,
    model: Model,
    layer: str,
    layers: Sequence[str] | None,
    forget: bool,
    seed: int,
    batch: int,
) -> Verdict:
    tensor, _ = model.preprocess(record.picture.rgb)
    tensor = tensor.to(device_of(model.module))
    preprocess = model.preprocess
    black = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
    size = (tensor.shape[2], tensor.shape[3])
    with probability_of(model.module, view.target.index, batch=batch) as probability:
        found = faithfulness(probability, tensor, on_input(view.map(layer), size), black=black, seed=seed)
    if not forget:
        return Verdict(found, None)

    def map_of(network: nn.Module) -> np.ndarray:
        return _again(record, view, replace(model, module=network), layers).map(layer).raw

    return Verdict(found, randomisation(model.module, map_of, seed=seed))


def on_input(map_: LayerMap, size: tuple[int, int]) -> np.ndarray:
    """A map after its ReLU over the network's own input, float32 `(H, W)`."""
    geometry = Geometry(source_size=size, input_size=size, scale=(1.0, 1.0), offset=(0.0, 0.0))
    return geometry.lay(map_.positive, start=map_.start, jump=map_.jump)


def _again(record: CamRecord, view: View, model: Model, asked_for: Sequence[str] | None) -> View:
    """The same map by another network, of the same class whatever that network thinks of it."""
    named = tuple(map_.layer.removeprefix(f"{PIXELS}@") for map_ in view.maps)
    settings = dict(record.settings)
    if settings.get("fuse"):
        named = named[:-1]
    layers = named if named != (PIXELS,) else None if asked_for is None else tuple(asked_for)
    request = Request(layers=layers, registration=record.registration, **settings).checked([model])
    target: str | int = record.policy if VERSUS in view.target.label else view.target.index
    asked = asks(record.method, target, [model])
    prepared = Prepared(record.picture, None, [model.preprocess(record.picture.rgb)])
    answer = run([prepared], [model], asked, request, lambda _done, _total: None)[0][0]
    if isinstance(answer, Exception):
        raise answer
    return answer.views[0]
