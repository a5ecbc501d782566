"""Records on disk: JSON (schema 1) beside NPZ, written whole or not at all, and read back."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from r2viz.coverage import Region
from r2viz.errors import BadRecord, OutputError, one_line
from r2viz.geometry import Geometry
from r2viz.image import Picture
from r2viz.panels import Missing, Panel
from r2viz.records import SCHEMA, CamRecord, ClassScore, LayerMap, View


def write_set(files: Mapping[Path, bytes], *, overwrite: bool = False) -> None:
    """Files that belong together: all appear under their names, each complete, or none does.

    Raises:
        OutputError: one exists and `overwrite` is off, or one cannot be written (no permission, disk full); then
            none was changed and nothing half-written is left. So too after an interruption from the keyboard.
    """
    refuse_existing(files, overwrite=overwrite)
    staged: dict[Path, Path] = {}
    former: dict[Path, Path] = {}
    placed: list[Path] = []
    path = next(iter(files), Path())
    try:
        try:
            for path, content in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Beside its target, so that the rename stays within one disk; with the umask's permissions. The name
                # is short whatever the target's: a file system's limit is in bytes.
                mark = path.parent / f".{secrets.token_hex(8)}.r2viz"
                staged[path] = mark.with_suffix(".part")
                with open(staged[path], "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():
                    former[path] = mark.with_suffix(".old")
                    _keep(path, former[path])
            for path in files:
                placed.append(path)
                os.replace(staged[path], path)
        except BaseException:
            for done in placed:
                with contextlib.suppress(OSError):
                    if done in former:
                        os.replace(former[done], done)
                    elif not staged[done].exists():
                        done.unlink()
            raise
    except OSError as error:
        shown = one_line(str(path))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{shown} cannot be written: the disk is full; nothing half-written was left", code="output.disk_full"
            ) from error
        reason = one_line(error.strerror or str(error), 120)
        raise OutputError(
            f"{shown} cannot be written ({reason}); choose a folder that you may write to with -o", code="output.denied"
        ) from error
    finally:
        for temporary in (*staged.values(), *former.values()):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _keep(path: Path, aside: Path) -> None:
    """A second name for a file, so that it outlives being replaced; a copy where the disk knows no second names."""
    try:
        os.link(path, aside)
    except OSError:
        shutil.copy2(path, aside)


def refuse_existing(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """Raise for the first of `paths` that must not be written over.

    Raises:
        OutputError: a folder of that name exists, or a file does and `overwrite` is off.
    """
    for path in paths:
        # os.path's questions, not Path's: those raise for a name that is too long, these leave it to the writing.
        if os.path.isdir(path):
            raise OutputError(f"{one_line(str(path))} is a folder; choose another place with -o", code="output.exists")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(
                f"{one_line(str(path))} exists already; use --overwrite, or another folder with -o",
                code="output.exists",
            )


def save(record: CamRecord | Panel, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The record or panel as `path` (JSON) and, beside it under the same stem, NPZ. Returns the JSON's path.

    Raises:
        OutputError: see `write_set`.
    """
    target = Path(path)
    if target.suffix != ".json":
        raise OutputError(f"{one_line(str(target))} does not end in .json; records are JSON with an NPZ beside it")
    write_set(files(record, target), overwrite=overwrite)
    return target


def files(record: CamRecord | Panel, path: Path, **more: Any) -> dict[Path, bytes]:
    """What `save` writes: the JSON at `path`, with `more` in it, and the NPZ beside it."""
    arrays = path.with_suffix(".npz")
    # A name in bytes that are no UTF-8 reaches us with lone surrogates; JSON writes those as escapes.
    return {arrays: npz(record), path: dumps(record, arrays=arrays.name, **more).encode("utf-8", "backslashreplace")}


