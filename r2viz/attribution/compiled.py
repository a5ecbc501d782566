"""A network made faster for many batches: compiled up to the first tapped layer, folded from there on.

Hooks never fire inside compiled code, so nothing here has any: the network's graph is parted at its taps into two
functions that *return* what is tapped. What comes before the first tap needs no gradient and is compiled by inductor
with its weights as constants; what comes after keeps autograd, with normalisations folded into convolutions.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from r2viz.folding import Folded, folded
from r2viz.graph import Parts, parted
from r2viz.taps import point, tap

_plans: weakref.WeakKeyDictionary[nn.Module, list[Plan]] = weakref.WeakKeyDictionary()
_PLANS = 4
"""Plans kept for one network: each holds a copy of the weights."""
_PLAINLY = ": going on without compiling"


@dataclass(eq=False)
class Plan:
    """How one network is run for certain taps.

    Attributes:
        layers: the taps.
        shape: `(N, 3, H, W)` that `prefix` is compiled for.
        like: number type and device of the weights.
        prefix: batch of exactly `shape` -> what crosses to the suffix; None where compiling failed.
        loose: the same for any number of pictures, not compiled.
        suffix: what crosses -> (output, tensors at the taps).
        sources: by layer, the place of its tensor in what `suffix` gives.
        weights: (tensor, its version) of every parameter and buffer when the plan was made.
        inductor: whether it was to be compiled at all.
    """

    layers: tuple[str, ...]
    shape: torch.Size
    like: tuple[torch.dtype, torch.device]
    prefix: Callable[[Tensor], tuple[Any, ...]] | None
    loose: Callable[[Tensor], tuple[Any, ...]]
    suffix: Callable[..., tuple[Any, tuple[Tensor, ...]]]
    sources: dict[str, int]
    weights: list[tuple[weakref.ref[Tensor], int]]
    inductor: bool

    def fits(self, module: nn.Module, batch: Tensor, layers: Sequence[str], inductor: bool) -> bool:
        """Whether the plan is for this call: the network's weights, too, are still those that were compiled.

        A change that torch does not count, through `.data`, is not seen.
        """
        return (
            (self.layers, self.inductor) == (tuple(layers), inductor)
            and self.like == (batch.dtype, batch.device)
            and self.shape[1:] == batch.shape[1:]
            and (len(batch) <= self.shape[0] or not inductor)
            and _unchanged(module, self.weights)
        )

    def run(self, batch: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """`(output, {layer: (N, C, h, w)})`."""
        with torch.no_grad():
            crossing = self._crossing(batch)
        output, kept = self.suffix(*crossing)
        return output, {layer: kept[place] for layer, place in self.sources.items()}

    def _crossing(self, batch: Tensor) -> tuple[Any, ...]:
        count, most = len(batch), self.shape[0]
        # The last batch of a folder: filled up while that costs less than it brings, else without the compiler.
        if self.prefix is None or 2 * count <= most:
            return self.loose(batch)
        if count == most:
            return self.prefix(batch)
        full = self.prefix(torch.cat([batch, batch[-1:].expand(most - count, -1, -1, -1)]))
        return tuple(it[:count] if isinstance(it, Tensor) else it for it in full)


def compiled_pass(
    module: nn.Module, batch: Tensor, layers: Sequence[str], *, inductor: bool = True
) -> tuple[Any, dict[str, Tensor]] | None:
    """`(output, {layer: (N, C, h, w)})` of a forward pass, to be differentiated, or None where it must be done plainly.

    The first call for a number of pictures compiles, which takes a minute; smaller batches use what is there. Weights
    that changed are compiled anew. The caller holds the network's lock, has frozen it and enabled gradients.

    A network is run this way only after it has given the plain pass's output and features for one picture (1e-3 of
    their scale: what rounding may do through fifty layers). Where it cannot be, a warning says why.

    Maps equal those of the plain pass up to rounding. But rounding can switch a ReLU whose input is all but 0, and then
    gradients of earlier layers differ in one place, by up to 1e-3 of the map's scale (measured): between any two orders
    of computing, and the plain pass is as far from float64 as this one.

    Args:
        module: the network.
        batch: `(N, 3, H, W)`, on its device and of its number type.
        layers: tap names.
        inductor: without, only normalisations are folded: no compiler, no waiting, and less gained.
    """
    plans = _plans.setdefault(module, [])
    plan = next((plan for plan in plans if plan.fits(module, batch, layers, inductor)), None)
    if plan is None:
        plans[:] = [plan for plan in plans if _unchanged(module, plan.weights)][-(_PLANS - 1) :]
        plan = _planned(module, batch, tuple(layers), inductor)
        if plan is None:
            return None
        plans.append(plan)
    return plan.run(batch)


def _planned(module: nn.Module, batch: Tensor, layers: tuple[str, ...], inductor: bool) -> Plan | None:
    name = type(module).__name__
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        _warn(f"{name} has hooks, which compiled code would not call" + _PLAINLY)
        return None
    if not len(batch):
        return None
    points = {layer: point(module, layer) for layer in layers}
    parts = parted(module, list(points.values()))
    if parts is None:
        _warn(f"torch.fx cannot follow {name} from {', '.join(layers)} to its output" + _PLAINLY)
        return None
    order = [(where.path, where.into) for where in parts.points]
    sources = {layer: order.index((where.path, where.into)) for layer, where in points.items()}
    loose, suffix = _lighter(parts.prefix), _lighter(parts.suffix, slope=True)
    weights = [(weakref.ref(tensor), tensor._version) for tensor in _tensors(module)]
    plan = Plan(layers, batch.shape, (batch.dtype, batch.device), None, loose, suffix, sources, weights, inductor)
    if not _agrees(module, plan, batch[:1], layers):
        _warn(f"taken apart, {name} does not give what it gives whole" + _PLAINLY)
        return None
    if inductor and _worthwhile(parts):
        plan.prefix = _compiled(parts.prefix, batch, loose)
    return plan


def _lighter(part: fx.GraphModule, *, slope: bool = False) -> Callable[..., Any]:
    """`part` folded, where there is something to fold; differentiable where a `slope` will be asked for."""
    lighter = folded(part, part.graph)
    if slope and lighter is not None:
        for one in lighter.modules():
            if isinstance(one, Folded):
                one.fused = False  # oneDNN's operator knows no gradient
    return lighter or part


def _worthwhile(parts: Parts) -> bool:
    """Whether anything is computed before the first tap."""
    return any(node.op in ("call_module", "call_function", "call_method") for node in parts.prefix.graph.nodes)


def _compiled(
    prefix: fx.GraphModule, batch: Tensor, loose: Callable[[Tensor], tuple[Any, ...]]
) -> Callable[[Tensor], tuple[Any, ...]] | None:
    """`prefix` by inductor, for exactly this shape; None, and a warning, where there is no compiler or it fails."""
    try:
        with torch.no_grad():
            # The setting goes with this one call: a user's own torch.compile is not ours to change.
            function = torch.compile(prefix, dynamic=False, options={"freezing": True})
            found, expected = function(batch), loose(batch[:1])
        if all(_close(one[:1], other) for one, other in zip(found, expected, strict=True) if isinstance(one, Tensor)):
            return function
        why = "what the compiler made gives other numbers"
    except Exception as error:  # a compiler may be missing, too old or broken in many ways
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    _warn(f"{why}: going on without the compiler, with normalisations folded into convolutions, which is slower")
    return None


def _agrees(module: nn.Module, plan: Plan, batch: Tensor, layers: Sequence[str]) -> bool:
    with tap(module, layers, differentiable=True) as taken:
        expected = module(batch)
    output, features = plan.run(batch)
    same = all(_close(features[layer], taken[layer]) for layer in layers)
    return same and isinstance(output, Tensor) and isinstance(expected, Tensor) and _close(output, expected)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    slack = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
    found, expected = found.detach().float(), expected.detach().float()
    return bool((found - expected).abs().max() <= slack * expected.abs().max())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _unchanged(module: nn.Module, weights: Sequence[tuple[weakref.ref[Tensor], int]]) -> bool:
    now = _tensors(module)
    return len(now) == len(weights) and all(
        kept() is tensor and version == tensor._version for tensor, (kept, version) in zip(now, weights, strict=True)
    )


_said: set[str] = set()


def _warn(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=6)
