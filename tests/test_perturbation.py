"""Perturbation methods beside slow, obvious references and beside the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_graph import Moody, brute_force, hooks, noise, rerun
from torch import Tensor, nn

from r2viz.attribution import METHODS, Contrast, cam_maps
from r2viz.attribution.perturbation import ablationcam, iscam, scorecam, sscam
from r2viz.attribution.rerun import Rerun
from r2viz.attribution.scores import score_of

PERTURBING = {"ablationcam": ablationcam, "scorecam": scorecam, "sscam": sscam, "iscam": iscam}
CHEAP: dict[str, Callable[[Rerun], Tensor]] = {
    "ablationcam": ablationcam,
    "scorecam": scorecam,
    "sscam": lambda found: sscam(found, samples=2, sigma=0.5),
    "iscam": lambda found: iscam(found, steps=2),
}


@pytest.fixture
def module(net: Callable[..., Any]) -> nn.Module:
    """Tiny: 64 channels at the end of layer1's blocks, 256 at the end."""
    return net(depths=(1, 2, 1, 1))


def close(found: Tensor, expected: Tensor, bound: float = 1e-4) -> None:
    """Within `bound` of each picture's own largest value."""
    assert found.shape == expected.shape
    error = (found - expected).abs().amax(dim=(1, 2)) / expected.abs().amax(dim=(1, 2))
    assert error.max() <= bound, error


# Slow references


def slow_ablation(module: nn.Module, batch: Tensor, layer: str, target: int) -> Tensor:
    """One whole pass per channel."""
    found = rerun(module, layer, batch)
    maps = []
    for number, activations in enumerate(found.activations):
        picture = batch[number : number + 1]
        score = float(brute_force(module, picture, layer, activations[None])[0, target])
        weights = []
        for channel in range(len(activations)):
            without = activations.clone()
            without[channel] = 0
            left = float(brute_force(module, picture, layer, without[None])[0, target])
            weights.append((score - left) / abs(score))
        maps.append(sum_of(activations, weights))
    return torch.stack(maps)


def sum_of(activations: Tensor, weights: Any) -> Tensor:
    total = torch.zeros(activations.shape[1:], dtype=torch.float64)
    for channel, weight in enumerate(weights):
        total += float(weight) * activations[channel].double()
    return total.float()


def mask_of(channel: Tensor, picture: Tensor) -> Tensor:
    mask = F.interpolate(channel[None, None], picture.shape[2:], mode="bilinear", align_corners=False)
    if channel.max() == channel.min():
        return mask * 0
    return (mask - mask.min()) / (mask.max() - mask.min())


def slow_score(
    module: nn.Module, batch: Tensor, layer: str, target: int, variants: Callable[[Tensor], list[Tensor]]
) -> Tensor:
    """One whole pass per channel and variant of its mask, less the score of the black picture."""
    found = rerun(module, layer, batch)
    maps = []
    with torch.no_grad():
        for number, activations in enumerate(found.activations):
            picture = batch[number : number + 1]
            black = module(picture * 0)[0, target]
            scores = []
            for channel in activations:
                mask = mask_of(channel, picture)
                seen = [module(variant * picture)[0, target] - black for variant in variants(mask)]
                scores.append(torch.stack(seen).mean())
            maps.append(sum_of(activations, torch.stack(scores).double().softmax(dim=0)))
    return torch.stack(maps)


ABLATED = ["layer4", "layer3", "layer2.1.bn3", "layer2.1.split1", "layer2.1.split3", "layer2.1.conv3_in[1]"]


@pytest.mark.parametrize("layer", ABLATED)
def test_ablation_cam_equals_one_pass_per_channel(module: nn.Module, layer: str) -> None:
    batch = noise(1, 64)
    found = cam_maps(module, batch, layers=[layer], targets=0, method="ablationcam")[layer]
    # In float64: what a channel takes from a score is lost in the score's last digits.
    close(found, slow_ablation(module.double(), batch.double(), layer, 0))


def test_the_closed_form_is_what_the_passes_give(module: nn.Module) -> None:
    module = module.double()
    found = rerun(module, "layer4", noise(2, 64).double())
    assert found.head() is module.fc
    close(ablationcam(found), ablationcam(replace(found, _kept={"head": None})), 1e-9)
    assert torch.equal(ablationcam(replace(found, channels=2)), ablationcam(found))  # a channel costs nothing


