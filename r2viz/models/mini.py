"""The mini pair: a ResNet and a Res2Net for 64x64 pictures, small enough to be trained alike on two cores.

Both keep an 8x8 map from `layer2` on (total stride 8). With 26 channels per 64 planes and four groups, the Res2Net
has 99.4 % of the ResNet's parameters (1.68 M) and 99.5 % of its multiply-adds (102 M at 64x64): the rule by which the
paper matches its own pairs (arXiv 1904.01169, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from r2viz.geometry import Preprocess
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.resnet import ResNet

MINI_PREPROCESS = Preprocess(resize=64, crop=(64, 64))

# The early stages are narrow because they are what costs time on a CPU: there memory, not arithmetic, sets the pace.
_assembly = partial(
    ResNet,
    depths=(2, 2, 2, 2),
    widths=(16, 48, 96, 160),
    strides=(1, 2, 1, 1),
    stem="3x3",
    stem_width=24,
    pool=True,
)


def resnet26_mini(num_classes: int = 200) -> nn.Module:
    """ResNet with two bottlenecks per stage: `(N, 3, 64, 64)` to logits `(N, num_classes)`."""
    return _assembly(Bottleneck, num_classes=num_classes)


def res2net26_mini(num_classes: int = 200) -> nn.Module:
    """Res2Net with two blocks per stage, scale 4: `(N, 3, 64, 64)` to logits `(N, num_classes)`.

    The first block of a stage does not cascade, so four of the eight blocks have the hierarchical connections.
    """
    return _assembly(Res2NetBlock, num_classes=num_classes, base_width=26, scale=4)


MINI: dict[str, Callable[[int], nn.Module]] = {"resnet26_mini": resnet26_mini, "res2net26_mini": res2net26_mini}
