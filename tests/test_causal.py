"""Interventions inside blocks against whole forward passes with the block written out step by step."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from test_splits_places import Official
from torch import Tensor, nn

from r2viz.agreement import rank_correlation
from r2viz.attribution import cam_maps
from r2viz.causal_records import CAUSAL_COLUMNS, INTERVENTIONS
from r2viz.errors import BadTarget, ModelError, UnknownName
from r2viz.partition.causal import ablate, channel_means
from r2viz.partition.causal_block import order
from r2viz.partition.places import blocks
from r2viz.statistics import mean_interval

SIZE = 64  # DLA needs a multiple of 32


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ours(net) -> nn.Module:
    return net("res2net", depths=(2, 1, 1, 2)).double()


def timms(_net) -> nn.Module:
    timm = pytest.importorskip("timm")
    from timm.models.res2net import Bottle2neck

    torch.manual_seed(0)
    return lively(
        timm.models.resnet.ResNet(
            Bottle2neck, [2, 1, 1, 2], num_classes=7, channels=(8, 16, 32, 64), base_width=26, block_args={"scale": 4},
            zero_init_last=False,
        )
    )  # fmt: skip


def timms_dla(_net) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    dla = timm.models.dla
    return lively(
        dla.DLA(
            levels=(1, 1, 1, 2, 1, 1), channels=(8, 8, 16, 32, 32, 64), block=dla.DlaBottle2neck, cardinality=1,
            base_width=28, num_classes=7,
        )
    )  # fmt: skip


def officials(_net) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("conv1", nn.Conv2d(3, 8, 3, 4, 1))
    module.add_module("layer1", nn.Sequential(Official(8, stype="stage"), Official(8), Official(8)))
    module.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)))
    return lively(module)


def lively(module: nn.Module) -> nn.Module:
    """With normalisations that do something."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.6, 1.4)
            nn.init.normal_(part.bias, 0, 0.3)
    return module.double().eval()


LAYOUTS = {"ours": ours, "timm": timms, "timm DLA": timms_dla, "official": officials}


def slowly(module: nn.Module, path: str, edit: Any, pictures: Tensor, *, link: int | None = None) -> Tensor:
    """Logits of a whole pass in which one block is written out: `edit(i, y)` gives what goes on and into conv3."""
    part: Any = module.get_submodule(path)
    said = getattr(part, "first", getattr(part, "is_first", None))
    first = part.stype == "stage" if said is None else said

    def forward(x: Tensor, shortcut: Tensor | None = None, *_rest: Any, **_more: Any) -> Tensor:
        groups = torch.relu(part.bn1(part.conv1(x))).split(part.width, dim=1)
        onward, into = None, []
        for i in range(part.scale):
            if i == part.scale - 1:
                y = part.pool(groups[i]) if first else groups[i]
            else:
                linked = i > 0 and not first and i != link
                y = torch.relu(part.bns[i](part.convs[i](groups[i] + onward if linked else groups[i])))
            onward, given = edit(i, y)
            into.append(given)
        out = part.bn3(part.conv3(torch.cat(into, dim=1)))
        if shortcut is None:
            down = getattr(part, "downsample", None)
            shortcut = x if down is None else down(x)
        return torch.relu(out + shortcut)

    part.forward = forward
    try:
        with torch.no_grad():
            return module(pictures)
    finally:
        del part.forward


