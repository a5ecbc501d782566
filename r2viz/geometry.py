"""Where a pixel of the picture lies in the network's input, and back.

Two coordinate habits, kept apart by name: *centres* (a point; pixel 0 sits at 0.0, the habit of receptive-field
arithmetic) and *edges* (a box; pixel 0 reaches from 0.0 to 1.0, so x1 and y1 are exclusive). Points are (y, x),
boxes are (x0, y0, x1, y1), as their fields write them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from r2viz.errors import BadImage

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """An invertible map per axis between pixel centres: `input = source * scale + offset`.

    Attributes:
        source_size: (H, W) of the upright picture.
        input_size: (h, w) of the network's input.
        scale: (y, x), input pixels per source pixel.
        offset: (y, x), in input pixels: where the centre of source pixel (0, 0) lands.
    """

    source_size: tuple[int, int]
    input_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of_resize_and_crop(
        cls,
        source_size: tuple[int, int],
        resized: tuple[int, int],
        corner: tuple[int, int],
        input_size: tuple[int, int],
    ) -> Geometry:
        """Geometry of a resize of `source_size` to `resized`, then a crop of `input_size` at `corner` (top, left)."""
        scale = (resized[0] / source_size[0], resized[1] / source_size[1])
        # A resize aligns the picture's edges, not its first centres: resized + 0.5 = (source + 0.5) * scale.
        offset = (0.5 * scale[0] - 0.5 - corner[0], 0.5 * scale[1] - 0.5 - corner[1])
        return cls(source_size, input_size, scale, offset)

    def to_input(self, yx: ArrayLike) -> np.ndarray:
        """Source points `(..., 2)` as (y, x) centres → input points, same shape, float64; nothing is clipped."""
        return np.asarray(yx, dtype=np.float64) * self.scale + self.offset

    def to_source(self, yx: ArrayLike) -> np.ndarray:
        """Input points `(..., 2)` as (y, x) centres → source points, same shape, float64; nothing is clipped."""
        return (np.asarray(yx, dtype=np.float64) - self.offset) / self.scale

    def box_to_input(self, box: ArrayLike) -> np.ndarray:
        """Source boxes `(..., 4)` as x0, y0, x1, y1 edges → input boxes, float64.

        Nothing is clipped: what lies outside the crop gets negative edges or edges beyond `input_size`.
        """
        corners = np.asarray(box, dtype=np.float64)
        points = np.stack([corners[..., [1, 0]], corners[..., [3, 2]]], axis=-2) - 0.5
        return _box_of(self.to_input(points) + 0.5)

    def box_to_source(self, box: ArrayLike) -> np.ndarray:
        """Input boxes `(..., 4)` as x0, y0, x1, y1 edges → source boxes, float64; nothing is clipped."""
        corners = np.asarray(box, dtype=np.float64)
        points = np.stack([corners[..., [1, 0]], corners[..., [3, 2]]], axis=-2) - 0.5
        return _box_of(self.to_source(points) + 0.5)

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """The half-open block (y0, x0, y1, x1) of source pixels of which the input holds any part; never empty."""
        (y0, y1), (x0, x1) = (self._seen_along(axis) for axis in (0, 1))
        return y0, x0, y1, x1

    def _seen_along(self, axis: int) -> tuple[int, int]:
        size, scale, offset = self.source_size[axis], self.scale[axis], self.offset[axis]
        # The input's edges as source edges; rounded, so that 1e-16 does not add a pixel.
        first = math.floor(round((-0.5 - offset) / scale + 0.5, 9))
        stop = math.ceil(round((self.input_size[axis] - 0.5 - offset) / scale + 0.5, 9))
        return max(first, 0), min(stop, size)

    def lay(
        self, map_: np.ndarray, *, start: tuple[float, float], jump: tuple[float, float], fill: float = math.nan
    ) -> np.ndarray:
        """Lay a network's map over the source picture, at the places that its units look at.

        Bilinear between unit centres; beyond the outermost centres their value continues.

        Args:
            map_: `(h', w')`; must be finite (a NaN would spread over whole rows and columns).
            start: (y, x) of unit (0, 0)'s centre, in input pixels, 0-based centre.
            jump: (y, x), input pixels between neighbouring units.
            fill: the value of source pixels that the network did not see (outside `seen`).

        Returns:
            float32 `(H, W)`.

        Raises:
            ValueError: `map_` is not two-dimensional, or a jump is not positive.
        """
        values = np.asarray(map_, dtype=np.float32)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"a map must be (h, w) and not empty, not of shape {values.shape}")
        if min(jump) <= 0:
            raise ValueError(f"jump must be positive, not {jump}")
        y0, x0, y1, x1 = self.seen
        rows = interpolation(values.shape[0], (np.arange(y0, y1) * self.scale[0] + self.offset[0] - start[0]) / jump[0])
        columns = interpolation(
            values.shape[1], (np.arange(x0, x1) * self.scale[1] + self.offset[1] - start[1]) / jump[1]
        )
        laid = np.full(self.source_size, fill, dtype=np.float32)
        # Separable, so two small matrices do it: 12 megapixels from a 7x7 map cost about one copy of the result.
        np.matmul(rows @ values, columns.T, out=laid[y0:y1, x0:x1])
        return laid


def _box_of(points: np.ndarray) -> np.ndarray:
    """Corner points `(..., 2, 2)` as (y, x) → boxes `(..., 4)` as x0, y0, x1, y1."""
    return np.concatenate([points[..., 0, ::-1], points[..., 1, ::-1]], axis=-1)


def interpolation(units: int, at: np.ndarray) -> np.ndarray:
    """Matrix float32 `(len(at), units)`: linear interpolation at fractional unit positions, clamped at the ends."""
    at = np.clip(at, 0, units - 1)
    lower = np.minimum(np.floor(at).astype(np.intp), max(units - 2, 0))
    weight = (at - lower).astype(np.float32)
    matrix = np.zeros((len(at), units), dtype=np.float32)
    row = np.arange(len(at))
    matrix[row, lower] = 1 - weight
    if units > 1:
        matrix[row, lower + 1] = weight
    return matrix


@dataclass(frozen=True)
class Preprocess:
    """From an upright RGB picture to a network's input, as the network's weights were trained.

    The defaults are those of torchvision's `ResNet50_Weights.IMAGENET1K_V1.transforms()`, and give equal tensors.

    Attributes:
        resize: the shorter side after the resize (the longer is rounded down); None leaves the size.
        crop: (h, w) of the centre crop; None feeds the whole resized picture.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        mode: "crop" keeps the aspect and loses the margins; "squash" resizes straight to `crop`, so that the network
            sees the whole picture with its aspect changed (`resize` is then not used).
        interpolation: Pillow's filter, antialiased when shrinking.
    """

    resize: int | None = 256
    crop: tuple[int, int] | None = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mode: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "squash"):
            raise ValueError(f"mode must be 'crop' or 'squash', not {self.mode!r}")
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}, not {self.interpolation!r}")
        if self.mode == "squash" and self.crop is None:
            raise ValueError("mode 'squash' resizes to the crop size, so crop must be given")
        if (self.resize is not None and self.resize < 1) or (self.crop is not None and min(self.crop) < 1):
            raise ValueError(f"resize and crop must be at least 1 pixel, not {self.resize} and {self.crop}")

    def __call__(self, rgb: np.ndarray) -> tuple[torch.Tensor, Geometry]:
        """Turn uint8 `(H, W, 3)` into a contiguous float32 tensor `(1, 3, h, w)` and the geometry between the two.

        Raises:
            BadImage: not uint8 `(H, W, 3)`, or smaller than the crop after the resize.
        """
        import torch

        if (
            not isinstance(rgb, np.ndarray)
            or rgb.dtype != np.uint8
            or rgb.ndim != 3
            or rgb.shape[2] != 3
            or not rgb.size
        ):
            came = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
            raise BadImage(
                f"preprocessing takes an RGB array of uint8 (H, W, 3), not {came}; "
                "r2viz.image.decode(...).rgb gives one",
                code="bad_image.array",
            )
        size = (rgb.shape[0], rgb.shape[1])
        resized, corner, input_size = self._plan(size)
        image = Image.fromarray(rgb)
        if resized != size:
            image = image.resize(resized[::-1], _RESAMPLING[self.interpolation])
        pixels = np.asarray(image)[corner[0] : corner[0] + input_size[0], corner[1] : corner[1] + input_size[1]]
        # 256 levels per channel, each computed once in torchvision's order of operations: its bits, without its passes.
        mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (self.mean, self.std))
        levels = (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
        planes = np.stack([levels[channel][pixels[..., channel]] for channel in range(3)])
        return torch.from_numpy(planes)[None], Geometry.of_resize_and_crop(size, resized, corner, input_size)

    def _plan(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(resized size, crop's top left corner, input size) for a picture of `size`, all as (y, x)."""
        if self.mode == "squash" and self.crop is not None:
            return self.crop, (0, 0), self.crop
        height, width = size
        if self.resize is not None:
            short, long = self.resize, int(self.resize * max(size) / min(size))
            height, width = (short, long) if height <= width else (long, short)
        if self.crop is None:
            return (height, width), (0, 0), (height, width)
        if height < self.crop[0] or width < self.crop[1]:
            raise BadImage(
                f"the picture has {width}x{height} pixels before the crop, which needs {self.crop[1]}x{self.crop[0]}; "
                "give Preprocess a larger resize, a smaller crop, or mode='squash'",
                code="bad_image.too_small",
            )
        # Python's rounding to even, as torchvision's center_crop has it.
        corner = (round((height - self.crop[0]) / 2.0), round((width - self.crop[1]) / 2.0))
        return (height, width), corner, self.crop

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, for provenance."""
        return {
            "resize": self.resize,
            "crop": None if self.crop is None else list(self.crop),
            "mean": list(self.mean),
            "std": list(self.std),
            "mode": self.mode,
            "interpolation": self.interpolation,
        }
