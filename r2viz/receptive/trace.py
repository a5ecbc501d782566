"""From a network to the grids of its feature maps: `torch.fx` tells which operation follows which."""

from __future__ import annotations

import operator
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
_POINTWISE_FUNCTIONS = {
    "add",
    "iadd",
    "sub",
    "isub",
    "mul",
    "imul",
    "truediv",
    "cat",
    "relu",
    "relu_",
    "sigmoid",
    "silu",
    "gelu",
    "tanh",
    "dropout",
    "split",
    "chunk",
    "tensor_split",
    "getitem",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "half",
    "batch_norm",
}

_cache: weakref.WeakKeyDictionary[nn.Module, dict[str, Grid | None]] = weakref.WeakKeyDictionary()


class _Tracer(fx.Tracer):
    """Notes, for every module, the nodes that go in and come out: also for containers, which leave no node."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, fx.Node] = {}
        self.outputs: dict[str, fx.Node] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        if args and isinstance(args[0], fx.Proxy):
            self.inputs[path] = args[0].node
        if isinstance(out, fx.Proxy):
            self.outputs[path] = out.node
        return out


def grids(module: nn.Module) -> dict[str, Grid | None]:
    """The grid of every module's output, by module name; `NAME_in` is the grid of its input.

    None stands where units have no place on the input: after global pooling, or behind an operation unknown here.
    A network that `torch.fx` cannot follow gives an empty dict.
    """
    if module not in _cache:
        _cache[module] = _trace(module)
    return _cache[module]


def _trace(module: nn.Module) -> dict[str, Grid | None]:
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception:  # whatever a user's forward does under symbolic values: it means "cannot be followed"
        return {}
    found: dict[fx.Node, Grid | None] = {}
    placeholders = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = Grid() if placeholders == 0 else None
            placeholders += 1
        elif node.op == "call_module":
            found[node] = _through(module.get_submodule(str(node.target)), _meeting(node, found))
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            found[node] = _meeting(node, found) if name in _POINTWISE_FUNCTIONS else None
        else:
            found[node] = None
    result = {path: found.get(node) for path, node in tracer.outputs.items()}
    result |= {f"{path}_in": found.get(node) for path, node in tracer.inputs.items()}
    return result


def _meeting(node: fx.Node, found: dict[fx.Node, Grid | None]) -> Grid | None:
    """The grid of a node's inputs taken together; inputs without one (a channel gate, a constant) don't count."""
    known = [grid for source in node.all_input_nodes if (grid := found.get(source)) is not None]
    if not known or (node.target is operator.getitem and len(known) != 1):
        return None
    grid = known[0]
    for other in known[1:]:
        try:
            grid = grid.meet(other)
        except ValueError:
            return None
    return grid


def _through(layer: nn.Module, grid: Grid | None) -> Grid | None:
    if grid is None or isinstance(layer, _POINTWISE_MODULES):
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
    return None


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)
