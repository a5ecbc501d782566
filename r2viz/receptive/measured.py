"""What a unit does see: the effective receptive field, by the gradient from any tap back to the input."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from r2viz.erf_records import Erf, Reach
from r2viz.errors import ModelError, R2VizError, TapError, UnknownName, one_line
from r2viz.graph import trace
from r2viz.receptive.extent import sizes
from r2viz.receptive.protocols import Protocol, protocol_named
from r2viz.receptive.slope import Sloped
from r2viz.receptive.theory import Field, Grid, Pair
from r2viz.receptive.trace import fields
from r2viz.taps import Point, device_of, frozen, lock, point, tap, unwrapped

Unit = tuple[int, int] | Literal["centre"]
Window = tuple[int, int, int, int]
"""(y0, x0, y1, x1) of the input, the last ones exclusive."""

_PIXELS_AT_ONCE = 8 * 224 * 224
_CALIBRATED_ON = 16


@dataclass(eq=False)
class _Target:
    """One unit to be measured, and what has been seen of it so far."""

    layer: str
    at: Point
    unit: tuple[int, int]
    centre: Pair
    theory: Field | None
    seen: Window
    croppable: bool
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
    `_window`). Memory does not grow with the number of inputs. The network is left as it was, also after an error.
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
        shapes = _shapes(module, first[:1], layers)
        places = _units(units)
        targets = [
            _target(layer, points[layer], unit, shapes[layer], size, _theory(theory, points[layer]), chosen.middle)
            for layer in layers
            for unit in places
        ]
    notes: list[str] = []
    alone = _mixing_inputs(module)
    if alone:
        notes.append(f"{alone} normalises over the batch or the whole picture: one input at a time, nothing cropped")
    if alone or _wraps(module):  # units see further than their windows reach
        for target in targets:
            target.seen, target.croppable = (0, 0, *size), False
    window = _window(module, targets, size) if crop else (0, 0, *size)
    at_once = 1 if alone else batch or _at_once(window)
    calibrated = 0
    if calibrate:
        module, calibrated, stream = _calibrated(module, chain([first], stream))
    else:
        stream = chain([first], stream)
    device, kind = device_of(module), _kind(module)
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
        values = target.at.part(taken[target.layer])
        if not values.requires_grad:
            raise TapError(f"{target.layer!r} does not depend on the input; choose a layer that does")
        row, column = _inside(target, window)
        score = chosen.score(values[:, :, row, column]).sum()
        (gradient,) = torch.autograd.grad(score, given, retain_graph=number + 1 < len(targets))
        y0, x0, y1, x1 = target.seen
        part = gradient[:, :, y0 - window[0] : y1 - window[0], x0 - window[1] : x1 - window[1]]
        if part.dtype in (torch.float16, torch.bfloat16):
            part = part.float()
        for map_ in chosen.reduce(part).cpu().numpy():
            _take(target, map_, size)


def _inside(target: _Target, window: Window) -> tuple[int, int]:
    """The unit's row and column when the network is run on the window."""
    if target.theory is None:
        return target.unit
    jump = target.theory.jump
    return target.unit[0] - round(window[0] / jump[0]), target.unit[1] - round(window[1] / jump[1])


def _take(target: _Target, map_: np.ndarray, size: tuple[int, int]) -> None:
    if not np.isfinite(map_).all():
        target.skipped += 1
        return
    target.total = map_.astype(np.float64) if target.total is None else target.total + map_
    target.inputs += 1
    found = sizes(map_, target.centre, picture=size, corner=target.seen[:2], fit=False)
    named = {} if found is None else found.named()
    for name in {**target.each, **named}:
        # Inputs without any gradient before the first that has one hold their place, too.
        target.each.setdefault(name, [math.nan] * (target.inputs - 1)).append(named.get(name, math.nan))


# Where to look


