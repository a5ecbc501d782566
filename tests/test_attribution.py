"""Grad-CAM beside captum and beside a slow reference; the same maps whatever state caller and network are in."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from r2viz.attribution import cam_maps, class_indices, forward_pass
from r2viz.attribution.gradient import weighted_sum
from r2viz.errors import BadTarget, ModelError, TapError, UnknownName
from r2viz.models.blocks import Res2NetBlock
from r2viz.models.zoo import ZOO
from r2viz.taps import frozen

STAGES = ["layer1", "layer2", "layer3", "layer4"]
TINY = [*STAGES, "layer1.1.bn3", "layer2.1.split1", "layer2.1.conv3_in", "layer2.1.conv3_in[1]", "layer2.0.split3"]


def noise(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """Within `bound` of each picture's own largest value."""
    assert found.shape == expected.shape
    error = (found - expected).abs().amax(dim=(1, 2)) / expected.abs().amax(dim=(1, 2))
    assert error.max() <= bound, error


def reference(module: nn.Module, x: Tensor, target: int, layer: str) -> Tensor:
    """One picture, the slow way: the whole graph, gradients kept, a loop over channels. `(1, h, w)`."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        kept.append(output)
        return output.clone()

    handle = module.get_submodule(layer).register_forward_hook(hook)
    module(x.clone().requires_grad_(True))[0, target].backward()
    handle.remove()
    activation, gradient = kept[0], kept[0].grad
    assert gradient is not None
    total = torch.zeros(activation.shape[2:])
    for channel in range(activation.shape[1]):
        total += gradient[0, channel].mean() * activation[0, channel].detach()
    for parameter in module.parameters():
        parameter.grad = None
    return total[None]


@pytest.fixture
def module(net: Callable[..., Any]) -> nn.Module:
    return net()


# Against captum and the slow reference


@pytest.fixture(scope="module", params=["resnet50", "res2net50_26w_4s"])
def full(request: pytest.FixtureRequest) -> nn.Module:
    """The pair's networks in full size, with statistics that are not fresh; in the library's memory order."""
    from conftest import perturb

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = perturb(ZOO[request.param].build()).eval()
    return module.to(memory_format=torch.channels_last)


def captum_map(module: nn.Module, layer: str, batch: Tensor, targets: list[int]) -> Tensor:
    with frozen(module):
        found = LayerGradCam(module, module.get_submodule(layer)).attribute(
            batch, target=targets, relu_attributions=False
        )
    return found.detach()[:, 0]


@pytest.mark.parametrize("count", [1, 8])
def test_equals_captum_at_stages_an_in_place_trap_and_a_split(full: nn.Module, count: int) -> None:
    layers = [*STAGES, "layer3.1.bn3"]
    if isinstance(full.layer3[1], Res2NetBlock):
        layers += ["layer3.1.split1", "layer3.1.split3", "layer2.0.split3"]
    batch = noise(count, 96).contiguous(memory_format=torch.channels_last)
    targets = [(37 * index + 429) % 1000 for index in range(count)]
    together = cam_maps(full, batch, targets=targets, layers=layers)
    assert list(together) == layers
    for layer in layers:
        assert together[layer].dtype == torch.float32
        close(together[layer], captum_map(full, layer, batch, targets))


def test_equals_the_slow_reference(module: nn.Module) -> None:
    batch, targets = noise(3), [0, 6, 2]
    layers = [layer for layer in TINY if "_in" not in layer]
    found = cam_maps(module, batch, targets=targets, layers=layers)
    for layer in layers:
        expected = torch.cat([reference(module, batch[[i]], target, layer) for i, target in enumerate(targets)])
        close(found[layer], expected)


def test_one_layer_at_a_time_gives_the_same_as_all_at_once(module: nn.Module) -> None:
    batch = noise(2)
    together = cam_maps(module, batch, targets=3, layers=TINY)
    for layer in TINY:
        close(cam_maps(module, batch, targets=3, layers=[layer])[layer], together[layer])


# Splits


def by_hand(module: nn.Module, x: Tensor, target: int, *, cascade: bool) -> list[Tensor]:
    """Maps of the four splits of `layer2.1`, its forward written out.

    With `cascade`, a split's gradient holds what it does to the splits after it; without, only what it does
    through `conv3`.
    """
    block = module.layer2[1]
    with torch.no_grad():
        stem = module.maxpool(torch.relu(module.bn1(module.conv1(x))))
        x = module.layer2[0](module.layer1(stem))
        groups = torch.relu(block.bn1(block.conv1(x))).chunk(4, dim=1)
    y: list[Tensor] = []
    for index in range(3):
        into = groups[index] if index == 0 else groups[index] + (y[-1] if cascade else y[-1].detach())
        y.append(torch.relu(block.bns[index](block.convs[index](into))))
    y.append(groups[3].clone().requires_grad_(True))
    out = torch.relu(block.bn3(block.conv3(torch.cat(y, dim=1))) + x)
    logits = module.fc(module.avgpool(module.layer4(module.layer3(out))).flatten(1))
    gradients = torch.autograd.grad(logits[:, target].sum(), y)
    return [
        (gradient.mean(dim=(2, 3), keepdim=True) * part.detach()).sum(dim=1)
        for gradient, part in zip(gradients, y, strict=True)
    ]


def test_conv3_in_is_the_direct_path_and_split_the_total(module: nn.Module) -> None:
    batch = noise(2)
    layers = [f"layer2.1.{name}" for i in range(4) for name in (f"split{i}", f"conv3_in[{i}]")]
    found = cam_maps(module, batch, targets=4, layers=layers)
    total, direct = by_hand(module, batch, 4, cascade=True), by_hand(module, batch, 4, cascade=False)
    for index in range(4):
        close(found[f"layer2.1.split{index}"], total[index])
        close(found[f"layer2.1.conv3_in[{index}]"], direct[index])
    for index in (0, 1):  # these two have splits after them that they feed
        difference = (total[index] - direct[index]).abs().max() / direct[index].abs().max()
        assert difference > 1e-2
    for index in (2, 3):  # the last convolved and the passed split feed no other
        close(found[f"layer2.1.split{index}"], found[f"layer2.1.conv3_in[{index}]"])


def test_first_of_stage_has_no_cascade(module: nn.Module) -> None:
    layers = [f"layer3.0.{name}" for i in range(4) for name in (f"split{i}", f"conv3_in[{i}]")]
    found = cam_maps(module, noise(2), layers=layers, targets=0)
    for index in range(4):
        close(found[f"layer3.0.split{index}"], found[f"layer3.0.conv3_in[{index}]"])


def test_the_direct_parts_sum_to_the_whole(module: nn.Module) -> None:
    layers = ["layer2.1.conv3_in", *(f"layer2.1.conv3_in[{index}]" for index in range(4))]
    whole, *parts = cam_maps(module, noise(2), layers=layers, targets=0).values()
    close(torch.stack(parts).sum(dim=0), whole)


def test_splits_of_timms_blocks() -> None:
    """Not only ours: timm's Res2Net has no split points, but `conv3_in[i]` works there."""
    import timm

    torch.manual_seed(0)
    module = timm.create_model("res2net50_26w_4s", pretrained=False, zero_init_last=False).eval()
    layers = ["layer4.1.conv3_in", *(f"layer4.1.conv3_in[{index}]" for index in range(4))]
    whole, *parts = cam_maps(module, noise(1), layers=layers, targets=0).values()
    close(torch.stack(parts).sum(dim=0), whole)


