"""How networks are trained here, and in which order they see which part of which picture.

Everything random is a function of (seed, epoch, batch) and of nothing else: no network, no generator's state, no
number of processes. So every network of a run gets the same stream, and a run that was cut off can go on anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from r2viz.geometry import IMAGENET_MEAN, IMAGENET_STD

_LOG_RATIO = 0.2877
"""log(4/3): crops are at most a third wider than high, or higher than wide."""


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov's momentum under one cycle of the rate, small pictures first.

    Attributes:
        phases: (side in pixels, epochs), in order. The last side is the one that the networks are used at.
        batch: pictures per step, over all processes.
        rate: the peak of the learning rate, reached after `warmup` of the steps; from there it falls to nearly 0.
        warmup: fraction of the steps, linear from a twentieth of the peak.
        weight_decay: of convolutions and the linear layer's matrix; not of normalisation and biases.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        least_area: crops take a fraction of the picture's area uniform in `least_area`..1.
        group: so many consecutive pictures of a batch share their crop (one resize for all); each flips by itself.
        quiet_start: whether each block's last normalisation starts at zero, so that blocks start as their shortcut.
    """

    phases: tuple[tuple[int, int], ...]
    batch: int = 256
    rate: float = 0.3
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    least_area: float = 0.6
    group: int = 32
    quiet_start: bool = True

    def __post_init__(self) -> None:
        if not self.phases or any(size < 8 or epochs < 1 for size, epochs in self.phases):
            raise ValueError(f"phases need sides of at least 8 pixels and at least one epoch each, not {self.phases}")
        if self.batch < 2 or self.rate <= 0 or not 0 <= self.warmup < 1 or not 0 < self.least_area <= 1:
            raise ValueError("batch must be at least 2, rate positive, warmup in 0..1 and least_area in 0..1")

    @classmethod
    def of(cls, epochs: int, size: int, **settings: Any) -> Recipe:
        """`epochs` in all: two thirteenths at full `size`, as many at three quarters of it, the rest at half."""
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}")
        last = max(1, round(epochs * 2 / 13))
        if epochs < 3:
            phases: tuple[tuple[int, int], ...] = ((size, epochs),)
        else:
            phases = ((size // 2, epochs - 2 * last), (size * 3 // 4, last), (size, last))
        return cls(phases=phases, **settings)

    @property
    def size(self) -> int:
        """Side of the pictures at the end of training, and in use."""
        return self.phases[-1][0]

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.phases)

    def size_at(self, epoch: int) -> int:
        """Side of the pictures in `epoch`, 0-based."""
        return [size for size, epochs in self.phases for _ in range(epochs)][epoch]

    def rate_at(self, progress: float) -> float:
        """Learning rate after the fraction `progress` of all steps."""
        if progress < self.warmup:
            return self.rate * (0.05 + 0.95 * progress / self.warmup)
        return self.rate * max(1e-3, (1 - progress) / (1 - self.warmup))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for the card and to compare a checkpoint's recipe with the one asked for."""
        values = asdict(self)
        values["phases"] = [list(phase) for phase in self.phases]
        return {"optimiser": "SGD, Nesterov", "schedule": "one cycle, linear", "horizontal_flip": 0.5, **values}


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decided for one batch.

    Attributes:
        indices: int64 `(B,)` into the training pictures.
        flips: bool `(B,)`.
        boxes: int64 `(groups, 4)`, half-open (y0, x0, y1, x1) in stored pixels, one per `group` pictures.
        group: pictures per box.
    """

    indices: np.ndarray
    flips: np.ndarray
    boxes: np.ndarray
    group: int

    def chain(self, digest: str) -> str:
        """The digest of the stream so far, `digest`, continued by this batch."""
        total = hashlib.sha256(digest.encode())
        for array in (self.indices, self.flips, self.boxes):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


def order(seed: int, epoch: int, pictures: int) -> np.ndarray:
    """The order of an epoch: a permutation, int64 `(pictures,)`."""
    return np.random.default_rng([seed, epoch]).permutation(pictures).astype(np.int64)


def draw(recipe: Recipe, seed: int, epoch: int, batch: int, indices: np.ndarray, side: int) -> Draw:
    """Draw crops and flips for the pictures `indices` of batch number `batch`; pictures are stored at `side` pixels."""
    chance = np.random.default_rng([seed, epoch, batch])
    flips = chance.random(len(indices)) < 0.5
    boxes = []
    for _ in range(0, len(indices), recipe.group):
        area = side * side * chance.uniform(recipe.least_area, 1)
        ratio = math.exp(chance.uniform(-_LOG_RATIO, _LOG_RATIO))
        width, height = min(side, round((area * ratio) ** 0.5)), min(side, round((area / ratio) ** 0.5))
        x, y = int(chance.integers(0, side + 1 - width)), int(chance.integers(0, side + 1 - height))
        boxes.append((y, x, y + height, x + width))
    return Draw(indices, flips, np.array(boxes, dtype=np.int64), recipe.group)


def make(drawn: Draw, pixels: Tensor, size: int, rows: Sequence[int] | range | None = None) -> Tensor:
    """The batch that `drawn` describes, normalised, channels-last float32 `(B, 3, size, size)`.

    Args:
        drawn: which pictures, crops and flips.
        pixels: uint8 `(N, side, side, 3)`.
        size: side of the result.
        rows: those rows of the batch only, consecutive: one process's share.
    """
    share = range(len(drawn.indices)) if rows is None else rows
    crops = []
    for index, (y0, x0, y1, x1) in enumerate(drawn.boxes.tolist()):
        start = max(index * drawn.group, share[0])
        stop = min((index + 1) * drawn.group, share[-1] + 1)
        if start >= stop:
            continue
        crop = pixels[torch.from_numpy(drawn.indices[start:stop]), y0:y1, x0:x1].permute(0, 3, 1, 2)
        if crop.shape[2:] != (size, size):
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        crops.append(crop)
    batch = torch.cat(crops)
    flips = torch.from_numpy(drawn.flips[share[0] : share[-1] + 1])
    return normalised(torch.where(flips.view(-1, 1, 1, 1), batch.flip(3), batch))


def normalised(pictures: Tensor) -> Tensor:
    """uint8 `(N, 3, H, W)` to channels-last float32, by ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    deviation = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
    return ((pictures.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)
