"""A map or a difference as colours over a picture, and the bars that say what the colours mean."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize

from r2viz.figures.canvas import GREY

MAP_COLOURS = "inferno"
DIFFERENCE_COLOURS = "PuOr_r"
LONGEST_SIDE = 1000  # drawn pixels per panel: more than a panel of a printed page shows at 300 dpi


def blend(
    ground: np.ndarray, values: np.ndarray, colours: Colormap, opacity: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """`values` in 0..1 as colours over `ground` (uint8 `(H, W, 3)`), only `where` there is a value."""
    alpha = np.where(where, opacity, 0)[:, :, None]
    mixed = alpha * colours(np.nan_to_num(values))[:, :, :3] * 255 + (1 - alpha) * ground
    return np.rint(mixed).astype(np.uint8)


def strength(laid: np.ndarray, *, pixels: bool) -> np.ndarray:
    """A map over the picture `(H, W)` in 0..1, NaN where it is NaN: divided by its maximum.

    A map of `pixels` is divided by what one in a hundred of its positive pixels exceeds: its maximum is often a single
    pixel, beside which nothing else would show.
    """
    top = float(np.percentile(laid[laid > 0], 99)) if pixels else float(np.nanmax(laid))
    return np.clip(laid / top, 0, 1)


def map_opacity(share: np.ndarray) -> np.ndarray:
    return 0.30 + 0.42 * share


def grey_of(rgb: np.ndarray) -> np.ndarray:
    luminance = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return np.repeat(luminance[:, :, None], 3, axis=2)


def pale(grey: np.ndarray) -> np.ndarray:
    """Greys lifted towards white, so that both signs of a difference stand out."""
    return (140 + grey.astype(np.float32) * (115 / 255)).astype(np.uint8)


def shrunk(rgb: np.ndarray, longest: int = LONGEST_SIDE) -> tuple[np.ndarray, float]:
    """The picture at most `longest` pixels wide and high, and the factor."""
    factor = min(1.0, longest / max(rgb.shape[:2]))
    if factor == 1.0:
        return rgb, 1.0
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), factor


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float map `(H, W)` at the drawing's size; what was not seen stays NaN."""
    if values.shape == size:
        return values
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def map_bar(ax: Axes) -> None:
    colours = shown_colours(colormaps[MAP_COLOURS], map_opacity, 128)
    colour_bar(ax, colours, (0, 1), [0, 1], ["0", "map's own maximum"])


def colour_bar(ax: Axes, colours: Colormap, span: tuple[float, float], ticks: list[float], labels: list[str]) -> None:
    mappable = ScalarMappable(Normalize(*span), colours)
    ax.figure.colorbar(mappable, cax=ax, orientation="horizontal")
    ax.set_xticks(ticks, labels)
    ax.tick_params(labelsize=6, length=2, width=0.4, pad=1.5, labelcolor=GREY, color=GREY)
    for spine in ax.spines.values():
        spine.set_linewidth(0.3)
    texts = ax.get_xticklabels()
    texts[0].set_horizontalalignment("left")
    texts[-1].set_horizontalalignment("right")
    for text in texts:
        text.set_parse_math(False)


def shown_colours(colours: Colormap, opacity: Any, ground: int) -> Colormap:
    """The colour map as a panel shows it: laid over middle grey (or pale grey) with the panel's opacity."""
    values = np.linspace(0, 1, 256)
    alpha = np.asarray(opacity(values))[:, None]
    return ListedColormap(alpha * colours(values)[:, :3] + (1 - alpha) * ground / 255)
