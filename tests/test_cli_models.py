"""`r2viz models` and `r2viz weights` as the console script runs them, against a hub over real HTTP."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from hub_server import Hub
from safetensors.torch import save

from r2viz import cli
from r2viz.models import hub as hub_room
from r2viz.models import zoo
from r2viz.models.model import EMBEDDED

SMALL = "timm:test_resnet"  # half a million parameters
REPOSITORY = "timm/test_resnet.r160_in1k"


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def go(*arguments: str) -> Ran:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["r2viz", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(left.value.code or 0), out, err)

    return go


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of our own that has one small network, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_room, "_unreachable", {})
    with Hub() as server:
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.add(REPOSITORY, content())
        yield server


def content() -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", pretrained=False)
    return save({key: value.contiguous() for key, value in network.state_dict().items()})


# --- models ----------------------------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_every_network(run: Callable[..., Ran]) -> None:
    ran = run("models")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert len(lines) > 40
    for name, row in zoo.ZOO.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert row.title in line
        assert f"{row.params / 1e6:.1f}M" in line
        assert f"{row.macs / 1e9:.3f}" in line
        assert (row.top1 is None) or f"{row.top1:.2f}" in line
    groups = [line for line in lines if line.startswith("— ")]
    assert len(groups) == len(set(groups)), "each vocabulary once"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("text", "names"), [("152", {"resnet152", "res2net152_26w_4s"}), ("res2net50d", {"res2net50_v1b_26w_4s"})]
)
def test_the_list_is_filtered_by_names_titles_and_aliases(run: Callable[..., Ran], text: str, names: set[str]) -> None:
    assert set(json.loads(run("models", text, "--json").out)) == names
    assert set(json.loads(run("models", "--json", text.upper()).out)) == names
    assert set(json.loads(run("models", "list", text, "--json").out)) == names
    shown = run("models", text).out
    assert all(f"{name} " in shown for name in names)


def test_a_filter_that_finds_nothing(run: Callable[..., Ran]) -> None:
    ran = run("models", "vgg")
    assert (ran.code, ran.out) == (2, "")
    assert f"no model has 'vgg' in its name; `r2viz models` lists all {len(zoo.ZOO)}" in ran.err


def test_the_list_as_json(run: Callable[..., Ran]) -> None:
    found = json.loads(run("models", "--json").out)
    assert list(found) == list(zoo.ZOO)
    about = found["res2net50_26w_4s"]
    assert about["params"] == 25_699_120
    assert about["macs"] == 4_255_166_464
    assert about["published"][0] == {"table": "T1", "called": "Res2Net-50", "top1": 77.99, "top5": 93.85}
    assert about["pairs"] == ["imagenet"]
    assert found["resnet26_mini"]["at_hand"] is True
    assert found["res2net50_18w_4s"]["weights"] is None


def test_the_list_imports_no_torch() -> None:
    code = """if True:
        import sys
        from r2viz import cli
        sys.argv[1:] = ["models"]
        try:
            cli.main()
        finally:
            assert not {"torch", "torchvision", "timm"} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_show_tells_stages_splits_and_taps(run: Callable[..., Ran]) -> None:
    ran = run("models", "show", "res2net50")
    assert ran.code == 0
    assert "25,699,120 parameters, 4,255,166,464 multiply-adds at 224x224 px" in ran.out
    assert "table 3: top-1 77.99 %, top-5 93.85 %" in ran.out
    (layer3,) = [line for line in ran.out.splitlines() if line.startswith("  layer3 ")]
    assert layer3.split()[:3] == ["layer3", "1024x14x14", "16"]
    assert "6 x Res2NetBlock, 4 splits of 104 channels, 1 without cascade: layer3.0 … layer3.5" in layer3
    assert "layer4.2.split0 … split3 (208x7x7)" in ran.out


def test_show_as_json_has_every_tap_as_a_forward_pass_gives_it(run: Callable[..., Ran]) -> None:
    """Shapes against a real forward pass; strides against what the shapes say."""
    found = json.loads(run("models", "show", "res2net26_mini", "--json").out)
    module = zoo.row("res2net26_mini").build().eval()
    seen: dict[str, list[list[int]]] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(
            lambda _part, _into, out, name=name: seen.setdefault(name, []).append(list(out.shape[1:]))
        )
    with torch.inference_mode():
        module(torch.zeros(1, 3, 64, 64))
    once = {name: shapes[0] for name, shapes in seen.items() if len(shapes) == 1 and len(shapes[0]) == 3}
    assert {tap["name"]: tap["shape"] for tap in found["taps"]} == once
    for tap in found["taps"]:
        if tap["shape"][1] > 1:
            assert tap["stride"] == [64 / tap["shape"][1], 64 / tap["shape"][2]], tap
        else:
            assert tap["stride"] is None
    blocks = [block for stage in found["stages"] for block in stage["blocks"]]
    assert [block["name"] for block in blocks] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [block["cascade"] for block in blocks] == [False, True] * 4
    assert [split["name"] for split in blocks[-1]["splits"]] == [f"layer4.1.split{index}" for index in range(4)]
    assert found["published"] == []


@pytest.mark.parametrize("name", [SMALL, "torchvision:squeezenet1_1"])
def test_show_counts_networks_from_elsewhere(run: Callable[..., Ran], name: str) -> None:
    found = json.loads(run("models", "show", name, "--json").out)
    module = zoo.row(name).build()
    assert found["params"] == sum(parameter.numel() for parameter in module.parameters())
    assert found["macs"] > 1e6
    assert found["stages"]
    assert "parameters" in run("models", "show", name).out


