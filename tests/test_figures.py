"""Figures by their artists and data: what is drawn, what is said, and that no name is taken for an instruction."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tiny import network, pair, photo

from r2viz.coverage import box_region, mask_region
from r2viz.errors import OutputError
from r2viz.explain import explain
from r2viz.figures import draw_difference, draw_map, drawn, figure, grid, html, panel, provenance, render
from r2viz.figures.overlay import MAP_COLOURS
from r2viz.figures.tradeoff import Point, described, tradeoff
from r2viz.image import decode
from r2viz.panels import Missing, Panel
from r2viz.records import CamRecord

HOSTILE = {
    "mathtext": r"$\frac{1}{0}$ a$b^{",
    "markup": "<script>alert('x')</script> & \"quoted\"",
    "lines": "one\ntwo\r\nthree\x00\x1b[31m",
    "cjk": "日本語の写真",
    "right to left": "\u202eabc",
    "long": "x" * 4096,
    "empty": "",
    "blank": " \t ",
}


@pytest.fixture(autouse=True)
def no_notices() -> Iterator[None]:
    """Drawing raises no warnings: the command line would print them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def record() -> CamRecord:
    return explain(decode(photo(71, 95), name="photo.jpg"), pair())


def changed(record: CamRecord, raws: Any = None, **changes: Any) -> CamRecord:
    """The record with other maps, or with changes in every view."""
    views = []
    for number, view in enumerate(record.views):
        maps = view.maps
        if raws is not None:
            raw = np.asarray(raws[number], dtype=np.float32)
            maps = tuple(dataclasses.replace(map_, raw=raw) for map_ in maps)
        views.append(dataclasses.replace(view, maps=maps, **changes))
    return dataclasses.replace(record, views=tuple(views))


def panels(drawing: Figure) -> list[Axes]:
    return [ax for ax in drawing.axes if ax.images]


def texts(drawing: Figure) -> list[str]:
    """All that is written on a figure, outside and inside its axes."""
    return [text.get_text() for text in drawing.findobj(lambda artist: hasattr(artist, "get_text"))]


def image_of(ax: Axes) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def colourfulness(shown: np.ndarray) -> np.ndarray:
    """0 where a panel is grey."""
    return np.ptp(shown[..., :3].astype(int), axis=-1)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_panels_of_a_pair(record: CamRecord) -> None:
    drawing = figure(record)
    assert len(panels(drawing)) == 4
    for ax in panels(drawing):
        assert ax.get_xlim() == (0, 95)
        assert ax.get_ylim() == (71, 0)
    source, first, second, difference = (image_of(ax) for ax in panels(drawing))
    y0, x0, y1, x1 = record.views[0].geometry.seen
    np.testing.assert_array_equal(source[y0:y1, x0:x1], record.picture.rgb[y0:y1, x0:x1])
    assert colourfulness(first).max() > 0
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, difference)
    said = " ".join(texts(drawing))
    for part in ("photo.jpg", "ResNet tiny", "Res2Net tiny", "difference", record.views[0].target.label, "layer4"):
        assert part in said
    assert "Each map is divided by its own maximum" in said.replace("\n", " ")
    assert record.digest[:16] in said
    assert "tiny.safetensors" in said
    assert "RANDOM" not in said


def test_panels_of_one_network_and_of_different_classes(record: CamRecord) -> None:
    assert len(panels(figure(dataclasses.replace(record, views=record.views[:1])))) == 2
    own = explain(photo(), [network(labels=tuple("abcdefghij")), network("res2net_tiny")], target="top1")
    drawing = figure(own)
    assert len(panels(drawing)) == 3
    assert "targets differ, so no difference is drawn" in " ".join(texts(drawing))
    assert "difference" not in texts(drawing)


def test_a_row_for_each_layer() -> None:
    layers = ("layer2", "layer3", "layer4")
    drawing = figure(explain(photo(), pair(), layers=layers))
    assert len(panels(drawing)) == 12
    assert [layer for layer in layers if layer in texts(drawing)] == list(layers)


