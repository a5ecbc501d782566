"""Taps and the frozen guard: what they show is what was computed, and the network is left as it was."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r2viz.attribution import cam_maps
from r2viz.errors import TapError, UnknownName
from r2viz.taps import device_of, frozen, lock, point, tap, unwrapped

SIZE = 48


@pytest.fixture
def module(net: Callable[..., Any]) -> nn.Module:
    return net()


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(
        len(getattr(part, store))
        for part in module.modules()
        for store in vars(part)
        if store.endswith("_hooks") and "state_dict" not in store
    )


def state(module: nn.Module) -> dict[str, Any]:
    """All that an analysis could leave changed, the identity of gradients included."""
    return {
        "hooks": hooks(module),
        "modes": [part.training for part in module.modules()],
        "flags": [parameter.requires_grad for parameter in module.parameters()],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.sum().item()) for p in module.parameters()],
        "values": [tensor.double().sum().item() for tensor in module.state_dict().values()],
        "attributes": [sorted(vars(part)) for part in module.modules()],
    }


def mixed(module: nn.Module) -> nn.Module:
    """Some parameters frozen, some modules in training mode, some gradients there."""
    module.layer2.train()
    module.layer3[0].bn1.train()
    module.fc.weight.requires_grad_(False)
    module.layer1[0].conv1.weight.requires_grad_(False)
    for index, parameter in enumerate(module.parameters()):
        if index % 3 == 0:
            parameter.grad = torch.full_like(parameter, index)
    return module


class Broken(nn.Module):
    """Raises on the way, behind the tapped layers."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    before = state(module)
    yield
    assert state(module) == before


# After success and after failure


@pytest.mark.parametrize("layers", [["layer4"], ["layer1", "layer2.0.bn3", "layer2.1.split1", "layer2.1.conv3_in[2]"]])
def test_nothing_is_left_after_success(module: nn.Module, batch: Tensor, layers: list[str]) -> None:
    with unchanged(mixed(module)):
        cam_maps(module, batch, layers=layers)


@pytest.mark.parametrize("error", [RuntimeError("in forward"), KeyboardInterrupt(), torch.OutOfMemoryError("full")])
def test_nothing_is_left_after_a_failing_forward(module: nn.Module, batch: Tensor, error: BaseException) -> None:
    module.fc = Broken(error)
    module.layer2.train()
    with unchanged(module), pytest.raises(type(error)):
        cam_maps(module, batch, layers=["layer4", "layer2.1.split0"])
    # And the lock is free again, seen from another thread.
    free: list[bool] = []
    thread = threading.Thread(target=lambda: free.append(lock(module).acquire(timeout=1)))
    thread.start()
    thread.join()
    assert free == [True]


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        (["layer4.0.relu"], TapError, r"'layer4.0.relu' is called more than once in a forward pass"),
        (["fc"], TapError, r"'fc' gives \(2, 7\), not a feature map \(N, C, H, W\); choose a convolutional layer"),
        (["layer4", "fc_in"], TapError, r"'fc_in' gives \(2, \d+\), not a feature map"),
        (["layer4", "unused"], TapError, "the forward pass never reached 'unused'.*tap the original module"),
        (["layer4", "layer5"], UnknownName, r"no layer 'layer5' in ResNet; did you mean 'layer\d'\?"),
        ([], UnknownName, "no layer was named"),
    ],
)
def test_nothing_is_left_after_a_refusal(
    module: nn.Module, batch: Tensor, layers: list[str], kind: type[Exception], message: str
) -> None:
    module.unused = nn.Conv2d(3, 3, 1)
    with unchanged(mixed(module)), pytest.raises(kind, match=message) as caught:
        cam_maps(module, batch, layers=layers)
    assert "\n" not in str(caught.value)


def test_a_bad_target_leaves_nothing_either(module: nn.Module, batch: Tensor) -> None:
    with unchanged(mixed(module)), pytest.raises(Exception, match="class 7 does not exist"):
        cam_maps(module, batch, targets=7)


