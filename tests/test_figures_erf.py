"""Figures of receptive fields: by their artists, data and words, from hand-made records whose answers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2viz.erf_records import Erf, ErfRecord, ErfView, Inputs, Reach
from r2viz.errors import OutputError, UnknownName
from r2viz.figures import (
    ScalePoint,
    Stairs,
    erf_figure,
    erf_provenance,
    radial_figure,
    render,
    scale_figure,
    scale_provenance,
    split_figure,
    staircase,
    staircase_provenance,
    unit_figure,
)
from r2viz.figures.field import common_scale, density
from r2viz.geometry import Geometry
from r2viz.image import decode
from r2viz.receptive.extent import sizes
from r2viz.receptive.theory import Field
from r2viz.statistics import Interval


def field(
    layer: str = "layer4",
    *,
    sigma: float = 6.0,
    size: tuple[int, int] = (80, 80),
    centre: tuple[float, float] = (40.0, 40.0),
    reach: int | None = 41,
    unbounded: bool = False,
    inputs: int = 4,
) -> Erf:
    """A Gaussian around the centre; no mass for a sigma of 0, no theory for a reach of None."""
    rows, columns = np.arange(size[0])[:, None] - centre[0], np.arange(size[1])[None] - centre[1]
    map_ = np.exp(-(rows**2 + columns**2) / 2 / sigma**2) if sigma else np.zeros(size)
    theory = None
    if reach is not None:
        half = (reach - 1) / 2
        box = (centre[0] - half, centre[1] - half, centre[0] + half + 1, centre[1] + half + 1)
        theory = Reach(7, reach, box, (8.0, 8.0), True, unbounded)
    found = sizes(map_, centre)
    named = {} if found is None else found.named()
    each = {name: value * np.linspace(0.9, 1.1, inputs) for name, value in named.items()}
    return Erf(
        layer, (5, 5), centre, "luo", "what was averaged", "pictures", inputs, 0, size, map_.astype(np.float32), (0, 0),
        (0, 0, *size), theory, found, each,
    )  # fmt: skip


def record(*fields: Sequence[Erf], random: bool = False, picture: Any = None, geometry: Any = None) -> ErfRecord:
    weights = {"kind": "random" if random else "file", "source": "w.safetensors", "sha256": "0" * 64}
    views = tuple(
        ErfView(f"net{n}", f"Net {n}", weights, 0 if random else None, {}, tuple(erfs), geometry)
        for n, erfs in enumerate(fields)
    )
    made = Inputs((("a.jpg", "1" * 64),))
    versions = {"r2viz": "0"}
    size = fields[0][0].input_size
    return ErfRecord(views, "luo", "Luo et al.", "pictures", size, made, versions, "cpu", "float32", (), picture)


def words(drawing: Figure) -> str:
    texts = [text.get_text() for text in drawing.texts]
    texts += [text.get_text() for ax in drawing.axes for text in ax.texts]
    return " ".join(" ".join(texts).split())


def maps(drawing: Figure) -> list[Axes]:
    """The panels, without the colour bar."""
    return [ax for ax in drawing.axes if ax.get_yticks().size]


def squares(ax: Axes) -> dict[str, tuple[float, float, float, float]]:
    """(x0, y0, x1, y1) by label."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_label() in ("min", "max")]
    return {str(one.get_label()): (*one.get_xy(), one.get_x() + one.get_width(), one.get_y() + one.get_height())
            for one in found}  # fmt: skip


# --- Maps ------------------------------------------------------------------------------------------------------------


def test_all_maps_share_window_and_colours_and_theory_stands_at_its_pixels() -> None:
    wide = field(sigma=10, reach=61)
    drawing = erf_figure(record([field("layer3", sigma=4), field()], [field("layer3"), wide]))
    panels = maps(drawing)
    assert len(panels) == 4
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1
    images = [ax.images[0] for ax in panels]
    assert len({(image.norm.vmin, image.norm.vmax) for image in images}) == 1
    np.testing.assert_allclose(images[3].get_array(), density(wide))
    assert float(np.sum(images[3].get_array())) == pytest.approx(1)
    # Edges: pixel 40 reaches from 40 to 41, so 41 pixels around it from 20 to 61.
    assert squares(panels[0])["max"] == (20, 20, 61, 61)
    assert squares(panels[3])["max"] == (10, 10, 71, 71)
    assert squares(panels[0])["min"] == (37, 37, 44, 44)
    assert images[0].get_extent() == [0, 80, 80, 0]


