"""Which units are measured, what they can see, and the least part of the input that gives the same."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from r2viz.errors import ModelError, R2VizError, TapError, one_line
from r2viz.graph import Trace, trace
from r2viz.receptive.theory import Field, Grid, Pair
from r2viz.receptive.trace import fields
from r2viz.taps import Point, device_of, tap

Unit = tuple[int, int] | Literal["centre"]
Window = tuple[int, int, int, int]
"""(y0, x0, y1, x1) of the input, the last ones exclusive."""
Shapes = dict[str, tuple[int, int]]

# By what was traced, which is new when the network gets other parts.
_shapes: weakref.WeakKeyDictionary[Trace, dict[tuple[object, ...], Shapes]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Place:
    """One unit of one feature map, and where it looks.

    Attributes:
        layer: tap name; `at` is the same, parsed.
        unit: (row, column).
        centre: (y, x) in input pixels, 0-based.
        theory: the field of the layer's units; None where theory says nothing.
        seen: the part of the input outside of which the gradient is zero.
        croppable: whether the network may be run on a part of the input.
    """

    layer: str
    at: Point
    unit: tuple[int, int]
    centre: Pair
    theory: Field | None
    seen: Window
    croppable: bool


def units_named(units: Unit | Sequence[Unit]) -> list[Unit]:
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


def placed(
    layer: str,
    at: Point,
    unit: Unit,
    shape: tuple[int, int],
    size: tuple[int, int],
    theory: Field | None,
    middle: bool,
) -> Place:
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
        return Place(layer, at, unit, centre, theory, whole, croppable=False)
    y0, x0, y1, x1 = theory.box(unit)
    seen = (
        max(0, math.floor(y0)),
        max(0, math.floor(x0)),
        min(size[0], math.ceil(y1)),
        min(size[1], math.ceil(x1)),
    )
    if seen[0] >= seen[2] or seen[1] >= seen[3]:  # it lies in the padding altogether
        return Place(layer, at, unit, centre, theory, whole, croppable=False)
    return Place(layer, at, unit, centre, theory, seen, croppable=True)


def theory_at(found: dict[str, Field | None], at: Point) -> Field | None:
    """The field of a tap; one split's part of what goes into `conv3` sees what the split sees."""
    if not at.into:
        return found.get(at.path)
    if at.split is not None:
        split = found.get(f"{at.path.rpartition('.')[0]}.split{at.split}")
        if split is not None:
            return split
    return found.get(f"{at.path}_in")


def window_of(module: nn.Module, places: Sequence[Place], size: tuple[int, int]) -> Window:
    """The part of the input that all units can be computed from, exactly; the whole where that is not certain.

    Whatever a unit depends on, in any layer, sees only pixels that the unit sees. So where its field ends inside the
    picture, nothing it depends on touches the padding of a crop's new edge; where it leaves the picture the crop ends
    with the picture, whose padding is then the same. A crop that starts at a multiple of every stride on the way keeps
    every unit at its place.
    """
    whole = (0, 0, *size)
    if not all(place.croppable for place in places):
        return whole
    steps = [_step(module, place) for place in places]
    if None in steps:
        return whole
    step = math.lcm(*(step for step in steps if step is not None))
    edges: list[tuple[int, int]] = []
    for axis in (0, 1):
        start = min(place.seen[axis] for place in places) // step * step
        # A unit whose field lies mostly in the padding sees a pixel or two, too few for the windows on the way.
        least = max(_extent(place, axis) for place in places)
        start = max(0, min(start, size[axis] - least) // step * step)
        needed = max(*(place.seen[axis + 2] - start for place in places), least)
        # A whole number of steps, so that branches that round in different ways meet as they do in the whole.
        edges.append((start, min(size[axis], start + math.ceil(needed / step) * step)))
    (y0, y1), (x0, x1) = edges
    return (y0, x0, y1, x1)


def _extent(place: Place, axis: int) -> int:
    """How many pixels a unit's field is long, along rows or columns, those beyond the border included."""
    if place.theory is None:
        return 1
    left, right = (place.theory.y if axis == 0 else place.theory.columns).reach
    return math.ceil(right - left) + 1


def _step(module: nn.Module, place: Place) -> int | None:
    """The least distance by which the input can be moved so that every unit on the way has a new place."""
    traced = trace(module)
    end = (traced.inputs if place.at.into else traced.outputs).get(place.at.path)
    if end is None or place.theory is None:
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
    jumps = {jump for seen in (*met, place.theory) if seen is not None for jump in seen.jump}
    if not all(float(jump).is_integer() or float(1 / jump).is_integer() for jump in jumps):
        return None
    return math.lcm(*(max(1, round(jump)) for jump in jumps))


# The network


def wraps(module: nn.Module) -> bool:
    """Whether padding repeats pixels of the picture, perhaps from its far side."""
    return any(getattr(part, "padding_mode", "zeros") != "zeros" for part in module.modules())


def mixing_inputs(module: nn.Module) -> str:
    """The kind of a normalisation whose statistics are taken from the input also in evaluation mode, or ""."""
    for part in module.modules():
        own = isinstance(part, (nn.GroupNorm, nn.InstanceNorm2d)) and not getattr(part, "track_running_stats", False)
        if own or (isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None):
            return type(part).__name__
    return ""


def kind_of(module: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


class _Skipped(TorchFunctionMode):
    """Batch normalisation as nothing: it changes no shape, and without values costs more than all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.functional.batch_norm, torch.batch_norm) and args:
            return args[0]
        return func(*args, **kwargs)


def shapes_at(module: nn.Module, example: Tensor, layers: Sequence[str]) -> Shapes:
    """(h, w) of every feature map, without computing it; once for each form of input."""
    known = _shapes.setdefault(trace(module), {})
    key = (*example.shape, *layers)
    if key not in known:
        known[key] = _passed(module, example, layers)
    return known[key]


def _passed(module: nn.Module, example: Tensor, layers: Sequence[str]) -> Shapes:
    """The same by a pass that runs to its end, so that taps are checked."""
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    bare = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    shape = tuple(example.shape)
    taken: dict[str, Tensor] = {}
    try:
        with torch.no_grad(), _Skipped(), tap(module, layers) as taken:
            functional_call(module, bare, (torch.empty(shape, device="meta", dtype=kind_of(module)),))
    except R2VizError:
        raise
    except Exception:  # code that needs values
        try:
            with torch.no_grad(), tap(module, layers) as taken:
                module(example.to(device_of(module), kind_of(module)))
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot be run on an input of {' x '.join(map(str, shape[1:]))} "
                f"({one_line(str(error).splitlines()[0], 160)})"
            ) from error
    return {layer: (int(taken[layer].shape[2]), int(taken[layer].shape[3])) for layer in layers}
