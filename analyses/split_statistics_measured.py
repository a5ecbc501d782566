"""What the analysis of splits measures: statistics, fields and interventions, trained and with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.attribution.labels import by_wnid, output_of
from r2viz.causal_records import CausalRecord
from r2viz.cli.progress import counted
from r2viz.datasets.located import DataSet
from r2viz.errors import R2VizError
from r2viz.image import Picture
from r2viz.models.model import Model, load
from r2viz.models.pairs import PAIRS
from r2viz.partition.causal import ablate
from r2viz.partition.measure import Measured
from r2viz.partition.places import Block, Part, blocks
from r2viz.partition.spectra import PER_PICTURE
from r2viz.partition.verbs import splits
from r2viz.receptive.measured import measure as effective_fields
from r2viz.receptive.measured import noise
from r2viz.split_records import CASCADE, PASSED, PERMUTED, SplitRecord

from .split_statistics_verdict import Series

STATISTICS = ("moments", "covariance", "spectra", "cka")
INTERVENTIONS = ("zero", "mean", "shuffle", "cut")
_BATCH = 64


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        pair: the trained pair, the baseline first.
        pictures: of the data set, at most; `causal` of them for interventions, `ordered` for random orders.
        orders: random orders of each block's channels, against which a trend must stand out.
        seeds: of the pair's networks with random weights, on `untrained` pictures.
        deep: networks of 50 layers with random weights; `deep_seeds` of each, on `deep_pictures` examples of
            `deep_side` px, and their fields on noise of that size in `deep_blocks`, which the border does not cut.
        field_side: pixels at which the pair's fields are measured, on `field_pictures` pictures.
    """

    pair: tuple[str, str] = PAIRS["mini"].models
    pictures: int = 2000
    causal: int = 500
    ordered: int = 300
    orders: int = 39
    seeds: int = 5
    untrained: int = 128
    deep: tuple[str, ...] = ("resnet50", "res2net50_26w_4s", "res2net50_14w_8s")
    deep_seeds: int = 4
    deep_pictures: int = 6
    deep_side: int = 224
    deep_blocks: tuple[str, ...] = ("layer1.1", "layer2.1")
    field_side: int = 256
    field_pictures: int = 16


QUICK = Plan(pictures=64, causal=32, ordered=32, orders=19, seeds=2, untrained=16, deep=("res2net50_26w_4s",),
             deep_seeds=2, deep_pictures=2, deep_side=128, field_side=128, field_pictures=3)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Given:
    """Pictures that could be read, and the classes that they show; None where a network does not know one."""

    name: str
    pictures: tuple[Picture, ...]
    labels: tuple[int, ...] | None
    refused: tuple[str, ...] = ()

    def first(self, count: int) -> tuple[int, ...] | None:
        """Labels of the first ones."""
        return None if self.labels is None else self.labels[:count]


@dataclass(frozen=True, eq=False)
class Found:
    """All that was measured."""

    record: SplitRecord
    series: tuple[Series, ...]
    orders: tuple[Series, ...]
    causal: tuple[CausalRecord, ...]
    titles: dict[str, str] = field(default_factory=dict)


def read(data: DataSet, model: Model) -> Given:
    """Read all pictures of a data set; classes are those of `model`."""
    known = by_wnid(model)
    pictures, labels, refused = [], [], []
    for entry in data:
        try:
            pictures.append(entry.open().picture)
        except R2VizError as error:
            refused.append(f"{entry.name}: {error}")
            continue
        labels.append(None if entry.label is None else output_of(entry.label, model, known))
    if not pictures:
        raise R2VizError(f"none of the {len(data)} pictures of {data.name} could be read; the pair needs at least one")
    known_labels = tuple(label for label in labels if label is not None)
    return Given(data.name, tuple(pictures), known_labels if len(known_labels) == len(labels) else None, tuple(refused))


def pair_record(models: Sequence[Model], given: Given) -> SplitRecord:
    """All statistics of the trained pair over all pictures."""
    wanted = STATISTICS if given.labels is None else (*STATISTICS, "selectivity")
    return splits(given.pictures, pair=list(models), statistics=wanted, labels=given.labels, batch=_BATCH)


# --- Spatial frequencies ---------------------------------------------------------------------------------------------


def frequencies(model: Model, inputs: Tensor, *, weights: str, orders: int = 0, groups: int = 4) -> list[Series]:
    """Spectral centroid and autocorrelation length of every picture, by place; of random orders, too, if asked for."""
    found = blocks(model.module, name=model.name, groups=groups, permuted=False)
    places = tuple(_ordered(block, orders) for block in found)
    measured = Measured(places, ("moments", "spectra"))
    for batch in inputs.split(_BATCH):
        measured.take(model.module, batch)
    series = []
    for block in places:
        spectra = measured.held[block.path].spectra
        assert spectra is not None
        values = spectra.each.sorted()[1].reshape(len(inputs), len(block.parts), len(PER_PICTURE))
        width = len(_compared(block))
        for number, start in enumerate(range(0, width * (orders + 1), width)):
            # The compared splits come first, then each random order.
            kind = block.parts[start].split.kind
            for statistic in ("centroid", "correlation_length"):
                some = values[:, start : start + width, PER_PICTURE.index(statistic)]
                series.append(
                    Series(model.title, weights, model.seed, block.stage, block.index, kind, statistic, some, number)
                )
    return series


