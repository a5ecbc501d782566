"""What effective receptive fields cost: beside OpenERF's package, a plain loop, and the bare forward pass.

OpenERF is run as the package runs it: a folder of pictures, one at a time, on the network in the memory order it is
built in. The plain loop is RepLKNet's measure by `loss.backward()`. Figures are of this machine and this run; `--only
PATTERN` measures some parts.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.harness import Line, absolute_line, main, ratio_line, rounds, speed_line
from r2viz.models.model import Model, load
from r2viz.models.zoo import row
from r2viz.receptive import trace
from r2viz.receptive.measured import measure, noise

NETWORKS = ("resnet50", "res2net50_26w_4s")

# In a process of its own: what earlier work leaves in memory would hide what this one takes.
_PEAK = """
import sys
import torch
from benchmarks.memory import _status
from r2viz.models.model import load
from r2viz.receptive.measured import measure, noise

torch.manual_seed(0)
module = load(sys.argv[1], weights="random").module
measure(module, noise((224, 224), 1))
before = _status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
measure(module, noise((224, 224), int(sys.argv[2])))
print(_status("VmHWM") - before)
"""


@cache
def _model(name: str) -> Model:
    torch.manual_seed(0)
    return load(name, weights="random")


def _as_built(module: nn.Module) -> nn.Module:
    """A copy in PyTorch's usual memory order, with gradients for its weights: what others run."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format).requires_grad_(True).eval()


def _noise(count: int, size: int) -> Tensor:
    return torch.cat(list(noise((size, size), count)))


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, over the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _pictures(name: str) -> list[Line]:
    """16 pictures of 224 pixels, the centre of layer4; for OpenERF all sides read the same files."""
    from openerf.data import build_timm_eval_transform

    from benchmarks.peers import openerf_map, plain_erf

    model, size, count = _model(name), 224, 16
    module, plain = model.module, _as_built(model.module)
    transform = build_timm_eval_transform(plain)[0]
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        random = np.random.default_rng(0)
        for number in range(count):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png")

        def read() -> Tensor:
            return torch.stack([transform(Image.open(path)) for path in sorted(folder.iterdir())])

        batch = read()

        def ours(protocol: str, given: Tensor) -> np.ndarray:
            return measure(module, given, protocol=protocol)[0].map

        def bare() -> None:
            with torch.inference_mode():
                module(batch.to(memory_format=torch.channels_last))

        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: ours("replknet", batch),
            "ours, from files": lambda: ours("openerf", read()),
            "bare": bare,
            "OpenERF": lambda: openerf_map(plain, folder, "layer4"),
            "loop": lambda: plain_erf(plain, batch, "layer4"),
        }
        seconds = rounds(sides)
        far = {
            "OpenERF": _apart(ours("openerf", batch), openerf_map(plain, folder, "layer4")),
            "loop": _apart(ours("replknet", batch), plain_erf(plain, batch, "layer4")),
        }
    what = f"{model.title}: ERF of layer4's centre, {count} pictures of {size} px"
    note = "largest difference to its map: {:.1e} of the largest value"
    return [
        speed_line(
            f"{what}: OpenERF",
            seconds["ours, from files"],
            seconds["OpenERF"],
            at_least=2,
            note=f"{note.format(far['OpenERF'])}; both read the files",
        ),
        speed_line(f"{what}: plain loop", seconds["ours"], seconds["loop"], at_least=3, note=note.format(far["loop"])),
        ratio_line(
            f"{what} / bare forward",
            np.stack([seconds["ours"], seconds["bare"]], axis=1),
            at_most=2.6,
            note="both have all pictures in memory",
        ),
    ]


def _large(name: str) -> list[Line]:
    """4 pictures of 1024 pixels, of which the unit's exact field is computed.

    Maps are compared in double precision: in single precision some ReLUs whose input is all but zero switch, and the
    loop's own map is further from its double one than ours is, as the note says.
    """
    from benchmarks.peers import plain_erf

    model, size, count = _model(name), 1024, 4
    module, plain, batch = model.module, _as_built(model.module), _noise(count, size)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: measure(module, batch, protocol="replknet"),
        "loop": lambda: plain_erf(plain, batch, "layer4"),
    }
    seconds = rounds(sides, 5)
    one = batch[:1]
    found = measure(module, one, protocol="replknet")[0]
    exact = plain_erf(copy.deepcopy(plain).double(), one.double(), "layer4")
    double = measure(copy.deepcopy(module).double(), one.double(), protocol="replknet")[0].map
    ours, loop = _apart(found.map, exact), _apart(plain_erf(plain, one, "layer4"), exact)
    what = f"{model.title}: ERF of layer4's centre, {count} pictures of {size} px: plain loop"
    y0, x0, y1, x1 = found.computed_on
    note = f"5 pairs, since the peer is slow; ours computes {y1 - y0} x {x1 - x0} px of each"
    apart = f"one picture; in single precision ours is {ours:.1e} from the double map, the loop {loop:.1e}"
    return [
        speed_line(what, seconds["ours"], seconds["loop"], at_least=4, note=note),
        absolute_line(
            f"{what}: difference / largest value, double", [_apart(double, exact)], "", at_most=1e-5, note=apart
        ),
    ]


def _theory(name: str) -> list[Line]:
    """Every tap and split of the deepest network: sizes with their path counts, once the graph is there."""
    with torch.device("meta"):
        module = row(name).build()
    seconds = []
    for _ in range(11):
        trace._fields.clear()
        begun = time.perf_counter()
        found = trace.fields(module)
        sizes = [field.sizes for field in found.values() if field is not None]
        seconds.append(time.perf_counter() - begun)
    most = max(map(len, sizes))
    note = f"{len(sizes)} taps, up to {most} sizes each"
    return [absolute_line(f"{name}: fields of every tap and split", seconds[1:], "s", at_most=0.2, note=note)]


def _memory(name: str) -> list[Line]:
    """Peak memory above the loaded network: 64 pictures beside 8."""
    peaks = np.array([[_peak(name, count) for count in (64, 8)] for _ in range(3)])
    work = f"{_model(name).title}: peak memory above the loaded network, ERF of 64 pictures / of 8"
    return [replace(ratio_line(work, peaks, at_most=1.1), unit="MB")]


def _peak(name: str, count: int) -> float:
    command = [sys.executable, "-c", _PEAK, name, str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


PARTS: dict[str, Callable[[], list[Line]]] = {"theory": partial(_theory, "res2net152_26w_4s")}
PARTS["1024 px"] = partial(_large, "resnet50")
for _name in NETWORKS:
    PARTS |= {f"224 px {_name}": partial(_pictures, _name), f"memory {_name}": partial(_memory, _name)}

if __name__ == "__main__":
    main("benchmarks.erf", PARTS)