def test_colours_reach_from_the_greatest_density_to_where_99_percent_are_shown() -> None:
    erf = field(sigma=6)
    scale = common_scale([erf, field(sigma=0)])
    shares = np.sort(density(erf), axis=None)[::-1]
    assert scale.vmin is not None
    assert scale.vmax is not None
    assert shares[0] <= scale.vmax < 10 * shares[0] * (1 + 1e-9)
    assert shares[shares >= scale.vmin].sum() >= 0.99


def test_sizes_stand_beneath_and_the_caption_says_how_they_were_made() -> None:
    first, second = field(sigma=6), field(sigma=9)
    made = record([first], [second])
    said = words(erf_figure(made))
    (ratio,) = made.ratios("sigma")
    assert ratio is not None
    found = first.interval("sigma")
    assert f"σ {found.mean:.1f} [{found.low:.1f}, {found.high:.1f}] px" in said
    assert "theory: 7 to 41 px" in said
    for needed in (
        "what was averaged",
        "4 pictures of 80 × 80 px",
        "w.safetensors",
        "logarithmic",
        "numbers are linear",
        "95 % bootstrap intervals",
        "Net 1 over that of Net 0",
        f"layer4 × {ratio.mean:.2f}",
    ):
        assert needed in said
    assert "RANDOM" not in said
    assert "RANDOM WEIGHTS: the field of an untrained network" in words(erf_figure(record([first], random=True)))


@pytest.mark.parametrize(
    ("erf", "sentence"),
    [
        (field(unbounded=True), "unbounded: sees the whole picture"),
        (field(reach=None), "theory does not say"),
        (field(sigma=0), "no gradient reaches the input: no map"),
        (field(reach=1131), "could see 1131 px: beyond this panel"),
    ],
)
def test_what_cannot_be_drawn_is_said(erf: Erf, sentence: str) -> None:
    drawing = erf_figure(record([erf]))
    assert sentence in words(drawing)
    if erf.sizes is None:
        assert not maps(drawing)[0].images
        assert "σ unknown" in words(drawing)
    if erf.theory is None or erf.theory.unbounded:
        assert "max" not in squares(maps(drawing)[0])


def test_a_field_beyond_a_picture_that_is_not_square_lies_on_grey() -> None:
    drawing = erf_figure(record([field(size=(60, 100), centre=(8.0, 50.0))]))
    ax = maps(drawing)[0]
    assert squares(ax)["max"] == (30, -12, 71, 29)
    assert ax.get_ylim()[1] < -12
    assert "Grey lies beyond the picture" in words(drawing)
    width, height = ax.get_position().width * drawing.get_figwidth(), ax.get_position().height * drawing.get_figheight()
    (x0, x1), (y1, y0) = ax.get_xlim(), ax.get_ylim()
    assert width / height == pytest.approx((x1 - x0) / (y1 - y0))  # pixels are square


def test_unknown_layers_are_named() -> None:
    with pytest.raises(UnknownName, match=r"no layer 'layer5'.*layer4"):
        erf_figure(record([field()]), layers=["layer5"])
    with pytest.raises(OutputError, match="no field to draw"):
        erf_figure(record([field()]), layers=[])


# --- Splits ----------------------------------------------------------------------------------------------------------


def test_splits_stand_in_code_order_and_the_last_is_marked() -> None:
    reaches = {"split0": 43, "split1": 59, "split2": 75, "split3": 27}
    block = [field(f"layer1.1.{name}", reach=reach) for name, reach in reaches.items()]
    first = [field(f"layer1.0.split{n}", reach=43) for n in range(4)]
    drawing = split_figure(record([*reversed(block), *first]))
    said = words(drawing)
    assert said.count("passed through") == 2  # at the panel and in the caption
    assert "layer1.1, passed through" in said
    assert "layer1.0, pooled" in said
    widths = [squares(ax)["max"][2] - squares(ax)["max"][0] for ax in maps(drawing)]
    assert widths == [43, 59, 75, 27, 43, 43, 43, 43]
    assert "passed through" not in words(split_figure(record(block[:2])))  # the pass-through was not measured
    only = split_figure(record([*block, *first]), block="layer1.0")
    assert len(maps(only)) == 4
    with pytest.raises(OutputError, match=r"the record holds no splits of 'layer9'; it has layer1\.1\.split0"):
        split_figure(record(block), block="layer9")


