"""A block opened: what goes into it, what its splits are changed to, and what follows from there.

What every change shares is looked at while the network runs on a batch as it is: what goes into the block, all x_i, and
what goes into `conv3`. Of a change, the few convolutions that it reaches are written out below, after equation 1 of
the paper (arXiv 1904.01169) in code order; everything from `conv3` on is the network's own graph, cut there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from r2viz.attribution.gradient import gradcam
from r2viz.causal_records import INTERVENTIONS
from r2viz.errors import ModelError
from r2viz.folding import folded
from r2viz.graph import trace
from r2viz.partition.places import Block
from r2viz.split_records import PERMUTED

# Folding copies weights. Above so many bytes only those of large feature maps are folded, where it gains most: in the
# 50-layer networks, convolutions of at most so many weights.
_COPIES = 2**28
_LARGEST_FOLDED = 300_000


@dataclass(frozen=True)
class Change:
    """One intervention on one split of a block; equal ones give equal results."""

    split: int
    value: str
    cascade: bool


def change(block: Block, split: int, intervention: str) -> Change | None:
    """What `intervention` means for this part of the block; None where there is nothing to intervene in."""
    row, part = INTERVENTIONS[intervention], block.parts[split]
    reached = block.cascaded and not block.first and split < block.scale - 2
    if not block.cascaded:
        return Change(split, row.value, False) if row.control else None
    if row.value == "link":
        linked = not block.first and 0 < split < block.scale - 1
        return Change(split, row.value, reached) if linked else None
    return Change(part.split.split, row.value, row.cascade and reached)


@dataclass(frozen=True, eq=False)
class Entry:
    """What one batch of N pictures brought to a block.

    Attributes:
        into: what goes into `conv3`, `(N, C, h, w)`: all y_i.
        groups: all x_i, `(N, C, h', w')`; None where nothing is computed from them.
        crossing: `into`, and what else the rest of the network needs; empty where it could not be followed.
    """

    into: Tensor
    groups: Tensor | None
    crossing: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Opened:
    """A block that can be entered and left; see `opened`.

    Attributes:
        front: from the block's own input, or where more is needed than that (`whole`) from the pictures, to what else
            the tail needs besides `conv3`'s input: the shortcut. None: the network cannot be followed.
        tail: what goes into `conv3` and what `front` gives -> the network's output.
    """

    module: nn.Module
    block: Block
    front: fx.GraphModule | None
    tail: Callable[..., Tensor] | None
    whole: bool

    @property
    def taps(self) -> list[str]:
        """What `enter` wants to know of the forward pass."""
        taps = [f"{self.block.conv3}_in"]
        if self.block.cascaded:
            taps.append(f"{self.block.path}.bn1")
        if not self.whole:
            taps.append(f"{self.block.path}.conv1_in")
        return taps

    def enter(self, batch: Tensor, taken: dict[str, Tensor]) -> Entry:
        """What the batch brings; uses up what was `taken` at the taps.

        Raises:
            ModelError: the block does not compute what a Res2Net block computes.
        """
        into, *others = (taken.pop(name) for name in self.taps)
        crossing: tuple[Tensor, ...] = ()
        if self.front is not None:
            rest = self.front(batch if self.whole else others[-1])
            if all(isinstance(it, Tensor) and len(it) == len(batch) for it in rest):
                crossing = (into, *rest)  # not a size, say, which other numbers of pictures would not have
        if not self.block.cascaded:
            return Entry(into, None, crossing)
        groups = self.module.get_submodule(self.block.path).relu(others[0])  # type: ignore[operator]
        entry = Entry(into, groups, crossing)
        self._check(entry)
        return entry

    def _check(self, entry: Entry) -> None:
        """That this room's arithmetic gives the block's own numbers, for the first picture."""
        one = slice(0, 1)
        if self.block.scale < 3:
            return
        width = self.block.parts[0].split.width
        y = self._step(0, _group(entry, 0, width, one))
        again = entry.into[one].clone()
        again[:, :width] = y
        if not self.block.first:
            self._onward(again, entry, 0, y, one)
        slack = max(1e-4, 16 * torch.finfo(again.dtype).eps)
        if not torch.allclose(again, entry.into[one], rtol=slack, atol=slack * float(again.abs().max())):
            raise ModelError(
                f"{self.block.path} does not compute y_i = ReLU(bns_i(convs_i(x_i + y_{{i-1}}))) as Res2Net blocks do, "
                "so what a split's absence changes inside it is not known",
                code="model.no_splits",
            )

    def changed(self, entry: Entry, what: Change, pictures: slice, *, means: Tensor | None, seed: int) -> Tensor:
        """What goes into `conv3` after the change, `(M, C, h, w)`, of some of the entry's pictures."""
        part = self.block.parts[what.split]
        if part.split.kind == PERMUTED or part.span is None:
            where: Any = torch.as_tensor(part.channels, device=entry.into.device)
        else:
            where = part.span
        into = entry.into[pictures].clone()
        if what.value == "zero":
            into[:, where] = 0
        elif what.value == "mean":
            assert means is not None
            into[:, where] = means.to(into)[where][:, None, None]
        elif what.value == "shuffle":
            into[:, where] = into[:, where][:, order(part.split.tap, part.split.width, seed).to(into.device)]
        else:
            into[:, where] = self._step(what.split, _group(entry, what.split, part.split.width, pictures))
        if what.cascade:
            self._onward(into, entry, what.split, into[:, where], pictures)
        return into

    def _onward(self, into: Tensor, entry: Entry, split: int, y: Tensor, pictures: slice) -> None:
        """All convolved splits after `split`, whose output is `y`, written into `into`."""
        width = y.shape[1]
        for later in range(split + 1, self.block.scale - 1):
            y = self._step(later, _group(entry, later, width, pictures) + y)
            into[:, later * width : (later + 1) * width] = y

    def _step(self, split: int, x: Tensor) -> Tensor:
        """K_i: convolution, normalisation, ReLU."""
        part: Any = self.module.get_submodule(self.block.path)
        return part.relu(part.bns[split](part.convs[split](x)))