# Whatever state the caller and the network are in


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(module: nn.Module, context: Any) -> None:
    batch = noise(2)
    expected = cam_maps(module, batch, layers=TINY)
    with context():
        inside = noise(2)
        targets = module(inside).argmax(dim=1)
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        for found in (
            cam_maps(module, batch, layers=TINY),
            cam_maps(module, inside, targets=targets, layers=TINY, relu=False),
            forward_pass(module, inside, TINY).maps(targets),
        ):
            for layer in TINY:
                close(found[layer], expected[layer])
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.equal(cam_maps(module, inside, layers=["conv1_in"])["conv1_in"].isnan().any(), torch.tensor(False))
    # A batch or targets made there, used outside.
    for layer, map_ in cam_maps(module, inside, targets=targets, layers=TINY).items():
        close(map_, expected[layer])


def test_a_network_made_under_inference_mode_is_refused(net: Callable[..., Any]) -> None:
    with torch.inference_mode():
        module = net()
    with pytest.raises(ModelError, match=r"made under torch.inference_mode.*build or load the network outside of it"):
        cam_maps(module, noise(1))


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_training_mode_and_flags_do_not_matter(net: Callable[..., Any], training: bool, flags: bool) -> None:
    """Nor do the running statistics of a network in training mode take part or move."""
    expected = cam_maps(net(), noise(2), layers=TINY)
    module = net().train(training).requires_grad_(flags)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = cam_maps(module, noise(2), layers=TINY)
    for layer in TINY:
        assert torch.equal(found[layer], expected[layer])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(part.training is training for part in module.modules())
    assert all(parameter.requires_grad is flags for parameter in module.parameters())


