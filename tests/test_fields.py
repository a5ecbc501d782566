"""Theoretical receptive fields as path sets: closed forms of the paper's blocks, and brute force elsewhere."""

from __future__ import annotations

from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from r2viz.models.attention import squeeze_excitation
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.resnet import ResNet
from r2viz.models.zoo import ZOO
from r2viz.receptive.theory import Axis, Field
from r2viz.receptive.trace import fields, grids


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return ZOO[name].build()


def block(scale: int, *, first: bool = False) -> dict[str, Field | None]:
    with torch.device("meta"):
        found = fields(nn.Sequential(Res2NetBlock(64, 16, base_width=64, scale=scale, first=first)))
    return {"out" if path == "0" else path.removeprefix("0."): field for path, field in found.items()}


def polynomial(field: Field | None) -> list[int]:
    """Path counts in powers of one 3x3 convolution."""
    assert field is not None
    assert all(size % 2 == 1 for size in field.sizes)
    return [field.sizes.get(2 * power + 1, 0) for power in range((field.max - 1) // 2 + 1)]


# The paper's block


def test_the_block_of_scale_4_has_the_sizes_that_the_paper_counts() -> None:
    found = block(4)
    assert polynomial(found["out"]) == [2, 3, 2, 1]
    assert polynomial(found["conv3"]) == [1, 3, 2, 1]
    # Code order: the last split is passed through; P_i = z + … + z^(i+1).
    assert [polynomial(found[f"split{index}"]) for index in range(4)] == [[0, 1], [0, 1, 1], [0, 1, 1, 1], [1]]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6, 8])
def test_blocks_follow_the_closed_form(scale: int) -> None:
    """T_s = 1 + Σ (s - k) z^k, and 1 more for the shortcut; the first block of a stage 1 + s z."""
    expected = [2] + [scale - power for power in range(1, scale)] if scale > 1 else [1, 1]
    assert polynomial(block(scale)["out"]) == expected
    assert polynomial(block(scale, first=True)["out"]) == [1, scale]


def test_stacked_blocks_multiply() -> None:
    with torch.device("meta"):
        found = fields(nn.Sequential(*[Res2NetBlock(64, 16, base_width=64, scale=4) for _ in range(3)]))
    assert polynomial(found["1"]) == [4, 12, 17, 16, 10, 4, 1]
    assert polynomial(found["2"]) == [8, 36, 78, 111, 114, 87, 50, 21, 6, 1]
    field = found["2"]
    assert field is not None
    assert field.paths == 8**3
    assert polynomial(found["1.split1"]) == [0, 2, 5, 5, 3, 1]  # B · P_2


# Whole networks


@pytest.mark.parametrize(
    ("name", "least", "largest", "sizes"),
    [
        ("resnet50", 11, 427, 53),
        ("resnet101", 11, 971, 121),
        ("res2net50_48w_2s", 11, 427, 53),
        ("res2net50_26w_4s", 11, 1131, 141),
        ("res2net50_26w_6s", 11, 1835, 229),
        ("res2net50_14w_8s", 11, 2539, 317),
        ("res2net101_26w_4s", 11, 2763, 345),
    ],
)
def test_networks_of_the_paper(name: str, least: int, largest: int, sizes: int) -> None:
    field = fields(built(name))["layer4"]
    assert field is not None
    assert (field.min, field.max, len(field.sizes)) == (least, largest, sizes)
    assert field.aligned
    assert not field.unbounded
    assert field.centre == (0, 0)
    assert field.jump == (32, 32)


def test_splits_of_res2net50_in_code_order() -> None:
    found = fields(built("res2net50_26w_4s"))

    def largest(layer: str) -> list[int]:
        splits = [found[f"{layer}.split{index}"] for index in range(4)]
        return [split.max for split in splits if split is not None]

    assert largest("layer1.1") == [27, 35, 43, 19]
    assert largest("layer4.2") == [1003, 1067, 1131, 939]


