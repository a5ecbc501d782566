"""Where the object is, and how much of a map lies inside: boxes and masks over a picture. NumPy only."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from r2viz.errors import BadRegion

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Region:
    """Where the object is: `mask` is boolean `(H, W)` over the EXIF-upright picture; `box` where it came from one."""

    mask: np.ndarray
    box: Box | None = None
    name: str = ""


@dataclass(frozen=True)
class Inside:
    """Share of a map's mass inside a region (the energy-based pointing game), beside what chance would give.

    `seen` is the share of the region that the network saw at all: a crop may have cut some of it away.
    """

    share: float
    chance: float
    seen: float

    def __str__(self) -> str:
        if self.seen == 0:
            return "the object lies outside the crop"
        text = "no mass" if np.isnan(self.share) else f"{self.share:.1%} inside (chance {self.chance:.1%})"
        return text if self.seen == 1 else f"{text}, {1 - self.seen:.0%} of the object cropped away"


def box_region(box: Box, size: tuple[int, int]) -> Region:
    """A box `(x0, y0, x1, y1)` in source pixels, `x1` and `y1` exclusive, over a picture of `(H, W)`.

    Raises:
        BadRegion: empty, swapped, or not wholly inside the picture.
    """
    x0, y0, x1, y1 = box
    height, width = size
    shown = f"{x0:g},{y0:g},{x1:g},{y1:g}"
    if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0:
        raise BadRegion(f"the box {shown} is empty; expected x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise BadRegion(f"the box {shown} leaves the picture, which is {width} wide and {height} high (x0,y0,x1,y1)")
    mask = np.zeros(size, dtype=bool)
    # A pixel belongs to the box when its centre does.
    rows = slice(int(np.ceil(y0 - 0.5)), int(np.ceil(y1 - 0.5)))
    columns = slice(int(np.ceil(x0 - 0.5)), int(np.ceil(x1 - 0.5)))
    mask[rows, columns] = True
    if not mask.any():
        raise BadRegion(f"the box {shown} holds no pixel centre; make it at least one pixel wide and high")
    return Region(mask, box, shown)


def mask_region(mask: np.ndarray, size: tuple[int, int], name: str = "mask") -> Region:
    """A mask `(H, W)`, or `(H, W, 3)` as decoded from a file, over a picture of `(H, W)`.

    The object is True; above 127 in `uint8`, as white in a file is; above one half in any other type.

    Raises:
        BadRegion: of another size than the picture, or empty.
    """
    plane = np.asarray(mask)
    if plane.ndim == 3:
        plane = plane.max(axis=2)
    if plane.shape != tuple(size):
        came = " x ".join(map(str, plane.shape[::-1]))
        raise BadRegion(f"the mask {name} is {came}, but the picture is {size[1]} x {size[0]}; they must be equal")
    half = 127 if plane.dtype == np.uint8 else 0.5
    inside = plane if plane.dtype == bool else plane > half
    if not inside.any():
        raise BadRegion(f"the mask {name} marks no pixel; the object is white, or True in a boolean array")
    return Region(inside, None, name)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> Region:
    """A mask from a picture file; see `mask_region`.

    Raises:
        BadImage: the file is not a picture.
        BadRegion: see `mask_region`; or it has transparency, which decoding lays on white, the object's colour.
    """
    from r2viz.image import decode

    picture = decode(path)
    if "transparency laid on white" in picture.notes:
        raise BadRegion(f"the mask {picture.name} has transparent parts; save it in black and white without them")
    return mask_region(picture.rgb, size, picture.name)


def energy_inside(map_: np.ndarray, region: Region) -> Inside:
    """`Σ_M S / Σ S` over the pixels that the network saw (finite ones), and the region's share of those pixels.

    `map_` is `(H, W)`, non-negative, NaN where not seen. A map without mass gives a share of NaN.

    Source: Wang et al. 2020 (Score-CAM), arXiv 1910.01279, section 4.3; chance is `|M| / HW`.
    """
    seen = np.isfinite(map_)
    total = float(map_[seen].sum(dtype=np.float64))
    inside = float(map_[seen & region.mask].sum(dtype=np.float64))
    common = int((seen & region.mask).sum())
    return Inside(
        inside / total if total > 0 else float("nan"), common / max(1, int(seen.sum())), common / int(region.mask.sum())
    )
