"""Data sets as tables: Parquet shards with boxes or masks, and CSV files beside their pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2viz.coverage import Box
from r2viz.datasets.located import DataSet, Entry, Kind, listed
from r2viz.errors import BadData, BadRegion, nearest, one_line
from r2viz.image import decode

INCLUSIVE = ("x_min", "y_min", "x_max", "y_max")
EXCLUSIVE = ("x0", "y0", "x1", "y1")
_AT_ONCE = 256


def parquet(files: Sequence[Path], name: str) -> DataSet:
    """Parquet shards: `image` (encoded bytes) with a box or a `mask` (encoded picture of the same size).

    Columns: `image`; `x_min, y_min, x_max, y_max` (inclusive pixels) or `x0, y0, x1, y1` (x1 and y1 exclusive), or
    `mask`; and where there are any, `file_name`, and `wnid` or `label`.

    Raises:
        BadData: a shard is not whole, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, first = 0, None
    for file in files:
        try:
            about = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise BadData(f"{file.name}: no whole Parquet file ({one_line(str(error), 80)}); fetch it again") from None
        columns = about.schema_arrow.names
        if first is not None and set(columns) != set(first):
            raise BadData(f"{file.name}: other columns than {files[0].name}; shards of one data set have the same")
        first = columns
        count += about.metadata.num_rows
    assert first is not None
    if "image" not in first:
        raise BadData(f"{files[0].name}: no column 'image'{nearest('image', first)}; it holds encoded pictures")
    kind: Kind = "mask" if "mask" in first else "box"
    corners = next((names for names in (INCLUSIVE, EXCLUSIVE) if set(names) <= set(first)), None)
    if kind == "box" and corners is None:
        raise BadData(
            f"{files[0].name}: has neither a column 'mask' nor {', '.join(INCLUSIVE)} (inclusive) or "
            f"{', '.join(EXCLUSIVE)}; there are {one_line(', '.join(first))}"
        )
    label = next((column for column in ("wnid", "label") if column in first), None)
    called = "file_name" if "file_name" in first else None
    wanted = ["image", *(corners or ()), *(column for column in (label, called) if column)]
    wanted += ["mask"] if kind == "mask" else []
    if count == 0:
        raise BadData(f"{one_line(name)}: the shards are empty")

    def entries() -> Iterator[Entry]:
        row, seen = 0, set()
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(_AT_ONCE, columns=wanted):
                for record in batch.to_pylist():
                    entry = _entry(record, corners, label, called, f"row {row}")
                    if entry.name in seen:
                        entry = Entry(f"{entry.name}#{row}", b"", problem="this name came before; names must be unique")
                    seen.add(entry.name)
                    yield entry
                    row += 1

    return DataSet(one_line(name), kind, "Parquet", count, entries)


def _entry(
    record: dict[str, Any], corners: Sequence[str] | None, label: str | None, called: str | None, where: str
) -> Entry:
    image = record["image"]
    encoded = image.get("bytes") if isinstance(image, dict) else image
    name = one_line(str(record[called])) if called and record[called] else where
    target = None if label is None or record[label] is None else str(record[label])
    if not isinstance(encoded, bytes):
        return Entry(name, b"", target, problem=f"the image is {type(encoded).__name__}, not encoded bytes")
    boxes: tuple[Box, ...] = ()
    if corners is not None and all(record[corner] is not None for corner in corners):
        x0, y0, x1, y1 = (float(record[corner]) for corner in corners)
        over = 1 if corners == INCLUSIVE else 0
        boxes = ((x0, y0, x1 + over, y1 + over),)
    mask = record.get("mask")
    if mask is not None:
        mask = mask["bytes"] if isinstance(mask, dict) else mask
        return Entry(name, encoded, target, boxes, partial(encoded_mask, bytes(mask)))
    return Entry(name, encoded, target, boxes, problem=None if boxes else "has no annotation")


def encoded_mask(source: str | bytes, size: tuple[int, int]) -> tuple[np.ndarray, None]:
    """A mask from a path or encoded bytes: white, or above half, is the object.

    Raises:
        BadRegion: it cannot be read, or has another size than the picture.
    """
    from r2viz.errors import BadImage

    try:
        plane = decode(source, name="mask").rgb.max(axis=2)
    except BadImage as error:
        raise BadRegion(f"its mask cannot be used: {error}") from None
    if plane.shape != tuple(size):
        raise BadRegion(
            f"its mask is {plane.shape[1]} x {plane.shape[0]}, but the picture is {size[1]} x {size[0]}; "
            "they must be equal"
        )
    return plane > 127, None


def table(path: Path) -> DataSet:
    """A CSV file: `file` and `x0, y0, x1, y1` (or `x_min …`, inclusive), or `mask`; `label` where there is one.

    Paths are relative to the table. Several rows of one file and label are several instances of one object.

    Raises:
        BadData: it cannot be read, or lacks a column.
    """
    shown = one_line(path.name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{shown}: cannot be read as CSV ({one_line(str(error), 80)})") from None
    if "file" not in columns:
        raise BadData(f"{shown}: no column 'file'{nearest('file', columns)}; there are {one_line(', '.join(columns))}")
    corners = next((names for names in (EXCLUSIVE, INCLUSIVE) if set(names) <= set(columns)), None)
    masks = "mask" in columns
    if corners is None and not masks:
        raise BadData(f"{shown}: has neither 'mask' nor {', '.join(EXCLUSIVE)}; one of them must say where objects are")
    found: dict[str, Entry] = {}
    labels_of: dict[str, set[str]] = {}
    for row in rows:
        labels_of.setdefault(row["file"], set()).add(row.get("label") or "")
    for number, row in enumerate(rows, 2):
        label = (row.get("label") or "").strip() or None
        name = row["file"] if len(labels_of[row["file"]]) == 1 else f"{row['file']}#{label}"
        boxes, problem = _corners(row, corners, number)
        before = found.get(name)
        if before is not None:
            found[name] = Entry(
                before.name, before.source, label, before.boxes + boxes, before.mask, problem=before.problem or problem
            )
            continue
        mask = partial(encoded_mask, str(path.parent / row["mask"])) if masks and row["mask"] else None
        if mask is None and not boxes and problem is None:
            problem = f"line {number} of {shown} has neither a box nor a mask"
        found[name] = Entry(one_line(name), str(path.parent / row["file"]), label, boxes, mask, problem=problem)
    kind: Kind = "mask" if masks and all(entry.mask or entry.problem for entry in found.values()) else "box"
    if kind == "box" and masks:
        found = {
            name: Entry(entry.name, entry.source, entry.label, entry.boxes, problem=entry.problem)
            for name, entry in found.items()
        }
    return listed(path.parent.name if path.name == "objects.csv" else path.name, kind, "CSV", list(found.values()))


def _corners(row: dict[str, str], corners: Sequence[str] | None, number: int) -> tuple[tuple[Box, ...], str | None]:
    if corners is None or not any(row.get(corner) for corner in corners):
        return (), None
    try:
        x0, y0, x1, y1 = (float(row[corner]) for corner in corners)
    except (TypeError, ValueError):
        return (), f"line {number}: {', '.join(corners)} must be numbers, not {[row.get(corner) for corner in corners]}"
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return (), f"line {number}: the box is not finite"
    over = 1 if tuple(corners) == INCLUSIVE else 0
    return ((x0, y0, x1 + over, y1 + over),), None
