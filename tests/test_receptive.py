"""Where units sit on the input: the arithmetic, the tracing of networks, and both against gradient support."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.resnet import ResNet
from r2viz.models.zoo import ZOO
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import fields, grids

# The arithmetic


def test_through_adds_up() -> None:
    stem = Grid().through((7, 7), (2, 2), (3, 3))
    assert (stem.jump, stem.start) == ((2, 2), (0, 0))
    assert stem.through((3, 3), (2, 2), (1, 1)) == Grid((4, 4), (0, 0))
    assert Grid().through((2, 2), (2, 2), (0, 0)) == Grid((2, 2), (0.5, 0.5))
    assert Grid((4, 4), (0.5, 0.5)).through((4, 4), (1, 1), (1, 1)) == Grid((4, 4), (2.5, 2.5))
    # Rows and columns apart, and dilation.
    assert Grid((2, 4), (1, 0)).through((3, 1), (1, 2), (0, 0), (2, 1)) == Grid((2, 8), (5, 0))


def test_meeting_paths() -> None:
    one = Grid((4, 4), (0, 0))
    assert one.meet(one) == one
    other = Grid((4, 4), (1, 0))
    assert one.meet(other) == Grid((4, 4), (0, 0), aligned=False)
    assert other.meet(one) == Grid((4, 4), (1, 0), aligned=False)
    assert not one.meet(other).meet(one).aligned, "once apart, never together again"
    assert not one.meet(other).through((3, 3), (2, 2), (1, 1)).aligned
    with pytest.raises(ValueError, match=r"strides \(4, 4\) and \(8, 4\) meet"):
        one.meet(Grid((8, 4)))


@pytest.mark.parametrize(("size", "map_size"), [((224, 224), (7, 7)), ((225, 160), (8, 5)), ((7, 9), (7, 9))])
def test_resized_is_what_half_pixel_resizing_assumes(size: tuple[int, int], map_size: tuple[int, int]) -> None:
    """A ramp over the map, resized by torch, takes the value i at the centre that the grid gives to unit i."""
    grid = Grid.resized(size, map_size)
    ramp = torch.arange(map_size[0], dtype=torch.float64)[None, None, :, None].expand(1, 1, *map_size)
    large = F.interpolate(ramp, size, mode="bilinear", align_corners=False)[0, 0, :, 0]
    for unit in range(1, map_size[0] - 1):
        centre = grid.start[0] + unit * grid.jump[0]
        low = int(centre)
        value = large[low] + (centre - low) * (large[min(low + 1, size[0] - 1)] - large[low])
        assert value == pytest.approx(unit)


# Our networks


@pytest.mark.parametrize("name", ["resnet50", "res2net50_26w_4s"])
def test_the_pairs_grids(name: str) -> None:
    with torch.device("meta"):
        found = grids(ZOO[name].build())
    for layer, jump in {"conv1": 2, "maxpool": 4, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}.items():
        assert found[layer] == Grid((jump, jump), (0, 0)), layer
    assert found["layer3.2.bn3"] == found["layer3.2.conv3_in"] == Grid((16, 16), (0, 0))
    assert found["conv1_in"] == Grid()
    assert found["avgpool"] is None
    assert found["fc"] is None


def test_every_point_of_a_res2net_has_its_grid(net: Callable[..., Any]) -> None:
    module = net()
    found = grids(module)
    for name, part in module.named_modules():
        if isinstance(part, Res2NetBlock):
            for index in range(4):
                assert found[f"{name}.split{index}"] == found[name], (name, index)
            assert found[f"{name}.conv3_in"] == found[name]
    # First of stage: the stride is in the 3x3, so the 1x1 before it is still on the finer lattice.
    assert found["layer2.0.conv1"] == Grid((4, 4), (0, 0))
    assert found["layer2.0.split3"] == Grid((8, 8), (0, 0))


@pytest.mark.parametrize("block", [Bottleneck, Res2NetBlock])
def test_averaging_shortcuts_are_flagged(block: Any) -> None:
    """v1b's 2x2 average pooling is centred half a pixel off the 3x3's: from stage 2 on no one centre is right."""
    module = ResNet(block, (1, 1, 1, 1), widths=(16, 32, 64, 128), stem="deep", shortcut="avgpool")
    found = grids(module)
    assert found["layer1"] == Grid((4, 4), (0, 0))
    assert found["layer2"] == Grid((8, 8), (0, 0), aligned=False)
    assert found["layer2.0.bn3"] == Grid((8, 8), (0, 0))  # the main path, before the two meet
    assert found["layer2.0.downsample"] == Grid((8, 8), (2, 2))
    assert found["layer4"] == Grid((32, 32), (0, 0), aligned=False)


def test_dilation_and_small_stems() -> None:
    dilated = ResNet(Res2NetBlock, (1, 2, 2, 2), scale=4, base_width=26, dilate=(False, True, True))
    assert grids(dilated)["layer4"] == Grid((8, 8), (0, 0))
    small = ResNet(Bottleneck, (1, 1, 1, 1), stem="3x3", stem_stride=1, pool=False)
    assert grids(small)["layer4"] == Grid((8, 8), (0, 0))


def test_attention_moves_no_centre() -> None:
    def attention(channels: int) -> nn.Module:
        return torchvision.ops.SqueezeExcitation(channels, channels // 4)

    module = ResNet(Res2NetBlock, (1, 1, 1, 1), scale=4, base_width=26, attention=attention)
    assert grids(module)["layer4"] == Grid((32, 32), (0, 0))


# Other networks


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("resnet18", "layer4", Grid((32, 32), (0, 0))),
        ("res2net50d", "layer4", Grid((32, 32), (0, 0), aligned=False)),
        ("seresnet50", "layer4", Grid((32, 32), (0, 0))),
        ("dla60_res2net", "level5", Grid((32, 32), (0, 0), aligned=False)),
        ("vgg11", "features", Grid((32, 32), (15.5, 15.5))),
    ],
)
def test_timms_networks(name: str, layer: str, expected: Grid) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False)
    assert grids(module)[layer] == expected


@pytest.mark.parametrize(("name", "layer"), [("vit_tiny_patch16_224", "blocks"), ("convnext_atto", "stages")])
def test_what_has_no_places_gives_none(name: str, layer: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False)
    assert grids(module).get(layer) is None


class Chain(nn.Module):
    """One 3x3 convolution with stride 2, then something."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.after = nn.Identity()
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.then(self.conv(x)))


