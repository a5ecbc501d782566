"""Where the splits of a network are: Res2Net blocks of any layout, and a ResNet's channels cut alike as the control.

All layouts concatenate the splits before `conv3`, a ResNet bottleneck's middle channels go into its `conv3` too: what
goes into that one convolution is all that has to be looked at, and a split is some of its channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from r2viz.errors import ModelError, UnknownName, nearest, one_line
from r2viz.receptive.trace import fields, grids
from r2viz.split_records import CASCADE, CONTROL, FIRST, PASSED, PERMUTED, Split

SCALE = 4
"""Into how many groups a ResNet's channels are cut unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Part:
    """A split and which channels of what goes into `conv3` it is, int64 `(width,)`."""

    split: Split
    channels: np.ndarray

    @property
    def span(self) -> slice | None:
        """The channels as a slice; None where they are scattered."""
        first, width = int(self.channels[0]), len(self.channels)
        together = np.array_equal(self.channels, np.arange(first, first + width))
        return slice(first, first + width) if together else None


@dataclass(frozen=True, eq=False)
class Block:
    """A block with splits, or a bottleneck cut alike.

    Attributes:
        path: `layer3.2`.
        stage: `layer3`; `index` is the block's number within it.
        scale: number of splits; of groups in a ResNet's block.
        first: whether it has no cascade, being the first of its stage; False in a ResNet.
        cascaded: whether it is a Res2Net block at all.
        parts: its splits in code order; a ResNet's groups, then the permuted ones.
    """

    path: str
    stage: str
    index: int
    scale: int
    first: bool
    cascaded: bool
    parts: tuple[Part, ...]

    @property
    def conv3(self) -> str:
        """Name of the convolution that all splits go into."""
        return f"{self.path}.conv3"

    @property
    def channels(self) -> int:
        """Number of channels that go into it."""
        return sum(part.split.width for part in self.parts if part.split.kind != PERMUTED)


def blocks(
    module: nn.Module,
    *,
    name: str | None = None,
    layers: Sequence[str] | None = None,
    groups: int = SCALE,
    permuted: bool = True,
    seed: int = 0,
) -> tuple[Block, ...]:
    """All blocks with splits, in the network's order: r2viz's, timm's and the official layout, DLA's included.

    Where there are none, ResNet's bottlenecks, their middle channels cut into `groups` equal parts as the control.

    Args:
        module: any network.
        name: what to call it; its class unless given.
        layers: only these stages (`layer3`), blocks (`layer3.2`) or the blocks of these splits (`layer3.2.split1`).
        groups: of a ResNet's channels; give the scale of the network that it is compared with.
        permuted: whether a ResNet's channels are also cut in a random order.
        seed: of that order.

    Raises:
        ModelError: the network has neither kind of block, or not so many channels.
        UnknownName: no block of such a name.
    """
    called = name or type(module).__name__
    modules = dict(module.named_modules())
    found = {path: part for path, part in modules.items() if _splits(part)}
    cascaded = bool(found)
    if not cascaded:
        found = {path: part for path, part in modules.items() if _bottleneck(part)}
    if not found:
        raise ModelError(
            f"{called} has no Res2Net block (convs, bns, conv3, scale, width) and no bottleneck (conv1, conv2, conv3); "
            "split statistics need one of them",
            code="model.no_splits",
        )
    numbered: dict[str, int] = {}
    result = []
    for path, part in found.items():
        stage = _stage(path)
        index = numbered[stage] = numbered.get(stage, -1) + 1
        if cascaded:
            result.append(_res2net(part, called, path, stage, index))
        else:
            result.append(_control(part, called, path, stage, index, groups, seed if permuted else None))
    return tuple(_located(module, block) for block in _chosen(result, layers, called))


def first_of_stage(block: nn.Module) -> bool:
    """Whether a Res2Net block has no cascade: each layout says it in its own words.

    Raises:
        ModelError: this one does not say it.
    """
    for word in ("first", "is_first"):
        said = getattr(block, word, None)
        if isinstance(said, bool):
            return said
    said = getattr(block, "stype", None)
    if isinstance(said, str):
        return said == "stage"
    raise ModelError(
        f"{type(block).__name__} does not say whether it is the first of its stage (first, is_first or stype); without "
        "that nobody knows whether its splits cascade",
        code="model.no_splits",
    )


