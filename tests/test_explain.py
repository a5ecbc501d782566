"""The pipeline: pictures and networks in, records out, each map at the place that it speaks of."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import LABELS, network, one_thread, pair, photo
from torch import Tensor, nn

import r2viz
from r2viz.coverage import Region, box_region
from r2viz.errors import BadImage, BadRegion, BadTarget, ModelError, R2VizError, TapError, UnknownName
from r2viz.explain import batch as batch_room
from r2viz.explain import explain, explain_batch, explain_many
from r2viz.explain.trust import check
from r2viz.figures import figure
from r2viz.geometry import Preprocess
from r2viz.image import Picture, decode
from r2viz.models.cifar import resnext
from r2viz.models.dla import dla as trees
from r2viz.models.model import Model, fitted
from r2viz.models.weights import Weights
from r2viz.records import CamRecord
from r2viz.summary import lines


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return pair()


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [decode(photo(70 + 5 * seed, 90, seed), name=f"photo{seed}") for seed in range(5)]


def raw(record: CamRecord, number: int = 0, layer: str = "layer4") -> np.ndarray:
    return record.views[number].map(layer).raw


def same(one: CamRecord, other: CamRecord, *, tolerance: float = 0.0) -> None:
    """Equal targets and maps."""
    for mine, theirs in zip(one.views, other.views, strict=True):
        assert mine.target.index == theirs.target.index
        for a, b in zip(mine.maps, theirs.maps, strict=True):
            assert a.layer == b.layer
            np.testing.assert_allclose(a.raw, b.raw, rtol=0, atol=tolerance * max(1e-30, np.abs(b.raw).max()))


# --- one picture -----------------------------------------------------------------------------------------------------


def test_record_of_a_pair(models: list[Model], pictures: list[Picture]) -> None:
    record = explain(pictures[0], models, layers=("layer3", "layer4", "layer3"))
    assert [view.model for view in record.views] == ["resnet_tiny", "res2net_tiny"]
    assert record.layers == ("layer3", "layer4")  # asked for twice, there once
    assert raw(record, 0, "layer4").shape == (2, 2)
    assert raw(record, 1, "layer3").shape == (4, 4)
    assert raw(record).dtype == np.float32
    assert record.views[0].map("layer4").jump == (32, 32)
    assert record.views[0].map("layer4").start == (0, 0)
    assert record.picture is pictures[0]
    assert record.notes == ()
    assert record.device == "cpu"
    assert record.dtype == "float32"
    assert set(record.versions) == {"r2viz", "python", "torch", "torchvision", "numpy", "pillow"}
    for view in record.views:
        probabilities = [score.probability for score in view.top]
        assert len(view.top) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert view.target.label == LABELS[view.target.index]


def test_probabilities_and_map_equal_a_slow_reference(pictures: list[Picture]) -> None:
    """Grad-CAM written out with .backward() on a copy: channel sum weighted by each channel's mean gradient."""
    model = network("res2net_tiny")
    record = explain(pictures[1], [model], target=3)
    reference = network("res2net_tiny").module
    kept: list[Tensor] = []
    reference.layer4.register_forward_hook(lambda _m, _a, out: (out.retain_grad(), kept.append(out))[0])
    logits = reference(model.preprocess(pictures[1].rgb)[0])
    logits[0, 3].backward()
    activations, gradients = kept[0], kept[0].grad
    assert gradients is not None
    expected = sum(gradients[0, c].mean() * activations[0, c] for c in range(activations.shape[1]))
    np.testing.assert_allclose(raw(record), expected.detach().numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(record.views[0].target.probability, logits.softmax(1)[0, 3].item(), rtol=1e-5)
    np.testing.assert_allclose(record.views[0].target.logit, logits[0, 3].item(), rtol=1e-5)


def test_one_string_names_one_layer(models: list[Model], pictures: list[Picture]) -> None:
    assert explain(pictures[0], models, layers="layer3").layers == ("layer3",)  # type: ignore[arg-type]


def test_doors_take_path_bytes_array_and_pillow(tmp_path: Path, models: list[Model]) -> None:
    file = tmp_path / "photo.png"
    Image.fromarray(photo()).save(file)
    sources: list[Any] = [
        file,
        str(file),
        file.read_bytes(),
        photo(),
        Image.fromarray(photo()),
        io.BytesIO(file.read_bytes()),
    ]
    records = [r2viz.compare(source, models) for source in sources]
    for record in records[1:]:
        same(record, records[0])
    assert records[0].picture.name == "photo.png"
    single = r2viz.cam(file, models[1], target="dog")
    assert len(single.views) == 1
    assert not single.shared
    assert single.difference("layer4") is None
    np.testing.assert_array_equal(raw(single), raw(r2viz.compare(file, models, target="dog"), 1))


def test_a_network_in_training_mode_is_explained_in_evaluation_mode_and_left_as_it_was(pictures: list[Picture]) -> None:
    model, expected = network(), explain(pictures[0], [network()])
    model.module.train()
    model.module.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    modes = [part.training for part in model.module.modules()]
    same(explain(pictures[0], [model]), expected)
    assert [part.training for part in model.module.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_inside_inference_mode_and_no_grad(models: list[Model], pictures: list[Picture]) -> None:
    expected = explain(pictures[0], models)
    with torch.inference_mode():
        same(explain(pictures[0], models), expected)
    with torch.no_grad():
        same(explain(pictures[0], models), expected)


def test_the_layer_is_each_networks_last_stage_unless_one_is_named(pictures: list[Picture]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cifar = _small("resnext", resnext(cardinality=2, width=8, depth=11, num_classes=len(LABELS)))
        dla = _small("dla", trees(widths=(4, 8, 16, 32, 48, 64), num_classes=len(LABELS)))
    single = explain(pictures[0], [cifar])
    assert single.layers == ("layer3",)
    # Untrained, they have classes that nothing in the picture speaks for: constant maps, and no difference.
    targets = range(len(LABELS))
    number, record = next(
        (target, found)
        for target in targets
        if (found := explain(pictures[0], [cifar, dla], target=target)).difference("layer3 / level5") is not None
    )
    assert [view.maps[0].layer for view in record.views] == ["layer3", "level5"]
    assert record.layers == ("layer3 / level5",)
    assert record.views[1].map("layer3 / level5") is record.views[1].map("level5")
    np.testing.assert_array_equal(
        raw(record, 0, "layer3"), raw(explain(pictures[0], [cifar], target=number), 0, "layer3")
    )
    difference = record.difference(record.layers[0])
    assert difference is not None
    assert difference.shape == pictures[0].rgb.shape[:2]
    assert "at layer3 / level5." in " ".join(text.get_text() for text in figure(record).texts).replace("\n", " ")
    assert any(line.strip().startswith("level5: raw maximum") for line in lines(record))
    assert len(check(record, [cifar, dla], forget=False)) == 2


def _small(name: str, module: nn.Module) -> Model:
    return Model(name, name, module.eval(), Preprocess(resize=64, crop=(64, 64)), LABELS, Weights("file", "-", name))


def test_guided_gradcam_keeps_its_layers(models: list[Model], pictures: list[Picture]) -> None:
    record = explain(pictures[0], models[:1], layers=("layer3", "layer4"), method="guidedgradcam")
    assert record.layers == ("input@layer3", "input@layer4")
    for layer in ("layer3", "layer4"):
        alone = explain(pictures[0], models[:1], layers=(layer,), method="guidedgradcam")
        assert alone.layers == (f"input@{layer}",)
        np.testing.assert_array_equal(raw(alone, 0, f"input@{layer}"), raw(record, 0, f"input@{layer}"))
        assert alone.views[0].maps[0].jump == (1, 1)
    assert not np.allclose(raw(record, 0, "input@layer3"), raw(record, 0, "input@layer4"))
    assert explain(pictures[0], models[:1], layers=("layer3",), method="saliency").layers == ("input",)
    (verdict,) = check(alone, models[:1])  # asks for the same map again, of networks that forget
    assert verdict.randomisation is not None


# --- targets ---------------------------------------------------------------------------------------------------------


def biased(model: Model, index: int, by: float = 50.0) -> Model:
    """The network made sure of one class."""
    with torch.no_grad():
        model.module.fc.bias[index] += by
    return model


def test_shared_is_the_class_of_the_highest_mean_probability(models: list[Model], pictures: list[Picture]) -> None:
    record = explain(pictures[0], models)
    mean = np.zeros(len(LABELS))
    for model in models:
        with torch.inference_mode():
            mean += model.module(model.preprocess(pictures[0].rgb)[0]).softmax(1)[0].numpy() / 2
    assert [view.target.index for view in record.views] == [int(mean.argmax())] * 2
    assert record.policy == "shared"
    assert record.shared


def test_shared_follows_the_surer_network_and_top1_each_its_own(pictures: list[Picture]) -> None:
    first, second = biased(network(), 2, 3), biased(network("res2net_tiny"), 7, 50)
    shared = explain(pictures[0], [first, second])
    assert [view.target.label for view in shared.views] == ["hen", "hen"]
    own = explain(pictures[0], [first, second], target="top1")
    assert [view.target.label for view in own.views] == ["cat", "hen"]
    assert not own.shared
    assert own.difference("layer4") is None
    assert own.maximum_ratio("layer4") is None


def test_agree_is_an_error_for_that_picture_only(pictures: list[Picture]) -> None:
    first, second = biased(network(), 2), biased(network("res2net_tiny"), 7)
    with pytest.raises(BadTarget, match=r"disagree on this picture \(classes 2, 7\).*use shared or top1") as caught:
        explain(pictures[0], [first, second], target="agree")
    assert caught.value.code == "bad_target.disagree"
    agreeing = explain(pictures[0], [first, biased(network("res2net_tiny"), 2)], target="agree")
    assert agreeing.shared
    assert agreeing.views[0].target.label == "cat"


def test_label_and_index(models: list[Model], pictures: list[Picture]) -> None:
    by_label = explain(pictures[0], models, target="Ice_Lolly")
    same(by_label, explain(pictures[0], models, target=8))
    same(by_label, explain(pictures[0], models, target="8"))
    assert by_label.views[1].target.label == "ice lolly"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("dgo", "no class 'dgo' among the network's 10; did you mean 'dog'"),
        ("lolly", "there are 'ice lolly'"),
        (10, "no class 10: there are 10 classes, 0 to 9"),
        ("-1", "no class -1"),
        ("", "give a label of the network, an index, or one of shared, top1, agree"),
    ],
)
def test_unknown_target(models: list[Model], pictures: list[Picture], target: str | int, says: str) -> None:
    with pytest.raises(BadTarget, match=re.escape(says)):
        explain(pictures[0], models, target=target)


def test_networks_of_different_classes(pictures: list[Picture]) -> None:
    first = network(labels=("Dog", "cat", "only here"))
    second = biased(network("res2net_tiny", labels=("elk", "cat", "ice lolly", "dog")), 0)
    record = explain(pictures[0], [first, second])  # the second is sure of a class that the first does not have
    assert {label.target.label.casefold() for label in record.views} <= {"dog", "cat"}
    assert len({view.target.label.casefold() for view in record.views}) == 1
    named = explain(pictures[0], [first, second], target="DOG")
    assert [(view.target.index, view.target.label) for view in named.views] == [(0, "Dog"), (3, "dog")]
    assert named.shared  # one class written in two ways
    assert not explain(pictures[0], [first, second], target="top1").shared
    with pytest.raises(BadTarget, match="class 0 means different things to networks with different classes"):
        explain(pictures[0], [first, second], target=0)
    with pytest.raises(BadTarget, match="no class 'only here'"):
        explain(pictures[0], [first, second], target="only here")


def test_networks_without_a_common_class(pictures: list[Picture]) -> None:
    two = [network(labels=("a", "b")), network("res2net_tiny", labels=("c", "d", "e"))]
    results = explain_batch(pictures[:2], two)
    assert all(isinstance(result, BadTarget) for result in results)
    assert "no class in common; use --target top1" in str(results[0])
    assert not explain(pictures[0], two, target="top1").shared


# --- what is wrong for all pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"layers": ("layer5",)}, UnknownName, r"no layer 'layer5' in resnet_tiny; did you mean 'layer\d'"),
        ({"layers": ()}, UnknownName, "no layer was named"),
        ({"layers": ("fc",)}, TapError, r"'fc' gives \(1, 10\), not a feature map"),
        ({"layers": ("layer4.0.split1",)}, UnknownName, "no layer 'layer4.0.split1' in resnet_tiny"),
        ({"method": "gradcan"}, UnknownName, "no method 'gradcan'; did you mean 'gradcam'"),
        ({"registration": "RF"}, UnknownName, "no registration 'RF'; there are rf and grid"),
    ],
)
def test_unknown_options(
    models: list[Model], pictures: list[Picture], options: dict[str, Any], kind: type[R2VizError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        explain(pictures[0], models, **options)


def test_number_of_networks(models: list[Model], pictures: list[Picture]) -> None:
    with pytest.raises(ModelError, match="0 networks came; expected one, or two to compare"):
        explain(pictures[0], [])
    with pytest.raises(ModelError, match="3 networks came"):
        explain(pictures[0], [*models, models[0]])


@pytest.mark.parametrize("where", ["conv1.weight", "fc.bias", "layer4.0.bn3.running_var"])
def test_weights_that_are_not_finite(pictures: list[Picture], where: str) -> None:
    """A NaN in the head's bias leaves the map finite: the scores must be looked at too."""
    model = network()
    model.module.state_dict()[where].fill_(float("nan"))
    with pytest.raises(ModelError, match=r"resnet_tiny gives .* not finite.*; its weights or its precision"):
        explain(pictures[0], [model])


def test_class_names_that_do_not_fit(pictures: list[Picture]) -> None:
    model = dataclasses.replace(network(), classes=LABELS[:3])
    with pytest.raises(ModelError, match="resnet_tiny gives 10 classes, but has 3 class names"):
        explain(pictures[0], [model])


def test_after_an_error_nothing_is_left_behind(pictures: list[Picture]) -> None:
    model = network()
    with pytest.raises(TapError):
        explain(pictures[0], [model], layers=("layer4", "fc"))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.module.parameters())


# --- many pictures ---------------------------------------------------------------------------------------------------


def test_a_batch_equals_its_pictures_one_by_one(models: list[Model], pictures: list[Picture]) -> None:
    eight = [*pictures, *pictures[:3]]
    together = explain_batch(eight, models, layers=("layer2", "layer4"))
    for picture, record in zip(eight, together, strict=True):
        assert isinstance(record, CamRecord)
        assert record.picture is picture
        same(record, explain(picture, models, layers=("layer2", "layer4")), tolerance=2e-6)


def test_no_pictures(models: list[Model]) -> None:
    assert explain_batch([], models) == []
    assert list(explain_many([], models)) == []


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_errors_ride_along_in_order(models: list[Model], pictures: list[Picture], batch: int) -> None:
    bad = [BadImage("first is bad"), BadImage("last is bad")]
    stream = [bad[0], pictures[0], pictures[1], pictures[2], bad[1]]
    results = list(explain_many(iter(stream), models, batch=batch))
    assert results[0] is bad[0]
    assert results[4] is bad[1]
    for result, picture in zip(results[1:4], pictures[:3], strict=True):
        assert isinstance(result, CamRecord)
        assert result.picture is picture


def test_only_errors(models: list[Model]) -> None:
    bad = [BadImage(f"bad {index}") for index in range(5)]
    assert list(explain_many(bad, models, batch=2)) == bad


def test_a_picture_that_preprocessing_refuses_stops_no_other(pictures: list[Picture]) -> None:
    model = network(preprocess=Preprocess(resize=None, crop=(64, 64)))
    results = explain_batch([pictures[0], decode(photo(10, 12)), pictures[1]], [model])
    assert isinstance(results[0], CamRecord)
    assert isinstance(results[2], CamRecord)
    assert isinstance(results[1], BadImage)
    assert "12x10 pixels before the crop, which needs 64x64" in str(results[1])


def test_disagreement_stops_no_other(pictures: list[Picture]) -> None:
    """Under `agree` some pictures of a batch have a target and some have none; the others' maps are not disturbed."""
    two = pair()
    many = [decode(photo(70, 90, seed)) for seed in range(24)]
    for model in two:  # without what they say of every picture, the networks tell pictures apart
        with torch.no_grad():
            logits = model.module(torch.cat([model.preprocess(picture.rgb)[0] for picture in many]))
            model.module.fc.bias -= logits.mean(dim=0)
    results = explain_batch(many, two, target="agree")
    reference = explain_batch(many, two, target="top1")
    agreed = [isinstance(result, CamRecord) for result in results]
    assert agreed == [
        record.views[0].target.index == record.views[1].target.index
        for record in reference
        if isinstance(record, CamRecord)
    ]
    assert 0 < sum(agreed) < len(agreed), "these seeds no longer give a mixed batch; choose others"
    for result, record in zip(results, reference, strict=True):
        if isinstance(result, CamRecord) and isinstance(record, CamRecord):
            same(result, record, tolerance=1e-6)


def test_memory_holds_one_batch_of_the_stream(models: list[Model], pictures: list[Picture]) -> None:
    taken = 0

    def stream() -> Any:
        nonlocal taken
        for index in range(6):
            taken += 1
            yield pictures[index % 5]

    results = explain_many(stream(), models, batch=2)
    next(results)
    assert taken == 2
    next(results)
    assert taken == 2
    next(results)
    assert taken == 4


def test_region_goes_into_the_record(models: list[Model], pictures: list[Picture]) -> None:
    size = pictures[0].rgb.shape[:2]
    record = explain(pictures[0], models, region=box_region((10, 5, 60, 50), size))
    inside = record.inside(record.views[0], "layer4")
    laid = record.views[0].on_source("layer4")
    assert inside is not None
    assert inside.share == pytest.approx(np.nansum(laid[5:50, 10:60]) / np.nansum(laid), rel=1e-5)
    everything = explain(pictures[0], models, region=box_region((0, 0, size[1], size[0]), size))
    whole = everything.inside(everything.views[0], "layer4")
    assert whole is not None
    assert (whole.share, whole.chance) == (pytest.approx(1), pytest.approx(1))


def test_region_of_another_size_is_refused(models: list[Model], pictures: list[Picture]) -> None:
    with pytest.raises(BadRegion, match=r"the region is 3 x 4, but the picture is 90 x 70; they must be equal"):
        explain(pictures[0], models, region=Region(np.ones((4, 3), dtype=bool)))


def test_a_region_that_cannot_be_made_stops_no_other(models: list[Model], pictures: list[Picture]) -> None:
    results = list(explain_many(pictures[:3], models, region=lambda size: box_region((0, 0, 90, 72), size)))
    assert isinstance(results[0], BadRegion)  # 70 high
    assert "leaves the picture, which is 90 wide and 70 high" in str(results[0])
    assert isinstance(results[1], CamRecord)
    assert isinstance(results[2], CamRecord)


def test_whole_pictures_of_different_sizes(pictures: list[Picture]) -> None:
    whole = [fitted(model, "whole") for model in pair()]
    several = [decode(photo(70, 150)), decode(photo(130, 70)), decode(photo(70, 150, 4))]
    records = explain_batch(several, whole)
    for picture, record in zip(several, records, strict=True):
        assert isinstance(record, CamRecord)
        assert record.picture is picture
        assert np.isfinite(record.views[0].on_source("layer4")).all()  # nothing is outside a crop
        same(record, explain(picture, whole), tolerance=2e-6)
    assert isinstance(records[0], CamRecord)
    assert raw(records[0]).shape == (2, 5)  # 64 x 137 input pixels


# --- memory ----------------------------------------------------------------------------------------------------------


class Hungry:
    """A hook before a network's forward pass that runs out of memory above `limit` pictures, as a device would."""

    def __init__(self, model: Model, limit: int, error: Exception | None = None) -> None:
        self.limit, self.sizes = limit, list[int]()
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        model.module.register_forward_pre_hook(self)

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.sizes.append(len(args[0]))
        if len(args[0]) > self.limit:
            raise self.error


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices that are given once per process have not been given yet."""
    monkeypatch.setattr(batch_room, "_said", set())


@pytest.mark.usefixtures("unsaid")
def test_out_of_memory_means_smaller_batches_and_is_said_once(models: list[Model], pictures: list[Picture]) -> None:
    hungry = pair()
    watcher = Hungry(hungry[1], 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = list(explain_many([*pictures, *pictures], hungry, batch=5))
    assert [str(warning.message) for warning in said] == ["the device ran out of memory; going on with smaller batches"]
    assert max(watcher.sizes) == 5
    for picture, record in zip([*pictures, *pictures], results, strict=True):
        assert isinstance(record, CamRecord)
        assert record.picture is picture
        same(record, explain(picture, models), tolerance=2e-6)


@pytest.mark.filterwarnings("ignore:the device ran out of memory")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you …"),
        MemoryError(),
    ],
    ids=["torch", "allocator", "python"],
)
def test_a_single_picture_out_of_memory_on_the_cpu(pictures: list[Picture], error: Exception) -> None:
    model = network()
    Hungry(model, 0, error)
    results = explain_batch(pictures, [model])
    assert len(results) == len(pictures)
    for result in results:
        assert isinstance(result, ModelError)
        assert "out of memory with a single picture on the CPU; use a smaller network or input" in str(result)


def test_the_real_cpu_allocator_is_recognised(pictures: list[Picture]) -> None:
    model = network()
    model.module.register_forward_pre_hook(lambda _module, _args: torch.empty(1 << 55) and None)
    with pytest.raises(ModelError, match="out of memory"):
        explain(pictures[0], [model])


def test_another_runtime_error_is_not_taken_for_memory(pictures: list[Picture]) -> None:
    model = network()
    Hungry(model, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        explain(pictures[0], [model])


@pytest.mark.usefixtures("unsaid")
def test_a_device_without_memory_hands_over_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, models: list[Model], pictures: list[Picture]
) -> None:
    """There is no GPU here: `device_of` says there is one until the network is moved, the rest is real."""
    hungry = pair()
    watcher = Hungry(hungry[0], 0)
    moved: list[str] = []
    real = hungry[0].module.to

    def to(device: str) -> nn.Module:
        moved.append(device)
        watcher.limit = 100
        return real(device)

    monkeypatch.setattr(hungry[0].module, "to", to)
    monkeypatch.setattr(batch_room, "device_of", lambda _module: torch.device("cpu" if moved else "cuda"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = explain_batch(pictures[:2], hungry)
    assert [str(warning.message) for warning in said] == [
        "the device ran out of memory; going on with smaller batches",
        "the device ran out of memory with a single picture; going on with the CPU",
    ]
    assert moved == ["cpu"]
    for picture, record in zip(pictures, results, strict=False):
        assert isinstance(record, CamRecord)
        same(record, explain(picture, models), tolerance=2e-6)


# --- threads ---------------------------------------------------------------------------------------------------------


def in_threads(two: list[Model], pictures: list[Picture], count: int = 8) -> list[Any]:
    results: list[Any] = [None] * count
    start = threading.Barrier(count)

    def work(number: int) -> None:
        start.wait()
        try:
            results[number] = explain(pictures[number % len(pictures)], two, layers=("layer3", "layer4"))
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def equal_in_threads(two: list[Model], pictures: list[Picture]) -> None:
    results = in_threads(two, pictures)
    for number, result in enumerate(results):
        if isinstance(result, BaseException):
            raise result
        expected = explain(pictures[number % len(pictures)], two, layers=("layer3", "layer4"))
        same(result, expected, tolerance=1e-6)
        assert [map_.registration for view in result.views for map_ in view.maps] == ["rf"] * 4


def test_eight_threads_on_networks_in_use(models: list[Model], pictures: list[Picture]) -> None:
    explain(pictures[0], models, layers=("layer3", "layer4"))
    for _ in range(5):
        equal_in_threads(models, pictures)


def test_eight_threads_on_networks_never_used_before(pictures: list[Picture]) -> None:
    """The first record of a network traces it, and torch.fx's tracing patches nn.Module for the whole process."""
    for seed in range(5):
        equal_in_threads(pair(seed=seed), pictures)


# --- geometry, end to end --------------------------------------------------------------------------------------------

BLACK_AND_WHITE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Tent(nn.Module):
    """A network whose Grad-CAM at `layer4` is the brightness around each unit's centre, 8 input pixels apart.

    Both convolutions weigh with tents as wide as twice their stride. Tents sum to one at every pixel and keep first
    moments, so a map's centroid, with units placed where their fields are centred, is exactly the picture's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer3 = self._tent(3, 2)
        self.layer4 = self._tent(1, 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight[:] = torch.tensor([[1.0], [0.5]])
            self.fc.bias.zero_()

    @staticmethod
    def _tent(channels: int, stride: int) -> nn.Conv2d:
        size = 2 * stride - 1
        conv = nn.Conv2d(channels, 1, size, stride, stride - 1, bias=False)
        ramp = torch.tensor([stride - abs(offset) for offset in range(1 - stride, stride)], dtype=torch.float32)
        with torch.no_grad():
            conv.weight[:] = torch.outer(ramp, ramp)[None, None] / ramp.sum() ** 2 / channels
        return conv

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.layer4(self.layer3(x))).flatten(1))


def tent(**preprocess: Any) -> Model:
    settings = {"resize": 144, "crop": (128, 128), **BLACK_AND_WHITE, **preprocess}
    return Model(
        "tent", "Tent", Tent().eval(), Preprocess(**settings), ("bright", "dark"), Weights("file", "tent", "0")
    )


def centroid(values: np.ndarray) -> tuple[float, float]:
    """(y, x) of the centre of mass, in pixels with centres at whole numbers."""
    mass = np.nan_to_num(values).astype(np.float64)
    y, x = np.indices(mass.shape)
    return float((mass * y).sum() / mass.sum()), float((mass * x).sum() / mass.sum())


def one_square(size: tuple[int, int], top: int, left: int, side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A black picture with one white square, and the square's centre (y, x)."""
    rgb = np.zeros((*size, 3), dtype=np.uint8)
    rgb[top : top + side, left : left + side] = 255
    return rgb, (top + (side - 1) / 2, left + (side - 1) / 2)


# (H, W), top, left: odd sizes, tall, wide, smaller and larger than the network's input; the square is off centre.
PLACES = [
    pytest.param((301, 401), 90, 120, 41, id="landscape"),
    pytest.param((503, 257), 300, 60, 33, id="tall"),
    pytest.param((211, 633), 60, 330, 27, id="wide"),
    pytest.param((91, 87), 20, 40, 11, id="small"),
    pytest.param((144, 144), 61, 37, 24, id="unscaled"),
]


@pytest.mark.parametrize(("size", "top", "left", "side"), PLACES)
@pytest.mark.parametrize("fit", ["crop", "squash", "whole"])
def test_a_bright_square_stays_where_it_is(size: tuple[int, int], top: int, left: int, side: int, fit: str) -> None:
    rgb, (y, x) = one_square(size, top, left, side)
    record = explain(rgb, [fitted(tent(), fit)], target="bright")
    assert record.views[0].map("layer4").registration == "rf"
    found = centroid(record.views[0].on_source("layer4"))
    assert found == (pytest.approx(y, abs=0.5), pytest.approx(x, abs=0.5))


@pytest.mark.parametrize(("size", "top", "left", "side"), PLACES)
def test_grid_registration_shows_the_known_shift(size: tuple[int, int], top: int, left: int, side: int) -> None:
    """Units sit at 8·i; half-pixel resizing puts them at 8·i + 3.5, so a map lies 3.5 input pixels off."""
    rgb, (y, x) = one_square(size, top, left, side)
    record = explain(rgb, [tent()], target="bright", registration="grid")
    view = record.views[0]
    shift = 3.5 / np.array(view.geometry.scale)
    assert view.map("layer4").registration == "grid"
    assert centroid(view.on_source("layer4")) == (
        pytest.approx(y + shift[0], abs=0.5),
        pytest.approx(x + shift[1], abs=0.5),
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_bright_square_stays_through_exif(orientation: int) -> None:
    """The file holds the pixels turned or mirrored, with a tag that says so; the map lies on the upright picture."""
    upright, (y, x) = one_square((301, 401), 90, 120, 41)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),  # shown right after a quarter turn clockwise
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0})):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(stored)).save(buffer, kind, exif=exif, **options)
        record = explain(buffer.getvalue(), [tent()], target="bright")
        assert record.picture.rgb.shape == upright.shape
        found = centroid(record.views[0].on_source("layer4"))
        assert found == (pytest.approx(y, abs=0.7), pytest.approx(x, abs=0.7)), kind