@pytest.mark.parametrize(
    ("size", "columns"), [((60, 90), 4), ((90, 60), 4), ((40, 120), 2), ((20, 120), 1), ((400, 5), 4)]
)
def test_wide_pictures_get_fewer_columns(size: tuple[int, int], columns: int) -> None:
    drawing = figure(explain(photo(*size), pair()))
    lefts = {round(ax.get_position().x0, 3) for ax in panels(drawing)}
    assert len(lefts) == columns
    assert drawing.get_figwidth() <= 7.01


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 100), (100, 1), (2, 3), (20, 2000), (2000, 20), (1500, 2000)], ids=lambda size: f"{size}"
)
def test_odd_sizes_are_drawn(size: tuple[int, int]) -> None:
    record = explain(photo(*size), pair())
    drawing = figure(record)
    png = render(drawing, "png")
    width, height = Image.open(io.BytesIO(png)).size
    assert width == pytest.approx(300 * drawing.get_figwidth(), abs=2)
    assert 300 < height < 300 * 12
    for ax in panels(drawing):
        assert max(image_of(ax).shape[:2]) <= 1000
        box = ax.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


def test_overlay_is_strongest_where_the_map_is(record: CamRecord) -> None:
    """A map of one bright unit: that corner has the map's last colour, the far one its first."""
    one = changed(record, [[[0, 0], [0, 9]], [[7, 0], [0, 0]]])
    first = image_of(panels(figure(one))[1])
    corner = one.views[0].geometry.seen[:2]
    laid = one.views[0].on_source("layer4")
    bright = np.unravel_index(np.nanargmax(laid), laid.shape)
    last = np.array(colormaps[MAP_COLOURS](1.0)[:3])
    np.testing.assert_allclose(first[bright], 0.72 * 255 * last + 0.28 * _grey(one)[bright], atol=1.5)
    none = np.array(colormaps[MAP_COLOURS](0.0)[:3])
    np.testing.assert_allclose(first[corner], 0.30 * 255 * none + 0.70 * _grey(one)[corner], atol=1.5)
    assert min(bright) > 30  # unit (1, 1) sits in the middle of the input, at 32 of 64


def _grey(record: CamRecord) -> np.ndarray:
    return np.rint(record.picture.rgb @ np.array([0.299, 0.587, 0.114]))


def test_overlays_do_not_depend_on_a_maps_unit(record: CamRecord) -> None:
    """Each is divided by its own maximum: a thousandfold map looks the same."""
    small, large = changed(record, [[[1, 2], [3, 4]]] * 2), changed(record, [[[1000, 2000], [3000, 4000]]] * 2)
    np.testing.assert_array_equal(image_of(panels(figure(small))[1]), image_of(panels(figure(large))[1]))


def test_difference_has_a_symmetric_scale_and_the_right_signs(record: CamRecord) -> None:
    sides = changed(record, [[[1, 0], [1, 0]], [[0, 1], [0, 1]]])
    ax = Figure().add_subplot()
    assert draw_difference(ax, sides, "layer4")
    difference = sides.difference("layer4")
    assert difference is not None
    even = 1 / np.isfinite(difference).sum()
    assert any(f"± {np.nanmax(np.abs(difference)) / even:.2g}" in text.get_text() for text in ax.texts)
    shown = image_of(ax).astype(int)
    y0, x0, _, x1 = sides.views[0].geometry.seen
    purple, orange = shown[y0 + 1, x0], shown[y0 + 1, x1 - 1]  # the first network's, the second's
    assert purple[2] > purple[1]
    assert orange[0] > orange[2]
    bars = [ax for ax in figure(sides).axes if not ax.images]
    labels = [text.get_text() for ax in bars for text in ax.get_xticklabels()]
    assert "more ResNet" in labels
    assert "more Res2Net" in labels
    assert [ax.get_xlim() for ax in bars] == [(0, 1), (-1, 1)]


