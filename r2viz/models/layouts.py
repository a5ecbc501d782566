"""How other code bases name the weights of the networks here: one table, and the renaming that it says.

Official files, timm's and torchvision's have our names already. Some code bases compute a little differently under
the same weights; where one does, its row says so, and the network is made theirs, or the file is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from r2viz.errors import BadWeights, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

# The last word of a key. PaddlePaddle calls the statistics of a batch normalisation otherwise, and counts no batches.
_BN = r"(?P<word>weight|bias|running_mean|running_var|num_batches_tracked)"
_PADDLE = r"(?P<word>weight|bias|_mean|_variance)"
# A block, a split and a block counted through all stages, as PaddleClas names them.
_B = r"bb_(?P<stage>\d)_(?P<block>\d{1,3})"
_S = r"res\w+_branch2b_(?P<branch>\d{1,3})"
_N = r"blocks\.(?P<number>\d{1,3})"
_WORDS = {"_mean": "running_mean", "_variance": "running_var"}
# Where a foreign count starts at another number than ours: group of a rule -> what is added to it.
_SHIFTS = {"stage": 1, "branch": -1}


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Attributes:
        told_by: regular expressions, each of which some key matches as a whole; that is how the layout is recognised.
        rules: regular expression for a whole key -> our name, filled from its groups. The first that matches counts.
        citation: where the names can be looked up.
        dropped: regular expression of keys that no computation uses.
        transposed: keys (ours) of linear layers that are stored as (inputs, outputs).
        note: what provenance must add about the network.
        network: whose computation these weights were trained for, where it is not the official one (`adapt`).
        refused: why such a file is not loaded, and what to do.
    """

    told_by: tuple[str, ...]
    citation: str
    rules: Mapping[str, str] = field(default_factory=dict)
    dropped: str = ""
    transposed: tuple[str, ...] = ()
    note: str = ""
    network: Literal["official", "paddle"] = "official"
    refused: str = ""


_OWN = {
    rf"(?P<part>(?:conv1|bn1)\.(?:\d\.)?){_BN}": "{part}{word}",
    rf"(?P<part>layer\d\.\d+\.(?:(?:conv|bn|downsample\.)\d|(?:convs|bns)\.\d+|se\.fc[12])\.){_BN}": "{part}{word}",
    rf"(?P<part>(?:base_layer\.\d|level\d\.[\w.]+)\.){_BN}": "{part}{word}",
    r"fc\.(?P<word>weight|bias)": "fc.{word}",
}
_PADDLE_BLOCK = {
    rf"{_B}\.conv0\._conv\.weight": "layer{stage}.{block}.conv1.weight",
    rf"{_B}\.conv0\._batch_norm\.{_PADDLE}": "layer{stage}.{block}.bn1.{word}",
    rf"{_B}\.conv2\._conv\.weight": "layer{stage}.{block}.conv3.weight",
    rf"{_B}\.conv2\._batch_norm\.{_PADDLE}": "layer{stage}.{block}.bn3.{word}",
    r"out\.(?P<word>weight|bias)": "fc.{word}",
}
_PADDLE_SPLITS = {
    rf"{_B}\.{_S}\._conv\.weight": ("layer{stage}.{block}.convs.{branch}.weight"),
    rf"{_B}\.{_S}\._batch_norm\.{_PADDLE}": ("layer{stage}.{block}.bns.{branch}.{word}"),
}
_PADDLE_SHORTCUT = {
    rf"{_B}\.short\._conv\.weight": "layer{stage}.{block}.downsample.0.weight",
    rf"{_B}\.short\._batch_norm\.{_PADDLE}": "layer{stage}.{block}.downsample.1.{word}",
}
_PADDLE_NETWORK = (
    "computed as PaddleClas does: layer1.0 joins its splits like any other block, average pooling leaves padding out"
)

