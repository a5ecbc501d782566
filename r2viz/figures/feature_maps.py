"""A split's feature maps over the user's picture: the most active channels, and where each is strongest."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, placed, sheet, wrapped, write
from r2viz.figures.canvas import GREY, titles
from r2viz.figures.overlay import MAP_COLOURS, grey_of, shrunk
from r2viz.geometry import Geometry

_MARGIN, _GAP, _HEAD, _WIDE = 0.08, 0.1, 0.36, 1.6
_BOX = "#56B4E9"


def feature_maps(
    rgb: np.ndarray,
    maps: np.ndarray,
    *,
    title: str,
    geometry: Geometry,
    start: tuple[float, float],
    jump: tuple[float, float],
    reach: int | None,
    channels: int = 8,
) -> Figure:
    """The channels with the greatest means, each over the picture, boxed by its strongest unit's receptive field.

    Args:
        rgb: the picture, uint8 `(H, W, 3)`.
        maps: the split's output, float `(C, h, w)`.
        title: network and split, say `Res2Net-50, layer3.2.split1`.
        geometry: from the picture to the network's input.
        start: (y, x), where unit (0, 0) is centred, in input pixels.
        jump: (y, x), input pixels between units.
        reach: side of the largest theoretical field in input pixels; None where it is unknown or unbounded.
        channels: how many, at most.

    Raises:
        OutputError: no channel is active.
    """
    strength = maps.reshape(len(maps), -1).mean(axis=1)
    order = [int(one) for one in np.argsort(-strength, kind="stable") if maps[one].max() > 0][:channels]
    if not order:
        raise OutputError(f"{title}: no channel is active on this picture", code="output.nothing")
    across = min(4, len(order))
    down = -(-len(order) // across)
    tall = min(2.4, _WIDE * rgb.shape[0] / rgb.shape[1])
    total = max(3.6, 2 * _MARGIN + across * _WIDE + (across - 1) * _GAP)
    said = [
        f"{title}: the {len(order)} of {len(maps)} channels with the greatest mean, each divided by its own maximum, a "
        "cell per unit centred where the unit sits. Box: the largest theoretical field of the strongest unit (+); "
        "what of it lies beyond the cells is mostly padding."
    ]
    if reach is None:
        said.append("The field is not known, or it is the whole picture: no box.")
    caption = wrapped(said, [], "", total)
    drawing = sheet(total, 2 * _MARGIN + down * (tall + _HEAD) + LINE * len(caption) + 0.06)
    ground = grey_of(shrunk(rgb)[0])
    rows, columns = maps.shape[1:]
    y0, x0 = start[0] + 0.5 - jump[0] / 2, start[1] + 0.5 - jump[1] / 2
    left, upper, right, lower = geometry.box_to_source((x0, y0, x0 + columns * jump[1], y0 + rows * jump[0]))
    for place, channel in enumerate(order):
        x = _MARGIN + (place % across) * (_WIDE + _GAP)
        ax = placed(drawing, x, _MARGIN + (place // across) * (tall + _HEAD) + _HEAD, _WIDE, tall)
        ax.imshow(ground, extent=(0, rgb.shape[1], rgb.shape[0], 0), aspect="equal")
        limits = ax.axis()
        share = np.clip(maps[channel] / maps[channel].max(), 0, 1)
        ax.imshow(
            share, extent=(left, right, lower, upper), cmap=colormaps[MAP_COLOURS], vmin=0, vmax=1, alpha=0.62,
            interpolation="nearest", aspect="equal", zorder=2,
        )  # fmt: skip
        i, j = np.unravel_index(int(np.argmax(maps[channel])), (rows, columns))
        centre = start[0] + i * jump[0] + 0.5, start[1] + j * jump[1] + 0.5
        if reach is not None:
            half = reach / 2
            bx0, by0, bx1, by1 = geometry.box_to_source(
                (centre[1] - half, centre[0] - half, centre[1] + half, centre[0] + half)
            )
            ax.add_patch(Rectangle((bx0, by0), bx1 - bx0, by1 - by0, fill=False, edgecolor=_BOX, linewidth=1.1,
                                   label="field", zorder=3))  # fmt: skip
        y, x_ = geometry.to_source((centre[0] - 0.5, centre[1] - 0.5)) + 0.5
        ax.plot([x_], [y], marker="+", color=_BOX, markersize=5, markeredgewidth=0.9, linestyle="none", zorder=4)
        ax.axis(limits)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
            spine.set_color(GREY)
        titles(ax, f"channel {channel}", f"max {maps[channel].max():.3g}", least=_WIDE)
    write(drawing, caption)
    return drawing