def _compared(block: Block) -> tuple[Part, ...]:
    """All splits but the last, which is passed through or pooled; as many of a ResNet's groups."""
    return tuple(part for part in block.parts if part.split.kind not in (PASSED, PERMUTED))[: block.scale - 1]


def _ordered(block: Block, orders: int) -> Block:
    """The compared splits, then their channels dealt out anew in random orders; the last split at the end."""
    compared = _compared(block)
    rest = block.parts[len(compared) :]
    channels = np.concatenate([part.channels for part in compared])
    dealt = []
    for number in range(1, orders + 1):
        chance = np.random.default_rng([number, *block.path.encode()])
        for part, some in zip(compared, np.array_split(chance.permutation(channels), len(compared)), strict=True):
            tap = f"{block.path}.order{number}.{part.split.split}"
            dealt.append(Part(replace(part.split, kind=PERMUTED, tap=tap), np.sort(some)))
    return replace(block, parts=(*compared, *dealt, *rest))


# --- Effective fields ------------------------------------------------------------------------------------------------


def field_series(
    model: Model, inputs: Tensor, *, weights: str, calibrate: bool = False, only: Sequence[str] | None = None
) -> list[Series]:
    """σ of the effective field of every split, one value for each input; a ResNet has no splits to be asked."""
    places = [block for block in blocks(model.module, name=model.name, layers=only) if block.cascaded]
    taps = [part.split.tap for block in places for part in _compared(block)]
    if not taps:
        return []
    erfs = {
        erf.layer: erf
        for erf in effective_fields(model.module, inputs, layers=taps, calibrate=calibrate, called=model.title)
    }
    found = []
    for block in places:
        values = np.stack([erfs[part.split.tap].each["sigma"] for part in _compared(block)], axis=1)
        kind = block.parts[0].split.kind
        found.append(Series(model.title, weights, model.seed, block.stage, block.index, kind, "sigma", values))
    return found


# --- Random weights --------------------------------------------------------------------------------------------------


def calibrated(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The network with its batch normalisations' statistics taken from the inputs; with none they fit no picture."""
    parts = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in parts:
        part.reset_running_stats()
        part.momentum = None
        part.train()
    with torch.no_grad():
        for batch in inputs.split(16):
            module(batch)
    return module.eval()


def untrained(plan: Plan, inputs: Tensor, wide: Tensor) -> Iterator[Series]:
    """The pair's networks with random weights on the same pictures: a set of series for each seed."""
    runs = [(name, seed) for name in plan.pair for seed in range(plan.seeds)]
    for name, seed in counted(runs, len(runs), "network"):
        model = load(name, weights="random", seed=seed)
        calibrated(model.module, inputs[:16])
        yield from frequencies(model, inputs, weights="random")
        yield from field_series(model, wide[:2], weights="random")


def deep(plan: Plan, pictures: Sequence[Picture]) -> Iterator[Series]:
    """Networks of 50 layers with random weights: frequencies on pictures, fields on noise."""
    runs = [(name, seed) for name in plan.deep for seed in range(plan.deep_seeds)]
    for name, seed in counted(runs, len(runs), "network"):
        model = load(name, weights="random", seed=seed)
        inputs = as_inputs(model, pictures[: plan.deep_pictures], plan.deep_side)
        calibrated(model.module, inputs)
        yield from frequencies(model, inputs, weights="random")
        drawn = torch.cat(list(noise((plan.deep_side, plan.deep_side), 1, seed=seed)))
        yield from field_series(model, drawn, weights="random", calibrate=True, only=plan.deep_blocks)


def as_inputs(model: Model, pictures: Sequence[Picture], side: int | None = None) -> Tensor:
    """Preprocessed pictures `(N, 3, H, W)`, at another size than the network's own if one is given."""
    how = model.preprocess if side is None else replace(model.preprocess, resize=side, crop=(side, side))
    return torch.cat([how(picture.rgb)[0] for picture in pictures])


# --- Interventions ---------------------------------------------------------------------------------------------------


def interventions(model: Model, inputs: Tensor, labels: Sequence[int] | None) -> CausalRecord:
    """Each split of each stage's last block changed in turn; of a ResNet, its channel groups."""
    found = {block.stage: block for block in blocks(model.module, name=model.name, permuted=False)}
    places = list(found.values())
    linked = any(part.split.kind == CASCADE for block in places for part in block.parts)
    asked = [one for one in INTERVENTIONS if linked or one != "cut"]
    return ablate(
        model.module, list(inputs.split(_BATCH)), places=places, interventions=asked, labels=labels, name=model.name
    )
