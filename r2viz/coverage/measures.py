"""Every measure of how a map lies over the object, in one visible table, and the row that they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from r2viz.coverage.boxes import THRESHOLDS, PixelBox, level_boxes, pixel_box
from r2viz.coverage.held import (
    Held,
    area_coverage,
    area_coverage_gain,
    centre_gaussian,
    coverage_at_precision,
    coverage_at_precision_chance,
    energy,
    energy_gain,
    evenness,
    leakage,
    least_part,
    parts_covered,
    parts_covered_chance,
    pointing,
    pointing_chance,
)
from r2viz.coverage.pooled import (
    DELTAS,
    coverage_curve,
    gt_known_loc,
    max_box_acc,
    max_box_acc_v2,
    pxap,
    threshold_iou,
    top1_loc,
)
from r2viz.coverage.region import Region
from r2viz.coverage.rows import Row, Rows, histograms
from r2viz.errors import BadRegion, UnknownName, nearest


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    Attributes:
        function: `(Held) -> float` of one picture, or `(Rows, *, counts, held_out)` of a data set.
        title: what a figure or table calls it.
        citation: where it is defined.
        needs: what may stand for the object: `"box"`, a box or a mask; `"mask"`, a mask only.
        of: whether one picture has it, or only a data set.
        higher_is_better: leakage is the one that is not.
        chance: `(Held) -> float`, what a map that knows nothing would get in this picture; None for data sets, where
            the centre-Gaussian beside it says what a map gets that knows no picture.
        keeps: the arrays of a row that a data-set measure is made of.
        note: how it departs from its source, or what one must know to read it.
    """

    function: Callable[..., Any]
    title: str
    citation: str
    needs: Literal["box", "mask"] = "box"
    of: Literal["picture", "data set"] = "picture"
    higher_is_better: bool = True
    chance: Callable[[Held], float] | None = None
    keeps: tuple[str, ...] = ()
    note: str = ""


def _area(held: Held) -> float:
    return held.area


def _rest(held: Held) -> float:
    return 1 - held.area


def _nothing(held: Held) -> float:
    return 0.0


def _one(held: Held) -> float:
    return 1.0


MEASURES: dict[str, Measure] = {
    "pointing": Measure(
        pointing,
        "Pointing game",
        "Zhang et al. 2016, arXiv 1608.00507; tolerance as in TorchRay",
        chance=pointing_chance,
        note="15 pixels of a picture 500 long, in proportion for others, at least one; ties give their share of hits",
    ),
    "energy": Measure(
        energy,
        "Energy inside",
        "Wang et al. 2020, arXiv 1910.01279, section 4.3",
        chance=_area,
        note="objects above half the picture stay in, unlike in the source: they are what the claim is about",
    ),
    "leakage": Measure(leakage, "Leakage", "1 - energy inside", higher_is_better=False, chance=_rest),
    "energy_gain": Measure(energy_gain, "Energy inside above chance", "energy inside - |M| / HW", chance=_nothing),
    "maxboxacc": Measure(
        max_box_acc,
        "MaxBoxAcc",
        "Choe et al. 2020, arXiv 2001.07437, section 3.3",
        of="data set",
        keeps=("largest_iou",),
        note="the largest contour's box; a map is divided by its maximum, its minimum is not taken off",
    ),
    "maxboxaccv2": Measure(
        max_box_acc_v2,
        "MaxBoxAccV2",
        "Choe et al. 2020, arXiv 2007.04178, section 3.3",
        of="data set",
        keeps=("box_iou",),
        note="boxes of all contours, holes' too; IoU of 0.3, 0.5 and 0.7, each at its own best threshold",
    ),
    "gt_known_loc": Measure(
        gt_known_loc,
        "GT-known localisation",
        "Choe et al. 2020, arXiv 2001.07437, section 3.1",
        of="data set",
        keeps=("largest_iou",),
    ),
    "top1_loc": Measure(
        top1_loc,
        "Top-1 localisation",
        "Russakovsky et al. 2015, arXiv 1409.0575, section 4.2",
        of="data set",
        keeps=("largest_iou", "correct"),
        note="mixes accuracy and localisation",
    ),
    "pxap": Measure(
        pxap,
        "PxAP",
        "Choe et al. 2020, arXiv 2001.07437, section 3.3",
        needs="mask",
        of="data set",
        keeps=("inside", "outside"),
        note="pixels of all pictures pooled, so large objects weigh most; a map is divided by its maximum",
    ),
    "iou": Measure(
        threshold_iou,
        "IoU at the data set's threshold",
        "standard; the threshold from held-out pictures",
        needs="mask",
        of="data set",
        keeps=("inside", "outside"),
        note="without held-out pictures the threshold is the best for the pictures themselves, which flatters",
    ),
    "coverage_curve": Measure(
        coverage_curve,
        "Coverage by threshold",
        "share of the object above a share of the map's maximum",
        needs="mask",
        of="data set",
        keeps=("inside", "outside"),
        note="a map of ones covers everything: read it beside the spill",
    ),
    "area_coverage": Measure(
        area_coverage,
        "Area-matched coverage",
        "relevance rank accuracy, Arras et al. 2022, arXiv 2003.07258",
        needs="mask",
        chance=_area,
        note="of the |M| strongest pixels, those in the object; unchanged by any rescaling that keeps order",
    ),
    "area_coverage_gain": Measure(
        area_coverage_gain,
        "Area-matched coverage above chance",
        "c - |M| / HW",
        needs="mask",
        chance=_nothing,
        note="not divided by 1 - a, which explodes where the object fills the picture",
    ),
    "coverage_at_precision": Measure(
        coverage_at_precision,
        "Coverage at precision 0.8",
        "recall at a precision of 0.8 over the picture's own thresholds",
        needs="mask",
        chance=coverage_at_precision_chance,
    ),
    "evenness": Measure(
        evenness,
        "Evenness",
        "exp(H(S|M)) / |M|; this project's",
        needs="mask",
        chance=_one,
        note="1 where the map is even inside the object, also for an even map: read it beside leakage",
    ),
    "least_part": Measure(
        least_part,
        "Least covered part",
        "least area-matched coverage of 5 k-means cells; this project's",
        needs="mask",
        chance=_area,
    ),
    "parts_covered": Measure(
        parts_covered,
        "Parts covered",
        "share of 5 k-means cells that are covered to at least half; this project's",
        needs="mask",
        chance=parts_covered_chance,
    ),
}