def test_constant_maps_are_said_and_not_drawn(record: CamRecord) -> None:
    one = changed(record, [[[-1, -2], [-3, -1]], [[1, 0], [0, 0]]])
    drawing = figure(one)
    _, first, second, difference = panels(drawing)
    assert colourfulness(image_of(first)).max() == 0
    assert colourfulness(image_of(second)).max() > 0
    assert "constant map:\nnothing to show" in texts(drawing)
    assert "no difference:\na map is constant" in texts(drawing)
    assert colourfulness(image_of(difference)).max() == 0
    assert not any("more Res" in text for text in texts(drawing))  # no bar for what is not drawn


def test_a_map_that_is_zero_wherever_the_picture_is(record: CamRecord) -> None:
    """A picture of one pixel lies between the map's units; the bright one may be elsewhere."""
    bright = np.zeros((4, 4))
    bright[3, 3] = 1
    one = changed(explain(photo(1, 1), pair(), layers=("layer3",)), [bright, bright])
    assert np.nanmax(one.views[0].on_source("layer3")) == 0
    assert not one.views[0].map("layer3").constant
    render(figure(one), "png")
    render(grid([one]), "png")


def test_random_weights_are_written_over_every_figure() -> None:
    one = explain(photo(), pair(kind="random"))
    drawing = figure(one)
    assert texts(drawing).count("random weights") == 2
    assert any("RANDOM WEIGHTS" in text for text in texts(drawing))
    still = changed(one, [np.zeros((2, 2))] * 2)
    assert any("RANDOM WEIGHTS" in text for text in texts(figure(still)))
    assert any("random weights" in text for text in texts(grid([one])))
    assert any("RANDOM WEIGHTS" in text for text in texts(grid([one])))


