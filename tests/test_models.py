"""Blocks, assembly, table and loading: the same numbers as timm's and torchvision's networks from the same weights."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torchvision
from conftest import perturb
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from r2viz.errors import ModelError, UnknownName
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.model import load, load_pair, resolve_device
from r2viz.models.resnet import ResNet
from r2viz.models.weights import digest

RES2 = partial(ResNet, Res2NetBlock, scale=4, base_width=26)
STRIDE16, STRIDE8 = (False, False, True), (False, True, True)

# Ours, and what it must equal: the assembly's arguments that no row of the table uses (test_zoo.py has the rows).
TWINS: dict[str, tuple[Callable[..., nn.Module], str, dict[str, Any]]] = {
    "res2net-stride16": (partial(RES2, dilate=STRIDE16), "timm:res2net50_26w_4s", {"output_stride": 16}),
    "res2net-stride8": (partial(RES2, dilate=STRIDE8), "timm:res2net50_26w_4s", {"output_stride": 8}),
    "resnet-stride16": (
        partial(ResNet, Bottleneck, dilate=STRIDE16),
        "torchvision:resnet50",
        {"replace_stride_with_dilation": [*STRIDE16]},
    ),
    "resnet-stride8": (
        partial(ResNet, Bottleneck, dilate=STRIDE8),
        "torchvision:resnet50",
        {"replace_stride_with_dilation": [*STRIDE8]},
    ),
    "resnet-stride8-timm": (partial(ResNet, Bottleneck, dilate=STRIDE8), "timm:resnet50", {"output_stride": 8}),
}


@pytest.mark.parametrize("case", TWINS)
def test_keys_and_outputs_equal_the_peers(case: str) -> None:
    build, name, options = TWINS[case]
    with torch.device("meta"):
        ours, theirs = build(), oracle.elsewhere(name, **options)
    assert oracle.shapes(ours) == oracle.shapes(theirs)
    if name.startswith("torchvision"):
        assert list(ours.state_dict()) == list(theirs.state_dict())
    assert "layer4" in oracle.same_outputs(ours, theirs)


def test_one_group_is_resnet() -> None:
    """`scale=1` with torchvision's width is torchvision's bottleneck, to the last bit."""
    ours = perturb(ResNet(Res2NetBlock, (2, 1, 1, 2), num_classes=10, scale=1, base_width=64)).eval()
    theirs = torchvision.models.ResNet(TorchvisionBottleneck, [2, 1, 1, 2], num_classes=10).eval()
    renamed = {
        key.replace(".convs.0.", ".conv2.").replace(".bns.0.", ".bn2."): value
        for key, value in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed, strict=True)
    batch = torch.randn(2, 3, 75, 75)
    with torch.inference_mode():
        assert torch.equal(ours(batch), theirs(batch))


# The block


def outputs(block: Res2NetBlock, x: Tensor) -> list[Tensor]:
    """y_0 … y_{s-1} of a forward pass, as the split points give them."""
    taken: list[Tensor] = []
    handles = [
        block.get_submodule(f"split{index}").register_forward_hook(lambda _m, _a, out: taken.append(out))
        for index in range(block.scale)
    ]
    block(x)
    for handle in handles:
        handle.remove()
    return taken


def bare(scale: int, *, first: bool, stride: int = 1, width: int = 2) -> Res2NetBlock:
    """A block whose input, where positive, *is* its groups: nothing in front of the split."""
    planes = width * scale // 4
    block = Res2NetBlock(4 * planes, planes, stride, base_width=64 * width // planes, scale=scale, first=first)
    assert block.width == width
    block.conv1, block.bn1 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    if stride != 1 or first:
        block.downsample = nn.Conv2d(width * scale, 4 * planes, 1, stride, bias=False)
    for part in block.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return perturb(block).eval()


@pytest.mark.parametrize(("first", "stride"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_what_each_split_depends_on(scale: int, first: bool, stride: int) -> None:
    """First of stage: group i alone. Otherwise groups 0 to i, and the last one its own group only."""
    width = 2
    block = bare(scale, first=first, stride=stride, width=width)
    for conv in block.convs:  # no dead units: a dependence that ReLU hides would not be seen
        nn.init.uniform_(conv.weight, 0.1, 1.0)
    x = torch.rand(1, width * scale, 9, 9).add_(0.1).requires_grad_(True)
    seen = outputs(block, x)
    assert len(seen) == scale
    for index, y in enumerate(seen):
        (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        groups = {j for j, part in enumerate(gradient.chunk(scale, dim=1)) if part.abs().max() > 0}
        alone = first or index == scale - 1
        assert groups == ({index} if alone else set(range(index + 1))), f"split{index}"


def test_the_last_split_passes_unchanged_or_is_pooled_first_of_stage() -> None:
    x = torch.rand(2, 8, 9, 9)
    assert torch.equal(outputs(bare(4, first=False), x)[3], x[:, 6:])
    pooled = outputs(bare(4, first=True, stride=2), x)[3]
    # The padding counts: at the corner four of nine values are there, and the mean is over nine.
    assert torch.allclose(pooled, torch.nn.functional.avg_pool2d(x[:, 6:], 3, 2, 1, count_include_pad=True))
    assert torch.allclose(pooled[:, :, 0, 0], x[:, 6:, :2, :2].sum(dim=(2, 3)) / 9)


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_code_order_is_the_papers_up_to_a_permutation(scale: int) -> None:
    """Equation 1 as printed, on permuted weights: x_1 passes, K_2 sees x_2, K_i sees x_i + y_{i-1}."""
    width = 5
    block = perturb(Res2NetBlock(80, 20, base_width=16, scale=scale)).eval().double()
    assert block.width == width
    order = [scale - 1, *range(scale - 1)]  # the paper's x_1 is the last group of the code
    rows = torch.cat([torch.arange(group * width, (group + 1) * width) for group in order])
    x = torch.randn(2, 80, 7, 7, dtype=torch.float64)

    def paper() -> Tensor:
        h = nn.functional.conv2d(x, block.conv1.weight[rows])
        bn = block.bn1
        h = nn.functional.batch_norm(h, bn.running_mean[rows], bn.running_var[rows], bn.weight[rows], bn.bias[rows])
        groups = h.relu().split(width, dim=1)
        y = [groups[0]]
        for i in range(2, scale + 1):
            into = groups[i - 1] if i == 2 else groups[i - 1] + y[-1]
            y.append(block.bns[i - 2](block.convs[i - 2](into)).relu())
        out = nn.functional.conv2d(torch.cat(y, dim=1), block.conv3.weight[:, rows])
        return (block.bn3(out) + x).relu()

    with torch.inference_mode():
        assert (block(x) - paper()).abs().max() < 1e-12


def test_split_points_are_hookable_and_leave_no_key(net: Callable[..., Any]) -> None:
    module = net()
    for name, block in module.named_modules():
        if isinstance(block, Res2NetBlock):
            for index in range(block.scale):
                assert isinstance(module.get_submodule(f"{name}.split{index}"), nn.Identity)
    assert not [key for key in module.state_dict() if "split" in key or "pool" in key]
    fired = []
    handle = module.get_submodule("layer2.1.split3").register_forward_hook(lambda *_: fired.append(1))
    module(torch.randn(1, 3, 32, 32))
    handle.remove()
    assert fired == [1]


def test_first_of_stage_is_given_not_guessed() -> None:
    """Where stem and stage fit without a shortcut convolution, the first block still has no additions."""
    module = ResNet(Res2NetBlock, (2, 1, 1, 1), widths=(16, 32, 64, 128), stem_width=64, base_width=26, scale=4)
    first, second = module.layer1
    assert first.downsample is None
    assert first.first
    assert not second.first
    assert [block.first for stage in (module.layer2, module.layer3, module.layer4) for block in stage] == [True] * 3


@pytest.mark.parametrize("block", [Bottleneck, Res2NetBlock])
def test_attention_sits_after_the_last_normalisation_before_the_addition(block: Any) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0

    made: list[int] = []

    def attention(channels: int) -> nn.Module:
        made.append(channels)
        return Zero()

    unit = block(64, 16, attention=attention).eval()
    assert made == [64]
    x = torch.randn(1, 64, 6, 6)
    assert torch.equal(unit(x), x.relu())


def test_small_stem_widths_strides() -> None:
    module = ResNet(
        Res2NetBlock,
        (1, 1, 1, 1),
        num_classes=5,
        widths=(4, 8, 12, 16),
        strides=(1, 2, 1, 2),
        stem="3x3",
        stem_stride=1,
        stem_width=6,
        pool=False,
        base_width=64,
        scale=4,
    ).eval()
    x = torch.randn(1, 3, 33, 33)
    with torch.inference_mode():
        stem = module.maxpool(module.relu(module.bn1(module.conv1(x))))
        one = module.layer1(stem)
        two = module.layer2(one)
        four = module.layer4(module.layer3(two))
        assert module(x).shape == (1, 5)
    assert [tuple(t.shape[1:]) for t in (stem, one, two, four)] == [(6, 33, 33), (16, 33, 33), (32, 17, 17), (64, 9, 9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "9x9"}, "no stem '9x9'; there are '7x7', '3x3' and 'deep'"),
        ({"depths": (1, 1, 1)}, "one value per stage, and dilate one less; 3, 4, 4 and 2 came"),
        ({"dilate": (False,)}, "4, 4, 4 and 1 came"),
        ({"scale": 0}, "scale is 0; a block needs at least one group"),
        ({"shortcut": "avg"}, "no shortcut 'avg'; there are 'conv' and 'avgpool'"),
        ({"widths": (2, 4, 8, 16), "base_width": 26}, "with 2 planes and base width 26 a group has no channel"),
    ],
)
def test_assembly_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(Res2NetBlock, **{"depths": (1, 1, 1, 1), "widths": (8, 16, 32, 64), **options})


# The table and loading


@pytest.mark.parametrize("name", ["res2net50_26w4s", "Res2Net50_26W_4S ", "res2net"])
def test_unknown_model_suggests(name: str) -> None:
    with pytest.raises(
        UnknownName, match=rf"no model '{name}'; did you mean 'res2net\w*'\?; `r2viz models` lists all"
    ) as e:
        load(name, weights="random")
    assert e.value.code == "unknown_name.model"


def test_nothing_near_says_where_the_list_is() -> None:
    with pytest.raises(
        UnknownName, match=r"^no model 'vgg'; `r2viz models` lists all \d+, and there are timm:NAME, torc"
    ):
        load("vgg", weights="random")
    with pytest.raises(UnknownName, match="no pair 'imagnet'; did you mean 'imagenet'"):
        load_pair("imagnet", weights="random")


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    """`load` with random weights, and what became of the global generators meanwhile."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - it is the legacy global state that must stay as it was
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    model = load("res2net50_26w_4s", weights="random", seed=3)
    after = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    return {"model": model, "before": before, "after": after}


