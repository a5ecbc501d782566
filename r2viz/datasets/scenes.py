"""Composed scenes: an object with its exact mask, at sizes and places that are chosen and not merely found.

In photographs an object's size goes with its place, its sharpness and its class. Here the same object stands on the
same background in every size, so that what changes with size changes because of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from r2viz.coverage import Region
from r2viz.datasets.located import DataSet, Located
from r2viz.errors import BadData, BadRegion
from r2viz.image import Picture

SHARES = (0.03, 0.06, 0.12, 0.25, 0.4)
PLACES = ((0.5, 0.5), (0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7))
"""(y, x) of the object's middle, as shares of the picture; objects are moved inwards as far as they must."""

_LEAST_BACKGROUND = 0.12


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object without its background: uint8 `(h, w, 3)` and boolean `(h, w)`, cut to the object's box."""

    name: str
    label: str | None
    rgb: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Background:
    """A piece of a picture without any object; uint8 `(h, w, 3)`."""

    name: str
    rgb: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """One object on one background, not composed yet; an entry of a data set like any other.

    Attributes:
        item: what stays the same when the size changes: object, background and place.
        share: of the picture that the object takes.
        middle: (y, x) of the object's middle, as shares of the picture.
        size: (H, W) of the picture.
    """

    name: str
    item: str
    cutout: Cutout
    background: Background
    share: float
    middle: tuple[float, float]
    size: tuple[int, int]

    @property
    def object(self) -> str:
        """The picture that the object was cut out of."""
        return self.cutout.name

    @property
    def label(self) -> str | None:
        """The object's class."""
        return self.cutout.label

    def open(self) -> Located:
        """Compose it.

        Raises:
            BadRegion: the object would not fit into the picture at this size.
        """
        rgb, mask = compose(self.cutout, self.background, share=self.share, middle=self.middle, size=self.size)
        picture = Picture(rgb, self.name, hashlib.sha256(rgb.tobytes()).hexdigest(), "array", ("composed",))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        return Located(self.name, picture, self.label, Region(mask, None, "composed"), (box,), "mask")


def cutout(located: Located) -> Cutout:
    """The object of a picture with a mask.

    Raises:
        BadRegion: it has boxes only, or a mask that was guessed from them: neither is exact.
    """
    if located.kind != "mask":
        raise BadRegion(f"{located.name}: scenes need exact masks, and this is a {located.kind}")
    mask = located.region.mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Cutout(located.name, located.label, located.picture.rgb[where], mask[where])


def whole(located: Located, *, most: float = 0.02) -> bool:
    """Whether the picture shows the object to its end: at most this share of the picture's border belongs to it."""
    mask = located.region.mask
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return bool(border.mean() <= most)


def background(located: Located) -> Background | None:
    """The largest rectangle of a picture that holds nothing of its object; None where it is too small to be of use."""
    mask = located.region.mask
    y0, x0, y1, x1 = _largest_empty(mask)
    height, width = y1 - y0, x1 - x0
    if height * width < _LEAST_BACKGROUND * mask.size or min(height, width) < 32:
        return None
    return Background(located.name, located.picture.rgb[y0:y1, x0:x1])