def test_a_region_is_outlined_and_its_share_said(record: CamRecord) -> None:
    size = record.picture.rgb.shape[:2]
    box = dataclasses.replace(record, region=box_region((20, 10, 70, 60), size))
    drawing = figure(box)
    inside = box.inside(box.views[0], "layer4")
    assert inside is not None
    assert inside.seen == 1
    assert str(inside) == f"{100 * inside.share:.1f}% inside (chance {100 * inside.chance:.1f}%)"
    assert str(inside) in texts(drawing)
    for ax in panels(drawing):
        corners = {(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in ax.patches}
        assert (20, 10, 50, 50) in corners
    masks = [np.ones(size, bool), np.eye(*size, dtype=bool), np.arange(size[0] * size[1]).reshape(size) == 17]
    for mask in masks:
        render(figure(dataclasses.replace(record, region=mask_region(mask, size))), "png")


def test_what_was_not_seen_is_dimmed(record: CamRecord) -> None:
    wide = explain(np.zeros((60, 120, 3), dtype=np.uint8), pair())
    source = image_of(panels(figure(wide))[0])
    _, x0, _, x1 = wide.views[0].geometry.seen
    assert source[:, :x0].min() > 150
    assert source[:, x0:x1].max() == 0


def test_draw_map_returns_its_axes(record: CamRecord) -> None:
    ax = Figure().add_subplot()
    assert draw_map(ax, record, record.views[0], "layer4") is ax


def test_grid_has_a_column_for_each_picture(record: CamRecord) -> None:
    records = [explain(photo(60, 90, seed), pair()) for seed in range(3)]
    drawing = grid(records)
    assert len(panels(drawing)) == 9
    assert {"picture", "ResNet tiny", "Res2Net tiny"} <= set(texts(drawing))
    with pytest.raises(OutputError, match="a grid of no pictures cannot be drawn"):
        grid([])


# --- names are only names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_names(record: CamRecord, text: str) -> None:
    named = changed(
        dataclasses.replace(
            record, picture=dataclasses.replace(record.picture, name=text), notes=(text,), method_title=text
        ),
        title=text,
        target=dataclasses.replace(record.views[0].target, label=text),
        top=tuple(dataclasses.replace(score, label=text) for score in record.views[0].top),
        weights={**record.views[0].weights, "source": text},
    )
    drawing = figure(named)
    png = Image.open(io.BytesIO(render(drawing, "png", provenance=provenance(named))))
    png.load()
    assert png.width < 2200  # no name makes a figure grow
    assert png.height < 4000
    for artist in drawing.findobj(lambda artist: hasattr(artist, "get_parse_math")):
        assert not (artist.get_visible() and artist.get_text().strip() and artist.get_parse_math()), artist
    assert not any("\n" in line and line not in _OUR_OWN for line in texts(drawing))
    render(grid([named]), "png")
    shown = html(named)
    assert "<script>" not in shown
    assert shown.count("<tr>") == 3


_OUR_OWN = {"constant map:\nnothing to show", "no difference:\na map is constant"}


def test_html_escapes(record: CamRecord) -> None:
    named = changed(
        dataclasses.replace(record, picture=dataclasses.replace(record.picture, name='"><img src=x onerror=alert(1)>')),
        title="<b>T</b>",
    )
    shown = html(named)
    assert "<b>" not in shown
    assert "&lt;b&gt;T&lt;/b&gt;" in shown
    assert "<img src=x" not in shown
    assert 'alt="Class activation maps of &quot;&gt;&lt;img' in shown


# --- several methods or targets --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several() -> dict[str, CamRecord]:
    """The same networks' maps of one picture, by method."""
    picture = decode(photo(71, 95), name="photo.jpg")
    return {name: explain(picture, pair(), method=name) for name in ("gradcam", "layercam", "saliency", "random")}


def heads(drawing: Figure) -> list[list[str]]:
    """What stands above each picture, top line first."""
    return [[text.get_text() for text in reversed(ax.texts) if text.get_text()] for ax in panels(drawing)]


def test_a_panel_has_a_column_per_record_and_a_row_per_network(several: dict[str, CamRecord]) -> None:
    records = list(several.values())
    drawing = panel(records)
    assert len(panels(drawing)) == 1 + 2 * len(records)
    places = [ax.get_position() for ax in panels(drawing)]
    assert len({round(place.x0, 4) for place in places}) == 1 + len(records)
    assert len({round(place.y0, 4) for place in places}) == 2
    source, *cells = panels(drawing)
    np.testing.assert_array_equal(image_of(source)[35, 47], records[0].picture.rgb[35, 47])
    for number, record in enumerate(records):
        # A cell is what the single figure shows of the same map.
        single = panels(figure(record))
        for row in range(2):
            np.testing.assert_array_equal(image_of(cells[2 * number + row]), image_of(single[1 + row]))
        assert heads(drawing)[1 + 2 * number] == [
            record.method_title,
            f"ρ {record.agreement(record.layers[-1]).spearman:.2f}",  # type: ignore[union-attr]
        ]
    said = " ".join(texts(drawing))
    assert "4 methods for" in said
    assert "at layer4 and the input. Each map is divided by its own maximum, maps of pixels by their 99th" in said
    for title in ("ResNet tiny", "Res2Net tiny"):
        assert title in texts(drawing)


def test_columns_are_headed_by_what_differs(several: dict[str, CamRecord]) -> None:
    picture = several["gradcam"].picture
    named = [explain(picture, pair(), method=name, target=target) for name in ("gradcam", "layercam")
             for target in ("cat", "cat vs dog")]  # fmt: skip
    both = panel(named)
    assert [lines[:2] for lines in heads(both)[1::2]] == [
        [title, target] for title in ("Grad-CAM", "Layer-CAM") for target in ("cat", "cat vs dog")
    ]
    assert "2 methods for 2 targets at layer4" in " ".join(texts(both))
    by_target = panel(named[:2])
    assert [lines[0] for lines in heads(by_target)[1::2]] == ["cat", "cat vs dog"]
    assert "Grad-CAM for 2 targets" in " ".join(texts(by_target))
    assert "cat" not in [line for lines in heads(panel([named[0], named[2]]))[1:] for line in lines]


def test_a_panel_says_what_is_missing_and_that_maps_are_constant(several: dict[str, CamRecord]) -> None:
    flat = changed(several["gradcam"], raws=[np.zeros((2, 2))] * 2)
    drawing = panel([flat, several["layercam"]], missing=["CAM (no linear head)"], digest="f" * 64)
    assert texts(drawing).count("constant") == 2
    said = " ".join(texts(drawing))
    assert "Not drawn: CAM (no linear head)." in said
    assert f"· {'f' * 16}" in said


SIZES = {"usual": (60, 90), "wide": (40, 400), "tall": (400, 40), "tiny": (1, 1), "line": (1, 90), "column": (90, 1)}


@pytest.mark.parametrize("count", [2, 9, 22])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_nothing_in_a_panel_overlaps_or_is_cut(size: tuple[int, int], count: int) -> None:
    networks = pair() if count != 2 else [network()]
    first = explain(decode(photo(*size), name="a rather long name of a picture.jpg"), networks)
    title = "A method with words in its very long name"
    records = [dataclasses.replace(first, method=f"m{n}", method_title=f"{title} {n}") for n in range(count)]
    drawing = panel(records)
    drawing.draw_without_rendering()
    renderer = drawing.canvas.get_renderer()  # type: ignore[attr-defined]
    assert drawing.get_figwidth() <= 7.01
    page = drawing.bbox
    boxes = [text.get_window_extent(renderer) for ax in panels(drawing) for text in ax.texts if text.get_text()]
    boxes += [text.get_window_extent(renderer) for text in drawing.texts]
    frames = [ax.get_window_extent(renderer) for ax in panels(drawing)]
    for number, box in enumerate(boxes):
        assert page.x0 - 1 <= box.x0
        assert box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0
        assert box.y1 <= page.y1 + 1
        for other in [*boxes[number + 1 :], *frames]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            up = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert not (across > 2 and up > 4), (box, other)  # descenders may touch


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_equal_panels_give_equal_bytes(several: dict[str, CamRecord], kind: str) -> None:
    found = Panel(tuple(several.values()), (Missing("cam", "CAM", "model", "no linear head"),))
    first, second = (render(drawing, kind, provenance=said) for drawing, said in (drawn(found), drawn(found)))
    assert first == second


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_names_in_a_panel(several: dict[str, CamRecord], text: str) -> None:
    records = [
        changed(dataclasses.replace(one, method_title=text), title=text + str(number))
        for number, one in enumerate(several.values())
    ]
    records = [changed(one, title=text) for one in records]
    drawing, said = drawn(Panel(tuple(records), (Missing(text, text, "model", text),)))
    assert render(drawing, "png", provenance=said).startswith(b"\x89PNG")
    assert json.loads(said)["records"][0]["method"] == "gradcam"


def test_maps_of_pixels_are_drawn_up_to_their_99th_percentile(several: dict[str, CamRecord]) -> None:
    raw = np.zeros((64, 64), dtype=np.float32)
    raw[:32] = np.linspace(0.1, 1, 32 * 64).reshape(32, 64)
    raw[0, 0] = 1e6  # one pixel beside which nothing else would show
    spiked = changed(several["saliency"], raws=[raw, raw])
    bounded = changed(several["saliency"], raws=[np.minimum(raw, 2), np.minimum(raw, 2)])
    shown, calm = (image_of(panels(figure(one))[1]).astype(int) for one in (spiked, bounded))
    assert np.quantile(np.abs(shown - calm), 0.98) <= 2  # all but the pixel and those interpolated from it
    assert colourfulness(shown).max() > 60
    said = " ".join(texts(figure(spiked)))
    assert "Maps of pixels by their 99th percentile" in said
    assert "divided by its own maximum" not in said


# --- captions --------------------------------------------------------------------------------------------------------


def test_a_caption_says_how_far_the_maps_agree(record: CamRecord) -> None:
    assert f"The two maps agree with {record.agreement('layer4')}." in " ".join(texts(figure(record)))
    own = explain(photo(), [network(labels=tuple("abcdefghij")), network("res2net_tiny")], target="top1")
    assert "agree" not in " ".join(texts(figure(own)))


def test_a_caption_says_what_departs_from_the_defaults(record: CamRecord) -> None:
    plain = " ".join(texts(figure(record)))
    asked = explain(
        decode(photo(71, 95)), pair(), layers=("layer3", "layer4"), fuse="max", smooth=True, channels=3, seed=7
    )
    for drawing in (figure(asked), panel([asked])):
        said = " ".join(texts(drawing))
        for sentence in (
            "Each map is the mean over six flips and zooms of the picture.",
            "max(layer3, layer4): the maximum of the layers' maps, each divided by its own maximum.",
            "Methods that go channel by channel took the 3 most varying ones.",
            "What is random was drawn from seed 7.",
        ):
            assert sentence in said
            assert sentence not in plain
    assert json.loads(provenance(asked))["settings"] == {"fuse": "max", "smooth": True, "channels": 3, "seed": 7}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_equal_records_give_equal_bytes(record: CamRecord, kind: str) -> None:
    again = explain(decode(photo(71, 95), name="photo.jpg"), pair())
    first, second = (render(figure(one), kind, provenance=provenance(one)) for one in (record, again))
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind])


