"""A network as a graph: traced once by `torch.fx`, asked what follows what, and cut in two at a tap."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from r2viz.taps import Point, frozen, lock

_cache: weakref.WeakKeyDictionary[nn.Module, Trace] = weakref.WeakKeyDictionary()
_tracing = threading.Lock()


@dataclass(frozen=True, eq=False)
class Trace:
    """What could be followed of a network's forward pass.

    Attributes:
        graph: the operations; None where not even the first could be followed.
        inputs: by module name, the node that goes into it; containers, which leave no node of their own, included.
        outputs: by module name, the node that comes out of it.
        whole: whether the network was followed to its end.
        parts: the modules that it had.
    """

    graph: fx.Graph | None
    inputs: dict[str, fx.Node]
    outputs: dict[str, fx.Node]
    whole: bool
    parts: tuple[weakref.ref[nn.Module], ...] = ()


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


def trace(module: nn.Module) -> Trace:
    """Follow `module`'s forward pass in evaluation mode with symbolic values.

    Cached for as long as the module lives and has the same parts; thread-safe.
    """
    # Of tracings, two at once would undo each other's stand-ins in the wrong order.
    with lock(module), _tracing:
        parts = tuple(weakref.ref(part) for part in module.modules())
        if module not in _cache or _cache[module].parts != parts:
            tracer, whole = _Tracer(), False
            # The mode stays in the graph for ever, as an argument of `dropout` or by the branch taken (auxiliary
            # classifiers). Whatever a user's forward does under symbolic values means "cannot be followed"; what came
            # before stands.
            with frozen(module), contextlib.suppress(Exception):
                tracer.trace(module)
                whole = True
            # What it drew refers to the tracer in a circle, which would keep the network alive.
            vars(tracer).pop("root", None)
            _cache[module] = Trace(getattr(tracer, "graph", None), tracer.inputs, tracer.outputs, whole, parts)
        return _cache[module]


def _nodes(traced: Trace, into: bool) -> dict[str, fx.Node]:
    return traced.inputs if into else traced.outputs


@dataclass(frozen=True, eq=False)
class Halves:
    """A network cut at one point: `suffix(*prefix(batch))` is `module(batch)`.

    Attributes:
        prefix: batch -> the tensors that cross the cut; the first is the one at the point, whole where the point
            names one split of it.
        suffix: these tensors -> the network's output.

    Both share the network's parameters and buffers. In-place operations of the network stay in place: whoever calls
    the suffix twice gives it copies.
    """

    prefix: Callable[[Tensor], tuple[Tensor, ...]]
    suffix: fx.GraphModule


def cut(module: nn.Module, where: Point) -> Halves | None:
    """`module` cut at `where`, or None where `torch.fx` cannot follow it, or nothing after the point depends on it."""
    traced = trace(module)
    found = _nodes(traced, where.into).get(where.path)
    if found is None or traced.graph is None or not traced.whole:
        return None
    # What goes into a module may be used elsewhere as well (a shortcut): only the module's own use is replaced.
    after: set[fx.Node] = set()
    for node in traced.graph.nodes:
        direct = found in node.all_input_nodes and (not where.into or _inside(node, where.path))
        if direct or any(source in after for source in node.all_input_nodes):
            after.add(node)
    (end,) = (node for node in traced.graph.nodes if node.op == "output")
    if end not in after:
        return None
    kept = [node for node in traced.graph.nodes if node not in after]
    crossing = [found]
    for node in after:
        crossing += [source for source in node.all_input_nodes if source not in after and source not in crossing]
    crossing = [found] + [node for node in kept if node in crossing[1:] and node.op != "get_attr"]
    if where.into and any(found in node.all_input_nodes and not _inside(node, where.path) for node in after):
        crossing.append(found)  # the shortcut's copy, which is not replaced
    return Halves(_first(module, kept, crossing), _second(module, traced.graph, after, crossing, where))


@dataclass(frozen=True, eq=False)
class Parts:
    """A network parted at the first of its taps: `suffix(*prefix(batch))` is `(module(batch), tapped tensors)`.

    Attributes:
        prefix: batch -> what crosses.
        suffix: what crosses -> (the network's output, one tensor for each of `points`). A tapped tensor that needs no
            gradient yet becomes a leaf that does, and a copy of it flows on, as with `r2viz.taps.tap`.
        points: one for each place, in the order of the tensors.
    """

    prefix: fx.GraphModule
    suffix: fx.GraphModule
    points: tuple[Point, ...]


def parted(module: nn.Module, points: Sequence[Point]) -> Parts | None:
    """`module` parted at `points`, or None where `torch.fx` cannot follow it, or a point does not lead to the output.

    Whole tensors are tapped also where a point names one split.
    """
    traced = trace(module)
    places = {(where.path, where.into): where for where in points}
    known = {(path, side): node for side in (True, False) for path, node in _nodes(traced, side).items()}
    if traced.graph is None or not traced.whole or not known.keys() >= places.keys():
        return None
    found = {place: known[place] for place in places}
    graph = fx.Graph()
    twin: dict[fx.Node, fx.Node] = {}
    kept: dict[tuple[str, bool], fx.Node] = {}
    flowing: dict[str, fx.Node] = {}
    # Outer modules first: what goes into them is what goes into their parts.
    into = sorted((path for path, side in places if side), key=len)

    def keep(place: tuple[str, bool], tensor: fx.Node) -> fx.Node:
        kept[place] = graph.call_function(leaf, (tensor,))
        return graph.call_function(torch.clone, (kept[place],))

    for node in traced.graph.nodes:

        def at(source: fx.Node, node: fx.Node = node) -> fx.Node:
            now = twin[source]
            for path in into:
                if found[path, True] is source and _inside(node, path):
                    if path not in flowing:
                        flowing[path] = keep((path, True), now)
                    now = flowing[path]
            return now

        if node.op != "output":
            twin[node] = graph.node_copy(node, at)
            for place in places:
                if not place[1] and found[place] is node:
                    twin[node] = keep(place, twin[node])
            continue
        end = fx.map_arg(node.args[0], twin.__getitem__)
        if len(kept) < len(places):
            return None
        graph.output((end, tuple(kept[place] for place in places)))
    return _at_first(module, graph, set(kept.values()), tuple(places.values()))


def leaf(tensor: Tensor) -> Tensor:
    """What a tap keeps: the tensor where it has a past already, else one without, that gradients are taken for."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_(True)


def _at_first(module: nn.Module, graph: fx.Graph, kept: set[fx.Node], points: tuple[Point, ...]) -> Parts | None:
    """The graph in two: what depends on a kept tensor, and what does not."""
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if node in kept or any(source in after for source in node.all_input_nodes):
            after.add(node)
    crossing: list[fx.Node] = []
    for node in graph.nodes:
        if node in after:
            crossing += [it for it in node.all_input_nodes if it not in after and it not in crossing]
    crossing = [node for node in crossing if node.op != "get_attr"]
    first = _first(module, [node for node in graph.nodes if node not in after], crossing)
    second = fx.Graph()
    twin = {node: second.placeholder(f"crossing{number}") for number, node in enumerate(crossing)}
    for node in graph.nodes:
        if node in after or node.op == "get_attr":
            twin[node] = second.node_copy(node, lambda source: twin[source])
    return Parts(first, fx.GraphModule(module, second), points)


def _inside(node: fx.Node, path: str) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return (node.op == "call_module" and str(node.target) == path) or path in stack


def _first(module: nn.Module, kept: Sequence[fx.Node], crossing: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    twin: dict[fx.Node, fx.Node] = {}
    for node in kept:
        twin[node] = graph.node_copy(node, lambda source: twin[source])
    graph.output(tuple(twin[node] for node in crossing))
    return fx.GraphModule(module, graph)


def _second(
    module: nn.Module, whole: fx.Graph, after: set[fx.Node], crossing: Sequence[fx.Node], where: Point
) -> fx.GraphModule:
    graph = fx.Graph()
    given = [graph.placeholder(f"crossing{number}") for number in range(len(crossing))]
    twin = dict(reversed(list(zip(crossing, given, strict=True))))
    untouched = given[-1] if crossing[-1] is crossing[0] and len(crossing) > 1 else given[0]
    for node in whole.nodes:
        if node.op == "get_attr" and node not in after:
            twin[node] = graph.node_copy(node)
        elif node in after:

            def at(source: fx.Node, node: fx.Node = node) -> fx.Node:
                outside = where.into and source is crossing[0] and not _inside(node, where.path)
                return untouched if outside else twin[source]

            twin[node] = graph.node_copy(node, at)
    return fx.GraphModule(module, graph)
