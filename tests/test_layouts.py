"""Foreign names, written here from the code bases' own naming, loop by loop; never by turning our table round."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import perturb

import r2viz
from r2viz.errors import BadWeights
from r2viz.models.dla import dla, res2net_dla
from r2viz.models.layouts import LAYOUTS, OWN, adapt, nearest_layout, remap, renamed
from r2viz.models.weights import fit, read
from r2viz.models.zoo import ZOO

DEPTHS = (2, 3, 1, 2)
NETS = {
    "resnet": ("resnet", {}),
    "resnext": ("resnet", {"groups": 2, "base_width": 32}),
    "se_resnet": ("resnet", {"attention": "se"}),
    "res2net": ("res2net", {}),
    "res2net_8s": ("res2net", {"base_width": 14, "scale": 8}),
    "res2net_v1b": ("res2net", {"stem": "deep", "shortcut": "avgpool"}),
    "res2next": ("res2net", {"groups": 2, "base_width": 16}),
    "se_res2net": ("res2net", {"attention": "se"}),
}


@pytest.fixture
def built(net):
    def build(name):
        kind, options = NETS[name]
        return net(kind, depths=DEPTHS, **options)

    return build


@pytest.fixture(scope="module")
def picture():
    return torch.rand(2, 3, 75, 75, generator=torch.Generator().manual_seed(5))


# --- The foreign names -----------------------------------------------------------------------------------------------


def blocks(state):
    """(stage, block, blocks before it in all stages) of every block, all counted from 0."""
    places = sorted({(int(key[5]) - 1, int(key.split(".")[1])) for key in state if key.startswith("layer")})
    return [(stage, block, number) for number, (stage, block) in enumerate(places)]


def taker(state):
    """`put(theirs, ours)` copies one tensor; `done()` proves that all were taken, counters apart."""
    left = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    taken = {}

    def put(theirs, ours, **options):
        value = left.pop(ours)
        taken[theirs] = value.t().contiguous() if options.get("transposed") else value.clone()

    def done():
        assert not left
        return taken

    return left, put, done


def mmpretrain(state):
    left, put, done = taker(state)
    deep = "conv1.0.weight" in state
    statistics = ("weight", "bias", "running_mean", "running_var")
    if deep:
        for module, (conv, bn) in enumerate((("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))):
            put(f"backbone.stem.{module}.conv.weight", f"{conv}.weight")
            for word in statistics:
                put(f"backbone.stem.{module}.bn.{word}", f"{bn}.{word}")
    for key in list(left):
        if key.startswith("fc"):
            put(f"head.{key}", key)
        elif ".se." in key:
            put(
                "backbone."
                + key.replace(".se.fc1.", ".se_layer.conv1.conv.").replace(".se.fc2.", ".se_layer.conv2.conv."),
                key,
            )
        else:
            put(f"backbone.{key}", key)
    return done()


def mmdetection(state):
    left, put, done = taker(state)
    for key in list(left):
        if key.startswith("conv1."):
            put(key.replace("conv1.", "stem."), key)
        elif key.startswith("bn1."):
            put(key.replace("bn1.", "stem.7."), key)
        else:
            put(key, key)
    return done()


PADDLE = {"weight": "weight", "bias": "bias", "_mean": "running_mean", "_variance": "running_var"}


def conv_bn(put, theirs, conv, bn, names=("_conv", "_batch_norm")):
    put(f"{theirs}.{names[0]}.weight", f"{conv}.weight")
    for word, ours in PADDLE.items():
        put(f"{theirs}.{names[1]}.{word}", f"{bn}.{ours}")


def paddle_res2net(state):
    _, put, done = taker(state)
    vd = "conv1.0.weight" in state
    if vd:
        conv_bn(put, "conv1_1", "conv1.0", "conv1.1")
        conv_bn(put, "conv1_2", "conv1.3", "conv1.4")
        conv_bn(put, "conv1_3", "conv1.6", "bn1")
    else:
        conv_bn(put, "conv1", "conv1", "bn1")
    for stage, block, _ in blocks(state):
        theirs, ours = f"bb_{stage}_{block}", f"layer{stage + 1}.{block}"
        letters = chr(97 + block) if stage != 2 else "a" if block == 0 else f"b{block}"  # as the 101-layer one has it
        conv_bn(put, f"{theirs}.conv0", f"{ours}.conv1", f"{ours}.bn1")
        for branch in range(sum(f"{ours}.convs.{i}.weight" in state for i in range(8))):
            name = f"{theirs}.res{stage + 2}{letters}_branch2b_{branch + 1}"
            conv_bn(put, name, f"{ours}.convs.{branch}", f"{ours}.bns.{branch}")
        conv_bn(put, f"{theirs}.conv2", f"{ours}.conv3", f"{ours}.bn3")
        if block == 0:
            first = 1 if vd else 0
            conv_bn(put, f"{theirs}.short", f"{ours}.downsample.{first}", f"{ours}.downsample.{first + 1}")
    put("out.weight", "fc.weight", transposed=True)
    put("out.bias", "fc.bias")
    return done()


def paddle_resnext(state):
    _, put, done = taker(state)
    conv_bn(put, "conv", "conv1", "bn1")
    for stage, block, _ in blocks(state):
        theirs, ours = f"bb_{stage}_{block}", f"layer{stage + 1}.{block}"
        for index in range(3):
            conv_bn(put, f"{theirs}.conv{index}", f"{ours}.conv{index + 1}", f"{ours}.bn{index + 1}")
        if block == 0:
            conv_bn(put, f"{theirs}.short", f"{ours}.downsample.0", f"{ours}.downsample.1")
    put("out.weight", "fc.weight", transposed=True)
    put("out.bias", "fc.bias")
    return done()


def paddle_resnet(state):
    _, put, done = taker(state)
    names = ("conv", "bn")
    conv_bn(put, "stem.0", "conv1", "bn1", names)
    for stage, block, number in blocks(state):
        ours = f"layer{stage + 1}.{block}"
        for index in range(3):
            conv_bn(put, f"blocks.{number}.conv{index}", f"{ours}.conv{index + 1}", f"{ours}.bn{index + 1}", names)
        if block == 0:
            conv_bn(put, f"blocks.{number}.short", f"{ours}.downsample.0", f"{ours}.downsample.1", names)
    put("fc.weight", "fc.weight", transposed=True)
    put("fc.bias", "fc.bias")
    return done()


def paddle_dla(state):
    left, put, done = taker(state)
    for key in list(left):
        put(key.replace(".running_mean", "._mean").replace(".running_var", "._variance"), key)
    return done()


def official_dla(state):
    left, put, done = taker(state)
    for key in list(left):
        put(key, key)
    theirs = done()
    for tree, inplanes, outplanes in (("level3", 128, 256), ("level4", 256, 512), ("level4.tree1", 256, 512)):
        theirs[f"{tree}.project.0.weight"] = torch.rand(outplanes, inplanes, 1, 1)
        for word in ("weight", "bias", "running_mean", "running_var"):
            theirs[f"{tree}.project.1.{word}"] = torch.rand(outplanes)
    return theirs


FOREIGN = [
    *[(mmpretrain, name, "mmpretrain") for name in NETS],
    (mmdetection, "res2net_v1b", "mmdetection"),
    (paddle_res2net, "res2net", "PaddleClas's Res2Net"),
    (paddle_res2net, "res2net_8s", "PaddleClas's Res2Net"),
    (paddle_res2net, "res2net_v1b", "PaddleClas's Res2Net_vd"),
    (paddle_resnet, "resnet", "PaddleClas's ResNet"),
    (paddle_resnext, "resnext", "PaddleClas's ResNeXt"),
    (paddle_resnext, "resnet", "PaddleClas's ResNeXt"),
]


def as_paddle(state, path, protocol=4):
    """A `.pdparams` as `paddle.save` writes it: NumPy arrays, and a table of names beside them."""
    arrays = {key: value.numpy() for key, value in state.items()}
    with path.open("wb") as file:
        pickle.dump({**arrays, "StructuredToParameterName@@": {key: f"p_{key}" for key in arrays}}, file, protocol)


# --- Renaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rename", "name", "layout"), FOREIGN, ids=lambda value: getattr(value, "__name__", value))
def test_a_renamed_state_dict_gives_the_same_logits(built, picture, rename, name, layout):
    network = built(name)
    theirs = rename(network.state_dict())
    ours, found = remap(theirs, source="x.pth")
    assert found is LAYOUTS[layout]
    again = perturb(built(name), seed=3)
    fit(again, ours, name=name, source="x.pth")
    with torch.no_grad():
        assert torch.equal(again(picture), network(picture))


@pytest.mark.parametrize("name", NETS)
def test_our_own_layout_passes_unchanged(built, name):
    state = built(name).state_dict()
    ours, layout = remap(state, source="x.pth")
    assert ours == state
    assert layout is LAYOUTS[OWN]
    assert renamed(layout, state) == {key: key for key in state}  # so that "nearest layout" counts right


@pytest.mark.parametrize("name", ["densenet121", "inception_v3", "resnet18"])
def test_another_network_passes_unchanged(name):
    import torchvision

    with torch.device("meta"):
        options = {"init_weights": False} if name == "inception_v3" else {}
        state = torchvision.models.get_model(name, **options).state_dict()
    ours, layout = remap(state, source="x.pth")
    assert ours is not state
    assert list(ours) == list(state)
    assert not layout.note


def test_tensors_are_not_copied(built):
    theirs = mmpretrain(built("res2net").state_dict())
    ours, _ = remap(theirs, source="x.pth")
    assert {tensor.data_ptr() for tensor in ours.values()} == {tensor.data_ptr() for tensor in theirs.values()}


@pytest.mark.parametrize("row", [name for name, row in ZOO.items() if row.hub])
def test_public_weights_need_no_renaming(row):
    with torch.device("meta"):
        state = ZOO[row].build().state_dict()
    ours, layout = remap(state, source="x.pth")
    assert list(ours) == list(state)
    assert not layout.note


@pytest.mark.parametrize("name", ["dla60_res2net", "dla60_res2next", "dla60", "dla60x"])
def test_official_dla_files_hold_297472_parameters_more_than_timms(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert remap(state, source="x.pth")[1] is LAYOUTS[OWN]
    ours, layout = remap(official_dla(state), source="x.pth")
    assert layout.note == "297,472 parameters dropped that nothing uses (project)"
    assert set(ours) == {key for key in state if not key.endswith("num_batches_tracked")}
    ours, layout = remap(paddle_dla(state), source="x.pth")
    assert not layout.note
    assert set(ours) == {key for key in state if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("rename", [official_dla, paddle_dla])
@pytest.mark.parametrize("factory", [dla, res2net_dla])
def test_a_renamed_dla_gives_the_same_logits(picture, factory, rename):
    def build(seed):
        torch.manual_seed(seed)
        return perturb(factory(widths=(8, 8, 16, 16, 32, 32), num_classes=5, base_width=64), seed).eval()

    network, again = build(0), build(1)
    ours, _ = remap(rename(network.state_dict()), source="x.pth")
    fit(again, ours, name="dla", source="x.pth")
    with torch.no_grad():
        assert torch.equal(again(picture), network(picture))


# --- Networks that compute otherwise ---------------------------------------------------------------------------------


def paddle_logits(state, x, scale, vd):
    """PaddleClas's Res2Net, step by step, from a state dict in its own names."""

    def conv_bn(name, x, stride=1):
        weight = state[f"{name}._conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)
        statistics = [state[f"{name}._batch_norm.{word}"] for word in ("_mean", "_variance", "weight", "bias")]
        return F.batch_norm(x, *statistics)

    def pool(x, stride):  # exclusive: what is padded counts neither above nor below
        return F.avg_pool2d(x, 3, stride, 1) / F.avg_pool2d(torch.ones_like(x), 3, stride, 1)

    def halves(x):  # 2x2 at stride 2 with a cut window at an odd border
        height, width = x.shape[-2:]
        x = F.pad(x, (0, width % 2, 0, height % 2))
        seen = F.pad(torch.ones(1, 1, height, width), (0, width % 2, 0, height % 2))
        return F.avg_pool2d(x, 2) / F.avg_pool2d(seen, 2)

    stem = [("conv1_1", 2), ("conv1_2", 1), ("conv1_3", 1)] if vd else [("conv1", 2)]
    for name, stride in stem:
        x = conv_bn(name, x, stride).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(4):
        for block in range(DEPTHS[stage]):
            stride = 2 if block == 0 and stage != 0 else 1
            name = f"bb_{stage}_{block}"
            splits = conv_bn(f"{name}.conv0", x).relu().chunk(scale, dim=1)
            branches = sorted({key.split(".")[1] for key in state if key.startswith(f"{name}.res")})
            outputs = []
            for index, branch in enumerate(branches):
                given = splits[index] if index == 0 or stride == 2 else splits[index] + outputs[-1]
                outputs.append(conv_bn(f"{name}.{branch}", given, stride).relu())
            outputs.append(splits[-1] if stride == 1 else pool(splits[-1], stride))
            y = conv_bn(f"{name}.conv2", torch.cat(outputs, 1))
            if block == 0:
                pooled = vd and stage > 0
                x = conv_bn(f"{name}.short", halves(x) if pooled else x, 1 if pooled else stride)
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["out.weight"] + state["out.bias"]


@pytest.mark.parametrize(("name", "scale"), [("res2net", 4), ("res2net_8s", 8), ("res2net_v1b", 4)])
def test_paddles_res2net_is_computed_as_paddle_computes_it(built, picture, name, scale):
    network = built(name)
    theirs = paddle_res2net(network.state_dict())
    ours, layout = remap(theirs, source="x.pdparams")
    fit(network, ours, name=name, source="x.pdparams")
    expected = paddle_logits(theirs, picture, scale, vd="v1b" in name)
    with torch.no_grad():
        plain = network(picture)
        adapt(network, layout)
        logits = network(picture)
    size = expected.abs().max()
    assert (logits - expected).abs().max() < 1e-5 * size
    assert (plain - expected).abs().max() > 1e-3 * size  # which is why the network has to be adapted
    assert "computed as PaddleClas does" in layout.note
    assert set(network.state_dict()) == set(built(name).state_dict())


def test_only_paddles_res2net_changes_the_network(built, picture):
    network = built("res2net")
    with torch.no_grad():
        before = network(picture)
        for layout in LAYOUTS.values():
            if layout.network == "official":
                adapt(network, layout)
                assert torch.equal(network(picture), before)
    assert [name for name, layout in LAYOUTS.items() if layout.network == "paddle"] == [
        "PaddleClas's Res2Net_vd",
        "PaddleClas's Res2Net",
    ]


# --- Refusals --------------------------------------------------------------------------------------------------------


def refused(state):
    with pytest.raises(BadWeights) as caught:
        remap(state, source="x.pth")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_detector_is_refused(built):
    state = {f"backbone.{key}": value for key, value in mmdetection(built("res2net_v1b").state_dict()).items()}
    state = {key: value for key, value in state.items() if ".fc." not in key} | {"neck.fpn.weight": torch.ones(1)}
    assert refused(state) == (
        "x.pth is not loaded: it is in the layout of a detector or segmenter of OpenMMLab, and it has no classifier, "
        "and its network is another one (mmdetection's layer1.0 does not pool); use the classification checkpoint that "
        "it was trained from"
    )


def test_a_backbone_without_classifier_is_refused(built):
    network = built("res2net_v1b")
    state = {key: value for key, value in mmdetection(network.state_dict()).items() if not key.startswith("fc.")}
    ours, _ = remap(state, source="x.pth")
    with pytest.raises(BadWeights, match=r"keys 2 missing \(fc.weight; fc.bias\); the file has no classifier: use the"):
        fit(network, ours, name="res2net_v1b", source="x.pth")


def test_cadenes_senet_is_refused():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("legacy_seresnet50").state_dict()
    assert "is not loaded: it is in the layout of Cadene's SENet" in refused(state)


def test_keys_that_do_not_fit_their_layout_are_named(built):
    state = paddle_res2net(built("res2net").state_dict())
    state |= {f"bb_0_0.attention.{name}.weight": torch.ones(1) for name in "abcd"}
    assert refused(state) == (
        f"x.pth is in the layout of PaddleClas's Res2Net, but 4 of its {len(state)} keys do not fit it "
        "(bb_0_0.attention.a.weight; bb_0_0.attention.b.weight; bb_0_0.attention.c.weight, …); "
        "expected names as in github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/res2net.py"
    )


def test_two_keys_for_one_weight_are_refused(built):
    state = paddle_res2net(built("res2net").state_dict())
    state["bb_0_0.res2z_branch2b_1._conv.weight"] = state["bb_0_0.res2a_branch2b_1._conv.weight"]
    assert "several of its keys mean the same weights (layer1.0.convs.0.weight); the file is damaged" in refused(state)


def test_blocks_before_the_first_stage_do_not_fit(built):
    state = paddle_resnet(built("resnet").state_dict())
    state = {key: value for key, value in state.items() if not key.startswith("blocks.0.short")}
    assert "do not fit it (blocks.0.conv0.conv.weight; blocks.0.conv0.bn.weight" in refused(state)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("layer1.0.conv2.conv_offset.weight", "1 unexpected (layer1.0.conv2.conv_offset.weight)"),
        ("bb_0_0.conv0._conv.weight", "1 unexpected (bb_0_0.conv0._conv.weight)"),
    ],
)
def test_an_own_layout_with_a_stranger_in_it_is_refused_by_fit(built, key, text):
    network = built("resnet")
    ours, _ = remap(network.state_dict() | {key: torch.ones(1)}, source="x.pth")
    with pytest.raises(BadWeights) as caught:
        fit(network, ours, name="resnet", source="x.pth")
    assert text in str(caught.value)