OWN = "the official files, timm and torchvision, which is ours"
# Looked through from the top; the last one takes what no other does.
LAYOUTS: dict[str, Layout] = {
    # Trees deeper than one level have a projection whose output nothing uses: 297,472 parameters of DLA-60.
    "the official DLA": Layout(
        told_by=(r"base_layer\.0\.weight", r"level3\.project\.0\.weight"),
        rules=_OWN,
        dropped=r"(?:level3|level4|level4\.tree1)\.project\..*",
        citation="github.com/Res2Net/Res2Net-PretrainedModels, dla.py; github.com/ucbdrive/dla",
    ),
    "mmpretrain": Layout(
        told_by=(r"backbone\.layer1\.0\.conv1\.weight", r"head\.fc\.weight"),
        rules={
            rf"backbone\.stem\.0\.bn\.{_BN}": "conv1.1.{word}",
            rf"backbone\.stem\.1\.bn\.{_BN}": "conv1.4.{word}",
            rf"backbone\.stem\.2\.bn\.{_BN}": "bn1.{word}",
            r"backbone\.stem\.0\.conv\.weight": "conv1.0.weight",
            r"backbone\.stem\.1\.conv\.weight": "conv1.3.weight",
            r"backbone\.stem\.2\.conv\.weight": "conv1.6.weight",
            r"backbone\.(?P<block>layer\d\.\d+)\.se_layer\.conv(?P<fc>[12])\.conv\.(?P<word>weight|bias)": (
                "{block}.se.fc{fc}.{word}"
            ),
            **{rf"backbone\.{ours}": name for ours, name in _OWN.items() if not ours.startswith("fc")},
            r"head\.fc\.(?P<word>weight|bias)": "fc.{word}",
        },
        citation="github.com/open-mmlab/mmpretrain, mmpretrain/models/backbones/{resnet,res2net,seresnet}.py",
    ),
    # Its own network pools nothing in layer1.0, but has no classifier either. A file of its names with a classifier is
    # the official v1b, renamed (Res2Net-PretrainedModels, issue 39), so it is computed as that.
    "mmdetection": Layout(
        told_by=(r"stem\.0\.weight", r"layer1\.0\.conv1\.weight"),
        rules={
            r"stem\.(?P<index>[036])\.weight": "conv1.{index}.weight",
            rf"stem\.(?P<index>[14])\.{_BN}": "conv1.{index}.{word}",
            rf"stem\.7\.{_BN}": "bn1.{word}",
            **{ours: name for ours, name in _OWN.items() if ours.startswith(("(?P<part>layer", "fc"))},
        },
        citation="github.com/open-mmlab/mmdetection, mmdet/models/backbones/{resnet,res2net}.py",
        note="names of mmdetection, computed as the official network, which pools in layer1.0",
    ),
    "a detector or segmenter of OpenMMLab": Layout(
        told_by=(r"backbone\.layer1\.0\.conv1\.weight",),
        rules={rf"backbone\.{ours}": name for ours, name in _OWN.items()},
        citation="github.com/open-mmlab/mmdetection, mmdet/models/backbones/res2net.py",
        refused="it has no classifier, and its network is another one (mmdetection's layer1.0 does not pool); "
        "use the classification checkpoint that it was trained from",
    ),
    "PaddleClas's Res2Net_vd": Layout(
        told_by=(r"bb_0_0\.res\w+_branch2b_1\._conv\.weight", r"conv1_1\._conv\.weight"),
        rules={
            r"conv1_1\._conv\.weight": "conv1.0.weight",
            rf"conv1_1\._batch_norm\.{_PADDLE}": "conv1.1.{word}",
            r"conv1_2\._conv\.weight": "conv1.3.weight",
            rf"conv1_2\._batch_norm\.{_PADDLE}": "conv1.4.{word}",
            r"conv1_3\._conv\.weight": "conv1.6.weight",
            rf"conv1_3\._batch_norm\.{_PADDLE}": "bn1.{word}",
            **_PADDLE_BLOCK,
            **_PADDLE_SPLITS,
            rf"{_B}\.short\._conv\.weight": "layer{stage}.{block}.downsample.1.weight",
            rf"{_B}\.short\._batch_norm\.{_PADDLE}": ("layer{stage}.{block}.downsample.2.{word}"),
        },
        citation="github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/res2net_vd.py",
        transposed=("fc.weight",),
        note=_PADDLE_NETWORK,
        network="paddle",
    ),
    "PaddleClas's Res2Net": Layout(
        told_by=(r"bb_0_0\.res\w+_branch2b_1\._conv\.weight",),
        rules={
            r"conv1\._conv\.weight": "conv1.weight",
            rf"conv1\._batch_norm\.{_PADDLE}": "bn1.{word}",
            **_PADDLE_BLOCK,
            **_PADDLE_SPLITS,
            **_PADDLE_SHORTCUT,
        },
        citation="github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/res2net.py",
        transposed=("fc.weight",),
        note=_PADDLE_NETWORK,
        network="paddle",
    ),
    "PaddleClas's ResNeXt": Layout(
        told_by=(r"bb_0_0\.conv1\._conv\.weight", r"conv\._conv\.weight"),
        rules={
            r"conv\._conv\.weight": "conv1.weight",
            rf"conv\._batch_norm\.{_PADDLE}": "bn1.{word}",
            rf"{_B}\.conv1\._conv\.weight": "layer{stage}.{block}.conv2.weight",
            rf"{_B}\.conv1\._batch_norm\.{_PADDLE}": "layer{stage}.{block}.bn2.{word}",
            **_PADDLE_BLOCK,
            **_PADDLE_SHORTCUT,
        },
        citation="github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/resnext.py",
        transposed=("fc.weight",),
    ),
    "PaddleClas's ResNet": Layout(
        told_by=(r"stem\.0\.conv\.weight", r"blocks\.0\.conv0\.conv\.weight"),
        rules={
            r"stem\.0\.conv\.weight": "conv1.weight",
            rf"stem\.0\.bn\.{_PADDLE}": "bn1.{word}",
            rf"{_N}\.conv0\.conv\.weight": "{number}.conv1.weight",
            rf"{_N}\.conv0\.bn\.{_PADDLE}": "{number}.bn1.{word}",
            rf"{_N}\.conv1\.conv\.weight": "{number}.conv2.weight",
            rf"{_N}\.conv1\.bn\.{_PADDLE}": "{number}.bn2.{word}",
            rf"{_N}\.conv2\.conv\.weight": "{number}.conv3.weight",
            rf"{_N}\.conv2\.bn\.{_PADDLE}": "{number}.bn3.{word}",
            rf"{_N}\.short\.conv\.weight": "{number}.downsample.0.weight",
            rf"{_N}\.short\.bn\.{_PADDLE}": "{number}.downsample.1.{word}",
            r"fc\.(?P<word>weight|bias)": "fc.{word}",
        },
        citation="github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/legendary_models/resnet.py",
        transposed=("fc.weight",),
    ),
    "PaddleClas's DLA": Layout(
        told_by=(r"base_layer\.0\.weight", r"base_layer\.1\._mean"),
        rules={
            rf"(?P<part>(?:base_layer\.\d|level\d\.[\w.]+)\.){_PADDLE}": "{part}{word}",
            r"fc\.(?P<word>weight|bias)": "fc.{word}",
        },
        citation="github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/dla.py",
    ),
    "Cadene's SENet (timm's legacy_senet)": Layout(
        told_by=(r"layer0\.conv1\.weight", r"last_linear\.weight"),
        citation="github.com/huggingface/pytorch-image-models, timm/models/senet.py",
        refused="its blocks stride in the first 1x1 convolution and its max pooling rounds up, so its weights mean "
        "something else here; use timm's seresnet50",
    ),
    OWN: Layout(
        told_by=(),
        rules=_OWN,
        citation="github.com/Res2Net/Res2Net-PretrainedModels; timm/models/res2net.py; torchvision/models/resnet.py",
    ),
}


