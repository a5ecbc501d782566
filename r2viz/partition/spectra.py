"""Spatial frequencies of splits: power spectrum, its centroid, and how far activations stay alike.

Every map, less its mean, goes under a Hann window and through one real FFT; power is summed over a split's channels.
The autocorrelation is the transform of that power over the transform of the window's (Wiener-Khinchin; the window
lets little wrap around). The null with shuffled pixels needs no shuffling: averaged over all orders of n pixels of mean
zero and variance v, two different ones have covariance -v / (n - 1), so that the windowed power is

    E|F(k)|² = v · (n / (n - 1) · Σ w² - |W(k)|² / (n - 1))

with W the window's transform: the same shape for every map of one size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from r2viz.errors import ModelError
from r2viz.partition.look import Look, PerPicture
from r2viz.partition.places import Block

PER_PICTURE = ("centroid", "correlation_length", "centroid_shuffled", "correlation_length_shuffled")


@lru_cache(maxsize=64)
def window(size: int) -> np.ndarray:
    """Hann's, float64 `(size,)`, taken at the middles of cells: symmetric, and no cell counts nothing."""
    return np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2


@lru_cache(maxsize=64)
def shuffled_power(height: int, width: int) -> np.ndarray:
    """Power of the real FFT `(H, W // 2 + 1)` of unit variance, averaged over all orders of the pixels."""
    both = np.outer(window(height), window(width))
    cells = both.size
    if cells == 1:
        return np.zeros((1, 1))
    return (both**2).sum() * cells / (cells - 1) - np.abs(np.fft.rfft2(both)) ** 2 / (cells - 1)


def frequencies(height: int, width: int, jump: tuple[float, float]) -> np.ndarray:
    """|f| in cycles per input pixel of every bin of a real FFT `(H, W // 2 + 1)`."""
    return np.hypot(np.fft.fftfreq(height)[:, None] / jump[0], np.fft.rfftfreq(width)[None] / jump[1])


def both_halves(width: int) -> np.ndarray:
    """How often each column of a real FFT stands in the whole one: `(W // 2 + 1,)`."""
    times = np.full(width // 2 + 1, 2.0)
    times[0] = 1
    if width % 2 == 0:
        times[-1] = 1
    return times


def centroid(power: np.ndarray, width: int, jump: tuple[float, float]) -> np.ndarray:
    """Σ |f| P / Σ P without f = 0, of `(..., H, W // 2 + 1)`, in cycles per input pixel; NaN without power."""
    counted = _without_mean(power) * both_halves(width)
    whole = counted.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counted * frequencies(power.shape[-2], width, jump)).sum(axis=(-2, -1)) / whole


