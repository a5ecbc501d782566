"""Geometry and Preprocess: round trips, torchvision's tensors, and places kept to a pixel."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from r2viz.errors import BadImage
from r2viz.geometry import Geometry, Preprocess
from r2viz.image import decode

SIZES = [(480, 640), (500, 375), (333, 257), (257, 333), (224, 224), (256, 256), (1, 1), (2, 3), (41, 48), (97, 1200)]

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
preprocesses = st.sampled_from(
    [
        Preprocess(),
        Preprocess(mode="squash"),
        Preprocess(resize=235),
        Preprocess(crop=None),
        Preprocess(resize=64, crop=(57, 63)),
        Preprocess(resize=None, crop=None),
    ]
)


def geometry_of(preprocess: Preprocess, size: tuple[int, int]) -> Geometry:
    """What `preprocess(rgb)` returns, without the pixels."""
    return Geometry.of_resize_and_crop(size, *preprocess._plan(size))


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_equal_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.models import ResNet50_Weights

    rgb = noise(size)
    tensor, geometry = Preprocess()(rgb)
    expected = ResNet50_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(rgb))[None]
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, expected)
    assert geometry.source_size == size
    assert geometry.input_size == (224, 224)


@pytest.mark.parametrize("size", [(480, 641), (300, 200)])
def test_bicubic_and_other_crops_equal_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    rgb = noise(size)
    theirs = ImageClassification(crop_size=191, resize_size=235, interpolation=InterpolationMode.BICUBIC)
    tensor, _ = Preprocess(resize=235, crop=(191, 191), interpolation="bicubic")(rgb)
    assert torch.equal(tensor[0], theirs(Image.fromarray(rgb)))


def test_read_only_pictures_are_taken_and_left_alone() -> None:
    rgb = noise((300, 400))
    rgb.setflags(write=False)
    before = rgb.copy()
    Preprocess()(rgb)
    assert (rgb == before).all()


@settings(max_examples=200, deadline=None)
@given(sizes, preprocesses, st.lists(st.floats(-500, 4000), min_size=2, max_size=2))
def test_points_and_boxes_round_trip(size: tuple[int, int], preprocess: Preprocess, point: list[float]) -> None:
    geometry = geometry_of(preprocess, size)
    np.testing.assert_allclose(geometry.to_source(geometry.to_input(point)), point, atol=1e-6, rtol=1e-9)
    np.testing.assert_allclose(geometry.to_input(geometry.to_source(point)), point, atol=1e-6, rtol=1e-9)
    box = [point[0], point[1], point[0] + 7, point[1] + 11]
    np.testing.assert_allclose(geometry.box_to_source(geometry.box_to_input(box)), box, atol=1e-6, rtol=1e-9)


@settings(max_examples=200, deadline=None)
@given(sizes, preprocesses)
def test_seen_is_every_pixel_of_which_the_input_holds_a_part(size: tuple[int, int], preprocess: Preprocess) -> None:
    geometry = geometry_of(preprocess, size)
    y0, x0, y1, x1 = geometry.seen
    for axis, (first, stop) in enumerate([(y0, y1), (x0, x1)]):
        assert 0 <= first < stop <= size[axis]
        edges = (np.arange(size[axis] + 1) - 0.5) * geometry.scale[axis] + geometry.offset[axis] + 0.5
        overlap = np.minimum(edges[1:], geometry.input_size[axis]) - np.maximum(edges[:-1], 0)
        seen = np.zeros(size[axis], dtype=bool)
        seen[first:stop] = True
        assert (overlap[seen] > -1e-6).all()
        assert (overlap[~seen] < 1e-6).all()


def test_the_whole_picture_is_seen_without_a_crop() -> None:
    for preprocess in (Preprocess(mode="squash"), Preprocess(crop=None), Preprocess(resize=None, crop=None)):
        assert geometry_of(preprocess, (333, 500)).seen == (0, 0, 333, 500)


def test_a_known_geometry_in_numbers() -> None:
    # 512x1024 → 256x512 → the middle 224x224: 16 rows and 144 columns are lost at each side, twice that in the source.
    geometry = geometry_of(Preprocess(), (512, 1024))
    assert geometry.seen == (32, 288, 480, 736)
    assert geometry.box_to_source([0, 0, 224, 224]).tolist() == [288, 32, 736, 480]
    assert geometry.box_to_input([288, 32, 736, 480]).tolist() == [0, 0, 224, 224]
    assert geometry.to_input([32.5, 288.5]).tolist() == [0.0, 0.0]


def slow_lay(
    geometry: Geometry, map_: np.ndarray, start: tuple[float, float], jump: tuple[float, float], fill: float
) -> np.ndarray:
    """One pixel after the other, straight from the definition."""
    rows, columns = map_.shape
    laid = np.full(geometry.source_size, float(fill))
    y0, x0, y1, x1 = geometry.seen
    for y in range(y0, y1):
        for x in range(x0, x1):
            in_y, in_x = geometry.to_input([y, x])
            v = min(max((in_y - start[0]) / jump[0], 0), rows - 1)
            u = min(max((in_x - start[1]) / jump[1], 0), columns - 1)
            top, left = math.floor(v), math.floor(u)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            laid[y, x] = (
                map_[top, left] * (1 - (v - top)) * (1 - (u - left))
                + map_[below, left] * (v - top) * (1 - (u - left))
                + map_[top, right] * (1 - (v - top)) * (u - left)
                + map_[below, right] * (v - top) * (u - left)
            )
    return laid


@pytest.mark.parametrize("size", [(61, 47), (30, 100), (1, 1), (5, 3)])
@pytest.mark.parametrize(
    ("units", "start", "jump"),
    [((7, 7), (0.0, 0.0), (32.0, 32.0)), ((7, 5), (15.5, 20.0), (32.0, 40.0)), ((1, 1), (0.0, 0.0), (32.0, 32.0))],
)
def test_lay_equals_a_slow_reference(
    size: tuple[int, int], units: tuple[int, int], start: tuple[float, float], jump: tuple[float, float]
) -> None:
    map_ = np.random.default_rng(1).normal(size=units).astype(np.float32)
    geometry = geometry_of(Preprocess(), size)
    laid = geometry.lay(map_, start=start, jump=jump, fill=-9)
    assert laid.dtype == np.float32
    np.testing.assert_allclose(laid, slow_lay(geometry, map_, start, jump, -9), atol=2e-6)


def test_lay_leaves_the_unseen_as_fill() -> None:
    geometry = geometry_of(Preprocess(), (100, 300))
    laid = geometry.lay(np.ones((7, 7)), start=(0, 0), jump=(32, 32))
    y0, x0, y1, x1 = geometry.seen
    assert np.isnan(laid).sum() == 100 * 300 - (y1 - y0) * (x1 - x0)
    assert (laid[y0:y1, x0:x1] == 1).all()


def test_lay_refuses_what_is_no_map() -> None:
    geometry = geometry_of(Preprocess(), (100, 100))
    with pytest.raises(ValueError, match=r"a map must be \(h, w\) and not empty, not of shape \(1, 7, 7\)"):
        geometry.lay(np.ones((1, 7, 7)), start=(0, 0), jump=(32, 32))
    with pytest.raises(ValueError, match="jump must be positive"):
        geometry.lay(np.ones((7, 7)), start=(0, 0), jump=(0, 32))


def stored(upright: np.ndarray, orientation: int) -> bytes:
    """A PNG whose stored pixels, turned as EXIF's `orientation` says, are `upright`."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's Transpose members
    image = Image.fromarray(upright)
    if undo is not None:
        image = image.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(331, 513), (63, 47)])
