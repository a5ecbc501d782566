"""Labelled pictures for training: Parquet shards or a folder of class folders, decoded once to one uint8 array.

Two layouts are read.

- A folder of Parquet shards with the columns `image` (encoded bytes, or the struct `{bytes, path}` of Hugging Face
  data sets) and `label` (integers from 0). Shards whose names begin with `val` are the validation pictures; a
  `classes.csv` with the columns `label` and `name` gives the names.
- torchvision's ImageFolder, twice: `train/CLASS/*` and `val/CLASS/*`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from r2viz.errors import BadData, BadImage, OutputError, nearest, one_line
from r2viz.image import SUFFIXES, decode

_COLUMNS = ("image", "label")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Decoded pictures: `pixels` uint8 `(N, side, side, 3)`, `labels` int64 `(N,)`."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and validation pictures, their class names, and the sha256 of all pixels, labels and names."""

    name: str
    training: Pictures
    validation: Pictures
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Source:
    """Where the pictures of one half come from: `count` pairs of (encoded bytes or path, label, shown name)."""

    count: int
    items: Callable[[], Iterator[tuple[bytes | str, int, str]]]


def read(
    data: str | os.PathLike[str],
    size: int,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> DataSet:
    """Read a data set at `size` pixels: shorter side resized (bilinear, antialiased), then the centre.

    Args:
        data: the folder.
        size: side of the stored pictures.
        cache: folder to keep the decoded arrays in; the next call maps them into memory instead of decoding.
        progress: a bar on stderr; None shows it on a terminal only.

    Raises:
        BadData: no such folder, no validation half, a missing column, labels out of range, one class only, or a
            picture that cannot be decoded; the message names the file and the row.
        OutputError: the cache cannot be written.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise BadData(f"{one_line(str(folder))}: no such folder; give a folder of Parquet shards or an ImageFolder")
    shards = sorted(folder.glob("*.parquet"))
    sources, names, files = _parquet(folder, shards) if shards else _image_folder(folder)
    kept = None if cache is None else Path(cache) / _key(files, size)
    if kept is not None and (kept / "about.json").is_file():
        return _from_cache(folder.name, kept)
    if kept is None:
        return _decoded(folder.name, sources, names, size, None, progress)
    # Under another name until it is whole: a second run may be reading, or decoding, the same pictures.
    unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        found = _decoded(folder.name, sources, names, size, unfinished, progress)
        _to_cache(found, unfinished)
        with contextlib.suppress(OSError):  # the other run was first, with the same content
            unfinished.rename(kept)
        return found
    except OSError as error:
        need = sum(source.count for source in sources) * size * size * 3 / 1e9
        raise OutputError(
            f"{one_line(str(cache))}: the decoded pictures cannot be written ({error.strerror or error}); "
            f"they need {need:.1f} GB there"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decoded(
    name: str,
    sources: Sequence[Source],
    names: tuple[str, ...],
    size: int,
    folder: Path | None,
    progress: bool | None,
) -> DataSet:
    halves = [
        _decode(source, size, half, None if folder is None else folder / f"{half}.npy", progress)
        for half, source in zip(("training", "validation"), sources, strict=True)
    ]
    classes = names or tuple(str(label) for label in range(int(halves[0].labels.max()) + 1))
    _check_labels(halves, classes, known=bool(names))
    total = hashlib.sha256("\0".join(classes).encode())
    for pictures in halves:
        total.update(pictures.labels.tobytes())
        for start in range(0, len(pictures.pixels), 4096):
            total.update(np.ascontiguousarray(pictures.pixels[start : start + 4096]).data)
    return DataSet(name, halves[0], halves[1], classes, total.hexdigest())


# --- Layouts ---------------------------------------------------------------------------------------------------------


def _parquet(folder: Path, shards: list[Path]) -> tuple[list[Source], tuple[str, ...], list[Path]]:
    validation = [shard for shard in shards if shard.stem.startswith("val")]
    training = [shard for shard in shards if shard not in validation]
    for half, files, pattern in (("training", training, "train*.parquet"), ("validation", validation, "val*.parquet")):
        if not files:
            raise BadData(f"{one_line(str(folder))}: has {len(shards)} shards but no {half} shard; name it {pattern}")
    table = folder / "classes.csv"
    names = _class_names(table) if table.is_file() else ()
    files = [*shards, table] if names else shards
    return [read_shards(training), read_shards(validation)], names, files


def read_shards(files: list[Path]) -> Source:
    """What Parquet shards hold; checked for their columns, read when the items are.

    Raises:
        BadData: a shard is not whole, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for file in files:
        try:
            about = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise BadData(f"{file.name}: no whole Parquet file ({_reason(error)}); fetch it again") from error
        columns = about.schema_arrow.names
        for column in _COLUMNS:
            if column not in columns:
                raise BadData(
                    f"{file.name}: no column {column!r}{nearest(column, columns)}; there are "
                    f"{one_line(', '.join(columns))}; image (encoded bytes) and label (integers from 0) are needed"
                )
        kind = about.schema_arrow.field("label").type
        if not pa.types.is_integer(kind):
            raise BadData(f"{file.name}: the column 'label' holds {kind}, not integers; number the classes from 0")
        count += about.metadata.num_rows

    def items() -> Iterator[tuple[bytes | str, int, str]]:
        for file in files:
            row = 0
            for batch in pq.ParquetFile(file).iter_batches(512, columns=list(_COLUMNS)):
                pairs = zip(batch.column("image").to_pylist(), batch.column("label").to_pylist(), strict=True)
                for image, label in pairs:
                    where = f"{file.name} row {row}"
                    encoded = image.get("bytes") if isinstance(image, dict) else image
                    if not isinstance(encoded, bytes):
                        raise BadData(f"{where}: the image is {type(encoded).__name__}, not encoded bytes")
                    if label is None:
                        raise BadData(f"{where}: has no label; number the classes from 0")
                    yield encoded, label, where
                    row += 1

    return Source(count, items)


def _image_folder(folder: Path) -> tuple[list[Source], tuple[str, ...], list[Path]]:
    halves = [folder / "train", folder / "val"]
    for half in halves:
        if not half.is_dir():
            raise BadData(
                f"{one_line(str(folder))}: neither Parquet shards nor an ImageFolder: there is no "
                f"{half.name}{os.sep}; expected train/CLASS/* and val/CLASS/*, or train*.parquet and val*.parquet"
            )
    classes = tuple(sorted(entry.name for entry in halves[0].iterdir() if entry.is_dir()))
    sources, files = [], []
    for half in halves:
        found = []
        for entry in sorted(path for path in half.iterdir() if path.is_dir()):
            if entry.name not in classes:
                raise BadData(f"val has the class {entry.name!r} that train has not{nearest(entry.name, classes)}")
            pictures = [path for path in sorted(entry.rglob("*")) if path.suffix.lower() in SUFFIXES]
            found += [(str(path), classes.index(entry.name), str(path.relative_to(folder))) for path in pictures]
        if not found:
            raise BadData(f"{one_line(str(half))}: holds no picture; expected {half.name}/CLASS/*.jpg and the like")
        sources.append(Source(len(found), partial(iter, found)))
        files += [Path(path) for path, _, _ in found]
    return sources, classes, files


def _class_names(table: Path) -> tuple[str, ...]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        names = {int(row["label"]): row["name"].split(",")[0].strip() for row in rows}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadData(f"{table.name}: needs the columns label (integers from 0) and name") from None
    if sorted(names) != list(range(len(rows))):
        raise BadData(f"{table.name}: {len(rows)} rows must have the labels 0..{len(rows) - 1}, each once")
    return tuple(names[label] for label in range(len(rows)))


def _check_labels(halves: Sequence[Pictures], classes: tuple[str, ...], *, known: bool) -> None:
    trained = np.unique(halves[0].labels)
    for half, pictures in zip(("training", "validation"), halves, strict=True):
        low, high = int(pictures.labels.min()), int(pictures.labels.max())
        if low < 0 or high >= len(classes):
            why = f"classes.csv names {len(classes)} classes" if known else "training has no more classes"
            raise BadData(f"the {half} labels go from {low} to {high}, but {why}: expected 0..{len(classes) - 1}")
    if len(trained) < 2:
        raise BadData(f"all {len(halves[0].labels)} training pictures have label {trained[0]}; two classes are needed")
    if len(trained) < len(classes):
        absent = next(label for label in range(len(classes)) if label not in trained)
        raise BadData(
            f"no training picture has label {absent}, of 0..{len(classes) - 1}; number the classes from 0 without gaps"
        )


# --- Decoding --------------------------------------------------------------------------------------------------------


def _decode(source: Source, size: int, half: str, file: Path | None, progress: bool | None) -> Pictures:
    shape = (source.count, size, size, 3)
    if source.count == 0:
        raise BadData(f"there are no {half} pictures: the shards are empty")
    if file is None:
        pixels = np.empty(shape, dtype=np.uint8)
    else:
        pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        # A mapped file on a full disk kills the process at the first write; so the space is taken beforehand.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as descriptor:
                os.posix_fallocate(descriptor.fileno(), 0, file.stat().st_size)
    labels = np.empty(source.count, dtype=np.int64)

    def one(item: tuple[bytes | str, int, str]) -> tuple[np.ndarray, int]:
        return _square(item[0], item[2], size), item[1]

    disable = None if progress is None else not progress
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=source.count, desc=f"decoding {half}", unit="picture", disable=disable, leave=False) as bar,
    ):
        items, row = source.items(), 0
        # In portions: `map` takes its whole input at once, and a data set need not fit into memory encoded.
        while portion := list(islice(items, 1024)):
            for pixels[row], labels[row] in pool.map(one, portion):
                row += 1
            bar.update(len(portion))
    return Pictures(pixels, labels)


