"""What one unit sees of a picture: its effective receptive field over the user's own picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from r2viz.erf_records import Erf, ErfRecord
from r2viz.errors import OutputError
from r2viz.figures.axes import LINE, placed, sheet, wrapped, write
from r2viz.figures.canvas import GREY, TEXT, WARNING, titles
from r2viz.figures.erf_captions import last_line, made_of, noted, size_lines, warned
from r2viz.figures.field import LARGEST, SMALLEST, colours, common_scale, density, scale_bar
from r2viz.figures.overlay import grey_of, pale, shrunk
from r2viz.geometry import Geometry

_WIDTH, _MARGIN, _GAP, _HEAD = 7.0, 0.08, 0.14, 0.34


def unit_figure(
    record: ErfRecord,
    rgb: np.ndarray | None = None,
    *,
    layer: str | None = None,
    unit: tuple[int, int] | None = None,
    geometry: Geometry | None = None,
) -> Figure:
    """The picture, and over it each network's field of one unit, at its place; theory outlined.

    Args:
        record: its own picture and the views' geometry are used where there are such.
        rgb: another picture, uint8 `(H, W, 3)`: of the network's input size, or laid by `geometry`.
        layer: of the record; the last one unless given.
        unit: (row, column) in the feature map; the first measured unless given.
        geometry: from `rgb` to the input, for every network.

    Raises:
        UnknownName: the record has no such layer or unit.
        OutputError: there is no picture, or it is not known where it lies in the input.
    """
    if rgb is None:
        if record.picture is None:
            raise OutputError(
                "the record holds no single picture; give rgb, or measure one picture", code="output.nothing"
            )
        rgb = record.picture.rgb
    layer = record.layers[-1] if layer is None else layer
    erfs = [view.at(layer, unit=unit) for view in record.views]
    laid = [geometry or view.geometry or _same(rgb, erf) for view, erf in zip(record.views, erfs, strict=True)]
    for where in laid:
        if where.source_size != rgb.shape[:2]:
            raise OutputError(
                f"the picture is {rgb.shape[0]} x {rgb.shape[1]}, its geometry is for {where.source_size[0]} x "
                f"{where.source_size[1]}; give the picture that was measured",
                code="output.nothing",
            )
    scale = common_scale(erfs)
    panels = 1 + len(erfs)
    aspect = rgb.shape[0] / rgb.shape[1]
    wide = min(2.6, (_WIDTH - 2 * _MARGIN - (panels - 1) * _GAP) / panels)
    tall = wide * aspect
    if tall > 3.4:
        wide, tall = max(0.2, 3.4 / aspect), 3.4
    tall = max(tall, 0.05)
    pitch = max(wide, 1.5)
    total = 2 * _MARGIN + panels * pitch + (panels - 1) * _GAP
    said = [
        *made_of(record, erfs),
        "Blue: all that the unit could see; green, dashed: the smallest path's field; cross: the unit's centre. One "
        "logarithmic colour scale over the paled picture; sizes in pixels of the network's input.",
        *noted(erfs),
    ]
    caption = wrapped(said, warned(record), last_line(record), total)
    under, bar = 0.5, 0.36
    drawing = sheet(total, 2 * _MARGIN + _HEAD + tall + under + bar + LINE * len(caption))
    axes = [
        placed(drawing, _MARGIN + n * (pitch + _GAP) + (pitch - wide) / 2, _MARGIN + _HEAD, wide, tall)
        for n in range(panels)
    ]
    name = record.picture.name if record.picture is not None else "picture"
    _frame(axes[0], shrunk(rgb)[0], rgb.shape[:2])
    titles(axes[0], name, f"{rgb.shape[1]} × {rgb.shape[0]}", least=pitch)
    for view, erf, where, ax in zip(record.views, erfs, laid, axes[1:], strict=True):
        draw_unit(ax, rgb, erf, where, scale=scale)
        titles(ax, view.title, f"{layer}, unit ({erf.unit[0]}, {erf.unit[1]})", least=pitch)
        for number, line in enumerate(size_lines(erf)):
            ax.annotate(
                line, (0.5, 0), (0, -3 - 7.4 * number), xycoords="axes fraction", textcoords="offset points",
                ha="center", va="top", fontsize=5.8, color=GREY, annotation_clip=False, **TEXT,
            )  # fmt: skip
    scale_bar(drawing, scale, _MARGIN, drawing.get_size_inches()[1] - 2 * _MARGIN - LINE * len(caption) - 0.26, total)
    write(drawing, caption)
    return drawing


def draw_unit(ax: Axes, rgb: np.ndarray, erf: Erf, geometry: Geometry, *, scale: LogNorm) -> Axes:
    """A field over the greyed picture, in the picture's own pixels: input pixels lie where the geometry puts them."""
    _frame(ax, pale(grey_of(shrunk(rgb)[0])), rgb.shape[:2])
    limits = ax.axis()
    if erf.sizes is None:
        ax.text(
            0.5, 0.5, "no gradient reaches\nthe input: no map", transform=ax.transAxes, ha="center", va="center",
            fontsize=6, color=WARNING, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
            **TEXT,
        )  # fmt: skip
    else:
        height, width = erf.input_size
        x0, y0, x1, y1 = geometry.box_to_source((0, 0, width, height))
        shares = density(erf)
        opacity = np.clip(scale(np.maximum(shares, 1e-300)).filled(0), 0, 1) ** 0.5 * 0.9 * (shares > 0)
        ax.imshow(
            shares, norm=scale, cmap=colours(), alpha=opacity, extent=(x0, x1, y1, y0), aspect="auto",
            interpolation="nearest", zorder=2,
        )  # fmt: skip
    y, x = geometry.to_source(erf.centre) + 0.5
    if erf.theory is not None:
        half = erf.theory.min / 2
        around = erf.centre[0] + 0.5, erf.centre[1] + 0.5
        _box(ax, geometry, (around[0] - half, around[1] - half, around[0] + half, around[1] + half), False)
        if not erf.theory.unbounded:
            _box(ax, geometry, erf.theory.box, True)
    ax.plot([x], [y], marker="+", markersize=5, markeredgewidth=0.7, color="black", linestyle="none", zorder=4)
    ax.axis(limits)
    box = None if erf.theory is None or erf.theory.unbounded else geometry.box_to_source(_xy(erf.theory.box))
    said = ""
    if erf.theory is None:
        said = "theory does not say"
    elif box is None:
        said = "unbounded: could see the whole picture"
    elif box[0] < 0 and box[1] < 0 and box[2] > rgb.shape[1] and box[3] > rgb.shape[0]:
        said = f"could see {erf.theory.max} px: more than the picture"
    if said:
        if ax.get_position().width * ax.figure.get_size_inches()[0] < 1.6:  # type: ignore[union-attr]
            said = said.replace(": ", ":\n")
        ax.text(
            0.5, 0.03, said, transform=ax.transAxes, ha="center", va="bottom", fontsize=5.5, color=LARGEST,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}, zorder=5, **TEXT,
        )  # fmt: skip
    return ax


def _same(rgb: np.ndarray, erf: Erf) -> Geometry:
    if rgb.shape[:2] != tuple(erf.input_size):
        raise OutputError(
            f"the picture is {rgb.shape[0]} x {rgb.shape[1]} and the input {erf.input_size[0]} x {erf.input_size[1]}; "
            "give the geometry between the two",
            code="output.nothing",
        )
    return Geometry(erf.input_size, erf.input_size, (1.0, 1.0), (0.0, 0.0))


def _xy(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[1], box[0], box[3], box[2]


def _box(ax: Axes, geometry: Geometry, box: tuple[float, float, float, float], largest: bool) -> None:
    x0, y0, x1, y1 = geometry.box_to_source(_xy(box))
    halo = withStroke(linewidth=1.9, foreground="white", alpha=0.85)
    ax.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=LARGEST if largest else SMALLEST, linewidth=0.9,
            linestyle="solid" if largest else (0, (2, 1)), label="max" if largest else "min", path_effects=[halo],
            zorder=3,
        )
    )  # fmt: skip


def _frame(ax: Axes, shown: np.ndarray, size: tuple[int, int]) -> None:
    ax.imshow(shown, extent=(0, size[1], size[0], 0), interpolation="antialiased", aspect="auto")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color(GREY)
