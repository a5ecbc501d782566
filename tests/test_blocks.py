"""What blocks write over: the same numbers to the last bit, and never where somebody could tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import perturb
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from r2viz.attribution import cam_maps
from r2viz.models import blocks
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.dla import res2net_dla
from r2viz.models.resnet import ResNet
from r2viz.taps import tap


class Operations(TorchDispatchMode):
    """Counts what runs by name, say `"native_batch_norm.out"`."""

    def __enter__(self) -> Operations:
        self.count: dict[str, int] = {}
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

    @property
    def written_over(self) -> int:
        return self.count.get("native_batch_norm.out", 0)


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LARGE", 0)


def plainly(module: nn.Module, *given: Tensor) -> Tensor:
    """The forward pass with nothing written over."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(blocks, "_LARGE", float("inf"))
        return module(*given)


def shortcut(kind: str, inplanes: int, outplanes: int, stride: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "bare":
        return nn.Conv2d(inplanes, outplanes, 1, stride)
    pool = [nn.AvgPool2d(stride, stride)] if kind == "pooled" else []
    return nn.Sequential(
        *pool, nn.Conv2d(inplanes, outplanes, 1, 1 if pool else stride, bias=False), nn.BatchNorm2d(outplanes)
    )


BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {"inplanes": 32},
    "first": {"first": True, "downsample": "strided"},
    "stride": {"first": True, "stride": 2, "downsample": "strided"},
    "pooled shortcut": {"first": True, "stride": 2, "downsample": "pooled"},
    "shortcut of one layer": {"downsample": "bare"},
    "attention": {"inplanes": 32, "attention": lambda channels: nn.Conv2d(channels, channels, 1, groups=channels)},
    "one group": {"inplanes": 32, "scale": 1},
    "eight groups": {"inplanes": 32, "scale": 8},
    "cardinality": {"inplanes": 32, "groups": 2},
    "not rectified": {"inplanes": 32, "rectified": False},
}


def made(kind: str, case: str) -> tuple[nn.Module, Tensor]:
    options = {"inplanes": 16, "downsample": "none", "stride": 1, **BLOCKS[case]}
    inplanes, rectified = options.pop("inplanes"), options.pop("rectified", True)
    options["downsample"] = shortcut(options["downsample"], inplanes, 32, options["stride"])
    if kind == "resnet":
        options.pop("scale", None)
    block = {"resnet": Bottleneck, "res2net": Res2NetBlock}[kind](inplanes, 8, base_width=64, **options)
    block.rectified = rectified
    return perturb(block).eval(), torch.randn(2, inplanes, 10, 8)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("kind", ["resnet", "res2net"])
def test_equal_to_the_last_bit(kind: str, case: str, memory: torch.memory_format) -> None:
    block, x = made(kind, case)
    block, x = block.to(memory_format=memory), x.to(memory_format=memory)  # type: ignore[call-overload]
    kept, want = x.clone(), plainly(block, x)
    with torch.inference_mode(), Operations() as seen:
        got = block(x)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in block.modules())
    assert seen.written_over == norms
    joined = seen.count.get("cat.default", 0)
    assert joined == (1 if kind == "res2net" and block.stride == 2 else 0), "concatenated only where sizes change"
    assert torch.equal(got, want)
    assert torch.equal(x, kept), "the input is its caller's"
    if case == "plain":
        other = torch.randn_like(x)
        kept, want = other.clone(), plainly(block, x, other)
        with torch.inference_mode():
            assert torch.equal(block(x, other), want)
        assert torch.equal(other, kept), "a shortcut from outside too"


@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "convs.1", "bns.0", "bns.2", "split0", "split3", "conv3"])
def test_whoever_looks_sees_what_was_there(name: str) -> None:
    """A plain hook that keeps the tensor itself, with no copy: it still holds the values some time later."""
    block, x = made("res2net", "plain")
    block.relu.inplace = False  # that one overwrites by its own choice
    taken: list[Tensor] = []
    cloned: list[Tensor] = []

    def hook(_module: nn.Module, _into: Any, out: Tensor) -> None:
        taken.append(out)
        cloned.append(out.clone())

    want = plainly(block, x)
    handle = block.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode(), Operations() as seen:
        got = block(x)
    handle.remove()
    assert seen.written_over == 0
    assert torch.equal(got, want)
    assert len(taken) == (5 if name == "relu" else 1)
    assert all(torch.equal(kept, value) for kept, value in zip(taken, cloned, strict=True))