def correlation_length(power: np.ndarray, width: int, jump: tuple[float, float]) -> np.ndarray:
    """Where the autocorrelation falls below 1/e, in input pixels, mean over rows and columns; NaN where it never does.

    Of windowed power `(..., H, W // 2 + 1)`. Looked for up to half the map.
    """
    height = power.shape[-2]
    both = np.outer(window(height), window(width))
    whole = np.fft.irfft2(power, s=(height, width))
    own = np.fft.irfft2(np.abs(np.fft.rfft2(both)) ** 2, s=(height, width))
    lengths = []
    for along, step, size in (
        (whole[..., 0] / own[:, 0], jump[0], height),
        (whole[..., 0, :] / own[0], jump[1], width),
    ):
        lengths.append(step * _crossing(along[..., : size // 2 + 1]))
    return (lengths[0] + lengths[1]) / 2


def _crossing(curve: np.ndarray) -> np.ndarray:
    """First lag below 1/e of the value at lag 0, by a straight line between lags; `(..., lags)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        curve = curve / curve[..., :1]
    below = curve < np.exp(-1)
    lag = np.maximum(below.argmax(axis=-1), 1)
    if curve.shape[-1] < 2:
        return np.full(curve.shape[:-1], np.nan)
    at, before = (np.take_along_axis(curve, place[..., None], axis=-1)[..., 0] for place in (lag, lag - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = lag - 1 + (before - np.exp(-1)) / (before - at)
    return np.where(below.any(axis=-1), found, np.nan)


def _without_mean(power: np.ndarray) -> np.ndarray:
    rest = power.copy()
    rest[..., 0, 0] = 0
    return rest


@dataclass(eq=False)
class Spectra:
    """Of one block's splits. Curves are in rings of equal width; a picture's curve is its share of power in each."""

    block: Block
    edges: np.ndarray | None = None
    pictures: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counted: np.ndarray = field(default_factory=lambda: np.zeros(0))
    shuffled: np.ndarray = field(default_factory=lambda: np.zeros(0))
    each: PerPicture = field(default_factory=PerPicture)

    def add(self, look: Look, means: np.ndarray) -> None:
        """Take some pictures in; `means` `(N, C)` are their maps' spatial means."""
        count, _, height, width = look.values.shape
        jump = self.block.parts[0].split.jump or (look.input_size[0] / height, look.input_size[1] / width)
        power = self._power(look, means)
        if self.edges is None:
            self._begin(height, width, jump)
        null = np.broadcast_to(shuffled_power(height, width), power.shape)
        columns = [how(given, width, jump) for given in (power, null) for how in (centroid, correlation_length)]
        self.each.add(look.index, np.stack(columns, axis=2).reshape(count, -1))
        shares = self._rings(power, width, jump)
        seen = np.isfinite(shares).all(axis=2, keepdims=True)
        known = np.where(seen, shares, 0)
        self.total += known.sum(axis=0)
        self.square += (known**2).sum(axis=0)
        self.counted += seen[:, :, 0].sum(axis=0)
        self.shuffled += count * self._rings(null[:1], width, jump)[0]
        self.pictures += count

    def _power(self, look: Look, means: np.ndarray) -> np.ndarray:
        """|F|² summed over each split's channels: float64 `(N, parts, H, W // 2 + 1)`."""
        values = look.values
        count, channels, height, width = values.shape
        shape = (count, channels, height, width)
        strides = (channels * height * width, height * width, width, 1)
        maps = look.scratch.like("maps", shape, strides, values)
        torch.sub(values, torch.from_numpy(means).to(values)[..., None, None], out=maps)
        maps *= torch.from_numpy(np.outer(window(height), window(width))).to(maps)
        power = torch.view_as_real(torch.fft.rfft2(maps)).square_().flatten(2)
        among = np.zeros((len(self.block.parts), channels))
        for number, part in enumerate(self.block.parts):
            among[number, part.channels] = 1
        summed = torch.matmul(torch.from_numpy(among).to(power), power)
        both = summed.cpu().numpy().astype(np.float64).reshape(count, len(among), height, width // 2 + 1, 2)
        return both.sum(axis=-1)

    def _begin(self, height: int, width: int, jump: tuple[float, float]) -> None:
        rings = max(2, round(min(height, width) / 2 * 2**0.5))
        self.edges = np.linspace(0, 0.5 * np.hypot(1 / jump[0], 1 / jump[1]) * (1 + 1e-9), rings + 1)
        empty = np.zeros((len(self.block.parts), rings))
        self.total, self.square, self.shuffled = empty.copy(), empty.copy(), empty.copy()
        self.counted = np.zeros(len(self.block.parts))

    def _rings(self, power: np.ndarray, width: int, jump: tuple[float, float]) -> np.ndarray:
        """Shares of power by ring, `(N, parts, rings)`; NaN without power."""
        assert self.edges is not None
        counted = _without_mean(power) * both_halves(width)
        ring = np.searchsorted(self.edges, frequencies(power.shape[-2], width, jump).ravel(), side="right") - 1
        among = np.zeros((ring.size, len(self.edges) - 1))
        among[np.arange(ring.size), np.minimum(ring, len(self.edges) - 2)] = 1
        sums = counted.reshape(*counted.shape[:2], -1) @ among
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / sums.sum(axis=-1, keepdims=True)

    def merge(self, other: Spectra) -> Spectra:
        """Of both.

        Raises:
            ModelError: they come from maps of different sizes.
        """
        if other.edges is None:
            return self
        if self.edges is None:
            return other
        if not np.array_equal(self.edges, other.edges):
            raise ModelError(
                f"spectra of {self.block.path!r} have {len(self.edges) - 1} and {len(other.edges) - 1} rings: they "
                "come from pictures of different sizes; measure both with one crop"
            )
        return Spectra(
            self.block,
            self.edges,
            self.pictures + other.pictures,
            self.total + other.total,
            self.square + other.square,
            self.counted + other.counted,
            self.shuffled + other.shuffled,
            self.each.merged(other.each),
        )

    def curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean curve, half the width of its 95 % interval (normal, over pictures), and shuffled: `(parts, rings)`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            count = self.counted[:, None]
            mean = self.total / count
            variance = np.maximum(self.square / count - mean**2, 0) * count / (count - 1)
            return mean, 1.959964 * np.sqrt(variance / count), self.shuffled / self.pictures

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the block, to be sent elsewhere."""
        if self.edges is None:
            return {}
        index, values = self.each.sorted()
        return {
            "edges": self.edges, "pictures": np.array(self.pictures), "total": self.total, "square": self.square,
            "counted": self.counted, "shuffled": self.shuffled, "index": index, "each": values,
        }  # fmt: skip

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        if not state:
            return
        self.edges, self.pictures = state["edges"], int(state["pictures"])
        self.total, self.square = state["total"], state["square"]
        self.counted, self.shuffled = state["counted"], state["shuffled"]
        self.each = PerPicture([state["index"]], [state["each"]])
