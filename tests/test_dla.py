"""Deep layer aggregation: the same numbers as timm's, from the block that Res2Net uses too, at every stage and tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from conftest import perturb
from torch import Tensor, nn

from r2viz.attribution import cam_maps
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.dla import DLA, dla, res2net_dla
from r2viz.receptive.theory import Grid
from r2viz.receptive.trace import grids

# Ours, what timm calls it, and its parameters (computed from timm's networks).
CASES: dict[str, tuple[Callable[..., DLA], dict[str, Any], int]] = {
    "dla60": (dla, {}, 22_036_632),
    "dla60x": (dla, {"groups": 32, "base_width": 4}, 17_352_344),
    "dla60_res2net": (res2net_dla, {}, 20_848_072),
    "dla60_res2next": (res2net_dla, {"groups": 8, "base_width": 4}, 17_032_984),
}
TINY: dict[str, Any] = {"widths": (4, 8, 16, 24, 32, 64), "num_classes": 5}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def tiny(build: Callable[..., DLA] = res2net_dla, **options: Any) -> DLA:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(**{**TINY, **options})
    return perturb(module).eval()


@pytest.mark.parametrize("name", CASES)
def test_keys_stages_and_logits_equal_timms(name: str) -> None:
    build, options, count = CASES[name]
    ours = perturb(build(**options)).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False).eval()
    assert shapes(ours) == shapes(theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    for part in theirs.modules():
        if isinstance(part, nn.MaxPool2d):
            # At 100 px its shortcut rounds down (12 at stride 8) and its convolutions up (13), so that it cannot add
            # them; rounding up alike is all it lacks. Where both round to the same, this changes nothing.
            part.ceil_mode = True
    taken: dict[str, Tensor] = {}
    for stage in ours.stages:
        ours.get_submodule(stage).register_forward_hook(lambda _m, _a, out, at=stage: taken.update({at: out}))
    for height, width in ((64, 96), (100, 100)):
        batch = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            logits = ours(batch)
            last, stages = theirs.forward_intermediates(batch)
            wanted = theirs.forward_head(last)
        assert wanted.std() > 0.01
        assert (logits - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
        assert list(taken) == ["level0", "level1", "level2", "level3", "level4", "level5"]
        for stage, want in zip(ours.stages, stages, strict=True):
            assert taken[stage].shape == want.shape
            assert (taken[stage] - want).abs().max() <= 1e-5 * max(1.0, float(want.abs().max())), stage


def test_timms_own_pooling_agrees_where_it_runs() -> None:
    ours = perturb(res2net_dla(num_classes=7)).eval()
    theirs = timm.create_model("dla60_res2net", pretrained=False, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.inference_mode():
        batch = torch.randn(1, 3, 96, 64)
        assert (ours(batch) - theirs(batch)).abs().max() <= 1e-5
        with pytest.raises(RuntimeError, match="must match the size"):
            theirs(torch.randn(1, 3, 100, 100))
        assert ours(torch.randn(1, 3, 100, 100)).isfinite().all()


def test_the_blocks_are_those_of_resnet() -> None:
    """One split loop in the house: the leaves are its two blocks, with additions wherever there is no stride."""
    plain, split = tiny(dla), tiny()
    assert sum(isinstance(part, Bottleneck) for part in plain.modules()) == 2 + 4 + 8 + 2
    blocks = {name: part for name, part in split.named_modules() if isinstance(part, Res2NetBlock)}
    assert len(blocks) == 16
    assert all(type(part).forward is Res2NetBlock.forward for part in blocks.values())
    assert {name for name, part in blocks.items() if part.first} == {
        "level2.tree1",
        "level3.tree1.tree1",
        "level4.tree1.tree1.tree1",
        "level5.tree1",
    }


def test_a_root_sees_every_left_subtree_and_the_stages_input() -> None:
    """Gradient reaches the lower right root directly (not through blocks) from each branch that figure 3 draws."""
    module = tiny(dla, depths=(1, 1, 1, 2, 3, 1))
    seen: list[list[Tensor]] = []
    root = module.level4.tree2.tree2.root  # type: ignore[union-attr]
    root.register_forward_pre_hook(lambda _m, branches: seen.append(list(branches)))
    outputs: dict[str, Tensor] = {}
    for name in (
        "level3",
        "level4.tree1",
        "level4.tree2.tree1",
        "level4.tree2.tree2.tree1",
        "level4.tree2.tree2.tree2",
    ):
        module.get_submodule(name).register_forward_hook(lambda _m, _a, out, at=name: outputs.update({at: out}))
    with torch.inference_mode():
        module(torch.randn(1, 3, 64, 64))
    right, left, *handed = seen[0]
    assert torch.equal(right, outputs["level4.tree2.tree2.tree2"])
    assert torch.equal(left, outputs["level4.tree2.tree2.tree1"])
    pooled = nn.functional.max_pool2d(outputs["level3"], 2)
    for got, want in zip(handed, (pooled, outputs["level4.tree1"], outputs["level4.tree2.tree1"]), strict=True):
        assert torch.equal(got, want)


def test_grids_of_stages_and_splits() -> None:
    """Convolutions with stride keep unit (0, 0) on pixel (0, 0); the pooled shortcut sits beside it, which is told."""
    found = grids(tiny())
    for level, jump in enumerate((1, 2, 4, 8, 16, 32)):
        assert found[f"level{level}"] == Grid((jump, jump), (0.0, 0.0), aligned=level < 2)
    for split in range(4):
        at = found[f"level3.tree2.tree1.split{split}"]
        assert at is not None
        assert (at.jump, at.start) == ((8, 8), (0.0, 0.0))
    assert found["fc"] is None


@pytest.mark.parametrize("layer", ["level5", "level4.tree2.tree2.tree1", "level3.tree1.tree1.conv3"])
def test_cams_equal_those_of_timms_network(layer: str) -> None:
    ours = perturb(res2net_dla(num_classes=6)).eval()
    theirs = timm.create_model("dla60_res2net", pretrained=False, num_classes=6).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    batch = torch.randn(2, 3, 64, 64)
    got = cam_maps(ours, batch, targets=[2, 5], layers=[layer])[layer]
    taken: list[Tensor] = []
    theirs.get_submodule(layer).register_forward_hook(lambda _m, _a, out: taken.append(out.clone()) or taken[0].clone())
    logits = theirs(batch)
    (gradient,) = torch.autograd.grad(logits[0, 2] + logits[1, 5], taken[0])
    want = (gradient.mean(dim=(2, 3), keepdim=True) * taken[0]).sum(dim=1)
    assert want.abs().max() > 0
    assert (got - want).abs().max() <= 1e-5 * float(want.detach().abs().max())


def test_cams_of_splits() -> None:
    """At the last split of a block there is no cascade, so total and direct derivative are the same."""
    module = tiny()
    block = "level4.tree1.tree2.tree1"
    layers = [f"{block}.split{i}" for i in range(4)] + [f"{block}.conv3_in[{i}]" for i in range(4)]
    maps = cam_maps(module, torch.randn(1, 3, 64, 64), targets=1, layers=layers)
    assert {tuple(map_.shape) for map_ in maps.values()} == {(1, 4, 4)}
    scale = float(maps[f"{block}.split0"].abs().max())
    assert scale > 0
    for index in (2, 3):  # split2 is the last of the cascade, split3 passes through
        total, direct = maps[f"{block}.split{index}"], maps[f"{block}.conv3_in[{index}]"]
        assert torch.allclose(total, direct, atol=1e-5 * scale)
    assert not torch.allclose(maps[f"{block}.split0"], maps[f"{block}.conv3_in[0]"], atol=1e-3 * scale)


def test_shortcut_from_outside() -> None:
    for build in (Bottleneck, Res2NetBlock):
        block = perturb(build(16, 4, base_width=64)).eval()
        x, shortcut = torch.randn(2, 1, 16, 5, 5)
        with torch.inference_mode():
            kept = shortcut.clone()
            # With a shortcut of zeros what is left is the branch; adding is commutative, so this is exact.
            branch: list[Tensor] = []
            handle = block.bn3.register_forward_hook(lambda _m, _a, out, kept=branch: kept.append(out.clone()))
            out = block(x, shortcut)
            handle.remove()
            assert torch.equal(out, (branch[0] + shortcut).relu())
            assert torch.equal(shortcut, kept), "the caller's shortcut is not written to"
            assert torch.equal(block(x), block(x, x))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="depths and widths need six values, one per level; 5 and 6 came"):
        dla(depths=(1, 1, 1, 2, 3))
