"""A network's graph for inference: normalisations folded into convolutions, and what follows them done in one go."""

from __future__ import annotations

import operator
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_OPERATORS = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")


def folded(
    root: nn.Module, graph: fx.Graph, *, largest: int | None = None, slope: bool = False
) -> fx.GraphModule | None:
    """`graph`, whose modules are `root`'s, with convolution, normalisation, addition and ReLU as one step.

    The same numbers up to rounding, in evaluation mode, from weights as they are now: they are copied. None where
    there is nothing to fold, where somebody's hooks wait for the modules that would vanish, and for half precision,
    where a folded weight is no longer the same network.

    Args:
        root: whose modules and tensors the graph names.
        graph: the operations.
        largest: convolutions of more weights than this stay as they are.
        slope: whether what is folded will be differentiated.
    """
    chains = _chains(root, graph, largest)
    if not chains or any(part._forward_hooks or part._forward_pre_hooks for part in root.modules()):
        return None
    vanished = {node for chain in chains for node in chain.nodes}
    begun = {chain.at: chain for chain in chains}
    ends = {chain.nodes[-1] for chain in chains}
    parts: dict[str, Any] = {}
    copy = fx.Graph()
    twin: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in begun:
            chain = begun[node]
            name = f"folded{len(parts)}"
            over = not slope and _spent(chain, ends, vanished, twin)
            parts[name] = Folded(chain.conv, chain.norm, relu=chain.relu, over=over, slope=slope)
            made = copy.call_module(name, tuple(twin[source] for source in chain.sources))
            twin.update(dict.fromkeys(chain.nodes, made))
        elif node not in vanished:
            twin[node] = copy.node_copy(node, lambda source: twin[source])
            if node.op == "call_module":
                parts[str(node.target)] = root.get_submodule(str(node.target))
            elif node.op == "get_attr":
                parts[str(node.target)] = operator.attrgetter(str(node.target))(root)
    result = fx.GraphModule(parts, copy)
    result.training = False
    return result