@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(mode="squash")], ids=["crop", "squash"])
def test_a_bright_square_stays_at_its_place(size: tuple[int, int], orientation: int, preprocess: Preprocess) -> None:
    """Through EXIF, resize, crop, a stride-4 pooling as a network has it, and back by `lay`."""
    y0, x0, side = int(size[0] * 0.4), int(size[1] * 0.55), max(size) // 12
    upright = np.zeros((*size, 3), dtype=np.uint8)
    upright[y0 : y0 + side, x0 : x0 + side] = 255
    picture = decode(stored(upright, orientation))
    assert (picture.rgb == upright).all()
    tensor, geometry = preprocess(picture.rgb)
    light = tensor.mean(1, keepdim=True) - tensor.mean(1).min()
    # Two passes of (3 wide, stride 2, padding 1) averages: unit i is centred at input pixel 4 i.
    for _ in range(2):
        light = torch.nn.functional.avg_pool2d(light, 3, 2, 1)
    laid = geometry.lay(light[0, 0].numpy(), start=(0, 0), jump=(4, 4), fill=0)
    where = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    centre = [float((axis * laid).sum() / laid.sum()) for axis in where]
    expected = [y0 + (side - 1) / 2, x0 + (side - 1) / 2]
    # Well within the pixel, so that half a pixel of misalignment would show too.
    assert np.abs(np.subtract(centre, expected)).max() < 0.3
    # And the box, mapped as a box, is where the input is bright.
    bx0, by0, bx1, by1 = geometry.box_to_input([x0, y0, x0 + side, y0 + side])
    bright = (tensor[0].mean(0) > (tensor.max() + tensor.min()) / 2).numpy()
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert np.abs([rows[0] - by0, rows[-1] + 1 - by1, columns[0] - bx0, columns[-1] + 1 - bx1]).max() <= 1


def test_twelve_megapixels_are_laid_in_well_under_a_second() -> None:
    import time

    geometry = geometry_of(Preprocess(mode="squash"), (3000, 4000))
    map_ = np.random.default_rng(0).normal(size=(7, 7))
    began = time.perf_counter()
    geometry.lay(map_, start=(0, 0), jump=(32, 32))
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((3, 10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        "cat.jpg",
    ],
)
def test_preprocess_refuses_other_arrays(wrong: object) -> None:
    with pytest.raises(BadImage, match=r"takes an RGB array of uint8 \(H, W, 3\), not .*decode") as caught:
        Preprocess()(wrong)  # type: ignore[arg-type]
    assert caught.value.code == "bad_image.array"


def test_a_picture_smaller_than_the_crop_is_refused_with_a_way_out() -> None:
    with pytest.raises(BadImage, match=r"has 200x100 pixels before the crop, which needs 224x224; .*squash") as caught:
        Preprocess(resize=None)(noise((100, 200)))
    assert caught.value.code == "bad_image.too_small"


def test_impossible_settings_are_refused() -> None:
    for settings_, message in [
        ({"mode": "pad"}, "mode must be"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic"),
        ({"mode": "squash", "crop": None}, "crop must be given"),
        ({"resize": 0}, "at least 1 pixel"),
    ]:
        with pytest.raises(ValueError, match=message):
            Preprocess(**settings_)  # type: ignore[arg-type]


def test_settings_go_through_json() -> None:
    settings_ = json.loads(json.dumps(Preprocess().as_dict()))
    assert settings_["crop"] == [224, 224]
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings_.items()}
    assert Preprocess(**plain) == Preprocess()  # type: ignore[arg-type]
