"""CIFAR's networks: nobody publishes them, so they are held against formulas, arithmetic and a second writing."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import perturb
from torch import Tensor, nn
from torch.nn import functional as F

from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.cifar import CIFAR, SWEEP, resnext
from r2viz.models.model import class_names, load
from r2viz.models.row import Row
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids

ROWS = [pytest.param(row, id=name) for name, row in CIFAR.items()]


def formula(
    *,
    cardinality: int,
    width: int,
    scale: int,
    depth: int = 29,
    attention: str | None = None,
    classes: int = 100,
    all_splits: bool = False,
) -> int:
    """The number of parameters, layer by layer; `all_splits`: first-of-stage blocks convolve every split."""
    total = 3 * 64 * 9 + 2 * 64  # stem, and its normalisation's scale and shift
    inputs = 64
    for stage in (1, 2, 4):
        group, outputs = cardinality * width * stage, 256 * stage
        for block in range((depth - 2) // 9):
            convolved = scale if scale == 1 or (block == 0 and all_splits) else scale - 1
            total += inputs * group * scale + 2 * group * scale  # 1x1
            total += convolved * (group * (width * stage) * 9 + 2 * group)  # 3x3: each channel sees its group's
            total += group * scale * outputs + 2 * outputs  # 1x1
            if block == 0:
                total += inputs * outputs + 2 * outputs  # shortcut
            if attention == "se":
                total += 2 * outputs * (outputs // 16) + outputs // 16 + outputs
            inputs = outputs
    return total + 1024 * classes + classes


@pytest.mark.parametrize("row", ROWS)
def test_parameters_are_the_formulas(row: Row) -> None:
    assert formula(**row.arguments) == row.params  # the table's own test counts them


def test_a_group_is_c_times_w_wide_and_doubles() -> None:
    with torch.device("meta"):
        module = resnext(cardinality=6, width=24, scale=4)
    assert [stage[0].width for stage in (module.layer1, module.layer2, module.layer3)] == [144, 288, 576]
    assert [len(stage) for stage in (module.layer1, module.layer2, module.layer3)] == [3, 3, 3]
    assert module.layer1[1].convs[0].groups == 6
    assert not hasattr(module, "layer4")


@pytest.mark.shared
def test_what_the_paper_prints_is_noted_and_what_gives_it(shared: Path) -> None:
    """Ten classes and stage blocks that convolve all splits give every printed count without attention, none with."""
    with (shared / "facts" / "paper_tables.csv").open() as file:
        printed = {line["model"]: line["value"] for line in csv.DictReader(file) if line["metric"] == "params"}
    told = {row.published[0].called: row for row in CIFAR.values() if row.published}
    assert set(told) == {name for name in printed if name.startswith(("ResNeXt-29", "Res2NeXt-29"))}
    for called, row in told.items():
        assert f"the paper prints {float(printed[called])} M parameters" in row.note
        explained = formula(**row.arguments, classes=10, all_splits=True) / 1e6
        if row.arguments["attention"]:
            assert abs(explained - float(printed[called])) > 0.1, called
        else:
            assert abs(explained - float(printed[called])) < 0.06, called
    assert [formula(**told[name].arguments, classes=10, all_splits=True) / 1e6 for name in told if "Res2" in name][
        :3
    ] == pytest.approx([24.269, 33.813, 36.709], abs=5e-4)
    assert [told[name].params / 1e6 for name in told if "Res2" in name][:3] == pytest.approx(
        [23.706, 32.957, 36.146], abs=5e-4
    )


def test_the_sweep_is_one_base_and_each_dimension_up_to_six_times() -> None:
    base = {"cardinality": 6, "width": 24, "scale": 1, "depth": 29, "attention": None}
    values = {"cardinality": [6, 12, 18, 24, 30, 36], "depth": [29, 56, 83, 110, 137, 164], "scale": [1, 2, 3, 4, 5, 6]}
    assert set(SWEEP) == set(values)
    for dimension, names in SWEEP.items():
        assert [CIFAR[name].arguments for name in names] == [{**base, dimension: value} for value in values[dimension]]
        counts = [CIFAR[name].params for name in names]
        assert counts == sorted(counts)
        assert 5e6 < counts[0] < counts[-1] < 45e6  # the axis of the figure


@pytest.mark.parametrize("row", ROWS)
def test_blocks_are_the_ones_of_the_house(row: Row) -> None:
    with torch.device("meta"):
        module = row.build()
    kinds = {type(block) for name in module.stages for block in module.get_submodule(name)}
    assert kinds == {Res2NetBlock if row.arguments["scale"] > 1 else Bottleneck}
    assert grids(module)["layer3"] == Grid((4, 4), (0, 0))
    blocks = sum(len(module.get_submodule(name)) for name in module.stages)
    assert 3 * blocks + 2 == row.arguments["depth"]


# Receptive field


def sizes(scale: int) -> dict[str, int]:
    """The largest field of each stage of a 29-layer network: each 3x3 adds 2 · jump, and a block has at most s − 1."""
    longest = max(1, scale - 1)
    field, jump, found = 3, 1, {}
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        field += 2 * jump  # first of stage: nothing cascades, one 3x3 or the pooling
        jump *= stride
        field += 2 * longest * 2 * jump
        found[f"layer{stage}"] = field
    return found


@pytest.mark.parametrize("scale", [1, 2, 4, 6])
def test_fields_are_those_of_gradient_support(scale: int) -> None:
    module = resnext(cardinality=2, width=1, scale=scale, num_classes=3).double().eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    expected = sizes(scale)
    assert expected["layer3"] == {1: 39, 2: 39, 4: 95, 6: 151}[scale]
    side = expected["layer3"] // 8 * 8 + 16
    x = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    out = module.maxpool(module.relu(module.bn1(module.conv1(x))))
    for name in module.stages:
        out = module.get_submodule(name)(out)
        middle = out.shape[-1] // 2
        (gradient,) = torch.autograd.grad(out[0, :, middle, middle].sum(), x, retain_graph=True)
        rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
        assert int(rows[-1] - rows[0]) + 1 == expected[name]
        # Centred where the grid says: on both sides equally far.
        jump = side // out.shape[-1]
        assert int(rows[-1] + rows[0]) == 2 * jump * middle


# The paper's order and the code's


def as_in_the_paper(block: Res2NetBlock, x: Tensor) -> Tensor:
    """Equation 1 as printed, y_1 = x_1 and y_i = K_i(x_i + y_{i-1}), from weights of a block in code order.

    Code's last group of channels is the paper's first, code's convs[i] is K_{i+2}.
    """
    s, w = block.scale, block.width
    order = torch.cat([torch.arange((s - 1) * w, s * w), torch.arange((s - 1) * w)])  # the paper's channels
    groups = (
        F.batch_norm(
            F.conv2d(x, block.conv1.weight[order]),
            block.bn1.running_mean[order],
            block.bn1.running_var[order],
            block.bn1.weight[order],
            block.bn1.bias[order],
        )
        .relu()
        .chunk(s, dim=1)
    )

    def k(i: int, value: Tensor) -> Tensor:
        return block.bns[i - 2](block.convs[i - 2](value)).relu()

    y: dict[int, Tensor] = {}
    for i in range(1, s + 1):
        x_i = groups[i - 1]
        if i == 1:
            y[i] = block.pool(x_i) if block.first else x_i
        elif i == 2 or block.first:
            y[i] = k(i, x_i)
        else:
            y[i] = k(i, x_i + y[i - 1])
    out = block.bn3(F.conv2d(torch.cat([y[i] for i in range(1, s + 1)], dim=1), block.conv3.weight[:, order]))
    if hasattr(block, "se"):
        out = block.se(out)
    return (out + (x if block.downsample is None else block.downsample(x))).relu()


@pytest.mark.parametrize("attention", [None, "se"])
@pytest.mark.parametrize("scale", [2, 3, 6])
def test_paper_and_code_order_are_one_network(scale: int, attention: str | None) -> None:
    torch.manual_seed(0)
    module: Any = resnext(cardinality=3, width=2, scale=scale, attention=attention)
    perturb(module).double().eval()
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    with torch.inference_mode():
        expected = module.relu(module.bn1(module.conv1(x)))
        for name in module.stages:
            for block in module.get_submodule(name):
                expected = as_in_the_paper(block, expected)
        expected = module.fc(expected.mean((2, 3)))
        assert expected.std() > 1e-3
        assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)


# Loading and errors


def test_random_weights_classes_and_shapes() -> None:
    model = load("res2next29_6c_24w_4s", weights="random")
    assert model.classes == class_names("cifar100")
    assert (len(model.classes), model.classes[0], model.classes[99]) == (100, "apple", "worm")
    tensor, geometry = model.preprocess(torch.zeros(48, 40, 3, dtype=torch.uint8).numpy())
    assert geometry.input_size == (32, 32)
    with torch.inference_mode():
        assert model.module(tensor).shape == (1, 100)


@pytest.mark.parametrize("depth", [2, 28, 50, -7])
def test_depth_that_is_no_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"depth is {depth}; a network of three stages has 9·n + 2 layers")):
        resnext(cardinality=6, width=24, depth=depth)
