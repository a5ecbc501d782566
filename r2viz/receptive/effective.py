"""Effective receptive fields by a network's name: pictures or noise in, one record of one network or two out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.erf_records import Erf, ErfRecord, ErfView, Inputs
from r2viz.errors import ModelError, R2VizError, UnknownName, nearest
from r2viz.explain.assemble import versions
from r2viz.geometry import Preprocess
from r2viz.models import weights as stored
from r2viz.models.model import Model, load, load_pair
from r2viz.models.outline import last_stage
from r2viz.receptive.measured import measure, noise
from r2viz.receptive.protocols import Protocol, protocol_named
from r2viz.receptive.stream import Pictures, digests
from r2viz.receptive.trace import fields
from r2viz.receptive.units import Unit
from r2viz.receptive.verbs import theoretical_rf
from r2viz.taps import device_of, point, unwrapped

Network = str | Model | nn.Module
Progress = Callable[[int, int], None]
SOURCES = ("pictures", "noise", "both")
NOISE_SAMPLES = 16
LARGEST_DEFAULT = 512
"""Side in pixels that no default goes beyond: photographs have hardly more, and 1024 costs four times as much."""
LARGEST = 4096


def erf(
    images: Any = None,
    *,
    model: Network | Sequence[Network] | None = None,
    pair: str = "auto",
    weights: str = "auto",
    layers: str | Sequence[str] = (),
    splits: bool = False,
    units: Unit | Sequence[Unit] = "centre",
    protocol: str = "luo",
    source: str | None = None,
    size: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    calibrate: bool | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ErfRecord:
    """What units of a network, or of two beside each other, do see: effective receptive fields.

    Pictures are decoded one at a time, so that memory does not grow with their number. One that cannot be used is left
    out, and the record names it. Of random weights, normalisations that start at zero (`zero_init`) count as one:
    otherwise only the shortcuts are seen, which are alike in all variants.

    Args:
        images: one picture or several, each whatever `r2viz.decode` takes, or a folder; or inputs that are
            preprocessed already, a tensor `(N, 3, H, W)`. None: noise.
        model: a network's name, a loaded model, or any module; or two of these, the baseline first. None: the pair.
        pair: name of a pair.
        weights: as for `r2viz.load`, where networks are named.
        layers: tap names (see `r2viz.taps`); by default each network's last stage.
        splits: measure every split of each layer's last block instead.
        units: (row, column) in the feature map, "centre", or several, as for `r2viz.receptive.measured.measure`.
        protocol: a name in `r2viz.receptive.protocols.PROTOCOLS`; "replknet" squashes pictures to 1024 x 1024.
        source: "pictures", "noise" (independent standard normal), or "both", each by itself; by default what came.
        size: side of the networks' square inputs, in pixels. By default the protocol's own or the network's; for "luo"
            large enough for the largest theoretical field, up to `LARGEST_DEFAULT`.
        samples: at most so many pictures, drawn with `seed` from more; by default the protocol's number, or all. And
            so many inputs of noise, by default 16.
        seed: of noise, of drawing pictures, and of random weights where networks are named.
        calibrate: give batch normalisations the statistics of the first inputs; by default for random weights.
        device: as for `r2viz.load`, where networks are named.
        progress: told `(done, total)`, inputs of all networks.

    Raises:
        BadImage: no picture can be used.
        R2VizError: of the kind that says what else was wrong.
    """
    chosen = protocol_named(protocol)
    source = _source(source, images is not None)
    given = images if isinstance(images, Tensor) else None
    _check(size, samples, given)
    networks = [_ready(one) for one in _models(model, pair, weights, seed, device)]
    taps = [_taps(one.model, layers, splits) for one in networks]
    if given is not None and given.ndim == 4:
        height, width = given.shape[-2:]
    else:
        height = width = size or _default_size([one.model for one in networks], taps, chosen)
    preprocesses = [_preprocess(one.model.preprocess, chosen, height) for one in networks]
    limit = chosen.samples if samples is None else samples
    pictures = Pictures([] if given is not None or images is None else images, preprocesses, limit=limit, seed=seed)
    noises = 0 if source == "pictures" else NOISE_SAMPLES if samples is None else samples
    each = noises + (0 if source == "noise" else pictures.limit if given is None else len(given))
    told = None if progress is None else _Steps(progress, each * len(networks))

    found: list[list[Erf]] = []
    for number, (one, layers_) in enumerate(zip(networks, taps, strict=True)):
        own = one.model.weights.random if calibrate is None else calibrate
        run: dict[str, Any] = {"layers": layers_, "units": units, "protocol": protocol, "calibrate": own}
        run |= {"called": one.model.name, "progress": told}
        erfs: list[Erf] = []
        with _memory(height):
            if source != "noise":
                inputs: Iterable[Tensor] = pictures.inputs(number) if given is None else given
                erfs += measure(one.module, inputs, source="pictures", **run)
            if source != "pictures":
                inputs = noise((height, width), noises, seed=seed)
                erfs += measure(one.module, inputs, source="noise", **run)
        found.append(erfs)

    seen = pictures.seen if given is None else digests(given)
    only = pictures.only
    notes = [note for one in networks for note in one.notes]
    if pictures.drawn:
        notes.append(f"{len(seen)} pictures drawn from more, with seed {seed}")
    return ErfRecord(
        views=tuple(
            ErfView(
                model=one.model.name,
                title=one.model.title,
                weights=vars(one.model.weights),
                seed=one.model.seed,
                preprocess=preprocess.as_dict() if pictures.seen else {},
                erfs=tuple(erfs),
                geometry=None if only is None else only[1][number],
            )
            for number, (one, preprocess, erfs) in enumerate(zip(networks, preprocesses, found, strict=True))
        ),
        protocol=protocol,
        protocol_title=chosen.title,
        source=source,
        input_size=(int(height), int(width)),
        inputs=Inputs(tuple(seen), noises, seed if noises else None, tuple(pictures.left_out)),
        versions=versions(),
        device=str(device_of(networks[0].module)),
        dtype=str(next((one.dtype for one in networks[0].module.parameters()), torch.float32)).removeprefix("torch."),
        notes=tuple(notes),
        picture=None if only is None else only[0],
    )


def _source(source: str | None, images: bool) -> str:
    if source is None:
        return "pictures" if images else "noise"
    if source not in SOURCES:
        raise UnknownName(f"no source {source!r}{nearest(source, SOURCES)}; there are {', '.join(SOURCES)}")
    if images == (source == "noise"):
        what = "pictures came with source 'noise'" if images else f"source {source!r} came without pictures"
        raise ModelError(f"{what}; give pictures with 'pictures' or 'both', and none with 'noise'")
    return source


def _check(size: int | None, samples: int | None, given: Tensor | None) -> None:
    if samples is not None and samples < 1:
        raise ModelError(f"{samples} samples came; give at least 1")
    if size is not None and not 1 <= size <= LARGEST:
        raise ModelError(f"inputs of {size} pixels were asked for; give a size from 1 to {LARGEST}")
    if size is not None and given is not None:
        raise ModelError(f"size {size} was given with a tensor, which has its own; give pictures, or no size")
    if samples is not None and given is not None:
        raise ModelError(f"{samples} samples were given with a tensor; give pictures, or a part of the tensor")


# Networks


@dataclass(frozen=True, eq=False)
class _Network:
    """A model, and its module as it is measured."""

    model: Model
    module: nn.Module
    notes: tuple[str, ...] = ()


def _models(model: Network | Sequence[Network] | None, pair: str, weights: str, seed: int, device: str) -> list[Model]:
    options: dict[str, Any] = {"weights": weights, "device": device}
    if weights == "random":
        options["seed"] = seed
    if model is None:
        return list(load_pair(pair, **options))
    several = [model] if isinstance(model, (str, Model, nn.Module)) else list(model)
    if not 1 <= len(several) <= 2:
        raise ModelError(f"{len(several)} networks came; expected one, or two to compare")
    return [load(one, **options) if isinstance(one, str) else one if isinstance(one, Model) else _lent(one)
            for one in several]  # fmt: skip


def _lent(module: nn.Module) -> Model:
    """A model around a module that nothing is known of: ImageNet's usual preprocessing, weights as they are."""
    name = type(unwrapped(module)).__name__
    origin = stored.Weights("file", "a module as it was given", stored.digest(unwrapped(module).state_dict()))
    return Model(name, name, module, Preprocess(), (), origin)