def test_the_nearest_layout_is_named(built):
    state = paddle_res2net(built("res2net").state_dict())
    halves = {key: value for key, value in state.items() if "_branch2b_1." not in key}  # not told any more
    ours, _ = remap(halves, source="x.pth")
    with pytest.raises(BadWeights) as caught:
        fit(built("res2net"), ours, name="res2net", source="x.pth")
    count = len(halves)
    assert str(caught.value).endswith(f"the nearest layout is PaddleClas's Res2Net ({count} of {count} keys fit it)")
    assert nearest_layout(["encoder.0", "decoder.1"]) == "no key fits any layout that is read (encoder.0; decoder.1)"
    assert nearest_layout(["bb_0_0.conv2._conv.weight", "x"]).endswith(" (1 of 2 keys fit it, not x)")


@pytest.mark.parametrize(
    "key", ["bb_0_0.res2a_branch2b_" + "9" * 5000, "blocks." + "1" * 5000 + ".conv0.conv.weight", "{0}{word}.weight"]
)
def test_hostile_keys_are_only_names(built, key):
    state = built("resnet").state_dict() | {key: torch.ones(1)}
    remap(state, source="x.pth")
    assert "\n" not in nearest_layout(state)
    theirs = paddle_resnet(built("resnet").state_dict()) | {key: torch.ones(1)}
    assert len(refused(theirs)) < 500