def test_hooks_on_everything_and_on_the_block_itself() -> None:
    block, x = made("res2net", "stride")
    want = plainly(block, x)
    fired: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda part, *_: fired.append(type(part).__name__))
    with torch.inference_mode():
        assert torch.equal(block(x), want)
    handle.remove()
    assert fired.count("BatchNorm2d") == 6
    block.register_forward_hook(lambda *_: fired.append("block"))
    block.downsample.register_forward_pre_hook(lambda *_: fired.append("shortcut"))  # type: ignore[union-attr]
    fired.clear()
    with torch.inference_mode():
        assert torch.equal(block(x), want)
    assert fired == ["shortcut", "block"]


def network() -> ResNet:
    module = ResNet(Res2NetBlock, (2, 2, 1, 1), widths=(8, 16, 32, 64), num_classes=7, base_width=26, scale=4)
    return perturb(module).eval()


def test_taps_change_no_bit() -> None:
    module, x = network(), torch.randn(2, 3, 40, 40)
    names = ["layer1.0.bns.1", "layer2.1.split1", "layer2.1.split3", "layer2.1.conv3_in", "layer1.1.bn3", "layer3"]
    want = plainly(module, x)
    with torch.inference_mode():
        with Operations() as seen:
            assert torch.equal(module(x), want)
        assert seen.written_over > 30
        with tap(module, names) as taken:
            assert torch.equal(module(x), want)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(blocks, "_LARGE", float("inf"))
        with tap(module, names) as before:
            module(x)
    for name in names:
        assert torch.equal(taken[name], before[name]), name


def test_gradients_are_those_of_the_plain_pass() -> None:
    block, x = made("res2net", "plain")
    results = []
    for large in (0, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "_LARGE", large)
            asked = x.clone().requires_grad_(True)
            out = block(asked)
            results.append(torch.autograd.grad(out.square().sum(), [asked, *block.parameters()]))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    # Only the last parameter wants a gradient: enough that nothing may be written over.
    block.requires_grad_(False)
    block.bn3.bias.requires_grad_(True)
    with Operations() as seen:
        out = block(x)
    assert seen.written_over == 0
    assert torch.autograd.grad(out.sum(), block.bn3.bias)[0].abs().max() > 0


def test_below_a_cams_layer_no_gradient_is_wanted() -> None:
    """A class activation map of the last layer costs what the forward pass costs: it is as thrifty."""
    module, x = network(), torch.randn(2, 3, 64, 64)
    with Operations() as seen:
        cam_maps(module, x, targets=0, layers=["layer4"])
    assert seen.written_over == sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()) - 1  # the stem's
    deep = res2net_dla(widths=(4, 8, 16, 16, 16, 32), num_classes=5).eval()
    with Operations() as seen:
        cam_maps(deep, x, targets=0, layers=["level5"])
    assert seen.written_over == 16 * 5


@pytest.mark.parametrize("case", ["training", "small", "bfloat16", "no statistics", "double"])
def test_where_nothing_is_written_over(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = made("res2net", "plain")
    if case == "small":
        monkeypatch.setattr(blocks, "_LARGE", x.nbytes + 1)
    if case == "training":
        block.train()
    if case == "no statistics":
        for part in block.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = part.running_var = None
    if case == "double":
        block, x = block.double(), x.double()
    with torch.no_grad(), torch.autocast("cpu", enabled=case == "bfloat16"), Operations() as seen:
        out = block(x)
    assert seen.written_over == (5 if case == "double" else 0)
    assert out.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_transforms_of_functions() -> None:
    """vmap, jvp and grad of torch.func, and dual numbers: as without writing over."""
    block, x = made("res2net", "plain")
    block.requires_grad_(False)
    many = torch.stack([x, x + 1])
    with torch.no_grad():
        for got, one in zip(torch.func.vmap(block)(many), many, strict=True):
            assert torch.allclose(got, plainly(block, one), atol=1e-5)
    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(block, (x,), (direction,))
    with torch.autograd.forward_ad.dual_level():
        dual = block(torch.autograd.forward_ad.make_dual(x, direction))
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope, atol=1e-5)
    back = torch.func.grad(lambda x: block(x).sum())(x)
    assert torch.allclose((back * direction).sum(), slope.sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_compiled_and_scripted_by_tracing() -> None:
    module, x = network(), torch.randn(1, 3, 40, 40)
    want = plainly(module, x)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), want, atol=1e-6)
        traced = torch.jit.trace(module, x)
        assert torch.allclose(traced(x + 1), plainly(module, x + 1), atol=1e-6)
        assert torch.equal(module(x), want)
