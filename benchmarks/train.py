"""What training the mini pair costs beyond forward passes, and one Grad-CAM of each network of it.

Where the step stands against its bar of 3.5 on an AMX CPU: not reliably met. In processor time, one thread, five
interleaved rounds on a busy machine, medians before -> now: ResNet 3.7 -> 3.8 (32 px), 4.0 -> 3.7 (48), 3.5 -> 3.0
(64); Res2Net 3.7 -> 3.3 (32); ratios of minima 3.4, 3.6, 3.3 and 3.5. Step against step: 0.9-1.0. Res2Net at 48 and
64 px was not measured with everything in place, nor was this whole file, for lack of a quiet machine.
A ResNet step at 64 px is made of: matrix products 36 %, batch normalisation 18 % backward and 11 % forward, oneDNN's
3x3 convolutions 9 and 6 %, copies 5 %, additions 4 %, ReLU 4 % (before: 14 %), pooling 2 %.
What did not help: portions that fit the cache between element-wise operations (they wait for conversions, not for
memory); compiled fusions of normalisation and ReLU (about as fast as ReLU by bits, and need a compiler); oneDNN's
normalisation (ten times slower on channels-last); unfolding maps of 12 or 16 pixels; transposing before products.
Untried: dropping the pass over the widest normalisations' input gradients by algebra on the products around them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import torch

from benchmarks.harness import Line, absolute_line, interleaved, main, ratio_line
from r2viz.attribution import cam_maps
from r2viz.models.pairs import pair
from r2viz.models.zoo import ZOO
from r2viz.training import loop as training
from r2viz.training.recipe import Recipe, draw, make, order
from r2viz.training.speed import keep_memory

BATCH = 256


def measure() -> list[Line]:
    """Steps at each picture size of the recipe, the share of time outside them, and the Grad-CAM."""
    keep_memory()
    torch.manual_seed(0)
    recipe = Recipe.of(13, 64)
    lines = []
    outside: list[float] = []
    place = training._Place(torch.device("cpu"), training._dtype("auto", torch.device("cpu")))
    with ExitStack() as stack:
        networks = training._networks(training._builders(pair("mini").models), 200, 0, recipe, place, stack)
        plain = {name: ZOO[name].build().eval().to(memory_format=torch.channels_last) for name in pair("mini").models}
        pixels = torch.randint(0, 256, (4 * BATCH, 64, 64, 3), dtype=torch.uint8)
        y = torch.randint(0, 200, (BATCH,))
        indices = order(0, 0, len(pixels))[:BATCH]
        for size, _ in recipe.phases:
            x = make(draw(recipe, 0, 0, 0, indices, 64), pixels, size)
            steps = 0.0
            for name, network in networks.items():

                def step(network: training._Network = network, x: torch.Tensor = x) -> None:
                    network.learn(x, y, 0.01, recipe, place)

                def forward(name: str = name, x: torch.Tensor = x) -> None:
                    with torch.inference_mode(), place.autocast():
                        plain[name](x)

                seconds = interleaved(step, forward, pairs=9)
                taken = float(np.median(seconds[:, 0]))
                steps += taken
                lines.append(
                    ratio_line(
                        f"{name}: training step, batch {BATCH}, {size} px / bare forward",
                        seconds,
                        at_most=3.5,
                        note=f"{BATCH / taken:.0f} pictures/s",
                    )
                )
            begun = time.perf_counter()
            for number in range(5):
                make(draw(recipe, 0, 0, number, indices, 64), pixels, size)
            making = (time.perf_counter() - begun) / 5
            outside.append(100 * making / (making + steps))
    lines.append(absolute_line("time outside forward, backward and update, worst size", [max(outside)], "%", at_most=8))
    lines.append(_pair_of_maps())
    return lines


def _pair_of_maps() -> Line:
    modules = [ZOO[name].build().eval().to(memory_format=torch.channels_last) for name in pair("mini").models]
    picture = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)

    def ours() -> None:
        for module in modules:
            cam_maps(module, picture, targets=0, layers=["layer4"])

    def peer() -> None:
        with torch.inference_mode():
            for module in modules:
                module(picture)

    seconds = interleaved(ours, peer, pairs=101)
    return ratio_line("Grad-CAM of the mini pair, one picture / two bare forwards", seconds, at_most=1.4)


if __name__ == "__main__":
    main("benchmarks.train", measure)
