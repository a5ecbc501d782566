"""From a network's graph to the grids and the theoretical receptive fields of its feature maps."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import fx, nn

from r2viz.graph import Trace, trace
from r2viz.receptive.theory import Field, Grid, Pair

# What leaves every unit where it is. Anything in neither this list nor `_of_layer` is unknown.
_POINTWISE_MODULES = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
)
_ONE = (1, (1, 1), [1, 1])
_POINTWISE_FUNCTIONS = {
    "add",
    "iadd",
    "sub",
    "isub",
    "mul",
    "imul",
    "truediv",
    "relu",
    "relu_",
    "sigmoid",
    "silu",
    "gelu",
    "tanh",
    "dropout",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "half",
    "batch_norm",
}

# Stands for values that are the same everywhere: constants, and what global pooling leaves. They move no centre.
_EVERYWHERE = Grid((0.0, 0.0), (0.0, 0.0))

_grids: weakref.WeakKeyDictionary[Trace, dict[str, Grid | None]] = weakref.WeakKeyDictionary()
_fields: weakref.WeakKeyDictionary[Trace, dict[str, Field | None]] = weakref.WeakKeyDictionary()


class _Effect(Enum):
    """What an operation without a window does to the places of units."""

    SAME = "leaves every unit where it is"
    CONSTANT = "gives numbers that hold no pixel: shapes, parameters"
    GATED = "leaves every unit where it is, and lets the whole picture change its value"
    GLOBAL = "gives values made from the whole picture"
    UNKNOWN = "is not known here"


@dataclass(frozen=True)
class _Window:
    """A convolution or pooling; (y, x) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    wraps: bool = False
    """Whether the border sees the opposite one (circular padding), which no extent around a unit can say."""


@dataclass(frozen=True)
class _Enlargement:
    """Nearest-neighbour upsampling, (y, x)."""

    factor: Pair


def grids(module: nn.Module) -> dict[str, Grid | None]:
    """The grid of every module's output, by module name; `NAME_in` is the grid of its input.

    None stands where units have no place on the input: after global pooling, or behind an operation unknown here.
    Where `torch.fx` cannot follow a network any further (say, a branch on values), the modules from there on are not
    in the dict. Safe from several threads.
    """
    traced = trace(module)
    if traced not in _grids:
        found: dict[fx.Node, Grid | None] = {}
        for node, sources, effect in _followed(traced, module):
            if effect is None:
                found[node] = Grid() if node.op == "placeholder" else _EVERYWHERE
                continue
            grid = _meeting([found[source] for source in sources])
            found[node] = grid if grid is None or grid is _EVERYWHERE else _moved(grid, effect)
        _grids[traced] = {path: None if grid is _EVERYWHERE else grid for path, grid in _by_name(traced, found).items()}
    return _grids[traced]


def fields(module: nn.Module) -> dict[str, Field | None]:
    """The theoretical receptive field of every module's output, by module name; `NAME_in` is that of its input.

    None stands where units have no lattice on the input (after global pooling), or behind an operation unknown here;
    what `torch.fx` cannot follow is not in the dict. Splits of a Res2Net block are its modules `split0`, `split1`, …;
    `conv3_in[i]` sees what `split{i}` sees. Cached; safe from several threads.
    """
    traced = trace(module)
    if traced not in _fields:
        found: dict[fx.Node, Field | _Effect | None] = {}
        for node, sources, effect in _followed(traced, module):
            if effect is None:
                found[node] = Field() if node.op == "placeholder" else _Effect.CONSTANT
            else:
                found[node] = _seen([found[source] for source in sources], effect)
        _fields[traced] = {
            path: seen if isinstance(seen, Field) else None for path, seen in _by_name(traced, found).items()
        }
    return _fields[traced]


def _followed(
    traced: Trace, module: nn.Module
) -> Iterator[tuple[fx.Node, list[fx.Node], _Effect | _Window | _Enlargement | None]]:
    """Every operation in order with its sources and effect; None for the picture and for parameters."""
    graph = traced.graph
    pictures = 0
    for node in () if graph is None else graph.nodes:
        if node.op == "placeholder":
            pictures += 1
            yield node, [], None if pictures == 1 else _Effect.UNKNOWN
        else:
            yield node, node.all_input_nodes, None if node.op == "get_attr" else _effect(node, module)


def _by_name(traced: Trace, found: Mapping[fx.Node, Any]) -> dict[str, Any]:
    result = {path: found.get(node) for path, node in traced.outputs.items()}
    return result | {f"{path}_in": found.get(node) for path, node in traced.inputs.items()}


def _meeting(sources: list[Grid | None]) -> Grid | None:
    """The grid of a node's inputs taken together; those that are the same everywhere (a channel gate) don't count."""
    if None in sources or not sources:
        return None
    placed = [grid for grid in sources if grid is not None and grid is not _EVERYWHERE]
    if not placed:
        return _EVERYWHERE
    grid = placed[0]
    for other in placed[1:]:
        try:
            grid = grid.meet(other)
        except ValueError:
            return None
    return grid


