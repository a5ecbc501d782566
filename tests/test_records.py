"""Records: what they say of their maps, and what makes two of them the same result."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from tiny import pair, photo

from r2viz.agreement import agreement
from r2viz.coverage import Region, box_region
from r2viz.errors import UnknownName
from r2viz.explain import explain
from r2viz.records import CamRecord, LayerMap


@pytest.fixture(scope="module")
def record() -> CamRecord:
    return explain(photo(71, 95), pair(), layers=("layer3", "layer4"))


def with_views(record: CamRecord, number: int | None = None, **changes: Any) -> CamRecord:
    """The record with changes in one of its views, or in all."""
    views = tuple(
        dataclasses.replace(view, **changes) if number in (None, index) else view
        for index, view in enumerate(record.views)
    )
    return dataclasses.replace(record, views=views)


def with_raw(record: CamRecord, *raws: np.ndarray) -> CamRecord:
    """The record of one layer with other maps."""
    views = tuple(
        dataclasses.replace(view, maps=(dataclasses.replace(view.maps[0], raw=raw.astype(np.float32)),))
        for view, raw in zip(record.views, raws, strict=True)
    )
    return dataclasses.replace(record, views=views)


def layer_map(raw: Any) -> LayerMap:
    return LayerMap("layer4", np.asarray(raw, dtype=np.float32), (0, 0), (32, 32), "rf", "total")


def test_positive_and_constant() -> None:
    signed = layer_map([[-1, 2], [0, 3]])
    np.testing.assert_array_equal(signed.positive, [[0, 2], [0, 3]])
    assert not signed.constant
    assert signed.raw.min() == -1  # a view, not a change
    assert layer_map([[-1, -2], [0, -3]]).constant  # nothing is left after the ReLU
    assert layer_map([[0.5, 0.5], [0.5, 0.5]]).constant
    assert layer_map([[7]]).constant  # one unit cannot point


def test_records_are_frozen(record: CamRecord) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.policy = "top1"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        record.picture.rgb[0, 0] = 0


def test_unknown_layer(record: CamRecord) -> None:
    with pytest.raises(UnknownName, match=re.escape("the record has no layer 'layer5'; did you mean 'layer")) as caught:
        record.views[0].map("layer5")
    assert "it has layer3, layer4" in str(caught.value)


def test_difference_is_between_unit_masses(record: CamRecord) -> None:
    for layer in record.layers:
        difference = record.difference(layer)
        assert difference is not None
        assert difference.shape == record.picture.rgb.shape[:2]
        assert np.nansum(difference, dtype=np.float64) == pytest.approx(0, abs=1e-6)
        assert np.nansum(np.abs(difference)) <= 2 + 1e-6
        seen = np.isfinite(record.views[0].on_source(layer))
        np.testing.assert_array_equal(np.isfinite(difference), seen)


def test_difference_by_hand_and_its_sign(record: CamRecord) -> None:
    left, right = np.array([[1.0, 0], [1, 0]]), np.array([[0, 5.0], [0, 5]])
    difference = with_raw(record, left, right).difference("layer3")
    assert difference is not None
    seen = np.flatnonzero(np.isfinite(difference).all(axis=0))
    assert (difference[:, seen[0]] < 0).all()  # the first network looks left
    assert (difference[:, seen[-1]] > 0).all()
    scaled = with_raw(record, left * 1000, right).difference("layer3")  # units do not matter
    assert scaled is not None
    np.testing.assert_allclose(scaled, difference, atol=1e-9)


def test_equal_maps_have_no_difference(record: CamRecord) -> None:
    same = np.random.default_rng(0).random((2, 2))
    difference = with_raw(record, same, 3 * same).difference("layer3")
    assert difference is not None
    assert np.nanmax(np.abs(difference)) < 1e-8


def test_no_difference_where_it_would_mean_nothing(record: CamRecord) -> None:
    something, nothing = np.array([[0, 1.0], [2, 0]]), np.full((2, 2), -1.0)
    assert with_raw(record, something, something).difference("layer3") is not None
    assert with_raw(record, something, nothing).difference("layer3") is None
    assert with_raw(record, nothing, something).difference("layer3") is None
    other = dataclasses.replace(record.views[1].target, label="another", index=0)
    different = with_views(record, 1, target=other)
    assert not different.shared
    assert different.difference("layer4") is None
    assert different.maximum_ratio("layer4") is None
    alone = dataclasses.replace(record, views=record.views[:1])
    assert not alone.shared
    assert alone.difference("layer4") is None


def test_one_class_may_be_written_in_two_ways(record: CamRecord) -> None:
    first, second = (dataclasses.replace(record.views[0].target, label=label) for label in ("Ice_lolly", "ice  LOLLY"))
    views = (
        dataclasses.replace(record.views[0], target=first),
        dataclasses.replace(record.views[1], target=second),
    )
    assert dataclasses.replace(record, views=views).shared


def test_maximum_ratio(record: CamRecord) -> None:
    assert with_raw(record, np.array([[0, 2.0]]), np.array([[-9, 5.0]])).maximum_ratio("layer3") == 2.5
    assert with_raw(record, np.array([[0, -2.0]]), np.array([[1, 5.0]])).maximum_ratio("layer3") is None


def test_inside_needs_a_region(record: CamRecord) -> None:
    assert record.inside(record.views[0], "layer4") is None
    marked = dataclasses.replace(record, region=box_region((20, 10, 70, 60), (71, 95)))
    inside = marked.inside(marked.views[0], "layer4")
    assert inside is not None
    assert 0 <= inside.share <= 1


def test_digest_changes_with_what_decides(record: CamRecord) -> None:
    box = box_region((20, 10, 70, 60), (71, 95))
    shifted = Region(np.roll(box.mask, 1, axis=1))
    target = dataclasses.replace(record.views[1].target, index=(record.views[1].target.index + 1) % 10)
    changed = {
        "picture": dataclasses.replace(record, picture=dataclasses.replace(record.picture, sha256="0")),
        "model": with_views(record, 0, model="another"),
        "weights": with_views(record, 1, weights={**record.views[1].weights, "sha256": "0"}),
        "preprocess": with_views(record, 0, preprocess={**record.views[0].preprocess, "resize": 65}),
        "target": with_views(record, 1, target=target),
        "layers": dataclasses.replace(record, views=tuple(_first_layer(view) for view in record.views)),
        "method": dataclasses.replace(record, method="another"),
        "policy": dataclasses.replace(record, policy="top1"),
        "registration": dataclasses.replace(record, registration="grid"),
        "region": dataclasses.replace(record, region=box),
        "another region": dataclasses.replace(record, region=shifted),
        "versions": dataclasses.replace(record, versions={**record.versions, "torch": "0"}),
    }
    digests = {name: one.digest for name, one in changed.items()} | {"as it was": record.digest}
    assert len(set(digests.values())) == len(digests), digests


def _first_layer(view: Any) -> Any:
    return dataclasses.replace(view, maps=view.maps[:1])


def test_digest_does_not_change_with_what_does_not(record: CamRecord) -> None:
    same = [
        dataclasses.replace(record, device="cuda:3"),
        dataclasses.replace(record, notes=("a remark",)),
        dataclasses.replace(record, picture=dataclasses.replace(record.picture, name="x", path="/somewhere/x")),
        with_views(record, 0, title="Another title"),
        explain(photo(71, 95), pair(), layers=("layer3", "layer4")),
    ]
    assert {one.digest for one in same} == {record.digest}
    assert re.fullmatch("[0-9a-f]{64}", record.digest)


def test_a_notebook_sees_the_figure(record: CamRecord) -> None:
    shown = record._repr_html_()
    assert shown.startswith("<figure><img ")
    assert "data:image/png;base64," in shown
    assert shown.count("<tr>") == 1 + 4  # a head, then a row for each network and layer


def test_agreement_stands_where_a_difference_means_something(record: CamRecord) -> None:
    found = record.agreement("layer4")
    assert found is not None
    first, second = (view.on_source("layer4") for view in record.views)
    assert found == agreement(first, second)
    assert record.agreement("layer3") != found
    constant = with_raw(explain(photo(71, 95), pair()), np.zeros((3, 3)), np.ones((3, 3)))
    assert constant.agreement("layer4") is None
    alone = dataclasses.replace(record, views=record.views[:1])
    assert alone.agreement("layer4") is None


def test_a_map_agrees_wholly_with_itself(record: CamRecord) -> None:
    twice = dataclasses.replace(record, views=(record.views[0], record.views[0]))
    found = twice.agreement("layer4")
    assert found is not None
    assert (found.spearman, found.ssim) == pytest.approx((1, 1))
