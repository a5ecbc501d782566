"""`r2viz.erf` beside what it is made of, its record there and back, and everything that it refuses in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import network, pair, photo

import r2viz
from r2viz import store
from r2viz.erf_records import ErfRecord, ErfView
from r2viz.errors import BadImage, BadRecord, ModelError, R2VizError, TapError, UnknownName
from r2viz.receptive.measured import measure, noise
from r2viz.receptive.stream import Pictures, listed


@pytest.fixture(scope="module")
def record() -> ErfRecord:
    """Two tiny networks, pictures and noise, two layers and two units."""
    return r2viz.erf(
        [photo(seed=seed) for seed in range(4)], model=pair(), layers=["layer2", "layer3"], units=["centre", (1, 2)],
        source="both", samples=4, size=64,
    )  # fmt: skip


def files(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(photo(seed=index)).save(path)
    return paths


# --- What it is made of ----------------------------------------------------------------------------------------------


def test_it_is_measure_of_preprocessed_pictures_for_each_network(record: ErfRecord) -> None:
    for view, model in zip(record.views, pair(), strict=True):
        inputs = torch.cat([model.preprocess(photo(seed=seed))[0] for seed in range(4)])
        expected = measure(model.module, inputs, layers=["layer2", "layer3"], units=["centre", (1, 2)])
        for mine, theirs in zip(view.erfs[:4], expected, strict=True):
            np.testing.assert_allclose(mine.raw, theirs.raw, rtol=1e-4, atol=1e-6 * theirs.raw.max())
            assert (mine.layer, mine.unit, mine.inputs, mine.source) == (theirs.layer, theirs.unit, 4, "pictures")
        expected = measure(model.module, noise((64, 64), 4), layers=["layer2", "layer3"], source="noise")
        np.testing.assert_allclose(view.at("layer3", source="noise").sizes.sigma, expected[1].sizes.sigma, rtol=1e-4)
        assert view.preprocess == model.preprocess.as_dict()


def test_order_is_sources_then_layers_then_units(record: ErfRecord) -> None:
    order = [(erf.source, erf.layer, erf.unit == (1, 2)) for erf in record.views[1].erfs]
    assert order == [
        (source, layer, second)
        for source in ("pictures", "noise")
        for layer in ("layer2", "layer3")
        for second in (False, True)
    ]
    assert record.layers == ("layer2", "layer3")
    assert record.view("res2net_tiny") is record.views[1]
    assert record.view("res2net_tiny").at("layer3", unit=(1, 2), source="noise") is record.views[1].erfs[-1]
    assert (record.inputs.noise, record.inputs.seed, len(record.inputs.pictures)) == (4, 0, 4)
    with pytest.raises(UnknownName, match="no network 'resnet_tin'; did you mean 'resnet_tiny'"):
        record.view("resnet_tin")
    with pytest.raises(UnknownName, match="no layer 'layer1'; did you mean 'layer"):
        record.views[0].at("layer1")
    with pytest.raises(UnknownName, match=r"no field of \(9, 9\) at 'layer2'; it has"):
        record.views[0].at("layer2", unit=(9, 9))


def test_ratios_are_geometric_means_over_the_same_inputs(record: ErfRecord) -> None:
    first, second = (view.erfs[0].each["sigma"] for view in record.views)
    found = record.ratios("sigma")[0]
    assert found is not None
    assert found.mean == pytest.approx(float(np.prod(second / first)) ** (1 / 4))
    assert found.low <= found.mean <= found.high
    assert found.n == 4
    alone = dataclasses.replace(record, views=record.views[:1])
    assert set(alone.ratios("sigma")) == {None}
    gone = dataclasses.replace(record.views[0].erfs[0], skipped=1)
    view = dataclasses.replace(record.views[0], erfs=(gone, *record.views[0].erfs[1:]))
    assert dataclasses.replace(record, views=(view, record.views[1])).ratios("sigma")[0] is None


def test_equal_questions_have_equal_digests_and_others_have_not(record: ErfRecord) -> None:
    def of(**more: Any) -> str:
        return r2viz.erf(model=network(), **{"layers": "layer2", "size": 32, "samples": 1, **more}).digest

    assert of() == of()
    assert len({of(), of(seed=1), of(size=64), of(units=(0, 0)), of(protocol="replknet"), of(samples=2)}) == 6


# --- Inputs ----------------------------------------------------------------------------------------------------------


def test_pictures_are_read_one_at_a_time_and_bad_ones_left_out_by_name(tmp_path: Path) -> None:
    paths = files(tmp_path)
    paths.insert(1, tmp_path / "gone.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    paths.append(tmp_path / "bad.jpg")
    first, second = (model.preprocess for model in pair())
    pictures = Pictures(paths, [first, second], limit=None, seed=0)
    stream = pictures.inputs(0)
    next(stream)
    assert [name for name, _ in pictures.seen] == ["0.png"]  # nothing has been read ahead
    assert pictures.left_out == []
    next(stream)
    assert [name for name, _ in pictures.left_out] == ["gone.png"]
    result = r2viz.erf(paths, model=pair(), layers="layer1")
    assert [name for name, _ in result.inputs.pictures] == ["0.png", "1.png", "2.png"]
    assert [name for name, _ in result.inputs.left_out] == ["gone.png", "bad.jpg"]
    assert "no such file" in result.inputs.left_out[0][1]
    assert str(tmp_path) not in json.dumps(store.as_dict(result))
    assert [view.erfs[0].inputs for view in result.views] == [3, 3]
    assert r2viz.erf([paths[0], *paths[2:4]], model=pair(), layers="layer1").views[1].erfs[0].each[
        "sigma"
    ].tolist() == (result.views[1].erfs[0].each["sigma"].tolist())


def test_none_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"none of 2 pictures can be used: a\.png: no such file.*; b\.png: "):
        r2viz.erf([tmp_path / "a.png", tmp_path / "b.png"], model=network())


def test_a_picture_that_changes_between_the_networks_is_noticed(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    pictures = Pictures(path, [network().preprocess] * 2, limit=None, seed=0)
    assert len(list(pictures.inputs(0))) == 1
    Image.fromarray(photo(seed=9)).save(path)
    with pytest.raises(BadImage, match=r"0\.png: changed between one network and the other; measure again"):
        list(pictures.inputs(1))


def test_more_pictures_than_samples_are_drawn_with_the_seed(tmp_path: Path) -> None:
    paths = files(tmp_path, 6)
    found = [
        [name for name, _ in r2viz.erf(paths, model=network(), layers="layer1", samples=3, seed=seed).inputs.pictures]
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 3
    assert found[0] != ["0.png", "1.png", "2.png"]
    result = r2viz.erf(paths, model=network(), layers="layer1", samples=3)
    assert "3 pictures drawn from more, with seed 0" in result.notes


def test_folders_bytes_and_open_files_are_pictures(tmp_path: Path) -> None:
    paths = files(tmp_path)
    assert listed(tmp_path) == paths
    assert listed(str(paths[0])) == [str(paths[0])]
    with paths[0].open("rb") as file:
        assert listed([file]) == [paths[0].read_bytes()]
    assert len(listed([photo(), photo()])) == 2
    assert len(listed(photo())) == 1


def test_one_picture_is_kept_to_draw_upon() -> None:
    result = r2viz.erf(photo(), model=pair(), layers="layer1")
    assert result.picture is not None
    np.testing.assert_array_equal(result.picture.rgb, photo())
    _, geometry = network().preprocess(photo())
    assert [view.geometry for view in result.views] == [geometry, geometry]


def test_tensors_are_taken_as_they_are() -> None:
    model = network()
    inputs = torch.cat(list(noise((48, 80), 2, seed=3)))
    result = r2viz.erf(inputs, model=model.module, layers="layer2", units=(2, 3))
    (expected,) = measure(model.module, inputs, layers="layer2", units=(2, 3))
    np.testing.assert_array_equal(result.views[0].erfs[0].raw, expected.raw)
    assert result.input_size == (48, 80)
    assert (result.views[0].preprocess, result.views[0].title) == ({}, "ResNet")
    assert [name for name, _ in result.inputs.pictures] == ["<tensor>"] * 2
    assert len({sha256 for _, sha256 in result.inputs.pictures}) == 2


def test_size_grows_resize_and_crop_together_and_defaults_to_what_the_field_needs() -> None:
    result = r2viz.erf(photo(), model=network(), layers="layer1", size=96)
    assert result.input_size == (96, 96)
    assert (result.views[0].preprocess["resize"], result.views[0].preprocess["crop"]) == (96, [96, 96])
    models = pair()
    reach = max(r2viz.theoretical_rf(model, ["layer4"])["layer4"].max for model in models)
    assert 64 < reach < 512
    assert r2viz.erf(model=models, samples=1).input_size[0] == 64 * math.ceil(reach / 64)
    assert r2viz.erf(model=models, samples=1, layers="layer1").input_size[0] == 64


def test_other_protocols_have_their_own_size_and_way() -> None:
    result = r2viz.erf(photo(), model=network(), layers="layer1", protocol="replknet", size=128)
    assert result.views[0].preprocess | {"mode": "squash", "interpolation": "bicubic", "crop": [128, 128]} == (
        result.views[0].preprocess
    )
    assert (result.protocol, result.protocol_title) == ("replknet", "RepLKNet")
    assert r2viz.erf(photo(), model=network(), protocol="openerf", layers="layer1").input_size == (64, 64)


# --- Networks --------------------------------------------------------------------------------------------------------


def test_random_weights_are_calibrated_and_count_zero_normalisations_as_one() -> None:
    model = network(kind="random")
    for name, part in model.module.named_modules():
        if name.endswith("bn3"):
            torch.nn.init.zeros_(part.weight)
    before = copy.deepcopy(model.module.state_dict())
    asked: dict[str, Any] = {"layers": "layer3", "size": 64, "samples": 2}
    found = r2viz.erf(model=model, **asked)
    assert found.views[0].erfs[0].calibrated == 2
    assert found.notes == ("resnet_tiny: 4 normalisations that start at zero (zero_init) count as one",)
    as_they_are = r2viz.erf(model=dataclasses.replace(model, weights=network().weights), **asked)
    assert as_they_are.views[0].erfs[0].calibrated == 0
    assert found.views[0].erfs[0].sizes.sigma > 1.2 * as_they_are.views[0].erfs[0].sizes.sigma
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.module.state_dict().items())
    assert r2viz.erf(model=model, calibrate=False, **asked).views[0].erfs[0].calibrated == 0


def test_splits_are_those_of_the_last_block() -> None:
    res2net = network("res2net_tiny")
    result = r2viz.erf(model=res2net, layers=["layer2"], splits=True, samples=1, size=64)
    assert result.layers == tuple(f"layer2.0.split{index}" for index in range(4))
    with pytest.raises(UnknownName, match="resnet_tiny has no splits at 'layer2'; name a stage or block of a Res2Net"):
        r2viz.erf(model=pair(), layers=["layer2"], splits=True, size=64)


def test_one_network_trained_and_untrained() -> None:
    both = [network(), network(seed=1, kind="random")]
    result = r2viz.erf(model=both, layers="layer1", size=32, samples=2)
    assert result.keys == ("resnet_tiny#1", "resnet_tiny#2")
    assert result.random
    assert [view.random for view in result.views] == [False, True]
    assert result.view("resnet_tiny#2") is result.views[1]


def test_mini_pair_by_name() -> None:
    told: list[tuple[int, int]] = []
    result = r2viz.erf(pair="mini", size=64, samples=2, layers="layer1", progress=lambda *done: told.append(done))
    assert [view.model for view in result.views] == ["resnet26_mini", "res2net26_mini"]
    assert result.views[0].weights["kind"] == "embedded"
    assert told[-1] == (4, 4)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"protocol": "lou"}, UnknownName, "no protocol 'lou'; did you mean 'luo'"),
        ({"source": "nois"}, UnknownName, "no source 'nois'; did you mean 'noise'"),
        ({"source": "both"}, ModelError, "source 'both' came without pictures; give pictures with"),
        ({"images": photo(), "source": "noise"}, ModelError, "pictures came with source 'noise'"),
        ({"size": 0}, ModelError, "inputs of 0 pixels were asked for; give a size from 1 to 4096"),
        ({"size": 5000}, ModelError, "inputs of 5000 pixels"),
        ({"samples": 0}, ModelError, "0 samples came; give at least 1"),
        ({"images": torch.zeros(1, 3, 32, 32), "size": 64}, ModelError, "size 64 was given with a tensor"),
        ({"images": torch.zeros(1, 3, 32, 32), "samples": 1}, ModelError, "1 samples were given with a tensor"),
        ({"images": torch.zeros(3, 32, 32)}, ModelError, r"torch.float32 \(3, 32, 32\); expected preprocessed"),
        ({"layers": "layer9"}, UnknownName, "no layer 'layer9' in resnet_tiny"),
        ({"units": (99, 0), "size": 64}, TapError, r"unit \(99, 0\) is outside 'layer4'"),
        ({"model": []}, ModelError, "0 networks came; expected one, or two"),
        ({"model": None, "pair": "minni"}, UnknownName, "no pair 'minni'; did you mean 'mini'"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], kind: type[R2VizError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        r2viz.erf(**{"model": network(), **options})
    assert "\n" not in str(caught.value)


# --- On disk ---------------------------------------------------------------------------------------------------------


def test_there_and_back(tmp_path: Path, record: ErfRecord) -> None:
    path = store.save(record, tmp_path / "x.erf.json")
    opened = store.open_record(path)
    assert isinstance(opened, ErfRecord)
    assert opened.digest == record.digest
    assert store.as_dict(opened) == store.as_dict(record)
    assert store.npz(opened) == store.npz(record)
    for mine, theirs in zip(_erfs(opened), _erfs(record), strict=True):
        np.testing.assert_array_equal(mine.map, theirs.map)
        assert (mine.sizes, mine.theory, mine.corner, mine.computed_on) == (
            theirs.sizes, theirs.theory, theirs.corner, theirs.computed_on,
        )  # fmt: skip
        for name in theirs.each:
            np.testing.assert_array_equal(mine.each[name], theirs.each[name])
    assert opened.ratios("side95") == record.ratios("side95")
    assert isinstance(opened.views[0], ErfView)


def _erfs(record: ErfRecord) -> list[Any]:
    return [erf for view in record.views for erf in view.erfs]


@pytest.mark.parametrize("each", [{"luo": np.array([np.nan])}, {}])
def test_with_its_picture_and_with_a_map_that_has_no_mass(tmp_path: Path, each: dict[str, np.ndarray]) -> None:
    result = r2viz.erf(photo(), model=network(), layers="layer1", size=64)
    erf = result.views[0].erfs[0]
    empty = dataclasses.replace(erf, raw=np.zeros_like(erf.raw), sizes=None, each=each)
    result = dataclasses.replace(result, views=(dataclasses.replace(result.views[0], erfs=(empty,)),))
    opened = store.open_any(store.save(result, tmp_path / "x.json"))
    assert isinstance(opened, ErfRecord)
    assert opened.picture is not None
    np.testing.assert_array_equal(opened.picture.rgb, photo())
    assert opened.views[0].geometry == result.views[0].geometry
    assert opened.views[0].erfs[0].sizes is None
    assert store.as_dict(opened) == store.as_dict(result)


def test_json_says_what_was_done(record: ErfRecord) -> None:
    document = json.loads(store.dumps(record), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["schema"], document["kind"], document["source"]) == (1, "erf", "both")
    first = document["views"][0]["erfs"][0]
    assert {"layer", "unit", "centre", "theory", "sizes", "pixels", "to_theory", "to_picture", "each"} <= set(first)
    assert first["array"] == "resnet_tiny/layer2/4,4/pictures/raw"
    assert set(document["versions"]) >= {"r2viz", "torch", "numpy"}


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("views"),
        lambda document: document.update(views=[]),
        lambda document: document["views"][0]["erfs"][0].update(corner=[-1, 0]),
        lambda document: document["views"][0]["erfs"][0].update(array="picture"),
        lambda document: document["views"][0]["erfs"][0].update(theory=[1]),
        lambda document: document.update(input_size=[1, 1]),
        lambda document: document["inputs"].update(pictures=[3]),
    ],
)
def test_damaged_records_are_refused_in_one_line(tmp_path: Path, record: ErfRecord, change: Any) -> None:
    path = store.save(record, tmp_path / "x.erf.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BadRecord, match="damaged") as caught:
        store.open_any(path)
    assert "\n" not in str(caught.value)
