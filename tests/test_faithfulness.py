"""Faithfulness: every curve against a loop over pixels, imputation against its equations, the gate against itself."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny import network, pair, photo
from torch import Tensor, nn

from r2viz.checks import Faithfulness, Randomisation, Verdict, over_pictures
from r2viz.errors import ModelError
from r2viz.explain import explain
from r2viz.explain.trust import check, on_input
from r2viz.faithfulness import (
    area,
    blurred,
    deleted,
    faithfulness,
    imputed,
    inserted,
    probability_of,
    randomisation,
    ranks,
    road,
)
from r2viz.records import LayerMap

SHAPE = (12, 10)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))


class Sees(nn.Module):
    """Says class 1 by how much of a hidden region of the input is there."""

    def __init__(self, where: np.ndarray, whole: Tensor) -> None:
        super().__init__()
        self.where, self.whole = torch.as_tensor(where), whole

    def forward(self, x: Tensor) -> Tensor:
        there = (x == self.whole).all(dim=1) & self.where
        share = there.sum(dim=(1, 2)) / self.where.sum()
        return torch.stack([torch.zeros_like(share), 8 * share - 4], dim=1)


def region() -> np.ndarray:
    where = np.zeros(SHAPE, dtype=bool)
    where[3:7, 2:6] = True
    return where


def test_ranks_put_the_strongest_first_and_ties_in_a_random_order() -> None:
    importance = chance().random(SHAPE)
    found = ranks(importance, chance())
    assert found.ravel()[importance.argmax()] == 0
    order = np.argsort(found.ravel())
    assert (np.diff(importance.ravel()[order]) <= 0).all()
    flat = ranks(np.zeros(SHAPE), chance())
    assert sorted(flat.ravel()) == list(range(flat.size))
    assert not np.array_equal(flat.ravel(), np.arange(flat.size))
    np.testing.assert_array_equal(flat, ranks(np.zeros(SHAPE), chance()))


def test_curves_equal_a_loop_over_pixels() -> None:
    whole, places, steps = picture(), ranks(chance().random(SHAPE), chance()), 7
    soft = blurred(whole)
    order = np.argsort(places.ravel())
    gone, came = deleted(whole, places, steps), inserted(whole, places, steps)
    for step in range(steps + 1):
        first = order[: round(step * places.size / steps)]
        without, with_ = whole.clone(), soft.clone()
        for pixel in first:
            y, x = divmod(int(pixel), SHAPE[1])
            without[0, :, y, x] = 0
            with_[0, :, y, x] = whole[0, :, y, x]
        torch.testing.assert_close(gone[step], without[0])
        torch.testing.assert_close(came[step], with_[0])
    assert torch.equal(gone[0], whole[0])
    assert not gone[-1].any()
    assert torch.equal(came[-1], whole[0])


def test_blur_is_a_truncated_gaussian() -> None:
    spot = torch.zeros(1, 3, 31, 31)
    spot[0, :, 15, 15] = 1
    found = blurred(spot)[0, 0].numpy()
    assert found.sum() == pytest.approx(1)
    assert not found[:10].any()
    expected = gaussian_filter(spot[0, 0].double().numpy(), 5, truncate=1.0)  # radius 5, renormalised
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_area_is_the_trapezoids() -> None:
    curve = chance().random(9)
    assert area(curve) == pytest.approx(np.trapezoid(curve, dx=1 / 8))
    assert area(np.ones(5)) == 1


def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours() -> None:
    whole = picture()[0].double().numpy()
    gone = chance(3).random(SHAPE) < 0.6
    found = imputed(whole, gone, chance(), noise=0)
    np.testing.assert_array_equal(found[:, ~gone], whole[:, ~gone])
    for y, x in np.argwhere(gone):
        total, weights = np.zeros(3), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < SHAPE[0] and 0 <= x + dx < SHAPE[1]
                if (dy or dx) and inside:
                    weight = 1 / 12 if dy and dx else 1 / 6
                    total += weight * found[:, y + dy, x + dx]
                    weights += weight
        np.testing.assert_allclose(found[:, y, x], total / weights, atol=1e-9)
    noisy = imputed(whole, gone, chance())
    assert 0.005 < (noisy - found)[:, gone].std() < 0.02
    np.testing.assert_array_equal(noisy[:, ~gone], whole[:, ~gone])


@pytest.mark.parametrize("everything", [True, False])
def test_imputing_all_or_nothing(everything: bool) -> None:
    whole = picture()[0].double().numpy()
    found = imputed(whole, np.full(SHAPE, everything), chance(), noise=0)
    np.testing.assert_array_equal(found, np.zeros_like(whole) if everything else whole)


def test_imputation_equals_pytorch_grad_cams_up_to_the_border() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="not run: needs grad-cam")
    whole = picture()[0]
    gone = np.zeros(SHAPE, dtype=bool)
    gone[3:8, 2:7] = True
    theirs = peer.NoisyLinearImputer(noise=0)(whole, torch.as_tensor(~gone).float())
    ours = imputed(whole.double().numpy(), gone, chance(), noise=0)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_the_right_map_scores_better_than_chance_and_the_wrong_one_worse() -> None:
    whole, where = picture(), region()
    module = Sees(where, whole)
    with probability_of(module, 1, batch=3) as probability:
        right = faithfulness(probability, whole, where.astype(np.float32))
        wrong = faithfulness(probability, whole, (~where).astype(np.float32))
    assert right.deletion_gain > 0.1 > -0.1 > wrong.deletion_gain
    assert right.insertion_gain > 0.1 > -0.1 > wrong.insertion_gain
    assert right.road > 0.2
    assert wrong.road < -0.2
    assert right.probability == pytest.approx(1 / (1 + np.exp(-4)))
    assert right.drop < 0.01 < 0.9 < wrong.drop
    assert right.complexity == pytest.approx(where.mean())
    assert Verdict(right, None).warnings == ()
    assert len(Verdict(wrong, None).warnings) == 2


def test_scale_of_a_map_does_not_matter_and_a_zero_map_is_chance() -> None:
    model = network()
    tensor, _ = model.preprocess(photo())
    importance = chance().random((64, 64)).astype(np.float32)
    with probability_of(model.module, 2) as probability:
        assert faithfulness(probability, tensor, importance) == faithfulness(probability, tensor, 1024 * importance)
        zero = faithfulness(probability, tensor, np.zeros((64, 64), np.float32))
    assert zero.complexity == 0
    assert np.isfinite(list(zero.as_dict().values())).all()


def test_dimming_is_towards_black_and_not_towards_the_mean() -> None:
    model = network()
    tensor, _ = model.preprocess(photo())
    importance = chance().random((64, 64)).astype(np.float32)
    mean, std = torch.tensor(model.preprocess.mean).view(3, 1, 1), torch.tensor(model.preprocess.std).view(3, 1, 1)
    pixels = tensor[0] * std + mean
    by_hand = ((pixels * torch.as_tensor(importance / importance.max())) - mean) / std
    black = [-m / s for m, s in zip(model.preprocess.mean, model.preprocess.std, strict=True)]
    with probability_of(model.module, 2) as probability:
        found = faithfulness(probability, tensor, importance, black=black)
        before, after = probability(tensor)[0], probability(by_hand[None])[0]
    assert found.drop == pytest.approx(max(0, before - after) / before, abs=1e-6)
    assert found.increase == (after > before)


def test_batch_size_does_not_matter_and_the_network_is_as_before() -> None:
    model = network("res2net_tiny")
    module = copy.deepcopy(model.module).train()
    tensor, _ = model.preprocess(photo())
    importance = chance().random((64, 64)).astype(np.float32)
    found = []
    for batch in (1, 100):
        with probability_of(module, 2, batch=batch) as probability:
            found.append(list(faithfulness(probability, tensor, importance).as_dict().values()))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not module._forward_hooks


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a map \(3, 3\) does not lie over a picture \(1, 3, 12, 10\)"):
        faithfulness(lambda _batch: np.zeros(1), picture(), np.zeros((3, 3)))


def test_road_takes_by_rank_and_not_by_value() -> None:
    """A map that is zero on 90 % of the picture must not lose it all at the first share."""
    whole, seen = picture(), []

    def probability(batch: Tensor) -> np.ndarray:
        seen.extend((one != whole[0]).any(dim=0).double().mean().item() for one in batch)
        return np.zeros(len(batch))

    importance = np.zeros(SHAPE)
    importance[0, :] = 1
    road(probability, whole, ranks(importance, chance()), removed=(0.25, 0.5))
    assert seen == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=0.02)


# The gate


def test_the_gate_goes_from_the_output_to_the_input_and_leaves_the_network_alone() -> None:
    module = network().module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    changed: list[set[str]] = []

    def map_of(now: nn.Module) -> np.ndarray:
        changed.append({key.split(".")[0] for key, value in now.state_dict().items() if not value.equal(before[key])})
        return chance(len(changed)).random((8, 8))

    state = torch.random.get_rng_state()
    found = randomisation(module, map_of, draws=1)
    assert found.stages == ("fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1")
    assert changed[0] == set()
    assert [len(names) for names in changed] == list(range(8))
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert max(np.abs(found.spearman)) < 0.5
    assert found.depends_on_learning


def test_a_map_that_ignores_the_weights_fails_the_gate() -> None:
    fixed = chance().random((8, 8))
    found = randomisation(network().module, lambda _network: fixed)
    assert not found.depends_on_learning
    assert found.ssim[-1] == pytest.approx(1)
    verdict = Verdict(Faithfulness(0.5, 0.1, 0.4, 0.2, 0.2, 0.1, 0.1, False, 0.3), found)
    assert verdict.warnings == ("the map stays much the same when the network's weights are random",)
    drawn: list[float] = []

    def weight_of(network: nn.Module) -> np.ndarray:
        drawn.append(float(network.get_parameter("conv1.weight").detach()[0, 0, 0, 0]))
        return fixed

    randomisation(network().module, weight_of, draws=2)
    assert len(drawn) == 1 + 2 * 7
    assert len(set(drawn)) == 3  # the trained one, and one of each draw
    constant = randomisation(network().module, lambda _network: np.zeros((8, 8)))
    assert constant.depends_on_learning  # there is no map that could stay the same
    assert constant.as_dict()["spearman"][-1] is None


# Through the pipeline


@pytest.mark.parametrize(
    "options",
    [{}, {"target": "cat vs dog"}, {"layers": ("layer3", "layer4"), "fuse": "mean"}, {"smooth": True, "target": 3}],
    ids=["plain", "contrast", "fused", "smoothed"],
)
def test_a_record_is_checked_with_the_networks_that_made_it(options: dict) -> None:
    models = pair()
    record = explain(photo(), models, **options)
    verdicts = check(record, models)
    assert len(verdicts) == 2
    for verdict, view, model in zip(verdicts, record.views, models, strict=True):
        assert verdict.faithfulness.probability == pytest.approx(view.target.probability, rel=1e-4)
        assert verdict.randomisation is not None
        map_ = view.map(record.layers[-1])
        tensor, _ = model.preprocess(record.picture.rgb)
        with probability_of(model.module, view.target.index) as probability:
            places = ranks(on_input(map_, (64, 64)), np.random.default_rng(0))
            expected = area(probability(deleted(tensor, places)))
        assert verdict.faithfulness.deletion == pytest.approx(expected, abs=1e-5)


def test_the_first_step_of_the_gate_is_this_map() -> None:
    """With nothing forgotten the map is the record's own: seen by forgetting a part without influence."""

    class WithSpare(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.spare = inner, nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = network()
    wrapped = dataclasses.replace(model, module=WithSpare(model.module))
    record = explain(photo(), [wrapped], layers=("inner.layer4",))
    (verdict,) = check(record, [wrapped])
    gate = verdict.randomisation
    assert gate is not None
    assert gate.stages == ("spare", "inner")
    assert gate.spearman[0] == pytest.approx(1)
    assert gate.spearman[1] < 0.99


def test_other_networks_are_refused() -> None:
    models = pair()
    record = explain(photo(), models)
    with pytest.raises(ModelError, match="the record is of resnet_tiny, res2net_tiny, but the networks are res2net"):
        check(record, models[::-1])


def test_maps_lie_over_the_input_by_their_units() -> None:
    raw = np.zeros((3, 3), np.float32)
    raw[1, 2] = 1
    raw[0, 0] = -5
    laid = on_input(LayerMap("layer4", raw, (10.0, 10.0), (20.0, 20.0), "rf", "total"), (64, 64))
    assert np.unravel_index(laid.argmax(), laid.shape) == (30, 50)
    assert laid.min() == 0


def test_over_a_folder_means_have_intervals() -> None:
    models = pair()
    verdicts = [check(explain(photo(seed=seed), models), models, forget=seed < 4)[0] for seed in range(6)]
    found = over_pictures(verdicts)
    assert found["road"].n == 6
    assert found["spearman_randomised"].n == 4
    assert found["road"].low <= np.mean([one.faithfulness.road for one in verdicts]) <= found["road"].high
    gate = Randomisation(("fc",), (0.9,), (0.9,), (0.9,))
    assert over_pictures([Verdict(verdicts[0].faithfulness, gate)])["depends_on_learning"].mean == 0
