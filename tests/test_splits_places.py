"""Where splits are found: r2viz's, timm's and the official layout, DLA's trees, and a ResNet's channels cut alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from r2viz.errors import ModelError, UnknownName
from r2viz.partition.places import blocks
from r2viz.receptive.verbs import theoretical_rf
from r2viz.split_records import CASCADE, CONTROL, FIRST, PASSED, PERMUTED


class Official(nn.Module):
    """A block with the official code's attribute names; `stype` says what it is."""

    def __init__(self, channels: int, width: int = 4, scale: int = 4, stype: str = "normal") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scale)
        self.nums = max(1, scale - 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(self.nums))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(self.nums))
        if stype == "stage":
            self.pool = nn.AvgPool2d(3, 1, 1)
        self.conv3 = nn.Conv2d(width * scale, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stype, self.scale, self.width = stype, scale, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = self.relu(self.bn1(self.conv1(x))).split(self.width, 1)
        outs: list[torch.Tensor] = []
        for number in range(self.nums):
            alone = number == 0 or self.stype == "stage"
            y = groups[number] if alone else groups[number] + outs[-1]
            outs.append(self.relu(self.bns[number](self.convs[number](y))))
        outs.append(self.pool(groups[-1]) if self.stype == "stage" else groups[-1])
        return self.relu(self.bn3(self.conv3(torch.cat(outs, 1))) + x)


def official() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("conv1", nn.Conv2d(3, 8, 3, 2, 1))
    module.add_module("layer1", nn.Sequential(Official(8, stype="stage"), Official(8), Official(8)))
    module.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    return module.eval()


def meta(name: str, **more) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **more)


def test_kinds_names_and_order(net):
    found = blocks(net("res2net", depths=(2, 1, 1, 1)), name="tiny")
    assert [block.path for block in found] == ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    assert [[part.split.kind for part in block.parts] for block in found[:2]] == [[FIRST] * 4, [CASCADE] * 3 + [PASSED]]
    second = [part.split for part in found[1].parts]
    assert [split.tap for split in second] == [f"layer1.1.split{number}" for number in range(4)]
    assert [(split.model, split.stage, split.block, split.split) for split in second] == [
        ("tiny", "layer1", 1, number) for number in range(4)
    ]
    assert [split.order.partition("; ")[2] for split in second] == [
        f"y{number} in the paper's equation" for number in (2, 3, 4, 1)
    ]
    width = second[0].width
    assert [part.span for part in found[1].parts] == [slice(at * width, (at + 1) * width) for at in range(4)]
    assert found[1].channels == 4 * width


def test_what_theory_knows_is_that_of_the_split_taps(net):
    module = net("res2net")
    found = blocks(module)
    taps = [part.split.tap for block in found for part in block.parts]
    fields = theoretical_rf(module, taps)
    for block in found:
        for part in block.parts:
            assert part.split.field == fields[part.split.tap].max
            assert part.split.jump == fields[part.split.tap].jump


@pytest.mark.parametrize(
    ("name", "count", "firsts"),
    [("res2net50_26w_4s", 16, 4), ("res2net50_48w_2s", 16, 4), ("res2next50", 16, 4), ("dla60_res2net", 16, 4)],
)
def test_timm(name, count, firsts, monkeypatch):
    monkeypatch.setattr("r2viz.partition.places.fields", lambda module: {})  # seconds for a large network
    monkeypatch.setattr("r2viz.partition.places.grids", lambda module: {})
    module = meta(name)
    found = blocks(module, name=name)
    assert len(found) == count
    assert sum(block.first for block in found) == firsts
    for block in found:
        part = module.get_submodule(block.path)
        assert block.scale == part.scale
        assert block.channels == module.get_submodule(block.conv3).in_channels
        assert block.first == part.is_first
    assert [(block.stage, block.index) for block in found if block.index == 0] == [
        (f"{'level' if 'dla' in name else 'layer'}{number + ('dla' in name)}", 0) for number in (1, 2, 3, 4)
    ]


def test_the_official_layout():
    module = official()
    found = blocks(module)
    assert [(block.path, block.first) for block in found] == [
        ("layer1.0", True),
        ("layer1.1", False),
        ("layer1.2", False),
    ]
    assert [part.split.field for part in found[1].parts] == [11, 15, 19, 7]  # stem 3, first block + 4, then + 4 each
    assert found[1].parts[0].split.jump == (2.0, 2.0)


def test_a_layout_that_does_not_say_what_is_first():
    module = official()
    del module.layer1[1].stype
    with pytest.raises(ModelError, match="does not say whether it is the first of its stage"):
        blocks(module)


def test_a_resnet_is_cut_alike(net):
    module = net("resnet", depths=(2, 1, 1, 1))
    found = blocks(module, groups=3)
    assert [block.path for block in found] == ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    for block in found:
        channels = module.get_submodule(block.path).conv3.in_channels
        assert not block.cascaded
        assert block.channels == channels
        for kind in (CONTROL, PERMUTED):
            cut = [part.channels for part in block.parts if part.split.kind == kind]
            assert len(cut) == 3
            assert sorted(np.concatenate(cut)) == list(range(channels))
            assert max(map(len, cut)) - min(map(len, cut)) <= 1
        assert [part.split.tap for part in block.parts][::3] == [f"{block.path}.group0", f"{block.path}.permuted0"]


def test_the_random_order_is_seeded_and_of_the_block_alone(net):
    module = net("resnet")

    def permuted(**more):
        return {
            part.split.tap: part.channels.tolist()
            for block in blocks(module, **more)
            for part in block.parts
            if part.split.kind == PERMUTED
        }

    whole = permuted()
    assert whole == permuted()
    assert whole != permuted(seed=1)
    some = permuted(layers=["layer3"])
    assert some
    assert some.items() <= whole.items()
    assert not any(part.split.kind == PERMUTED for block in blocks(module, permuted=False) for part in block.parts)


def test_layers_are_stages_blocks_or_splits(net):
    module = net("res2net")
    assert [block.path for block in blocks(module, layers=["layer2", "layer1.1"])] == [
        "layer1.1",
        "layer2.0",
        "layer2.1",
    ]
    assert [block.path for block in blocks(module, layers=["layer2.1.split0"])] == ["layer2.1"]
    with pytest.raises(UnknownName, match=r"no block 'layer5' with splits in ResNet; did you mean 'layer\d'\?"):
        blocks(module, layers=["layer5"])


def test_networks_without_either():
    with pytest.raises(ModelError, match="split statistics need one of them"):
        blocks(nn.Sequential(nn.Conv2d(3, 4, 3)), name="plain")


def test_more_groups_than_channels(net):
    with pytest.raises(ModelError, match=r"has \d+ channels, and 99 groups were asked for"):
        blocks(net("resnet"), groups=99)
