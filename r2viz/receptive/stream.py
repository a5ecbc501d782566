"""Pictures as inputs, one at a time and the same ones for every network; what cannot be used is left out by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from r2viz.errors import BadImage, R2VizError, one_line
from r2viz.geometry import Geometry, Preprocess
from r2viz.image import Picture, decode
from r2viz.inputs import gather


class Pictures:
    """What a user gave, to be read once for every network.

    Attributes:
        seen: (name, sha256) of those that could be used.
        left_out: (name, reason) of the others.
        only: the picture and its geometry for each network, while there is one alone.
    """

    def __init__(self, images: Any, preprocesses: Sequence[Preprocess], *, limit: int | None, seed: int) -> None:
        self._images = listed(images)
        self._preprocesses = preprocesses
        self._used: list[int] = []
        self.limit = len(self._images) if limit is None else min(limit, len(self._images))
        self._order = list(range(len(self._images)))
        if self.limit < len(self._images):
            self._order = [int(index) for index in np.random.default_rng(seed).permutation(len(self._images))]
        self.seen: list[tuple[str, str]] = []
        self.left_out: list[tuple[str, str]] = []
        self.only: tuple[Picture, list[Geometry]] | None = None

    @property
    def drawn(self) -> bool:
        """Whether there were more than the limit."""
        return self.limit < len(self._images)

    def inputs(self, network: int) -> Iterator[Tensor]:
        """Inputs `(1, 3, h, w)` for a network by its number; ask for those of the first one first.

        Raises:
            BadImage: none can be used, or one is no longer what it was for the first network.
        """
        return self._first() if network == 0 else self._again(network)

    def _first(self) -> Iterator[Tensor]:
        for index in self._order:
            if len(self._used) == self.limit:
                break
            try:
                picture = _decoded(self._images[index])
                made = [preprocess(picture.rgb) for preprocess in self._preprocesses]
            except R2VizError as error:
                self.left_out.append(_without_folder(self._images[index], index, error))
                continue
            self._used.append(index)
            self.seen.append((picture.name, picture.sha256))
            self.only = (picture, [geometry for _, geometry in made]) if len(self.seen) == 1 else None
            yield made[0][0]
        if not self.seen:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out[:3])
            raise BadImage(f"none of {len(self._images)} pictures can be used: {reasons}", code="bad_image.none")

    def _again(self, network: int) -> Iterator[Tensor]:
        for index, (name, sha256) in zip(self._used, self.seen, strict=True):
            picture = _decoded(self._images[index])
            if picture.sha256 != sha256:
                raise BadImage(f"{name}: changed between one network and the other; measure again")
            yield self._preprocesses[network](picture.rgb)[0]


def listed(images: Any) -> list[Any]:
    """One picture or several as a list; folders as their pictures, open files as their bytes."""
    one = isinstance(images, (str, os.PathLike, bytes, np.ndarray, Picture)) or hasattr(images, "read")
    found: list[Any] = []
    for image in [images] if one or not hasattr(images, "__iter__") else images:
        if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
            found += [item.path for item in gather([os.fspath(image)])]
        else:
            found.append(image.read() if hasattr(image, "read") else image)
    return found


def digests(inputs: Tensor) -> list[tuple[str, str]]:
    """What a record calls given inputs `(N, 3, H, W)`: no name, and the digest of their shape and values."""
    values = inputs.detach().cpu()
    each = [np.ascontiguousarray(one.float().numpy()) for one in values]
    return [("<tensor>", hashlib.sha256(repr(one.shape).encode() + one.tobytes()).hexdigest()) for one in each]


def _decoded(image: Any) -> Picture:
    if isinstance(image, R2VizError):  # found out before, by who named it
        raise image
    return image if isinstance(image, Picture) else decode(image)


def _without_folder(image: Any, index: int, error: R2VizError) -> tuple[str, str]:
    """Name and reason; records hold no paths."""
    if not isinstance(image, (str, os.PathLike)):
        return f"picture {index + 1}", str(error)
    shown, name = one_line(os.fspath(image)), one_line(Path(image).name)
    return name, str(error).replace(shown, name).removeprefix(f"{name}: ")
