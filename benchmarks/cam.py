"""What a class activation map costs beyond the forward pass that it needs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Line, absolute_line, interleaved, main, ratio_line
from r2viz.attribution import cam_maps
from r2viz.models.model import Model, load

PICTURE = Path(__file__).parents[1] / "examples" / "cat.jpg"
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def measure() -> list[Line]:
    """All lines, cheapest first."""
    torch.manual_seed(0)
    lines = [_cold("r2viz --help", ["-m", "r2viz", "--help"]), _cold("import r2viz", ["-c", "import r2viz"])]
    models = [load(name, weights="random") for name in ("resnet50", "res2net50_26w_4s")]
    lines.append(_command(models))
    batch = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)
    for model in models:
        module = model.module

        def bare(module: torch.nn.Module = module) -> None:
            with torch.inference_mode():
                module(batch)

        for layers, bar in ((["layer4"], 1.10), (LAYERS, 2.2)):
            name = layers[0] if len(layers) == 1 else "layer1…layer4"
            seconds = interleaved(lambda m=module, at=layers: cam_maps(m, batch, targets=0, layers=at), bare)  # type: ignore[misc]
            lines.append(
                ratio_line(f"{model.title}: cam_maps {name}, batch 16, 224 px / bare forward", seconds, at_most=bar)
            )
    lines.append(_growth(models[1]))
    return lines


def _cold(work: str, arguments: list[str]) -> Line:
    """A fresh interpreter, disk warm; that neither torch nor matplotlib is imported is a test."""
    seconds = []
    for _ in range(12):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begun)
    return absolute_line(f"{work} in a fresh interpreter", seconds[1:], "s", at_most=0.3)


def _command(models: list[Model]) -> Line:
    picture = torch.randn(1, 3, 224, 224).to(memory_format=torch.channels_last)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "r2viz", "cam", str(PICTURE), "--weights", "random", "-o", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def peer() -> None:
        subprocess.run([sys.executable, "-c", "import torch, torchvision, matplotlib.figure"], check=True)
        with torch.inference_mode():
            for model in models:
                model.module(picture)

    work = "r2viz cam, one picture / imports plus two bare forwards"
    return ratio_line(work, interleaved(ours, peer, pairs=9), at_most=1.8)


def _growth(model: Model) -> Line:
    """Resident memory after 200 calls over that after 20."""
    batch = torch.randn(1, 3, 96, 96)
    sizes = []
    for number in range(220):
        cam_maps(model.module, batch, targets=0, layers=LAYERS)
        if number >= 20:
            gc.collect()
            sizes.append(_resident())
    growth = float(np.median(sizes[-20:]) - np.median(sizes[:20]))
    return absolute_line("memory growth over 200 calls, Res2Net-50, four layers", [growth], "MB", at_most=5)


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main("benchmarks.cam", measure)
