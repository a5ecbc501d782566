"""Big-Little networks: counts, and a second, plain writing of what they compute."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from conftest import perturb
from torch import Tensor, nn
from torch.nn import functional as F

from r2viz.models import count
from r2viz.models.biglittle import BigLittleNet, bl_res2net, bl_resnet
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids

RES2 = {"base_width": 26, "scale": 4}
# Narrow blocks (the stages' own widths are fixed), few of them.
SMALL: dict[type[nn.Module], dict[str, Any]] = {
    Bottleneck: {"base_width": 8, "depths": (3, 2, 2, 2), "num_classes": 7},
    Res2NetBlock: {"base_width": 4, "scale": 4, "depths": (3, 2, 2, 2), "num_classes": 7},
}


@pytest.fixture(scope="module", params=[Bottleneck, Res2NetBlock], ids=["bottleneck", "res2net"])
def net(request: pytest.FixtureRequest) -> BigLittleNet:
    torch.manual_seed(0)
    return perturb(BigLittleNet(request.param, **SMALL[request.param])).eval()


def test_the_baseline_costs_what_its_authors_say() -> None:
    """Their README prints 2.85 GFLOPs; the parameters are those of their code, written anew for comparison."""
    with torch.device("meta"):
        module = bl_resnet(alpha=2, beta=4)
    assert count.params(module) == 26_694_568
    assert count.macs(module, (224, 224)) == 2_856_058_880


def formula(scale: int, base_width: int) -> int:
    """Parameters of the 50-layer network, α 2, β 4; scale 1 with width 64 is the bottleneck."""

    def conv(inputs: int, outputs: int, side: int = 1) -> int:
        return inputs * outputs * side * side + 2 * outputs  # with its normalisation

    def block(inputs: int, outputs: int) -> int:
        width = outputs // 4 * base_width // 64
        own = conv(inputs, width * scale) + max(1, scale - 1) * conv(width, width, 3) + conv(width * scale, outputs)
        return own + (conv(inputs, outputs) if inputs != outputs else 0)

    total = conv(3, 64, 7) + conv(64, 64, 3) + conv(64, 32, 3) + conv(32, 32, 3) + conv(32, 64) + conv(64, 64)
    inputs = 64
    for outputs, blocks in ((256, 3), (512, 4), (1024, 6)):
        total += block(inputs, outputs) + (blocks - 2) * block(outputs, outputs)  # big
        total += block(inputs, outputs // 2) + conv(outputs // 2, outputs)  # little, one block at β = 4
        total += block(outputs, outputs)  # fusion
        inputs = outputs
    return total + block(1024, 2048) + 2 * block(2048, 2048) + 2048 * 1000 + 1000


@pytest.mark.parametrize(("build", "scale", "width"), [(bl_resnet, 1, 64), (bl_res2net, 4, 26), (bl_res2net, 2, 48)])
def test_parameters_are_the_formulas(build: Any, scale: int, width: int) -> None:
    with torch.device("meta"):
        module = build(**({"scale": scale, "base_width": width} if scale > 1 else {}))
    assert count.params(module) == formula(scale, width)


def test_keys_are_those_of_the_authors_code() -> None:
    with torch.device("meta"):
        keys = {key for key in bl_resnet().state_dict() if "num_batches" not in key and "running" not in key}
    stem = {"conv1", "bn1", "b_conv0", "bn_b0", "l_conv0", "bn_l0", "l_conv1", "bn_l1", "l_conv2", "bn_l2", "bl_init"}
    assert {key.partition(".")[0] for key in keys} == stem | {
        "bn_bl_init",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "fc",
    }
    assert {key.split(".")[1] for key in keys if key.startswith("layer2")} == {"big", "little", "little_e", "fusion"}
    # The shortcut: pooling, where there is a stride, takes number 0.
    assert {key for key in keys if re.match(r"layer1\..*downsample", key)} == {
        f"layer1.{where}.{kind}"
        for where, kinds in {
            "big.0.downsample": ("1.weight", "2.weight", "2.bias"),
            "little.0.downsample": ("0.weight", "1.weight", "1.bias"),
        }.items()
        for kind in kinds
    }
    assert {int(key.split(".")[2]) for key in keys if key.startswith("layer3.big")} == {0, 1, 2, 3, 4}
    assert {int(key.split(".")[2]) for key in keys if key.startswith("layer3.little.")} == {0}


# What it computes


def plain(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Every stage's output, written out; blocks are taken as they are, but for their last ReLU."""

    def unfinished(block: Any, x: Tensor) -> Tensor:
        kept = block.rectified
        block.rectified = False
        out = block(x)
        block.rectified = kept
        return out

    def seq(blocks: Any, x: Tensor, *, last: bool = True) -> Tensor:
        for index, block in enumerate(blocks):
            x = unfinished(block, x)
            if last or index < len(blocks) - 1:
                x = x.relu()
        return x

    found: dict[str, Tensor] = {}
    x = net.bn1(net.conv1(x)).relu()
    little = net.bn_l1(net.l_conv1(net.bn_l0(net.l_conv0(x)).relu())).relu()
    x = (net.bn_b0(net.b_conv0(x)) + net.bn_l2(net.l_conv2(little))).relu()
    x = net.bn_bl_init(net.bl_init(x)).relu()
    for name in ("layer1", "layer2", "layer3"):
        stage = net.get_submodule(name)
        little = stage.little_e(seq(stage.little, x))
        big = seq(stage.big, x, last=False)
        assert big.min() < 0
        x = (F.interpolate(big, little.shape[2:]) + little).relu()
        x = found[name] = seq(stage.fusion, x)
    x = found["layer4"] = seq(net.layer4, x)
    found["logits"] = net.fc(x.mean((2, 3)))
    return found


