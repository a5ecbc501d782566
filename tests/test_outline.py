"""The last stage of a network, by what it or its library says of itself."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from r2viz.errors import UnknownName
from r2viz.models.outline import last_stage
from r2viz.models.zoo import ZOO

KINDS = {row.factory: row for row in ZOO.values()}
LAST = {"cifar": "layer3", "dla": "level5", "densenet161": "features", "inception_v3": "Mixed_7c"}


@pytest.mark.parametrize("factory", KINDS)
def test_of_every_kind_in_the_zoo(factory: str) -> None:
    room, _, function = factory.partition(":")
    with torch.device("meta"):
        module = KINDS[factory].build()
    expected = LAST.get(room.rpartition(".")[2]) or LAST.get(function) or "layer4"
    assert last_stage(module) == expected
    assert last_stage(nn.DataParallel(module)) == expected


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "layer4"),
        ("dla34", "level5"),
        ("test_efficientnet", "blocks.4"),
        ("test_convnext", "stages.3"),
    ],
)
def test_of_timms_networks(name: str, last: str) -> None:
    with torch.device("meta"):
        assert last_stage(timm.create_model(name)) == last


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "layer4"), ("vgg11", "features"), ("shufflenet_v2_x0_5", "conv5")]
)
def test_of_torchvisions_networks(name: str, last: str) -> None:
    with torch.device("meta"):
        assert last_stage(models.get_model(name, weights=None)) == last


def test_of_a_network_that_says_nothing() -> None:
    plain = nn.Sequential(OrderedDict(body=nn.Conv2d(3, 4, 3), neck=nn.Conv2d(4, 4, 3), head=nn.Linear(4, 2)))
    message = "which layer of plain is its last stage is not known; name a layer, such as body, neck"
    with pytest.raises(UnknownName, match=f"^{message}$"):
        last_stage(plain, called="plain")
    with pytest.raises(UnknownName, match=r"^which layer of Linear is .*, one that gives feature maps \(N, C, H, W\)$"):
        last_stage(nn.Linear(2, 2))


def test_tokens_and_channels_last_are_no_stages() -> None:
    with torch.device("meta"):
        for name in ("test_vit", "swin_tiny_patch4_window7_224"):
            with pytest.raises(UnknownName, match=r"name a layer, such as patch_embed\.proj$"):
                last_stage(timm.create_model(name))
        with pytest.raises(UnknownName, match=r"name a layer, such as features\.0\.0$"):
            last_stage(models.swin_t())
