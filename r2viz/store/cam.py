"""Class activation records and panels as JSON-able values and arrays, and back."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from r2viz.coverage import Region
from r2viz.geometry import Geometry
from r2viz.image import Picture
from r2viz.panels import Missing, Panel
from r2viz.records import SCHEMA, CamRecord, ClassScore, LayerMap, View


def cam_arrays(record: CamRecord | Panel) -> dict[str, np.ndarray]:
    """Raw maps, maps over the source picture, the picture and its region; names as `r2viz.store.npz` tells."""
    records = record.records if isinstance(record, Panel) else (record,)
    arrays: dict[str, np.ndarray] = {"picture": records[0].picture.rgb}
    if records[0].region is not None:
        arrays["region"] = records[0].region.mask
    for number, one in enumerate(records):
        before = _prefix(number, one) if isinstance(record, Panel) else ""
        arrays |= _map_arrays(one, before, laid=not isinstance(record, Panel))
    return arrays


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


def cam_dict(record: CamRecord | Panel) -> dict[str, Any]:
    """Everything but the arrays."""
    if isinstance(record, CamRecord):
        return _record_dict(record, "")
    return {
        "schema": SCHEMA,
        "kind": "panel",
        "digest": record.digest,
        "picture": picture_dict(record.picture),
        "records": [_record_dict(one, _prefix(number, one)) for number, one in enumerate(record.records)],
        "missing": [asdict(one) for one in record.missing],
    }


def picture_dict(picture: Picture) -> dict[str, Any]:
    """What is known of a picture beside its pixels."""
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
        "picture": picture_dict(record.picture),
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
    return {
        "model": view.model,
        "title": view.title,
        "weights": dict(view.weights),
        "random": view.random,
        "seed": view.seed,
        "preprocess": dict(view.preprocess),
        "geometry": geometry_dict(view.geometry),
        "target": asdict(view.target),
        "top": [asdict(score) for score in view.top],
        "maps": maps,
    }


def read_panel(document: dict[str, Any], arrays: Any) -> Panel:
    """A panel from what `cam_dict` and `cam_arrays` made of it. What does not fit raises whatever it raises."""
    described = document["records"]
    picture, region = read_picture(document, arrays), _region(described[0], arrays)
    if not all(one["kind"] == "cam" and one["picture"] == document["picture"] for one in described):
        raise ValueError("the records are not all of the panel's picture")
    return Panel(
        tuple(_record_of(one, arrays, picture, region) for one in described),
        tuple(Missing(**{key: str(value) for key, value in one.items()}) for one in document["missing"]),
    )


def read_cam(document: dict[str, Any], arrays: Any) -> CamRecord:
    """A record, likewise."""
    return _record_of(document, arrays, read_picture(document, arrays), _region(document, arrays))


def read_picture(document: dict[str, Any], arrays: Any) -> Picture:
    """A record's picture, likewise."""
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
    return View(
        model=document["model"],
        title=document["title"],
        weights=document["weights"],
        seed=document["seed"],
        preprocess=document["preprocess"],
        geometry=read_geometry(document["geometry"]),
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


def geometry_dict(geometry: Geometry) -> dict[str, Any]:
    """Where the picture lies in the input."""
    return {
        "source_size": list(geometry.source_size),
        "input_size": list(geometry.input_size),
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "seen": list(geometry.seen),
    }


def read_geometry(document: dict[str, Any]) -> Geometry:
    """The same, back."""
    return Geometry(*(tuple(document[name]) for name in ("source_size", "input_size", "scale", "offset")))