def test_png_says_what_it_was_made_from(record: CamRecord) -> None:
    placed = dataclasses.replace(record, picture=dataclasses.replace(record.picture, path="/home/somebody/photo.jpg"))
    png = Image.open(io.BytesIO(render(figure(placed), "png", provenance=provenance(placed))))
    png.load()
    said = json.loads(png.text["r2viz"])
    assert png.info["dpi"] == (pytest.approx(300, abs=0.1),) * 2
    assert said["digest"] == record.digest
    assert said["picture"] == {"name": "photo.jpg", "sha256": record.picture.sha256}
    assert [one["model"] for one in said["networks"]] == ["resnet_tiny", "res2net_tiny"]
    assert said["networks"][0]["weights"]["sha256"] == record.views[0].weights["sha256"]
    assert said["versions"] == dict(record.versions)
    assert "somebody" not in png.text["r2viz"]
    assert "Creation Time" not in png.text


def test_png_text_holds_any_letters(record: CamRecord) -> None:
    named = dataclasses.replace(record, picture=dataclasses.replace(record.picture, name="写真 – ü" * 500))
    png = Image.open(io.BytesIO(render(figure(named), "png", provenance=provenance(named))))
    png.load()
    assert json.loads(png.text["r2viz"])["picture"]["name"] == named.picture.name