def test_random_weights_are_reproducible_and_leave_global_generators(drawn: dict[str, Any]) -> None:
    for before, after in zip(drawn["before"], drawn["after"], strict=True):
        assert (before == after) is True or bool((before == after).all())
    model = drawn["model"]
    torch.manual_seed(99)
    again = load("res2net50", weights="random", seed=3)
    assert again.name == "res2net50_26w_4s"
    assert again.weights.sha256 == model.weights.sha256 == digest(again.module.state_dict())
    other = load("res2net50_26w_4s", weights="random")
    assert other.seed == 0
    assert other.weights.sha256 != model.weights.sha256
    assert (model.seed, model.weights.random, model.weights.kind) == (3, True, "random")


def test_random_weights_hide_no_branch(drawn: dict[str, Any]) -> None:
    """A zeroed last normalisation would leave an untrained network with the shortcut's receptive field only."""
    for name, part in drawn["model"].module.named_modules():
        if name.endswith("bn3"):
            assert part.weight.abs().min() > 0


def test_loaded_module_is_in_evaluation_and_channels_last(drawn: dict[str, Any]) -> None:
    module = drawn["model"].module
    assert not any(part.training for part in module.modules())
    for parameter in module.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        stage = module.layer1(module.maxpool(module.conv1(torch.randn(1, 3, 33, 33))))
    assert stage.is_contiguous(memory_format=torch.channels_last)
    assert len(drawn["model"].classes) == 1000
    assert drawn["model"].classes[429] == "baseball"


