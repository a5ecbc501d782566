"""Several methods and targets from one pass; contrasts; layers fused; maps smoothed over variants of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import LABELS, network, pair, photo

from r2viz.attribution import METHODS, Contrast, cam_maps
from r2viz.attribution.targets import policies
from r2viz.errors import BadTarget, R2VizError, UnknownName
from r2viz.explain import explain, explain_batch, panel, panel_batch
from r2viz.explain.fusion import fused
from r2viz.explain.smoothing import VARIANTS, Variant, merged, varied
from r2viz.image import decode
from r2viz.models.model import Model
from r2viz.receptive.theory import Grid
from r2viz.records import CamRecord, LayerMap
from r2viz.store import as_dict


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return pair()


def same(one: CamRecord, other: CamRecord) -> None:
    assert (one.digest, one.policy, one.method) == (other.digest, other.policy, other.method)
    for first, second in zip(one.views, other.views, strict=True):
        assert first.target == second.target
        for mine, theirs in zip(first.maps, second.maps, strict=True):
            np.testing.assert_allclose(mine.raw, theirs.raw, atol=1e-6)


def test_a_panel_is_the_single_records(models: list[Model]) -> None:
    calls: list[int] = []
    handle = models[0].module.register_forward_hook(lambda *_: calls.append(1))
    try:
        methods = ["gradcam", *[name for name, row in METHODS.items() if row.needs == "gradients"][:3]]
        records = panel(photo(), models, methods=methods, targets=["shared", "cat", 3], layers=("layer3", "layer4"))
    finally:
        handle.remove()
    assert len(calls) == 1
    asked = [(method, target) for method in dict.fromkeys(methods) for target in ("shared", "cat", 3)]
    assert len(records) == len(asked)
    for record, (method, target) in zip(records, asked, strict=True):
        assert isinstance(record, CamRecord)
        same(record, explain(photo(), models, method=method, target=target, layers=("layer3", "layer4")))


def test_all_methods_and_those_that_a_layer_does_not_allow_say_why(models: list[Model]) -> None:
    records = panel(photo(), models, methods="all", layers=("layer3",), channels=4)
    assert len(records) == len(METHODS)
    for name, record in zip(METHODS, records, strict=True):
        if isinstance(record, CamRecord):
            assert record.method == name
            assert all(np.isfinite(map_.raw).all() for view in record.views for map_ in view.maps)
        else:
            assert isinstance(record, R2VizError)
            assert "\n" not in str(record)
    assert sum(isinstance(record, CamRecord) for record in records) >= 1


def test_a_picture_without_target_does_not_disturb_the_others_of_the_panel(models: list[Model]) -> None:
    pictures = [decode(photo(seed=seed)) for seed in range(6)]
    answers = panel_batch(pictures, models, methods="gradcam", targets=["agree", "dog"])
    agreed = [isinstance(answer[0], CamRecord) for answer in answers if isinstance(answer, list)]
    assert len(agreed) == 6
    assert all(isinstance(answer[1], CamRecord) for answer in answers if isinstance(answer, list))


def test_top_k_are_the_classes_of_highest_mean_probability_in_order(models: list[Model]) -> None:
    records = panel(photo(), models, methods="gradcam", targets="top3")
    probabilities = []
    for model in models:
        with torch.inference_mode():
            tensor, _ = model.preprocess(photo())
            probabilities.append(model.module(tensor).double().softmax(dim=1)[0].numpy())
    expected = np.argsort(-np.mean(probabilities, axis=0))[:3]
    assert [record.views[0].target.index for record in records if isinstance(record, CamRecord)] == list(expected)
    assert [record.policy for record in records if isinstance(record, CamRecord)] == [
        "shared",
        "shared, rank 2",
        "shared, rank 3",
    ]
    assert all(record.shared for record in records if isinstance(record, CamRecord))
    same(records[0], explain(photo(), models))  # type: ignore[arg-type]


def test_top_k_of_too_many_and_where_one_record_was_asked_for(models: list[Model]) -> None:
    with pytest.raises(BadTarget, match=r"target 'top11': the networks have 10 classes in common; give 1 to that many"):
        panel(photo(), models, methods="gradcam", targets="top11")
    with pytest.raises(R2VizError, match=r"method 'gradcam' and target 'top3' make several records; ask for a panel"):
        explain_batch([decode(photo())], models, target="top3")
    assert len(policies("top3", [("top3", "b"), ("top3", "b")])) == 1  # a label first


def test_a_contrast_is_the_difference_of_two_maps(models: list[Model]) -> None:
    record = explain(photo(), models, target="cat vs dog")
    wanted, other = (explain(photo(), models, target=label) for label in ("cat", "dog"))
    for view, first, second in zip(record.views, wanted.views, other.views, strict=True):
        # Grad-CAM is linear in the score.
        np.testing.assert_allclose(view.maps[0].raw, first.maps[0].raw - second.maps[0].raw, atol=1e-5)
        assert view.target.label == "cat vs dog"
        assert view.target.index == LABELS.index("cat")
        assert view.target.logit == pytest.approx(first.target.logit - second.target.logit)
    assert record.shared
    assert record.policy == "cat vs dog"
    by_index = explain(photo(), models, target="2 vs 3")
    np.testing.assert_array_equal(by_index.views[0].maps[0].raw, record.views[0].maps[0].raw)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cat vs cat", "contrasts a class with itself; name two"),
        ("cat vs shared", "contrasts no two classes; give A vs B by labels or indices"),
        ("cat vs dgo", "no class 'dgo'.*did you mean 'dog'"),
        ("cat vs 99", "no class 99"),
    ],
)
def test_contrasts_that_are_none(models: list[Model], target: str, message: str) -> None:
    with pytest.raises(BadTarget, match=message):
        explain(photo(), models, target=target)


def test_a_label_that_reads_like_a_contrast_is_a_label() -> None:
    labels = (*LABELS[:8], "cat vs dog", "jay")
    record = explain(photo(), pair(labels=labels), target="cat vs dog")
    assert record.views[0].target.index == 8


def test_k_classes_in_one_pass_and_functions_of_the_output(models: list[Model]) -> None:
    module = models[1].module
    batch = torch.cat([models[1].preprocess(photo(seed=seed))[0] for seed in range(2)])
    table = torch.tensor([[0, 1, 2], [3, 4, 5]])
    found = cam_maps(module, batch, targets=table)["layer4"]
    assert found.shape[:2] == (2, 3)
    for column in range(3):
        torch.testing.assert_close(found[:, column], cam_maps(module, batch, targets=table[:, column])["layer4"])
    contrast = cam_maps(module, batch, targets=Contrast(0, 3))["layer4"]
    expected = cam_maps(module, batch, targets=0)["layer4"] - cam_maps(module, batch, targets=3)["layer4"]
    torch.testing.assert_close(contrast, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadTarget, match=r"\(1, 2\) targets came for 2 pictures; give \(N,\) or \(N, K\)"):
        cam_maps(module, batch, targets=torch.tensor([[0, 1]]))
    with pytest.raises(BadTarget, match=r"the target function gave \(2, 10\); expected one number per picture"):
        cam_maps(module, batch, targets=lambda logits: logits)


# Fusion


def layer_map(raw: np.ndarray, start: float, jump: float, name: str = "layer4") -> LayerMap:
    return LayerMap(name, raw.astype(np.float32), (start, start), (jump, jump), "rf", "total")


def test_fusion_lays_maps_by_where_their_units_are() -> None:
    fine = layer_map(np.zeros((8, 8)), 0, 8, "fine")
    coarse = layer_map(np.add.outer(np.arange(4.0), np.arange(4.0)), 0, 16, "coarse")
    for how, part in (("mean", 0.5), ("max", 1.0)):
        found = fused([fine, coarse], how)
        assert (found.layer, found.start, found.jump) == (f"{how}(fine, coarse)", (0, 0), (8, 8))
        ramp = np.minimum(np.arange(8) / 2, 3)
        np.testing.assert_allclose(found.raw, part * np.add.outer(ramp, ramp) / 6, atol=1e-6)


def test_each_layer_has_an_equal_say_whatever_its_unit() -> None:
    chance = np.random.default_rng(0)
    first, second = layer_map(chance.random((4, 4)), 0, 16), layer_map(chance.random((4, 4)), 0, 16)
    loud = layer_map(1e4 * first.raw, 0, 16)
    np.testing.assert_allclose(fused([first, second], "mean").raw, fused([loud, second], "mean").raw, rtol=1e-5)
    constant = layer_map(np.full((4, 4), 7.0), 0, 16)
    np.testing.assert_allclose(fused([constant, first], "max").raw, first.raw / first.raw.max(), rtol=1e-6)


def test_a_fused_map_stands_beside_its_layers(models: list[Model]) -> None:
    record = explain(photo(), models, layers=("layer2", "layer4"), fuse="mean")
    assert record.layers == ("layer2", "layer4", "mean(layer2, layer4)")
    plain = explain(photo(), models, layers=("layer2", "layer4"))
    assert record.digest != plain.digest
    assert as_dict(record)["settings"] == {"fuse": "mean"}
    for view in record.views:
        expected = fused([view.map("layer2"), view.map("layer4")], "mean")
        np.testing.assert_array_equal(view.map("mean(layer2, layer4)").raw, expected.raw)
    assert record.difference("mean(layer2, layer4)") is not None
    with pytest.raises(UnknownName, match="fusion joins the maps of several layers, but 1 came"):
        explain(photo(), models, fuse="mean")
    with pytest.raises(UnknownName, match="no fusion 'sum'; there are mean and max"):
        explain(photo(), models, layers=("layer2", "layer4"), fuse="sum")


# Smoothing


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bright_spot_goes_where_the_variant_says(variant: Variant) -> None:
    batch = torch.zeros(1, 1, 65, 65)
    batch[0, 0, 20, 40] = 1
    batch = torch.nn.functional.avg_pool2d(batch, 5, 1, 2).repeat(1, 3, 1, 1)
    moved = variant.of(batch)[0, 0]
    weight = moved / moved.sum()
    y, x = (float((weight.sum(dim=1 - axis) * torch.arange(65)).sum()) for axis in (0, 1))
    assert y == pytest.approx(float(variant.at(torch.tensor([20.0]), 65, columns=False)[0]), abs=0.2)
    assert x == pytest.approx(float(variant.at(torch.tensor([40.0]), 65, columns=True)[0]), abs=0.2)


def test_maps_of_variants_come_back_to_where_they_belong() -> None:
    """A map that is a plane over the picture, seen through every variant, is the same plane again."""
    side, grid = 64, Grid((8.0, 8.0), (3.0, 3.0))
    units = torch.arange(8, dtype=torch.float64)

    def plane(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y[:, None] + 2 * x[None, :]

    maps = []
    for variant in VARIANTS:
        at = grid.start[0] + units * grid.jump[0]
        back = [(side - 1) / 2 + (at - (side - 1) / 2) / variant.zoom for _ in range(2)]
        if variant.flip:
            back[1] = (side - 1) / 2 + (side - 1 - at - (side - 1) / 2) / variant.zoom
        maps.append(plane(back[0], back[1]))
    found = merged(torch.stack(maps).float(), grid, (side, side))[0]
    own = grid.start[0] + units * grid.jump[0]
    inner = slice(2, 6)  # near the border units continue flat
    torch.testing.assert_close(found[inner, inner], plane(own, own).float()[inner, inner], atol=1e-3, rtol=0)


def test_smoothing_a_network_is_the_mean_over_its_variants() -> None:
    model = network("res2net_tiny")
    record = explain(photo(), [model], smooth=True, target="cat")
    plain = explain(photo(), [model], target="cat")
    # What is said of classes is said of the picture itself.
    for mine, theirs in zip(record.views[0].top, plain.views[0].top, strict=True):
        assert (mine.index, mine.probability) == (theirs.index, pytest.approx(theirs.probability, rel=1e-5))
    assert record.digest != plain.digest
    assert record.views[0].maps[0].raw.shape == plain.views[0].maps[0].raw.shape
    tensor, _ = model.preprocess(photo())
    each = torch.cat(
        [cam_maps(model.module, variant.of(tensor), targets=LABELS.index("cat"))["layer4"] for variant in VARIANTS]
    )
    map_ = record.views[0].maps[0]
    expected = merged(each, Grid(map_.jump, map_.start), (64, 64))[0].numpy()
    np.testing.assert_allclose(map_.raw, expected, atol=1e-5)
    assert varied(tensor).shape == (len(VARIANTS), 3, 64, 64)