def _units(units: Unit | Sequence[Unit]) -> list[Unit]:
    """One unit or several; a pair of whole numbers is one unit."""
    if isinstance(units, str) or (len(units) == 2 and all(isinstance(part, (int, np.integer)) for part in units)):
        units = [units]  # type: ignore[list-item]
    found: list[Unit] = []
    for unit in units:
        if isinstance(unit, str):
            if unit != "centre":
                raise TapError(
                    f"no unit {one_line(unit, 40)!r}; expected 'centre' or (row, column) in the feature map",
                    code="tap.unit",
                )
            found.append("centre")
        elif (
            isinstance(unit, Sequence) and len(unit) == 2 and all(isinstance(part, (int, np.integer)) for part in unit)
        ):
            found.append((int(unit[0]), int(unit[1])))
        else:
            raise TapError(
                f"{one_line(repr(unit), 60)} is no unit; expected 'centre' or (row, column) in the feature map",
                code="tap.unit",
            )
    if not found:
        raise TapError("no unit was named; expected 'centre' or (row, column) in the feature map", code="tap.unit")
    return found


def _target(
    layer: str,
    at: Point,
    unit: Unit,
    shape: tuple[int, int],
    size: tuple[int, int],
    theory: Field | None,
    middle: bool,
) -> _Target:
    if theory is None:
        grid = Grid.resized(size, shape)
        start, jump = grid.start, grid.jump
    else:
        start, jump = theory.centre, theory.jump
    if unit == "centre" and middle:
        unit = (shape[0] // 2, shape[1] // 2)
    elif unit == "centre":
        row, column = (
            # Of two equally near ones the first.
            min(range(shape[axis]), key=lambda i: abs(start[axis] + i * jump[axis] - (size[axis] - 1) / 2))
            for axis in (0, 1)
        )
        unit = (row, column)
    if not (0 <= unit[0] < shape[0] and 0 <= unit[1] < shape[1]):
        raise TapError(
            f"unit ({unit[0]}, {unit[1]}) is outside {layer!r}, which has {shape[0]} x {shape[1]} units for an input "
            f"of {size[0]} x {size[1]}; expected rows 0 to {shape[0] - 1} and columns 0 to {shape[1] - 1}, or 'centre'",
            code="tap.unit",
        )
    unit = (int(unit[0]), int(unit[1]))
    centre = (start[0] + unit[0] * jump[0], start[1] + unit[1] * jump[1])
    whole = (0, 0, *size)
    if theory is None or theory.unbounded:
        return _Target(layer, at, unit, centre, theory, whole, croppable=False)
    y0, x0, y1, x1 = theory.box(unit)
    seen = (
        max(0, math.floor(y0)),
        max(0, math.floor(x0)),
        min(size[0], math.ceil(y1)),
        min(size[1], math.ceil(x1)),
    )
    if seen[0] >= seen[2] or seen[1] >= seen[3]:  # it lies in the padding altogether
        return _Target(layer, at, unit, centre, theory, whole, croppable=False)
    return _Target(layer, at, unit, centre, theory, seen, croppable=True)


def _theory(found: dict[str, Field | None], at: Point) -> Field | None:
    """The field of a tap; one split's part of what goes into `conv3` sees what the split sees."""
    if not at.into:
        return found.get(at.path)
    if at.split is not None:
        split = found.get(f"{at.path.rpartition('.')[0]}.split{at.split}")
        if split is not None:
            return split
    return found.get(f"{at.path}_in")


def _window(module: nn.Module, targets: Sequence[_Target], size: tuple[int, int]) -> Window:
    """The part of the input that all targets can be computed from, exactly; the whole where that is not certain.

    Whatever a unit depends on, in any layer, sees only pixels that the unit sees. So where its field ends inside the
    picture, nothing it depends on touches the padding of a crop's new edge; where it leaves the picture the crop ends
    with the picture, whose padding is then the same. A crop that starts at a multiple of every stride on the way keeps
    every unit at its place.
    """
    whole = (0, 0, *size)
    if not all(target.croppable for target in targets):
        return whole
    steps = [_step(module, target) for target in targets]
    if None in steps:
        return whole
    step = math.lcm(*(step for step in steps if step is not None))
    edges: list[tuple[int, int]] = []
    for axis in (0, 1):
        start = min(target.seen[axis] for target in targets) // step * step
        # A unit whose field lies mostly in the padding sees a pixel or two, too few for the windows on the way.
        least = max(_extent(target, axis) for target in targets)
        start = max(0, min(start, size[axis] - least) // step * step)
        needed = max(*(target.seen[axis + 2] - start for target in targets), least)
        # A whole number of steps, so that branches that round in different ways meet as they do in the whole.
        edges.append((start, min(size[axis], start + math.ceil(needed / step) * step)))
    (y0, y1), (x0, x1) = edges
    return (y0, x0, y1, x1)


def _extent(target: _Target, axis: int) -> int:
    """How many pixels a unit's field is long, along rows or columns, those beyond the border included."""
    if target.theory is None:
        return 1
    left, right = (target.theory.y if axis == 0 else target.theory.columns).reach
    return math.ceil(right - left) + 1


def _step(module: nn.Module, target: _Target) -> int | None:
    """The least distance by which the input can be moved so that every unit on the way has a new place."""
    traced = trace(module)
    end = (traced.inputs if target.at.into else traced.outputs).get(target.at.path)
    if end is None or target.theory is None:
        return None
    before, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in before:
            before.add(node)
            waiting += node.all_input_nodes
    found = fields(module)
    named = [(path, node) for path, node in traced.outputs.items()]
    named += [(f"{path}_in", node) for path, node in traced.inputs.items()]
    met = [found.get(path) for path, node in named if node in before]
    jumps = {jump for seen in (*met, target.theory) if seen is not None for jump in seen.jump}
    if not all(float(jump).is_integer() or float(1 / jump).is_integer() for jump in jumps):
        return None
    return math.lcm(*(max(1, round(jump)) for jump in jumps))


def _wraps(module: nn.Module) -> bool:
    """Whether padding repeats pixels of the picture, perhaps from its far side."""
    return any(getattr(part, "padding_mode", "zeros") != "zeros" for part in module.modules())


def _mixing_inputs(module: nn.Module) -> str:
    """The kind of a normalisation whose statistics are taken from the input also in evaluation mode, or ""."""
    for part in module.modules():
        own = isinstance(part, (nn.GroupNorm, nn.InstanceNorm2d)) and not getattr(part, "track_running_stats", False)
        if own or (isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None):
            return type(part).__name__
    return ""


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


def _kind(module: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


class _Skipped(TorchFunctionMode):
    """Batch normalisation as nothing: it changes no shape, and without values costs more than all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.functional.batch_norm, torch.batch_norm) and args:
            return args[0]
        return func(*args, **kwargs)


def _shapes(module: nn.Module, example: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(h, w) of every feature map, without computing it; the pass runs to its end, so that taps are checked."""
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    bare = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    shape = tuple(example.shape)
    taken: dict[str, Tensor] = {}
    try:
        with torch.no_grad(), _Skipped(), tap(module, layers) as taken:
            functional_call(module, bare, (torch.empty(shape, device="meta", dtype=_kind(module)),))
    except R2VizError:
        raise
    except Exception:  # code that needs values
        try:
            with torch.no_grad(), tap(module, layers) as taken:
                module(example.to(device_of(module), _kind(module)))
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot be run on an input of {' x '.join(map(str, shape[1:]))} "
                f"({one_line(str(error).splitlines()[0], 160)})"
            ) from error
    return {layer: (int(taken[layer].shape[2]), int(taken[layer].shape[3])) for layer in layers}


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
            twin(some.to(device_of(twin), _kind(twin), memory_format=torch.channels_last))
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
    y0, x0, y1, x1 = target.seen
    total = np.zeros((y1 - y0, x1 - x0)) if target.total is None else target.total
    mean = total / max(1, target.inputs)
    if chosen.scaled and mean.sum() > 0:
        mean = mean / mean.sum()
    found = sizes(mean, target.centre, picture=size, corner=(y0, x0))
    theory = target.theory
    reach = None
    if theory is not None:
        reach = Reach(theory.min, theory.max, theory.box(target.unit), theory.jump, theory.aligned, theory.unbounded)
    result = Erf(
        layer=target.layer,
        unit=target.unit,
        centre=target.centre,
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
