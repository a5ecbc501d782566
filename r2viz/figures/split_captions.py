"""What figures of splits share: which blocks and splits are drawn, their colours, and what captions say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from matplotlib import colormaps

from r2viz.errors import UnknownName, nearest
from r2viz.figures.axes import Line
from r2viz.split_records import CONTROL, FIRST, PASSED, PERMUTED, Network, Split, SplitRecord

HATCH = "////"
"""Over the cells of a stage's first block."""

_LINES: tuple[Line, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))


def splits_provenance(record: SplitRecord) -> str:
    """What a figure of the record embeds: its digest and what it was made from, as one JSON object."""
    return json.dumps(
        {
            "r2viz": record.versions.get("r2viz", ""),
            "digest": record.digest,
            "networks": [
                {"model": one.model, "weights": dict(one.weights), "seed": one.seed} for one in record.networks
            ],
            "pictures": record.pictures,
            "pictures_sha256": record.pictures_sha256,
            "settings": dict(record.settings),
            "versions": dict(record.versions),
        },
        ensure_ascii=False,
    )


def block_paths(network: Network) -> list[str]:
    """All blocks in the network's order."""
    return list(dict.fromkeys(split.path for split in network.splits))


def shown_blocks(network: Network, blocks: Sequence[str] | None) -> list[str]:
    """The blocks to draw: those asked for, else each stage's last one, which has a cascade if any of them has.

    Raises:
        UnknownName: the network has no such block.
    """
    known = block_paths(network)
    if blocks is None:
        return list({split.stage: split.path for split in network.splits}.values())
    for block in blocks:
        if block not in known:
            raise UnknownName(
                f"no block {block!r} was measured in {network.model}{nearest(block, known)}; there are "
                f"{', '.join(known)}",
                code="unknown_name.layer",
            )
    return list(blocks)


def short(split: Split) -> str:
    """A split's name on an axis: its number; a control group's with g, a permuted one's with p."""
    return {CONTROL: "g", PERMUTED: "p"}.get(split.kind, "") + str(split.split)


def colour(split: Split, count: int) -> tuple[float, float, float, float]:
    """From dark to light in code order, a ResNet's groups alike."""
    red, green, blue, opacity = colormaps["viridis"](0.88 * split.split / max(1, count - 1))
    return red, green, blue, opacity


def line_of(split: Split) -> Line:
    """A split's pattern of line, for grey print."""
    return _LINES[split.split % len(_LINES)]


def made_of(record: SplitRecord, shown: Sequence[Split]) -> list[str]:
    """Sentences of every caption: pictures, weights, which order splits are in, and what stands for a control."""
    said = [f"{record.pictures} picture{'s' if record.pictures != 1 else ''}.", *weights_of(record.networks)]
    kinds = {split.kind for split in shown}
    if kinds - {CONTROL, PERMUTED}:
        said.append("Splits are in code order.")
    if PASSED in kinds:
        said.append("The last one is passed through without a convolution (y1 in the paper's equation).")
    if CONTROL in kinds:
        said.append("Control: a ResNet has no splits; g are equal parts of its blocks' middle channels in their order.")
    if PERMUTED in kinds:
        said.append("p are such parts in a random order.")
    return said


def weights_of(networks: Sequence[Network]) -> list[str]:
    """A sentence for each network."""
    said = []
    for network in networks:
        source = network.weights.get("source", "unknown")
        said.append(f"{network.title}: {source if source.startswith('random') else f'weights {source}'}.")
    return said


def first_said(splits: Sequence[Split]) -> list[str]:
    """What must be known of stages' first blocks, where any is drawn."""
    if not any(split.kind == FIRST for split in splits):
        return []
    return ["In a stage's first block no split is added to another and the last is average-pooled."]


def warned(record: SplitRecord) -> list[str]:
    """In red: random weights."""
    random = [network.title for network in record.networks if network.random]
    if not random:
        return []
    who = "RANDOM WEIGHTS" if len(random) == len(record.networks) else f"RANDOM WEIGHTS in {', '.join(random)}"
    return [f"{who}: an untrained network. What is seen comes from the architecture and not from learning."]


def last_line(record: SplitRecord) -> str:
    """Version and digest."""
    return f"r2viz {record.versions.get('r2viz', '?')} · {record.digest[:16]}"
