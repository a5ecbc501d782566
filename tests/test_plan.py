"""Compiled and folded passes give the plain pass's maps, or say in one sentence why they are not taken."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2viz.attribution import cam_maps, forward_pass, plan
from r2viz.attribution.plan import planned_pass
from r2viz.errors import TapError, UnknownName
from r2viz.graph import parted
from r2viz.taps import frozen, point

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Every test hears its own warnings."""
    plan._said.clear()
    yield
    plan._said.clear()


def noise(count: int = 3, size: int = 64, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(**options)


def light(module: nn.Module, batch: Tensor, layers: list[str]) -> tuple[Any, dict[str, Tensor]] | None:
    """What `forward_pass` does, without the compiler."""
    with frozen(module), torch.enable_grad():
        return planned_pass(module, batch, layers, fold=True)


def slopes(output: Tensor, taken: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(output[:, 1].sum(), list(taken.values()), allow_unused=True)
    return dict(zip(taken, found, strict=True))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# --- Taken apart and folded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("resnet", ["layer4"]),
        ("resnet", LAYERS),
        ("resnet", ["conv1"]),
        ("resnet", ["conv1_in"]),
        ("resnet", ["layer3", "layer2.0.bn1"]),
        ("resnet", ["layer3.0", "layer3.0.conv3_in", "layer3"]),
        ("res2net", LAYERS),
        ("res2net", ["layer3.0.split0", "layer3.0.split1", "layer3.0.split2"]),
        ("res2net", ["layer3.0.split1", "layer3.0.conv3_in[1]", "layer3.0.conv3_in[2]", "layer3.0_in"]),
        ("res2net", ["layer2.0.conv1_in", "layer2.0.convs.0"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_features_and_gradients_are_those_of_the_plain_pass(
    net: Callable[..., nn.Module], kind: str, layers: list[str]
) -> None:
    # In float64, where no rounding can switch a ReLU.
    module, batch = net(kind).double(), noise(dtype=torch.float64)
    plain = forward_pass(module, batch, layers)
    found = light(module, batch, layers)
    assert found is not None
    output, taken = found
    assert apart(output.detach(), plain.output.detach()) < 1e-12
    wanted = {layer: plain.activations[layer] for layer in layers}
    expected, gradients = slopes(plain.output, wanted), slopes(output, {layer: taken[layer] for layer in layers})
    for layer in layers:
        assert apart(taken[layer].detach(), wanted[layer].detach()) < 1e-12
        assert apart(gradients[layer], expected[layer]) < 1e-9


def test_in_float32_it_is_as_near_to_float64_as_the_plain_pass(net: Callable[..., nn.Module]) -> None:
    module, batch = net("res2net"), noise()
    truth = cam_maps(copy.deepcopy(module).double(), batch.double(), targets=1, layers=LAYERS)
    plain = cam_maps(module, batch, targets=1, layers=LAYERS)
    found = light(module, batch, LAYERS)
    assert found is not None
    for layer, slope in slopes(*found).items():
        map_ = (found[1][layer].detach() * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
        assert apart(map_.double(), truth[layer]) < max(1e-5, 2 * apart(plain[layer].double(), truth[layer]))


def test_parts_of_a_network_give_what_it_gives_whole(net: Callable[..., nn.Module]) -> None:
    module, batch = net("res2net"), noise()
    parts = parted(module, [point(module, layer) for layer in LAYERS])
    assert parts is not None
    assert [where.path for where in parts.points] == LAYERS
    with torch.no_grad():
        output, kept = parts.suffix(*parts.prefix(batch))
        assert torch.equal(output, module(batch))
    assert [tensor.shape[2] for tensor in kept] == [16, 8, 4, 2]
    assert all(tensor.requires_grad for tensor in kept)


def test_what_does_not_lead_to_the_output_is_not_parted(net: Callable[..., nn.Module]) -> None:
    module = net("resnet")
    module.spare = nn.Conv2d(3, 3, 1)
    assert parted(module, [point(module, "spare")]) is None


def test_whatever_is_asked_of_a_plain_pass_can_be_asked(
    net: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = net("res2net"), noise()
    monkeypatch.setattr(plan, "compiled", lambda *_: "no compiler here")
    for options in (
        {"targets": torch.tensor([[0, 1, 2]] * 3)},
        {"method": "layercam", "relu": True},
        {"method": "eigencam"},
        {"method": "ablationcam", "targets": 1},
        {"method": "shapleycam", "targets": 1},
        {"targets": lambda logits: logits[:, 0] - logits[:, 1]},
    ):
        plain = cam_maps(module, batch, layers=["layer3", "layer4"], **options)
        for layer, map_ in cam_maps(module, batch, layers=["layer3", "layer4"], compile=True, **options).items():
            assert apart(map_, plain[layer]) < 1e-4


# --- When it is not taken, and when it is made anew ------------------------------------------------------------------


def test_changed_weights_are_seen(net: Callable[..., nn.Module]) -> None:
    module, batch = net("resnet"), noise()

    def maps() -> Tensor:
        found = light(module, batch, ["layer4"])
        assert found is not None
        return found[0].detach()

    before = maps()
    with torch.no_grad():
        module.layer4[0].conv1.weight.mul_(1.5)
    after = maps()
    assert apart(after, before) > 1e-3
    module.load_state_dict(net("resnet", seed=3).state_dict(), assign=True)
    assert apart(maps(), module(batch).detach()) < 1e-5
    module.layer4[0].bn2.running_mean.add_(0.5)
    assert apart(maps(), module(batch).detach()) < 1e-5
    assert len(plan._plans[module]) == 1


def test_plans_are_kept_for_a_few_sets_of_taps_and_go_with_the_network(net: Callable[..., nn.Module]) -> None:
    module = net("resnet")
    before = len(plan._plans)
    for layers in (["layer1"], ["layer2"], ["layer3"], ["layer4"], LAYERS, ["layer4"]):
        light(module, noise(), layers)
    assert len(plan._plans[module]) == plan._PLANS
    gone = weakref.ref(module)
    del module
    assert gone() is None  # at once, without waiting for the garbage collector
    assert len(plan._plans) <= before


def test_the_network_is_left_as_it_was(net: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "compiled", lambda *_: "no compiler here")
    module = net("resnet").train()
    module.fc.weight.requires_grad_(False)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    flags = [parameter.requires_grad for parameter in module.parameters()]
    cam_maps(module, noise(), layers=["layer4"], compile=True)
    with pytest.raises(UnknownName, match="did you mean 'layer4'"):
        cam_maps(module, noise(), layers=["layer5"], compile=True)
    assert all(part.training for part in module.modules())
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_hooks_are_called_and_told_of(net: Callable[..., nn.Module]) -> None:
    module, batch, seen = net("resnet"), noise(), []
    plain = cam_maps(module, batch, layers=["layer4"])
    module.layer2.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(RuntimeWarning, match=r"has hooks, which compiled code would not call: going on without"):
        found = cam_maps(module, batch, layers=["layer4"], compile=True)
    assert seen == [1]
    assert torch.equal(found["layer4"], plain["layer4"])


class Branching(nn.Module):
    """Which way it goes depends on values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 100:
            x = -x
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_what_cannot_be_followed_runs_plainly() -> None:
    module, batch = Branching(), noise(size=16)
    with pytest.warns(RuntimeWarning, match=r"torch.fx cannot follow Branching from conv to its output"):
        found = cam_maps(module, batch, targets=0, layers=["conv"], compile=True)
    assert torch.equal(found["conv"], cam_maps(module, batch, targets=0, layers=["conv"])["conv"])
    with pytest.raises(TapError, match="not a feature map"):
        cam_maps(module, batch, targets=0, layers=["fc"], compile=True)


# --- By itself -------------------------------------------------------------------------------------------------------


def row(kind: str, net: Callable[..., nn.Module]) -> tuple[nn.Module, list[str], int]:
    """`(network, layers, side)` of every kind that the zoo has, with normalisations that do something."""
    if kind in ("resnet", "res2net"):
        return net(kind), ["layer2", "layer4"], 64
    from r2viz import load

    name, layers, size = {
        "dla": ("dla60", ["level3", "level5"], 64),
        "cifar": ("resnet26_mini", ["layer2", "layer4"], 64),
        "se": ("se_resnet50", ["layer2", "layer4"], 64),
        "biglittle": ("blresnet50", ["layer2", "layer4"], 64),
    }[kind]
    module = load(name, weights="random").module
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(0.1 * torch.randn(part.num_features, generator=generator))
            part.bias.data.copy_(0.1 * torch.randn(part.num_features, generator=generator))
    return module, layers, size


@pytest.mark.parametrize("kind", ["resnet", "res2net", "dla", "cifar", "se", "biglittle"])
def test_a_folded_networks_maps_are_its_own(net: Callable[..., nn.Module], kind: str) -> None:
    module, layers, size = row(kind, net)
    module, batch = module.double(), noise(2, size, dtype=torch.float64)
    plain = forward_pass(module, batch, layers, fold=False)
    found = forward_pass(module, batch, layers, fold=True)
    assert len(plan._plans[module]) == 1
    assert apart(found.logits.detach(), plain.logits.detach()) < 1e-9
    expected = plain.maps(1)
    for layer, map_ in found.maps(1).items():
        assert apart(map_, expected[layer]) < 1e-6


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_in_float32_a_piece_at_a_time_changes_nothing_but_rounding(
    net: Callable[..., nn.Module], memory: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = noise(7)
    monkeypatch.setattr(plan, "_CPU_MAP", 3 * batch[0].nbytes * 16 / 3)  # three at a time
    for kind in ("resnet", "res2net"):
        module = net(kind).to(memory_format=memory)
        for layer in ("layer4", "layer3.0.bn2" if kind == "resnet" else "layer3.0.split1", "conv1_in"):
            plain = forward_pass(module, batch, [layer], fold=False)
            found = forward_pass(module, batch, [layer], fold=True)
            again = forward_pass(module, batch, [layer])
            assert torch.equal(found.logits, again.logits)  # nothing of the first was written over
            assert apart(found.logits.detach(), plain.logits.detach()) < 1e-5
            assert apart(found.activations[layer].detach(), plain.activations[layer].detach()) < 1e-5
            # Probabilities move by half of what logits do, at most.
            far = (found.logits - plain.logits).detach().abs().max()
            moved = (found.logits.softmax(1) - plain.logits.softmax(1)).detach().abs().max()
            assert moved <= 0.5 * far + 2e-7
            assert moved < 2e-6


def test_it_comes_when_enough_was_seen_and_stays_out_of_the_way(
    net: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = net("resnet"), noise(3)
    monkeypatch.setattr(plan, "_WORTHWHILE", 2 * batch.numel())
    first = cam_maps(module, batch, layers=["layer4"])["layer4"]
    assert module not in plan._plans
    cam_maps(module, batch, layers=["layer4"], fold=False)
    assert apart(cam_maps(module, batch, layers=["layer4"])["layer4"], first) < 1e-4
    assert len(plan._plans[module]) == 1
    plain = Branching()  # cannot be followed, and nobody asked for it: not a word
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            cam_maps(plain, batch, targets=0, layers=["conv"])
    assert plan._refused[plain]


def test_methods_of_many_passes_run_the_kept_network(net: Callable[..., nn.Module]) -> None:
    module, batch = net("resnet"), noise(2)

    def maps() -> Tensor:
        return cam_maps(module, batch, targets=1, layers=["layer4"], method="scorecam", channels=8)["layer4"]

    plain = maps()
    assert plan.folded_network(module) is None
    cam_maps(module, batch, layers=LAYERS, fold=True)
    whole = plan.folded_network(module)
    assert whole is not None
    with torch.inference_mode(), frozen(module):
        assert apart(whole(batch), module(batch)) < 1e-5
    assert apart(maps(), plain) < 1e-4
    module.layer4[0].bn2.bias.data.add_(1.0)
    assert plan.folded_network(module) is None
    changed = maps()
    assert apart(changed, plain) > 1e-3
    fresh = net("resnet")
    fresh.load_state_dict(module.state_dict())
    assert (
        apart(changed, cam_maps(fresh, batch, targets=1, layers=["layer4"], method="scorecam", channels=8)["layer4"])
        < 1e-4
    )


def _step(module: nn.Module) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-4)
    module(noise(1)).square().sum().backward()
    optimiser.step()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "an optimiser's step": _step,
    "loaded": lambda module: module.load_state_dict({k: v * 1.1 for k, v in module.state_dict().items()}),
    "through data": lambda module: module.layer3[0].conv2.weight.data.mul_(1.5),
    "another number type and back": lambda module: module.bfloat16().float(),
    "statistics": lambda module: module.layer4[0].bn2.running_var.mul_(2),
    "a part in place of another": lambda module: setattr(module.layer2[0], "relu", nn.Softplus()),
    "a setting": lambda module: setattr(module.layer4[0].bn1, "eps", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(net: Callable[..., nn.Module], change: str) -> None:
    module, batch = net("resnet"), noise(3)
    before = forward_pass(module, batch, ["layer4"], fold=True).logits.detach()
    CHANGES[change](module)
    with torch.no_grad():
        expected = module(batch)
    assert apart(before, expected) > 1e-5
    for fold in (None, True):
        assert apart(forward_pass(module, batch, ["layer4"], fold=fold).logits.detach(), expected) < 1e-5


def test_hooks_that_come_later_are_called(net: Callable[..., nn.Module]) -> None:
    module, batch, seen = net("resnet"), noise(), []
    cam_maps(module, batch, layers=["layer4"], fold=True)
    handle = module.layer2.register_forward_hook(lambda *_: seen.append(1))
    cam_maps(module, batch, layers=["layer4"])
    handle.remove()
    own = module.layer3.forward
    module.layer3.forward = lambda x: (seen.append(2), own(x))[1]  # type: ignore[method-assign]
    cam_maps(module, batch, layers=["layer4"])
    assert seen == [1, 2]


def test_eight_threads_fold_one_network_and_users_gradients_stay(net: Callable[..., nn.Module]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    module, batch = net("res2net").train(), noise(6)
    module.fc.weight.grad = torch.ones_like(module.fc.weight)
    plain = [cam_maps(module, batch[i % 6 :][:1], targets=1, layers=["layer4"], fold=False) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        work = [
            pool.submit(cam_maps, module, batch[i % 6 :][:1], targets=1, layers=["layer4"], fold=True)
            for i in range(16)
        ]
    for one, expected in zip(work, plain, strict=True):
        assert apart(one.result()["layer4"], expected["layer4"]) < 1e-4
    assert len(plan._plans[module]) == 1
    assert torch.equal(module.fc.weight.grad, torch.ones_like(module.fc.weight))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())


# --- With the compiler -----------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutions, so that compiling takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_compiled_maps_of_full_and_smaller_batches() -> None:
    import torch._inductor.config as settings

    module, freezing = Small().eval(), settings.freezing
    plain = cam_maps(module, noise(4, 16), targets=1, layers=["second"])["second"]
    for count in (4, 3, 1):
        found = cam_maps(module, noise(4, 16)[:count], targets=1, layers=["second"], compile=True)["second"]
        assert apart(found, plain[:count]) < 1e-5
    (made,) = plan._plans[module]
    if made.prefix is None:
        pytest.skip("not run: needs a C++ compiler")
    assert settings.freezing == freezing


def test_without_a_compiler_one_sentence_says_so() -> None:
    import torch._inductor.config as settings

    module = Small().eval()
    module.double()  # another number type: nothing of it is in inductor's cache
    batch = noise(2, 16, dtype=torch.float64)
    plain = cam_maps(module, batch, targets=1, layers=["second"])["second"]
    with (
        settings.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.warns(RuntimeWarning, match="going on without the compiler, with normalisations folded"),
    ):
        found = cam_maps(module, batch, targets=1, layers=["second"], compile=True)["second"]
    assert apart(found, plain) < 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        cam_maps(module, batch, targets=1, layers=["second"], compile=True)


# --- From above ------------------------------------------------------------------------------------------------------


def test_records_are_the_same_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    import numpy as np

    from r2viz import load
    from r2viz.explain import explain
    from r2viz.records import CamRecord

    monkeypatch.setattr(plan, "compiled", lambda *_: "no compiler here")
    models = [load(name, weights="mini") for name in ("resnet26_mini", "res2net26_mini")]
    cat = Path(__file__).parents[1] / "examples" / "cat.jpg"

    def record(**options: Any) -> CamRecord:
        return explain(cat, models, layers=("layer2", "layer4"), **options)

    plain, found = record(), record(compile=True)
    assert "compile" not in plain.settings
    assert found.settings["compile"] is True
    for one, other in zip(plain.views, found.views, strict=True):
        for expected, map_ in zip(one.maps, other.maps, strict=True):
            assert np.abs(map_.raw - expected.raw).max() < 1e-3 * np.abs(expected.raw).max()
            assert np.abs(map_.raw - expected.raw).max() > 0  # it was taken, after all
    assert all(len(plan._plans[model.module]) == 1 for model in models)