def test_unknown_kind_of_file(record: CamRecord) -> None:
    with pytest.raises(OutputError, match="no figure format 'gif'; there are png, pdf and svg"):
        render(figure(record), "gif")


def test_pyplot_is_not_imported_nor_torch() -> None:
    script = (
        "import sys, r2viz.figures, r2viz.store, r2viz.summary; "
        "print([name for name in ('matplotlib.pyplot', 'torch', 'torchvision', 'tkinter') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_global_state_is_touched(record: CamRecord) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for kind in ("png", "svg"):
        render(figure(record), kind)
    assert dict(matplotlib.rcParams) == before


# --- Accuracy against cost -------------------------------------------------------------------------------------------


def crowd(count: int, seed: int = 0) -> list[Point]:
    """Networks that stand close together, as in the paper's tables."""
    rng = np.random.default_rng(seed)
    return [
        Point(
            f"Res2Net-50 {number}w" if number % 2 else f"ResNet-50 {number}",
            accuracy=78 + float(rng.normal(0, 1)),
            macs=int(4.2e9 + rng.normal(0, 4e8)),
            params=int(25e6 + rng.normal(0, 2e6)),
            data="ImageNet-1k",
            res2net=bool(number % 2),
        )
        for number in range(count)
    ]


def boxes_of_names(drawing: Figure) -> list[tuple[Axes, Any]]:
    """Where names stand in the panels, in pixels; a leader has no text."""
    renderer = drawing.canvas.get_renderer()  # type: ignore[attr-defined]
    return [(ax, text.get_window_extent(renderer)) for ax in drawing.axes for text in ax.texts if text.get_text()]


@pytest.mark.parametrize("count", [2, 12, 20])
def test_names_overlap_neither_each_other_nor_markers(count: int) -> None:
    points = crowd(count)
    drawing = tradeoff(points, [(points[0].label, points[1].label)])
    drawing.draw_without_rendering()
    found = boxes_of_names(drawing)
    assert len(found) == 2 * count
    for number, (ax, box) in enumerate(found):
        assert ax.bbox.x0 <= box.x0 < box.x1 <= ax.bbox.x1
        assert ax.bbox.y0 <= box.y0 < box.y1 <= ax.bbox.y1
        assert not any(box.overlaps(other) for _, other in found[number + 1 :])
        for line in ax.lines:
            if line.get_marker() != "None":
                x, y = ax.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
                assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)