def test_resnet50_has_2_to_the_16_paths_through_its_blocks() -> None:
    field = fields(built("resnet50"))["layer4"]
    assert field is not None
    assert field.paths == 2**16
    # One 3x3 per block; of strides 4, 8, 16, 32 with 3 + 3 first-of-stage shifts: size 11 + 2 · jump per convolution.
    smallest = [count for _, count in sorted(field.sizes.items())][:2]
    assert smallest == [1, comb(4, 1)]  # 8 more pixels: three blocks of layer1, and layer2's strided convolution


def test_v1b_meets_paths_of_different_centres() -> None:
    field = fields(built("res2net50_v1b_26w_4s"))["layer4"]
    assert field is not None
    assert field.max == 1135
    assert not field.aligned


def test_a_gate_from_the_whole_picture_makes_the_field_unbounded() -> None:
    with torch.device("meta"):
        gated = fields(ResNet(Bottleneck, (1, 1, 1, 1), attention=squeeze_excitation))
        plain = fields(ResNet(Bottleneck, (1, 1, 1, 1)))
    for layer in ("layer1", "layer4"):
        one, other = gated[layer], plain[layer]
        assert one is not None
        assert other is not None
        assert one.unbounded
        assert not other.unbounded
        assert one.sizes == other.sizes
    assert gated["layer1.0.bn3"] is not None
    assert not gated["layer1.0.bn3"].unbounded  # type: ignore[union-attr]
    assert plain["avgpool"] is None
    assert plain["fc"] is None


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")],
    ids=lambda layer: type(layer).__name__,
)
def test_what_lets_the_whole_picture_in_is_unbounded(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.ReLU())
    found = fields(module)
    assert not found["0"].unbounded  # type: ignore[union-attr]
    assert found["2"].unbounded  # type: ignore[union-attr]
    assert grids(module)["2"] == grids(module)["0"]
    picture = torch.randn(1, 3, 24, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(module[:2](picture)[0, :, 0, 0].square().sum(), picture)
    assert gradient[0, :, -1].abs().sum() > 0  # indeed


def test_fields_lie_on_the_grids() -> None:
    for name in ("resnet26_mini", "res2net26_mini", "res2net50_26w_4s"):
        module = built(name)
        places = grids(module)
        for path, field in fields(module).items():
            grid = places[path]
            assert (field is None) == (grid is None), path
            if field is not None and grid is not None and field.aligned:
                assert (field.jump, field.centre) == (grid.jump, grid.start)


# Anything else


def ones(module: nn.Module) -> nn.Module:
    """Positive weights and no biases, so that no gradient cancels; average instead of max pooling, which has ties."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1.0)
    return module.double().eval()


def support(module: nn.Module, picture: Tensor, layer: str, unit: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last rows and columns (exclusive) of the input that a unit's value depends on."""
    picture = picture.double().requires_grad_(True)
    kept: dict[str, Tensor] = {}
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.update(out=out))
    module(picture)
    handle.remove()
    (gradient,) = torch.autograd.grad(kept["out"][0, :, unit[0], unit[1]].sum(), picture)
    rows, columns = (gradient[0].abs().sum(dim=(0, axis)).nonzero().flatten() for axis in (2, 1))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