def test_a_batch_with_a_past_gets_no_gradient(module: nn.Module) -> None:
    batch = noise(2).requires_grad_(True)
    expected = cam_maps(module, batch.detach())
    found = cam_maps(module, batch * 1, layers=["layer4", "conv1"])
    close(found["layer4"], expected["layer4"])
    assert batch.grad is None
    assert not found["conv1"].requires_grad
    # No graph is built below the first tap, for a batch that asks for one neither.
    seen = forward_pass(module, batch * 1, ["layer3", "layer4"])
    assert seen.activations["layer3"].is_leaf
    assert not seen.activations["layer4"].is_leaf


@pytest.mark.parametrize("kind", ["resnet", "res2net"])
def test_memory_orders_agree(net: Callable[..., Any], kind: str) -> None:
    layers = TINY if kind == "res2net" else STAGES
    expected = cam_maps(net(kind), noise(2), layers=layers)
    for network_last in (False, True):
        for batch_last in (False, True):
            module, batch = net(kind), noise(2)
            if network_last:
                module = module.to(memory_format=torch.channels_last)
            if batch_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            for layer, map_ in cam_maps(module, batch, layers=layers).items():
                close(map_, expected[layer], 1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.999), (torch.bfloat16, 0.98), (torch.float64, 0.99999)])
def test_other_precisions_give_finite_float32_maps(net: Callable[..., Any], dtype: torch.dtype, bound: float) -> None:
    """`bound` is the least correlation with the float32 map of each picture."""
    layers = ["layer2", "layer4", "layer2.1.split1"]
    expected = cam_maps(net(), noise(2, 128), layers=layers, targets=1)
    found = cam_maps(net().to(dtype), noise(2, 128), layers=layers, targets=1)
    for layer in layers:
        assert found[layer].dtype == torch.float32
        assert found[layer].isfinite().all()
        for one, other in zip(found[layer], expected[layer], strict=True):
            assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > bound, layer


def test_pictures_do_not_influence_each_other(module: nn.Module) -> None:
    batch, targets = noise(5), torch.tensor([0, 1, 2, 3, 4])
    order = torch.tensor([3, 0, 4, 1, 2])
    found = cam_maps(module, batch, targets=targets, layers=TINY)
    permuted = cam_maps(module, batch[order], targets=targets[order], layers=TINY)
    alone = cam_maps(module, batch[[2]], targets=2, layers=TINY)
    for layer in TINY:
        close(permuted[layer], found[layer][order])
        close(alone[layer], found[layer][[2]])


def test_relu_clips_and_nothing_else(module: nn.Module) -> None:
    signed, clipped = (cam_maps(module, noise(2), layers=TINY, targets=0, relu=relu) for relu in (False, True))
    assert any(map_.min() < 0 for map_ in signed.values())
    for layer in TINY:
        assert torch.equal(clipped[layer], signed[layer].clamp(min=0))