def _moved(grid: Grid, effect: _Effect | _Window | _Enlargement) -> Grid | None:
    if isinstance(effect, _Window):
        return grid.through(effect.kernel, effect.stride, effect.padding, effect.dilation)
    if isinstance(effect, _Enlargement):
        # As many units share one centre as the factor says: the lattice through the middle of each such group.
        factor = effect.factor
        jump = (grid.jump[0] / factor[0], grid.jump[1] / factor[1])
        start = (grid.start[0] - (factor[0] - 1) / 2 * jump[0], grid.start[1] - (factor[1] - 1) / 2 * jump[1])
        return Grid(jump, start, aligned=False)
    return {_Effect.SAME: grid, _Effect.GATED: grid, _Effect.UNKNOWN: None}.get(effect, _EVERYWHERE)


def _seen(sources: list[Field | _Effect | None], effect: _Effect | _Window | _Enlargement) -> Field | _Effect | None:
    """What a node sees: the union of its inputs' paths, through its own window; GLOBAL for the whole picture."""
    if None in sources or not sources or effect is _Effect.UNKNOWN:
        return None
    placed = [source for source in sources if isinstance(source, Field)]
    everything = _Effect.GLOBAL in sources
    if effect is _Effect.CONSTANT:
        return _Effect.CONSTANT
    if not placed:
        return _Effect.GLOBAL if everything else _Effect.CONSTANT
    if effect is _Effect.GLOBAL:
        return _Effect.GLOBAL
    field = placed[0]
    for other in placed[1:]:
        try:
            field = field.meet(other)
        except ValueError:
            return None
    if everything or effect is _Effect.GATED:
        field = field.gated()
    if isinstance(effect, _Window):
        seen = field.through(effect.kernel, effect.stride, effect.padding, effect.dilation)
        return seen.gated() if effect.wraps else seen
    return field.enlarged(effect.factor) if isinstance(effect, _Enlargement) else field


def _effect(node: fx.Node, module: nn.Module) -> _Effect | _Window | _Enlargement:
    if node.op == "call_module":
        return _of_layer(module.get_submodule(str(node.target)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("size", "dim", "getattr"):
        return _Effect.CONSTANT
    if name in ("mean", "amax"):
        axes = _argument(node, "dim", 1)
        known = axes in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
        return _Effect.GLOBAL if known else _Effect.UNKNOWN
    if name == "adaptive_avg_pool2d":
        return _Effect.GLOBAL if _argument(node, "output_size", 1) in _ONE else _Effect.UNKNOWN
    if name in ("avg_pool2d", "max_pool2d"):
        kernel = _argument(node, "kernel_size", 1)
        stride = _argument(node, "stride", 2) or kernel
        dilation = _argument(node, "dilation", 4, 1) if name == "max_pool2d" else 1
        window = (kernel, stride, _argument(node, "padding", 3, 0), dilation)
        if any(isinstance(value, fx.Node) for value in window):
            return _Effect.UNKNOWN
        return _Window(_pair(window[0]), _pair(window[1]), _pair(window[2]), _pair(window[3]))
    if name == "getitem":
        return _Effect.SAME if _keeps_places(node) else _Effect.UNKNOWN
    if name in ("cat", "split", "chunk", "tensor_split"):  # by channels or pictures, never by rows or columns
        along = _argument(node, "dim", 1 if name == "cat" else 2, 0)
        return _Effect.SAME if along in (0, 1, -3, -4) else _Effect.UNKNOWN
    return _Effect.SAME if name in _POINTWISE_FUNCTIONS else _Effect.UNKNOWN


def _argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _keeps_places(node: fx.Node) -> bool:
    """Whether a `getitem` picks one part of a split, or rows and columns of a tensor from the first one on."""
    source, index = node.args[0], node.args[1]
    if isinstance(source, fx.Node) and getattr(source.target, "__name__", source.target) in (
        "split",
        "chunk",
        "tensor_split",
    ):
        return True
    indices = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, slice) for part in indices):
        return False
    rows_and_columns: Any = indices[2:]
    return all(part.start is None and part.step is None for part in rows_and_columns)


def _of_layer(layer: nn.Module) -> _Effect | _Window | _Enlargement:
    if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d)):  # statistics of the picture itself
        return _Effect.GATED
    if isinstance(layer, _POINTWISE_MODULES):
        return _Effect.SAME
    if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        dilation = _pair(getattr(layer, "dilation", 1))
        if isinstance(layer.padding, str):  # "same" centres the window, up to half a pixel for even kernels
            same = layer.padding == "same"
            left = tuple((kernel[axis] - 1) * dilation[axis] // 2 if same else 0 for axis in (0, 1))
            padding = (left[0], left[1])
        else:
            padding = _pair(layer.padding)
        return _Window(kernel, stride, padding, dilation, getattr(layer, "padding_mode", "zeros") == "circular")
    if isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor is not None:
        return _Enlargement(_pair(layer.scale_factor))
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and layer.output_size in _ONE:
        return _Effect.GLOBAL
    return _Effect.UNKNOWN


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)
