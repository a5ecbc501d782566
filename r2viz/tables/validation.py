"""Labelled pictures to measure on: class folders or Parquet shards, and which output of a network each class is."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r2viz.errors import BadData, one_line
from r2viz.image import SUFFIXES

if TYPE_CHECKING:
    from r2viz.models.model import Model

_HALVES = ("val", "validation")
_SEED = 0
Item = tuple[bytes | str, int, str]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures with their classes.

    Attributes:
        name: the folder's or file's name, for people.
        classes: what the data set calls its classes: WordNet ids, labels or numbers.
        count: of pictures.
        items: (encoded bytes or path, index into `classes`, name for messages), in an order that does not change.
        digest: sha256 of what there is by name, size and class; not of the pixels.
    """

    name: str
    classes: tuple[str, ...]
    count: int
    items: Callable[[], Iterator[Item]]
    digest: str

    def sample(self, limit: int | None) -> Iterator[Item]:
        """All pictures, or `limit` of them drawn without replacement: the same at every call."""
        if limit is None or limit >= self.count:
            yield from self.items()
            return
        # Not the first ones: those of class folders would all be of the first classes.
        drawn = set(np.random.default_rng(_SEED).choice(self.count, limit, replace=False).tolist())
        yield from (item for index, item in enumerate(self.items()) if index in drawn)


def read(path: str | os.PathLike[str]) -> Labelled:
    """Find the pictures of a validation set; none is decoded yet.

    Args:
        path: a folder of class folders (named by WordNet id, label or index), one that holds such a folder as `val`,
            or Parquet shards with the columns `image` and `label`: a file, or a folder of `val*.parquet`. A
            `classes.csv` beside the shards says what the labels are (`label`, and `wnid` or `name`).

    Raises:
        BadData: no such folder, no picture in it, or shards that cannot be read.
    """
    folder = Path(path)
    shown = one_line(str(folder))
    if folder.is_file() and folder.suffix == ".parquet":
        return _parquet(folder.parent, [folder])
    if not folder.is_dir():
        raise BadData(f"{shown}: no such folder; give a folder of class folders or of Parquet shards")
    shards = sorted(folder.glob("*.parquet"))
    if shards:
        halves = [shard for shard in shards if shard.stem.startswith("val")]
        if not halves:
            raise BadData(
                f"{shown}: has {len(shards)} Parquet shards but none called val*.parquet; name one to take it"
            )
        return _parquet(folder, halves)
    inner = next((folder / half for half in _HALVES if (folder / half).is_dir()), folder)
    return _class_folders(inner, folder.name)


def _class_folders(folder: Path, name: str) -> Labelled:
    classes: list[str] = []
    found: list[Item] = []
    total = hashlib.sha256()
    for entry in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        pictures = [path for path in sorted(entry.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        for picture in pictures:
            shown = str(picture.relative_to(folder))
            found.append((str(picture), len(classes), one_line(shown, 120)))
            total.update(os.fsencode(f"{shown}\0{picture.stat().st_size}\n"))
        if pictures:
            classes.append(entry.name)
    if not found:
        raise BadData(
            f"{one_line(str(folder))}: holds no class folder with pictures; expected CLASS/*.JPEG, where CLASS is a "
            "WordNet id (n01440764), a label or an index, or Parquet shards"
        )
    return Labelled(one_line(name), tuple(classes), len(found), lambda: iter(found), total.hexdigest())


def _parquet(folder: Path, files: list[Path]) -> Labelled:
    from r2viz.training.data import read_shards

    source = read_shards(files)
    if source.count == 0:
        raise BadData(f"{one_line(str(folder))}: the shards are empty")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    table = folder / "classes.csv"
    names = _class_table(table) if table.is_file() else ()
    if names:
        total.update("\0".join(names).encode())
    else:
        count = 1 + max(label for _, label, _ in source.items())
        names = tuple(str(label) for label in range(count))

    def items() -> Iterator[Item]:
        for encoded, label, where in source.items():
            if not 0 <= label < len(names):
                raise BadData(f"{where}: the label {label} is none of the {len(names)} classes, 0 to {len(names) - 1}")
            yield encoded, label, where

    return Labelled(one_line(folder.name or str(folder)), names, source.count, items, total.hexdigest())


def _class_table(table: Path) -> tuple[str, ...]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        names = {int(row["label"]): row.get("wnid") or row["name"].split(",")[0].strip() for row in rows}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadData(f"{table.name}: needs the column label (integers from 0), and wnid or name") from None
    if not rows or sorted(names) != list(range(len(rows))):
        raise BadData(f"{table.name}: {len(rows)} rows must have the labels 0 to {len(rows) - 1}, each once")
    return tuple(names[label] for label in range(len(rows)))


# --- Which output is which class -------------------------------------------------------------------------------------


def outputs(pictures: Labelled, model: Model) -> np.ndarray:
    """The network's output for each class of the data set, int64 `(classes,)`.

    WordNet ids are looked up where the network's classes are ImageNet's or Tiny-ImageNet's; anything else is a label
    of the network (underscores may stand for spaces) or an index.

    Raises:
        BadData: the network lacks a class, or two classes of the data are one of the network's.
    """
    from r2viz.attribution.labels import by_wnid, output_of  # needs torch, which printing tables does without

    known = by_wnid(model)
    found: list[int] = []
    missing: list[str] = []
    for name in pictures.classes:
        index = output_of(name, model, known)
        if index is None:
            missing.append(name)
        elif index in found:
            twin = pictures.classes[found.index(index)]
            raise BadData(
                f"{pictures.name}: the classes {one_line(twin, 60)!r} and {one_line(name, 60)!r} are both class "
                f"{index} of {model.name}; put their pictures into one folder"
            )
        else:
            found.append(index)
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadData(
            f"{model.name} knows {len(model.classes)} classes, and {one_line(missing[0], 60)!r}{others} of "
            f"{pictures.name} is none of them; classes are WordNet ids, labels or indices"
        )
    return np.array(found, dtype=np.int64)


def numbered(pictures: Labelled) -> bool:
    """Whether the classes are mere numbers, which mean other things to networks of other classes."""
    return all(name.isdecimal() for name in pictures.classes)