HALF = Grid((2, 2), (0, 0))


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (lambda y: torch.cat([y, y], dim=1), HALF),
        (lambda y: torch.cat([y, y], 1), HALF),
        (lambda y: torch.cat([y, y], dim=2), None),
        (lambda y: torch.cat([y, y], -1), None),
        (lambda y: torch.cat(torch.split(y, 2, dim=1), dim=1), HALF),
        (lambda y: y.chunk(2, 1)[1], HALF),
        (lambda y: y.chunk(2, dim=3)[1], None),
        (lambda y: torch.split(y, 2, 2)[0], None),
        (lambda y: y[:, :2], HALF),
        (lambda y: y[:, :, 1:], None),
        (lambda y: y[:, :, :5, : y.shape[3]], HALF),
        (lambda y: F.avg_pool2d(y, 3, 1, 1), HALF),
        (lambda y: F.avg_pool2d(y, 2), Grid((4, 4), (1, 1))),
        (lambda y: F.max_pool2d(y, kernel_size=3, stride=2), Grid((4, 4), (2, 2))),
        (lambda y: F.max_pool2d(y, 3, 1, 2, 2), HALF),
        (lambda y: y[:, :, :, ::2], None),
        (lambda y: y[..., ::2, ::2], None),
        (lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(), HALF),
        (lambda y: y * F.adaptive_avg_pool2d(y, 1), HALF),
        (lambda y: y * y.mean(2, keepdim=True), None),
        (lambda y: y + F.interpolate(F.avg_pool2d(y, 2), scale_factor=2), None),  # as in a feature pyramid
        (lambda y: y + y.flip(2), None),
        (lambda y: F.pad(y, (1, 1, 1, 1)), None),
        (lambda y: y.transpose(2, 3), None),
        (lambda y: y / y.size(1) + 1.0, HALF),
        (lambda y: y / y.shape[1], HALF),
        (lambda y: y if y.sum() > 0 else -y, "untraceable"),
    ],
)
def test_only_what_keeps_rows_and_columns_is_pointwise(then: Any, expected: Any) -> None:
    found = grids(Chain(then))
    assert found["conv"] == HALF
    if expected == "untraceable":
        assert "after" not in found
    else:
        assert found["after"] == expected