def measures_for(region: Region | Literal["box", "mask"]) -> list[str]:
    """The names of all measures that a region allows: one that came from a box has no shape."""
    kind = region if isinstance(region, str) else "mask" if region.box is None else "box"
    return [name for name, row in MEASURES.items() if row.needs == "box" or kind == "mask"]


def measure(
    map_: np.ndarray,
    region: Region,
    *,
    measures: Iterable[str] | None = None,
    boxes: Sequence[PixelBox] | None = None,
    correct: bool | None = None,
    thresholds: int = THRESHOLDS,
    name: str = "",
) -> Row:
    """Hold one map against one object.

    Args:
        map_: `(H, W)` over the picture, non-negative, NaN where not seen; see `Held`.
        region: the object. MaxBoxAcc and its kin take the box around it.
        measures: names of `MEASURES`; all that the region allows unless given.
        boxes: where the picture has several objects of the class, the box of each (x0, y0, x1, y1), x1 and y1 one
            past the last pixel but within the picture: the best pair counts.
        correct: whether the network's first class was right, for `top1_loc`.
        thresholds: how many, for boxes and histograms.
        name: of the picture.

    Raises:
        UnknownName: no such measure.
        BadRegion: a measure that needs a mask was asked for a box; or see `Held`.
    """
    wanted = measures_for(region) if measures is None else list(measures)
    allowed = measures_for(region)
    for asked in wanted:
        if asked not in MEASURES:
            raise UnknownName(f"no measure {asked!r}{nearest(asked, MEASURES)}")
        if asked not in allowed:
            raise BadRegion(
                f"{asked} needs a mask, and the object is the box {region.name}; a box allows {', '.join(allowed)}"
            )
    held = Held(map_, region)
    rows = {asked: MEASURES[asked] for asked in wanted}
    keeps = {kept for row in rows.values() for kept in row.keeps}
    single = {asked: row for asked, row in rows.items() if row.of == "picture"}
    truths = [pixel_box(region.mask)] if boxes is None else boxes
    inside, outside = histograms(held.values, held.inside, thresholds) if "inside" in keeps else (None, None)
    return Row(
        name,
        {asked: row.function(held) for asked, row in single.items()},
        {asked: row.chance(held) if row.chance else float("nan") for asked, row in single.items()},
        held.constant,
        held.area,
        float(held.inside.sum() / region.mask.sum()),
        correct,
        _ious(map_, truths, thresholds) if "box_iou" in keeps else None,
        _ious(map_, truths, thresholds, largest=True) if "largest_iou" in keeps else None,
        inside,
        outside,
    )


def _ious(map_: np.ndarray, truths: Sequence[PixelBox], count: int, *, largest: bool = False) -> np.ndarray:
    found = level_boxes(map_, count=count, largest=largest, reach=(truths, DELTAS[0]))
    return found.best_iou(truths).astype(np.float32)


def baseline(region: Region, **options: Any) -> Row:
    """What the centre-Gaussian gets, for the same options as `measure`: it stands beside every number."""
    return measure(centre_gaussian((region.mask.shape[0], region.mask.shape[1])), region, **options)


def data_set_value(
    name: str, rows: Rows, *, counts: np.ndarray | None = None, held_out: Rows | None = None
) -> np.ndarray:
    """A number of a whole data set by a measure's name: means of a picture's measure, or the data-set function.

    With `counts` `(R, N)`, one number per resample: `(R,)`. Pictures whose object was not seen are left out of means.

    Raises:
        UnknownName: no such measure.
    """
    if name not in MEASURES:
        raise UnknownName(f"no measure {name!r}{nearest(name, MEASURES)}")
    if MEASURES[name].of == "data set":
        return (
            MEASURES[name].function(rows)
            if name == "coverage_curve"
            else MEASURES[name].function(rows, counts=counts, held_out=held_out)
        )
    values = rows.values[name]
    known = np.isfinite(values)
    weights = np.ones((1, len(values))) if counts is None else counts
    means = weights @ np.where(known, values, 0) / (weights @ known.astype(np.float64))
    return means if counts is not None else means[0]