def test_layers_come_once_in_the_order_asked_for(module: nn.Module) -> None:
    assert list(cam_maps(module, noise(1), layers=["layer4", "layer1", "layer4"])) == ["layer4", "layer1"]
    assert list(cam_maps(module, noise(1), layers="layer3")) == ["layer3"]  # type: ignore[arg-type]


def test_sizes_of_maps(module: nn.Module) -> None:
    batch = torch.randn(2, 3, 70, 45)
    found = cam_maps(module, batch, layers=["conv1", "layer1", "layer4", "avgpool"])
    assert [tuple(map_.shape) for map_ in found.values()] == [(2, 35, 23), (2, 18, 12), (2, 3, 2), (2, 1, 1)]


# Targets


def test_targets_of_every_kind_mean_the_same(module: nn.Module) -> None:
    batch = noise(3)
    expected = cam_maps(module, batch, targets=[5, 5, 5])["layer4"]
    for targets in (5, (5, 5, 5), torch.tensor(5), torch.tensor([5, 5, 5], dtype=torch.uint8), torch.tensor([5] * 3)):
        assert torch.equal(cam_maps(module, batch, targets=targets)["layer4"], expected)
    logits = module(batch)
    assert torch.equal(class_indices(None, logits), logits.argmax(dim=1))
    own = logits.argmax(dim=1).tolist()
    assert torch.equal(cam_maps(module, batch)["layer4"], cam_maps(module, batch, targets=own)["layer4"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 2], r"\(2,\) targets came for 3 pictures; give one for all, or one for each"),
        ([5], r"\(1,\) targets came for 3 pictures"),
        ([[1, 2, 3]], r"\(1, 3\) targets came for 3 pictures"),
        (7, "class 7 does not exist: the network has classes 0 to 6"),
        ([0, -1, 2], "class -1 does not exist"),
        (torch.tensor([0, 1, 70]), "class 70 does not exist"),
        (1.0, "targets are of type torch.float32; class indices are whole numbers"),
        ([1.0, 2.0, 3.0], "class indices are whole numbers"),
        (True, "targets are of type torch.bool"),
        (torch.tensor([1j, 1, 1]), "targets are of type torch.complex64"),
        ("cat", "targets 'cat' are not class indices; give one for all pictures, or one for each"),
        ([None, 1, 2], r"targets \[None, 1, 2\] are not class indices"),
        ([[1], [2, 3]], "are not class indices"),
        (2**70, "are not class indices"),
    ],
)
def test_bad_targets(module: nn.Module, targets: Any, message: str) -> None:
    with pytest.raises(BadTarget, match=message) as caught:
        cam_maps(module, noise(3), targets=targets)
    assert "\n" not in str(caught.value)


# What cannot be explained


