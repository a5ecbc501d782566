"""Networks of timm, torchvision and files: found, built, loaded as their library would, or refused in one line."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import oracle
import pytest
import timm
import torch
import torchvision
from hub_server import Hub
from safetensors.torch import save
from tiny import photo

from r2viz.errors import BadWeights, ModelError, R2VizError, UnknownName, WeightsUnavailable
from r2viz.models import elsewhere, hub, zoo
from r2viz.models.model import load

NET = """
from torch import nn

from beside import WIDTH


def make(num_classes=1000):
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes)
    )


def five():
    return make(5)


def any_number(**options):
    return make(**options)


def number():
    return 3


def nothing():
    pass


def falls():
    raise ValueError("no\\nsuch luck")


def maps():
    return nn.Conv2d(3, 4, 3)


half = 0.5
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of our own, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("timm:resnet18", True),
        ("torchvision:resnet18.IMAGENET1K_V1", True),
        ("net.py:make", True),
        ("some/where else/net.py:make_it", True),
        ("C:\\nets\\net.py:make", True),
        ("net.py", False),
        ("net.py:", False),
        ("net.py:make()", False),
        ("net.py:2make", False),
        ("res2net50", False),
        ("timm/resnet18", False),
        ("", False),
    ],
)
def test_which_names_are_elsewhere(name: str, found: bool) -> None:
    assert elsewhere.is_elsewhere(name) is found
    if found:
        assert zoo.canonical(name) == name


def test_names_in_records_hold_no_folder(net: Path) -> None:
    assert elsewhere.plain(f"{net}:make") == "net.py:make"
    assert elsewhere.plain("timm:resnet18") == "timm:resnet18"
    assert load(f"{net}:make", weights="random").name == "net.py:make"
    before = elsewhere.identity(f"{net}:make")
    assert str(net.parent) not in before
    net.write_text(NET + "\n\n")
    assert elsewhere.identity(f"{net}:make") != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", r"no model 'timm:resnt18'; did you mean 'timm:resnet18'\?; timm [\d.]+\S* has no such"),
        (
            "timm:resnet18.tv_in2k",
            r"no model 'timm:resnet18.tv_in2k'; did you mean 'tv_in1k'\?; weights of timm:resnet18 are called a1_",
        ),
        ("timm:", r"no model 'timm:'; timm"),
        ("torchvision:resnet55", r"did you mean 'torchvision:resnet50'\?; torchvision has no such classification"),
        ("torchvision:fcn_resnet50", "torchvision has no such classification network"),
        ("torchvision:resnet50.V2", "weights of torchvision:resnet50 are called IMAGENET1K_V1, IMAGENET1K_V2"),
    ],
)
def test_unknown_networks_of_libraries(name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message) as caught:
        zoo.row(name)
    assert caught.value.code == "unknown_name.model"
    assert "\n" not in str(caught.value)