def remap(state: Mapping[str, torch.Tensor], *, source: str) -> tuple[dict[str, torch.Tensor], Layout]:
    """The state dict under our names, and the layout that it was in, whose `note` provenance must carry.

    Tensors are passed on as they are, without copies. A state dict in our own layout, or in none of the table (another
    network's), comes back unchanged: `r2viz.models.weights.fit` judges it.

    Args:
        state: what `r2viz.models.weights.read` gave.
        source: the file's name, for messages.

    Raises:
        BadWeights: some keys do not fit the layout, or a file in that layout is never loaded.
    """
    found = next((name for name, layout in LAYOUTS.items() if _told(layout, state)), OWN)
    layout = LAYOUTS[found]
    if found == OWN:
        return dict(state), layout
    if layout.refused:
        raise BadWeights(f"{source} is not loaded: it is in the layout of {found}, and {layout.refused}")
    kept = {key: value for key, value in state.items() if not re.fullmatch(layout.dropped or r"(?!)", key)}
    names = renamed(layout, kept)
    strange = [key for key in kept if key not in names]
    if strange:
        raise BadWeights(
            f"{source} is in the layout of {found}, but {len(strange)} of its {len(state)} keys do not fit it "
            f"({_some(strange)}); expected names as in {layout.citation}"
        )
    moved = {names[key]: value for key, value in kept.items()}
    if len(moved) != len(kept):
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        raise BadWeights(
            f"{source} is in the layout of {found}, but several of its keys mean the same weights ({_some(twice)}); "
            "the file is damaged, use another one"
        )
    for key in layout.transposed:
        if key in moved and moved[key].ndim == 2:
            moved[key] = moved[key].t()
    unused = [value for key, value in state.items() if key not in kept and key.endswith((".weight", ".bias"))]
    if unused:
        layout = replace(
            layout, note=f"{sum(value.numel() for value in unused):,} parameters dropped that nothing uses (project)"
        )
    return moved, layout


