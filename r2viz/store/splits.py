"""Statistics of splits as JSON-able values and arrays, and back; and as tables in long form."""

from __future__ import annotations

import io
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2viz.split_records import Histogram, Likeness, Network, Row, Spectrum, Split, SplitRecord
from r2viz.statistics import Interval

_CURVES = ("frequency", "power", "low", "high", "shuffled")
_MATRICES = ("values", "low", "high")


def splits_arrays(record: SplitRecord) -> dict[str, np.ndarray]:
    """Spectra, histograms and matrices; which split they are of stands at the same place of the JSON's lists.

    `spectra/I` is float64 `(5, k)`: frequency, power, its interval's ends, the power of shuffled pixels.
    `histograms/I/edges` is float64 `(k + 1,)`, `histograms/I/counts` int64 `(k,)`. `likenesses/I` is float64
    `(3, rows, columns)`: CKA and its interval's ends.
    """
    arrays = {}
    for number, curve in enumerate(record.spectra):
        arrays[f"spectra/{number}"] = np.stack([getattr(curve, name) for name in _CURVES])
    for number, histogram in enumerate(record.histograms):
        arrays[f"histograms/{number}/edges"] = histogram.edges
        arrays[f"histograms/{number}/counts"] = histogram.counts
    for number, matrix in enumerate(record.likenesses):
        arrays[f"likenesses/{number}"] = np.stack([getattr(matrix, name) for name in _MATRICES])
    return arrays


def splits_dict(record: SplitRecord) -> dict[str, Any]:
    """Everything but the arrays; `place` is a split's network and its number in that network's list."""

    def place(split: Split) -> list[int]:
        return _place(record.networks, split)

    document = record.as_dict()
    for described, row in zip(document["rows"], record.rows, strict=True):
        described["place"] = place(row.split)
    document["spectra"] = [
        {"model": one.split.model, "tap": one.split.tap, "place": place(one.split), "n": one.n}
        for one in record.spectra
    ]
    document["histograms"] = [
        {"model": one.split.model, "tap": one.split.tap, "place": place(one.split), "zeros": one.zeros}
        for one in record.histograms
    ]
    document["likenesses"] = [
        {"rows": [place(split) for split in one.rows], "columns": [place(split) for split in one.columns], "n": one.n}
        for one in record.likenesses
    ]
    return document


def read_splits(document: dict[str, Any], arrays: Any) -> SplitRecord:
    """A record from what `splits_dict` and `splits_arrays` made of it. What does not fit raises whatever it raises."""
    networks = tuple(
        Network(**{**one, "splits": tuple(_split(split) for split in one["splits"])}) for one in document["networks"]
    )
    if not networks or not all(network.splits for network in networks):
        raise ValueError("there is no network, or one without splits")

    def at(place: Sequence[int]) -> Split:
        network, number = place
        if network < 0 or number < 0:
            raise ValueError(f"there is no split at {place}")
        return networks[network].splits[number]

    return SplitRecord(
        networks=networks,
        rows=tuple(Row(at(row["place"]), row["statistic"], _interval(row)) for row in document["rows"]),
        pictures=document["pictures"],
        spectra=tuple(
            _spectrum(at(one["place"]), arrays[f"spectra/{number}"], one["n"])
            for number, one in enumerate(document["spectra"])
        ),
        histograms=tuple(
            _histogram(at(one["place"]), arrays, number, one["zeros"])
            for number, one in enumerate(document["histograms"])
        ),
        likenesses=tuple(
            _likeness(tuple(map(at, one["rows"])), tuple(map(at, one["columns"])), arrays[f"likenesses/{number}"], one)
            for number, one in enumerate(document["likenesses"])
        ),
        pictures_sha256=document["pictures_sha256"],
        settings=document["settings"],
        versions=document["versions"],
        device=document["device"],
        dtype=document["dtype"],
        notes=tuple(document["notes"]),
    )


def splits_csv(record: SplitRecord) -> bytes:
    """The statistics in long form, unrounded, lines ended by a line feed; what is missing is empty."""
    return record.frame().to_csv(index=False, lineterminator="\n").encode()


def splits_parquet(record: SplitRecord) -> bytes:
    """The same as Parquet; equal records give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(record.frame(), preserve_index=False), buffer)
    return buffer.getvalue()


def _place(networks: Sequence[Network], split: Split) -> list[int]:
    """By identity first: of one network with two kinds of weights, all splits are alike but for whose they are."""
    for same in (operator.is_, operator.eq):
        for number, network in enumerate(networks):
            for place, one in enumerate(network.splits):
                if same(one, split):
                    return [number, place]
    raise ValueError(f"{split.tap} of {split.model} is not among the networks' splits")


def _split(document: Mapping[str, Any]) -> Split:
    jump = document["jump"]
    return Split(**{**document, "jump": None if jump is None else (jump[0], jump[1])})


def _interval(row: Mapping[str, Any]) -> Interval:
    value, low, high = (math.nan if row[name] is None else float(row[name]) for name in ("value", "low", "high"))
    return Interval(value, low, high, row["n"])


def _stacked(values: np.ndarray, count: int, dimensions: int) -> np.ndarray:
    if values.dtype != np.float64 or values.ndim != dimensions or len(values) != count:
        raise ValueError(f"{values.dtype} {values.shape} came where {count} float64 arrays stood")
    return values


def _spectrum(split: Split, values: np.ndarray, count: int) -> Spectrum:
    return Spectrum(split, **dict(zip(_CURVES, _stacked(values, len(_CURVES), 2), strict=True)), n=count)


def _histogram(split: Split, arrays: Any, number: int, zeros: int) -> Histogram:
    edges, counts = arrays[f"histograms/{number}/edges"], arrays[f"histograms/{number}/counts"]
    if edges.shape != (len(counts) + 1,) or counts.ndim != 1:
        raise ValueError(f"a histogram has {len(counts)} bins between {edges.shape} edges")
    return Histogram(split, edges, counts, zeros)


def _likeness(
    rows: tuple[Split, ...], columns: tuple[Split, ...], values: np.ndarray, document: Mapping[str, Any]
) -> Likeness:
    found = _stacked(values, 3, 3)
    if found.shape[1:] != (len(rows), len(columns)):
        raise ValueError(f"a matrix {found.shape[1:]} came for {len(rows)} and {len(columns)} splits")
    return Likeness(rows, columns, found[0], found[1], found[2], document["n"])
