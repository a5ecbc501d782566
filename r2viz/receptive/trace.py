"""From a network to the grids of its feature maps: `torch.fx` tells which operation follows which."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import fx, nn

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
_tracing = threading.Lock()


class _Tracer(fx.Tracer):
    """Notes, for every module, the nodes that go in and come out: also for containers, which leave no node."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, fx.Node] = {}
        self.outputs: dict[str, fx.Node] = {}
        self.owner = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.owner:
            # While fx traces, it stands in for the calls of *all* modules, also of a forward pass in another thread.
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        # Not `forward`, which would run the hooks of a user's container on symbolic values.
        out = super().call_module(m, m.forward, args, kwargs)
        if args and isinstance(args[0], fx.Proxy):
            self.inputs[path] = args[0].node
        if isinstance(out, fx.Proxy):
            self.outputs[path] = out.node
        return out

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.owner:
            return attr_val  # likewise: another thread's convolution must get its weight, not a stand-in
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def grids(module: nn.Module) -> dict[str, Grid | None]:
    """The grid of every module's output, by module name; `NAME_in` is the grid of its input.

    None stands where units have no place on the input: after global pooling, or behind an operation unknown here.
    Where `torch.fx` cannot follow a network any further (say, a branch on values), the modules from there on are not
    in the dict. Safe from several threads.
    """
    with _tracing:  # two tracings at once would undo each other's stand-ins in the wrong order
        if module not in _cache:
            _cache[module] = _trace(module)
        return _cache[module]


def _trace(module: nn.Module) -> dict[str, Grid | None]:
    tracer = _Tracer()
    # Whatever a user's forward does under symbolic values means "cannot be followed"; what came before still stands.
    with contextlib.suppress(Exception):
        tracer.trace(module)
    graph = getattr(tracer, "graph", None)
    if graph is None:
        return {}
    found: dict[fx.Node, Grid | None] = {}
    placeholders = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = Grid() if placeholders == 0 else None
            placeholders += 1
        elif node.op == "get_attr":
            found[node] = _EVERYWHERE
        else:
            grid = _meeting([found[source] for source in node.all_input_nodes])
            found[node] = grid if grid is None or grid is _EVERYWHERE else _after(node, grid, module)
    result = {path: found.get(node) for path, node in tracer.outputs.items()}
    result |= {f"{path}_in": found.get(node) for path, node in tracer.inputs.items()}
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
    if name == "getitem":
        return grid if _keeps_places(node) else None
    if name in ("cat", "split", "chunk", "tensor_split"):  # by channels or pictures, never by rows or columns
        return grid if _argument(node, "dim", 1 if name == "cat" else 2, 0) in (0, 1, -3, -4) else None
    return grid if name in _POINTWISE_FUNCTIONS else None


def _argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _keeps_places(node: fx.Node) -> bool:
    """Whether a `getitem` picks one part of a split, or whole rows and columns of a tensor."""
    source, index = node.args[0], node.args[1]
    if isinstance(source, fx.Node) and getattr(source.target, "__name__", source.target) in (
        "split",
        "chunk",
        "tensor_split",
    ):
        return True
    indices = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, slice) for part in indices) and all(part == slice(None) for part in indices[2:])


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
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and layer.output_size in _ONE:
        return _EVERYWHERE
    return None


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)