def test_a_network_that_cannot_be_followed_at_all() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert grids(Branches()) == {}


def test_padding_same_and_uneven_windows() -> None:
    def last(*layers: nn.Module) -> Any:
        return grids(nn.Sequential(*layers))[str(len(layers) - 1)]

    assert last(nn.Conv2d(3, 3, 4, padding="same")) == Grid((1, 1), (0.5, 0.5))
    assert last(nn.Conv2d(3, 3, 5, padding="same", dilation=2)) == Grid()
    assert last(nn.Conv2d(3, 3, 3, padding="valid")) == Grid((1, 1), (1, 1))
    assert last(nn.Conv2d(3, 3, (3, 1), (2, 1), (1, 0))) == Grid((2, 1), (0, 0))
    assert last(nn.MaxPool2d(2)) == last(nn.AvgPool2d(2)) == Grid((2, 2), (0.5, 0.5))
    assert last(nn.MaxPool2d((3, 2), (2, 2), (1, 0))) == Grid((2, 2), (0, 0.5))
    assert last(nn.Upsample(scale_factor=2)) == Grid((0.5, 0.5), (-0.25, -0.25), aligned=False)
    assert last(nn.Upsample(size=9)) is None
    assert last(nn.Upsample(scale_factor=2, mode="bilinear")) is None
    assert last(nn.ConvTranspose2d(3, 3, 2, 2)) is None
    assert last(nn.AdaptiveAvgPool2d(7)) is None


# Tracing beside everything else


