"""What class activation maps cost: beside the forward pass that they need, and beside every peer.

Peers come from the extra `bench`; all networks and batches are in channels-last order. Figures are of this machine and
this run. `--only PATTERN` measures some parts.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.harness import Line, absolute_line, interleaved, main, ratio_line, rounds, say, speed_line
from r2viz.attribution import cam_maps
from r2viz.attribution.perturbation import scorecam
from r2viz.attribution.rerun import Rerun
from r2viz.attribution.scores import score_of
from r2viz.models.model import Model, load

PICTURE = Path(__file__).parents[1] / "examples" / "cat.jpg"
LAYERS = ["layer1", "layer2", "layer3", "layer4"]
NETWORKS = ("resnet50", "res2net50_26w_4s")
CHANNELS = 64
"""Channels of the 2048 that methods of many passes are timed on; seconds are scaled to all of them."""
FEW = 8
"""Channels that tell what a call costs beside its passes."""


@cache
def _model(name: str) -> Model:
    torch.manual_seed(0)
    return load(name, weights="random")


def _noise(count: int, size: int = 224) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator).to(memory_format=torch.channels_last)


def _bare(module: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(batch)


def _apart(found: Tensor, expected: Tensor, *, clipped: bool = False) -> float:
    """The largest difference, over the largest value."""
    found = found.clamp(min=0) if clipped else found
    return float((found - expected).abs().max() / expected.abs().max())


# --- Gradients -------------------------------------------------------------------------------------------------------

# (peer, how): at least so many times as fast; plain, compiled.
_ONE_LAYER = {
    ("pytorch-grad-cam", "as documented"): (3.5, 4.5),
    ("captum", "as documented"): (1.7, 1.2),
    ("torch-cam", "as documented"): (1.7, 1.2),
    ("pytorch-grad-cam", "at its best"): (0.98, 1.2),
    ("captum", "at its best"): (0.98, 1.2),
    ("torch-cam", "at its best"): (0.98, 1.2),
}
_FOUR_LAYERS = {
    ("pytorch-grad-cam", "as documented"): (2.0, 2.4),
    ("torch-cam", "as documented"): (1.35, 1.6),
    ("pytorch-grad-cam", "at its best"): (0.98, 1.0),
    ("torch-cam", "at its best"): (0.98, 1.0),
}


def _gradcam(name: str, layers: Sequence[str]) -> list[Line]:
    """Grad-CAM of 16 pictures, plain and compiled, beside the bare forward pass and the peers."""
    from benchmarks.peers import gradcam_peers

    model, batch = _model(name), _noise(16)
    module, bars = model.module, _ONE_LAYER if len(layers) == 1 else _FOUR_LAYERS
    what = f"{model.title}: Grad-CAM {'layer4' if len(layers) == 1 else 'layer1…4'}, batch 16"
    peers = gradcam_peers(module, batch, layers)
    begun = time.perf_counter()
    compiled = cam_maps(module, batch, targets=0, layers=layers, compile=True)
    wait = time.perf_counter() - begun
    begun = time.perf_counter()
    cam_maps(module, batch, targets=0, layers=layers, fold=True)  # by itself it comes after some 32 pictures
    folding = time.perf_counter() - begun
    say(f"  compiled in {wait:.0f} s, folded in {folding:.1f} s")
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: cam_maps(module, batch, targets=0, layers=layers),
        "compiled": lambda: cam_maps(module, batch, targets=0, layers=layers, compile=True),
        "bare": lambda: _bare(module, batch),
        **{peer.title: peer.run for peer in peers},
    }
    seconds = rounds(sides)
    ours = cam_maps(module, batch, targets=0, layers=layers)
    at_most = 1.10 if len(layers) == 1 else 2.0
    pairs = np.stack([seconds["ours"], seconds["bare"]], axis=1)
    note = f"normalisations are folded, as for every network that has seen 32 such pictures: {folding:.1f} s, once"
    lines = [ratio_line(f"{what} / bare forward", pairs, at_most=at_most, note=note)]
    raw = {peer.title: peer.raw() for peer in peers}
    for mode, maps, place in (("", ours, 0), (" compiled", compiled, 1)):
        for peer in peers:
            far = max(_apart(maps[at], raw[peer.title][at], clipped=peer.clipped) for at in layers)
            note = f"largest difference to its raw map{'s' * (len(layers) > 1)}: {far:.1e} of the largest value"
            note += f"; compiled in {wait:.0f} s, once" if mode else ""
            mine = seconds[mode.strip() or "ours"]
            bar = bars[peer.name, peer.how][place]
            lines.append(speed_line(f"{what}{mode}: {peer.title}", mine, seconds[peer.title], at_least=bar, note=note))
    return lines


def _classes(name: str) -> list[Line]:
    model, picture = _model(name), _noise(1)

    def maps(targets: list[list[int]]) -> None:
        cam_maps(model.module, picture, targets=torch.tensor(targets), layers=["layer4"])

    seconds = interleaved(lambda: maps([list(range(10))]), lambda: maps([[0]]), pairs=21)
    return [ratio_line(f"{model.title}: Grad-CAM layer4, one picture: 10 classes / one class", seconds, at_most=1.2)]


def _plus_plus(name: str) -> list[Line]:
    """Grad-CAM++ by the published formula in float64: a peer that is wrong is no reference."""
    from torchcam.methods import GradCAMpp

    model, picture = _model(name), _noise(1)
    ours = cam_maps(model.module, picture, targets=0, method="gradcam++")["layer4"]
    features = _features(model.module, picture).double().requires_grad_(True)
    weights = model.module.get_parameter("fc.weight").double()
    logit = features.mean(dim=(2, 3)) @ weights[0]
    (slope,) = torch.autograd.grad(logit.sum(), features)
    below = 2 * slope**2 + features.detach().sum(dim=(2, 3), keepdim=True) * slope**3
    alpha = torch.where(below != 0, slope**2 / below.where(below != 0, torch.ones_like(below)), 0.0)
    formula = ((alpha * slope.clamp(min=0)).sum(dim=(2, 3), keepdim=True) * features.detach()).sum(dim=1)
    with GradCAMpp(model.module, "layer4") as extractor:
        theirs = extractor(0, model.module(picture), normalized=False)[0]
    scaled = theirs / theirs.abs().max(), formula.clamp(min=0) / formula.abs().max()
    note = (
        f"torch-cam leaves α out: {_apart(scaled[0].double(), scaled[1]):.1e} from the formula, even at equal scale; "
        "not timed as a reference"
    )
    far = _apart(ours.double(), formula)
    return [
        absolute_line(f"{model.title}: Grad-CAM++ layer4: difference to formula", [far], "", at_most=1e-4, note=note)
    ]


# --- Perturbation ----------------------------------------------------------------------------------------------------


def _features(module: nn.Module, batch: Tensor, layer: str = "layer4") -> Tensor:
    from r2viz.attribution import forward_pass

    return forward_pass(module, batch, [layer]).activations[layer].detach()


def _most_varying(features: Tensor) -> Tensor:
    """The channels that r2viz looks at with `channels=CHANNELS`."""
    spread = features[0].flatten(1).var(dim=1, correction=0)
    return spread.sort(descending=True, stable=True).indices[:CHANNELS].sort().values


def _ablation(name: str) -> list[Line]:
    from benchmarks.peers import ablation_map

    model, picture = _model(name), _noise(1)
    module, total = model.module, 2048
    target = int(_bare(module, picture).argmax())
    some = _most_varying(_features(module, picture)).tolist()

    def ours() -> Tensor:
        return cam_maps(module, picture, targets=target, method="ablationcam")["layer4"][0]

    mine, theirs = [], []
    ours()
    for number in range(9):
        begun = time.perf_counter()
        ours()
        mine.append(time.perf_counter() - begun)
        if number < 2:
            took = []
            for channels in ([], some):
                begun = time.perf_counter()
                map_ = ablation_map(module, picture, "layer4", target, channels)
                took.append(time.perf_counter() - begun)
            theirs.append(took[0] + (took[1] - took[0]) * total / len(some))
    mine_off = _apart(ours(), _ablated(module, picture, target))
    its_off = _apart(map_, _ablated(module, picture, target, some))
    note = (
        f"timed twice on {len(some)} of {total} channels and scaled; largest difference to the formula in double "
        f"precision, of the largest value: ours {mine_off:.1e} on all channels, its {its_off:.1e} on those"
    )
    peer = np.full(len(mine), np.mean(theirs))
    work = f"{model.title}: Ablation-CAM layer4, one picture: pytorch-grad-cam"
    return [speed_line(work, np.array(mine), peer, at_least=500, note=note)]


def _ablated(module: nn.Module, picture: Tensor, target: int, channels: Sequence[int] | None = None) -> Tensor:
    """Ablation-CAM before pooling and a linear head in double precision: `Σ_k w_k mean(A_k) A_k / |y|`, `(h, w)`."""
    features = _features(module, picture)[0].double()
    head = module.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    weights = head.weight[target].detach().double() * features.mean(dim=(1, 2))
    score = weights.sum() + head.bias[target].detach().double()
    kept = list(range(len(features)) if channels is None else channels)
    return (torch.einsum("k,khw->hw", weights[kept], features[kept]) / score.abs()).float()


def _score(name: str) -> list[Line]:
    from benchmarks.peers import score_peers

    model, picture = _model(name), _noise(1)
    module = model.module
    features = _features(module, picture)
    some = _most_varying(features)
    peers = score_peers(module, picture, "layer4", 0, some)
    few = score_peers(module, picture, "layer4", 0, some[:FEW])
    cam_maps(module, picture, targets=0, fold=True)  # by itself it comes after some 32 pictures

    def ours(channels: int) -> Callable[[], object]:
        return lambda: cam_maps(module, picture, targets=0, method="scorecam", channels=channels)

    sides = {"ours": ours(CHANNELS), **{peer.title: peer.run for peer in peers}}
    sides |= {"few ours": ours(FEW), **{f"few {peer.title}": peer.run for peer in few}}
    taken = rounds(sides, 5)
    # What a call costs whatever it looks at is not multiplied.
    more = (2048 - CHANNELS) / (CHANNELS - FEW)
    seconds = {
        name: taken[name] + (taken[name] - taken[f"few {name}"]) * more for name in ("ours", *(p.title for p in peers))
    }
    fastest = min(peers, key=lambda peer: float(np.median(seconds[peer.title])))
    with torch.inference_mode():
        score = score_of(0, _bare(module, picture))
        base = score(_bare(module, picture), torch.zeros(1, dtype=torch.long))
    rerun = Rerun(module, "layer4", _point(module), picture, features, base, score, channels=CHANNELS)
    lines = []
    for peer in peers:
        # Each peer's own way to enlarge and scale masks, so that the maps can be compared.
        own = scorecam(rerun, corners=True) if peer.name != "torch-cam" else scorecam(rerun, order="normalise")
        far = _apart(own, peer.raw()["layer4"], clipped=peer.clipped)
        note = (
            f"timed on {FEW} and {CHANNELS} of 2048 channels and scaled; normalisations are folded, as for every "
            "network that has seen 32 such pictures; largest difference to its raw map, masks made "
            f"its way: {far:.1e} of the largest value" + ("; the fastest peer" if peer is fastest else "")
        )
        work = f"{model.title}: Score-CAM layer4, one picture: {peer.title}".rstrip()
        bar = 1.3 if peer is fastest else 1.0
        lines.append(speed_line(work, seconds["ours"], seconds[peer.title], at_least=bar, note=note))
    return lines


def _point(module: nn.Module, layer: str = "layer4"):  # type: ignore[no-untyped-def]
    from r2viz.taps import point

    return point(module, layer)


# --- Memory ----------------------------------------------------------------------------------------------------------


def _peaks(name: str) -> list[Line]:
    title = _model(name).title
    # A process each; from one to the next it changes by a few megabytes.
    found = {
        work: np.array([memory.peak(work, name) for _ in range(1 if work.startswith("score") else 3)])
        for work in memory.WORKS
    }
    batch = np.stack([found["gradcam"], found["bare"]], axis=1)
    work = f"{title}: peak memory above the loaded network, Grad-CAM layer4, batch 64 / bare forward"
    lines = [_in_megabytes(ratio_line(work, batch, at_most=1.3))]
    for peer in ("pytorch-grad-cam", "torch-cam"):
        note = f"after {memory.CHANNELS} of 2048 channels; goes on growing" if peer == "pytorch-grad-cam" else ""
        work = f"{title}: peak memory above the loaded network, Score-CAM layer4: {peer}"
        lines.append(speed_line(work, found["score"], found[f"score {peer}"], at_least=3, unit="MB", note=note))
    return lines


def _in_megabytes(line: Line) -> Line:
    from dataclasses import replace

    return replace(line, unit="MB")


def _growth() -> list[Line]:
    """Resident memory after 200 calls over that after 20."""
    batch = torch.randn(1, 3, 96, 96)
    module, sizes = _model("res2net50_26w_4s").module, []
    cam_maps(module, batch, targets=0, layers=LAYERS, fold=True)  # its copy of the weights is no growth
    for number in range(220):
        cam_maps(module, batch, targets=0, layers=LAYERS)
        if number >= 20:
            gc.collect()
            sizes.append(_resident())
    growth = float(np.median(sizes[-20:]) - np.median(sizes[:20]))
    return [absolute_line("memory growth over 200 calls, Res2Net-50, four layers", [growth], "MB", at_most=5)]


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- The command line ------------------------------------------------------------------------------------------------


def _cold() -> list[Line]:
    """A fresh interpreter, disk warm; that neither torch nor matplotlib is imported is a test."""
    lines = []
    for work, arguments in (("r2viz --help", ["-m", "r2viz", "--help"]), ("import r2viz", ["-c", "import r2viz"])):
        seconds = []
        for _ in range(12):
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begun)
        lines.append(absolute_line(f"{work} in a fresh interpreter", seconds[1:], "s", at_most=0.3))
    return lines


def _command() -> list[Line]:
    picture = _noise(1)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "r2viz", "cam", str(PICTURE), "--weights", "random", "-o", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def peer() -> None:
        subprocess.run([sys.executable, "-c", "import torch, torchvision, matplotlib.figure"], check=True)
        for name in NETWORKS:
            _bare(_model(name).module, picture)

    work = "r2viz cam, one picture / imports plus two bare forwards"
    return [ratio_line(work, interleaved(ours, peer, pairs=9), at_most=1.8)]


PARTS: dict[str, Callable[[], list[Line]]] = {"start": _cold, "command": _command}
for _name in NETWORKS:
    PARTS |= {
        f"layer4 {_name}": partial(_gradcam, _name, ["layer4"]),
        f"layer1-4 {_name}": partial(_gradcam, _name, LAYERS),
        f"classes {_name}": partial(_classes, _name),
        f"plusplus {_name}": partial(_plus_plus, _name),
        f"ablation {_name}": partial(_ablation, _name),
        f"score {_name}": partial(_score, _name),
        f"memory {_name}": partial(_peaks, _name),
    }
PARTS["growth"] = _growth

if __name__ == "__main__":
    main("benchmarks.cam", PARTS)