def _square(encoded: bytes | str, where: str, size: int) -> np.ndarray:
    """Pixels uint8 `(size, size, 3)`, by the arithmetic of `Preprocess(resize=size, crop=(size, size))`."""
    try:
        rgb = decode(encoded, name=where).rgb
    except BadImage as error:
        raise BadData(f"{error} – found in {where}", code="bad_data.image") from error
    height, width = rgb.shape[:2]
    long = int(size * max(height, width) / min(height, width))
    resized = (size, long) if height <= width else (long, size)
    if resized != (height, width):
        rgb = np.asarray(Image.fromarray(rgb).resize(resized[::-1], Image.Resampling.BILINEAR))
    top, left = round((resized[0] - size) / 2.0), round((resized[1] - size) / 2.0)
    return rgb[top : top + size, left : left + size]


# --- Cache -----------------------------------------------------------------------------------------------------------


def _key(files: list[Path], size: int) -> str:
    """A name for the decoded form of these files, as they are now."""
    total = hashlib.sha256(f"{size}".encode())
    for file in files:
        about = file.stat()
        total.update(f"\0{file}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    return total.hexdigest()[:16]


def _to_cache(found: DataSet, folder: Path) -> None:
    about: dict[str, Any] = {"classes": list(found.classes), "digest": found.digest}
    for half in ("training", "validation"):
        pictures = getattr(found, half)
        pictures.pixels.flush()
        np.save(folder / f"{half}_labels.npy", pictures.labels)
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _from_cache(name: str, kept: Path) -> DataSet:
    about = json.loads((kept / "about.json").read_text(encoding="utf-8"))
    halves = [
        Pictures(np.load(kept / f"{half}.npy", mmap_mode="c"), np.load(kept / f"{half}_labels.npy"))
        for half in ("training", "validation")
    ]
    return DataSet(name, halves[0], halves[1], tuple(about["classes"]), about["digest"])


def _reason(error: BaseException) -> str:
    return one_line(" ".join(str(error).split()), limit=120)