def test_a_network_is_traced_once_and_not_kept_alive(net: Callable[..., Any]) -> None:
    module = net()
    assert grids(module) is grids(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def test_tracing_leaves_the_network_and_the_users_hooks_alone(net: Callable[..., Any]) -> None:
    module = net().train()
    fired: list[str] = []
    for part in (module, module.layer4, module.layer4[0], module.layer4[0].conv1):
        part.register_forward_hook(lambda *_: fired.append("after"))
        part.register_forward_pre_hook(lambda *_: fired.append("before"))
    assert grids(module)["layer4"] == Grid((32, 32), (0, 0))
    assert fired == []
    assert all(part.training for part in module.modules())


def test_tracing_does_not_disturb_other_threads(net: Callable[..., Any]) -> None:
    """torch.fx stands in for the calls of all modules while it traces, of all threads."""
    call = nn.Module.__call__
    expected = grids(net())
    forwards, traced = net(), [net() for _ in range(12)]
    batch = torch.randn(1, 3, 32, 32)
    plain = forwards(batch)
    failures: list[object] = []
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                assert torch.equal(forwards(batch), plain)
            except BaseException as error:
                failures.append(error)

    def trace(own: list[nn.Module]) -> None:
        for module in own:
            if grids(module) != expected:
                failures.append("another grid")

    runner = threading.Thread(target=run)
    tracers = [threading.Thread(target=trace, args=(traced[index::3],)) for index in range(3)]
    for thread in (runner, *tracers):
        thread.start()
    for thread in tracers:
        thread.join()
    done.set()
    runner.join()
    assert not failures
    assert nn.Module.__call__ is call


# Against gradient support


class Skip(nn.Module):
    """Adds a path to its input; both keep the size."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


def window(kernel: int, stride: int, padding: int, dilation: int) -> nn.Module:
    return nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False)


@st.composite
def layers(draw: Any) -> nn.Module:
    kind = draw(st.sampled_from(["conv", "conv", "pool", "skip", "relu"]))
    kernel = draw(st.integers(1, 5))
    if kind == "conv":
        return window(kernel, draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 3)))
    if kind == "pool":  # average, since ties in a maximum hide part of the support
        return nn.AvgPool2d(kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2)))
    if kind == "skip":
        half, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        return Skip(nn.Sequential(window(2 * half + 1, 1, half * dilation, dilation), nn.ReLU()))
    return nn.ReLU()


def span(parts: list[nn.Module]) -> tuple[int, int]:
    """Size of a unit's field and the distance between units, by the textbook: r += (k − 1)·d·j, then j *= s."""
    field, jump = 1, 1
    for part in parts:
        layer: Any = part.path[0] if isinstance(part, Skip) else part
        if isinstance(layer, nn.Conv2d):
            field += (layer.kernel_size[0] - 1) * layer.dilation[0] * jump
            jump *= layer.stride[0]
        elif isinstance(layer, nn.AvgPool2d):
            field += (layer.kernel_size - 1) * jump
            jump *= layer.stride
    return field, jump


def support(module: nn.Module, size: tuple[int, int], unit: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last input row and column that one output unit has a gradient to, and thus depends on."""
    x = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, 0, unit[0], unit[1]], x)
    rows, columns = gradient[0, 0].abs().sum(1).nonzero()[:, 0], gradient[0, 0].abs().sum(0).nonzero()[:, 0]
    return (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.lists(layers(), min_size=1, max_size=4))
def test_centres_are_those_of_gradient_support(parts: list[nn.Module]) -> None:
    field, jump = span(parts)
    assume(jump <= 12 and field <= 160)  # so that units in the middle of the picture below see no border
    module = nn.Sequential(*parts).double()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    grid = grids(module)[str(len(parts) - 1)]
    assert grid is not None
    assert grid.aligned
    size = (330, 300)
    with torch.no_grad():
        rows, columns = module(torch.ones(1, 1, *size, dtype=torch.float64)).shape[-2:]
    for unit in ((rows // 2, columns // 2), (rows // 2 + 1, columns // 2 - 1)):
        (top, bottom), (left, right) = support(module, size, unit)
        assert (bottom - top + 1, right - left + 1) == (field, field)
        # Holes in the support (a stride larger than the kernel, dilation) leave its ends where they are.
        assert grid.start[0] + unit[0] * grid.jump[0] == (top + bottom) / 2
        assert grid.start[1] + unit[1] * grid.jump[1] == (left + right) / 2


def test_centres_of_a_res2net_are_those_of_gradient_support(net: Callable[..., Any]) -> None:
    """At every split of a normal and of a first-of-stage block, with averaging in place of the stem's maximum."""
    module = net(depths=(2, 1, 1, 1)).double()
    module.maxpool = nn.AvgPool2d(3, 2, 1)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    for buffer_name, buffer in module.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.zero_()
    found = grids(module)
    x = torch.ones(1, 3, 320, 320, dtype=torch.float64, requires_grad=True)
    kept: dict[str, Tensor] = {}
    names = [f"layer{block}.split{index}" for block in ("1.1", "2.0") for index in range(4)] + ["layer1", "layer2"]
    for name in names:
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: kept.update({name: out.clone()})
        )
    module(x)
    for name in names:
        grid = found[name]
        assert grid is not None
        unit = kept[name].shape[-1] // 2
        (gradient,) = torch.autograd.grad(kept[name][0, :, unit, unit].sum(), x, retain_graph=True)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
        assert rows[0] > 0
        assert grid.start[0] + unit * grid.jump[0] == (rows[0] + rows[-1]) / 2, name


def test_a_replaced_part_is_seen() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    assert grids(network)["1"] == Grid((1, 1), (2, 2))
    network[1] = nn.Conv2d(4, 4, 3, stride=2)
    assert grids(network)["1"] == Grid((2, 2), (2, 2))
    assert fields(network)["1"] is not None
    network[1] = nn.Conv2d(4, 4, 7)
    field = fields(network)["1"]
    assert field is not None
    assert field.max == 9
