"""Data sets with boxes and masks: every layout is written here by hand and read back."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from r2viz.coverage import Region
from r2viz.datasets import open_dataset
from r2viz.datasets.grabcut import grabcut
from r2viz.datasets.located import Located
from r2viz.datasets.scenes import _largest_empty, background, compose, cutout, pink, scenes, whole
from r2viz.errors import BadData, BadImage, BadRegion
from r2viz.image import decode

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def scene(tmp_path):
    """A picture of a red ellipse on grey, its mask, and its box with x1 and y1 exclusive."""
    rgb = np.full((40, 60, 3), 120, np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    cv2.ellipse(mask, (30, 18), (14, 9), 0, 0, 360, 1, -1)
    rgb[mask > 0] = (200, 30, 20)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rgb, mask > 0, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def encoded(values):
    return cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def only(dataset):
    (entry,) = dataset
    return entry.open()


def box_mask(box, size):
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_parquet_boxes_are_inclusive_pixels(tmp_path, scene):
    rgb, _, (x0, y0, x1, y1) = scene
    rows = {"image": [encoded(rgb)], "wnid": ["n02410509"], "file_name": ["a.png"]}
    rows |= {"x_min": [x0], "y_min": [y0], "x_max": [x1 - 1], "y_max": [y1 - 1]}
    pq.write_table(pa.table(rows), tmp_path / "val.parquet")
    found = open_dataset(tmp_path)
    assert (found.kind, len(found)) == ("box", 1)
    located = only(found)
    assert (located.name, located.label, located.boxes) == ("a.png", "n02410509", ((x0, y0, x1, y1),))
    assert np.array_equal(located.region.mask, box_mask((x0, y0, x1, y1), (40, 60)))


def test_parquet_masks(tmp_path, scene):
    rgb, mask, box = scene
    pq.write_table(
        pa.table({"image": [encoded(rgb)], "mask": [encoded(mask.astype(np.uint8) * 255)]}), tmp_path / "a.parquet"
    )
    located = only(open_dataset(tmp_path / "a.parquet"))
    assert located.kind == "mask"
    assert located.label is None
    assert np.array_equal(located.region.mask, mask)
    assert located.boxes == (box,)


def test_parquet_is_read_one_batch_at_a_time_and_bad_rows_go_by(tmp_path, scene):
    rgb, _, _ = scene
    box = {"x0": [1, 30, 5, None], "y0": [1, 2, 5, None], "x1": [9, 20, 500, None], "y1": [9, 9, 9, None]}
    pq.write_table(pa.table({"image": [encoded(rgb)] * 4, "file_name": list("abcd"), **box}), tmp_path / "v.parquet")
    said = []
    for entry in open_dataset(tmp_path / "v.parquet"):
        try:
            said.append(entry.open().name)
        except BadRegion as error:
            said.append(str(error))
    assert said[0] == "a"
    assert "b: the box 30,2,20,9 is empty" in said[1]
    assert "leaves the picture, which is 60 wide and 40 high" in said[2]
    assert said[3] == "d: has no annotation"


def test_parquet_without_places(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadData, match="has neither a column 'mask' nor x_min"):
        open_dataset(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(BadData, match="no whole Parquet file"):
        open_dataset(tmp_path)


def test_csv_joins_instances_and_marks_bad_lines(tmp_path, scene):
    rgb, _, _ = scene
    for name in ("a.png", "b.png"):
        save(tmp_path / name, rgb)
    with (tmp_path / "objects.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("file", "label", "x0", "y0", "x1", "y1"),
                ("a.png", "dog", 0, 0, 10, 10),
                ("a.png", "dog", 20, 20, 30, 30),
                ("b.png", "dog", 0, 0, 10, "ten"),
                ("c.png", "cat", 0, 0, 10, 10),
            ]
        )
    entries = {entry.name: entry for entry in open_dataset(tmp_path)}
    both = entries["a.png"].open()
    assert both.boxes == ((0, 0, 10, 10), (20, 20, 30, 30))
    assert both.region.mask.sum() == 200
    with pytest.raises(BadRegion, match=r"b.png: line 4: x0, y0, x1, y1 must be numbers"):
        entries["b.png"].open()
    with pytest.raises(BadImage, match="no such file"):
        entries["c.png"].open()


def test_a_file_of_two_classes_is_two_entries(tmp_path, scene):
    save(tmp_path / "a.png", scene[0])
    (tmp_path / "t.csv").write_text("file,label,x0,y0,x1,y1\na.png,dog,0,0,9,9\na.png,cat,9,9,20,20\n")
    assert {entry.name: entry.open().boxes for entry in open_dataset(tmp_path / "t.csv")} == {
        "a.png#dog": ((0, 0, 9, 9),),
        "a.png#cat": ((9, 9, 20, 20),),
    }


XML = """<annotation><object><name>n01440764</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>
</bndbox></object></annotation>"""


def test_voc_counts_from_one(tmp_path, scene):
    rgb, _, box = scene
    save(tmp_path / "JPEGImages/a.png", rgb)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(XML.format(box[0] + 1, box[1] + 1, box[2], box[3]))
    located = only(open_dataset(tmp_path))
    assert located.boxes == (box,)
    assert located.label == "n01440764"


def test_imagenet_finds_pictures_and_boxes_in_other_folders(tmp_path, scene):
    rgb, _, box = scene
    save(tmp_path / "val/n01440764/x_1.png", rgb)
    save(tmp_path / "val/n01440764/x_2.png", rgb)
    boxes = tmp_path / "boxes/val"
    boxes.mkdir(parents=True)
    (boxes / "x_1.xml").write_text(XML.format(*box))
    (boxes / "x_2.xml").write_text("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>")
    (boxes / "x_3.xml").write_text(XML.format(*box))
    first, second, third = open_dataset(tmp_path / "val", annotations=tmp_path / "boxes")
    assert first.open().boxes == (box,)
    with pytest.raises(BadRegion, match=r"x_2.xml cannot be read"):
        second.open()
    with pytest.raises(BadRegion, match=r"x_3.xml describes a picture that is not there"):
        third.open()


def test_imagenet_s_codes_the_class_in_two_planes(tmp_path, scene):
    rgb, mask, _box = scene
    save(tmp_path / "validation/n01440764/x.png", rgb)
    coded = np.zeros((40, 60, 3), np.uint8)
    coded[mask] = (300 % 256, 300 // 256, 0)
    coded[0] = (1000 % 256, 1000 // 256, 0)
    save(tmp_path / "validation-segmentation/n01440764/x.png", coded)
    located = only(open_dataset(tmp_path))
    assert np.array_equal(located.region.mask, mask)
    assert located.label == "n01440764"
    assert located.ignored is not None
    assert located.ignored[0].all()
    assert located.ignored.sum() == 60


def test_pictures_beside_masks(tmp_path, scene):
    rgb, mask, _ = scene
    save(tmp_path / "dogs/a.png", rgb)
    save(tmp_path / "dogs/a_mask.png", mask.astype(np.uint8) * 255)
    save(tmp_path / "dogs/b.png", rgb)
    save(tmp_path / "dogs/c.png", rgb)
    save(tmp_path / "dogs/c_mask.png", mask[:20].astype(np.uint8) * 255)
    first, second, third = open_dataset(tmp_path)
    assert np.array_equal(first.open().region.mask, mask)
    assert first.label == "dogs"
    with pytest.raises(BadRegion, match=r"there is no b_mask.png beside it"):
        second.open()
    with pytest.raises(BadRegion, match="its mask is 60 x 20, but the picture is 60 x 40"):
        third.open()


def test_coco_polygons_runs_and_crowds(tmp_path, scene):
    coding = pytest.importorskip("pycocotools.mask")
    rgb, mask, _ = scene
    save(tmp_path / "images/a.png", rgb)
    crowd = np.zeros((40, 60), np.uint8, order="F")
    crowd[30:] = 1
    run = coding.encode(crowd)
    run["counts"] = run["counts"].decode()
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    packed = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": [2, 2, 8, 8], "segmentation": square},
            {"id": 2, "image_id": 1, "category_id": 8, "iscrowd": 0, "bbox": [16, 9, 29, 19], "segmentation": packed},
            {"id": 3, "image_id": 1, "category_id": 8, "iscrowd": 1, "bbox": [0, 30, 60, 10], "segmentation": run},
        ],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances.json"
    path.write_text(json.dumps(document))
    dog, cat = (entry.open() for entry in open_dataset(path))
    assert (dog.name, dog.label) == ("a.png#dog", "dog")
    assert np.array_equal(dog.region.mask, box_mask((2, 2, 10, 10), (40, 60)))
    assert np.array_equal(cat.region.mask, mask)
    assert cat.ignored is not None
    assert np.array_equal(cat.ignored, (crowd > 0) & ~mask)
    with pytest.raises(BadData, match=r"its first picture 'a.png' is not in"):
        open_dataset(path, pictures=tmp_path / "annotations")


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(BadData, match="there is no such folder or file"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(BadData, match="no annotations were found"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadData, match=r"ends in .parquet, .csv or .json"):
        open_dataset(tmp_path / "a.txt")


def test_a_sample_is_the_same_every_time():
    dataset = open_dataset(EXAMPLES)
    names = [entry.name for entry in dataset.sample(4, seed=3)]
    assert names == [entry.name for entry in dataset.sample(4, seed=3)]
    assert len(names) == 4
    assert names != [entry.name for entry in dataset.sample(4, seed=4)]
    assert len(dataset.sample(None)) == 12


def test_the_shipped_objects_are_whole():
    for entry in open_dataset(EXAMPLES):
        located = entry.open()
        (x0, y0, x1, y1) = located.boxes[0]
        assert located.kind == "mask"
        assert located.label
        rows, columns = np.flatnonzero(located.region.mask.any(1)), np.flatnonzero(located.region.mask.any(0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x0, y0, x1, y1), entry.name


def test_grabcut_finds_the_ellipse_and_is_called_a_guess(tmp_path, scene):
    rgb, mask, box = scene
    found = grabcut(rgb, [box])
    assert (found & mask).sum() / (found | mask).sum() > 0.95
    assert np.array_equal(found, grabcut(rgb, [box]))
    save(tmp_path / "a.png", rgb)
    (tmp_path / "objects.csv").write_text("file,x0,y0,x1,y1\na.png," + ",".join(map(str, box)) + "\n")
    guessed = open_dataset(tmp_path).with_grabcut()
    assert guessed.kind == "pseudo-mask"
    assert only(guessed).kind == "pseudo-mask"
    with pytest.raises(BadData, match="has masks already"):
        open_dataset(EXAMPLES).with_grabcut()


# --- Composed scenes


def located(scene, name="a"):
    rgb, mask, box = scene
    return Located(name, decode(rgb), "dog", Region(mask), (box,), "mask")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.1, 0.9)])
def test_a_composed_object_has_its_share_its_place_and_its_colour(scene, share, middle):
    rgb, mask = compose(cutout(located(scene)), pink((90, 110), seed=1), share=share, middle=middle, size=(90, 110))
    assert mask.mean() == pytest.approx(share, rel=0.12)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if middle == (0.5, 0.5):
        assert abs((rows[0] + rows[-1]) / 2 - 44.5) <= 1
        assert abs((columns[0] + columns[-1]) / 2 - 54.5) <= 1
    else:
        assert rows[0] < 25
        assert columns[-1] > 84
    inner = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)  # its edge is mixed
    if share > 0.01:
        assert inner.any()
    assert np.abs(rgb[inner].astype(int) - (200, 30, 20)).sum() == 0  # nothing of its old background is left


def test_outside_the_object_the_background_stays(scene):
    field = pink((90, 110), seed=1)
    rgb, mask = compose(cutout(located(scene)), field, share=0.1, middle=(0.5, 0.5), size=(90, 110))
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert np.array_equal(rgb[far], field.rgb[far])


def test_an_object_that_does_not_fit_is_refused(scene):
    with pytest.raises(BadRegion, match="choose a smaller share"):
        compose(cutout(located(scene)), pink((50, 50), seed=0), share=0.9, middle=(0.5, 0.5), size=(50, 50))


def test_scenes_change_in_size_only_and_are_the_same_every_time():
    objects = [entry.open() for entry in open_dataset(EXAMPLES)]
    found = scenes(objects, shares=(0.05, 0.2), places=((0.5, 0.5),), backgrounds=2, size=(64, 64), seed=1)
    again = scenes(objects, shares=(0.05, 0.2), places=((0.5, 0.5),), backgrounds=2, size=(64, 64), seed=1)
    assert [one.name for one in found] == [one.name for one in again]
    small, big = list(found)[:2]
    assert small.item == big.item
    assert (small.share, big.share) == (0.05, 0.2)
    assert small.open().share == pytest.approx(0.05, rel=0.1)
    assert big.open().share == pytest.approx(0.2, rel=0.1)
    assert {one.label for one in found} >= {"bison", "hog", "koala"}
    cut_off = {one.name for one in objects if not whole(one)}
    assert cut_off == {"cat.jpg", "military_uniform.jpg", "red_panda.jpg", "viaduct_wide.jpg"}
    assert not cut_off & {one.cutout.name for one in found}
    assert all(one.background.name != one.cutout.name for one in found)


def test_guessed_masks_are_not_cut_out(scene):
    rgb, mask, box = scene
    guessed = Located("a", decode(rgb), None, Region(mask), (box,), "pseudo-mask")
    with pytest.raises(BadRegion, match="scenes need exact masks"):
        cutout(guessed)
    with pytest.raises(BadData, match="no scene can be composed"):
        scenes([guessed])


def test_the_largest_empty_rectangle_against_trying_all():
    chance = np.random.default_rng(0)
    for _ in range(30):
        mask = chance.random((7, 9)) < 0.3
        best = max(
            (y1 - y0) * (x1 - x0)
            for y0 in range(8)
            for y1 in range(y0, 8)
            for x0 in range(10)
            for x1 in range(x0, 10)
            if not mask[y0:y1, x0:x1].any()
        )
        y0, x0, y1, x1 = _largest_empty(mask)
        assert not mask[y0:y1, x0:x1].any()
        assert (y1 - y0) * (x1 - x0) == best


def test_a_background_holds_nothing_of_the_object():
    shown = [entry.open() for entry in open_dataset(EXAMPLES)]
    pieces = {one.name: piece for one in shown if (piece := background(one)) is not None}
    assert pieces["hog.jpg"].rgb.shape == (480, 248, 3)
    assert "viaduct_wide.jpg" not in pieces


@pytest.mark.shared
def test_ecssd_has_masks(shared):
    dataset = open_dataset(shared / "data/ecssd")
    assert (dataset.kind, len(dataset)) == ("mask", 700)
    shares = [entry.open().share for entry in dataset.sample(60)]
    assert 0.1 < float(np.median(shares)) < 0.3