def renamed(layout: Layout, keys: Iterable[str]) -> dict[str, str]:
    """Key -> our name, for those of `keys` that fit the layout."""
    keys = list(keys)
    # With blocks counted through all stages, a stage begins where a block has a shortcut of its own.
    starts = sorted({int(m["number"]) for key in keys if (m := re.match(rf"{_N}\.short\.", key))})
    names: dict[str, str] = {}
    for key in keys:
        for pattern, name in layout.rules.items():
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            groups: dict[str, object] = match.groupdict()
            for group, shift in _SHIFTS.items():
                if group in groups:
                    groups[group] = int(match[group]) + shift
            if "number" in groups:
                number = int(match["number"])
                stage = bisect_right(starts, number)
                if stage == 0:
                    break  # no stage begins at or before this block
                groups["number"] = f"layer{stage}.{number - starts[stage - 1]}"
            if "word" in groups:
                groups["word"] = _WORDS.get(match["word"], match["word"])
            names[key] = name.format(**groups)
            break
    return names


def adapt(module: nn.Module, layout: Layout) -> None:
    """Makes the network, in place, compute what the layout's own does.

    Only PaddleClas's Res2Net differs: a block with stride 1 joins its splits whether or not it is the first of its
    stage, and average pooling divides by the number of true pixels under the window (ppcls/arch/backbone/model_zoo/
    res2net.py; paddle.nn.AvgPool2D, `exclusive=True`). Keys and shapes stay as they are.
    """
    if layout.network != "paddle":
        return
    from r2viz.models.blocks import Res2NetBlock

    for block in module.modules():
        if isinstance(block, Res2NetBlock) and block.first and block.scale > 1:
            if block.stride == 1:
                block.first = False
                del block.pool
            else:
                block.pool.count_include_pad = False


def nearest_layout(keys: Iterable[str]) -> str:
    """The layout that most of `keys` fit, with how many do and some that do not, as a clause of a message."""
    keys = list(keys)
    fitting = {name: renamed(layout, keys) for name, layout in LAYOUTS.items()}
    name = max(fitting, key=lambda name: len(fitting[name]))
    strange = [key for key in keys if key not in fitting[name]]
    if not fitting[name]:
        return f"no key fits any layout that is read ({_some(keys)})"
    others = f", not {_some(strange)}" if strange else ""
    return f"the nearest layout is {name} ({len(fitting[name])} of {len(keys)} keys fit it{others})"


def _told(layout: Layout, keys: Iterable[str]) -> bool:
    keys = list(keys)
    return all(any(re.fullmatch(pattern, key) for key in keys) for pattern in layout.told_by)


def _some(keys: list[str]) -> str:
    return one_line("; ".join(keys[:3]), 160) + (", …" if len(keys) > 3 else "")
