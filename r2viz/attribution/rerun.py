"""What a method may ask of a network again after the forward pass: scores of changed features or changed pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from r2viz.attribution.plan import folded_network
from r2viz.attribution.scores import Score
from r2viz.folding import folded
from r2viz.graph import Halves, cut, trace
from r2viz.taps import Point, frozen, lock, tap

Progress = Callable[[int, int], None]
"""Called with (done, total) while a method runs many passes."""


# Bytes of a batch's largest feature map on a CPU, per thread and in all. More rows are not faster (ResNet-50 at 224
# pixels: 4, 8 and 16 rows within 2 %), and above 32 MB every tensor is fresh memory from the operating system.
_CPU_MAP, _CPU_MAP_LEAST, _CPU_MAP_MOST = 6.5e6, 13e6, 26e6
# Larger weights belong to small feature maps, whose normalisation costs little, while a copy of them costs most of the
# memory: of ResNet-50, 98 MB with and 18 MB without.
_LARGEST_FOLDED = 300_000
# What a pass holds at once, in feature maps of the largest size: input, output and scratch of two branches.
_MAPS_ALIVE = 8
_FREE_UNKNOWN = 1e9


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
        # What follows may work in place, and the caller's tensor is not ours to change.
        return self._after(activations.clone() if self.point.split is None else activations, rows)

    def _after(self, activations: Tensor, rows: Tensor) -> Tensor:
        with self.network() as module:
            halves, crossing = self._halves()
            if halves is None:
                return self.score(self._replaced(module, activations, rows), rows)
            whole, *others = crossing
            first = activations if self.point.split is None else self._put(whole.index_select(0, rows), activations)
            return self.score(halves.suffix(first, *(tensor.index_select(0, rows) for tensor in others)), rows)

    def again(self, batch: Tensor, rows: Tensor) -> Tensor:
        """Scores `(M,)` of changed pictures `batch` `(M, 3, H, W)`, made from the pictures `rows`."""
        with self.network():
            return self.score(self._forward()(batch), rows)

    def scores(self, rows: Tensor, make: Callable[[slice], Tensor], *, of: Literal["features", "pictures"]) -> Tensor:
        """Scores `(M,)` of M variants, variant m of picture `rows[m]`, never more of them in memory than one batch.

        Args:
            rows: `(M,)`, whose variants they are.
            make: the variants of a slice of `rows`, as `after` or `again` takes them. May be asked twice for the same.
            of: what `make` makes. It is used up: in-place operations of the network may work on it.

        Runs `rows_at_once` of them together, or as many as memory and caches suggest; halves that when memory runs
        out. Tells `progress`.
        """
        run = self._after if of == "features" else self.again
        size, begun, total = self.rows_at_once or self._suggested(of), 0, len(rows)
        found: list[Tensor] = []
        while begun < total:
            part = slice(begun, min(begun + size, total))
            with torch.inference_mode():
                scores = _unless_full(lambda part=part: run(make(part), rows[part]), last=part.stop - begun == 1)  # type: ignore[misc]
            if scores is None:
                size = max(1, (part.stop - begun) // 2)
                continue
            found.append(scores)
            begun = part.stop
            self.progress(begun, total)
        return torch.cat(found) if found else self.base[:0].clone()

    def _suggested(self, of: Literal["features", "pictures"]) -> int:
        row = self.activations[:1] if of == "features" else self.batch[:1]
        # A picture's largest map: 64 channels at half its resolution, as most stems give.
        largest = max(1.0, row.nbytes * (1.0 if of == "features" else 16 / 3))
        most = 0.5 * _free(row.device) / (_MAPS_ALIVE * largest)
        if row.device.type == "cpu":
            # Folded altogether, eight rows are 5 % faster than four.
            least = _CPU_MAP_MOST if of == "pictures" and self._planned() else _CPU_MAP_LEAST
            most = min(most, min(max(_CPU_MAP * torch.get_num_threads(), least), _CPU_MAP_MOST) / largest)
        return int(max(1, min(most, 256)))

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

        A 1x1 convolution after the pooling, as DLA has it, is such a layer.
        None where the network is not like that: the weights are believed only after `W · mean(A) + b` has reproduced
        the network's output within 1e-5 of its scale (or of the resolution of its number type).
        """
        head = self.head()
        return None if head is None else head.weight

    def head(self) -> nn.Linear | None:
        """The layer that `linear_head` speaks of, bias included; a convolution as the linear layer that it is."""
        if "head" not in self._kept:
            self._kept["head"] = self._find_head()
        return self._kept["head"]

    def _find_head(self) -> nn.Linear | None:
        if self.point.split is not None:
            return None
        channels = self.activations.shape[1]
        heads = [part for part in self.module.modules() if _inputs(part) == channels]
        if not heads:
            return None
        with self.network():
            head = _linear(heads[-1])
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
            return head if bool((output - formula).abs().max() <= slack) else None

    def _halves(self) -> tuple[Halves | None, tuple[Tensor, ...]]:
        """The network cut at the tap, and what crosses; believed only where it gives the first pass's scores."""
        if "halves" not in self._kept:
            self._kept["halves"] = None, ()
            halves = cut(self.module, self.point)
            crossing: tuple[Any, ...] = () if halves is None else self._crossing(halves)
            # Sizes and other numbers of the first batch would be wrong for the next one.
            if halves is not None and all(isinstance(it, Tensor) and len(it) == len(self.batch) for it in crossing):
                faster = folded(halves.suffix, halves.suffix.graph, largest=_LARGEST_FOLDED)
                for suffix in (faster, halves.suffix):
                    if suffix is not None and self._agrees(suffix, *crossing):
                        self._kept["halves"] = Halves(halves.prefix, suffix), crossing
                        break
        return self._kept["halves"]

    def _crossing(self, halves: Halves) -> tuple[Any, ...]:
        if self._whole is not None and _alone(halves):
            return (self._whole,)
        return halves.prefix(self.batch)

    def _forward(self) -> Callable[[Tensor], Any]:
        """The whole network, folded where that is possible and gives the first pass's scores."""
        if "forward" not in self._kept:
            traced = trace(self.module)
            faster: Callable[[Tensor], Any] | None = self._planned()
            if faster is None and traced.whole and traced.graph is not None:
                faster = folded(self.module, traced.graph, largest=_LARGEST_FOLDED)
            agrees = faster is not None and self._agrees(faster, self.batch)
            self._kept["forward"] = faster if agrees else self.module
        return self._kept["forward"]

    def _planned(self) -> Callable[[Tensor], Any] | None:
        """The network folded altogether, where it is kept for other passes: its large weights take no more memory."""
        if "planned" not in self._kept:
            with self.network():
                self._kept["planned"] = folded_network(self.module)
        return self._kept["planned"]

    def _agrees(self, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Whether the first picture, twice, gets its score by `function`, too: not one of them, to be another batch."""
        rows = torch.zeros(2, dtype=torch.long, device=self.batch.device)
        scores = self.score(function(*(tensor.index_select(0, rows) for tensor in inputs)), rows)
        if scores.shape != rows.shape:
            return False
        slack = max(1e-3, 16 * torch.finfo(scores.dtype).eps)
        return bool(((scores - self.base[:1]).abs() <= slack * self.base[:1].abs() + 1e-6).all())

    def _put(self, whole: Tensor, activations: Tensor) -> Tensor:
        if self.point.split is None:
            return activations
        parts = list(whole.chunk(self.point.splits, dim=1))
        parts[self.point.split] = activations
        return torch.cat(parts, dim=1)

    def _replaced(self, module: nn.Module, activations: Tensor, rows: Tensor) -> Any:
        """The whole network's output with the tap's features replaced: for networks that cannot be cut."""
        part = module.get_submodule(self.point.path)
        owner = threading.get_ident()

        def out(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return self._put(output, activations) if threading.get_ident() == owner else output

        def into(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self._put(args[0], activations), *args[1:]) if threading.get_ident() == owner else args

        with ExitStack() as stack:
            handle = part.register_forward_pre_hook(into) if self.point.into else part.register_forward_hook(out)
            stack.callback(handle.remove)
            return module(self.batch.index_select(0, rows))


def _inputs(part: nn.Module) -> int | None:
    """The features that a linear layer or a convolution of single pixels takes; None for anything else."""
    if isinstance(part, nn.Linear):
        return part.in_features
    if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1:
        return part.in_channels
    return None


def _linear(part: nn.Module) -> nn.Linear:
    """The part itself, or a linear layer over the very weights of a 1x1 convolution."""
    if isinstance(part, nn.Linear):
        return part
    assert isinstance(part, nn.Conv2d)
    linear = nn.Linear(part.in_channels, part.out_channels, bias=part.bias is not None, device="meta")
    linear.weight = nn.Parameter(part.weight.detach().flatten(1), requires_grad=False)
    if part.bias is not None:
        linear.bias = nn.Parameter(part.bias.detach(), requires_grad=False)
    return linear


def _alone(halves: Halves) -> bool:
    """Whether nothing but the tapped tensor crosses the cut."""
    return sum(node.op == "placeholder" for node in halves.suffix.graph.nodes) == 1


def _unless_full(work: Callable[[], Tensor], *, last: bool) -> Tensor | None:
    """What `work` gives, or None where memory ran out and fewer rows can still be tried."""
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU, torch tells of it by a plain RuntimeError.
        full = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)
        if last or not (full or "not enough memory" in str(error) or "can't allocate memory" in str(error)):
            raise
        return None


def _free(device: torch.device) -> float:
    """Bytes that are free on `device`."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on every system
        return _FREE_UNKNOWN
