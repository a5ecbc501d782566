"""Data sets as folders: XML boxes (ImageNet's, VOC's), ImageNet-S, and pictures beside their masks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from r2viz.coverage import Box
from r2viz.datasets.located import DataSet, Entry, listed
from r2viz.datasets.tables import encoded_mask
from r2viz.errors import BadData, BadRegion, one_line
from r2viz.image import SUFFIXES

MASK = "_mask"
IMAGENET_S_IGNORED = 1000
VOC_BORDER = 255


def pictures_in(folder: Path) -> Iterator[Path]:
    """Pictures anywhere below a folder, in order of their paths."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(place) / name


def beside_masks(folder: Path) -> DataSet:
    """`name.jpg` beside `name_mask.png`; a folder below names the class, if there is one.

    Raises:
        BadData: there is no such pair.
    """
    found = list(pictures_in(folder))
    masks = {path.with_name(path.stem.removesuffix(MASK)).with_suffix(""): path for path in found if _is_mask(path)}
    entries = []
    for path in found:
        if _is_mask(path):
            continue
        name = path.relative_to(folder)
        label = name.parts[-2] if len(name.parts) > 1 else None
        mask = masks.get(path.with_suffix(""))
        entries.append(
            Entry(
                one_line(str(name)),
                str(path),
                label,
                mask=None if mask is None else partial(encoded_mask, str(mask)),
                problem=None if mask is not None else f"there is no {path.stem}{MASK}.png beside it",
            )
        )
    if not masks:
        entries = []
    return listed(folder.name, "mask", "pictures beside masks", entries)


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(MASK)


# --- XML -------------------------------------------------------------------------------------------------------------


def voc(folder: Path) -> DataSet:
    """Pascal VOC: `Annotations/*.xml` and `JPEGImages/*.jpg`; one entry for each class in a picture.

    VOC counts pixels from 1, and a box's last ones belong to it; here they are counted from 0, the last exclusive.

    Raises:
        BadData: nothing is annotated.
    """
    return listed(
        folder.name, "box", "VOC", list(_from_xml(sorted((folder / "Annotations").glob("*.xml")), _beside(folder), 1))
    )


def _beside(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in pictures_in(folder / "JPEGImages")}


def imagenet(folder: Path, annotations: Path) -> DataSet:
    """ImageNet's validation pictures with their XML boxes, wherever below the two folders they lie.

    Boxes are taken as they stand in the XML, from `xmin` up to `xmax`: many begin at 0 and end at the width.

    Raises:
        BadData: nothing is annotated.
    """
    found: dict[str, Path] = {}
    for path in pictures_in(folder):
        found.setdefault(path.stem, path)
    return listed(folder.name, "box", "ImageNet XML", list(_from_xml(sorted(annotations.rglob("*.xml")), found, 0)))


def _from_xml(files: Iterable[Path], pictures: dict[str, Path], first: int) -> Iterator[Entry]:
    for file in files:
        path = pictures.get(file.stem)
        if path is None:
            yield Entry(file.stem, b"", problem=f"{file.name} describes a picture that is not there")
            continue
        try:
            objects = _objects(file, first)
        except (ElementTree.ParseError, OSError, ValueError, TypeError) as error:
            yield Entry(path.name, str(path), problem=f"{file.name} cannot be read ({one_line(str(error), 80)})")
            continue
        if not objects:
            yield Entry(path.name, str(path), problem=f"{file.name} names no object")
        for label, boxes in objects.items():
            yield Entry(path.name if len(objects) == 1 else f"{path.name}#{label}", str(path), label, tuple(boxes))


def _objects(file: Path, first: int) -> dict[str, list[Box]]:
    """Boxes by class. Entities are refused: an annotation file needs none, and a hostile one would grow by them."""
    text = file.read_bytes()
    if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
        raise ValueError("it declares a document type; annotations have none")
    found: dict[str, list[Box]] = {}
    for one in ElementTree.fromstring(text).iter("object"):
        corners = one.find("bndbox")
        if corners is None:
            raise ValueError("an object has no bndbox")
        x0, y0, x1, y1 = (float(corners.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        box = (x0 - first, y0 - first, x1, y1)
        found.setdefault((one.findtext("name") or "").strip() or "object", []).append(box)
    return found


# --- ImageNet-S ------------------------------------------------------------------------------------------------------


def imagenet_s(folder: Path) -> DataSet:
    """ImageNet-S: `validation/WNID/*.JPEG` and `validation-segmentation/WNID/*.png`; the folder's class is the object.

    Source: Gao et al. 2022, arXiv 2106.03149: a mask's class is red + 256 · green, 0 is other, 1000 is to be ignored.

    Raises:
        BadData: nothing is annotated.
    """
    pictures, masks = folder / "validation", folder / "validation-segmentation"
    entries = []
    for path in pictures_in(pictures):
        name = path.relative_to(pictures)
        mask = masks / name.with_suffix(".png")
        problem = None if mask.is_file() else f"there is no {one_line(str(mask.relative_to(folder)))}"
        entries.append(
            Entry(one_line(str(name)), str(path), name.parts[0], mask=partial(_imagenet_s, str(mask)), problem=problem)
        )
    return listed(folder.name, "mask", "ImageNet-S", entries)


def _imagenet_s(path: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with Image.open(path) as image:
            planes = np.asarray(image.convert("RGB")).astype(np.int32)
    except (OSError, ValueError) as error:
        raise BadRegion(f"its mask cannot be read ({one_line(str(error), 80)})") from None
    if planes.shape[:2] != tuple(size):
        raise BadRegion(
            f"its mask is {planes.shape[1]} x {planes.shape[0]}, but the picture is {size[1]} x {size[0]}; "
            "they must be equal"
        )
    value = planes[..., 0] + 256 * planes[..., 1]
    ignored = value == IMAGENET_S_IGNORED
    return (value > 0) & ~ignored, ignored


def annotated(folder: Path, annotations: Path | None) -> DataSet:
    """What a folder's layout says that it is.

    Raises:
        BadData: it looks like none of them.
    """
    if annotations is not None:
        return imagenet(folder, annotations)
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return voc(folder)
    if (folder / "validation").is_dir() and (folder / "validation-segmentation").is_dir():
        return imagenet_s(folder)
    if next(folder.rglob("*.xml"), None) is not None:
        return imagenet(folder, folder)
    if any(_is_mask(path) for path in pictures_in(folder)):
        return beside_masks(folder)
    raise BadData(
        f"{one_line(str(folder))}: no annotations were found; expected Parquet shards, objects.csv, NAME{MASK}.png "
        "beside NAME.jpg, VOC's or ImageNet-S's folders, or XML boxes (--annotations says where they are)"
    )