@pytest.mark.parametrize("weights", ["auto", "imagenet", "somewhere.safetensors"])
def test_seed_belongs_to_random_weights(weights: str) -> None:
    with pytest.raises(
        ModelError, match=f"seed 3 was given with weights '{weights}'; a seed belongs to weights 'random'"
    ):
        load("resnet50", weights=weights, seed=3)


def test_number_of_class_names() -> None:
    with pytest.raises(ModelError, match="2 class names came for a network of 1000 classes; give one name per class"):
        load("resnet50", weights="random", classes=["a", "b"])


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "xpu", "cpu:x", ""])
def test_device_that_is_not_there(device: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of missing drivers
        with pytest.raises(
            ModelError, match=rf"device '{device}' cannot be used \(.*\); try 'auto' or 'cpu'"
        ) as caught:
            resolve_device(device)
    assert "\n" not in str(caught.value)


def test_device_auto_is_one_that_works() -> None:
    assert torch.empty(1, device=resolve_device("auto")).numel() == 1
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_weights_are_reordered_where_they_are_and_keep_their_values() -> None:
    from r2viz.models.model import _reorder

    module = ResNet(Res2NetBlock, (1, 1, 1, 1), widths=(8, 8, 8, 8), base_width=64, groups=2, num_classes=3).eval()
    expected = {key: value.clone() for key, value in module.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = module(batch)
    _reorder(module)
    assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == places
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected[key]), key
        assert value.ndim != 4 or value.is_contiguous(memory_format=torch.channels_last)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == places
    with torch.inference_mode():
        torch.testing.assert_close(module(batch), before, atol=1e-5, rtol=1e-4)


def test_weights_that_are_one_another_s_are_not_reordered_in_place() -> None:
    from r2viz.models.model import _reorder

    module = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    module[1].weight = nn.Parameter(module[0].weight.data)  # another parameter on the same memory
    expected = module[0].weight.clone()
    _reorder(module)
    assert torch.equal(module[0].weight, expected)
    assert torch.equal(module[1].weight, expected)
