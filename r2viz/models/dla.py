"""Deep layer aggregation: blocks as the leaves of trees whose roots gather what the branches gave.

The second backbone that takes either block of `r2viz.models.blocks` (arXiv 1904.01169, table 1: Res2Net-DLA-60).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.models.blocks import Bottleneck, NormLayer, Res2NetBlock


class _Bottleneck(Bottleneck):
    expansion = 2  # DLA narrows to a half where ResNet narrows to a quarter


class _Res2NetBlock(Res2NetBlock):
    expansion = 2


class Root(nn.Module):
    """Where a tree's branches meet: `relu(bn(conv1x1(concat)))`, from `inplanes` channels in all to `outplanes`."""

    def __init__(self, inplanes: int, outplanes: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inplanes, outplanes, 1, bias=False)
        self.bn = norm_layer(outplanes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, *branches: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(torch.cat(branches, dim=1))))


class Tree(nn.Module):
    """Two subtrees in a row; at depth 1 they are blocks, and the root gathers both with all that was handed down.

    Maps `(N, inplanes, H, W)` to `(N, outplanes, H/stride, W/stride)`. A tree of depth d holds 2^d blocks. Along its
    right edge every tree hands down the output of its left subtree, so that the one root at the lower right sees
    them all: hierarchical aggregation. With `keep_input`, the max-pooled input of the tree goes along: the
    iterative aggregation from one stage to the next.

    The blocks' shortcut is made here: max pooling for the stride, then a 1x1 convolution where channels differ. The
    pooling rounds sizes up, as the convolutions beside it do, so that pictures of any size pass; the published networks
    round down and stop with an error unless every size on the way is even. Where they run, the results are equal.

    Args:
        handed: channels of what `forward` gets as `handed`.

    Source: Yu et al. 2018, arXiv 1707.06484, figures 2 and 3. The keys are those of the published weights, without the
    `project` of trees deeper than 1, whose output nothing uses.
    """

    def __init__(
        self,
        depth: int,
        block: type[Bottleneck] | type[Res2NetBlock],
        inplanes: int,
        outplanes: int,
        stride: int = 1,
        *,
        keep_input: bool = False,
        handed: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.keep_input = keep_input
        if keep_input:
            handed += inplanes
        self.downsample = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        if depth > 1:
            common: dict[str, Any] = {"norm_layer": norm_layer, **block_args}
            self.tree1: nn.Module = Tree(depth - 1, block, inplanes, outplanes, stride, **common)
            self.tree2: nn.Module = Tree(depth - 1, block, outplanes, outplanes, handed=handed + outplanes, **common)
            self.root = None
            return

        def leaf(channels: int, stride: int) -> nn.Module:
            # Not "first of stage" but "with a stride": tree1 of an inner tree has no stride and keeps its additions.
            return block(
                channels,
                outplanes // block.expansion,
                stride,
                norm_layer=norm_layer,
                first=stride != 1,
                **block_args,
            )

        self.project = nn.Identity() if inplanes == outplanes else _projection(inplanes, outplanes, norm_layer)
        self.tree1 = leaf(inplanes, stride)
        self.tree2 = leaf(outplanes, 1)
        self.root = Root(2 * outplanes + handed, outplanes, norm_layer)

    def forward(self, x: Tensor, handed: Sequence[Tensor] = ()) -> Tensor:
        if self.keep_input or self.root is not None:
            bottom = self.downsample(x)
        if self.keep_input:
            handed = (*handed, bottom)
        if self.root is None:
            left = self.tree1(x)
            return self.tree2(left, (*handed, left))
        left = self.tree1(x, self.project(bottom))
        return self.root(self.tree2(left), left, *handed)


class DLA(nn.Module):
    """A DLA classifier: a stem and two convolutional levels, four trees, global average pooling, a 1x1 convolution.

    Maps `(N, 3, H, W)` to logits `(N, num_classes)`; the stages, `level0` … `level5`, have strides 1, 2, 4, 8, 16, 32.

    Args:
        block: a block that narrows by its `expansion`; `block_args` (say `groups`, `base_width`, `scale`) go to it.
        depths: convolutions of `level0` and `level1`, then depths of the four trees.
        widths: channels that leave each level.

    Source: Yu et al. 2018, arXiv 1707.06484; table 1 there names DLA-60 and DLA-X-60.
    """

    def __init__(
        self,
        block: type[Bottleneck] | type[Res2NetBlock],
        depths: Sequence[int] = (1, 1, 1, 2, 3, 1),
        *,
        num_classes: int = 1000,
        widths: Sequence[int] = (16, 32, 128, 256, 512, 1024),
        norm_layer: NormLayer = nn.BatchNorm2d,
        **block_args: Any,
    ) -> None:
        super().__init__()
        if not len(depths) == len(widths) == 6:
            raise ValueError(f"depths and widths need six values, one per level; {len(depths)} and {len(widths)} came")
        self.num_classes = num_classes
        self.base_layer = _convolutions(1, 3, widths[0], norm_layer, kernel=7)
        self.stages = tuple(f"level{level}" for level in range(6))
        self.level0 = _convolutions(depths[0], widths[0], widths[0], norm_layer)
        self.level1 = _convolutions(depths[1], widths[0], widths[1], norm_layer, stride=2)
        for level in range(2, 6):
            tree = Tree(
                depths[level],
                block,
                widths[level - 1],
                widths[level],
                2,
                keep_input=level > 2,
                norm_layer=norm_layer,
                **block_args,
            )
            self.add_module(f"level{level}", tree)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Conv2d(widths[-1], num_classes, 1)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.base_layer(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x)).flatten(1)


def _projection(inplanes: int, outplanes: int, norm_layer: NormLayer) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, bias=False), norm_layer(outplanes))


def _convolutions(
    count: int, inplanes: int, outplanes: int, norm_layer: NormLayer, *, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Conv2d(inplanes, outplanes, kernel, stride if index == 0 else 1, kernel // 2, bias=False),
            norm_layer(outplanes),
            nn.ReLU(inplace=True),
        ]
        inplanes = outplanes
    return nn.Sequential(*layers)


def dla(**arguments: Any) -> DLA:
    """A DLA with ResNet's bottleneck, DLA-60 unless told otherwise; `arguments` as for `DLA`."""
    return DLA(_Bottleneck, **arguments)


def res2net_dla(**arguments: Any) -> DLA:
    """A Res2Net-DLA: the same trees with the Res2Net block; `arguments` as for `DLA` and the block."""
    return DLA(_Res2NetBlock, **{"base_width": 28, **arguments})
