"""Records drawn with matplotlib's object interface: no pyplot, no global state, no rescaling that is not said.

Every overlay shows a map divided by its own maximum; the signed difference is drawn between unit-mass maps on a
symmetric scale. Equal records give equal bytes.
"""

from r2viz.figures.cam import draw_difference, draw_map, draw_source, figure, html, provenance
from r2viz.figures.canvas import render
from r2viz.figures.coverage import StratumDifference, coverage_by_size, difference_by_stratum
from r2viz.figures.coverage_cases import Case, cases
from r2viz.figures.coverage_curves import coverage_curves, scale_response
from r2viz.figures.erf import erf_figure, split_figure
from r2viz.figures.erf_captions import erf_provenance
from r2viz.figures.feature_maps import feature_maps
from r2viz.figures.field import draw_erf
from r2viz.figures.grid import grid
from r2viz.figures.panel import drawn, panel, panel_provenance
from r2viz.figures.radial import draw_radial, radial_figure
from r2viz.figures.scale import ScalePoint, scale_figure, scale_provenance
from r2viz.figures.split_captions import splits_provenance
from r2viz.figures.split_causal import causal_figure
from r2viz.figures.split_curves import spectrum_figure, split_ridgelines
from r2viz.figures.splits import cka_figure, split_heatmap
from r2viz.figures.staircase import Stairs, draw_stairs, staircase, staircase_provenance
from r2viz.figures.tradeoff import tradeoff
from r2viz.figures.unit import draw_unit, unit_figure

__all__ = [
    "Case",
    "ScalePoint",
    "Stairs",
    "StratumDifference",
    "cases",
    "causal_figure",
    "cka_figure",
    "coverage_by_size",
    "coverage_curves",
    "difference_by_stratum",
    "draw_difference",
    "draw_erf",
    "draw_map",
    "draw_radial",
    "draw_source",
    "draw_stairs",
    "draw_unit",
    "drawn",
    "erf_figure",
    "erf_provenance",
    "feature_maps",
    "figure",
    "grid",
    "html",
    "panel",
    "panel_provenance",
    "provenance",
    "radial_figure",
    "render",
    "scale_figure",
    "scale_provenance",
    "scale_response",
    "spectrum_figure",
    "split_figure",
    "split_heatmap",
    "split_ridgelines",
    "splits_provenance",
    "staircase",
    "staircase_provenance",
    "tradeoff",
    "unit_figure",
]
