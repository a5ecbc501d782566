"""What a method may ask of a network again after the forward pass: scores of changed features or changed pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.attribution.scores import Score
from r2viz.graph import Halves, cut
from r2viz.taps import Point, frozen, lock, tap

Progress = Callable[[int, int], None]
"""Called with (done, total) while a method runs many passes."""


def silent(_done: int, _total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True, eq=False)
class Rerun:
    """A network at one tap, to be run again on changed features or pictures.

    Attributes:
        module: the network.
        layer: the tap's name; `point` what it means.
        batch: the pictures, `(N, 3, H, W)`, as the network takes them.
        activations: at the tap, `(N, C, h, w)`; of the split alone where the tap names one.
        base: each picture's score, `(N,)`.
        score: `(output (M, …), rows (M,)) -> (M,)`, the score of row m, which is a variant of picture `rows[m]`.
        seed: of everything that a method draws.
        channels: the largest number of channels that a perturbation method looks at (the most varying ones), None: all.
        rows_at_once: variants per pass; None: as many as memory suggests.
        progress: told how far it is.
    """

    module: nn.Module
    layer: str
    point: Point
    batch: Tensor
    activations: Tensor
    base: Tensor
    score: Score
    seed: int = 0
    channels: int | None = None
    rows_at_once: int | None = None
    progress: Progress = silent
    _whole: Tensor | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """A seeded generator on the CPU: what it draws is the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The network in evaluation mode, frozen and locked, to be run without gradients."""
        with lock(self.module), torch.inference_mode(), frozen(self.module):
            yield self.module

    def after(self, activations: Tensor, rows: Tensor) -> Tensor:
        """Scores `(M,)` with `activations` `(M, C, h, w)` at the tap in place of those of the pictures `rows` `(M,)`.

        Only what follows the tap is run, where the network's graph could be followed.
        """
        with self.network() as module:
            halves, crossing = self._halves()
            if halves is None:
                return self.score(self._replaced(module, activations, rows), rows)
            first, *others = (tensor.index_select(0, rows) for tensor in crossing)
            return self.score(halves.suffix(self._put(first, activations), *others), rows)

    def again(self, batch: Tensor, rows: Tensor) -> Tensor:
        """Scores `(M,)` of changed pictures `batch` `(M, 3, H, W)`, made from the pictures `rows`."""
        with self.network() as module:
            return self.score(module(batch), rows)

    def look(self, batch: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores `(M,)` of changed pictures, and activations and gradients `(M, C, h, w)` at the tap."""
        with (
            lock(self.module),
            torch.inference_mode(False),
            torch.enable_grad(),
            frozen(self.module),
            tap(self.module, [self.layer], differentiable=True) as taken,
        ):
            scores = self.score(self.module(batch.clone() if batch.is_inference() else batch), rows)
            total = scores.sum()  # in here: under the caller's `no_grad` a sum has no past
        whole = taken[self.layer]
        (gradients,) = torch.autograd.grad(total, whole)
        return scores.detach(), self.point.part(whole.detach()), self.point.part(gradients)

    def linear_head(self) -> Tensor | None:
        """`(classes, C)`: the weights of a head that is global average pooling and one linear layer right at the tap.

        None where the network is not like that: the weights are believed only after `W · mean(A) + b` has reproduced
        the network's output within 1e-5 of its scale (or of the resolution of its number type).
        """
        if "head" not in self._kept:
            self._kept["head"] = self._find_head()
        return self._kept["head"]

    def _find_head(self) -> Tensor | None:
        if self.point.split is not None:
            return None
        channels = self.activations.shape[1]
        heads = [part for part in self.module.modules() if isinstance(part, nn.Linear) and part.in_features == channels]
        if not heads:
            return None
        with self.network():
            head = heads[-1]
            halves, crossing = self._halves()
            if halves is None or len(crossing) > 1:
                return None
            # Not the output of the first pass alone: other features must give what the formula says, too.
            tried = torch.cat([self.activations, self.activations.flip(0, 1, 2)])
            output = halves.suffix(tried.clone())
            if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != head.out_features:
                return None
            formula = head(tried.mean(dim=(2, 3)))
            slack = max(1e-5, 4 * torch.finfo(output.dtype).eps) * output.abs().max().clamp(min=1)
            return head.weight if bool((output - formula).abs().max() <= slack) else None

    def _halves(self) -> tuple[Halves | None, tuple[Tensor, ...]]:
        if "halves" not in self._kept:
            halves = cut(self.module, self.point)
            self._kept["halves"] = halves, () if halves is None else self._crossing(halves)
        return self._kept["halves"]

    def _crossing(self, halves: Halves) -> tuple[Tensor, ...]:
        if self._whole is not None and _alone(halves):
            return (self._whole,)
        return halves.prefix(self.batch)

    def _put(self, whole: Tensor, activations: Tensor) -> Tensor:
        if self.point.split is None:
            # The suffix may work in place, and the caller's tensor is not ours to change.
            return activations.clone()
        parts = list(whole.chunk(self.point.splits, dim=1))
        parts[self.point.split] = activations
        return torch.cat(parts, dim=1)

    def _replaced(self, module: nn.Module, activations: Tensor, rows: Tensor) -> Any:
        """The whole network's output with the tap's features replaced: for networks that cannot be cut."""
        part = module.get_submodule(self.point.path)

        def out(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return self._put(output, activations)

        def into(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self._put(args[0], activations), *args[1:])

        with ExitStack() as stack:
            handle = part.register_forward_pre_hook(into) if self.point.into else part.register_forward_hook(out)
            stack.callback(handle.remove)
            return module(self.batch.index_select(0, rows))


def _alone(halves: Halves) -> bool:
    """Whether nothing but the tapped tensor crosses the cut."""
    return sum(node.op == "placeholder" for node in halves.suffix.graph.nodes) == 1  # type: ignore[attr-defined]