def editing(intervention: str, split: int, mean: np.ndarray, tap: str, seed: int) -> Any:
    def edit(i: int, y: Tensor) -> tuple[Tensor, Tensor]:
        if i != split or intervention == "cut":
            return y, y
        if intervention.startswith("zero"):
            new = torch.zeros_like(y)
        elif intervention.startswith("mean"):
            new = torch.as_tensor(mean)[None, :, None, None].expand_as(y)
        else:
            new = y[:, order(tap, y.shape[1], seed)]
        return (y, new) if intervention.endswith("direct") else (new, new)

    return edit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_intervention_is_a_whole_pass_with_the_block_written_out(layout, net, pictures):
    module = LAYOUTS[layout](net)
    places = blocks(module)
    places = [places[0], places[1], places[-1]]  # first of its stage, with a cascade, and the network's last
    labels = np.array([0, 3, 6])
    record = ablate(module, pictures, places=places, labels=labels, seed=4)
    with torch.no_grad():
        base = module(pictures)
    inputs: dict[str, Tensor] = {}
    with torch.no_grad():
        handles = [
            module.get_submodule(block.conv3).register_forward_pre_hook(
                lambda _m, args, path=block.path: inputs.__setitem__(path, args[0].clone())
            )
            for block in places
        ]
        module(pictures)
        for handle in handles:
            handle.remove()
    at, seen = np.arange(3), 0
    for block in places:
        for part in block.parts:
            mean = inputs[block.path].mean(dim=(0, 2, 3)).numpy()[part.channels]
            for name in INTERVENTIONS:
                linked = not block.first and 0 < part.split.split < block.scale - 1
                if name == "cut" and not linked:
                    with pytest.raises(UnknownName, match="the record has no effect"):
                        record.of(part.split.tap, name)
                    continue
                number = part.split.split
                edit = editing(name, number, mean, part.split.tap, 4)
                expected = slowly(module, block.path, edit, pictures, link=number if name == "cut" else None)
                effect = record.of(part.split.tap, name)
                moved = (expected - base).numpy()[at, labels]
                np.testing.assert_allclose(effect.logit, moved, atol=1e-9)
                odds = (expected.softmax(1) - base.softmax(1)).numpy()[at, labels]
                np.testing.assert_allclose(effect.probability, odds, atol=1e-9)
                np.testing.assert_array_equal(effect.correct, expected.argmax(1).numpy() == labels)
                seen += bool(np.abs(moved).max() > 1e-6)
    assert seen > 30  # of some 60: the network is not so dead that nothing would show
    if any(block.first for block in places):
        assert any("no links between splits" in note for note in record.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_base_is_the_plain_pass_to_the_last_bit(layout, net, pictures):
    module = LAYOUTS[layout](net).float()
    batch = pictures.float()
    with torch.inference_mode():
        plain = module(batch)
    record = ablate(module, batch, interventions=["zero"])
    np.testing.assert_array_equal(record.target, plain.argmax(1))
    np.testing.assert_array_equal(record.logit, plain.max(1).values.double().numpy())


def test_single_precision_agrees(net, pictures):
    module = ours(net)
    exact = ablate(module, pictures, targets=2, seed=1)
    rough = ablate(module.float(), pictures.float(), targets=2, seed=1)
    for one, other in zip(exact.effects, rough.effects, strict=True):
        np.testing.assert_allclose(other.logit, one.logit, atol=2e-5)


def test_what_conv3_ignores_may_go_in_direct_mode(net, pictures):
    module = ours(net)
    block = blocks(module)[1]
    part = block.parts[0]
    with torch.no_grad():
        module.get_submodule(block.conv3).weight[:, part.channels] = 0
    record = ablate(module, pictures, places=[block])
    for name in ("zero_direct", "mean_direct"):
        assert np.abs(record.of(part.split.tap, name).logit).max() < 1e-12
    assert np.abs(record.of(part.split.tap, "zero").logit).max() > 1e-6  # the cascade still carried it


def test_a_link_from_a_dead_split_may_be_cut(net, pictures):
    module = ours(net)
    block = blocks(module)[1]
    with torch.no_grad():
        norm = module.get_submodule(f"{block.path}.bns.0")
        norm.weight.zero_()
        norm.bias.fill_(-1)
    record = ablate(module, pictures, places=[block], interventions=["cut", "zero"])
    assert np.abs(record.of(f"{block.path}.split1", "cut").logit).max() < 1e-12
    assert np.abs(record.of(f"{block.path}.split2", "cut").logit).max() > 1e-6


def test_the_size_of_batches_decides_nothing(net, pictures):
    module = ours(net)
    labels = [1, 2, 3]
    whole = ablate(module, pictures, labels=labels, maps=True)
    parts = ablate(module, [pictures[:1], pictures[1:1], pictures[1:]], labels=labels, maps=True)
    for one, other in zip(whole.effects, parts.effects, strict=True):
        assert one.split == other.split
        np.testing.assert_allclose(one.logit, other.logit, atol=1e-10)
        np.testing.assert_allclose(one.map, other.map, atol=1e-6)


def test_maps_are_those_of_the_changed_network(net, pictures):
    module = ours(net)
    block = blocks(module)[-1]
    record = ablate(module, pictures, places=[block], targets=[1, 2, 3], maps="layer4", interventions=["zero", "cut"])
    assert record.map_layer == "layer4"
    base = cam_maps(module, pictures, targets=[1, 2, 3], layers=["layer4"])["layer4"].numpy()

    def zeroed(_module, args):
        return (args[0] * (torch.arange(args[0].shape[1]) >= block.parts[-1].channels[0]).logical_not()[:, None, None],)

    handle = module.get_submodule(block.conv3).register_forward_pre_hook(zeroed)
    changed = cam_maps(module, pictures, targets=[1, 2, 3], layers=["layer4"])["layer4"].numpy()
    handle.remove()
    expected = [1 - rank_correlation(one.ravel(), other.ravel()) for one, other in zip(base, changed, strict=True)]
    np.testing.assert_allclose(record.of(block.parts[-1].split.tap, "zero").map, expected, atol=1e-9)
    assert max(expected) > 0
    with pytest.raises(ModelError, match="maps at 'layer1' do not change with layer4"):
        ablate(module, pictures, places=[block], maps="layer1", interventions=["zero"])


def test_channel_groups_of_a_resnet_are_the_control(net, pictures):
    module = net("resnet").double()
    places = blocks(module, groups=4, layers=["layer2"])
    record = ablate(module, pictures, places=places, targets=0, seed=3)
    assert record.interventions == ("zero", "mean", "shuffle")
    with torch.no_grad():
        base = module(pictures)
    means = channel_means(module, [pictures[:2], pictures[2:]], places)
    for effect in record.effects:
        block = next(block for block in places if block.path == effect.split.path)
        part = next(part for part in block.parts if part.split.tap == effect.split.tap)

        def edit(_module, args, part=part, effect=effect, block=block):
            into = args[0].clone()
            if effect.intervention == "zero":
                into[:, part.channels] = 0
            elif effect.intervention == "mean":
                into[:, part.channels] = torch.as_tensor(means[block.path][part.channels])[:, None, None]
            else:
                into[:, part.channels] = into[:, part.channels[order(part.split.tap, part.split.width, 3)]]
            return (into,)

        handle = module.get_submodule(block.conv3).register_forward_pre_hook(edit)
        with torch.no_grad():
            moved = (module(pictures) - base)[:, 0].numpy()
        handle.remove()
        np.testing.assert_allclose(effect.logit, moved, atol=1e-10)
    with pytest.raises(ModelError, match="channel groups have neither cascade nor links"):
        ablate(module, pictures, places=places, interventions=["cut"])


class Stubborn(nn.Module):
    """What torch.fx cannot follow: its way depends on the picture."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x if float(x.sum()) > -1e9 else -x)


def test_a_network_that_cannot_be_followed_is_run_whole(net, pictures):
    module = ours(net)
    expected = ablate(module, pictures, places=blocks(module)[:2], seed=0)
    stubborn = Stubborn(module)
    found = ablate(stubborn, pictures, places=blocks(stubborn)[:2], seed=0, interventions=["zero", "cut"])
    for effect in found.effects:
        same = expected.of(effect.split.tap.removeprefix("inner."), effect.intervention)
        np.testing.assert_allclose(effect.logit, same.logit, atol=1e-10)
    with pytest.raises(ModelError, match=r"torch.fx cannot follow Stubborn"):
        ablate(stubborn, pictures, maps="inner.layer4", interventions=["zero"])


def state(module: nn.Module) -> list[Any]:
    return [
        (
            name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks), "forward" in part.__dict__,
            [(weight.requires_grad, weight.grad) for weight in part.parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    ]  # fmt: skip


def test_the_network_is_left_as_it_was(net, pictures, monkeypatch):
    module = ours(net).train()
    before, weights = state(module), {name: it.clone() for name, it in module.state_dict().items()}
    ablate(module, pictures, maps=True)
    assert state(module) == before
    with pytest.raises(BadTarget, match="class 99 does not exist"):
        ablate(module, pictures, targets=99)
    assert state(module) == before

    def breaks(*_given: Any, **_more: Any) -> None:
        raise MemoryError("full")

    monkeypatch.setattr("r2viz.partition.causal_block.Opened.changed", breaks)
    with pytest.raises(MemoryError, match="full"):
        ablate(module, pictures[:1], interventions=["zero"], places=blocks(module, layers=["layer4"]))
    assert state(module) == before
    for name, it in module.state_dict().items():
        assert torch.equal(it, weights[name])


def test_threads_share_a_network(net, pictures):
    module = ours(net)
    places = blocks(module, layers=["layer4"])
    expected = ablate(module, pictures, places=places, targets=0)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(ablate(module, pictures, places=places, targets=0)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for record in found:
        for one, other in zip(record.effects, expected.effects, strict=True):
            np.testing.assert_allclose(one.logit, other.logit, atol=1e-12)


def test_rows_have_intervals_over_pictures(net):
    module = net("res2net", depths=(1, 1, 1, 3))
    batch = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    places = blocks(module, name="tiny", layers=["layer4"])
    record = ablate(module, batch, places=places, labels=[1] * 12, interventions=["zero", "cut"], maps=True)
    row = next(row for row in record.rows() if (row.tap, row.effect) == ("layer4.1.split1", "logit"))
    values = record.of("layer4.1.split1", "zero").logit
    expected = mean_interval(values, resamples=10_000)
    assert row.interval.mean == pytest.approx(values.mean())
    reach = expected.high - expected.low
    assert (row.interval.low, row.interval.high) == pytest.approx((expected.low, expected.high), abs=0.1 * reach)
    frame = record.frame(["split", "block", "stage"])
    assert tuple(frame.columns) == CAUSAL_COLUMNS
    assert set(frame.effect) == {"logit", "probability", "accuracy", "map"}
    assert (frame.n == 12).all() or set(frame[frame.n != 12].effect) == {"map"}
    stage = frame[frame.block.isna() & (frame.intervention == "zero") & (frame.effect == "logit")]
    assert set(stage.kind) == {"first of stage", "cascade", "passed through"}  # never mixed
    each = [record.of(f"layer4.{block}.split{split}", "zero").logit for block in (1, 2) for split in range(3)]
    assert stage[stage.kind == "cascade"].value.item() == pytest.approx(np.mean(each))
    assert record.as_dict()["pictures"] == 12


def test_bad_input_is_refused_in_one_line(net, pictures):
    module = ours(net)
    with pytest.raises(UnknownName, match="no intervention 'zeros'; did you mean 'zero'"):
        ablate(module, pictures, interventions=["zeros"])
    with pytest.raises(ModelError, match="channel means need the pictures twice, and a generator came"):
        ablate(module, (one[None] for one in pictures), interventions=["mean"])
    with pytest.raises(ModelError, match=r"means of layer1\.0 came as \(2,\); expected \(12,\)"):
        ablate(module, pictures, means={"layer1.0": np.zeros(2)})
    with pytest.raises(BadTarget, match="2 labels came for more pictures"):
        ablate(module, pictures, labels=[1, 2], interventions=["zero"])
    with pytest.raises(BadTarget, match="4 targets came for 3 pictures"):
        ablate(module, pictures, targets=[1, 2, 3, 4], interventions=["zero"])
    with pytest.raises(BadTarget, match="labels are float64"):
        ablate(module, pictures, labels=[1.5, 2, 3], interventions=["zero"])
    with pytest.raises(ModelError, match="no pictures came"):
        ablate(module, [], interventions=["zero"])
    with pytest.raises(ModelError, match=r"have no links between splits"):
        ablate(module, pictures, places=blocks(module)[:1], interventions=["cut"])
    with pytest.raises(ModelError, match="the network's output is not finite"):
        ablate(module, pictures * torch.nan, interventions=["zero"])


def test_a_block_of_another_arithmetic_is_refused(net, pictures):
    module = officials(net)

    def forward(x: Tensor) -> Tensor:
        part: Any = module.layer1[1]
        groups = part.relu(part.bn1(part.conv1(x))).split(part.width, 1)
        outs = [part.bns[i](part.convs[i](groups[i])) for i in range(3)]
        return part.bn3(part.conv3(torch.cat([*outs, groups[3]], 1))) + x

    module.layer1[1].forward = forward
    with pytest.raises(ModelError, match=r"layer1\.1 does not compute"):
        ablate(module, pictures, interventions=["zero"])
