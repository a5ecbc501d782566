"""Writes docs/methods.md, every method and where it can be used: `python docs/draw_methods.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.attribution import METHODS, cam_maps
from r2viz.cli.methods import NEEDS
from r2viz.errors import ModelError

TARGET = Path(__file__).with_name("methods.md")
HEAD = """# Methods

Written by `python docs/draw_methods.py`; a test holds it to what the code does.

Maps are signed, float32, at the layer's own resolution and never rescaled, unless the note says so; the ReLU of the
published formulas is a view of the map. `needs` is what a map costs beside the forward pass that all methods share.
The equation and every departure from its source stand in the function's docstring.
"""
FEWER = """
## Fewer channels

Score-CAM, SS-CAM and IS-CAM need 1, 35 and 10 whole passes per channel. With `--channels K` they look only at the K
channels that vary most over the picture, the others weigh nothing, and `--method all` takes 128 unless told otherwise.
What Score-CAM's map loses: its rank correlation, after the ReLU, with the map of all 640 channels of `layer4`, the
mini pair on six pictures of `examples/` (bison to koala) with each network's own top-1 class, lowest and median.

| channels | ResNet-26 mini | Res2Net-26 mini | passes |
|---|---|---|---|
| 16 | 0.74, 0.94 | 0.77, 0.91 | 2.5 % |
| 32 | 0.85, 0.95 | 0.73, 0.94 | 5 % |
| 64 | 0.88, 0.97 | 0.87, 0.99 | 10 % |
| 128 | 0.96, 1.00 | 0.98, 1.00 | 20 % |
| 256 | 0.99, 1.00 | 0.99, 1.00 | 40 % |
| 384 | 1.00, 1.00 | 1.00, 1.00 | 60 % |

With 128 channels IS-CAM of Res2Net-26 mini keeps 0.97 at least (four pictures), SS-CAM 0.97 (one). A share of the
variance instead of a number is no better: half of it is 22 to 79 channels and keeps 0.82 at least.

With random weights a choice of channels is another map: a few channels carry the softmax, and they need not be among
those that vary most. Of a ResNet-50 with 2048 channels (3 x 3 positions, three pictures) 128 keep 0.20 and 1024 keep
0.88 at least. Compare untrained networks with all channels.

Ablation-CAM right before the pooling takes all channels, whatever K is: there they cost nothing.
"""


@dataclass(frozen=True)
class Structure:
    """A kind of network, built as small as its definition allows.

    Attributes:
        factory: `module:function`.
        arguments: that make it small.
        layer: where its last features are.
        size: side of the picture, in pixels.
        like: the factory of the networks in the zoo that it stands for, where that is another.
    """

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    layer: str = "layer4"
    size: int = 64
    like: str = ""

    def build(self) -> nn.Module:
        """Seeded fresh weights, with normalisations that have seen something."""
        room, _, function = self.factory.partition(":")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = getattr(import_module(room), function)(**self.arguments, num_classes=7)
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    nn.init.uniform_(part.weight, 0.6, 1.4)
                    nn.init.normal_(part.bias, 0, 0.3)
        return module.eval()


_ONE: dict[str, Any] = {"depths": (1, 1, 1, 1), "widths": (16, 32, 48, 64)}
_TWO: dict[str, Any] = {"depths": (2, 2, 2, 2)}
_RES = "r2viz.models.resnet:res"
_CIFAR: dict[str, Any] = {"cardinality": 2, "width": 8, "depth": 11}

STRUCTURES: dict[str, Structure] = {
    "ResNet": Structure(f"{_RES}net", _ONE),
    "ResNeXt": Structure(f"{_RES}net", {**_ONE, "groups": 8, "base_width": 16}),
    "SE-ResNet": Structure(f"{_RES}net", {**_ONE, "attention": "se"}),
    "Res2Net": Structure(f"{_RES}2net", {**_ONE, "base_width": 26, "scale": 4}),
    "Res2NeXt": Structure(f"{_RES}2net", {**_ONE, "base_width": 16, "scale": 4, "groups": 2}),
    "Res2Net v1b": Structure(
        f"{_RES}2net", {**_ONE, "base_width": 26, "scale": 4, "stem": "deep", "shortcut": "avgpool"}
    ),
    "SE-Res2Net": Structure(f"{_RES}2net", {**_ONE, "base_width": 26, "scale": 4, "attention": "se"}),
    "ResNeXt for CIFAR": Structure("r2viz.models.cifar:resnext", _CIFAR, "layer3", 16),
    "Res2NeXt for CIFAR": Structure("r2viz.models.cifar:resnext", {**_CIFAR, "scale": 4}, "layer3", 16),
    "SE-Res2NeXt for CIFAR": Structure(
        "r2viz.models.cifar:resnext", {**_CIFAR, "scale": 4, "attention": "se"}, "layer3", 16
    ),
    "DLA": Structure("r2viz.models.dla:dla", {"widths": (4, 8, 16, 32, 48, 64)}, "level5"),
    "Res2Net-DLA": Structure("r2viz.models.dla:res2net_dla", {"widths": (4, 8, 16, 32, 48, 64)}, "level5"),
    "bLResNet": Structure("r2viz.models.biglittle:bl_resnet", {**_TWO, "alpha": 2, "beta": 4}, size=48),
    "bLRes2Net": Structure(
        "r2viz.models.biglittle:bl_res2net",
        {**_TWO, "alpha": 2, "beta": 4, "base_width": 26, "scale": 4},
        size=48,
    ),
    "DenseNet": Structure(
        "torchvision.models.densenet:DenseNet",
        {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
        "features",
        like="torchvision.models:densenet161",
    ),
    "Inception": Structure("torchvision.models:inception_v3", {"init_weights": False}, "Mixed_7c", 75),
}
"""What the networks of the table are instances of; `tests/test_methods.py` asks that none is missing."""


def outcomes(structure: Structure) -> Iterator[tuple[str, Tensor | ModelError]]:
    """For every method its map of one picture, or the error that says why there is none."""
    module = structure.build()
    batch = torch.randn(1, 3, structure.size, structure.size, generator=torch.Generator().manual_seed(0))
    for name in METHODS:
        try:
            (found,) = cam_maps(module, batch, layers=[structure.layer], targets=1, method=name, channels=1).values()
            yield name, found
        except ModelError as error:
            yield name, error


def page(found: dict[str, dict[str, Tensor | ModelError]]) -> str:
    """The text of docs/methods.md."""
    lines = [HEAD, "| name | method | source | needs | of a class | note |", "|---|---|---|---|---|---|"]
    for name, row in METHODS.items():
        cells = (f"`{name}`", row.title, row.citation, NEEDS[row.needs], "yes" if row.per_class else "no", row.note)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Methods and networks",
        "",
        "At the last features of each kind of network, small, with fresh weights; `–` where the method's definition",
        "does not allow it, and the error message says why.",
        "",
        f"| | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    for name in METHODS:
        cells = ["–" if isinstance(kind[name], ModelError) else "•" for kind in found.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines.append("")
    return "\n".join(lines) + FEWER


def main() -> None:
    """Everything on every structure, then the page."""
    found = {title: dict(outcomes(structure)) for title, structure in STRUCTURES.items()}
    broken = [
        f"{title}: {name}"
        for title, maps in found.items()
        for name, map_ in maps.items()
        if isinstance(map_, Tensor) and not math.isfinite(float(map_.sum()))
    ]
    if broken:
        raise SystemExit(f"not finite: {', '.join(broken)}")
    TARGET.write_text(page(found), encoding="utf-8")
    print(f"docs/{TARGET.name}")


if __name__ == "__main__":
    main()