def test_show_of_what_is_not_there(run: Callable[..., Ran]) -> None:
    ran = run("models", "show", "res2net5")
    assert ran.code == 2
    assert "no model 'res2net5'; did you mean 'res2net50" in ran.err


# --- weights ---------------------------------------------------------------------------------------------------------


def test_fetch_verify_path(run: Callable[..., Ran], served: Hub, tmp_path: Path) -> None:
    ran = run("weights", "path", SMALL)
    assert (ran.code, ran.out) == (1, "")
    assert f"weights of {SMALL} are not in the cache; run r2viz weights fetch {SMALL}" in ran.err
    ran = run("weights", "verify", SMALL)
    assert ran.code == 1
    assert "no whole file is here" in ran.err
    assert not served.asked, "neither asks the hub"

    fetched = run("weights", "fetch", SMALL)
    assert fetched.code == 0
    path = Path(run("weights", "path", SMALL).out.strip())
    assert fetched.out == f"{SMALL}  {path}\n"
    assert path.is_relative_to(tmp_path / "cache")
    assert path.read_bytes() == content()
    asked = len(served.asked)
    assert run("weights", "fetch", SMALL).code == 0
    ran = run("weights", "verify", SMALL)
    assert (ran.code, ran.out) == (
        0,
        f"{SMALL}  sha256 {hashlib.sha256(content()).hexdigest()[:12]}… as published, fits\n",
    )
    assert len(served.asked) == asked


def test_fetch_goes_on_when_one_fails(run: Callable[..., Ran], served: Hub) -> None:
    ran = run("weights", "fetch", "timm:test_vit", "res2net50_18w_4s", "resnet26_mini", SMALL, "--json")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert set(found) == {"timm:test_vit", "res2net50_18w_4s", "resnet26_mini", SMALL}
    assert "has no model.safetensors there (404)" in found["timm:test_vit"]["error"]
    assert found["res2net50_18w_4s"]["error_code"] == "weights_none"
    assert found["resnet26_mini"]["path"] == str(EMBEDDED / "resnet26_mini.safetensors")
    assert Path(found[SMALL]["path"]).is_file()
    assert len(ran.err.splitlines()) == 2
    assert run("weights", "fetch", "res2net50_18w_4s").code == 1
    before = len(served.asked)
    assert run("weights", "fetch", SMALL, "resnet5").code == 2, "a name that does not exist is refused before the work"
    assert len(served.asked) == before


def test_fetch_takes_a_pair(run: Callable[..., Ran]) -> None:
    ran = run("weights", "fetch", "mini")
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)


def test_verify_sees_what_was_changed_or_does_not_fit(run: Callable[..., Ran], served: Hub) -> None:
    run("weights", "fetch", SMALL)
    path = Path(run("weights", "path", SMALL).out.strip()).resolve()
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1  # a low bit of the last value: still finite, still as long
    path.write_bytes(changed)
    ran = run("weights", "verify", SMALL, "resnet26_mini")
    assert ran.code == 3
    assert "was changed: its sha256 begins" in ran.err
    assert "resnet26_mini  sha256" in ran.out
    path.write_bytes(whole[: len(whole) // 2])
    assert "no whole file is here" in run("weights", "verify", SMALL).err
    path.write_bytes(save({"a": torch.zeros(2)}))
    ran = run("weights", "verify", SMALL)
    assert ran.code == 1
    assert f"does not fit {SMALL}" in ran.err


def test_verify_without_names_takes_what_is_here(run: Callable[..., Ran], served: Hub) -> None:
    ran = run("weights", "verify", "--json")
    assert ran.code == 0
    assert set(json.loads(ran.out)) == {"resnet26_mini", "res2net26_mini"}
    assert not served.asked


def test_path_of_a_network_that_has_no_weights(run: Callable[..., Ran]) -> None:
    ran = run("weights", "path", "res2net50_18w_4s")
    assert ran.code == 1
    assert "res2net50_18w_4s has no public weights (no weights were published); give --weights FILE or" in ran.err


def test_help_tells_how_to_copy_to_a_machine_without_network(run: Callable[..., Ran]) -> None:
    text = " ".join(run("weights", "--help").out.split())
    assert "HF_HOME=folder r2viz weights fetch NAME" in text
    assert "--weights FILE" in text


# --- Where networks are named ----------------------------------------------------------------------------------------


def test_cam_compares_networks_from_elsewhere(run: Callable[..., Ran], tmp_path: Path) -> None:
    from PIL import Image
    from tiny import photo

    Image.fromarray(photo(70, 90)).save(tmp_path / "a.png")
    net = tmp_path / "net.py"
    net.write_text(
        "import timm\nfrom r2viz.geometry import Preprocess\nPREPROCESS = Preprocess(resize=64, crop=(64, 64))\n"
        "def make(num_classes=1000):\n    return timm.create_model('test_resnet', num_classes=num_classes)\n"
    )
    asked = ["cam", str(tmp_path / "a.png"), "--model", SMALL, "--model", f"{net}:make", "--weights", "random"]
    asked += ["-o", str(tmp_path / "out"), "--device", "cpu", "--json"]
    ran = run(*asked)
    assert ran.code == 0, ran.err
    text = json.dumps(json.loads(ran.out))
    assert '"timm:test_resnet"' in text
    assert '"net.py:make"' in text
    assert str(net) not in (tmp_path / "out" / "a.cam.json").read_text()
    assert run(*asked, "--resume").err.startswith("1 of 1 pictures have their results already")
    net.write_text(net.read_text() + "\n")
    assert "with other options" in run(*asked, "--resume").err, "the network's code is part of what was asked"
    ran = run(*asked[:2], "--model", f"{net}:mak", "--weights", "random")
    assert ran.code == 2
    assert "no 'mak' in" in ran.err
