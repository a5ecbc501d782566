"""Pictures with boxes or masks, from wherever they are kept: Parquet, CSV, COCO, VOC, ImageNet, ImageNet-S, folders."""

from __future__ import annotations

import os
from pathlib import Path

from r2viz.datasets.coco import coco
from r2viz.datasets.folders import annotated
from r2viz.datasets.located import DataSet, Entry, Located
from r2viz.datasets.tables import parquet, table
from r2viz.errors import BadData, one_line

__all__ = ["DataSet", "Entry", "Located", "open_dataset"]


def open_dataset(
    path: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
) -> DataSet:
    """Find a data set's pictures and where their objects are; no picture is read yet.

    Args:
        path: a Parquet file, a folder of Parquet shards (of `val*.parquet`, where there are such), a CSV file or a
            folder with `objects.csv`, a COCO JSON file, or a folder laid out as ImageNet, ImageNet-S, Pascal VOC, or
            `NAME.jpg` beside `NAME_mask.png`.
        annotations: where XML boxes are, if not below `path`.
        pictures: where COCO's pictures are, if not beside the JSON file.

    Raises:
        BadData: there is no such data set, or its layout is none of these.
    """
    place = Path(path)
    shown = one_line(str(place))
    if place.is_file():
        ending = place.suffix.lower()
        if ending == ".parquet":
            return parquet([place], place.name)
        if ending == ".csv":
            return table(place)
        if ending == ".json":
            return coco(place, None if pictures is None else Path(pictures))
        raise BadData(f"{shown}: a data set is a folder, or a file that ends in .parquet, .csv or .json (COCO)")
    if not place.is_dir():
        raise BadData(f"{shown}: there is no such folder or file; give a data set with boxes or masks")
    shards = sorted(place.glob("*.parquet"))
    if shards:
        return parquet([shard for shard in shards if shard.stem.startswith("val")] or shards, place.name)
    if (place / "objects.csv").is_file():
        return table(place / "objects.csv")
    return annotated(place, None if annotations is None else Path(annotations))