def test_eight_splits_make_two_bands_and_a_network_without_splits_is_left_out() -> None:
    block = [field(f"layer1.1.split{n}", reach=43 + 8 * n) for n in range(8)]
    drawing = split_figure(record([field("layer1")], block))
    assert "Net 0" not in words(drawing)
    panels = maps(drawing)
    assert len(panels) == 8
    assert len({round(ax.get_position().y0, 6) for ax in panels}) == 2


# --- Curves ----------------------------------------------------------------------------------------------------------


def test_radial_profiles_are_the_record_s_and_theory_is_marked_at_half_its_size() -> None:
    first, second = field(sigma=5), field(sigma=8, reach=201)
    drawing = radial_figure(record([first], [second]))
    above, beneath = drawing.axes[:2]
    lines = {line.get_label(): line for line in (*above.lines, *beneath.lines)}
    distance, mean, share = first.radial()
    np.testing.assert_allclose(lines["share0"].get_ydata(), share)
    drawn = lines["density0"]
    np.testing.assert_allclose(drawn.get_ydata(), mean[mean > 0] / first.map.sum(dtype=np.float64))
    np.testing.assert_array_equal(drawn.get_xdata(), distance[mean > 0])
    assert list(lines["theory0"].get_xdata()) == [20.5, 20.5]
    assert "theory ends at 100.5 px" in words(drawing)  # far beyond all mass: in words
    assert above.get_xlim()[1] < 100
    assert drawn.get_color() != lines["density1"].get_color()
    assert drawn.get_linestyle() != lines["density1"].get_linestyle()


def test_radial_profiles_without_mass_or_theory() -> None:
    said = words(radial_figure(record([field(sigma=0)], [field(reach=None)], [field(unbounded=True)])))
    assert "theory unknown" in said
    assert "theory unbounded" in said
    assert "no curve: no gradient reaches the input" in said
    assert "no gradient reaches the input: no curve" in words(radial_figure(record([field(sigma=0)])))


def test_size_against_scale_draws_theory_and_measured_sizes() -> None:
    points = [
        ScalePoint("plain", 1, (11, 427), {"sigma": Interval(56.0, 54.0, 58.0, 8)}),
        ScalePoint("26w-4s", 4, (11, 1131), {"sigma": Interval(72.0, math.nan, math.nan, 1)}),
        ScalePoint("26w-4s", 4, (11, 1131), {"sigma": Interval(90.0, 85.0, 95.0, 8)}, trained=True),
        ScalePoint("gated", 4, (11, None), {}),
    ]
    drawing = scale_figure(points, note="At layer4.")
    theory, measured = drawing.axes
    labels = [label.get_text() for label in measured.get_xticklabels()]
    assert labels == ["plain\ns = 1", "26w-4s\ns = 4", "gated\ns = 4"]
    assert {text.get_text() for text in theory.texts} >= {"427", "1131", "unbounded"}
    dots = [(*line.get_xydata()[0], line.get_markerfacecolor() == "white") for line in measured.lines]
    assert dots == [(0, 56, True), (1, 72, True), (1, 90, False)]
    bars = [path.vertices.tolist() for bars in measured.collections for path in bars.get_paths()]
    assert bars == [[[0, 54], [0, 58]], [[1, 85], [1, 95]]]
    assert "At layer4." in words(drawing)
    assert json.loads(scale_provenance(points))["points"][0]["theory"] == [11, 427]
    with pytest.raises(OutputError, match="at least one"):
        scale_figure([])


# --- Staircase -------------------------------------------------------------------------------------------------------


def stairs() -> Stairs:
    """Two Res2Net-like blocks by theory's own arithmetic, then a gate."""
    stem = Field().through((7, 7), (2, 2), (3, 3))
    split = stem.through((3, 3), (1, 1), (1, 1))
    block = stem.meet(split).meet(split.through((3, 3), (1, 1), (1, 1)))
    second = block.meet(block.through((3, 3), (1, 1), (1, 1)))
    taps = {"conv1": stem, "layer1.0.split0": split, "layer1.0": block, "layer2.0": second}
    return Stairs("Net", {tap: one.sizes for tap, one in taps.items()}, frozenset({"layer2.0"}))