class Aside(nn.Module):
    """Has a branch that the scores do not use, and one that they use without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.branch, self.cut = (nn.Conv2d(3, 4, 3) for _ in range(3))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv(x)
        self.branch(x)
        return self.fc(torch.cat([main, self.cut(x).detach()], dim=1).mean(dim=(2, 3)))


@pytest.mark.parametrize("layers", [["branch"], ["conv", "branch"], ["cut"], ["conv", "cut"]])
def test_scores_that_do_not_depend_on_a_layer(layers: list[str]) -> None:
    with pytest.raises(
        TapError, match=f"the class scores do not depend on '{layers[-1]}'; choose a layer that leads to"
    ):
        cam_maps(Aside().eval(), noise(2, 16), layers=layers)
    assert cam_maps(Aside().eval(), noise(2, 16), layers=["conv"])["conv"].shape == (2, 14, 14)


class Gives(nn.Module):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(self.conv(x))


@pytest.mark.parametrize(
    ("what", "came"),
    [
        (lambda y: y, r"\(2, 4, 14, 14\)"),
        (lambda y: {"out": y}, "dict"),
        (lambda y: (y.mean(dim=(2, 3)),), "tuple"),
        (lambda y: y.mean(dim=(2, 3))[:1], r"\(1, 4\)"),
        (lambda y: y.mean(), r"\(\)"),
    ],
)
def test_what_is_not_a_classifier(what: Any, came: str) -> None:
    with pytest.raises(ModelError, match=rf"the network gave {came}, but a classifier's output \(2, classes\) was exp"):
        cam_maps(Gives(what).eval(), noise(2, 16), layers=["conv"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 8, 8), r"the batch is \(3, 8, 8\) of torch.float32; expected floating point \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"the batch is \(1, 3, 8, 8\) of torch.uint8"),
        (torch.zeros(1, 3, 8, 8).numpy(), "the batch is a ndarray; expected a tensor"),
    ],
)
def test_bad_batches(module: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        cam_maps(module, batch)


def test_unknown_method(module: nn.Module) -> None:
    with pytest.raises(UnknownName, match=r"no method 'grad-cam'; did you mean 'gradcam'\?; there are gradcam") as bad:
        cam_maps(module, noise(1), method="grad-cam")
    assert bad.value.code == "unknown_name.method"


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 6, 1, 1), (1, 1, 3, 3), (2, 1, 1, 1), (0, 6, 5, 4), (2, 6, 1, 4)])
def test_weighted_sum_in_every_memory_order(shape: tuple[int, int, int, int]) -> None:
    whole = torch.randn(shape[0], 3 * shape[1], *shape[2:])
    weights = torch.randn(shape[:2])
    for order in (torch.contiguous_format, torch.channels_last):
        part = whole.contiguous(memory_format=order).chunk(3, dim=1)[1]  # a view, contiguous in neither order
        for activations in (part, part.contiguous(memory_format=order)):
            expected = torch.einsum("nc,nchw->nhw", weights, activations)
            assert torch.allclose(weighted_sum(activations, weights), expected, atol=1e-5)


# Threads, memory


def test_eight_threads_on_one_network_give_the_maps_of_one(net: Callable[..., Any]) -> None:
    """Each with its own batch, size, layers and targets; the network in training mode with mixed flags meanwhile."""
    module = net().train()
    module.layer2.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    work = [(noise(1 + i % 3, 48 + 16 * (i % 2), i), [TINY[i % len(TINY)], "layer4"], i % 7) for i in range(8)]
    expected = [cam_maps(net(), batch, layers=layers, targets=target) for batch, layers, target in work]
    failures: list[object] = []
    start = threading.Barrier(8)

    def run(index: int) -> None:
        batch, layers, target = work[index]
        start.wait()
        for _ in range(6):
            try:
                found = cam_maps(module, batch, layers=layers, targets=target)
                for layer in layers:
                    close(found[layer], expected[index][layer])
            except BaseException as error:  # what happens in a thread must reach the test
                failures.append((index, error))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(part.training for part in module.modules())
    assert [parameter.requires_grad for parameter in module.parameters()] == flags


def resident() -> float:
    """This process's resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_does_not_grow_over_200_calls(module: nn.Module) -> None:
    batch = noise(2)

    def calls(count: int) -> None:
        for index in range(count):
            cam_maps(module, batch, layers=["layer1", "layer4", "layer2.1.conv3_in[1]"], targets=index % 7)
            if index % 10 == 0:
                with pytest.raises(TapError):
                    cam_maps(module, batch, layers=["layer4", "fc"])

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    # A network that has seen much is folded: once, and its copy of the weights is no growth.
    cam_maps(module, batch, layers=["layer1", "layer4", "layer2.1.conv3_in[1]"], fold=True)
    calls(30)
    gc.collect()
    before, objects, alive = resident(), len(gc.get_objects()), tensors()
    calls(200)
    gc.collect()
    assert tensors() == alive
    assert len(gc.get_objects()) - objects < 50  # less, where other tests' leavings go meanwhile
    assert resident() - before < 5


def test_maps_hold_no_graph_and_nothing_waits_for_the_collector(module: nn.Module) -> None:
    """Reference counts alone free a pass: on a GPU, garbage that waits is memory that is missing."""
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        found = cam_maps(module, noise(2), layers=TINY, targets=0)
        assert all(map_.grad_fn is None and not map_.requires_grad for map_ in found.values())
        del found
        assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) == before
    finally:
        gc.enable()
