"""`r2viz.splits`: pictures and names in, a record out; and what the record gives."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import r2viz
from r2viz.errors import BadImage, ModelError, UnknownName
from r2viz.partition.measure import measure
from r2viz.split_records import COLUMNS, CONTROL, FIRST, KINDS, PERMUTED, STATISTICS, SplitRecord
from tests.tiny import network, pair, photo


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photo(seed=seed) for seed in range(8)]


@pytest.fixture(scope="module")
def record(photos) -> SplitRecord:
    return r2viz.splits(photos, pair=pair(), labels=[0, 1] * 4, batch=3)


def test_it_is_what_measuring_each_network_gives(record, photos):
    for model in pair():
        batch = torch.cat([model.preprocess(rgb)[0] for rgb in photos]).contiguous(memory_format=torch.channels_last)
        found = measure(model.module, batch, labels=[0, 1] * 4, name=model.name)
        expected = {(row.split.tap, row.statistic): row.interval for row in found.rows()}
        rows = [row for row in record.rows if row.split.model == model.name]
        assert len(rows) == len(expected)
        for row in rows:
            mine, theirs = row.interval, expected[row.split.tap, row.statistic]
            np.testing.assert_allclose(
                [mine.mean, mine.low, mine.high], [theirs.mean, theirs.low, theirs.high], rtol=2e-3, atol=1e-4
            )


def test_tables_in_long_form(record):
    frame = record.frame()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == len(record.rows)
    assert set(frame["statistic"]) == set(STATISTICS)
    assert set(frame["kind"]) <= set(KINDS)
    shares = frame[(frame["statistic"] == "energy") & (frame["kind"] != PERMUTED)]
    np.testing.assert_allclose(shares.groupby(["model", "stage", "block"])["value"].sum(), 1)
    bounded = frame.dropna(subset=["low", "high"])
    assert len(bounded) > len(frame) / 2
    assert (bounded["low"] <= bounded["value"] + 1e-6).all()
    assert (bounded["value"] <= bounded["high"] + 1e-6).all()
    assert set(frame["n"]) <= set(range(9))


def test_first_of_stage_blocks_are_marked(record):
    kinds = {row.split.kind for row in record.select("mean", model="res2net_tiny")}
    assert kinds == {FIRST}  # the tiny network has one block a stage
    assert record.select("mean", kinds=[CONTROL]) == record.select("mean", model="resnet_tiny", kinds=[CONTROL])
    with pytest.raises(UnknownName, match="the record has no statistic 'men'; did you mean 'mean'"):
        record.select("men")


def test_everything_is_in_the_json(record):
    found = json.loads(json.dumps(record.as_dict(), allow_nan=False))
    assert found["pictures"] == 8
    assert [one["model"] for one in found["networks"]] == ["resnet_tiny", "res2net_tiny"]
    assert len(found["rows"]) == len(record.rows)
    assert len(found["spectra"]) == len(found["histograms"]) == sum(len(one["splits"]) for one in found["networks"])
    between = [one for one in record.likenesses if one.between]
    assert len(between) == 4
    assert len(record.likenesses) == 12
    assert found["digest"] == record.digest
    assert any("cut into 4 groups as the control" in note for note in record.notes)


def test_equal_inputs_give_equal_records(record, photos):
    again = r2viz.splits(photos, pair=pair(), labels=[0, 1] * 4, batch=3)
    assert json.dumps(again.as_dict()) == json.dumps(record.as_dict())
    for changed in ({"labels": [1, 0] * 4}, {"seed": 1}, {"eps": 0.1}):
        other = r2viz.splits(photos, **{"pair": pair(), "labels": [0, 1] * 4, "statistics": ["selectivity"], **changed})
        assert other.digest != record.digest


def test_a_resnet_is_cut_as_finely_as_the_other_network(photos):
    from r2viz.models.blocks import Res2NetBlock
    from r2viz.models.resnet import ResNet

    first, second = pair()
    finer = ResNet(Res2NetBlock, (1, 1, 1, 1), widths=(8, 16, 32, 64), num_classes=10, base_width=32, scale=3).eval()
    from dataclasses import replace

    found = r2viz.splits(photos[:2], pair=[first, replace(second, module=finer)], statistics=["mean"])
    assert {row.split.split for row in found.rows if row.split.kind == CONTROL} == {0, 1, 2}
    assert found.statistics == ("mean",)
    assert not found.spectra
    assert not found.likenesses


def test_families_and_single_statistics(photos):
    found = r2viz.splits(
        photos[:2], model=network("res2net_tiny"), statistics=["sparsity", "covariance"], layers=["layer3"]
    )
    assert set(found.statistics) == {
        "sparsity", "participation_ratio", "participation_share", "effective_rank", "effective_share"
    }  # fmt: skip
    assert {row.split.stage for row in found.rows} == {"layer3"}


def test_pictures_that_cannot_be_read(photos):
    told: list[str] = []
    bad = [photos[0], b"not a picture", photos[1]]
    model = network("res2net_tiny")
    found = r2viz.splits(
        bad, model=model, labels=[0, 5, 1], statistics=["selectivity"], refused=lambda _, error: told.append(error.code)
    )
    assert (found.pictures, told) == (2, ["bad_image.format"])
    with pytest.raises(BadImage):
        r2viz.splits(bad, model=model)


def test_pictures_of_different_sizes(photos):
    mixed = [photos[0], photo(70, 140), photos[1]]
    found = r2viz.splits(mixed, model=network("res2net_tiny"), fit="whole", statistics=["mean", "spectra"])
    assert found.pictures == 3


def test_what_is_refused(photos):
    model = network("res2net_tiny")
    with pytest.raises(ModelError, match="both a model and a pair were given"):
        r2viz.splits(photos, model=model, pair="mini")
    with pytest.raises(ModelError, match="no pictures came"):
        r2viz.splits([], model=model)
    with pytest.raises(ModelError, match="1 labels came for more pictures"):
        r2viz.splits(photos[:2], model=model, labels=[0])
    with pytest.raises(ModelError, match="3 labels came for 2 pictures"):
        r2viz.splits(photos[:2], model=model, labels=[0, 1, 2], statistics=["mean"])


def test_the_record_needs_no_torch_and_the_verb_keeps_its_name():
    code = (
        "import sys, r2viz.split_records; assert 'torch' not in sys.modules\n"
        "import r2viz.partition.verbs, r2viz; assert callable(r2viz.splits), r2viz.splits"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
