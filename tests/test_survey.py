"""A data set through networks: every number against one picture at a time by the public calls."""

from pathlib import Path

import numpy as np
import pytest

import r2viz
from r2viz.coverage import centre_gaussian, measure
from r2viz.datasets import open_dataset
from r2viz.datasets.scenes import scenes
from r2viz.errors import BadData, BadRegion, UnknownName
from r2viz.explain import explain
from r2viz.explain.survey import survey

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ["pointing", "energy", "area_coverage_gain", "evenness"]


@pytest.fixture(scope="module")
def pair():
    return r2viz.load_pair("mini")


@pytest.fixture(scope="module")
def found(pair):
    return survey(open_dataset(EXAMPLES), pair, methods=["gradcam", "hirescam"], measures=FEW, batch=5)


def test_rows_are_those_of_one_picture_at_a_time(pair, found):
    assert found.names == tuple(entry.name for entry in open_dataset(EXAMPLES))
    for number, entry in enumerate(open_dataset(EXAMPLES)):
        located = entry.open()
        record = explain(located.picture, pair, method="hirescam", target=located.label)
        for index, view in enumerate(record.views):
            look = found.look(index, "hirescam")
            row = measure(view.on_source(view.maps[0].layer), located.region, measures=FEW)
            for name in FEW:
                assert look.rows.values[name][number] == pytest.approx(row.values[name], abs=2e-3), (entry.name, name)
            assert look.probability[number] == pytest.approx(view.target.probability, abs=1e-4)
            assert look.rows.correct[number] == (view.top[0].label == located.label)


def test_the_gaussian_knows_no_picture(found):
    located = next(iter(open_dataset(EXAMPLES))).open()
    row = measure(centre_gaussian(located.region.mask.shape), located.region, measures=FEW)
    assert {name: found.gaussian.values[name][0] for name in FEW} == row.values


def test_a_part_of_a_survey_is_the_survey_of_a_part(pair, found):
    half = found.area > 0.3
    part = found.take(half)
    assert len(part) == half.sum()
    assert part.names == tuple(np.array(found.names)[half])
    assert np.array_equal(part.look(1).rows.values["energy"], found.look(1).rows.values["energy"][half])
    assert part.digest != found.digest


def test_frame_and_summary(found):
    frame, summary = found.frame(), found.summary()
    assert len(frame) == 12 * (2 * 2 + 1)
    assert set(FEW) <= set(frame.columns)
    assert len(summary) == 5
    means = frame[(frame.model == "res2net26_mini") & (frame.method == "gradcam")]["energy"].mean()
    assert summary.iloc[2]["energy"] == pytest.approx(means)
    assert found.both_right().sum() == (found.look(0).rows.correct & found.look(1).rows.correct).sum()


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path, pair):
    (tmp_path / "text.jpg").write_text("no picture")
    lines = ["file,label,x0,y0,x1,y1", "text.jpg,bison,0,0,9,9"]
    for name, label, box in (
        ("bison.jpg", "bison", "125,58,518,333"),
        ("hog.jpg", "unicorn", "103,108,392,390"),
        ("koala.jpg", "koala", "66,155,900,552"),
    ):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
        lines.append(f"{name},{label},{box}")
    (tmp_path / "objects.csv").write_text("\n".join(lines))
    done = []
    found = survey(open_dataset(tmp_path), pair, measures=["energy"], progress=done.append)
    assert found.names == ("bison.jpg",)
    assert sum(done) == 4
    said = {failure.name: (failure.code, failure.error) for failure in found.failures}
    assert said["text.jpg"][0].startswith("bad_image")
    assert said["hog.jpg"][0] == "bad_target.unknown_class"
    assert "'unicorn' is none of resnet26_mini's 200" in said["hog.jpg"][1]
    assert "leaves the picture" in said["koala.jpg"][1]
    (tmp_path / "bison.jpg").unlink()
    with pytest.raises(BadData, match="none of 4 pictures could be used; the first"):
        survey(open_dataset(tmp_path), pair, measures=["energy"])


def test_shapes_of_boxes_are_refused(tmp_path, pair):
    (tmp_path / "objects.csv").write_text("file,x0,y0,x1,y1\na.png,0,0,1,1\n")
    with pytest.raises(BadRegion, match=r"evenness needs masks, and .* has boxes"):
        survey(open_dataset(tmp_path), pair, measures=["evenness"])
    with pytest.raises(UnknownName, match="no measure 'pointin'; did you mean 'pointing'"):
        survey(open_dataset(tmp_path), pair, measures=["pointin"])
    with pytest.raises(UnknownName, match="no target 'top1' for a data set"):
        survey(open_dataset(tmp_path), pair, target="top1")


def test_composed_scenes_go_through_and_know_their_item(pair):
    shown = [entry.open() for entry in open_dataset(EXAMPLES)]
    composed = scenes(shown, shares=(0.05, 0.3), places=((0.5, 0.5),), backgrounds=1, size=(64, 64))
    found = survey(composed, pair, measures=["area_coverage_gain"])
    assert len(set(found.items)) * 2 == len(found) == len(composed)
    assert found.area[::2] == pytest.approx(0.05, abs=0.01)
    assert found.area[1::2] == pytest.approx(0.3, abs=0.02)


def test_surveys_are_the_same_twice(pair, found):
    again = survey(open_dataset(EXAMPLES), pair, methods=["gradcam", "hirescam"], measures=FEW, batch=5)
    assert again.digest == found.digest
    assert again.frame().equals(found.frame())