def test_in_float32_the_closed_form_is_nearer_to_the_truth_than_differences_of_scores(module: nn.Module) -> None:
    """What peers' maps differ by is their own rounding: they subtract two nearly equal scores."""
    batch = noise(1, 64)
    single = rerun(module, "layer4", batch)
    formula, passes = ablationcam(single), ablationcam(replace(single, _kept={"head": None}))
    double = module.double()
    truth = slow_ablation(double, batch.double(), "layer4", 0)
    errors = [float((map_.double() - truth).abs().max() / truth.abs().max()) for map_ in (formula, passes)]
    assert errors[0] < 1e-5
    assert errors[1] > errors[0], errors


def test_ablation_of_a_contrast_in_closed_form(module: nn.Module) -> None:
    batch = noise(2, 32)
    found = cam_maps(module, batch, layers=["layer4"], targets=Contrast(1, 4), method="ablationcam")["layer4"]
    seen = rerun(module, "layer4", batch)
    score = score_of(Contrast(1, 4), None)
    with torch.no_grad():
        base = score(module(batch), torch.arange(2))
    contrast = replace(seen, score=score, base=base, _kept={"head": None})
    close(found, ablationcam(contrast))


def test_a_negative_score_does_not_turn_the_map_inside_out(module: nn.Module) -> None:
    """The paper's quotient would: what speaks for the class stays positive here."""
    batch = noise(1, 32)
    with torch.no_grad():
        logits = module(batch)[0]
        module.fc.bias -= logits + 1  # every score is -1
    after = cam_maps(module, batch, targets=2, method="ablationcam")["layer4"]
    with torch.no_grad():
        module.fc.bias += 2  # every score is +1
    before = cam_maps(module, batch, targets=2, method="ablationcam")["layer4"]
    close(after, before)


def test_a_score_of_nothing_divides_by_one(module: nn.Module) -> None:
    found = cam_maps(module, noise(1, 32), targets=lambda output: output[:, 0] * 0, method="ablationcam")["layer4"]
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("layer", ["layer4", "layer2.1.split1"])
def test_score_cam_equals_one_pass_per_channel(module: nn.Module, layer: str) -> None:
    batch = noise(2, 48)
    found = cam_maps(module, batch, layers=[layer], targets=0, method="scorecam")[layer]
    close(found, slow_score(module, batch, layer, 0, lambda mask: [mask]))


def test_is_cam_equals_one_pass_per_channel_and_step(module: nn.Module) -> None:
    batch, layer = noise(2, 32), "layer2.1.split1"
    found = rerun(module, layer, batch)
    summed = slow_score(module, batch, layer, 0, lambda mask: [mask * 1 / 3, mask * 3 / 3, mask * 6 / 3])
    close(iscam(found, steps=3), summed)
    straight = slow_score(module, batch, layer, 0, lambda mask: [mask * 1 / 2, mask])
    close(iscam(found, steps=2, path="straight"), straight)
    close(iscam(found, steps=1, path="straight"), scorecam(found), 1e-6)


def test_ss_cam_equals_one_pass_per_channel_and_noise(module: nn.Module) -> None:
    batch, layer = noise(2, 32), "layer2.1.split1"
    found = rerun(module, layer, batch, seed=5)
    drawn = [
        0.5 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(5 * 1_000_003 + turn))
        for turn in range(3)
    ]
    expected = slow_score(module, batch, layer, 0, lambda mask: [mask + delta for delta in drawn])
    close(sscam(found, samples=3, sigma=0.5), expected)
    close(sscam(found, samples=1, sigma=0.0), scorecam(found), 1e-6)


# Properties