def test_frozen_restores_mixed_modes_and_flags(module: nn.Module) -> None:
    with unchanged(mixed(module)):
        with frozen(module):
            assert not any(part.training for part in module.modules())
            assert not any(parameter.requires_grad for parameter in module.parameters())
            with frozen(module):  # nested: the inner one has nothing to restore
                pass
            assert not any(part.training for part in module.modules())
        with pytest.raises(ZeroDivisionError), frozen(module):
            raise ZeroDivisionError


def test_tap_alone_changes_no_value_and_no_mode(module: nn.Module, batch: Tensor) -> None:
    plain = module(batch)
    with unchanged(module), tap(module, ["layer3", "layer1.1.split2"]) as taken:
        tapped = module(batch)
    assert torch.equal(plain, tapped)
    assert list(taken) == ["layer1.1.split2", "layer3"]


# What is kept


def stages(module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Activations by hand: stage after stage, and inside layer2.1 operation after operation, nothing in place."""
    x = torch.relu(module.bn1(module.conv1(batch)))
    found = {"bn1": module.bn1(module.conv1(batch))}
    x = module.layer2[0](module.layer1(module.maxpool(x)))
    block = module.layer2[1]
    groups = torch.relu(block.bn1(block.conv1(x))).chunk(4, dim=1)
    y: list[Tensor] = []
    for index in range(3):
        into = groups[index] if index == 0 else groups[index] + y[-1]
        found[f"layer2.1.bns.{index}"] = block.bns[index](block.convs[index](into))
        y.append(torch.relu(found[f"layer2.1.bns.{index}"]))
    y.append(groups[3])
    found |= {f"layer2.1.split{index}": part for index, part in enumerate(y)}
    found["layer2.1.conv3_in"] = torch.cat(y, dim=1)
    found["layer2.1.bn3"] = block.bn3(block.conv3(found["layer2.1.conv3_in"]))
    found["layer2.1_in"] = x
    found["layer2"] = torch.relu(found["layer2.1.bn3"] + x)
    return found


@pytest.mark.parametrize("differentiable", [False, True])
def test_in_place_operations_do_not_reach_what_is_kept(module: nn.Module, batch: Tensor, differentiable: bool) -> None:
    with torch.no_grad():
        expected = stages(module, batch)
    with frozen(module), tap(module, list(expected), differentiable=differentiable) as taken:
        module(batch)
    for name, value in expected.items():
        assert torch.allclose(taken[name], value, atol=1e-6), name
    for name in ("bn1", "layer2.1.bn3", "layer2.1.bns.0"):  # followed by an in-place ReLU, which leaves none below 0
        assert taken[name].min() < 0, name


class AddsInPlace(nn.Module):
    """`x += block(x)`, as many networks have it, and an Identity whose output the caller goes on changing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.point = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x += self.block(x)
        same = self.point(x)
        x *= 2
        return self.head((x + same.exp()).mean(dim=(2, 3)))


def test_what_the_caller_changes_in_place_does_not_reach_what_is_kept(batch: Tensor) -> None:
    torch.manual_seed(1)
    module = AddsInPlace().eval()
    with torch.no_grad():
        stem = module.stem(batch)
        summed = stem + module.block(stem)
    for differentiable in (False, True):
        with frozen(module), tap(module, ["block_in", "point"], differentiable=differentiable) as taken:
            module(batch)
        assert torch.equal(taken["block_in"], stem)
        assert torch.equal(taken["point"], summed)


def test_one_split_is_a_part_of_the_whole_input(module: nn.Module, batch: Tensor) -> None:
    names = [f"layer3.0.conv3_in[{index}]" for index in range(4)]
    with tap(module, [*names, "layer3.0.split1"]) as taken, torch.no_grad():
        module(batch)
    parts = [point(module, name).part(taken[name]) for name in names]
    assert all(taken[name] is taken[names[0]] for name in names)
    assert torch.equal(torch.cat(parts, dim=1), taken[names[0]])
    assert torch.equal(parts[1], taken["layer3.0.split1"])


def test_two_passes_inside_one_tap_are_refused(module: nn.Module, batch: Tensor) -> None:
    with unchanged(module), pytest.raises(TapError, match="called more than once") as caught, tap(module, ["layer4"]):
        module.layer4(module.layer4(torch.randn(1, 128, 4, 4)).narrow(1, 0, 128))
    assert caught.value.code == "tap.twice"


def test_a_reused_module_is_refused(batch: Tensor) -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    module = nn.Sequential(conv, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(TapError, match="'0' is called more than once"):
        cam_maps(module, batch, layers=["0"])


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer5", r"no layer 'layer5' in tiny; did you mean 'layer\d'\?$"),
        ("Layer4", r"did you mean 'layer4'\?$"),
        ("layer2.1.splt1", r"did you mean 'layer2.1.split\d'\?$"),
        ("layer2.1.split4", r"no layer 'layer2.1.split4' in tiny; did you mean 'layer2.1.split\d'\?$"),
        ("zzz", "no layer 'zzz' in tiny; its top-level parts are conv1, bn1, relu, maxpool, layer1"),
        ("", "no layer '' in tiny; its top-level parts are"),
        ("_in", "no layer '_in' in tiny"),
        ("layer4[1]", r"no layer 'layer4\[1\]' in tiny"),
        ("layer4.0.conv3[1]", r"no layer 'layer4.0.conv3\[1\]' in tiny"),
        ("layer4.0.conv9_in[1]", r"no layer 'layer4.0.conv9_in\[1\]' in tiny"),
        ("layer4.0.conv3_in[-1]", r"no layer 'layer4.0.conv3_in\[-1\]' in tiny"),
        ("layer2.1.conv3_in[4]", r"no split 4 in 'layer2.1.conv3': the block has scale 4, so splits 0 to 3$"),
        ("layer2.1.conv1_in[0]", r"asks for one split, but 'layer2.1.conv1' is not the last convolution of a Res2Net"),
        ("layer4_in[0]", r"asks for one split, but 'layer4' is not the last convolution of a Res2Net block"),
        ("a\nb" * 200, r"no layer 'a\\\\nb.*…' in tiny"),
    ],
)
def test_unknown_names(module: nn.Module, name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message) as caught:
        point(module, name, called="tiny")
    assert caught.value.code == "unknown_name.layer"
    assert len(str(caught.value)) < 300


