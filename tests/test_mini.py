"""The pair that ships: files, cards, fallback, and that its accuracy is what its card says."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny import one_thread

import r2viz
from r2viz.errors import UnknownName, WeightsUnavailable
from r2viz.figures.cam import made_how
from r2viz.models import pairs
from r2viz.models.model import EMBEDDED, load, load_pair
from r2viz.models.weights import file_digest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("resnet26_mini", "res2net26_mini")


@pytest.fixture
def offline(monkeypatch):
    """A hub that cannot be reached."""

    def refuse(repository):
        raise WeightsUnavailable(f"the weights {repository} are not in the cache and the hub is away; connect once")

    monkeypatch.setattr(pairs, "fetch", refuse)


def card(name: str) -> dict:
    return json.loads((EMBEDDED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_files_and_cards(name):
    path = EMBEDDED / f"{name}.safetensors"
    assert path.stat().st_size <= 6e6
    assert card(name)["weights"]["sha256"] == file_digest(path)
    assert (EMBEDDED / f"{name}.md").read_text().strip()
    assert card(name)["score"]["pictures"] == 8000
    # Counted over all of them when the weights were halved.
    assert card(name)["float16"]["same_top1"] >= 0.995


def test_the_two_were_trained_alike_and_cost_the_same():
    first, second = map(card, NAMES)
    assert first["training"] | {"wall_seconds": 0} == second["training"] | {"wall_seconds": 0}
    assert first["data"] == second["data"]
    for measure in ("parameters", "multiply_adds"):
        assert second[measure] == pytest.approx(first[measure], rel=0.04)
    assert 1.5e6 <= first["parameters"] <= 2.5e6
    assert first["multiply_adds"] <= 140e6


@pytest.mark.parametrize("name", NAMES)
def test_loads_with_its_classes_and_an_eight_by_eight_map(name):
    model = load(name)
    assert model.weights.kind == "embedded"
    assert "200 classes" in model.weights.source
    assert len(model.classes) == len(set(model.classes)) == 200
    assert next(model.module.parameters()).dtype == torch.float32
    from r2viz.attribution import cam_maps

    maps = cam_maps(model.module, torch.zeros(1, 3, 64, 64), layers=["layer4"])
    assert maps["layer4"].shape == (1, 8, 8)


def test_auto_falls_back_with_one_sentence(offline):
    with pytest.warns(UserWarning, match="so the mini pair is used, which ships with r2viz") as said:
        first, second = load_pair("auto")
    assert len(said) == 1
    assert (first.name, second.name) == NAMES
    assert first.classes == second.classes


def test_by_name_there_is_no_fallback(offline):
    with pytest.raises(WeightsUnavailable, match="resnet50"):
        load_pair("imagenet")


def test_asked_for_mini_nothing_is_fetched(offline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [model.name for model in load_pair("mini")] == list(NAMES)
        assert [model.name for model in load_pair("auto", weights="mini")] == list(NAMES)


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_what_the_card_says(name, shared: Path):
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(shared / "data/tiny-imagenet/val.parquet", columns=["image", "label"])[:1000]
    model = load(name)
    pictures = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in table["image"].to_pylist()]
    with one_thread(), torch.inference_mode():
        batch = torch.cat([model.preprocess(rgb)[0] for rgb in pictures])
        found = torch.cat([model.module(part).argmax(1) for part in batch.split(100)]).numpy()
    top1 = float((found == np.array(table["label"].to_pylist())).mean())
    assert top1 == pytest.approx(card(name)["score"]["top1"], abs=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_map_and_is_said(precision):
    exact, halved = (
        r2viz.compare(EXAMPLES / "bison.jpg", r2viz.load_pair("mini", precision=one), target="bison")
        for one in ("fp32", precision)
    )
    assert halved.dtype == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    assert halved.digest != exact.digest
    for view, other in zip(exact.views, halved.views, strict=True):
        raw, half = view.maps[0].raw, other.maps[0].raw
        assert half.dtype == np.float32
        assert spearmanr(raw.ravel(), half.ravel())[0] > 0.999
        assert other.target.probability == pytest.approx(view.target.probability, abs=0.03)
    assert any(halved.dtype in line for line in made_how(halved))
    assert not any("float" in line for line in made_how(exact))
    with pytest.raises(UnknownName, match="no precision 'half'; there are fp32, bf16, fp16"):
        r2viz.load("resnet26_mini", precision="half")