class Spy(nn.Module):
    """A network that counts what it sees."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        if x.isnan().any():  # no graph can hold this, so the network itself is run
            raise ValueError
        return self.inner(x)


def test_constant_channels_share_one_pass_and_one_value(module: nn.Module) -> None:
    batch = noise(2, 32)
    found = rerun(module, "layer3", batch)
    changed = found.activations.clone()
    changed[:, ::2] = torch.arange(changed.shape[1] // 2)[None, :, None, None].float()
    spy = Spy(module)
    maps = scorecam(replace(found, module=spy, activations=changed, _kept={}, rows_at_once=16))
    for number, activations in enumerate(changed):
        picture = batch[number : number + 1]
        with torch.no_grad():
            scores = torch.stack([module(mask_of(channel, picture) * picture)[0, 0] for channel in activations])
        close(maps[number : number + 1], sum_of(activations, scores.double().softmax(dim=0))[None])
    # The black picture once for each of the two, and every channel that varies.
    varying = int((changed.amax(dim=(2, 3)) > changed.amin(dim=(2, 3))).sum())
    assert sum(spy.rows) == varying + 2 < changed.shape[1] * 2


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("layer", ["layer3", "layer2.1.split1"])
def test_the_size_of_a_batch_changes_nothing(module: nn.Module, name: str, layer: str) -> None:
    found = rerun(module, layer, noise(2, 32), seed=3)
    expected = CHEAP[name](found)
    for size in (3, 50):
        close(CHEAP[name](replace(found, rows_at_once=size)), expected, 1e-5)


@pytest.mark.parametrize("name", CHEAP)
def test_permuting_the_batch_permutes_the_maps_and_a_picture_alone_gets_its_own(module: nn.Module, name: str) -> None:
    batch = noise(3, 32)
    expected = CHEAP[name](rerun(module, "layer2.1.split2", batch, channels=9))
    order = torch.tensor([2, 0, 1])
    close(CHEAP[name](rerun(module, "layer2.1.split2", batch[order], channels=9)), expected[order], 1e-5)
    close(CHEAP[name](rerun(module, "layer2.1.split2", batch[1:2], channels=9)), expected[1:2], 1e-5)


@pytest.mark.parametrize("name", CHEAP)
def test_an_empty_batch_gives_no_maps(module: nn.Module, name: str) -> None:
    found = rerun(module, "layer3", noise(2, 32))
    empty = replace(found, batch=found.batch[:0], activations=found.activations[:0], base=found.base[:0])
    assert CHEAP[name](empty).shape == (0, *found.activations.shape[2:])


def test_noise_comes_from_the_seed_alone(module: nn.Module) -> None:
    found = rerun(module, "layer3", noise(1, 32), seed=1, channels=8)
    torch.manual_seed(0)
    once = sscam(found, samples=2)
    torch.manual_seed(1)
    assert torch.equal(once, sscam(found, samples=2))
    assert not torch.equal(once, sscam(replace(found, seed=2), samples=2))


def test_some_channels_are_those_that_vary_most(module: nn.Module) -> None:
    found = rerun(module, "layer3", noise(2, 32))
    spread = found.activations.flatten(2).var(dim=2)
    for name in ("ablationcam", "scorecam"):
        several = CHEAP[name](replace(found, channels=5))
        kept = torch.zeros_like(found.activations)
        for number in range(2):
            best = spread[number].topk(5).indices
            kept[number, best] = found.activations[number, best]
        if name == "ablationcam":
            scores = []
            for number in range(2):
                row = torch.tensor([number])
                drops = []
                for channel in range(kept.shape[1]):
                    without = found.activations[number : number + 1].clone()
                    without[:, channel] = 0
                    drops.append(float((found.base[number] - found.after(without, row)[0]) / found.base[number].abs()))
                scores.append(sum_of(kept[number], drops))
            close(several, torch.stack(scores))
    everything = CHEAP["scorecam"](replace(found, channels=10_000))
    assert torch.equal(everything, CHEAP["scorecam"](found))


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
@pytest.mark.parametrize("name", CHEAP)
def test_progress_is_told_to_its_end(module: nn.Module, name: str, layer: str) -> None:
    told: list[tuple[int, int]] = []
    CHEAP[name](rerun(module, layer, noise(2, 32), channels=6, rows_at_once=4, progress=lambda *at: told.append(at)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert len({total for _, total in told}) == 1


@pytest.mark.parametrize("message", ["cuda", "[enforce fail] DefaultCPUAllocator: can't allocate memory", "memory"])
def test_when_memory_runs_out_batches_are_halved(module: nn.Module, message: str) -> None:
    """A network that cannot take more than three rows stands for a device that cannot."""
    seen: list[int] = []

    class Small(Spy):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            if len(x) > 3:
                raise {"cuda": torch.OutOfMemoryError, "memory": MemoryError}.get(message, RuntimeError)(message)
            return super().forward(x)

    found = rerun(module, "layer3", noise(1, 32), channels=10)
    expected = scorecam(found)
    close(scorecam(replace(found, module=Small(module), rows_at_once=40, _kept={})), expected, 1e-5)
    assert max(seen) == 10 or max(seen) == 11
    assert seen[-1] <= 3


def test_what_is_not_about_memory_is_not_hidden(module: nn.Module) -> None:
    class Broken(Spy):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("something else")

    found = rerun(module, "layer3", noise(1, 32), channels=10)
    with pytest.raises(RuntimeError, match="something else"):
        scorecam(replace(found, module=Broken(module), _kept={}))


@pytest.mark.parametrize("name", CHEAP)
def test_a_network_that_cannot_be_followed(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = Moody().eval()
    found = rerun(module, "body", noise(2, 16))
    assert CHEAP[name](found).isfinite().all()
    assert hooks(module) == 0


@pytest.mark.parametrize("name", PERTURBING)
def test_the_table_has_it(name: str) -> None:
    row = METHODS[name]
    assert row.function is PERTURBING[name]
    assert row.needs == "rerun"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types(module: nn.Module, dtype: torch.dtype) -> None:
    expected = {name: CHEAP[name](rerun(module, "layer3", noise(1, 32), channels=6)) for name in CHEAP}
    module = module.to(dtype)
    for name, function in CHEAP.items():
        found = function(rerun(module, "layer3", noise(1, 32).to(dtype), channels=6))
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        if dtype == torch.float64:
            close(found, expected[name], 1e-3)


# Beside the peers. Their maps are taken before they normalise them.


@pytest.fixture(scope="module")
def positive() -> Any:
    """Networks whose first class scores above 0, so that the peer's quotient has our sign."""

    def build(net: Callable[..., Any], kind: str) -> nn.Module:
        module = net(kind, depths=(1, 1, 1, 1))
        with torch.no_grad():
            module.fc.bias += 5 - module(noise(2, 64)).amin()
        return module

    return build


