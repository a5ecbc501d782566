"""What the table's networks cost to build and load, that each is what it is said to be, and how fast they run."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import Line, absolute_line, interleaved, main, ratio_line
from r2viz.models import count
from r2viz.models.row import Row
from r2viz.models.zoo import ZOO

FASTEST = ("res2net50_26w_4s", "res2net50_48w_2s", "res2net50_14w_8s", "res2net101_26w_4s", "res2next50")
SIZE = 100  # odd at every stage: a wrong padding or pooling flag shows at the border

# In a process of its own: what earlier loads leave in memory would hide what this one takes.
_LOADING = """
import ctypes, gc, sys
import torch
from safetensors.torch import save_file
from r2viz.models import model
from r2viz.models.zoo import ZOO

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

folder, names = sys.argv[1], sys.argv[2:]
torch.set_num_threads(1)
model.load("res2net26_mini")  # imports at first use
for name in names:
    with torch.device("meta"):
        shapes = ZOO[name].build().state_dict()
    state = {key: torch.ones(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    size = sum(tensor.nbytes for tensor in state.values())
    save_file(state, f"{folder}/x.safetensors")
    del state
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by the line above must not serve the load unseen
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = peak()
    loaded = model.load(name, weights=f"{folder}/x.safetensors")
    print(name, (peak() - before) / size, flush=True)
    del loaded
"""


def measure() -> list[Line]:
    """All lines: counts, equality, building and loading of every row, then the speed of the most used five."""
    torch.manual_seed(0)
    lines: list[Line] = []
    peaks = _loading()
    for name, row in ZOO.items():
        lines += _costs(name, row)
        lines.append(_building(name, row))
        if name in peaks:
            lines.append(absolute_line(f"{name}: peak memory of loading / model", [peaks[name]], "×", at_most=1.3))
    for name, row in ZOO.items():
        if row.oracle:
            lines.append(_equality(name, row))
    lines += [_speed(name, ZOO[name]) for name in FASTEST]
    return lines


def _costs(name: str, row: Row) -> list[Line]:
    """Counted beside what the table says."""
    with torch.device("meta"):
        module = row.build()
    found = []
    for what, counted, told in (
        ("parameters", count.params(module), row.params),
        ("multiply-adds", count.macs(module, row.size), row.macs),
    ):
        ratio, same = counted / told, counted == told
        note = f"{counted:,}" + ("" if what == "parameters" else f" at {row.size[0]} px")
        found.append(
            Line(f"{name}: {what}", counted / 1e6, told / 1e6, "M", ratio, ratio, ratio, 1, "equal", same, note)
        )
    return found


def _building(name: str, row: Row) -> Line:
    """As `load` builds it for weights from a file; the factory's module is imported, as torch is."""
    seconds = []
    for _ in range(4):
        gc.collect()
        begun = time.perf_counter()
        with torch.device("meta"):
            row.build()
        seconds.append(time.perf_counter() - begun)
    return absolute_line(f"{name}: building", seconds[1:], "s", at_most=1.0)


def _loading() -> dict[str, float]:
    """Peak of resident memory that loading a safetensors file adds, over the model's size, by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _LOADING, folder, *ZOO]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return {name: float(peak) for name, peak in (line.split() for line in done.stdout.splitlines())}


def _equality(name: str, row: Row) -> Line:
    """The same numbers in ours and in timm's or torchvision's: the largest difference of logits, over the largest."""
    with torch.device("meta"):
        ours, theirs = row.build(), elsewhere(str(row.oracle))
    keys = {key: value.shape for key, value in ours.state_dict().items()}
    same = keys == {key: value.shape for key, value in theirs.state_dict().items()}
    difference = float("inf")
    if same:
        state = _numbers(ours)
        logits = []
        batch = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        for module in (ours, theirs):
            module.load_state_dict(state, strict=True, assign=True)
            with torch.inference_mode():
                logits.append(module.eval()(batch))
        difference = float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())
    note = f"beside {row.oracle}, {SIZE} px; {len(keys)} keys and shapes {'equal' if same else 'DIFFER'}"
    return absolute_line(f"{name}: largest difference of logits", [difference], "", at_most=1e-5, note=note)


def elsewhere(oracle: str) -> nn.Module:
    """The network that `"timm:NAME"` or `"torchvision:NAME"` is, without weights."""
    library, _, called = oracle.partition(":")
    if library == "torchvision":
        import torchvision

        more = {"init_weights": False} if called == "inception_v3" else {}
        return torchvision.models.get_model(called, weights=None, **more)
    import timm

    found = timm.create_model(called, pretrained=False)
    for part in found.modules():
        if called.startswith("dla") and isinstance(part, nn.MaxPool2d):
            part.ceil_mode = True  # else it stops with an error at this size (see r2viz.models.dla.Tree)
    return found


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    """A state dict as after a training: normalisations have statistics and affine parts of their own."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = torch.ones(tensor.shape, dtype=tensor.dtype)
        elif tensor.ndim > 1:
            state[key] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:
            middle = 0.0 if key.endswith(("bias", "mean")) else 0.9
            state[key] = middle + torch.rand(tensor.shape, generator=generator) - 0.5
    return state


def _speed(name: str, row: Row) -> Line:
    ours = row.build().eval()
    theirs = elsewhere(str(row.oracle)).eval()
    theirs.load_state_dict(ours.state_dict())
    batch = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)
    for module in (ours, theirs):
        module.to(memory_format=torch.channels_last)

    def run(module: nn.Module) -> None:
        with torch.inference_mode():
            module(batch)

    seconds = interleaved(lambda: run(ours), lambda: run(theirs), pairs=11)
    work = f"{name}: forward, batch 16, 224 px / timm's"
    return ratio_line(work, seconds, at_most=1.0)


if __name__ == "__main__":
    main("benchmarks.zoo", measure)
