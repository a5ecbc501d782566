"""A network's outline: its stages, blocks and splits, and what stands at every tap."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from r2viz.errors import UnknownName
from r2viz.models import count
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.receptive.trace import grids
from r2viz.taps import unwrapped

_NUMBERED = re.compile(r"(layer|stage|level)\d+")
_LAST_FEATURES = ("features", "Mixed_7c", "inception5b", "trunk_output", "conv5", "layers")
"""What torchvision calls the last part of a network before its pooling, where stages are not numbered."""


@dataclass(frozen=True)
class Tap:
    """A point whose maps an analysis may look at.

    Attributes:
        kind: class of the module.
        shape: (C, h, w).
        stride: (y, x), input pixels from one unit to the next; None where units have no place on the input.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    stride: tuple[float, float] | None


@dataclass(frozen=True)
class Block:
    """A residual block, or whatever a stage of a foreign network is made of.

    Attributes:
        splits: its splits as taps, in code order; empty for blocks without.
        cascade: whether a split adds the one before it; the first block of a stage does not.
    """

    tap: Tap
    splits: tuple[Tap, ...]
    cascade: bool


@dataclass(frozen=True)
class Stage:
    """A part of a network's top level, with the blocks that it is made of."""

    tap: Tap
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Outline:
    """Everything that `r2viz models show` tells: what is at the top level, and every tap there is."""

    stages: tuple[Stage, ...]
    taps: tuple[Tap, ...]


def outline(module: nn.Module, size: tuple[int, int]) -> Outline:
    """The outline of `module` for pictures of `size` (h, w); no value is computed, so it may be on the meta device."""
    taps = {tap.name: tap for tap in _taps(module, size)}
    stages = []
    for name, part in module.named_children():
        if name in taps:
            found = [(path, inner) for path, inner in _blocks(name, part) if path in taps]
            stages.append(Stage(taps[name], tuple(_block(path, inner, taps) for path, inner in found)))
    return Outline(tuple(stages), tuple(taps.values()))


def last_stage(module: nn.Module, *, called: str | None = None) -> str:
    """The tap that a network's last stage is: what a class activation map is of unless one says otherwise.

    Our assemblies and timm's networks say it themselves; of others it is read off the names at the top level.

    Raises:
        UnknownName: it is not to be known from names; the message, which calls the network `called`, has candidates.
    """
    module = unwrapped(module)
    stages, parts = getattr(module, "stages", None), dict(module.named_children())
    if isinstance(stages, tuple) and stages and stages[-1] in parts:
        return str(stages[-1])
    # Transformers list stages as well, of tokens or with channels last: no feature maps (N, C, H, W).
    told = getattr(module, "feature_info", None)
    if isinstance(told, list) and told and getattr(module, "output_fmt", "NCHW") == "NCHW" and not _tokens(module):
        name = str(told[-1].get("module", ""))
        if name and any(name == path for path, _ in module.named_modules()):
            return name
    elif told is None and not _tokens(module):
        known = [name for name in parts if _NUMBERED.fullmatch(name) or name in _LAST_FEATURES]
        if known:
            return known[-1]
    convolutions = [path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    candidates = convolutions if _tokens(module) else list(dict.fromkeys(path.split(".")[0] for path in convolutions))
    those = f"such as {', '.join(candidates[-4:])}" if candidates else "one that gives feature maps (N, C, H, W)"
    raise UnknownName(
        f"which layer of {called or type(module).__name__} is its last stage is not known; name a layer, {those}",
        code="unknown_name.layer",
    )


def _tokens(module: nn.Module) -> bool:
    """Whether features are tokens, or channels come last, so that stages give no maps `(N, C, H, W)`."""
    names = {name for name, _ in module.named_children()}
    return bool(names & {"patch_embed", "permute", "encoder"}) or hasattr(module, "cls_token")


def _taps(module: nn.Module, size: tuple[int, int]) -> list[Tap]:
    placed = grids(module)
    taps: list[Tap] = []

    def note(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, _into: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4:
                grid = placed.get(name)
                channels, height, width = out.shape[1:]
                taps.append(Tap(name, type(part).__name__, (channels, height, width), grid.jump if grid else None))

        return hook

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name:
                hooks.callback(part.register_forward_hook(note(name)).remove)
        count.shapes(module, size)
    calls = Counter(tap.name for tap in taps)
    order = {name: index for index, (name, _) in enumerate(module.named_modules())}
    # A module that is called several times, as a block's one ReLU, is no tap.
    return sorted((tap for tap in taps if calls[tap.name] == 1), key=lambda tap: order[tap.name])


def _blocks(name: str, part: nn.Module) -> list[tuple[str, nn.Module]]:
    ours: list[tuple[str, nn.Module]] = [
        (path, inner) for path, inner in part.named_modules() if isinstance(inner, (Bottleneck, Res2NetBlock))
    ]
    if not ours and isinstance(part, (nn.Sequential, nn.ModuleList)):
        ours = [(path, inner) for path, inner in part.named_children() if list(inner.children())]
    return [(f"{name}.{path}" if path else name, inner) for path, inner in ours]


def _block(path: str, block: nn.Module, taps: dict[str, Tap]) -> Block:
    scale = getattr(block, "scale", 1)
    names = [f"{path}.split{index}" for index in range(scale)] if isinstance(scale, int) and scale > 1 else []
    splits = tuple(taps[name] for name in names if name in taps)
    return Block(taps[path], splits, bool(splits) and scale > 2 and not getattr(block, "first", False))