class Folded(nn.Module):
    """A convolution with the normalisation after it, an addition and a ReLU where they follow: `(x[, other]) -> y`.

    On CPUs oneDNN does it in one pass over the memory, by the operators that `torch.compile` freezes networks to, and
    so the way back: what is given can be differentiated, twice if need be. What is added may be written `over` where
    nobody reads it again. Without a `slope` to come, weights lie in oneDNN's own order, in which one picture takes a
    fifth less time: else every call puts them into it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, relu: bool, over: bool = False, slope: bool = False
    ) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # In float64: what is folded is rounded once.
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        # Multiplying keeps the memory order that the weights have.
        weight = conv.weight.detach() * scale.to(conv.weight.dtype)[:, None, None, None]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.padding = [int(it) for it in conv.padding]
        self.groups = conv.groups
        self.relu = relu
        self.over = over
        self.fused = (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
        )
        self.packed = self.fused and not slope
        if self.packed:
            how = self.padding, self.stride, self.dilation, self.groups
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *how)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(conv.weight.dtype))
        self._turned: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if not self.fused:
            weight, bias, groups = self.weight, self.bias, self.groups
            out = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
            return self._after(out, other)
        if (
            not self.packed
            and torch.is_grad_enabled()
            and (x.requires_grad or (other is not None and other.requires_grad))
        ):
            return _Differentiable.apply(x, other, self)
        return self.fast(x, other)

    def fast(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """By oneDNN's operators, which know no gradient."""
        ops, how = torch.ops.mkldnn, (self.padding, self.stride, self.dilation, self.groups)
        last = "relu" if self.relu else None
        if other is None:
            return ops._convolution_pointwise(x, self.weight, self.bias, *how, last or "none", [], "")
        if not _alike(x, other) or other.shape != self._shape(x):
            return self._after(ops._convolution_pointwise(x, self.weight, self.bias, *how, "none", [], ""), other)
        if self.over:
            return ops._convolution_pointwise_.binary(
                other, x, self.weight, self.bias, *how, "add", 1.0, last, [], None
            )
        return ops._convolution_pointwise.binary(x, other, self.weight, self.bias, *how, "add", 1.0, last, [], None)

    def _after(self, out: Tensor, other: Tensor | None) -> Tensor:
        if other is not None:
            fits = torch.broadcast_shapes(out.shape, other.shape) == out.shape
            out = out.add_(other) if fits else out + other
        return out.relu_() if self.relu else out

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        how = zip(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        size = [(wide + 2 * padding - far * (width - 1) - 1) // step + 1 for wide, width, step, padding, far in how]
        return (len(x), len(self.bias), *size)

    def turned(self) -> Tensor | None:
        """The weights of the convolution that takes the output's gradient to the input's, None where there is none."""
        if self.groups > 1 or self.stride != [1, 1] or any(it < 0 for it in self._turned_padding()):
            return None
        if self._turned is None:
            weight = self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            how = self._turned_padding(), self.stride, self.dilation, 1
            self._turned = torch.ops.mkldnn._reorder_convolution_weight(weight, *how)
        return self._turned

    def _turned_padding(self) -> list[int]:
        size = zip(self.weight.shape[2:], self.dilation, self.padding, strict=True)
        return [far * (width - 1) - padding for width, far, padding in size]

    def back(self, slope: Tensor, x: Tensor) -> Tensor:
        """The gradient by `x`, of that by the convolution's output; itself differentiable where gradients are on."""
        turned = None if torch.is_grad_enabled() else self.turned()
        if turned is not None:
            ops, how = torch.ops.mkldnn, (self._turned_padding(), self.stride, self.dilation, 1)
            return ops._convolution_pointwise(_in_order_of(x, slope), turned, None, *how, "none", [], "")
        size, only = (self.stride, self.padding, self.dilation), [True, False, False]
        return torch.ops.aten.convolution_backward(
            slope, x, self.weight, None, *size, False, [0, 0], self.groups, only
        )[0]


class _Differentiable(torch.autograd.Function):
    """A `Folded` step whose gradient is made the same way: ReLU's mask, then one convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, step: Folded) -> Tensor:
        out = step.fast(x, other)
        ctx.step = step
        ctx.save_for_backward(x, out if step.relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (slope,), (x, out) = slopes, ctx.saved_tensors
        if out is not None:
            slope = torch.ops.aten.threshold_backward(slope, out, 0)
        wanted = ctx.needs_input_grad
        return ctx.step.back(slope, x) if wanted[0] else None, slope if wanted[1] else None, None


def _in_order_of(x: Tensor, slope: Tensor) -> Tensor:
    """`slope` in the memory order of `x`: what comes from a mean is one number, repeated."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return slope.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _alike(x: Tensor, other: Tensor) -> bool:
    """Whether both lie in the memory order that oneDNN then writes in place: it would make a copy of another one."""
    return all(it.is_contiguous(memory_format=torch.channels_last) for it in (x, other))


@dataclass(frozen=True, eq=False)
class _Chain:
    """Nodes that become one: `at` is where, `sources` what goes in."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: bool
    nodes: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]
    at: fx.Node


def _chains(root: nn.Module, graph: fx.Graph, largest: int | None) -> list[_Chain]:
    taken: set[fx.Node] = set()
    chains = []
    for node in graph.nodes:
        chain = _chain(root, node, taken)
        if chain is not None and (largest is None or chain.conv.weight.numel() <= largest):
            chains.append(chain)
            taken.update(chain.nodes)
    return chains


def _spent(chain: _Chain, ends: set[fx.Node], vanished: set[fx.Node], done: Container[fx.Node]) -> bool:
    """Whether what the chain adds is fresh memory, read for the last time: by convolutions before, never by a view."""
    if len(chain.sources) < 2 or chain.sources[1] not in ends or chain.sources[0] is chain.sources[1]:
        return False
    users = [user for user in chain.sources[1].users if user not in chain.nodes]
    return all(user in done and user in vanished and user.op == "call_module" for user in users)


def _chain(root: nn.Module, node: fx.Node, taken: set[fx.Node]) -> _Chain | None:
    conv, end = _module(root, node, nn.Conv2d), _only(node)
    norm = _module(root, end, nn.BatchNorm2d)
    if conv is None or norm is None or end is None or not isinstance(node.args[0], fx.Node):
        return None
    if conv.weight.dtype not in (torch.float32, torch.float64) or conv.padding_mode != "zeros":
        return None
    if isinstance(conv.padding, str) or norm.running_mean is None:
        return None
    given, at = node.args[0], node
    sources: tuple[fx.Node, ...] = (given,)
    nodes = [node, end]
    following = _only(end)
    other = _added(following, end)
    # The convolution moves to where the addition is, so nothing else may touch what it reads.
    if other is not None and following not in taken and len(given.users) == 1:
        assert following is not None
        nodes.append(following)
        at, sources = following, (given, other)
        following = _only(following)
    relu = following is not None and _is_relu(root, following)
    if relu and following is not None:
        nodes.append(following)
    return _Chain(conv, norm, relu, tuple(nodes), sources, at)


def _module(root: nn.Module, node: fx.Node | None, kind: type[Any]) -> Any:
    """The module that `node` calls, if it is of exactly this type: a subclass may do something else."""
    if node is None or node.op != "call_module":
        return None
    part = root.get_submodule(str(node.target))
    return part if type(part) is kind else None


def _only(node: fx.Node) -> fx.Node | None:
    """The one user of what `node` gives."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node | None, to: fx.Node) -> fx.Node | None:
    """What `node` adds to `to`, if it is an addition of two tensors."""
    if node is None or node.op != "call_function" or node.target not in _ADDITIONS or node.kwargs:
        return None
    others = [source for source in node.args if source is not to]
    return others[0] if len(node.args) == 2 and len(others) == 1 and isinstance(others[0], fx.Node) else None


def _is_relu(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return _module(root, node, nn.ReLU) is not None
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )
