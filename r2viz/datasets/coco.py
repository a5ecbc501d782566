"""COCO's instances: one entry for each class in a picture, its instances together, crowds ignored."""

from __future__ import annotations

import contextlib
import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2viz.coverage import Box
from r2viz.datasets.located import DataSet, Entry, listed
from r2viz.errors import BadData, BadRegion, one_line


def coco(path: Path, images: Path | None) -> DataSet:
    """Instances of a COCO annotation file with masks.

    Args:
        path: `instances_val2017.json` or alike.
        images: the pictures' folder; by default the one beside the file or its folder that holds the first picture.

    Raises:
        BadData: pycocotools is not installed, the file is none of COCO's, or its pictures are not found.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise BadData("COCO annotations need pycocotools: pip install 'r2viz[coco]'") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress as if it were a program
            known = COCO(os.fspath(path))
        pictures = [known.imgs[key] for key in sorted(known.imgs)]
        classes = {key: str(row["name"]) for key, row in known.cats.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise BadData(f"{one_line(path.name)}: is no COCO annotation file ({one_line(repr(error), 80)})") from None
    if not pictures:
        raise BadData(f"{one_line(path.name)}: names no picture")
    folder = _folder(path, images, str(pictures[0]["file_name"]))
    entries = []
    for picture in pictures:
        rows = known.imgToAnns.get(picture["id"], [])
        crowds = [row for row in rows if row.get("iscrowd")]
        for category in sorted({row["category_id"] for row in rows if not row.get("iscrowd")}):
            own = [row for row in rows if row["category_id"] == category and not row.get("iscrowd")]
            entries.append(_entry(picture, classes.get(category, str(category)), own, crowds, folder))
    return listed(path.stem, "mask", "COCO", entries)


def _entry(
    picture: dict[str, Any], label: str, own: list[dict[str, Any]], crowds: list[dict[str, Any]], folder: Path
) -> Entry:
    name = one_line(f"{picture['file_name']}#{label}")
    boxes = tuple(_box(row) for row in own)
    where = str(folder / picture["file_name"])
    size = (int(picture["height"]), int(picture["width"]))
    shapes = [row.get("segmentation") for row in own]
    if not all(shapes):
        return Entry(name, where, label, boxes, problem="an instance has no segmentation")
    hidden = [row["segmentation"] for row in crowds if row.get("segmentation")]
    return Entry(name, where, label, boxes, partial(_masks, shapes, hidden, size))


def _box(row: dict[str, Any]) -> Box:
    x, y, width, height = (float(value) for value in row["bbox"])
    return (x, y, x + width, y + height)


def _masks(
    shapes: list[Any], hidden: list[Any], said: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    if said != tuple(size):
        raise BadRegion(
            f"the annotations are for {said[1]} x {said[0]}, but the picture is {size[1]} x {size[0]}; "
            "they must be equal"
        )
    found = _union(shapes, size)
    return found, _union(hidden, size) & ~found if hidden else None


def _union(shapes: list[Any], size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coding

    total = np.zeros(size, dtype=bool)
    for shape in shapes:
        if isinstance(shape, list):
            encoded = coding.merge(coding.frPyObjects(shape, *size))
        elif isinstance(shape["counts"], list):
            encoded = coding.frPyObjects(shape, *size)
        else:
            encoded = shape
        total |= coding.decode(encoded).astype(bool)
    return total


def _folder(path: Path, images: Path | None, first: str) -> Path:
    places = [images] if images is not None else [path.parent, *_folders(path.parent), *_folders(path.parent.parent)]
    for place in places:
        if (place / first).is_file():
            return place
    raise BadData(
        f"{one_line(path.name)}: its first picture {one_line(first, 80)!r} is not in "
        f"{one_line(str(images)) if images is not None else 'the folders beside it'}; --pictures says where they are"
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir())