def pink(size: tuple[int, int], *, seed: int) -> Background:
    """Noise with the spectrum of photographs (amplitude 1/f) and no content: a neutral background of `(H, W)`."""
    chance = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(
        np.fft.rfft2(chance.standard_normal((3, *size)), axes=(1, 2)) / frequency, s=size, axes=(1, 2)
    )
    planes = planes[:1] + 0.3 * planes  # mostly brightness, as in photographs
    planes = 118 + 45 * planes / planes.std(axis=(1, 2), keepdims=True)
    return Background(f"noise {seed}", np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def compose(
    cutout: Cutout,
    background: Background,
    *,
    share: float,
    middle: tuple[float, float],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Lay an object on a background.

    The object is scaled so that its mask takes `share` of the picture, to within a pixel's rounding, and moved inwards
    where it would leave the picture; the background is scaled to cover the picture and cut about its middle.

    Returns:
        uint8 `(H, W, 3)` and the boolean mask `(H, W)`: pixels that are at least half object.

    Raises:
        BadRegion: at this size the object is larger than the picture.
    """
    height, width = size
    area = float(cutout.mask.sum())
    scale = (share * height * width / area) ** 0.5
    tall, wide = (max(1, round(length * scale)) for length in cutout.mask.shape)
    if tall > height or wide > width:
        raise BadRegion(
            f"{cutout.name} at {share:.0%} of {width} x {height} would be {wide} x {tall}; choose a smaller share"
        )
    smaller = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    weight = cutout.mask.astype(np.float32)
    alpha = cv2.resize(weight, (wide, tall), interpolation=smaller)[..., None]
    # What lies beside the object in its own picture must not bleed into its edge: only object pixels are averaged.
    own = cv2.resize(cutout.rgb * weight[..., None], (wide, tall), interpolation=smaller)
    colour = own / np.maximum(alpha, 1e-6)
    top = min(max(0, round(middle[0] * height - tall / 2)), height - tall)
    left = min(max(0, round(middle[1] * width - wide / 2)), width - wide)
    canvas = _cover(background.rgb, size).astype(np.float32)
    place = (slice(top, top + tall), slice(left, left + wide))
    canvas[place] = alpha * colour + (1 - alpha) * canvas[place]
    mask = np.zeros(size, dtype=bool)
    mask[place] = alpha[..., 0] >= 0.5
    if not mask.any():
        raise BadRegion(f"{cutout.name} at {share:.2%} of {width} x {height} is smaller than a pixel")
    rgb = np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)
    rgb.setflags(write=False)
    return rgb, mask


def scenes(
    objects: Sequence[Located],
    *,
    shares: Sequence[float] = SHARES,
    places: Sequence[tuple[float, float]] = PLACES,
    size: tuple[int, int] = (224, 224),
    backgrounds: int = 4,
    kind: Literal["pictures", "noise"] = "pictures",
    seed: int = 0,
) -> DataSet:
    """Every object at every size and place on several backgrounds that come from pictures of other objects.

    Objects that their picture cuts off are left out, and so are those that would not fit into the picture at the
    largest size: every size shows the same objects.

    Args:
        objects: pictures with exact masks.
        shares: sizes, as shares of the picture's area.
        places: (y, x) of the object's middle.
        size: (H, W).
        backgrounds: how many for each object, drawn with `seed`.
        kind: pieces of the other pictures, or noise without content.
        seed: of the draw of backgrounds and of the noise.

    Raises:
        BadData: nothing can be composed.
    """
    usable = [located for located in objects if located.kind == "mask" and whole(located)]
    pieces = [piece for located in objects if (piece := background(located)) is not None]
    chance = np.random.default_rng(seed)
    found: list[Scene] = []
    for located in usable:
        one = cutout(located)
        others = [piece for piece in pieces if piece.name != located.name]
        if kind == "noise":
            chosen = [pink(size, seed=int(number)) for number in chance.integers(0, 2**31, backgrounds)]
        else:
            order = chance.permutation(len(others))[:backgrounds]
            chosen = [others[index] for index in sorted(order)]
        if not all(_fits(one, share, size) for share in shares):
            continue
        for piece in chosen:
            for middle in places:
                item = f"{one.name} on {piece.name} at {middle[0]:g},{middle[1]:g}"
                found += [Scene(f"{item} {share:.1%}", item, one, piece, share, middle, size) for share in shares]
    if not found:
        raise BadData(
            f"no scene can be composed of {len(objects)} pictures: objects need exact masks, must not be cut off by "
            "their picture, and must fit at the largest share; backgrounds come from other pictures"
        )
    return DataSet("composed scenes", "mask", f"composed, seed {seed}", len(found), lambda: iter(found))


def _fits(cutout: Cutout, share: float, size: tuple[int, int]) -> bool:
    scale = (share * size[0] * size[1] / float(cutout.mask.sum())) ** 0.5
    return all(round(own * scale) <= there for own, there in zip(cutout.mask.shape, size, strict=True))


def _cover(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    scale = max(size[0] / rgb.shape[0], size[1] / rgb.shape[1])
    tall, wide = (max(there, round(own * scale)) for own, there in zip(rgb.shape[:2], size, strict=True))
    scaled = cv2.resize(rgb, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    return scaled[top : top + size[0], left : left + size[1]]


def _largest_empty(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) of the largest rectangle without a marked pixel: the largest one in a histogram, row by row."""
    best, found = 0, (0, 0, 0, 0)
    heights = np.zeros(mask.shape[1], dtype=np.int64)
    for row, marked in enumerate(mask):
        heights = np.where(marked, 0, heights + 1)
        open_: list[tuple[int, int]] = []  # (first column, height) of rectangles that still go on
        for column, height in _steps(heights):
            start = column
            while open_ and open_[-1][1] >= height:
                start, tall = open_.pop()
                if tall * (column - start) > best:
                    best, found = tall * (column - start), (row + 1 - tall, start, row + 1, column)
            open_.append((start, height))
    return found


def _steps(heights: np.ndarray) -> Iterator[tuple[int, int]]:
    """Columns at which a histogram's height changes, and its end."""
    changes = np.flatnonzero(np.diff(heights)) + 1
    for column in (0, *changes.tolist()):
        yield column, int(heights[column])
    yield len(heights), -1