def peer_map(found: Any, batch: Tensor, target: int) -> Tensor:
    """pytorch-grad-cam's map of one target layer, before ReLU and scaling."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(target)] * len(batch)
    found.activations_and_grads(batch)
    activations = found.activations_and_grads.activations[0].numpy()
    return torch.from_numpy(found.get_cam_image(batch, found.target_layers[0], targets, activations, None)).float()


@pytest.mark.parametrize("kind", ["resnet", "res2net"])
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_ablation_cam_equals_pytorch_grad_cam(net: Callable[..., Any], positive: Any, kind: str, layer: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="the extra 'bench' is not installed")
    module, batch = positive(net, kind), noise(2, 64)
    ours = cam_maps(module, batch, layers=[layer], targets=0, method="ablationcam")[layer]
    with peer.AblationCAM(module, [module.get_submodule(layer)]) as other:
        close(ours, peer_map(other, batch, 0))


def test_ablation_far_below_equals_pytorch_grad_cam_with_batches_of_one(net: Callable[..., Any], positive: Any) -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="the extra 'bench' is not installed")
    module, batch = positive(net, "resnet"), noise(1, 64)
    # Before a normalisation, not after it: what it keeps there, the in-place addition and ReLU have overwritten.
    layer = "layer3.0.conv3"
    found = rerun(module, layer, batch)
    assert found.activations.min() < 0
    with peer.AblationCAM(module, [module.get_submodule(layer)], batch_size=1) as other:
        theirs = peer_map(other, batch, 0)
    close(ablationcam(found, fill="below"), theirs)
    assert (ablationcam(found) - theirs).abs().max() > 0.01 * theirs.abs().max()


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_score_cam_equals_pytorch_grad_cam(net: Callable[..., Any], layer: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="the extra 'bench' is not installed")
    module, batch = net(depths=(1, 1, 1, 1)), noise(2, 48)
    ours = scorecam(rerun(module, layer, batch), corners=True)
    with peer.ScoreCAM(module, [module.get_submodule(layer)]) as other:
        close(ours, peer_map(other, batch, 0))


def torchcam_map(found: Any, module: nn.Module, batch: Tensor) -> Tensor:
    """torch-cam's map before scaling; its ReLU stays, so ours gets one, too."""
    with torch.no_grad():
        scores = module(batch)
    return found(0, scores, normalized=False)[0]


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_score_cam_and_is_cam_equal_torch_cam(net: Callable[..., Any], layer: str) -> None:
    peer = pytest.importorskip("torchcam.methods", reason="the extra 'bench' is not installed")
    module, batch = net(depths=(1, 1, 1, 1)), noise(2, 48)
    found = rerun(module, layer, batch)
    with peer.ScoreCAM(module, layer) as other:
        close(scorecam(found, order="normalise").clamp(min=0), torchcam_map(other, module, batch))
    with peer.ISCAM(module, layer, num_samples=2) as other:
        close(iscam(found, steps=2, order="normalise").clamp(min=0), torchcam_map(other, module, batch))


def test_ss_cam_equals_torch_cam_on_the_same_noise(net: Callable[..., Any]) -> None:
    peer = pytest.importorskip("torchcam.methods", reason="the extra 'bench' is not installed")
    module, batch = net(depths=(1, 1, 1, 1)), noise(2, 48)

    class Ours:
        turn = -1

        def sample(self, shape: Any) -> Tensor:
            self.turn += 1
            generator = torch.Generator().manual_seed(self.turn)
            return (0.5 * torch.randn(1, *shape[2:], generator=generator)).expand(shape)

    with peer.SSCAM(module, "layer2", num_samples=2, std=0.5) as other:
        other._distrib = Ours()
        theirs = torchcam_map(other, module, batch)
    ours = sscam(rerun(module, "layer2", batch), samples=2, sigma=0.5, order="normalise")
    close(ours.clamp(min=0), theirs)