def npz(record: CamRecord | Panel) -> bytes:
    """A record's or panel's arrays as NPZ: equal records give equal bytes.

    `<model>/raw` is the signed map `(h, w)`, `<model>/map` the map after its ReLU over the source picture `(H, W)`
    (NaN where the network saw nothing). With several layers these are the first layer's, and every layer stands
    under `<model>/<layer>/raw` and `<model>/<layer>/map`. `picture` is the upright source `(H, W, 3)`, `region` the
    object's mask where there is one.

    In a panel every name of a map begins with its record's place and method, `0-gradcam/<model>/raw`; maps over the
    source picture, which would be as many pictures as there are maps, are left to `View.on_source`.
    """
    records = record.records if isinstance(record, Panel) else (record,)
    arrays: dict[str, np.ndarray] = {"picture": records[0].picture.rgb}
    if records[0].region is not None:
        arrays["region"] = records[0].region.mask
    for number, one in enumerate(records):
        before = _prefix(number, one) if isinstance(record, Panel) else ""
        arrays |= _map_arrays(one, before, laid=not isinstance(record, Panel))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _map_arrays(record: CamRecord, before: str, *, laid: bool) -> dict[str, np.ndarray]:
    arrays = {}
    for key, view in zip(view_keys(record), record.views, strict=True):
        for map_ in view.maps:
            names = [f"{before}{key}"] if map_ is view.maps[0] else []
            names += [f"{before}{key}/{map_.layer}"] if len(view.maps) > 1 else []
            over = view.on_source(map_.layer) if laid else None
            for name in names:
                arrays[f"{name}/raw"] = map_.raw
                if over is not None:
                    arrays[f"{name}/map"] = over
    return arrays


def _prefix(number: int, record: CamRecord) -> str:
    return f"{number}-{record.method}/"