def test_a_split_of_resnet_is_no_name(net: Callable[..., Any]) -> None:
    with pytest.raises(UnknownName, match=r"'layer2.1.conv3' is not the last convolution of a Res2Net block"):
        point(net("resnet"), "layer2.1.conv3_in[0]")


def test_what_a_gradient_holds_is_named(module: nn.Module) -> None:
    kinds = {name: point(module, name).gradient for name in ("layer4", "layer2.1.split1", "layer2.1.conv3_in[1]")}
    assert kinds == {"layer4": "total", "layer2.1.split1": "total", "layer2.1.conv3_in[1]": "direct"}


def test_a_module_whose_name_ends_like_an_input() -> None:
    module = nn.ModuleDict({"conv_in": nn.Conv2d(3, 3, 1)})
    assert not point(module, "conv_in").into
    assert point(module, "conv_in_in").into


# Compiled, scripted


def compiled_parts(module: Any, how: str) -> str:
    """Compiles in one of the ways that people use; gives the name of layer4's last normalisation afterwards."""
    inner = "layer4.0.bn3"
    if how == "whole in place":
        module.compile(backend="eager")
    elif how == "part in place":
        module.layer4.compile(backend="eager")
    else:
        module.layer4 = torch.compile(module.layer4, backend="eager")
        inner = "layer4._orig_mod.0.bn3"
    return inner


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("how", ["whole in place", "part in place", "part wrapped"])
def test_compiled_networks_give_the_right_map_or_an_error(net: Any, batch: Tensor, how: str, warm: bool) -> None:
    """Hooks added after compilation do not fire; what must not be is a wrong map, or a hook compiled in for good."""
    torch._dynamo.reset()
    module, same = net(depths=(1, 1, 1, 1)), net(depths=(1, 1, 1, 1))
    expected = cam_maps(same, batch, targets=1, layers=["layer4", "layer4.0.bn3"])
    plain = same(batch)
    inner = compiled_parts(module, how)
    if warm:
        module(batch)
    for _ in range(2):
        for layers in ([inner], ["layer4", inner]):
            try:
                found = cam_maps(module, batch, targets=1, layers=layers)
            except TapError as error:
                assert "hooks do not fire inside compiled" in str(error)  # noqa: PT017 - either is right
                continue
            for layer, map_ in found.items():
                reference = expected["layer4.0.bn3" if layer == inner else "layer4"]
                assert torch.allclose(map_, reference, rtol=1e-4, atol=1e-6), (layers, layer)
        assert hooks(module) == 0
        assert torch.allclose(module(batch), plain, atol=1e-5)
        assert module(batch).requires_grad


