"""Effective receptive fields as JSON-able values and arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from r2viz.erf_records import Erf, ErfRecord, ErfView, Gaussian, Inputs, Reach, Sizes
from r2viz.store.cam import geometry_dict, picture_dict, read_geometry, read_picture


def erf_arrays(record: ErfRecord) -> dict[str, np.ndarray]:
    """Maps and the sizes of single inputs; the picture `(H, W, 3)` where there was only one.

    `<model>/<layer>/raw` is the map where the unit can see anything, float32 `(h, w)`, its corner in the JSON;
    `<model>/<layer>/each` the sizes of each input's own map, float64 `(sizes, inputs)`, their names in the JSON. With
    several units or sources the layer is followed by `/Y,X`, and `/pictures` or `/noise`.
    """
    arrays: dict[str, np.ndarray] = {} if record.picture is None else {"picture": record.picture.rgb}
    for view, names in zip(record.views, _names(record), strict=True):
        for erf, name in zip(view.erfs, names, strict=True):
            arrays[f"{name}/raw"] = erf.raw
            arrays[f"{name}/each"] = np.stack(list(erf.each.values())) if erf.each else np.zeros((0, erf.inputs))
    return arrays


def erf_dict(record: ErfRecord) -> dict[str, Any]:
    """Everything but the arrays."""
    document = record.as_dict()
    document["picture"] = None if record.picture is None else picture_dict(record.picture)
    for described, view, names in zip(document["views"], record.views, _names(record), strict=True):
        described["geometry"] = None if view.geometry is None else geometry_dict(view.geometry)
        for erf, name in zip(described["erfs"], names, strict=True):
            erf["array"] = f"{name}/raw"
    return document


def _names(record: ErfRecord) -> list[list[str]]:
    erfs = record.views[0].erfs
    units = len({(erf.layer, erf.unit) for erf in erfs}) > len(record.layers)
    sources = len({erf.source for erf in erfs}) > 1
    return [
        [
            f"{key}/{erf.layer}"
            + (f"/{erf.unit[0]},{erf.unit[1]}" if units else "")
            + (f"/{erf.source}" if sources else "")
            for erf in view.erfs
        ]
        for key, view in zip(record.keys, record.views, strict=True)
    ]


def read_erf(document: dict[str, Any], arrays: Any) -> ErfRecord:
    """A record from what `erf_dict` and `erf_arrays` made of it. What does not fit raises whatever it raises."""
    views = tuple(_view(view, arrays) for view in document["views"])
    size = tuple(document["input_size"])
    if not views or not all(view.erfs and all(erf.input_size == size for erf in view.erfs) for view in views):
        raise ValueError("the maps are of inputs of another size, or there are none")
    inputs = document["inputs"]
    return ErfRecord(
        views=views,
        protocol=document["protocol"],
        protocol_title=document["protocol_title"],
        source=document["source"],
        input_size=(size[0], size[1]),
        inputs=Inputs(
            pictures=tuple((one["name"], one["sha256"]) for one in inputs["pictures"]),
            noise=inputs["noise"],
            seed=inputs["seed"],
            left_out=tuple((one["name"], one["error"]) for one in inputs["left_out"]),
        ),
        versions=document["versions"],
        device=document["device"],
        dtype=document["dtype"],
        notes=tuple(document["notes"]),
        picture=None if document["picture"] is None else read_picture(document, arrays),
    )


def _view(document: dict[str, Any], arrays: Any) -> ErfView:
    return ErfView(
        model=document["model"],
        title=document["title"],
        weights=document["weights"],
        seed=document["seed"],
        preprocess=document["preprocess"],
        erfs=tuple(_erf(erf, arrays) for erf in document["erfs"]),
        geometry=None if document["geometry"] is None else read_geometry(document["geometry"]),
    )


def _erf(document: dict[str, Any], arrays: Any) -> Erf:
    raw, each = arrays[document["array"]], arrays[document["array"].removesuffix("raw") + "each"]
    (y, x), (height, width) = document["corner"], document["input_size"]
    if raw.dtype != np.float32 or raw.ndim != 2 or not np.isfinite(raw).all() or raw.min(initial=0) < 0:
        raise ValueError(f"{document['array']} is no finite map without negative values")
    if min(y, x) < 0 or y + raw.shape[0] > height or x + raw.shape[1] > width:
        raise ValueError(f"{document['array']} of shape {raw.shape} leaves the input of {height} x {width}")
    theory, found = document["theory"], document["sizes"]
    return Erf(
        layer=document["layer"],
        unit=_two(document["unit"]),
        centre=_two(document["centre"]),
        protocol=document["protocol"],
        definition=document["definition"],
        source=document["source"],
        inputs=document["inputs"],
        skipped=document["skipped"],
        input_size=(height, width),
        raw=raw,
        corner=(y, x),
        computed_on=tuple(document["computed_on"]),
        theory=None
        if theory is None
        else Reach(**{**theory, "box": tuple(theory["box"]), "jump": _two(theory["jump"])}),
        sizes=None if found is None else _sizes(found),
        each=dict(zip(document["each"], each, strict=True)),
        own_sizes=document["own_sizes"],
        calibrated=document["calibrated"],
        notes=tuple(document["notes"]),
    )


def _sizes(document: dict[str, Any]) -> Sizes:
    fit = document["gaussian"]
    return Sizes(
        area={int(share): area for share, area in document["area"].items()},
        square={int(share): side for share, side in document["square"].items()},
        sigma=document["sigma"],
        sigma_yx=_two(document["sigma_yx"]),
        mass_centre=_two(document["mass_centre"]),
        luo=float("nan") if document["luo"] is None else document["luo"],
        gaussian=None if fit is None else Gaussian(_two(fit["centre"]), _two(fit["sigma"]), fit["height"], fit["r2"]),
    )


def _two(values: Any) -> tuple[Any, Any]:
    first, second = values
    return first, second
