"""A map held against the object: where it is, every measure of how it is covered, and data sets of them. No torch."""

from r2viz.coverage.boxes import LevelBoxes, level_boxes, pixel_box
from r2viz.coverage.held import Held, centre_gaussian, part_cells
from r2viz.coverage.measures import MEASURES, Measure, baseline, data_set_value, measure, measures_for
from r2viz.coverage.pooled import Curve, best_threshold, coverage_curve
from r2viz.coverage.region import Box, Inside, Region, box_region, energy_inside, mask_region, read_mask
from r2viz.coverage.rows import Row, Rows, merge, stack

__all__ = [
    "MEASURES",
    "Box",
    "Curve",
    "Held",
    "Inside",
    "LevelBoxes",
    "Measure",
    "Region",
    "Row",
    "Rows",
    "baseline",
    "best_threshold",
    "box_region",
    "centre_gaussian",
    "coverage_curve",
    "data_set_value",
    "energy_inside",
    "level_boxes",
    "mask_region",
    "measure",
    "measures_for",
    "merge",
    "part_cells",
    "pixel_box",
    "read_mask",
    "stack",
]
