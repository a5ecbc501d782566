"""Several records of one picture, of as many methods or targets, with what could not be made. NumPy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from r2viz.errors import R2VizError
from r2viz.image import Picture
from r2viz.records import CamRecord


@dataclass(frozen=True)
class Missing:
    """A method that could not be used: `error` says why, `code` is its stable word."""

    method: str
    title: str
    code: str
    error: str


@dataclass(frozen=True, eq=False)
class Panel:
    """Records of one picture by the same networks, at least one.

    Raises:
        ValueError: no records, or of different pictures or networks.
    """

    records: tuple[CamRecord, ...]
    missing: tuple[Missing, ...] = ()

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError("a panel needs at least one record")
        kinds = {(one.picture.sha256, tuple(view.title for view in one.views)) for one in self.records}
        if len(kinds) > 1:
            raise ValueError("the records of a panel are of one picture and the same networks")

    @property
    def picture(self) -> Picture:
        """What all records are of."""
        return self.records[0].picture

    @cached_property
    def digest(self) -> str:
        """sha256 of the records' digests, in their order, and of what is missing."""
        decides = [[record.digest for record in self.records], [asdict(one) for one in self.missing]]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def panel_of(
    results: Sequence[CamRecord | R2VizError], methods: Sequence[str], titles: Sequence[str]
) -> Panel | R2VizError:
    """What `r2viz.explain.panel` gave as a panel; where nothing could be made, the first reason.

    Args:
        results: methods outermost, as many for each.
        methods: the names in that order.
        titles: what figures call them.
    """
    each = len(results) // len(methods)
    records: list[CamRecord] = []
    missing: dict[tuple[str, str], Missing] = {}
    for number, result in enumerate(results):
        if isinstance(result, CamRecord):
            records.append(result)
            continue
        # One reason holds for all targets of a method.
        one = Missing(methods[number // each], titles[number // each], result.code, str(result))
        missing.setdefault((one.method, one.error), one)
    if not records:
        return next(result for result in results if isinstance(result, R2VizError))
    return Panel(tuple(records), tuple(missing.values()))
