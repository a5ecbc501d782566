"""Records drawn with matplotlib's object interface: no pyplot, no global state, no rescaling that is not said.

Every overlay shows a map divided by its own maximum; the signed difference is drawn between unit-mass maps on a
symmetric scale. Equal records give equal bytes.
"""

from r2viz.figures.cam import draw_difference, draw_map, draw_source, figure, html, provenance
from r2viz.figures.canvas import render
from r2viz.figures.grid import grid
from r2viz.figures.panel import drawn, panel, panel_provenance
from r2viz.figures.tradeoff import tradeoff

__all__ = [
    "draw_difference",
    "draw_map",
    "draw_source",
    "drawn",
    "figure",
    "grid",
    "html",
    "panel",
    "panel_provenance",
    "provenance",
    "render",
    "tradeoff",
]
