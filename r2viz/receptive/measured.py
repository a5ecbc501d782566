"""What a unit does see: the effective receptive field, by the gradient from any tap back to the input."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.erf_records import Erf, Reach
from r2viz.errors import ModelError, TapError, UnknownName
from r2viz.receptive.extent import sizes
from r2viz.receptive.protocols import Protocol, protocol_named
from r2viz.receptive.slope import Sloped
from r2viz.receptive.trace import fields
from r2viz.receptive.units import (
    Place,
    Unit,
    Window,
    kind_of,
    mixing_inputs,
    placed,
    shapes_at,
    theory_at,
    units_named,
    window_of,
    wraps,
)
from r2viz.taps import device_of, frozen, lock, point, tap, unwrapped

_PIXELS_AT_ONCE = 8 * 224 * 224
_CALIBRATED_ON = 16


@dataclass(eq=False)
class _Target:
    """One unit to be measured, and what has been seen of it so far."""

    place: Place
    total: np.ndarray | None = None
    inputs: int = 0
    skipped: int = 0
    each: dict[str, list[float]] = field(default_factory=dict)


def noise(size: tuple[int, int], samples: int, *, seed: int = 0, channels: int = 3, batch: int = 8) -> Iterator[Tensor]:
    """Independent standard normal inputs `(n, channels, *size)`, `samples` in all, made as they are asked for.

    Preprocessed pictures have about mean 0 and variance 1, too. Equal for equal seeds, whatever the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, batch):
        drawn = [torch.randn(1, channels, *size, generator=generator) for _ in range(min(batch, samples - start))]
        yield torch.cat(drawn)


def measure(
    module: nn.Module,
    inputs: Tensor | Iterable[Tensor],
    *,
    layers: str | Sequence[str] = ("layer4",),
    units: Unit | Sequence[Unit] = "centre",
    protocol: str = "luo",
    source: str = "pictures",
    calibrate: bool = False,
    crop: bool = True,
    batch: int | None = None,
    called: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Erf, ...]:
    """The effective receptive field of units of feature maps, averaged over inputs.

    One forward pass serves all layers and units; it ends at the last tap, and only inputs get gradients. Where no
    unit can see the whole input, the network is run on the part that they can see, which gives the same (see
    `window_of`). Memory does not grow with the number of inputs. The network is left as it was, also after an error.
    Safe from several threads.

    Args:
        module: any network of pictures, trained or not.
        inputs: preprocessed, all of one size: `(N, 3, H, W)`, or any iterable of such, which is read once.
        layers: tap names (see `r2viz.taps`), splits included.
        units: (row, column) in the feature map, or "centre": the unit whose theoretical centre is nearest to the
            input's centre; the protocols "replknet" and "openerf" have unit (h // 2, w // 2) instead.
        protocol: a name in `r2viz.receptive.protocols.PROTOCOLS`.
        source: what the record calls the inputs: "pictures" or "noise".
        calibrate: let a copy of the network take its batch normalisations' statistics from the first inputs (up to
            16). For random weights: their own statistics fit no input, and activations grow from block to block.
        crop: False runs the network on whole inputs.
        batch: how many inputs at once; by default as many as make eight of 224 pixels.
        called: the network's name in messages.
        progress: called with the number of inputs done since the last call.

    Returns:
        For every layer in order, one for each unit in order.

    Raises:
        UnknownName: no such layer or protocol.
        TapError: a layer that gives no feature map, or is called more than once; a unit outside of it.
        ModelError: no inputs, of a wrong shape, or of different sizes.
    """
    chosen = protocol_named(protocol)
    module = unwrapped(module)
    layers = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    if not layers:
        raise UnknownName("no layer was named; say at least one, for example 'layer4'", code="unknown_name.layer")
    points = {layer: point(module, layer, called=called) for layer in layers}
    stream = _stream(inputs, called)
    first = next(stream, None)
    if first is None:
        raise ModelError("no inputs came; an effective receptive field is an average over at least one")
    size = (int(first.shape[2]), int(first.shape[3]))
    theory = fields(module)
    with lock(module), torch.inference_mode(False), torch.enable_grad(), frozen(module):
        shapes = shapes_at(module, first[:1], layers)
    places = [
        placed(layer, points[layer], unit, shapes[layer], size, theory_at(theory, points[layer]), chosen.middle)
        for layer in layers
        for unit in units_named(units)
    ]
    notes: list[str] = []
    alone = mixing_inputs(module)
    if alone:
        notes.append(f"{alone} normalises over the batch or the whole picture: one input at a time, nothing cropped")
    if alone or wraps(module):  # units see further than their windows reach
        places = [replace(place, seen=(0, 0, *size), croppable=False) for place in places]
    window = window_of(module, places, size) if crop else (0, 0, *size)
    targets = [_Target(place) for place in places]
    at_once = 1 if alone else batch or _at_once(window)
    calibrated = 0
    if calibrate:
        module, calibrated, stream = _calibrated(module, chain([first], stream))
    else:
        stream = chain([first], stream)
    device, kind = device_of(module), kind_of(module)
    with lock(module), torch.inference_mode(False), torch.enable_grad(), frozen(module):
        for inputs_ in _rebatched(stream, at_once, window):
            given = inputs_.to(device, kind, memory_format=torch.channels_last).requires_grad_()
            _add(module, given, targets, layers, window, chosen, size)
            if progress is not None:
                progress(len(inputs_))
    return tuple(_erf(target, chosen, protocol, source, size, window, calibrated, notes) for target in targets)


