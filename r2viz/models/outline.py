"""A network's outline: its stages, blocks and splits, and what stands at every tap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from r2viz.models import count
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.receptive.trace import grids


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