class Random(nn.Module):
    """A small network with windows of any shape, skips and concatenations."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.shapes = [layer["join"] for layer in layers]
        channels = 1
        for layer in layers:
            kernel, padding = layer["kernel"], layer["padding"]
            if layer["join"] != "none":  # a window that keeps the size, so that it can be added
                kernel = tuple(2 * (side // 2) + 1 for side in kernel)
                padding = tuple((side - 1) // 2 * layer["dilation"] for side in kernel)
                self.parts.append(nn.Conv2d(channels, channels, kernel, 1, padding, layer["dilation"], bias=False))
            elif layer["pool"]:
                padding = tuple(min(pad, side // 2) for pad, side in zip(padding, kernel, strict=True))
                self.parts.append(nn.AvgPool2d(kernel, layer["stride"], padding))
            else:
                self.parts.append(
                    nn.Conv2d(channels, channels, kernel, layer["stride"], padding, layer["dilation"], bias=False)
                )
            channels *= 2 if layer["join"] == "cat" else 1
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for part, join in zip(self.parts, self.shapes, strict=True):
            y = part(x)
            x = x + y if join == "add" else torch.cat([x, y], dim=1) if join == "cat" else y
        return self.end(x)


SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))
LAYER = st.fixed_dictionaries(
    {
        "kernel": SIDES,
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "stride": st.integers(1, 2),
        "dilation": st.integers(1, 2),
        "pool": st.booleans(),
        "join": st.sampled_from(["none", "none", "add", "cat"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(layers=st.lists(LAYER, min_size=1, max_size=5))
def test_random_networks_see_what_theory_says(layers: list[dict[str, Any]]) -> None:
    module = ones(Random(layers))
    field = fields(module)["end"]
    assert field is not None
    side = 90
    with torch.inference_mode():
        height, width = module(torch.ones(1, 1, side, side).double()).shape[2:]
    unit = (height // 2, width // 2)
    y0, x0, y1, x1 = (round(edge) for edge in field.box(unit))
    clipped = max(0, y0), max(0, x0), min(side, y1), min(side, x1)
    assert support(module, torch.ones(1, 1, side, side), "end", unit) == clipped


@settings(deadline=None, max_examples=25)
@given(layers=st.lists(LAYER, min_size=1, max_size=5))
def test_path_counts_are_the_paths_one_by_one(layers: list[dict[str, Any]]) -> None:
    module = Random(layers)
    field = fields(module)["end"]
    assert field is not None
    every: list[tuple[float, float]] = [(0.0, 0.0)]
    jump = 1.0
    for part, join in zip(module.parts, module.shapes, strict=True):
        kernel, stride, padding = (
            value if isinstance(value, tuple) else (value, value)
            for value in (part.kernel_size, part.stride, part.padding)  # type: ignore[union-attr]
        )
        dilation = getattr(part, "dilation", (1, 1))[0]  # type: ignore[index]
        after = [
            (left - padding[0] * jump, right + ((kernel[0] - 1) * dilation - padding[0]) * jump)  # type: ignore
            for left, right in every
        ]
        jump *= stride[0]  # type: ignore[assignment]
        every = after if join == "none" else every + after
    assert field.paths == len(every)
    assert field.y.paths == {extent: every.count(extent) for extent in set(every)}
    assert field.y.jump == jump


def test_every_split_of_a_small_res2net_by_gradient_support() -> None:
    module = ResNet(Res2NetBlock, (2, 2, 1, 1), widths=(8, 8, 8, 8), base_width=64, scale=3, num_classes=2)
    module.maxpool = nn.AvgPool2d(3, 2, 1)  # type: ignore[assignment]
    ones(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.fill_(9.0)  # type: ignore[union-attr]
    picture = torch.ones(1, 3, 160, 160)
    found = fields(module)
    for layer in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        for split in range(3):
            field = found[f"{layer}.split{split}"]
            assert field is not None
            unit = (20, 20) if layer.startswith("layer1") else (10, 10)
            expected = tuple(round(edge) for edge in field.box(unit))
            assert support(module, picture, f"{layer}.split{split}", unit) == expected


def test_axes_with_different_strides_do_not_meet() -> None:
    with pytest.raises(ValueError, match=r"paths with strides 1.0 and 2.0 meet"):
        Axis().meet(Axis(2.0))
    field = Field().through((3, 3), (2, 2), (1, 1))
    assert field.box((1, 2)) == (1, 3, 4, 6)
    assert field.as_dict()["sizes"] == {"3": 1}
    tall = Field().through((3, 1), (1, 1), (1, 0))
    assert (tall.y.sizes, tall.columns.sizes) == ({3: 1}, {1: 1})


def test_counts_are_exact_however_large() -> None:
    field = fields(built("res2net152_26w_4s"))["layer4"]
    assert field is not None
    # 4 first-of-stage blocks with 4 + 1 paths, 46 others with 8; all counted, none rounded.
    assert field.paths == 5**4 * 8**46
    assert sum(field.sizes.values()) == field.paths