def _ready(model: Model) -> _Network:
    """Of random weights a copy whose normalisations do not start at zero, if any do."""
    module = unwrapped(model.module)
    asleep = [name for name, part in module.named_modules() if _zero(part)] if model.weights.random else []
    if not asleep:
        return _Network(model, module)
    twin = copy.deepcopy(module)
    for name in asleep:
        nn.init.ones_(twin.get_submodule(name).weight)  # type: ignore[arg-type]
    said = f"{model.name}: {len(asleep)} normalisations that start at zero (zero_init) count as one"
    return _Network(model, twin, (said,))


def _zero(part: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return isinstance(part, kinds) and part.weight is not None and not bool(part.weight.any())


def _taps(model: Model, layers: str | Sequence[str], splits: bool) -> list[str]:
    module = unwrapped(model.module)
    named = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    named = named or [last_stage(module, called=model.name)]
    for layer in named:
        point(module, layer, called=model.name)
    return list(dict.fromkeys(tap for layer in named for tap in _splits(model, layer))) if splits else named


def _splits(model: Model, layer: str) -> list[str]:
    """Every split of the last block of a stage, or of a block."""
    found = [path for path in fields(unwrapped(model.module)) if path.startswith(f"{layer}.")]
    found = [path for path in found if path.rpartition(".split")[2].isdigit()]
    if not found:
        raise UnknownName(
            f"{model.name} has no splits at {layer!r}; name a stage or block of a Res2Net, by itself with model=",
            code="unknown_name.layer",
        )
    block = found[-1].rpartition(".")[0]
    return [path for path in found if path.rpartition(".")[0] == block]


# Inputs


def _default_size(models: Sequence[Model], taps: Sequence[Sequence[str]], chosen: Protocol) -> int:
    if chosen.preprocess is not None and chosen.preprocess.crop is not None:
        return chosen.preprocess.crop[0]
    own = max(min(model.preprocess.crop or (LARGEST_DEFAULT,)) for model in models)
    if chosen.middle:  # another's protocol, whose size is the network's
        return own
    fields_: list[int] = []
    for model, layers in zip(models, taps, strict=True):
        try:
            found = theoretical_rf(model, layers).values()
        except R2VizError:  # nothing is known
            return max(own, LARGEST_DEFAULT)
        fields_ += [LARGEST_DEFAULT if field.unbounded else field.max for field in found]
    return max(own, min(LARGEST_DEFAULT, 64 * math.ceil(max(fields_) / 64)))


def _preprocess(own: Preprocess, chosen: Protocol, size: int) -> Preprocess:
    """The network's own colours; its resize and crop grown in proportion, or the protocol's way."""
    if chosen.preprocess is not None:
        return replace(chosen.preprocess, crop=(size, size), mean=own.mean, std=own.std)
    if own.crop is None or own.resize is None:
        return replace(own, resize=size, crop=(size, size))
    return replace(own, resize=max(size, round(own.resize * size / min(own.crop))), crop=(size, size))


class _Steps:
    """From inputs done since the last call to all that are done, of how many."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(self._done, self._total)


@contextmanager
def _memory(size: int) -> Iterator[None]:
    """Says in one line that there is not enough."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own are RuntimeErrors
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            said = f"out of memory with inputs of {size} pixels; give a smaller size"
            raise ModelError(said, code="memory") from error
        raise