def view_keys(record: CamRecord) -> list[str]:
    """A distinct key for each network: its name, numbered when one network is compared with itself."""
    names = [view.model for view in record.views]
    return [f"{name}#{index + 1}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def as_dict(record: CamRecord | Panel, *, arrays: str | None = None) -> dict[str, Any]:
    """The record or panel as JSON-able values, schema 1, without its arrays; numbers are not rounded."""
    if isinstance(record, Panel):
        document = {
            "schema": SCHEMA,
            "kind": "panel",
            "digest": record.digest,
            "picture": _picture_dict(record.picture),
            "records": [_record_dict(one, _prefix(number, one)) for number, one in enumerate(record.records)],
            "missing": [asdict(one) for one in record.missing],
        }
    else:
        document = _record_dict(record, "")
    if arrays is not None:
        document["arrays"] = arrays
    return document


def _picture_dict(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "sha256": picture.sha256,
        "size": list(picture.rgb.shape[:2]),
        "format": picture.format,
        "notes": list(picture.notes),
    }


def _record_dict(record: CamRecord, before: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "cam",
        "digest": record.digest,
        "picture": _picture_dict(record.picture),
        "policy": record.policy,
        "shared_target": record.shared,
        "method": record.method,
        "method_title": record.method_title,
        "registration": record.registration,
        "map_view": "ReLU at layer resolution, then bilinear between unit centres; unscaled",
        "region": None if record.region is None else {"name": record.region.name, "box": record.region.box},
        "views": [
            _view_dict(record, before + key, view) for key, view in zip(view_keys(record), record.views, strict=True)
        ],
        "agreement": {layer: _agreement(record, layer) for layer in record.layers} if record.shared else None,
        "maximum_ratio": {layer: record.maximum_ratio(layer) for layer in record.layers} if record.shared else None,
        "versions": dict(record.versions),
        "device": record.device,
        "dtype": record.dtype,
        "notes": list(record.notes),
        "settings": dict(record.settings),
    }


def _agreement(record: CamRecord, layer: str) -> dict[str, Any] | None:
    found = record.agreement(layer)
    return None if found is None else found.as_dict()


def _view_dict(record: CamRecord, key: str, view: View) -> dict[str, Any]:
    maps = []
    for map_ in view.maps:
        inside = record.inside(view, map_.layer)
        maps.append(
            {
                "layer": map_.layer,
                "shape": list(map_.raw.shape),
                "start": list(map_.start),
                "jump": list(map_.jump),
                "registration": map_.registration,
                "gradient": map_.gradient,
                "constant": map_.constant,
                "minimum": float(map_.raw.min()),
                "maximum": float(map_.raw.max()),
                "share_inside": None if inside is None or math.isnan(inside.share) else inside.share,
                "chance": None if inside is None else inside.chance,
                "region_seen": None if inside is None else inside.seen,
                "array": f"{key}/{map_.layer}/raw" if len(view.maps) > 1 else f"{key}/raw",
            }
        )
    geometry = view.geometry
    return {
        "model": view.model,
        "title": view.title,
        "weights": dict(view.weights),
        "random": view.random,
        "seed": view.seed,
        "preprocess": dict(view.preprocess),
        "geometry": {
            "source_size": list(geometry.source_size),
            "input_size": list(geometry.input_size),
            "scale": list(geometry.scale),
            "offset": list(geometry.offset),
            "seen": list(geometry.seen),
        },
        "target": asdict(view.target),
        "top": [asdict(score) for score in view.top],
        "maps": maps,
    }


def dumps(record: CamRecord | Panel, *, arrays: str | None = None, **more: Any) -> str:
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


def open_record(path: str | os.PathLike[str]) -> CamRecord:
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


def open_any(path: str | os.PathLike[str]) -> CamRecord | Panel:
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
    if not isinstance(document, dict) or document.get("kind") not in ("cam", "panel"):
        raise BadRecord(f"{shown} is JSON, but not a class activation record of r2viz")
    if document.get("schema") != SCHEMA:
        raise BadRecord(f"{shown} has schema {document.get('schema')!r}; this r2viz reads schema {SCHEMA}")
    try:
        # The NPZ stands beside the JSON; a name with a folder in it is none that we wrote.
        with np.load(source.parent / Path(document["arrays"]).name, allow_pickle=False) as arrays:
            return _record(document, arrays) if document["kind"] == "cam" else _panel(document, arrays)
    except FileNotFoundError as error:
        raise BadRecord(
            f"{shown} lacks its arrays, {one_line(str(error.filename), 120)}; keep the two together"
        ) from None
    except Exception as error:  # damaged or hostile files raise nearly anything: zlib.error, KeyError, MemoryError, …
        raise BadRecord(
            f"{shown} or its arrays are damaged ({type(error).__name__}: {one_line(str(error), 120)})"
        ) from None


def _panel(document: dict[str, Any], arrays: Any) -> Panel:
    described = document["records"]
    picture, region = _picture(document, arrays), _region(described[0], arrays)
    if not all(one["kind"] == "cam" and one["picture"] == document["picture"] for one in described):
        raise ValueError("the records are not all of the panel's picture")
    return Panel(
        tuple(_record_of(one, arrays, picture, region) for one in described),
        tuple(Missing(**{key: str(value) for key, value in one.items()}) for one in document["missing"]),
    )


def _record(document: dict[str, Any], arrays: Any) -> CamRecord:
    return _record_of(document, arrays, _picture(document, arrays), _region(document, arrays))


def _picture(document: dict[str, Any], arrays: Any) -> Picture:
    described = document["picture"]
    rgb = arrays["picture"]
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or list(rgb.shape[:2]) != described["size"]:
        raise ValueError(f"the picture is {rgb.dtype} {rgb.shape}, not uint8 of size {described['size']}")
    rgb.setflags(write=False)
    return Picture(rgb, described["name"], described["sha256"], described["format"], tuple(described["notes"]))


def _region(document: dict[str, Any], arrays: Any) -> Region | None:
    region = document["region"]
    if region is None:
        return None
    mask = arrays["region"]
    if mask.dtype != bool or list(mask.shape) != document["picture"]["size"]:
        raise ValueError("the region is no mask of the picture's size")
    return Region(mask, None if region["box"] is None else tuple(region["box"]), region["name"])


def _record_of(document: dict[str, Any], arrays: Any, picture: Picture, region: Region | None) -> CamRecord:
    views = tuple(_view(view, arrays) for view in document["views"])
    size = picture.rgb.shape[:2]
    if not views or any(view.geometry.source_size != size or not view.maps for view in views):
        raise ValueError("the maps belong to a picture of another size, or there are none")
    return CamRecord(
        picture=picture,
        views=views,
        policy=document["policy"],
        method=document["method"],
        method_title=document["method_title"],
        registration=document["registration"],
        region=region,
        versions=document["versions"],
        device=document["device"],
        dtype=document["dtype"],
        notes=tuple(document["notes"]),
        settings=document.get("settings", {}),
    )


def _view(document: dict[str, Any], arrays: Any) -> View:
    geometry = document["geometry"]
    return View(
        model=document["model"],
        title=document["title"],
        weights=document["weights"],
        seed=document["seed"],
        preprocess=document["preprocess"],
        geometry=Geometry(
            tuple(geometry["source_size"]),
            tuple(geometry["input_size"]),
            tuple(geometry["scale"]),
            tuple(geometry["offset"]),
        ),
        target=ClassScore(**document["target"]),
        top=tuple(ClassScore(**score) for score in document["top"]),
        maps=tuple(
            LayerMap(
                map_["layer"],
                _raw(map_, arrays),
                tuple(map_["start"]),
                tuple(map_["jump"]),
                map_["registration"],
                map_["gradient"],
            )
            for map_ in document["maps"]
        ),
    )


def _raw(document: dict[str, Any], arrays: Any) -> np.ndarray:
    raw = arrays[document["array"]]
    if raw.dtype != np.float32 or list(raw.shape) != document["shape"] or raw.ndim != 2 or not np.isfinite(raw).all():
        raise ValueError(f"{document['array']} is no finite map of shape {document['shape']}")
    return raw
