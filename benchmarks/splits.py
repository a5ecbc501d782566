"""What statistics of splits cost beside the forward pass that they look at, and whether memory stays flat.

All pictures at 224 px, 16 at once, channels-last. Figures are of this machine and this run. `--only PATTERN` measures
some parts, `--quick` takes fewer pictures.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Line, main, ratio_line, rounds
from r2viz.models.model import load
from r2viz.partition.causal import ablate
from r2viz.partition.measure import Measured, families, measure
from r2viz.partition.places import blocks

NETWORKS = ("res2net50_26w_4s", "resnet50")
BATCH = 16

QUICK = "--quick" in sys.argv
if QUICK:
    sys.argv.remove("--quick")

PICTURES = 64 if QUICK else 256
FEW, MANY = (32, 256) if QUICK else (64, 1024)


def _batches(count: int) -> Iterator[Tensor]:
    """Random pictures, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // BATCH):
        drawn = torch.randn(BATCH, 3, 224, 224, generator=generator)
        yield drawn.contiguous(memory_format=torch.channels_last)


def _times(name: str) -> list[Line]:
    """Watched and bare, batch by batch: each round is one batch, all sides of which see the same pictures."""
    model = load(name, weights="random")
    module, batch = model.module, next(_batches(BATCH))
    places = blocks(module, name=name)

    def bare() -> None:
        with torch.inference_mode():
            module(batch)

    def watched(statistics: Sequence[str] | None) -> Callable[[], object]:
        held = Measured(places, families(statistics, labelled=False))
        return lambda: held.take(module, batch)

    sides = {"bare": bare, "moments": watched(["moments"]), "all": watched(None)}
    seconds = rounds(sides, PICTURES // BATCH)
    work = f"{model.title}: {PICTURES} pictures, batch {BATCH}"
    lines = []
    for side, what, at_most in (
        ("moments", "moments, sparsity, energy, dead channels", 1.25),
        ("all", "with covariance, spectra, quantiles, CKA", 2.0),
    ):
        both = np.stack([seconds[side], seconds["bare"]], axis=1)
        lines.append(ratio_line(f"{work}: {what} / bare forward", both, at_most=at_most))
    return lines


def _causal(name: str) -> list[Line]:
    """All splits of `layer4` put to zero in turn, the pass without a change included; each round is one batch."""
    model = load(name, weights="random")
    module, batch = model.module, next(_batches(BATCH))
    places = blocks(module, name=name, layers=["layer4"], permuted=False)

    def bare() -> None:
        with torch.inference_mode():
            module(batch)

    seconds = rounds(
        {"ours": lambda: ablate(module, batch, places=places, interventions=["zero"]), "bare": bare}, 3 if QUICK else 9
    )
    splits = sum(len(block.parts) for block in places)
    both = np.stack([seconds["ours"], seconds["bare"]], axis=1)
    work = f"{model.title}: all {splits} splits of layer4 ablated, batch {BATCH} / bare forward"
    return [ratio_line(work, both, at_most=2.0, note="with the base pass, cutting and folding")]


def _memory(name: str) -> list[Line]:
    """Peaks of processes of their own, above the loaded network."""
    found = np.array([[_peak(name, count) for count in (MANY, FEW)]])
    work = f"{load(name, weights='random').title}: peak memory of all statistics, {MANY} / {FEW} pictures"
    line = ratio_line(work, found, at_most=1.1, note="above the loaded network; 512 pictures' channel means are kept")
    return [replace(line, unit="MB")]


def _peak(name: str, count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.splits", "--peak", name, str(count)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _alone(name: str, count: int) -> float:
    """MB at the peak of measuring, in this process (Linux)."""
    from benchmarks.memory import _status

    module = load(name, weights="random").module
    with torch.inference_mode():
        module(next(_batches(BATCH))[:1])  # what is loaded at first use is not the work's
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    measure(module, _batches(count), name=name)
    return _status("VmHWM") - before


PARTS: dict[str, Callable[[], list[Line]]] = {}
for _name in NETWORKS:
    PARTS |= {f"time {_name}": partial(_times, _name), f"memory {_name}": partial(_memory, _name)}
PARTS["causal"] = partial(_causal, NETWORKS[0])

if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(_alone(sys.argv[2], int(sys.argv[3])))
    else:
        main("benchmarks.splits", PARTS)
