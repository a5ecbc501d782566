"""One assembly for every residual network here: a block, stages of it, a stem and a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torchvision
from torch import Tensor, nn

from r2viz.models import attention as attentions
from r2viz.models.blocks import Attention, Bottleneck, NormLayer, Res2NetBlock

Stem = Literal["7x7", "3x3", "deep"]
Shortcut = Literal["conv", "avgpool"]


class ResNet(torchvision.models.ResNet):
    """torchvision's ResNet with what it hard-codes made into arguments; its way of going and its key names are kept.

    Maps `(N, 3, H, W)` to logits `(N, num_classes)`.

    Args:
        block: `Bottleneck` or `Res2NetBlock`; `block_args` (say `scale=4`) go to it.
        depths: blocks per stage; there are as many stages as numbers here.
        widths: planes per stage; a stage's output has four times as many channels.
        strides: stride of each stage.
        stem: `"7x7"` (He 2016), `"3x3"` (one convolution, for small pictures), or `"deep"` (three 3x3, v1b's).
        stem_width: channels that leave the stem.
        stem_stride: stride of the stem's first convolution.
        pool: whether the stem's 3x3 max pooling with stride 2 is there.
        shortcut: `"conv"` (strided 1x1) or `"avgpool"` (average pooling, then 1x1; v1b's).
        groups: cardinality of the 3x3 convolutions.
        base_width: channels per group and 64 planes.
        dilate: for each stage but the first, whether dilation stands in for the stride (as in torchvision, the first
            block of such a stage still has the previous dilation); None dilates nowhere.
        attention: `"se"` (squeeze-and-excitation), or channels -> module, placed after each block's last normalisation.
        norm_layer: channels -> normalisation.

    Weights start as in torchvision, with no zero initialisation of the last normalisation: a zeroed branch would
    hide every receptive field of an untrained network but the shortcut's.
    """

    def __init__(
        self,
        block: type[Bottleneck] | type[Res2NetBlock],
        depths: Sequence[int] = (3, 4, 6, 3),
        *,
        num_classes: int = 1000,
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (1, 2, 2, 2),
        stem: Stem = "7x7",
        stem_width: int = 64,
        stem_stride: int = 2,
        pool: bool = True,
        shortcut: Shortcut = "conv",
        groups: int = 1,
        base_width: int = 64,
        dilate: Sequence[bool] | None = None,
        attention: Attention | str | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
        **block_args: Any,
    ) -> None:
        nn.Module.__init__(self)  # torchvision's own __init__ is what these arguments replace
        dilate = [False] * (len(depths) - 1) if dilate is None else dilate
        if not len(depths) == len(widths) == len(strides) == len(dilate) + 1 > 1:
            raise ValueError(
                "depths, widths and strides need one value per stage, and dilate one less; "
                f"{len(depths)}, {len(widths)}, {len(strides)} and {len(dilate)} came"
            )
        if isinstance(attention, str):
            attention = attentions.attention(attention)
        self.conv1 = _stem(stem, stem_width, stem_stride, norm_layer)
        self.bn1 = norm_layer(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()

        channels, dilation = stem_width, 1
        self.stages = tuple(f"layer{stage + 1}" for stage in range(len(depths)))
        for stage, name in enumerate(self.stages):
            stride, previous_dilation = strides[stage], dilation
            if stage > 0 and dilate[stage - 1]:
                dilation *= stride
                stride = 1
            blocks: list[nn.Module] = []
            outplanes = widths[stage] * block.expansion
            for index in range(depths[stage]):
                first = index == 0
                blocks.append(
                    block(
                        channels,
                        widths[stage],
                        stride if first else 1,
                        _shortcut(shortcut, channels, outplanes, stride, norm_layer) if first else None,
                        groups,
                        base_width,
                        previous_dilation if first else dilation,
                        norm_layer,
                        # Not to be read off the shortcut: that is absent where channels and stride already fit.
                        first=first,
                        attention=attention,
                        **block_args,
                    )
                )
                channels = outplanes
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _forward_impl(self, x: Tensor) -> Tensor:
        # torchvision's names its four stages one by one; CIFAR's networks have three.
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _stem(kind: Stem, width: int, stride: int, norm_layer: NormLayer) -> nn.Module:
    if kind == "7x7":
        return nn.Conv2d(3, width, 7, stride, 3, bias=False)
    if kind == "3x3":
        return nn.Conv2d(3, width, 3, stride, 1, bias=False)
    if kind == "deep":
        half = width // 2
        return nn.Sequential(
            nn.Conv2d(3, half, 3, stride, 1, bias=False),
            norm_layer(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, 1, 1, bias=False),
            norm_layer(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, width, 3, 1, 1, bias=False),
        )
    raise ValueError(f"no stem {kind!r}; there are '7x7', '3x3' and 'deep'")


def _shortcut(kind: Shortcut, inplanes: int, outplanes: int, stride: int, norm_layer: NormLayer) -> nn.Module | None:
    if stride == 1 and inplanes == outplanes:
        return None
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), norm_layer(outplanes))
    if kind != "avgpool":
        raise ValueError(f"no shortcut {kind!r}; there are 'conv' and 'avgpool'")
    return nn.Sequential(
        nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity(),
        nn.Conv2d(inplanes, outplanes, 1, bias=False),
        norm_layer(outplanes),
    )


def resnet(**arguments: Any) -> ResNet:
    """A ResNet: the assembly with ResNet's bottleneck; `arguments` as for `ResNet`."""
    return ResNet(Bottleneck, **arguments)


def res2net(**arguments: Any) -> ResNet:
    """A Res2Net: the same assembly with the Res2Net block; `arguments` as for `ResNet` and the block."""
    return ResNet(Res2NetBlock, **arguments)
