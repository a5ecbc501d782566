"""A network made faster for many pictures: parted at its taps, with normalisations folded into convolutions.

Hooks never fire inside folded or compiled code, so nothing here has any: the network's graph is parted at its taps
into two functions that *return* what is tapped. What comes before the first tap needs no gradient: it may work in
place, runs a few pictures at a time, and can be compiled. What comes after keeps autograd.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as every_module

from r2viz.attribution.compiled import compiled
from r2viz.folding import Folded, folded
from r2viz.graph import leaf, parted
from r2viz.taps import point, tap

Function = Callable[[Tensor], tuple[Any, ...]]

_plans: weakref.WeakKeyDictionary[nn.Module, list[Plan]] = weakref.WeakKeyDictionary()
_refused: weakref.WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()
_seen: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_PLANS = 4
"""Plans kept for one network: each holds a copy of the weights."""
_WORTHWHILE = 32 * 3 * 224 * 224
"""Numbers that a network has been shown when it is folded without being told to: 32 pictures of 224 pixels.

Folding ResNet-50 takes about a second, which some 80 such pictures save; smaller pictures save less.
"""
_CPU_MAP = 26e6
"""Bytes of the largest feature map that a CPU makes at a time: above 32 MB the allocator takes every tensor anew from
the operating system, page by page."""
_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode", "eps", "inplace")


@dataclass(frozen=True, eq=False)
class _State:
    """What a plan was made from, to be compared with what the network is now."""

    alive: tuple[weakref.ref[Any], ...]
    facts: tuple[tuple[Any, ...], ...]
    values: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        tensors, parts = [*module.parameters(), *module.buffers()], list(module.modules())
        facts: list[tuple[Any, ...]] = [
            (id(it), it._version, it.data_ptr(), it.shape, it.dtype, it.device) for it in tensors
        ]
        facts += [(id(part), *(part.__dict__.get(name) for name in _SETTINGS)) for part in parts]
        # Torch does not count what is written through `.data`; the first number of every tensor tells of most of it.
        first = [it.detach().as_strided((), ()).float() for it in tensors if it.numel() and it.is_floating_point()]
        alive = tuple(weakref.ref(it) for it in (*tensors, *parts))
        return cls(alive, tuple(facts), torch.stack(first) if first else torch.empty(0))

    def same(self, now: _State) -> bool:
        return (
            self.facts == now.facts
            # Else an address may have been given to something new.
            and all(one() is not None for one in self.alive)
            and torch.equal(self.values.nan_to_num(), now.values.nan_to_num())
        )


@dataclass(eq=False)
class Plan:
    """How one network is run for certain taps.

    Attributes:
        layers: the taps.
        shape: `(N, 3, H, W)` of the pictures that `prefix` takes at a time.
        like: number type and device of the weights.
        prefix: batch of exactly `shape` -> what crosses to the suffix; None unless it is compiled.
        loose: the same for any number of pictures, not compiled.
        suffix: what crosses -> (output, tensors at the taps).
        sources: by layer, the place of its tensor in what `suffix` gives.
        state: of the network when the plan was made.
        inductor: whether it was to be compiled at all.
    """

    layers: tuple[str, ...]
    shape: torch.Size
    like: tuple[torch.dtype, torch.device]
    prefix: Function | None
    loose: Function
    suffix: Callable[..., tuple[Any, tuple[Tensor, ...]]]
    sources: dict[str, int]
    state: _State
    inductor: bool

    def fits(self, batch: Tensor, layers: Sequence[str], inductor: bool) -> bool:
        """Whether the plan is for this call, whose network is the plan's."""
        return (
            (self.layers, self.inductor) == (tuple(layers), inductor)
            and self.like == (batch.dtype, batch.device)
            and self.shape[1:] == batch.shape[1:]
            and (not inductor or min(len(batch), _at_once(batch)) <= self.shape[0])
        )

    def run(self, batch: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """`(output, {layer: (N, C, h, w)})`."""
        with torch.no_grad():
            crossing = self._crossing(batch)
        output, kept = self.suffix(*crossing)
        return output, {layer: kept[place] for layer, place in self.sources.items()}

    def _crossing(self, batch: Tensor) -> tuple[Any, ...]:
        if len(batch) <= self.shape[0]:
            return self._piece(batch)
        pieces = []
        for piece in batch.split(self.shape[0]):
            pieces.append(self._piece(piece))
            # A size or another number of the pictures' count cannot be put together again.
            if not all(isinstance(it, Tensor) and it.ndim and len(it) == len(piece) for it in pieces[-1]):
                return self.loose(batch)
        return tuple(torch.cat(each) for each in zip(*pieces, strict=True))

    def _piece(self, batch: Tensor) -> tuple[Any, ...]:
        count, most = len(batch), self.shape[0]
        # The last pictures of a folder: filled up while that costs less than it brings, else without the compiler.
        if self.prefix is None or 2 * count <= most:
            return self.loose(batch)
        if count == most:
            return self.prefix(batch)
        full = self.prefix(torch.cat([batch, batch[-1:].expand(most - count, -1, -1, -1)]))
        return tuple(it[:count] if isinstance(it, Tensor) else it for it in full)


def planned_pass(
    module: nn.Module, batch: Tensor, layers: Sequence[str], *, compile: bool = False, fold: bool | None = None
) -> tuple[Any, dict[str, Tensor]] | None:
    """`(output, {layer: (N, C, h, w)})` of a forward pass, to be differentiated, or None where it must be done plainly.

    The caller holds the network's lock, has frozen it and enabled gradients.

    A network is run this way only after it has given the plain pass's output and features for one picture (1e-5 of
    their scale folded, 1e-3 compiled: what rounding may do through fifty layers), and for as long as weights and parts
    are what they were: changes are seen, and a new plan is made. A change through `.data` is seen where it reaches the
    first number of a tensor. Hooks of whatever kind, and a `forward` that somebody put in a part's place, are called:
    networks with these run plainly.

    Maps equal those of the plain pass up to rounding. But rounding can switch a ReLU whose input is all but 0, and then
    gradients of earlier layers differ in one place, by up to 1e-3 of the map's scale (measured): between any two orders
    of computing, and the plain pass is as far from float64 as this one.

    Args:
        module: the network.
        batch: `(N, 3, H, W)`, on its device and of its number type.
        layers: tap names.
        compile: what comes before the first tap, by inductor. The first call takes a minute. Where it cannot be, a
            warning says why.
        fold: normalisations, from a copy of the weights. None: once the network has been shown so many pictures that
            it pays, and without a word where it cannot be; True: at once, and a warning where it cannot be.
    """
    wanted = bool(compile or fold)
    if (fold is False and not compile) or not len(batch):
        return None
    _seen[module] = _seen.get(module, 0) + batch.numel()
    plans = _plans.get(module, [])
    if not wanted and not plans and _seen[module] < _WORTHWHILE:
        return None
    say = _warn if wanted else _silent
    name, plainly = type(module).__name__, "going on without " + ("compiling" if compile else "folding")
    if _watched(module):
        say(f"{name} has hooks, which {'compiled' if compile else 'folded'} code would not call: {plainly}")
        return None
    state = _State.of(module)
    plans[:] = [plan for plan in plans if plan.state.same(state)]
    plan = next((plan for plan in plans if plan.fits(batch, layers, compile)), None)
    if plan is None:
        key = (tuple(layers), batch.dtype, batch.device, batch.shape[1:])
        if not wanted and (_seen[module] < _WORTHWHILE or key in _refused.get(module, ())):
            return None
        refused = _refused.setdefault(module, set())
        refused.add(key)  # first: making it may also raise what the plain pass raises
        made = _planned(module, batch, tuple(layers), state, compile)
        if isinstance(made, str):
            say(f"{made}: {plainly}")
            return None
        refused.discard(key)
        plan = made
        _plans[module] = [*plans[-(_PLANS - 1) :], plan]
    return plan.run(batch)


def folded_network(module: nn.Module) -> Callable[[Tensor], Any] | None:
    """The whole network by a plan that is kept for it, batch -> output, without gradients; None where there is none.

    The caller holds the network's lock.
    """
    kept = _plans.get(module, [])
    if not kept or _watched(module):
        return None
    state = _State.of(module)
    plan = next((plan for plan in kept if plan.state.same(state)), None)
    return None if plan is None else lambda batch: plan.suffix(*plan.loose(batch))[0]


def _watched(module: nn.Module) -> bool:
    """Whether somebody waits for a call of one of the network's parts, or has put another function in its place."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in part.__dict__
        for part in module.modules()
    ) or bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )


def _planned(module: nn.Module, batch: Tensor, layers: tuple[str, ...], state: _State, inductor: bool) -> Plan | str:
    """A plan, or why there is none."""
    name = type(module).__name__
    points = {layer: point(module, layer) for layer in layers}
    parts = parted(module, list(points.values()))
    if parts is None:
        return f"torch.fx cannot follow {name} from {', '.join(layers)} to its output"
    order = [(where.path, where.into) for where in parts.points]
    sources = {layer: order.index((where.path, where.into)) for layer, where in points.items()}
    loose, suffix = _lighter(parts.prefix), _lighter(parts.suffix, slope=True)
    if not inductor and loose is parts.prefix and suffix is parts.suffix:
        return f"{name} has no normalisation that could be folded"
    shape = torch.Size([min(len(batch), _at_once(batch)) if inductor else _at_once(batch), *batch.shape[1:]])
    plan = Plan(layers, shape, (batch.dtype, batch.device), None, loose, suffix, sources, state, inductor)
    if not _agrees(module, plan, batch[:1], 1e-3 if inductor else 1e-5):
        return f"taken apart, {name} does not give what it gives whole"
    if inductor and any(
        node.op in ("call_module", "call_function", "call_method") for node in parts.prefix.graph.nodes
    ):
        made = compiled(parts.prefix, batch[: shape[0]], lambda found, few: _same(found, loose(few), 1e-3))
        if isinstance(made, str):
            _warn(f"{made}: going on without the compiler, with normalisations folded into convolutions")
        else:
            plan.prefix = made
    return plan


def _at_once(batch: Tensor) -> int:
    """Pictures that go through the prefix together."""
    if batch.device.type != "cpu":
        return len(batch)
    # A picture's largest map: 64 channels at half its resolution, as most stems give.
    return max(1, int(_CPU_MAP / (batch[:1].nbytes * 16 / 3)))


def _lighter(part: fx.GraphModule, *, slope: bool = False) -> Callable[..., Any]:
    """`part` folded, where there is something to fold; differentiable where a `slope` will be asked for."""
    lighter = folded(part, part.graph, slope=slope)
    if lighter is None:
        return part
    # What flows on from a tap is a copy, since a network may work in place. What only reads needs none.
    for node in list(lighter.graph.nodes):
        if _tapped(node) and all(_reads(lighter, user) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            lighter.graph.erase_node(node)
    lighter.recompile()
    return lighter


def _tapped(node: fx.Node) -> bool:
    """Whether a step is the copy that flows on from a tap."""
    return node.target is torch.clone and isinstance(node.args[0], fx.Node) and node.args[0].target is leaf


def _reads(part: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step leaves what it is given as it is."""
    return node.op == "call_module" and isinstance(part.get_submodule(str(node.target)), (Folded, nn.AdaptiveAvgPool2d))


def _agrees(module: nn.Module, plan: Plan, batch: Tensor, slack: float) -> bool:
    with tap(module, plan.layers, differentiable=True) as taken:
        expected = module(batch)
    output, features = plan.run(batch)
    if not isinstance(output, Tensor) or not isinstance(expected, Tensor):
        return False
    return _same([output, *features.values()], [expected, *(taken[layer] for layer in features)], slack)


def _same(found: Sequence[Any], expected: Sequence[Any], slack: float) -> bool:
    """Whether tensors agree within `slack` of their scale, or what their number type can tell apart."""
    return all(
        one.shape == other.shape
        and bool(
            (one.detach().float() - other.detach().float()).abs().max()
            <= max(slack, 16 * torch.finfo(other.dtype).eps) * other.detach().float().abs().max()
        )
        for one, other in zip(found, expected, strict=True)
        if isinstance(other, Tensor) and other.is_floating_point()
    )


_said: set[str] = set()


def _warn(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=6)


def _silent(_message: str) -> None:
    """For what nobody asked for."""