def test_markers_say_what_is_printed_and_what_is_measured() -> None:
    printed = crowd(2)
    measured = [dataclasses.replace(one, interval=(one.accuracy - 1, one.accuracy + 1)) for one in printed]
    elsewhere = dataclasses.replace(measured[0], data="tiny", accuracy=44.0, interval=(42.0, 46.0), params=None)
    pair = (printed[0].label, printed[1].label)
    drawing = tradeoff([*printed, *measured, elsewhere], [pair], note="a $note$")
    first = drawing.axes[0]
    markers = [line for line in first.lines if line.get_marker() != "None"]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [True, True, False, False]
    assert len({(line.get_marker(), line.get_markeredgecolor()) for line in markers}) == 2
    assert [line.get_xdata()[0] for line in markers] == [one.macs / 1e9 for one in [*printed, *measured]]  # type: ignore[operator]
    bars = [part.get_segments()[0][:, 1].tolist() for part in first.collections]
    assert bars == [list(one.interval) for one in measured]  # type: ignore[arg-type]
    assert len([line for line in first.lines if line.get_marker() == "None"]) == 1
    assert len(drawing.axes) == 4  # a row for each data set
    assert not drawing.axes[3].axison  # nobody counted its parameters
    assert sorted(text.get_text() for text in first.texts if text.get_text()) == sorted(pair)
    assert "a $note$" in texts(drawing)


def test_a_small_difference_does_not_fill_the_panel() -> None:
    points = [dataclasses.replace(one, macs=1000 + i, params=1000 + i) for i, one in enumerate(crowd(2))]
    low, high = tradeoff(points).axes[0].get_xlim()
    assert high - low > 0.2 * 1000 / 1e6


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_equal_points_give_equal_bytes(kind: str) -> None:
    points = crowd(6)
    pages = [render(tradeoff(points), kind, provenance=described(points)) for _ in range(2)]
    assert pages[0] == pages[1]
    assert render(tradeoff(crowd(6, seed=1)), kind, provenance=described(points)) != pages[0]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_networks_of_any_name(name: str) -> None:
    points = [dataclasses.replace(one, label=name + str(i), data=name) for i, one in enumerate(crowd(3))]
    assert render(tradeoff(points, note=name), "png", provenance=described(points)).startswith(b"\x89PNG")


def test_no_cost_no_figure() -> None:
    with pytest.raises(OutputError, match="no network of these tables has both an accuracy and a counted cost"):
        tradeoff([dataclasses.replace(crowd(1)[0], macs=None, params=None)])