def _splits(part: nn.Module) -> bool:
    scale, width = getattr(part, "scale", None), getattr(part, "width", None)
    return (
        isinstance(scale, int)
        and isinstance(width, int)
        and scale > 1
        and isinstance(getattr(part, "convs", None), nn.ModuleList)
        and isinstance(getattr(part, "bns", None), nn.ModuleList)
        and _pointwise(getattr(part, "conv3", None))
    )


def _bottleneck(part: nn.Module) -> bool:
    middle = getattr(part, "conv2", None) or getattr(part, "convs", None)  # convs: a Res2Net block of scale 1
    return isinstance(middle, nn.Module) and _pointwise(getattr(part, "conv3", None))


def _pointwise(conv: object) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1


def _stage(path: str) -> str:
    """`layer3` of `layer3.2`, `level3` of `level3.tree1.tree2`: numbers count blocks, DLA's trees are all one stage."""
    parent, _, last = path.rpartition(".")
    return parent if last.isdigit() else path.partition(".")[0]


def _res2net(part: nn.Module, model: str, path: str, stage: str, index: int) -> Block:
    scale, width, first = int(part.scale), int(part.width), first_of_stage(part)  # type: ignore[arg-type]
    parts = []
    for split in range(scale):
        last = split == scale - 1
        kind = FIRST if first else PASSED if last else CASCADE
        paper = 1 if last else split + 2
        order = f"code order, {split} of 0…{scale - 1}; y{paper} in the paper's equation"
        channels = np.arange(split * width, (split + 1) * width)
        parts.append(
            Part(Split(model, stage, index, split, order, kind, f"{path}.split{split}", path, width), channels)
        )
    return Block(path, stage, index, scale, first, True, tuple(parts))


def _control(part: nn.Module, model: str, path: str, stage: str, index: int, groups: int, seed: int | None) -> Block:
    channels = int(part.get_submodule("conv3").in_channels)  # type: ignore[arg-type]
    if not 1 <= groups <= channels:
        raise ModelError(
            f"{model}'s {path} has {channels} channels, and {one_line(str(groups))} groups were asked for; "
            f"give 1 to {channels}"
        )
    cuts = [(CONTROL, "group", "channel order", np.arange(channels))]
    if seed is not None:
        # From the seed and the block's name alone, so that choosing some layers changes nothing.
        chance = np.random.default_rng([seed, *path.encode()])
        cuts.append((PERMUTED, "permuted", f"random order, seed {seed}", chance.permutation(channels)))
    parts = [
        Part(
            Split(
                model, stage, index, number, f"{order}, {number} of 0…{groups - 1}", kind, f"{path}.{word}{number}",
                path, len(chosen),
            ),
            np.sort(chosen),
        )
        for kind, word, order, whole in cuts
        for number, chosen in enumerate(np.array_split(whole, groups))
    ]  # fmt: skip
    return Block(path, stage, index, groups, False, False, tuple(parts))


def _chosen(found: Sequence[Block], layers: Sequence[str] | None, called: str) -> Iterator[Block]:
    if layers is None:
        yield from found
        return
    names = {
        block.path: {block.stage, block.stage.partition(".")[0], block.path, *(part.split.tap for part in block.parts)}
        for block in found
    }
    known = set().union(*names.values())
    for layer in layers:
        if layer not in known:
            stages = ", ".join(dict.fromkeys(block.stage for block in found))
            raise UnknownName(
                f"no block {one_line(layer, 80)!r} with splits in {called}{nearest(layer, known)}; there are {stages}, "
                f"their blocks (say {found[-1].path}) and splits",
                code="unknown_name.layer",
            )
    yield from (block for block in found if names[block.path] & set(layers))


def _located(module: nn.Module, block: Block) -> Block:
    """The block with what theory knows of its splits: their grid and largest receptive field."""
    grid, seen = grids(module).get(f"{block.conv3}_in"), fields(module)
    parts = []
    for part in block.parts:
        field = seen.get(f"{block.path}.{_last_window(block, part.split.split)}")
        size = None if field is None or field.unbounded else field.max
        parts.append(replace(part, split=replace(part.split, jump=None if grid is None else grid.jump, field=size)))
    return replace(block, parts=tuple(parts))


def _last_window(block: Block, split: int) -> str:
    """The last module before a split's output that is more than a function of single values."""
    if not block.cascaded:
        return "conv3_in"
    if split < block.scale - 1:
        return f"convs.{split}"
    return "pool" if block.first else "conv1"
