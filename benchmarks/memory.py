"""How much memory a piece of work takes at most beyond the loaded network, in a process of its own (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys

CHANNELS = 32
"""Of Score-CAM: more change r2viz's and torch-cam's peak little; pytorch-grad-cam keeps every masked batch."""

WORKS = ("bare", "gradcam", "score", "score pytorch-grad-cam", "score torch-cam")


def peak(work: str, network: str) -> float:
    """MB at the peak of `work`, one of `WORKS`, over what was there before it."""
    command = [sys.executable, "-m", "benchmarks.memory", work, network]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


class _Enough(Exception):
    """A peer has run for as many channels as were wanted."""


def _main(work: str, network: str) -> float:
    import torch

    from r2viz.attribution import cam_maps
    from r2viz.models.model import load

    torch.manual_seed(0)
    module = load(network, weights="random").module
    count = 64 if work in ("bare", "gradcam") else 1
    batch = torch.randn(count, 3, 224, 224).to(memory_format=torch.channels_last)
    if work.startswith("score "):
        from benchmarks import peers

        peers._quiet()
    with torch.inference_mode():
        module(batch[:1])  # what is loaded at first use is not the work's
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    if work == "bare":
        with torch.inference_mode():
            module(batch)
    elif work == "gradcam":
        cam_maps(module, batch, targets=0, layers=["layer4"])
    elif work == "score":
        cam_maps(module, batch, targets=0, layers=["layer4"], method="scorecam", channels=CHANNELS)
    elif work == "score torch-cam":
        with peers.TorchScoreCAM(module, "layer4") as extractor, torch.inference_mode():
            module(batch)
            extractor.hook_a[0] = extractor.hook_a[0][:, :CHANNELS]
            extractor(0, normalized=False)
    else:
        seen = 0

        def target(output: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += 1
            if seen > CHANNELS:
                raise _Enough
            return output[0]

        # It makes all masks first and stops after so many channels: the peak of the whole is larger.
        try:
            with peers.ScoreCAM(module, [module.get_submodule("layer4")]) as cam:
                cam(batch, [target])
        except _Enough:
            pass
    return _status("VmHWM") - before


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    # The allocator's habit of giving every thread an arena would be measured, not the work.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    print(_main(*sys.argv[1:3]))