def test_the_mass_lies_on_the_square() -> None:
    rgb, _ = one_square((301, 401), 90, 120, 41)
    record = explain(rgb, [tent()], target="bright", region=box_region((100, 70, 181, 151), (301, 401)))
    inside = record.inside(record.views[0], "layer4")
    assert inside is not None
    assert inside.share > 0.99  # the box leaves 20 source pixels on each side: more than one unit
    y0, x0, y1, x1 = record.views[0].geometry.seen
    assert inside.chance == pytest.approx(81 * 81 / ((y1 - y0) * (x1 - x0)))  # of what the network saw


def test_margins_outside_the_crop_hold_no_map() -> None:
    rgb, _ = one_square((211, 633), 60, 330, 27)
    view = explain(rgb, [tent()], target="bright").views[0]
    laid = view.on_source("layer4")
    y0, x0, y1, x1 = view.geometry.seen
    assert np.isfinite(laid[y0:y1, x0:x1]).all()
    assert np.isnan(laid[:, :x0]).all()
    assert np.isnan(laid[:, x1:]).all()
    assert (x1 - x0) == pytest.approx(128 / view.geometry.scale[1], abs=2)


class Unfollowable(Tent):
    """What `torch.fx` cannot trace: a branch on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1 else -x)


def test_unknown_centres_fall_back_and_say_so() -> None:
    rgb, _ = one_square((144, 144), 61, 37, 24)
    model = dataclasses.replace(tent(), module=Unfollowable().eval())
    record = explain(rgb, [model], target="bright")
    assert record.views[0].map("layer4").registration == "grid"
    assert record.registration == "rf"
    assert record.notes == (
        "tent layer4: receptive-field centres are not known here, so the map is laid as by resizing",
    )
    asked = explain(rgb, [model], target="bright", registration="grid")
    assert asked.notes == ()
