"""A split's feature maps on one picture, with where their units sit and how far they could see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from r2viz.geometry import Geometry
from r2viz.image import Picture, decode
from r2viz.models.model import Model
from r2viz.partition.places import blocks
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids
from r2viz.split_records import PERMUTED
from r2viz.taps import device_of, frozen, lock, point, tap, unwrapped


@dataclass(frozen=True, eq=False)
class Features:
    """What one split of a network gives for one picture.

    Attributes:
        title: network and split, say `Res2Net-50 26w-4s, layer3.2.split1`; `tap` is the latter.
        maps: float32 `(C, h, w)`.
        geometry: from the picture to the network's input.
        start: (y, x) of unit (0, 0) in input pixels; `jump` between units.
        reach: side of the largest theoretical field in input pixels; None where it is unknown or unbounded.
    """

    title: str
    tap: str
    maps: np.ndarray
    geometry: Geometry
    start: tuple[float, float]
    jump: tuple[float, float]
    reach: int | None


def features(image: Any, model: Model, layers: Sequence[str] | None = None) -> list[Features]:
    """The splits of the last block of `layers` (by default of the network), in code order, by one forward pass.

    A ResNet gives the channel groups that stand for splits as the control.

    Raises:
        BadImage: the picture cannot be decoded.
        ModelError: the network has no such blocks.
    """
    picture = image if isinstance(image, Picture) else decode(image)
    tensor, geometry = model.preprocess(picture.rgb)
    module = unwrapped(model.module)
    block = blocks(module, name=model.name, layers=layers)[-1]
    whole = f"{block.path}.conv3_in"
    where = point(module, whole, called=model.name)
    given = tensor.to(device_of(module), next(module.parameters()).dtype)
    with lock(module), torch.no_grad(), frozen(module), tap(module, [whole]) as seen:
        module(given)
    maps = seen[whole][0].float().cpu().numpy()
    path = where.path + "_in"
    size = (int(given.shape[2]), int(given.shape[3]))
    grid = grids(module).get(path) or Grid.resized(size, (maps.shape[1], maps.shape[2]))
    return [
        Features(
            f"{model.title}, {part.split.tap}",
            part.split.tap,
            maps[part.channels],
            geometry,
            grid.start,
            grid.jump,
            part.split.field,
        )
        for part in block.parts
        if part.split.kind != PERMUTED
    ]
