"""Squeeze-and-excitation: against its equations, and the networks that have it against timm's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from oracle import same_outputs, shapes
from timm.models.res2net import Bottle2neck
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from r2viz.models import count
from r2viz.models.attention import attention, squeeze_excitation
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.resnet import ResNet, res2net, resnet
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids


def test_it_is_what_the_equations_say() -> None:
    module = squeeze_excitation(256).eval()
    x = torch.randn(2, 256, 5, 7)
    keys = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert keys == {
        "fc1.weight": (16, 256, 1, 1),
        "fc1.bias": (16,),
        "fc2.weight": (256, 16, 1, 1),
        "fc2.bias": (256,),
    }
    with torch.inference_mode():
        squeezed = (x.mean((2, 3)) @ module.fc1.weight[:, :, 0, 0].T + module.fc1.bias).clamp(min=0)
        gate = 1 / (1 + (-(squeezed @ module.fc2.weight[:, :, 0, 0].T + module.fc2.bias)).exp())
        assert torch.allclose(module(x), x * gate[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize("channels", [32, 64, 200, 256, 320, 448, 2048])
def test_squeezed_channels_are_rounded_as_in_timm(channels: int) -> None:
    assert shapes(squeeze_excitation(channels)) == shapes(timm.layers.SEModule(channels))


def timms_se_res2net() -> nn.Module:
    return TimmResNet(
        Bottle2neck, (3, 4, 6, 3), base_width=26, block_args={"scale": 4, "attn_layer": timm.layers.SEModule}
    )


@pytest.mark.parametrize("size", [97, 100])
def test_se_res2net_equals_what_timms_parts_give(size: int) -> None:
    """It has no name in timm; SE-ResNet-50, which has one, is compared by the table's own tests."""
    with torch.device("meta"):
        ours, theirs = res2net(base_width=26, scale=4, attention="se"), timms_se_res2net()
    assert count.params(ours) == 28_230_112
    assert shapes(ours) == shapes(theirs)
    assert "the logits" in same_outputs(ours, theirs, size=size)


@pytest.mark.parametrize("block", [Bottleneck, Res2NetBlock])
def test_with_it_every_unit_sees_the_whole_picture_from_where_it_was(block: Any) -> None:
    """One gate is enough: without it a unit of the first stage sees 27 pixels or less of a picture of 65."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"widths": (8, 8, 8, 8), "stem": "3x3", "pool": False, "base_width": 64}
    with_gate, without = (ResNet(block, (1, 1, 1, 1), attention=name, **options).eval() for name in ("se", None))
    seen = {}
    for module in (with_gate, without):
        x = torch.randn(1, 3, 65, 65, requires_grad=True)
        stage = module.layer1(module.relu(module.bn1(module.conv1(x))))
        (gradient,) = torch.autograd.grad(stage[0, :, 16, 16].sum(), x)
        seen[module is with_gate] = int((gradient.abs().sum((0, 1)) > 0).sum())
        # A gate moves no centre, so maps are still laid where their units are; their extent is nowhere claimed.
        assert grids(module)["layer1"] == Grid((2, 2), (0, 0))
    assert seen[True] > 0.9 * 65**2
    assert seen[False] <= 27**2


def test_unknown_attention() -> None:
    with pytest.raises(ValueError, match=r"^no attention 'sE'; did you mean 'se'\?; there is se$"):
        attention("sE")
    with pytest.raises(ValueError, match="no attention 'cbam'; there is se"):
        resnet(attention="cbam")
