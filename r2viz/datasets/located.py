"""Pictures with the places of their objects: what every reader of a data set gives."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from r2viz.coverage import Box, Region, box_region, mask_region
from r2viz.errors import BadData, BadRegion, one_line
from r2viz.image import Picture, decode

Kind = Literal["box", "mask", "pseudo-mask"]
MaskReader = Callable[[tuple[int, int]], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, eq=False)
class Located:
    """A decoded picture and where its object is.

    Attributes:
        name: of the entry, unique in its data set.
        picture: EXIF-upright.
        label: what the data set calls the object's class; None where it does not say.
        region: of all its instances together.
        boxes: (x0, y0, x1, y1) of each instance in source pixels, x1 and y1 exclusive.
        kind: whether `region` is made of boxes, is a mask, or a mask that GrabCut made from boxes.
        ignored: boolean `(H, W)`, pixels that count neither as object nor as background; None for none.
    """

    name: str
    picture: Picture
    label: str | None
    region: Region
    boxes: tuple[Box, ...]
    kind: Kind
    ignored: np.ndarray | None = None

    @property
    def share(self) -> float:
        """Area of the object over that of the picture."""
        return float(self.region.mask.mean())


class Opens(Protocol):
    """An entry of a data set: a picture that is stored, or one that is composed."""

    @property
    def name(self) -> str:
        """Unique in the data set."""

    @property
    def label(self) -> str | None:
        """What the data set calls the object's class."""

    def open(self) -> Located:
        """Read it, with where its object is."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One picture of a data set, not yet read; it can be sent to another process.

    Attributes:
        name: unique in the data set.
        source: a path or encoded bytes.
        label: WordNet id, label or index, as the data set has it; None where it names no class.
        boxes: of each instance, source pixels, x1 and y1 exclusive.
        mask: reads `(H, W)` boolean object and ignored pixels for a picture of a size; None where there are boxes only.
        pseudo: whether the mask is to be made by GrabCut from the boxes.
        problem: what is wrong with its annotation; such an entry refuses to open.
    """

    name: str
    source: str | bytes = field(repr=False)
    label: str | None = None
    boxes: tuple[Box, ...] = ()
    mask: MaskReader | None = None
    pseudo: bool = False
    problem: str | None = None

    def open(self) -> Located:
        """Decode the picture and lay its annotation on it.

        Raises:
            BadImage: the picture cannot be decoded.
            BadRegion: the annotation is missing, empty, leaves the picture, or has another size.
        """
        if self.problem is not None:
            raise BadRegion(f"{self.name}: {self.problem}", code="bad_region.annotation")
        picture = decode(self.source, name=os.path.basename(self.name.partition("#")[0]) or None)
        size = picture.rgb.shape[:2]
        try:
            return self._located(picture, size)
        except BadRegion as error:
            raise BadRegion(f"{self.name}: {error}", code=error.code) from None

    def _located(self, picture: Picture, size: tuple[int, int]) -> Located:
        if self.mask is not None:
            mask, ignored = self.mask(size)
            region = mask_region(mask, size, "of the object")
            boxes = self.boxes or (_hull(region.mask),)
            return Located(self.name, picture, self.label, region, boxes, "mask", ignored)
        if not self.boxes:
            raise BadRegion("has neither a box nor a mask; every picture needs one of them")
        regions = [box_region(box, size) for box in self.boxes]
        kind: Kind = "box"
        if self.pseudo:
            from r2viz.datasets.grabcut import grabcut

            kind, region = "pseudo-mask", Region(grabcut(picture.rgb, self.boxes), None, "GrabCut")
        elif len(regions) == 1:
            region = regions[0]
        else:
            region = Region(np.logical_or.reduce([one.mask for one in regions]), None, f"{len(regions)} boxes")
        return Located(self.name, picture, self.label, region, self.boxes, kind)


@dataclass(frozen=True, eq=False)
class DataSet:
    """Entries in an order that does not change.

    Attributes:
        name: the folder's or file's name, for people.
        kind: what its regions are; a measure that needs masks refuses boxes.
        format: how it is stored, in words.
        count: of entries.
        entries: yields them; reads no picture.
    """

    name: str
    kind: Kind
    format: str
    count: int
    entries: Callable[[], Iterator[Opens]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Opens]:
        return self.entries()

    def sample(self, count: int | None, *, seed: int = 0) -> DataSet:
        """All entries, or `count` of them drawn without replacement, in the data set's order."""
        if count is None or count >= self.count:
            return self
        drawn = set(np.random.default_rng(seed).choice(self.count, count, replace=False).tolist())
        return replace(self, count=count, entries=lambda: (one for i, one in enumerate(self.entries()) if i in drawn))

    def with_grabcut(self) -> DataSet:
        """The same with masks that GrabCut makes from the boxes, and that are called so.

        Raises:
            BadData: it has masks already.
        """
        if self.kind != "box":
            raise BadData(f"{self.name}: has masks already; GrabCut is for data sets that have boxes only")
        return replace(self, kind="pseudo-mask", entries=lambda: map(_guessing, self.entries()))


def listed(name: str, kind: Kind, format: str, entries: Sequence[Entry]) -> DataSet:
    """A data set of entries that are all known; names that come twice are marked, since results go by name.

    Raises:
        BadData: there is no entry.
    """
    if not entries:
        raise BadData(f"{one_line(name)}: no annotated picture was found ({format}); see r2viz coverage --help")
    often = Counter(entry.name for entry in entries)
    kept = [
        entry
        if often[entry.name] == 1
        else replace(entry, problem=f"this name stands for {often[entry.name]} entries; names must be unique")
        for entry in entries
    ]
    return DataSet(one_line(name), kind, format, len(kept), lambda: iter(kept))


def digest(names: Iterable[str]) -> str:
    """sha256 of names in order: tells whether two runs looked at the same entries."""
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


def _guessing(entry: Opens) -> Opens:
    return replace(entry, pseudo=True) if isinstance(entry, Entry) else entry


def _hull(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
