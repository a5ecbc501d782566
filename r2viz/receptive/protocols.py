"""What is meant by an effective receptive field: the protocols in use, which differ, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from r2viz.errors import UnknownName, nearest, one_line
from r2viz.geometry import Preprocess
from r2viz.receptive.extent import openerf_sizes, replknet_sizes


@dataclass(frozen=True)
class Protocol:
    """One way of measuring.

    Attributes:
        title: what a figure calls it.
        citation: where it is from.
        definition: in a sentence, what is averaged over the inputs.
        score: channels of the unit for every input `(N, C)` -> `(N,)`, whose gradient is taken.
        reduce: that gradient `(N, channels, h, w)` -> non-negative maps `(N, h, w)`.
        middle: whether "centre" means unit (h // 2, w // 2), as the original has it, wherever that looks; else it is
            the unit whose theoretical centre is nearest to the input's.
        sizes: the mean map over the whole picture `(H, W)` -> the sizes that the protocol itself defines.
        scaled: whether the original divides the mean map by its sum.
        preprocess: the original's way of making an input; None for the network's own.
        samples: the original's number of pictures; None where it leaves it open.
    """

    title: str
    citation: str
    definition: str
    score: Callable[[Tensor], Tensor]
    reduce: Callable[[Tensor], Tensor]
    middle: bool
    sizes: Callable[[np.ndarray], dict[str, float | None]] | None = None
    scaled: bool = False
    preprocess: Preprocess | None = None
    samples: int | None = None


PROTOCOLS: Mapping[str, Protocol] = {
    "luo": Protocol(
        "Luo et al.",
        "Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, NIPS",
        "a gradient of one in every channel of the unit, taken back to the input; absolute values summed over the "
        "input's channels; mean over inputs",
        lambda unit: unit.sum(dim=1),
        lambda gradient: gradient.abs().sum(dim=1),
        middle=False,
    ),
    "replknet": Protocol(
        "RepLKNet",
        "Ding et al. 2022, Scaling Up Your Kernels to 31x31, CVPR, arXiv 2203.06717, and its published script",
        "the gradient of the unit's sum over channels after a ReLU; positive values summed over the input's channels; "
        "mean over inputs",
        lambda unit: unit.relu().sum(dim=1),
        lambda gradient: gradient.clamp(min=0).sum(dim=1),
        middle=True,
        sizes=replknet_sizes,
        preprocess=Preprocess(resize=None, crop=(1024, 1024), mode="squash", interpolation="bicubic"),
        samples=50,
    ),
    "openerf": Protocol(
        "OpenERF",
        "Kim et al. 2023, BMVC, and the package openerf 0.6",
        "the gradient of the unit's mean over channels; mean over the input's channels, then positive values; sum over "
        "inputs, divided by its total",
        lambda unit: unit.mean(dim=1),
        lambda gradient: gradient.mean(dim=1).clamp(min=0),
        middle=True,
        sizes=openerf_sizes,
        scaled=True,
        samples=1000,
    ),
}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in PROTOCOLS:
        raise UnknownName(
            f"no protocol {one_line(str(name), 60)!r}{nearest(str(name), PROTOCOLS)}; there are {', '.join(PROTOCOLS)}",
            code="unknown_name.protocol",
        )
    return PROTOCOLS[name]