# The gradient


class _Enough(Exception):
    """All taps have been passed: what comes after them is of no use."""


def _tapped(module: nn.Module, given: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The feature maps at `layers`, by one forward pass that goes no further than the last of them."""
    owner = threading.get_ident()
    with tap(module, layers) as taken, ExitStack() as stack:

        def stop(*_: Any) -> None:
            if threading.get_ident() == owner and len(taken) == len(layers):
                raise _Enough

        for layer in layers:
            where = point(module, layer)
            part = module.get_submodule(where.path)
            # After the tap's own hook, since hooks are called in the order of their registration.
            handle = part.register_forward_pre_hook(stop) if where.into else part.register_forward_hook(stop)
            stack.callback(handle.remove)
        with suppress(_Enough), Sloped():
            module(given)
    return taken


def _add(
    module: nn.Module,
    given: Tensor,
    targets: Sequence[_Target],
    layers: Sequence[str],
    window: Window,
    chosen: Protocol,
    size: tuple[int, int],
) -> None:
    """Add one batch to all targets. Inputs do not mix in evaluation mode, so the gradient of a sum has them apart."""
    taken = _tapped(module, given, layers)
    for number, target in enumerate(targets):
        values = target.place.at.part(taken[target.place.layer])
        if not values.requires_grad:
            raise TapError(f"{target.place.layer!r} does not depend on the input; choose a layer that does")
        row, column = _inside(target, window)
        score = chosen.score(values[:, :, row, column]).sum()
        (gradient,) = torch.autograd.grad(score, given, retain_graph=number + 1 < len(targets))
        y0, x0, y1, x1 = target.place.seen
        part = gradient[:, :, y0 - window[0] : y1 - window[0], x0 - window[1] : x1 - window[1]]
        if part.dtype in (torch.float16, torch.bfloat16):
            part = part.float()
        for map_ in chosen.reduce(part).cpu().numpy():
            _take(target, map_, size)


def _inside(target: _Target, window: Window) -> tuple[int, int]:
    """The unit's row and column when the network is run on the window."""
    if target.place.theory is None:
        return target.place.unit
    jump = target.place.theory.jump
    return target.place.unit[0] - round(window[0] / jump[0]), target.place.unit[1] - round(window[1] / jump[1])


def _take(target: _Target, map_: np.ndarray, size: tuple[int, int]) -> None:
    if not np.isfinite(map_).all():
        target.skipped += 1
        return
    target.total = map_.astype(np.float64) if target.total is None else target.total + map_
    target.inputs += 1
    found = sizes(map_, target.place.centre, picture=size, corner=target.place.seen[:2], fit=False)
    named = {} if found is None else found.named()
    for name in {**target.each, **named}:
        # Inputs without any gradient before the first that has one hold their place, too.
        target.each.setdefault(name, [math.nan] * (target.inputs - 1)).append(named.get(name, math.nan))


# Inputs


def _stream(inputs: Tensor | Iterable[Tensor], called: str | None) -> Iterator[Tensor]:
    first: tuple[int, ...] | None = None
    for given in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(given, Tensor) or given.ndim != 4 or not given.is_floating_point():
            came = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ModelError(
                f"an input of {called or 'the network'} is {came}; expected preprocessed pictures, floating-point "
                "(N, 3, H, W)",
                code="model.input",
            )
        first = first or tuple(given.shape[1:])
        if tuple(given.shape[1:]) != first:
            now, before = (" x ".join(map(str, shape)) for shape in (given.shape[1:], first))
            raise ModelError(
                f"an input of {now} came after one of {before}; maps are averaged over inputs of one size: "
                "preprocess with a crop, or squash",
                code="model.input",
            )
        if len(given):
            yield given.detach()


def _rebatched(stream: Iterable[Tensor], at_once: int, window: Window) -> Iterator[Tensor]:
    """Batches of `at_once` inputs, cut to the window."""
    kept: list[Tensor] = []
    for given in stream:
        kept += given[:, :, window[0] : window[2], window[1] : window[3]].split(1)
        while len(kept) >= at_once:
            yield torch.cat(kept[:at_once])
            kept = kept[at_once:]
    if kept:
        yield torch.cat(kept)


def _at_once(window: Window) -> int:
    return max(1, _PIXELS_AT_ONCE // max(1, (window[2] - window[0]) * (window[3] - window[1])))


def _calibrated(module: nn.Module, stream: Iterator[Tensor]) -> tuple[nn.Module, int, Iterator[Tensor]]:
    """A copy whose batch normalisations have the statistics of the first inputs, their number, and all inputs again.

    In one pass per batch, each normalisation sees what the ones before it give in training mode; statistics are
    averaged over batches with equal weight. The copy alone is changed.
    """
    seen: list[Tensor] = []
    for given in stream:
        seen.append(given)
        if sum(map(len, seen)) >= _CALIBRATED_ON:
            break
    with lock(module):
        twin = copy.deepcopy(module)
    twin.eval().requires_grad_(False)
    parts = [part for part in twin.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    tracked = [part for part in parts if part.running_mean is not None]
    for part in tracked:
        part.reset_running_stats()
        part.momentum = None
        part.train()
    given = torch.cat(seen)
    used = 0
    with torch.no_grad():
        for some in given[:_CALIBRATED_ON].split(_at_once((0, 0, *given.shape[2:]))):
            twin(some.to(device_of(twin), kind_of(twin), memory_format=torch.channels_last))
            used += len(some)
    return twin.eval(), used, chain(seen, stream)


# The result


def _erf(
    target: _Target,
    chosen: Protocol,
    name: str,
    source: str,
    size: tuple[int, int],
    window: Window,
    calibrated: int,
    notes: Sequence[str],
) -> Erf:
    y0, x0, y1, x1 = target.place.seen
    total = np.zeros((y1 - y0, x1 - x0)) if target.total is None else target.total
    mean = total / max(1, target.inputs)
    if chosen.scaled and mean.sum() > 0:
        mean = mean / mean.sum()
    found = sizes(mean, target.place.centre, picture=size, corner=(y0, x0))
    theory = target.place.theory
    reach = None
    if theory is not None:
        reach = Reach(
            theory.min, theory.max, theory.box(target.place.unit), theory.jump, theory.aligned, theory.unbounded
        )
    result = Erf(
        layer=target.place.layer,
        unit=target.place.unit,
        centre=target.place.centre,
        protocol=name,
        definition=chosen.definition,
        source=source,
        inputs=target.inputs,
        skipped=target.skipped,
        input_size=size,
        raw=mean.astype(np.float32),
        corner=(y0, x0),
        computed_on=window,
        theory=reach,
        sizes=found,
        each={key: np.array(values) for key, values in target.each.items()},
        calibrated=calibrated,
    )
    own = {} if chosen.sizes is None else chosen.sizes(result.map)
    return replace(result, own_sizes=own, notes=(*notes, *_notes(result)))


def _notes(erf: Erf) -> Iterator[str]:
    height, width = erf.input_size
    shown = f"{height} x {width}"
    if erf.sizes is None:
        yield f"no gradient reached the input in any of {erf.inputs} inputs: the unit is never active, or cut off"
    if erf.skipped:
        yield f"{erf.skipped} inputs were left out because their gradient is not finite"
    if erf.theory is None:
        yield "nothing is known of this layer's theoretical field: the unit is taken to lie where resizing would put it"
    elif erf.theory.unbounded:
        yield "the field is unbounded (a gate made from the whole picture): nothing was cropped"
    else:
        y0, x0, y1, x1 = erf.theory.box
        if y0 < 0 or x0 < 0 or y1 > height or x1 > width:
            yield (
                f"the theoretical field ({erf.theory.max} px) leaves the input ({shown}) around this unit; "
                f"the border may cut the effective one off"
            )
    if erf.sizes is not None:
        room = min(erf.centre[0], erf.centre[1], height - 1 - erf.centre[0], width - 1 - erf.centre[1])
        side = erf.sizes.square[95]
        if side > 2 * room + 1:
            least = 64 * math.ceil(max(1.5 * side, 2 * max(height, width)) / 64)
            yield (
                f"the input ({shown}) is too small: the square with 95 % of the mass ({side:g} px) reaches its border, "
                f"so sizes are lower limits; give inputs of {least} px or more"
            )
