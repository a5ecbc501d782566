"""`r2viz rf` and `r2viz.theoretical_rf`: the paper's numbers by a network's name."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import network
from torch import Tensor, nn

import r2viz
from r2viz.cli import cli
from r2viz.errors import ModelError, UnknownName


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["rf", *arguments], catch_exceptions=False)


def test_json_holds_what_each_tap_sees() -> None:
    document = json.loads(run("res2net50_26w_4s", "--json", "--split").stdout)
    taps = document["taps"]
    assert taps["layer4"]["max"] == 1131
    assert [taps[f"layer4.2.split{index}"]["max"] for index in range(4)] == [1003, 1067, 1131, 939]
    assert taps["maxpool"]["sizes"] == {"11": 1}
    assert sum(taps["layer4"]["sizes"].values()) == taps["layer4"]["paths"] == 5**4 * 8**12
    assert "layer4.2.convs.0" not in taps
    assert not [tap for tap in json.loads(run("res2net50_26w_4s", "--json").stdout)["taps"] if "split" in tap]


def test_text_is_a_line_per_tap() -> None:
    lines = run("resnet26_mini").stdout.splitlines()
    assert lines[0].split() == ["tap", "stride", "min", "max", "sizes", "paths"]
    assert {line.split()[0] for line in lines[1:]} >= {"conv1", "layer1", "layer1.0", "layer4", "layer4.1"}
    last = next(line.split() for line in lines if line.startswith("layer4 "))
    field = r2viz.theoretical_rf("resnet26_mini")["layer4"]
    assert last[1:4] == ["8", str(field.min), str(field.max)]


def test_remarks_say_what_marks_mean() -> None:
    gated = run("se_resnet50").stdout
    assert "layer4.2" in gated
    assert "* some paths see the whole picture" in gated
    assert "~ paths with different centres meet" in run("res2net50_v1b_26w_4s").stdout
    assert "*" not in run("resnet50").stdout


def test_single_taps_a_split_s_direct_path_included() -> None:
    taps = json.loads(run("res2net26_mini", "--layer", "layer2.1.conv3_in[1]", "--layer", "layer2", "--json").stdout)
    assert list(taps["taps"]) == ["layer2.1.conv3_in[1]", "layer2"]
    split = r2viz.theoretical_rf("res2net26_mini", ["layer2.1.split1"])["layer2.1.split1"]
    assert taps["taps"]["layer2.1.conv3_in[1]"]["sizes"] == {str(key): value for key, value in split.sizes.items()}


def test_models_and_modules_are_taken_as_they_are() -> None:
    model = network("res2net_tiny")
    whole = r2viz.theoretical_rf(model)
    assert whole == r2viz.theoretical_rf(model.module)
    assert whole["layer4"] == r2viz.theoretical_rf(model, ["layer4"])["layer4"]


def test_what_has_no_field_says_so() -> None:
    with pytest.raises(UnknownName, match=r"no layer 'layer5' in resnet50; did you mean 'layer4'\?"):
        r2viz.theoretical_rf("resnet50", ["layer5"])
    with pytest.raises(ModelError, match=r"'fc' of resnet50 has no lattice on the picture.*choose a layer before it"):
        r2viz.theoretical_rf("resnet50", ["fc"])

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) if torch.sum(x) > 0 else x

    assert r2viz.theoretical_rf(Branches())["first"].max == 3
    with pytest.raises(ModelError, match=r"Branches cannot be followed as far as 'second' \(torch.fx\)"):
        r2viz.theoretical_rf(Branches(), ["second"])
