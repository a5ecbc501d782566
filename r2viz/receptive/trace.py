"""From a network's graph to the grids of its feature maps."""

from __future__ import annotations

import weakref
from typing import Any

from torch import fx, nn

from r2viz.graph import trace
from r2viz.receptive.theory import Grid

# What leaves every unit where it is. Anything in neither this list nor `_window` has no known grid.
_POINTWISE_MODULES = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
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

_cache: weakref.WeakKeyDictionary[nn.Module, dict[str, Grid | None]] = weakref.WeakKeyDictionary()


def grids(module: nn.Module) -> dict[str, Grid | None]:
    """The grid of every module's output, by module name; `NAME_in` is the grid of its input.

    None stands where units have no place on the input: after global pooling, or behind an operation unknown here.
    Where `torch.fx` cannot follow a network any further (say, a branch on values), the modules from there on are not
    in the dict. Safe from several threads.
    """
    if module not in _cache:
        _cache[module] = _placed(module)
    return _cache[module]


def _placed(module: nn.Module) -> dict[str, Grid | None]:
    traced = trace(module)
    if traced.graph is None:
        return {}
    found: dict[fx.Node, Grid | None] = {}
    placeholders = 0
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            found[node] = Grid() if placeholders == 0 else None
            placeholders += 1
        elif node.op == "get_attr":
            found[node] = _EVERYWHERE
        else:
            grid = _meeting([found[source] for source in node.all_input_nodes])
            found[node] = grid if grid is None or grid is _EVERYWHERE else _after(node, grid, module)
    result = {path: found.get(node) for path, node in traced.outputs.items()}
    result |= {f"{path}_in": found.get(node) for path, node in traced.inputs.items()}
    return {path: None if grid is _EVERYWHERE else grid for path, grid in result.items()}


def _meeting(sources: list[Grid | None]) -> Grid | None:
    """The grid of a node's inputs taken together; those that are the same everywhere (a channel gate) don't count."""
    if None in sources:
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


def _after(node: fx.Node, grid: Grid, module: nn.Module) -> Grid | None:
    if node.op == "call_module":
        return _through(module.get_submodule(str(node.target)), grid)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("size", "dim", "getattr"):  # numbers about the tensor
        return _EVERYWHERE
    if name in ("mean", "amax"):
        axes = _argument(node, "dim", 1)
        return _EVERYWHERE if axes in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2]) else None
    if name == "adaptive_avg_pool2d":
        return _EVERYWHERE if _argument(node, "output_size", 1) in _ONE else None
    if name in ("avg_pool2d", "max_pool2d"):
        kernel = _argument(node, "kernel_size", 1)
        stride = _argument(node, "stride", 2) or kernel
        dilation = _argument(node, "dilation", 4, 1) if name == "max_pool2d" else 1
        window = (kernel, stride, _argument(node, "padding", 3, 0), dilation)
        return None if any(isinstance(value, fx.Node) for value in window) else grid.through(*map(_pair, window))
    if name == "getitem":
        return grid if _keeps_places(node) else None
    if name in ("cat", "split", "chunk", "tensor_split"):  # by channels or pictures, never by rows or columns
        return grid if _argument(node, "dim", 1 if name == "cat" else 2, 0) in (0, 1, -3, -4) else None
    return grid if name in _POINTWISE_FUNCTIONS else None


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


def _through(layer: nn.Module, grid: Grid) -> Grid | None:
    if isinstance(layer, _POINTWISE_MODULES):
        return grid
    if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        dilation = _pair(getattr(layer, "dilation", 1))
        if isinstance(layer.padding, str):  # "same" centres the window, up to half a pixel for even kernels
            same = layer.padding == "same"
            left = tuple((kernel[axis] - 1) * dilation[axis] // 2 if same else 0 for axis in (0, 1))
            padding = (left[0], left[1])
        else:
            padding = _pair(layer.padding)
        return grid.through(kernel, stride, padding, dilation)
    if isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor is not None:
        # As many units share one centre as the factor says: the lattice through the middle of each such group.
        factor = _pair(layer.scale_factor)
        jump = (grid.jump[0] / factor[0], grid.jump[1] / factor[1])
        start = (grid.start[0] - (factor[0] - 1) / 2 * jump[0], grid.start[1] - (factor[1] - 1) / 2 * jump[1])
        return Grid(jump, start, aligned=False)
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and layer.output_size in _ONE:
        return _EVERYWHERE
    return None


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)