@pytest.mark.parametrize("size", [64, 97, 160])
def test_it_is_what_it_says(net: BigLittleNet, size: int) -> None:
    x = torch.randn(2, 3, size, size)
    seen: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out.clone())
        )
        for name in net.stages
    ]
    with torch.inference_mode():
        seen["logits"] = net(x)
        expected = plain(net, x)
    for handle in handles:
        handle.remove()
    assert seen["logits"].shape == (2, 7)
    assert [seen[name].shape[1] for name in net.stages] == [256, 512, 1024, 2048]
    assert [seen[name].shape[2] for name in net.stages] == [-(-size // stride) for stride in (8, 16, 16, 32)]
    for name, value in expected.items():
        assert value.std() > 1e-3
        assert torch.allclose(seen[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name


def test_both_branches_are_used(net: BigLittleNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    net.requires_grad_(True)
    names = dict(net.named_parameters())
    gradients = dict(zip(names, torch.autograd.grad(net(x).square().sum(), list(names.values())), strict=True))
    for name in ("b_conv0", "l_conv0", "l_conv1", "l_conv2", "bl_init"):
        assert gradients[f"{name}.weight"].abs().max() > 0
    for stage in ("layer1", "layer2", "layer3"):
        for branch in ("big", "little", "little_e", "fusion"):
            within = {key: value for key, value in gradients.items() if key.startswith(f"{stage}.{branch}.")}
            assert within
            assert all(value.abs().max() > 0 for value in within.values()), (stage, branch)


def test_which_blocks_do_not_cascade() -> None:
    with torch.device("meta"):
        module = bl_res2net(**RES2)
    blocks = {name: part for name, part in module.named_modules() if isinstance(part, Res2NetBlock)}
    assert len(blocks) == (2 + 1 + 1) + (3 + 1 + 1) + (5 + 1 + 1) + 3
    assert {name for name, block in blocks.items() if block.first} == {
        *(f"layer{stage}.big.0" for stage in (1, 2, 3)),
        "layer1.little.0",  # later ones get as many channels as they give
        "layer1.fusion.0",
        "layer2.fusion.0",
        "layer4.0",
    }
    assert {name for name, block in blocks.items() if not block.rectified} == {
        "layer1.big.1",
        "layer2.big.2",
        "layer3.big.4",
    }


def test_places_are_those_of_the_little_branch_and_flagged(net: BigLittleNet) -> None:
    found = grids(net)
    assert found["layer1.little"] == Grid((4, 4), (0, 0))
    assert found["layer1.big"] == Grid((8, 8), (0, 0))
    # Two neighbours brought back from one unit look at one place, so no lattice is exact.
    assert found["layer1.up"] == Grid((4, 4), (-2, -2), aligned=False)
    for name, jump in {"layer1": 8, "layer2": 16, "layer3": 16, "layer4": 32}.items():
        assert found[name] == Grid((jump, jump), (0, 0), aligned=False)


def test_units_brought_back_are_centred_in_pairs_around_the_lattice() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1, bias=False), nn.Upsample(scale_factor=2)).double()
    nn.init.ones_(module[0].weight)
    x = torch.ones(1, 1, 24, 24, dtype=torch.float64, requires_grad=True)
    out = module(x)
    centres = []
    for unit in (8, 9, 10, 11):
        (gradient,) = torch.autograd.grad(out[0, 0, unit, 12], x, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero()[:, 0]
        centres.append(float(rows[0] + rows[-1]) / 2)
    grid = grids(module)["1"]
    assert grid is not None
    assert centres == [8, 8, 10, 10]
    told = [grid.start[0] + unit * grid.jump[0] for unit in (8, 9, 10, 11)]
    assert sum(told) == sum(centres)
    assert max(abs(a - b) for a, b in zip(told, centres, strict=True)) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (3, 4, 6)}, "depths are (3, 4, 6); a Big-Little network has four stages of 2 blocks or more"),
        ({"depths": (1, 4, 6, 3)}, "depths are (1, 4, 6, 3); a Big-Little network has four stages"),
        ({"alpha": 3}, "alpha 3, beta 4: both are 1 or more, and alpha divides the stem's 64 channels"),
        ({"beta": 0}, "alpha 2, beta 0: both are 1 or more"),
    ],
)
def test_assembly_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        bl_resnet(**options)
