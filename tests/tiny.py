"""Small untrained networks and small pictures: what the tests of the pipeline look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from r2viz.geometry import Preprocess
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.model import Model
from r2viz.models.resnet import ResNet
from r2viz.models.weights import Weights, digest

LABELS = ("apple", "bee", "cat", "dog", "egg", "fox", "goat", "hen", "ice lolly", "jay")
SMALL = Preprocess(resize=64, crop=(64, 64))

_BLOCKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "resnet_tiny": ("ResNet tiny", Bottleneck, {}),
    "res2net_tiny": ("Res2Net tiny", Res2NetBlock, {"base_width": 32, "scale": 4}),
}


def network(
    name: str = "resnet_tiny",
    *,
    labels: Sequence[str] = LABELS,
    seed: int = 0,
    preprocess: Preprocess = SMALL,
    kind: str = "file",
) -> Model:
    """A four-block network of the house's own assembly, on the CPU, channels-last."""
    title, block, more = _BLOCKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ResNet(block, (1, 1, 1, 1), widths=(8, 16, 32, 64), num_classes=len(labels), **more)
        # Fresh normalisations make the classes nearly equal; with these the networks have opinions.
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(part.weight, 0.6, 1.4)
                torch.nn.init.normal_(part.bias, 0, 0.3)
    module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(
        name, title, module, preprocess, tuple(labels), Weights(kind, "tiny.safetensors", digest(module.state_dict()))
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of so small a network wait for each other far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(**options: Any) -> list[Model]:
    """ResNet first, then Res2Net; `options` as for `network`."""
    return [network("resnet_tiny", **options), network("res2net_tiny", **options)]


def photo(height: int = 70, width: int = 90, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 `(H, W, 3)`."""
    coarse = np.random.default_rng(seed).random((5, 5, 3))
    y, x = (np.linspace(0, 4, size) for size in (height, width))
    rows = np.stack([np.interp(y, range(5), coarse[:, j, c]) for j in range(5) for c in range(3)], axis=-1)
    rows = rows.reshape(height, 5, 3)
    columns = np.stack([[np.interp(x, range(5), row[:, c]) for row in rows] for c in range(3)], axis=-1)
    return np.rint(255 * columns.reshape(height, width, 3)).astype(np.uint8)