def test_names_of_the_table_and_their_refusal_import_no_library() -> None:
    code = """if True:
        import sys
        from r2viz.errors import UnknownName
        from r2viz.models import elsewhere, zoo
        assert elsewhere.is_elsewhere(zoo.canonical("timm:resnet18"))
        zoo.row("res2net50d")
        try:
            zoo.row("resnet5")
        except UnknownName:
            sys.exit(bool({"torch", "torchvision", "timm"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python marks what cannot be imported
    with pytest.raises(ModelError, match=r"need timm, which is not installed; run: pip install timm$") as caught:
        zoo.row("timm:resnet18")
    assert caught.value.code == "model.timm"


# --- Libraries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_random_weights_of_timm(name: str) -> None:
    model = load(name, weights="random", seed=4)
    assert type(model.module) is type(oracle.elsewhere(name))
    assert model.weights.random
    assert (model.name, len(model.classes), model.classes[0]) == (name, 1000, "tench")
    again = load(name, weights="random", seed=4)
    assert again.weights.sha256 == model.weights.sha256


@pytest.mark.parametrize(
    "name", ["resnet18.tv_in1k", "resnet18", "test_vit", "convnext_tiny.fb_in22k", "tf_efficientnet_b0.ns_jft_in1k"]
)
def test_pictures_are_prepared_as_timm_does(name: str) -> None:
    from PIL import Image

    row = zoo.row(f"timm:{name}")
    config = timm.get_pretrained_cfg(name)
    assert row.hub == config.hf_hub_id
    assert row.classes == ("imagenet" if config.num_classes == 1000 else "")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config.to_dict()))
    picture = photo(301, 403)
    ours, _ = row.preprocess(picture)
    assert torch.allclose(ours[0], transform(Image.fromarray(picture)), atol=2e-2)
    assert (ours[0] - transform(Image.fromarray(picture))).abs().mean() < 2e-3


def test_pictures_are_prepared_as_torchvision_does() -> None:
    from PIL import Image

    row = zoo.row("torchvision:inception_v3")
    weights = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
    assert row.url == weights.url
    picture = photo(400, 500)
    assert torch.allclose(row.preprocess(picture)[0][0], weights.transforms()(Image.fromarray(picture)), atol=1e-5)


def test_torchvisions_first_weights_unless_others_are_named() -> None:
    assert str(zoo.row("torchvision:resnet50").url).endswith("resnet50-0676ba61.pth")
    assert str(zoo.row("torchvision:resnet50.IMAGENET1K_V2").url).endswith("resnet50-11ad3fa6.pth")


def test_public_weights_of_timm_come_from_the_hub(served: Hub) -> None:
    theirs = timm.create_model("test_resnet", pretrained=False)
    theirs.load_state_dict(oracle.numbers(theirs))
    content = save({key: value.contiguous() for key, value in theirs.state_dict().items()})
    served.add("timm/test_resnet.r160_in1k", content)
    model = load("timm:test_resnet")
    assert model.weights.kind == "hub"
    assert model.weights.source.startswith("timm/test_resnet.r160_in1k@0123456789ab")
    assert model.weights.sha256 == hashlib.sha256(content).hexdigest()
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model.module(batch), theirs.eval()(batch), atol=1e-5)
    asked = len(served.asked)
    load("timm:test_resnet.r160_in1k")
    assert len(served.asked) == asked, "they were in the cache"


def test_public_weights_that_do_not_fit_timms_network(served: Hub) -> None:
    served.add("timm/test_resnet.r160_in1k", save({"a.weight": torch.zeros(3)}))
    with pytest.raises(
        BadWeights, match=r"timm/test_resnet\S+ does not fit timm:test_resnet \(RuntimeError: .*--weights"
    ):
        load("timm:test_resnet")


def test_old_keys_of_timm_are_renamed_as_timm_does(served: Hub) -> None:
    """ConvNeXt's first files call everything otherwise; timm's own filter knows, and ours is not needed."""
    theirs = timm.create_model("convnext_atto", pretrained=False)
    theirs.load_state_dict(oracle.numbers(theirs))
    old = {key.replace("stem.0.", "downsample_layers.0.0."): value for key, value in theirs.state_dict().items()}
    # The layout of the first ConvNeXt files, as timm's own filter reads it.
    renamed = {}
    for key, value in old.items():
        key = key.replace("stem.1.", "downsample_layers.0.1.")
        key = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", key)
        key = re.sub(r"stages\.(\d)\.downsample\.", lambda m: f"downsample_layers.{m[1]}.", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        key = key.replace("head.fc.", "head.").replace("head.norm.", "norm.")
        renamed[key] = value.contiguous()
    config = timm.get_pretrained_cfg("convnext_atto")
    served.add(config.hf_hub_id, save(renamed))
    model = load("timm:convnext_atto")
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_a_file_of_weights_for_a_network_elsewhere(tmp_path: Path) -> None:
    theirs = timm.create_model("test_resnet", pretrained=False, num_classes=12)
    (tmp_path / "w.safetensors").write_bytes(save({k: v.contiguous() for k, v in theirs.state_dict().items()}))
    model = load("timm:test_resnet", weights=tmp_path / "w.safetensors")
    assert model.classes == tuple(f"class {index}" for index in range(12))
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    with pytest.raises(BadWeights, match="does not fit timm:test_vit: keys"):
        load("timm:test_vit", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:densenet121"])
def test_heads_are_found_wherever_they_are(name: str, tmp_path: Path) -> None:
    """A convolution at the end of SqueezeNet; a layer called `classifier` in DenseNet."""
    theirs = torchvision.models.get_model(name.partition(":")[2], weights=None, num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = load(name, weights=tmp_path / "w.pth", classes=list("abcdefg"))
    assert model.classes == tuple("abcdefg")
    with torch.inference_mode():
        assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


# --- torchvision's files, over HTTP ----------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a plain web server, and torch's cache at another place."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_torchs_cache_is_where_torch_has_it(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub._torch_cache() == Path(torch.hub.get_dir()) / "checkpoints" == torch_home
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(torch_home))
    assert hub._torch_cache() == Path(torch.hub.get_dir()) / "checkpoints"


def test_a_file_of_torchvision_is_fetched_compared_and_kept(site: tuple[str, Path], torch_home: Path) -> None:
    address, folder = site
    content = os.urandom(300_000)
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    assert hub.cached_url(f"{address}/{name}") is None
    path = hub.fetch_url(f"{address}/{name}")
    assert path == torch_home / name == hub.cached_url(f"{address}/{name}")
    assert path.read_bytes() == content
    (folder / name).unlink()
    assert hub.fetch_url(f"{address}/{name}") == path, "cached files need no server"


def test_a_file_of_torchvision_that_is_not_what_its_name_says(site: tuple[str, Path], torch_home: Path) -> None:
    address, folder = site
    (folder / "net-01234567.pth").write_bytes(b"else")
    with pytest.raises(WeightsUnavailable, match=r"net-01234567.pth arrived damaged or altered") as caught:
        hub.fetch_url(f"{address}/net-01234567.pth")
    assert caught.value.code == "weights_hash"
    assert not list(torch_home.glob("*.pth*lete"))
    assert hub.cached_url(f"{address}/net-01234567.pth") is None
    with pytest.raises(WeightsUnavailable, match=r"other-01234567.pth are not in the cache .*\(it answered 404\)"):
        hub.fetch_url(f"{address}/other-01234567.pth")


def test_torchvisions_own_weights_are_read_from_torchs_cache(torch_home: Path) -> None:
    theirs = torchvision.models.squeezenet1_1(weights=None)
    theirs.load_state_dict(oracle.numbers(theirs))
    row = zoo.row("torchvision:squeezenet1_1")
    name = Path(urllib.parse.urlsplit(str(row.url)).path).name
    torch_home.mkdir(parents=True)
    torch.save(theirs.state_dict(), torch_home / name)  # its hash is not that of the name: it is in the cache already
    model = load("torchvision:squeezenet1_1")
    assert (model.weights.kind, model.weights.source) == ("hub", f"torchvision/{name}")
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model.module(batch), theirs.eval()(batch), atol=1e-5)


def test_torchvisions_own_weights_run_no_code(torch_home: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch hostile",)

    row = zoo.row("torchvision:squeezenet1_1")
    torch_home.mkdir(parents=True)
    torch.save({"a": Hostile()}, torch_home / Path(str(row.url)).name)
    with pytest.raises(BadWeights, match=r"does not fit torchvision:squeezenet1_1 \(UnpicklingError: "):
        load("torchvision:squeezenet1_1")
    assert not Path("hostile").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_network_from_a_file(net: Path, tmp_path: Path) -> None:
    before = list(sys.path)
    model = load(f"{net}:make", weights="random")
    assert sys.path == before
    assert (len(model.classes), model.classes[0], model.title) == (1000, "tench", "make")
    assert load(f"{net}:five", weights="random").classes == tuple(f"class {index}" for index in range(5))
    torch.save(zoo.row(f"{net}:make").build(num_classes=3).state_dict(), tmp_path / "w.pth")
    for factory in ("make", "any_number"):
        loaded = load(f"{net}:{factory}", weights=tmp_path / "w.pth")
        assert len(loaded.classes) == 3
    with pytest.raises(
        ModelError,
        match=r"net.py:five does not take num_classes, and a network of 3 classes was asked for; "
        r"write def five\(num_classes=1000\)",
    ):
        load(f"{net}:five", weights=tmp_path / "w.pth")
    with pytest.raises(
        WeightsUnavailable, match=r"net.py:make has no public weights \(it is a file of yours\); give --w"
    ):
        load(f"{net}:make")


def test_a_file_may_say_how_its_pictures_are_prepared(net: Path) -> None:
    assert load(f"{net}:make", weights="random").preprocess.crop == (224, 224)
    net.write_text(NET + "\nfrom r2viz.geometry import Preprocess\nPREPROCESS = Preprocess(resize=36, crop=(32, 32))\n")
    model = load(f"{net}:make", weights="random")
    assert model.preprocess(np.zeros((50, 60, 3), np.uint8))[0].shape == (1, 3, 32, 32)
    net.write_text(NET + "\nPREPROCESS = 32\n\n")
    with pytest.raises(ModelError, match=r"PREPROCESS in .*net.py is a int; expected r2viz's Preprocess"):
        load(f"{net}:make", weights="random")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mak", r"no 'mak' in .*net.py; did you mean 'make'\?; it defines make, five, any_number"),
        ("number", "net.py:number returns an object of type int; expected a torch.nn.Module"),
        ("nothing", r"net.py:nothing returns nothing \(None\); expected a torch.nn.Module"),
        ("half", "half in .*net.py is an object of type float; expected a function that returns a torch.nn.Module"),
        ("falls", r"net.py:falls fails: ValueError: no \(line \d+\)$"),
        ("maps", r"maps gives \(1, 4, 222, 222\) for a picture; expected logits \(1, classes\): it is no classifier"),
    ],
)
def test_factories_that_make_no_network(net: Path, factory: str, message: str) -> None:
    with pytest.raises(R2VizError, match=message) as caught:
        load(f"{net}:{factory}", weights="random")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(:\n", r"net.py cannot be run: SyntaxError: .* \(line 1\)"),
        (
            "\nimport nowhere_at_all\n",
            r"cannot be run: ModuleNotFoundError: No module named 'nowhere_at_all' \(line 2\)",
        ),
        ("raise SystemExit(3)\n", r"cannot be run: SystemExit: 3 \(line 1\)"),
        ("", r"no 'make' in .*net.py; it defines no function"),
    ],
)
def test_files_that_cannot_be_run(net: Path, text: str, message: str) -> None:
    net.write_text(text)
    with pytest.raises(R2VizError, match=message):
        load(f"{net}:make", weights="random")


def test_a_file_that_is_not_there(net: Path) -> None:
    missing = net.with_name("nat.py")
    with pytest.raises(UnknownName, match=r"no file '.*nat.py'; did you mean 'net.py'\?; a network is named path/to/f"):
        load(f"{missing}:make", weights="random")