def _group(entry: Entry, split: int, width: int, pictures: slice) -> Tensor:
    assert entry.groups is not None
    return entry.groups[pictures, split * width : (split + 1) * width]


def order(tap: str, width: int, seed: int) -> Tensor:
    """The random order of a split's channels, int64 `(width,)`: from the seed and the split's name alone."""
    return torch.from_numpy(np.random.default_rng([seed, *tap.encode()]).permutation(width))


def opened(module: nn.Module, block: Block, *, of: int = 1, layer: str | None = None) -> Opened:
    """`block` of `module`, opened.

    Args:
        module: the network.
        block: one of its blocks.
        of: how many blocks will be open at once, and share the memory for folded weights.
        layer: where the tail also explains itself, see `_Explained`.

    Raises:
        ModelError: with `layer`, a network that `torch.fx` cannot follow, or a layer that the block does not lead to.
    """
    traced = trace(module)
    path = block.path
    entered, into = traced.inputs.get(f"{path}.conv1"), traced.inputs.get(block.conv3)
    if traced.graph is None or not traced.whole or entered is None or into is None:
        if layer is not None:
            raise ModelError(
                f"torch.fx cannot follow {type(module).__name__}, so maps after a change cannot be made; leave them out"
            )
        return Opened(module, block, None, None, True)
    *_, end = traced.graph.nodes
    (begin,) = (node for node in traced.graph.nodes if node.op == "placeholder" and node.users)
    rest = _crossing(traced.graph, into)
    front = _between(module, traced.graph, [entered], rest)
    whole = front is None
    if front is None:
        front = _between(module, traced.graph, [begin], rest)
    given, out = [into, *rest], end.all_input_nodes
    if layer is None:
        tail = _between(module, traced.graph, given, out)
        assert tail is not None
        copies = of * sum(weight.nbytes for weight in tail.parameters())
        faster = folded(tail, tail.graph, largest=None if copies <= _COPIES else _LARGEST_FOLDED)
        return Opened(module, block, front, _Single(faster or tail), whole)
    tapped = traced.outputs.get(layer)
    lower = upper = None
    if tapped is not None and tapped in _after(traced.graph, into):
        over = [tapped, *_crossing(traced.graph, tapped)]
        lower = _between(module, traced.graph, given, over)
        upper = _between(module, traced.graph, over, out)
    if lower is None or upper is None:
        raise ModelError(f"maps at {layer!r} do not change with {path}; name a layer that the block leads to")
    return Opened(module, block, front, _Explained(lower, upper), whole)


@dataclass(frozen=True, eq=False)
class _Single:
    """A graph whose output is a tuple of one."""

    graph: fx.GraphModule

    def __call__(self, *given: Tensor) -> Tensor:
        (output,) = self.graph(*given)
        return output


@dataclass(frozen=True, eq=False)
class _Explained:
    """The tail in two, so that the layer between can be differentiated at.

    The last tensor given holds the target classes `(M,)`; the output is `(M, classes + h·w)`, logits and Grad-CAM map.
    """

    lower: fx.GraphModule
    upper: fx.GraphModule

    def __call__(self, *given: Tensor) -> Tensor:
        *crossing, targets = given
        between = self.lower(*crossing)
        with torch.inference_mode(False), torch.enable_grad():
            # What was made under inference_mode cannot be differentiated; clones can.
            leaf, *rest = (tensor.clone() for tensor in between)
            leaf.requires_grad_(True)
            (logits,) = self.upper(leaf.clone(), *rest)
            (gradients,) = torch.autograd.grad(logits.gather(1, targets.clone()[:, None]).sum(), leaf)
        maps = gradcam(leaf.detach(), gradients)
        return torch.cat([logits.detach(), maps.flatten(1).to(logits)], dim=1)


# --- Graphs ----------------------------------------------------------------------------------------------------------


def _after(graph: fx.Graph, at: fx.Node) -> set[fx.Node]:
    """The nodes that depend on `at`, without it."""
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source is at or source in after for source in node.all_input_nodes):
            after.add(node)
    return after


def _crossing(graph: fx.Graph, at: fx.Node) -> list[fx.Node]:
    """What else, besides `at`, the nodes after it need."""
    after = _after(graph, at)
    needed = {source for node in after for source in node.all_input_nodes} - after - {at}
    return [node for node in graph.nodes if node in needed and node.op != "get_attr"]


def _between(
    module: nn.Module, graph: fx.Graph, given: Sequence[fx.Node], wanted: Sequence[fx.Node]
) -> fx.GraphModule | None:
    """The way from the values of `given` to those of `wanted`, or None where it needs more of the network's input."""
    needed = set(wanted)
    for node in reversed(graph.nodes):
        if node in needed and node not in given:
            needed.update(node.all_input_nodes)
    part = fx.Graph()
    twin = {node: part.placeholder(f"given{number}") for number, node in enumerate(given)}
    for node in graph.nodes:
        if node in needed and node not in twin:
            if node.op == "placeholder":
                return None
            twin[node] = part.node_copy(node, twin.__getitem__)
    part.output(tuple(twin[node] for node in wanted))
    return fx.GraphModule(module, part)
