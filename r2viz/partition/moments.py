"""Moments of splits: sums, squares and products of channels, of which everything linear or quadratic is made.

Float32 over the positions of a few pictures, less a fixed value per channel (its mean in the first pictures), then
float64 from picture to picture: as exact as float64 throughout, since nothing large is ever subtracted (tests hold
both against each other), at the cost of two passes over memory and one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from r2viz.errors import ModelError
from r2viz.partition.intervals import GROUPS
from r2viz.partition.look import Look, PerPicture
from r2viz.partition.places import Block

_RESOLUTION = 1e-6
"""Least standard deviation over mean of a channel that varies; float32 holds 6e-8."""

PER_PICTURE = ("mean", "sparsity", "energy", "energy_conv3")


@dataclass(eq=False)
class Moments:
    """Of one block's channels, by group of pictures.

    With d = x - shift: `total` is Σd, `square` Σd² or, with `products`, Σddᵀ for each split; `alive` counts values
    above ε. `weight`, of `conv3` as `(outputs, C)` on the CPU, is only needed to add, not to merge.
    """

    block: Block
    eps: float = 0.0
    products: bool = False
    weight: Tensor | None = None
    positions: np.ndarray = field(default_factory=lambda: np.zeros(GROUPS, np.int64))
    pictures: np.ndarray = field(default_factory=lambda: np.zeros(GROUPS, np.int64))
    shift: np.ndarray | None = None
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    alive: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    square: list[np.ndarray] = field(default_factory=list)
    each: PerPicture = field(default_factory=PerPicture)
    _kernels: list[np.ndarray] | None = None

    def add(self, look: Look) -> np.ndarray:
        """Take some pictures in.

        Returns:
            Spatial means, float64 `(N, C)`.

        Raises:
            ModelError: values that are not finite, or whose squares are not.
        """
        flat = look.flat
        count, _, cells = flat.shape
        if self.shift is None:
            self._begin(flat)
        assert self.shift is not None
        shift = torch.from_numpy(self.shift).to(flat)
        apart = torch.sub(flat, shift[:, None], out=look.buffer("apart"))
        sums = _host(apart.sum(-1))
        grams = self._grams(apart)
        energy, weighted = self._energies(grams, sums, cells)
        if not (np.isfinite(sums).all() and np.isfinite(energy).all()):
            self._refuse(flat)
        ones = flat.new_ones(count, cells, 1)
        alive = _host(torch.bmm(torch.gt(flat, self.eps, out=look.buffer("apart")), ones)[..., 0])

        one_hot = (look.groups[None] == np.arange(GROUPS)[:, None]).astype(np.float64)
        self.pictures += one_hot.sum(axis=1).astype(np.int64)
        self.positions += cells * one_hot.sum(axis=1).astype(np.int64)
        self.total += one_hot @ sums
        self.alive += (one_hot @ alive).astype(np.int64)
        present = np.flatnonzero(one_hot.any(axis=1))
        among = torch.from_numpy(one_hot[present]).to(flat)
        for held, gram in zip(self.square, grams, strict=True):
            kept = gram if self.products else gram.diagonal(dim1=1, dim2=2)
            held[present] += _host(among @ kept.flatten(1)).reshape(len(present), *held.shape[1:])

        means = self.shift + sums / cells
        means[np.abs(means) <= _RESOLUTION * np.abs(self.shift)] = 0  # a channel that is silent in this picture
        columns = []
        for number, part in enumerate(self.block.parts):
            mean = means[:, part.channels].mean(axis=1)
            sparsity = 1 - alive[:, part.channels].sum(axis=1) / (cells * len(part.channels))
            columns.append(np.stack([mean, sparsity, energy[:, number], weighted[:, number]], axis=1))
        stacked = np.stack(columns, axis=1)  # (N, parts, 4)
        self._shared(stacked)
        self.each.add(look.index, stacked.reshape(count, -1))
        return means

    def _begin(self, flat: Tensor) -> None:
        mean = flat.mean(dim=(0, 2))
        if not bool(torch.isfinite(mean).all()):
            self._refuse(flat)
        self.shift = _host(mean)
        channels = len(self.shift)
        if channels != self.block.channels:
            raise ModelError(
                f"{self.block.conv3!r} was given {channels} channels; {self.block.channels} were expected of its splits"
            )
        self.total = np.zeros((GROUPS, channels))
        self.alive = np.zeros((GROUPS, channels), np.int64)
        widths = [len(part.channels) for part in self.block.parts]
        self.square = [np.zeros((GROUPS, width, width) if self.products else (GROUPS, width)) for width in widths]

    def _grams(self, apart: Tensor) -> list[Tensor]:
        """Products of channels summed over positions, `(N, width, width)` for each split."""
        spans = [part.span for part in self.block.parts]
        if all(span is not None for span in spans):
            cut = [apart[:, span] for span in spans if span is not None]
            return [torch.bmm(one, one.transpose(1, 2)) for one in cut]
        # Parts in two orders share a whole: that of a ResNet's few channels costs less than gathering twice.
        whole = torch.bmm(apart, apart.transpose(1, 2))
        chosen = [torch.from_numpy(part.channels).to(apart.device) for part in self.block.parts]
        return [whole[:, channels[:, None], channels] for channels in chosen]

    def _energies(self, grams: list[Tensor], sums: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Σ y² and Σ |W y|² over positions, float64 `(N, parts)` each."""
        assert self.shift is not None
        if self._kernels is None and self.weight is not None:
            cut = [self.weight[:, torch.from_numpy(part.channels)] for part in self.block.parts]
            self._kernels = [_host(weight.T @ weight) for weight in cut]  # |W y|² = yᵀ WᵀW y
        before, after = [], []
        for number, (part, gram) in enumerate(zip(self.block.parts, grams, strict=True)):
            shift, some = self.shift[part.channels], sums[:, part.channels]
            squares = _host(gram.diagonal(dim1=1, dim2=2))
            before.append((squares + 2 * shift * some + cells * shift**2).sum(axis=1))
            if self._kernels is None:
                after.append(np.full(len(some), np.nan))
                continue
            kernel = self._kernels[number]
            direct = _host(gram.flatten(1) @ torch.from_numpy(kernel).to(gram).flatten())
            after.append(direct + 2 * some @ (kernel @ shift) + cells * (shift @ kernel @ shift))
        return np.stack(before, axis=1), np.stack(after, axis=1)

    def _shared(self, columns: np.ndarray) -> None:
        """Energies as shares of the block's, in place; permuted parts have the same whole as the others."""
        for kind in {part.split.kind for part in self.block.parts} if not self.block.cascaded else {""}:
            chosen = [at for at, part in enumerate(self.block.parts) if not kind or part.split.kind == kind]
            for column in (2, 3):
                values = np.maximum(columns[:, chosen, column], 0)
                whole = values.sum(axis=1, keepdims=True)
                with np.errstate(invalid="ignore", divide="ignore"):
                    columns[:, chosen, column] = values / whole

    def _refuse(self, flat: Tensor) -> None:
        bad = (~torch.isfinite(flat)).sum()
        layer = f"{self.block.path}.conv3_in"
        if int(bad):
            channels = (~torch.isfinite(flat)).any(dim=2).any(dim=0).nonzero().flatten().tolist()
            named = [
                part.split.tap for part in self.block.parts if np.isin(part.channels, channels).any() and part.span
            ]
            raise ModelError(
                f"{int(bad)} of {flat.numel()} values at {layer!r} are NaN or infinite (in {', '.join(named[:4])}); "
                "its weights, its precision or the input are not usable",
                code="model.not_finite",
            )
        raise ModelError(
            f"values at {layer!r} reach {float(flat.abs().max()):.2g}, too much to be squared in {flat.dtype}; "
            "run the network in float64",
            code="model.not_finite",
        )

    def merge(self, other: Moments) -> Moments:
        """Of both: in any order, up to the rounding of float64."""
        if other.shift is None:
            return self
        if self.shift is None:
            return other
        moved = other.shift - self.shift  # d about our shift is d about theirs plus this
        count = other.positions[:, None]
        square = []
        for part, mine, theirs in zip(self.block.parts, self.square, other.square, strict=True):
            total, by = other.total[:, part.channels], moved[part.channels]
            if self.products:
                cross = total[:, :, None] * by
                square.append(mine + theirs + cross + cross.swapaxes(1, 2) + count[..., None] * np.outer(by, by))
            else:
                square.append(mine + theirs + 2 * total * by + count * by**2)
        return Moments(
            self.block,
            self.eps,
            self.products,
            self.weight,
            self.positions + other.positions,
            self.pictures + other.pictures,
            self.shift,
            self.total + other.total + count * moved,
            self.alive + other.alive,
            square,
            self.each.merged(other.each),
        )

    def covariance(self, number: int, groups: np.ndarray) -> np.ndarray:
        """Of part `number` over the positions of some groups' pictures, divisor n: `(w, w)`, or `(w,)` of it.

        Zero for channels that vary by less than float32 can tell from a constant.
        """
        assert self.shift is not None
        channels = self.block.parts[number].channels
        count = self.positions[groups].sum()
        mean = self.total[groups][:, channels].sum(axis=0) / count
        square = self.square[number][groups].sum(axis=0) / count
        found = square - (np.outer(mean, mean) if self.products else mean**2)
        variance = found.diagonal() if self.products else found
        varies = variance > (_RESOLUTION * (self.shift[channels] + mean)) ** 2
        return found * (np.outer(varies, varies) if self.products else varies)

    def dead(self, number: int, groups: np.ndarray) -> float:
        """Share of part `number`'s channels that never exceed ε in some groups' pictures."""
        return float((self.alive[groups][:, self.block.parts[number].channels].sum(axis=0) == 0).mean())

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the block, to be sent elsewhere."""
        if self.shift is None:
            return {}
        index, values = self.each.sorted()
        named = {f"square{number}": square for number, square in enumerate(self.square)}
        return {
            "positions": self.positions, "pictures": self.pictures, "shift": self.shift, "total": self.total,
            "alive": self.alive, **named, "index": index, "each": values,
        }  # fmt: skip

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        if not state:
            return
        self.positions, self.pictures = state["positions"], state["pictures"]
        self.shift, self.total, self.alive = state["shift"], state["total"], state["alive"]
        self.square = [state[f"square{number}"] for number in range(len(self.block.parts))]
        self.each = PerPicture([state["index"]], [state["each"]])


def participation_ratio(covariance: np.ndarray) -> float:
    """(Σλ)² / Σλ² of a covariance `(w, w)`; NaN where nothing varies (Gao & Ganguli 2015)."""
    squares = float((covariance**2).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares > 0 else float("nan")


def effective_rank(covariance: np.ndarray) -> float:
    """exp(-Σ p ln p), p = λ / Σλ, of a covariance `(w, w)`; NaN where nothing varies (Roy & Vetterli 2007)."""
    spread = np.maximum(np.linalg.eigvalsh(covariance), 0)
    if spread.sum() <= 0:
        return float("nan")
    share = spread[spread > 0] / spread.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)