def test_the_wrapper_of_compile_is_looked_through(net: Any, batch: Tensor) -> None:
    module = net()
    wrapper = torch.compile(module, backend="eager")
    assert unwrapped(wrapper) is module
    assert unwrapped(module) is module
    assert torch.equal(cam_maps(wrapper, batch)["layer4"], cam_maps(module, batch)["layer4"])


@pytest.mark.filterwarnings("ignore")
def test_a_traced_network_is_refused(net: Any, batch: Tensor) -> None:
    traced = torch.jit.trace(net(), batch)
    with pytest.raises(TapError, match=r"the forward pass never reached 'layer4'.*compiled or scripted"):
        cam_maps(traced, batch)


# Other threads, other hooks


def test_a_plain_forward_of_another_thread_passes_unharmed(module: nn.Module, batch: Tensor) -> None:
    """Also while the tap is open: it is neither kept, nor counted as a second call, nor cut from its graph."""
    other = torch.randn(1, 3, 64, 64)
    plain = module(other)
    results: list[Tensor] = []

    def elsewhere() -> None:
        results.append(module(other))

    with tap(module, ["layer2", "layer2.0.conv3_in[1]"], differentiable=True) as taken:
        for _ in range(2):
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        assert not taken
        module(batch)
    assert len(results) == 2
    assert all(torch.equal(result, plain) for result in results)
    assert len(taken["layer2"]) == 2
    results[0].sum().backward()
    assert module.conv1.weight.grad.abs().max() > 0


def test_the_users_own_hooks_survive_and_fire(module: nn.Module, batch: Tensor) -> None:
    calls: list[str] = []
    layer = module.layer3[0]
    handles = [
        layer.register_forward_pre_hook(lambda *_: calls.append("before")),
        layer.register_forward_hook(lambda *_: calls.append("after")),
        layer.bn3.register_forward_hook(lambda _m, _i, out: out * 2),
    ]
    with unchanged(module):
        maps = cam_maps(module, batch, layers=["layer3.0", "layer3.0.bn3"], targets=0)
    assert calls == ["before", "after"]
    assert handles[0].id in layer._forward_pre_hooks
    module(batch)
    assert calls == ["before", "after"] * 2
    with tap(module, ["layer3.0.bn3"]) as taken:  # a hook that changes the output is part of the network
        module(batch)
    handles[2].remove()
    with tap(module, ["layer3.0.bn3"]) as bare:
        module(batch)
    assert torch.equal(taken["layer3.0.bn3"], bare["layer3.0.bn3"] * 2)
    assert not torch.equal(
        cam_maps(module, batch, layers=["layer3.0.bn3"], targets=0)["layer3.0.bn3"], maps["layer3.0"]
    )


def test_a_forward_pass_inside_a_users_hook_does_not_deadlock(module: nn.Module, batch: Tensor) -> None:
    """The lock is re-entrant: a hook of the user's that asks for a map of the same network in the same thread."""
    with lock(module), lock(module):
        cam_maps(module, batch)


def test_locks_and_taps_keep_no_network_alive(net: Any, batch: Tensor) -> None:
    module = net()
    lock(module)
    cam_maps(module, batch)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def test_every_network_has_its_own_lock(net: Any) -> None:
    one, other = net(), net()
    assert lock(one) is lock(one)
    assert lock(one) is not lock(other)


def test_device_of(net: Any) -> None:
    assert device_of(net()) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.BatchNorm2d(2, affine=False).to("meta")) == torch.device("meta")