# --- From files ------------------------------------------------------------------------------------------------------


def test_a_paddle_file_is_read(built, tmp_path):
    state = paddle_res2net(built("res2net").state_dict())
    for protocol in (2, 4):
        as_paddle(state, tmp_path / "x.pdparams", protocol)
        loaded = read(tmp_path / "x.pdparams")
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    loaded["out.bias"].add_(1)  # the memory is the tensor's own


LOADED = [
    ("resnet50", mmpretrain),
    ("res2net50_26w_4s", mmpretrain),
    ("res2next50", mmpretrain),
    ("res2net50_v1b_26w_4s", mmpretrain),
    ("res2net50_v1b_26w_4s", mmdetection),
    ("resnet50", paddle_resnet),
    ("resnext50_32x4d", paddle_resnext),
]


@pytest.fixture(scope="module")
def large():
    """Networks of the table, one at a time: a hundred megabytes each."""
    kept = {}

    def build(name):
        if name not in kept:
            kept.clear()
            kept[name] = perturb(r2viz.load(name, weights="random").module)
        return kept[name]

    return build


@pytest.mark.parametrize(("name", "rename"), sorted(LOADED, key=lambda case: case[0]))
def test_load_takes_foreign_files(large, tmp_path, name, rename):
    network = large(name)
    theirs = rename(network.state_dict())
    path = tmp_path / f"x.{'pdparams' if 'paddle' in rename.__name__ else 'pth'}"
    if "paddle" in rename.__name__:
        as_paddle(theirs, path)
    else:
        torch.save({"state_dict": theirs, "meta": {"epoch": 100}}, path)
    model = r2viz.load(name, weights=path)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.module(picture), network(picture))
    assert model.weights.source == path.name
    assert model.weights.note == {
        "mmdetection": "names of mmdetection, computed as the official network, which pools in layer1.0"
    }.get(rename.__name__, "")


def test_load_takes_paddles_res2net_and_says_what_it_computes(large, tmp_path):
    network = large("res2net50_26w_4s")
    as_paddle(paddle_res2net(network.state_dict()), tmp_path / "x.pdparams")
    model = r2viz.load("res2net50_26w_4s", weights=tmp_path / "x.pdparams")
    assert model.weights.note.startswith("computed as PaddleClas does: layer1.0 joins its splits")
    assert not model.module.layer1[0].first
    assert not model.module.layer2[0].pool.count_include_pad
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not torch.allclose(model.module(picture), network(picture), rtol=1e-3)
        adapt(network, LAYOUTS["PaddleClas's Res2Net"])
        assert torch.equal(model.module(picture), network(picture))


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.factory.startswith("r2viz.models.dla:")])
def test_load_takes_official_dla_files_and_says_what_it_dropped(large, tmp_path, name):
    network = large(name)
    torch.save(official_dla(network.state_dict()), tmp_path / "x.pth")
    model = r2viz.load(name, weights=tmp_path / "x.pth")
    assert model.weights.note == "297,472 parameters dropped that nothing uses (project)"
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.module(picture), network(picture))
