"""Records on disk: JSON (schema 1) beside NPZ, written whole or not at all, and read back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from r2viz.erf_records import ERF_SCHEMA, ErfRecord
from r2viz.errors import BadRecord, OutputError, one_line
from r2viz.panels import Panel
from r2viz.records import SCHEMA, CamRecord
from r2viz.split_records import SCHEMA as SPLIT_SCHEMA
from r2viz.split_records import SplitRecord
from r2viz.store.cam import cam_arrays, cam_dict, read_cam, read_panel, view_keys
from r2viz.store.erf import erf_arrays, erf_dict, read_erf
from r2viz.store.splits import read_splits, splits_arrays, splits_csv, splits_dict, splits_parquet
from r2viz.store.writing import refuse_existing, write_set

__all__ = [
    "Record",
    "as_dict",
    "dumps",
    "files",
    "made_by",
    "npz",
    "open_any",
    "open_record",
    "refuse_existing",
    "save",
    "splits_csv",
    "splits_parquet",
    "view_keys",
    "write_set",
]

Record = CamRecord | Panel | ErfRecord | SplitRecord

_READ: dict[str, tuple[int, Callable[[dict[str, Any], Any], Record]]] = {
    "cam": (SCHEMA, read_cam),
    "panel": (SCHEMA, read_panel),
    "erf": (ERF_SCHEMA, read_erf),
    "splits": (SPLIT_SCHEMA, read_splits),
}


def save(record: Record, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The record or panel as `path` (JSON) and, beside it under the same stem, NPZ. Returns the JSON's path.

    Raises:
        OutputError: see `write_set`.
    """
    target = Path(path)
    if target.suffix != ".json":
        raise OutputError(f"{one_line(str(target))} does not end in .json; records are JSON with an NPZ beside it")
    write_set(files(record, target), overwrite=overwrite)
    return target


def files(record: Record, path: Path, **more: Any) -> dict[Path, bytes]:
    """What `save` writes: the JSON at `path`, with `more` in it, and the NPZ beside it."""
    arrays = path.with_suffix(".npz")
    # A name in bytes that are no UTF-8 reaches us with lone surrogates; JSON writes those as escapes.
    return {arrays: npz(record), path: dumps(record, arrays=arrays.name, **more).encode("utf-8", "backslashreplace")}


def npz(record: Record) -> bytes:
    """A record's or panel's arrays as NPZ: equal records give equal bytes.

    `<model>/raw` is the signed map `(h, w)`, `<model>/map` the map after its ReLU over the source picture `(H, W)`
    (NaN where the network saw nothing). With several layers these are the first layer's, and every layer stands
    under `<model>/<layer>/raw` and `<model>/<layer>/map`. `picture` is the upright source `(H, W, 3)`, `region` the
    object's mask where there is one.

    In a panel every name of a map begins with its record's place and method, `0-gradcam/<model>/raw`; maps over the
    source picture, which would be as many pictures as there are maps, are left to `View.on_source`.

    For effective receptive fields see `r2viz.store.erf.erf_arrays`, for splits `r2viz.store.splits.splits_arrays`.
    """
    if isinstance(record, SplitRecord):
        arrays = splits_arrays(record)
    else:
        arrays = erf_arrays(record) if isinstance(record, ErfRecord) else cam_arrays(record)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def as_dict(record: Record, *, arrays: str | None = None) -> dict[str, Any]:
    """The record or panel as JSON-able values, schema 1, without its arrays; numbers are not rounded."""
    if isinstance(record, SplitRecord):
        document = splits_dict(record)
    else:
        document = erf_dict(record) if isinstance(record, ErfRecord) else cam_dict(record)
    if arrays is not None:
        document["arrays"] = arrays
    return document


def dumps(record: Record, *, arrays: str | None = None, **more: Any) -> str:
    """The record as JSON text, with `more` in it, ending in a line feed."""
    document = {**as_dict(record, arrays=arrays), **more}
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def made_by(path: Path) -> tuple[str | None, str | None]:
    """The picture's sha256 and the request's digest of a saved record; None for what it does not say."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["picture"]["sha256"], document.get("request")
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def open_record(path: str | os.PathLike[str]) -> CamRecord | ErfRecord | SplitRecord:
    """A record that `save` wrote.

    Raises:
        BadRecord: not a record of r2viz, of a newer schema, or its NPZ is missing or does not fit; or it is a panel.
    """
    found = open_any(path)
    if isinstance(found, Panel):
        raise BadRecord(
            f"{one_line(str(path))} is a panel of {len(found.records)} records, not one record; r2viz.store.open_any "
            "opens it, and `r2viz plot` draws it"
        )
    return found


def open_any(path: str | os.PathLike[str]) -> Record:
    """A record or panel that `save` wrote.

    Raises:
        BadRecord: neither, of a newer schema, or its NPZ is missing or does not fit.
    """
    source = Path(path)
    shown = one_line(str(source))
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRecord(f"there is no record {shown}; `r2viz cam IMAGE` writes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecord(
            f"{shown} is not a record ({one_line(str(error), 120)}); expected the JSON that r2viz wrote"
        ) from None
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in _READ:
        raise BadRecord(f"{shown} is JSON, but no record of r2viz that can be opened ({', '.join(_READ)})")
    schema, read = _READ[kind]
    if document.get("schema") != schema:
        raise BadRecord(f"{shown} has schema {document.get('schema')!r}; this r2viz reads schema {schema}")
    try:
        # The NPZ stands beside the JSON; a name with a folder in it is none that we wrote.
        with np.load(source.parent / Path(document["arrays"]).name, allow_pickle=False) as arrays:
            return read(document, arrays)
    except FileNotFoundError as error:
        raise BadRecord(
            f"{shown} lacks its arrays, {one_line(str(error.filename), 120)}; keep the two together"
        ) from None
    except Exception as error:  # damaged or hostile files raise nearly anything: zlib.error, KeyError, MemoryError, …
        raise BadRecord(
            f"{shown} or its arrays are damaged ({type(error).__name__}: {one_line(str(error), 120)})"
        ) from None
