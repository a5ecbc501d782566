"""Big-Little networks: each stage sees its input twice, deep at half resolution and shallow at full resolution.

The paper puts the Res2Net block into one of them (bLRes2Net-50, table 1 of arXiv 1904.01169) and published neither code
nor weights of that, nor its width and scale: 26w-4s is our reading, after its Res2Net-50. What is known of the baseline
bLResNet-50 (α = 2, β = 4): its paper and its authors' code, which agree on the layout below, on 2.85 GFLOPs and on the
22.41 % error that the Res2Net paper quotes. Layout and key names here follow that code, so that its checkpoint fits.

Ours besides: which Res2Net blocks count as first of a stage, so that their splits do not cascade and the last one is
pooled: those that change resolution or channels, the rule of the published Res2Net weights. These are the first of
every big branch and of the first little one, the fusing blocks with a stride, and the first of the last stage.

Source: Chen et al. 2019, arXiv 1807.03848, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.models.blocks import Bottleneck, Res2NetBlock

Block = type[Bottleneck] | type[Res2NetBlock]


class BigLittleStage(nn.Module):
    """A stage as two branches and a block that fuses them.

    Maps `(N, inplanes, H, W)` to `(N, outplanes, H/stride, W/stride)`. The big branch has all blocks of the stage but
    one, at half the resolution; the little one few, at full resolution, `outplanes / alpha` wide and then widened by a
    1x1. The big one is brought back by nearest neighbours and added; ReLU, then the fusing block with the stride.

    Args:
        block: of which everything is built; `block_args` (say `scale=4`) go to it.
        inplanes: channels that come.
        outplanes: channels that leave.
        blocks: depth of the stage, as in the plain network; at least 2.
        alpha: by how much the little branch is narrower.
        beta: by how much it is shallower: `max(1, blocks // beta - 1)` blocks.
        stride: of the fusing block.
    """

    def __init__(
        self,
        block: Block,
        inplanes: int,
        outplanes: int,
        blocks: int,
        *,
        alpha: int,
        beta: int,
        stride: int,
        **block_args: Any,
    ) -> None:
        super().__init__()
        narrow = outplanes // alpha
        self.big = _blocks(block, inplanes, outplanes, blocks - 1, 2, **block_args)
        last: Any = self.big[-1]
        last.rectified = False  # the ReLU comes after the branches have met
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.little = _blocks(block, inplanes, narrow, max(1, blocks // beta - 1), 1, **block_args)
        self.little_e = nn.Sequential(nn.Conv2d(narrow, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes))
        self.relu = nn.ReLU(inplace=True)
        self.fusion = _blocks(block, outplanes, outplanes, 1, stride, **block_args)

    def forward(self, x: Tensor) -> Tensor:
        little = self.little_e(self.little(x))
        # Where a side is odd the big branch, brought back, has one row or column too many at the end.
        big = self.up(self.big(x))[:, :, : little.shape[2], : little.shape[3]]
        return self.fusion(self.relu(little + big))


class BigLittleNet(nn.Module):
    """A Big-Little network: a stem of two branches, three stages of two, one plain stage, a linear head.

    Maps `(N, 3, H, W)` to logits `(N, num_classes)`. The stages' outputs have strides 8, 16, 16 and 32 (a stage ends
    with the stride that a ResNet's next one begins with).

    Args:
        block: `Bottleneck` or `Res2NetBlock`; `block_args` (say `scale=4`) go to it.
        depths: blocks per stage, as in the plain network.
        alpha: by how much little branches are narrower.
        beta: by how much they are shallower.
        num_classes: outputs of the head.

    Raises:
        ValueError: depths are not four numbers from 2 on, or a width cannot be divided by alpha.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int] = (3, 4, 6, 3),
        *,
        alpha: int = 2,
        beta: int = 4,
        num_classes: int = 1000,
        **block_args: Any,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or min(depths) < 2:
            raise ValueError(f"depths are {tuple(depths)}; a Big-Little network has four stages of 2 blocks or more")
        if alpha < 1 or beta < 1 or 64 % alpha:
            raise ValueError(
                f"alpha {alpha}, beta {beta}: both are 1 or more, and alpha divides the stem's 64 channels"
            )
        self.stages = ("layer1", "layer2", "layer3", "layer4")
        narrow = 64 // alpha
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.b_conv0, self.bn_b0 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.l_conv0, self.bn_l0 = nn.Conv2d(64, narrow, 3, 1, 1, bias=False), nn.BatchNorm2d(narrow)
        self.l_conv1, self.bn_l1 = nn.Conv2d(narrow, narrow, 3, 2, 1, bias=False), nn.BatchNorm2d(narrow)
        self.l_conv2, self.bn_l2 = nn.Conv2d(narrow, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.bl_init, self.bn_bl_init = nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)

        inplanes = 64
        for name, outplanes, blocks, stride in zip(self.stages[:3], (256, 512, 1024), depths, (2, 2, 1), strict=False):
            stage = BigLittleStage(
                block, inplanes, outplanes, blocks, alpha=alpha, beta=beta, stride=stride, **block_args
            )
            self.add_module(name, stage)
            inplanes = outplanes
        self.layer4 = _blocks(block, inplanes, 2048, depths[3], 2, **block_args)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2048, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        big = self.bn_b0(self.b_conv0(x))
        little = self.relu(self.bn_l0(self.l_conv0(x)))
        little = self.relu(self.bn_l1(self.l_conv1(little)))
        x = self.relu(big + self.bn_l2(self.l_conv2(little)))
        x = self.relu(self.bn_bl_init(self.bl_init(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _blocks(block: Block, inplanes: int, outplanes: int, count: int, stride: int, **block_args: Any) -> nn.Sequential:
    """`count` blocks, the first with the stride; a shortcut averages where that has one, as the authors' code does."""
    shortcut: list[nn.Module] = [nn.AvgPool2d(3, stride, padding=1)] if stride > 1 else []
    if inplanes != outplanes:
        shortcut += [nn.Conv2d(inplanes, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes)]
    planes = outplanes // block.expansion
    downsample = nn.Sequential(*shortcut) if shortcut else None
    first = block(inplanes, planes, stride, downsample, first=downsample is not None, **block_args)
    return nn.Sequential(first, *(block(outplanes, planes, **block_args) for _ in range(count - 1)))


def bl_resnet(**arguments: Any) -> BigLittleNet:
    """A bLResNet: the assembly with ResNet's bottleneck; `arguments` as for `BigLittleNet`."""
    return BigLittleNet(Bottleneck, **arguments)


def bl_res2net(**arguments: Any) -> BigLittleNet:
    """A bLRes2Net: the same assembly with the Res2Net block; `arguments` as for `BigLittleNet` and the block."""
    return BigLittleNet(Res2NetBlock, **arguments)