def test_the_staircase_has_all_sizes_with_their_paths_and_the_picture_s_line() -> None:
    net = stairs()
    drawing = staircase([net], picture=12)
    ax = drawing.axes[0]
    steps = {patch.get_label(): patch.get_data().values.tolist() for patch in ax.patches}
    assert steps == {"max": [7, 11, 15, 19], "min": [7, 11, 7, 7]}
    table = np.asarray(ax.images[0].get_array().filled(np.nan))
    top = ax.get_ylim()[1]
    for column, sizes_ in enumerate(net.taps.values()):
        for size, count in sizes_.items():
            assert table[int(size / top * len(table)), column] == pytest.approx(math.log10(count))
    assert np.isnan(table[int(16 / top * len(table)), 1])  # nothing where no size is near
    line = next(line for line in ax.lines if line.get_label() == "picture")
    assert list(line.get_ydata()) == [12, 12]
    said = words(drawing)
    for needed in ("picture, 12 px", "largest 19 px", "6 paths", "layer1", "layer2", "▲: some path sees the whole"):
        assert needed in said


def test_counts_beyond_any_float_and_several_networks_share_one_shade() -> None:
    deep = Stairs("Deep", {"layer1": {11: 1, 19: 8**400}})
    drawing = staircase([stairs(), deep, stairs()])
    norms = {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in drawing.axes if ax.images}
    assert len(norms) == 1
    assert norms.pop()[1] == pytest.approx(400 * math.log10(8))
    assert "1.7 × 10³⁶¹ paths" in words(drawing)
    assert len({ax.get_ylim() for ax in drawing.axes if ax.images}) == 1
    assert json.loads(staircase_provenance([deep]))["networks"][0]["taps"] == {"layer1": [11, 19]}
    with pytest.raises(OutputError, match="at least one network"):
        staircase([])


# --- Over a picture --------------------------------------------------------------------------------------------------


def test_a_unit_lies_where_the_geometry_puts_it() -> None:
    rgb = np.full((100, 200, 3), 128, dtype=np.uint8)
    where = Geometry.of_resize_and_crop((100, 200), (80, 160), (0, 40), (80, 80))  # input pixel = 1.25 source pixels
    erf = field(reach=21)
    drawing = unit_figure(record([erf], picture=decode(rgb), geometry=where))
    ax = drawing.axes[1]
    shown = ax.images[1]
    np.testing.assert_allclose(shown.get_extent(), [50, 150, 100, 0])
    # The field's edges 30 and 51 of the input, 40 cropped pixels further in the resized picture.
    np.testing.assert_allclose(squares(ax)["max"], [87.5, 37.5, 113.75, 63.75])
    (cross,) = ax.lines
    np.testing.assert_allclose(cross.get_xydata()[0], [(40.5 + 40) * 1.25, 40.5 * 1.25])
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 200), (100, 0))


def test_a_picture_that_cannot_be_laid_is_refused() -> None:
    made = record([field()])
    with pytest.raises(OutputError, match="holds no single picture"):
        unit_figure(made)
    with pytest.raises(OutputError, match=r"the picture is 40 x 50 and the input 80 x 80; give the geometry"):
        unit_figure(made, np.zeros((40, 50, 3), dtype=np.uint8))
    same = np.zeros((80, 80, 3), dtype=np.uint8)
    assert "more than the picture" in words(unit_figure(record([field(reach=301)]), same))
    assert "unbounded: could see" in words(unit_figure(record([field(unbounded=True)]), same))
    assert "no gradient reaches" in words(unit_figure(record([field(sigma=0)]), same))


# --- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_equal_records_give_equal_bytes(kind: str) -> None:
    def bytes_of() -> bytes:
        made = record([field()], [field(sigma=8)])
        return render(erf_figure(made), kind, provenance=erf_provenance(made)) + render(staircase([stairs()]), kind)

    assert bytes_of() == bytes_of()


def test_provenance_says_what_it_was_made_from() -> None:
    made = record([field()], [field()])
    found = json.loads(erf_provenance(made))
    assert found["digest"] == made.digest
    assert [network["model"] for network in found["networks"]] == ["net0", "net1"]
    assert found["inputs"]["pictures"] == [{"name": "a.jpg", "sha256": "1" * 64}]
    assert found["protocol"] == "luo"
