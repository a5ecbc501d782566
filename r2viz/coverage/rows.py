"""What a data set keeps of its pictures: small rows of numbers, and the arrays that data-set measures are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from r2viz.coverage.boxes import THRESHOLDS


@dataclass(frozen=True, eq=False)
class Row:
    """One map of one picture, measured.

    Attributes:
        name: the picture.
        values: measure → number; NaN where the object was not seen at all.
        chance: measure → what a map that knows nothing would get.
        constant: whether the map was constant.
        area: the object's share of the seen pixels; `seen`: the share of the object that was seen.
        correct: whether the network's first class was right; None where not asked.
        box_iou: float32 `(n,)`, at each threshold the best IoU of any contour's box with any box of the object; below
            0.3, the least that MaxBoxAccV2 asks for, it may be given as less.
        largest_iou: `(n,)`, the same of the largest contour alone.
        inside, outside: `(n + 1,)`, pixels of the object, and of the rest, by how many thresholds they are above.
    """

    name: str
    values: Mapping[str, float]
    chance: Mapping[str, float]
    constant: bool
    area: float
    seen: float
    correct: bool | None = None
    box_iou: np.ndarray | None = None
    largest_iou: np.ndarray | None = None
    inside: np.ndarray | None = None
    outside: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one map per picture, as columns of N; made by `stack`, put together by `merge`.

    `values` and `chance` are `{measure: (N,)}`; arrays `(N, n)` and `(N, n + 1)` as in `Row`, or None where not kept.
    """

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    chance: dict[str, np.ndarray]
    constant: np.ndarray
    area: np.ndarray
    seen: np.ndarray
    correct: np.ndarray | None = None
    box_iou: np.ndarray | None = None
    largest_iou: np.ndarray | None = None
    inside: np.ndarray | None = None
    outside: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, which: np.ndarray) -> Rows:
        """The rows at these places, or where a boolean array is True."""
        places = np.arange(len(self))[which]
        columns: dict[str, Any] = {name: _taken(getattr(self, name), places) for name in _COLUMNS}
        return Rows(tuple(self.names[place] for place in places.tolist()), **columns)


_COLUMNS = [field.name for field in fields(Rows) if field.name != "names"]


def _taken(column: Any, places: np.ndarray) -> Any:
    if isinstance(column, dict):
        return {name: values[places] for name, values in column.items()}
    return None if column is None else column[places]


def stack(rows: Iterable[Row]) -> Rows:
    """Rows as columns; all must have been measured alike.

    Raises:
        ValueError: no rows, or rows of different measures.
    """
    listed = list(rows)
    if not listed:
        raise ValueError("no rows to stack")
    measures = list(listed[0].values)
    for row in listed:
        if list(row.values) != measures:
            raise ValueError(f"{row.name} has {', '.join(row.values)}; the first row has {', '.join(measures)}")
    columns: dict[str, Any] = {
        name: {key: np.array([getattr(row, name)[key] for row in listed]) for key in measures}
        for name in ("values", "chance")
    }
    for name in _COLUMNS[2:]:
        cells = [getattr(row, name) for row in listed]
        columns[name] = None if any(cell is None for cell in cells) else np.array(cells)
    return Rows(tuple(row.name for row in listed), **columns)


def merge(parts: Sequence[Rows]) -> Rows:
    """Parts of a data set put together in their order.

    Raises:
        ValueError: no parts, or parts of different measures.
    """
    if not parts or any(list(part.values) != list(parts[0].values) for part in parts):
        raise ValueError("parts to merge must be some, and of the same measures")
    joined: dict[str, Any] = {}
    for name in _COLUMNS:
        columns = [getattr(part, name) for part in parts]
        if isinstance(columns[0], dict):
            joined[name] = {key: np.concatenate([column[key] for column in columns]) for key in columns[0]}
        else:
            joined[name] = None if any(column is None for column in columns) else np.concatenate(columns)
    return Rows(tuple(name for part in parts for name in part.names), **joined)


def histograms(values: np.ndarray, inside: np.ndarray, count: int = THRESHOLDS) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the object and of the rest, uint32 `(count + 1,)`, by how many of `k / count · maximum` they are above.

    A constant map's pixels are above none: it claims nothing.
    """
    highest = float(values.max()) if values.size else 0.0
    if highest > 0 and np.ptp(values) > 0:
        # Within single precision: 0.7 of the maximum is not above 0.7.
        ranks = np.ceil(values * (count / highest) * (1 - 1e-6)).astype(np.int64)
    else:
        ranks = np.zeros(values.size, dtype=np.int64)
    total = np.bincount(ranks, minlength=count + 1)
    within = np.bincount(ranks[inside], minlength=count + 1)
    return within.astype(np.uint32), (total - within).astype(np.uint32)
