"""A map held against the object, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2viz.coverage import Box, Region, box_region, energy_inside, mask_region, read_mask
from r2viz.errors import BadImage, BadRegion


def test_box_covers_the_pixels_whose_centres_it_holds() -> None:
    region = box_region((1, 2, 4, 3), (5, 6))
    expected = np.zeros((5, 6), dtype=bool)
    expected[2, 1:4] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert region.box == (1, 2, 4, 3)
    assert region.name == "1,2,4,3"
    # Pixel 1's centre is at 1.5 from the edge: x0 = 1.4 takes it in, x0 = 1.6 does not; x1 likewise.
    assert list(np.flatnonzero(box_region((1.4, 0, 3.5, 5), (5, 6)).mask[0])) == [1, 2]
    assert list(np.flatnonzero(box_region((1.6, 0, 3.6, 5), (5, 6)).mask[0])) == [2, 3]


def test_boxes_side_by_side_share_no_pixel() -> None:
    for cut in (2, 2.25, 2.5, 2.75):
        left, right = box_region((0, 0, cut, 4), (4, 6)).mask, box_region((cut, 0, 6, 4), (4, 6)).mask
        assert not (left & right).any()
        assert (left | right).all()


def test_box_of_the_whole_picture() -> None:
    assert box_region((0, 0, 6, 5), (5, 6)).mask.all()


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((3, 0, 1, 4), "the box 3,0,1,4 is empty; expected x0,y0,x1,y1 with x0 < x1 and y0 < y1"),
        ((0, 4, 3, 1), "is empty"),
        ((2, 2, 2, 4), "is empty"),
        ((0, 0, float("nan"), 4), "is empty"),
        ((0, 0, float("inf"), 4), "is empty"),
        ((-1, 0, 3, 4), "the box -1,0,3,4 leaves the picture, which is 6 wide and 5 high"),
        ((0, 0, 7, 4), "leaves the picture"),
        ((0, 0, 5, 6), "leaves the picture"),  # width and height mixed up
        ((1.6, 0, 2.4, 5), "holds no pixel centre; make it at least one pixel wide and high"),
    ],
)
def test_wrong_boxes(box: Box, says: str) -> None:
    with pytest.raises(BadRegion) as caught:
        box_region(box, (5, 6))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mask_types() -> None:
    marked = np.zeros((4, 6), dtype=bool)
    marked[1:3, 2:5] = True
    grey = np.where(marked, 200, 100).astype(np.uint8)
    for mask in (marked, grey, np.repeat(grey[:, :, None], 3, axis=2), np.where(marked, 0.6, 0.4), marked.astype(int)):
        np.testing.assert_array_equal(mask_region(mask, (4, 6)).mask, marked)


def test_wrong_masks() -> None:
    with pytest.raises(BadRegion, match="the mask m is 6 x 4, but the picture is 4 x 6; they must be equal"):
        mask_region(np.ones((4, 6), dtype=bool), (6, 4), "m")
    with pytest.raises(BadRegion, match="the mask m marks no pixel; the object is white"):
        mask_region(np.zeros((4, 6), dtype=np.uint8), (4, 6), "m")
    with pytest.raises(BadRegion, match="marks no pixel"):
        mask_region(np.ones((4, 6), dtype=np.uint8), (4, 6))  # labels 0 and 1, which a viewer shows as black


def test_mask_files(tmp_path: Path) -> None:
    marked = np.zeros((40, 60), dtype=np.uint8)
    marked[10:30, 5:50] = 255
    Image.fromarray(marked).save(tmp_path / "grey.png")
    Image.fromarray(marked > 0).save(tmp_path / "bilevel.png")
    for name in ("grey.png", "bilevel.png"):
        region = read_mask(tmp_path / name, (40, 60))
        np.testing.assert_array_equal(region.mask, marked > 0)
        assert region.name == name
        assert region.box is None
    with pytest.raises(BadRegion, match=r"the mask grey.png is 60 x 40, but the picture is 61 x 40"):
        read_mask(tmp_path / "grey.png", (40, 61))
    with pytest.raises(BadImage, match="no such file"):
        read_mask(tmp_path / "none.png", (40, 60))


def test_a_cut_out_is_no_mask(tmp_path: Path) -> None:
    """Decoding lays transparency on white, which would make everything but the object the object."""
    rgba = np.zeros((40, 60, 4), dtype=np.uint8)
    rgba[10:30, 5:50] = 255
    Image.fromarray(rgba).save(tmp_path / "cutout.png")
    with pytest.raises(BadRegion, match=r"the mask cutout.png has transparent parts; save it in black and white"):
        read_mask(tmp_path / "cutout.png", (40, 60))


def test_energy_inside_by_hand() -> None:
    map_ = np.array([[1, 2, np.nan], [3, 4, np.nan]], dtype=np.float32)
    mask = np.array([[False, True, True], [False, True, True]])
    inside = energy_inside(map_, Region(mask))
    assert inside.share == pytest.approx(6 / 10)
    assert inside.chance == pytest.approx(2 / 4)  # of the four pixels that were seen


def test_energy_of_an_even_map_is_chance() -> None:
    mask = np.random.default_rng(0).random((31, 47)) > 0.8
    inside = energy_inside(np.full((31, 47), 0.25, dtype=np.float32), Region(mask))
    assert inside.share == pytest.approx(inside.chance)
    assert inside.chance == pytest.approx(mask.mean())


def test_energy_without_mass_or_sight() -> None:
    region = Region(np.ones((2, 2), dtype=bool))
    assert np.isnan(energy_inside(np.zeros((2, 2), dtype=np.float32), region).share)
    unseen = energy_inside(np.full((2, 2), np.nan, dtype=np.float32), region)
    assert np.isnan(unseen.share)
    assert unseen.chance == 0


def test_sums_do_not_drown_in_single_precision() -> None:
    map_ = np.full((5000, 4000), 0.1, dtype=np.float32)
    mask = np.zeros((5000, 4000), dtype=bool)
    mask[:, :1000] = True
    assert energy_inside(map_, Region(mask)).share == pytest.approx(0.25, abs=1e-9)


def test_what_the_crop_cut_away_is_said() -> None:
    """A share of nothing that the network saw is no finding."""
    map_ = np.full((4, 8), np.nan, dtype=np.float32)
    map_[:, 2:6] = 1
    cut = energy_inside(map_, box_region((4, 0, 8, 4), (4, 8)))
    assert cut.seen == 0.5
    assert str(cut) == "50.0% inside (chance 50.0%), 50% of the object cropped away"
    assert str(energy_inside(map_, box_region((6, 0, 8, 4), (4, 8)))) == "the object lies outside the crop"
