"""What the analysis of receptive fields measures: theory, networks with random weights, and the trained pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from r2viz.cli.progress import counted
from r2viz.erf_records import Erf, ErfView
from r2viz.figures.staircase import Stairs
from r2viz.image import Picture
from r2viz.models.model import Model, load
from r2viz.models.pairs import PAIRS
from r2viz.models.zoo import row
from r2viz.receptive.measured import measure, noise
from r2viz.receptive.verbs import main_taps, theoretical_rf

from .receptive_verdict import SIZES

STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        baseline: the first of the networks with random weights; `network` is compared with it, and `control` has
            splits, but no larger theoretical field.
        scales: networks of the same depth by growing scale s, for the growth with s.
        pair: the trained pair.
        side: pixels of the noise that random weights see.
        seeds: of random weights; `scale_seeds` of the networks that only show the growth with s.
        samples: inputs of noise for each seed.
        sides: pixels of the pictures that the trained pair sees; the first is compared, the second is its own size.
    """

    baseline: str = "resnet50"
    network: str = "res2net50_26w_4s"
    control: str = "res2net50_48w_2s"
    scales: tuple[str, ...] = (
        "res2net50_48w_2s", "res2net50_26w_4s", "res2net50_26w_6s", "res2net50_26w_8s", "res2net50_14w_8s",
    )  # fmt: skip
    pair: tuple[str, str] = PAIRS["mini"].models
    side: int = 512
    seeds: int = 5
    scale_seeds: int = 2
    samples: int = 2
    sides: tuple[int, int] = (256, 64)

    @property
    def random(self) -> dict[str, int]:
        """Number of seeds by network."""
        compared = dict.fromkeys((self.baseline, self.network, self.control), self.seeds)
        return compared | {name: self.scale_seeds for name in self.scales if name not in compared}


QUICK = Plan(side=224, seeds=2, scale_seeds=1, samples=1, scales=("res2net50_48w_2s", "res2net50_26w_4s"))


# --- Theory ----------------------------------------------------------------------------------------------------------


def theory(names: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Stairs]]:
    """What stages, blocks and splits could see: a row each; a row for each size and its paths; by network, to draw."""
    taps: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    stairs = {}
    for name in names:
        found = theoretical_rf(name)
        chosen = main_taps(found, splits=True)
        gated = frozenset(tap for tap in chosen if found[tap].unbounded)
        stairs[name] = Stairs(row(name).title, {tap: found[tap].sizes for tap in chosen}, gated)
        for tap in chosen:
            field = found[tap]
            about = {"network": row(name).title, "tap": tap}
            taps.append(
                about
                | {"min": field.min, "max": field.max, "sizes": len(field.sizes), "paths": field.paths}
                | {"jump": int(field.jump[0]), "unbounded": field.unbounded}
            )
            paths += [about | {"size": size, "paths": count} for size, count in field.sizes.items()]
    return _whole(taps), _whole(paths), stairs


def _whole(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Path counts outgrow 64 bits, so they stay Python's numbers in all tables."""
    table = pd.DataFrame(rows)
    return table.assign(paths=pd.Series([one["paths"] for one in rows], dtype=object))


# --- Measured --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Sizes as a long table, and the fields that are drawn.

    Attributes:
        rows: network, title, weights ("random" or "trained"), seed, side, layer, unit (what is resampled: the seed or
            the picture), theory, and the sizes in input pixels.
        views: by (network, weights, side), of the first seed; of one block's splits by (network, "splits", side).
    """

    rows: pd.DataFrame
    views: Mapping[tuple[str, str, int], ErfView]


def random_networks(plan: Plan) -> Measured:
    """Networks with random weights on noise: a row for each seed, of the field averaged over its inputs."""
    rows: list[dict[str, Any]] = []
    views: dict[tuple[str, str, int], ErfView] = {}
    runs = [(name, seed) for name, seeds in plan.random.items() for seed in range(seeds)]
    for name, seed in counted(runs, len(runs), "network"):
        model = load(name, weights="random", seed=seed)
        # The same noise for every network of one seed.
        inputs = noise((plan.side, plan.side), plan.samples, seed=seed)
        erfs = measure(model.module, inputs, layers=STAGES, source="noise", calibrate=True, called=model.title)
        views.setdefault((name, "random", plan.side), _view(model, erfs))
        for erf in erfs:
            sizes = {} if erf.sizes is None else erf.sizes.named()
            rows.append(
                _about(model, erf, plan.side, "random", seed, f"seed {seed}") | {s: sizes.get(s) for s in SIZES}
            )
    return Measured(pd.DataFrame(rows).astype({"seed": "Int64", "theory": "Int64"}), views)


def trained_pair(plan: Plan, pictures: Sequence[Picture]) -> Measured:
    """The trained pair, and the same networks with random weights, on pictures: a row for each picture and seed."""
    rows: list[dict[str, Any]] = []
    views: dict[tuple[str, str, int], ErfView] = {}
    kinds: list[tuple[str, int | None]] = [("auto", None), *(("random", seed) for seed in range(plan.seeds))]
    runs = [(name, kind, side) for side in plan.sides for name in plan.pair for kind in kinds]
    for name, (weights, seed), side in counted(runs, len(runs), "network"):
        model = load(name, weights=weights, seed=seed)
        kind = "random" if weights == "random" else "trained"
        splits = _splits(name)
        sized = replace(model.preprocess, resize=side, crop=(side, side))
        erfs = measure(
            model.module,
            (sized(picture.rgb)[0] for picture in pictures),
            layers=(*STAGES, *(splits if kind == "trained" and side == plan.sides[0] else ())),
            calibrate=weights == "random",
            called=model.title,
        )
        view = replace(_view(model, erfs), preprocess=sized.as_dict())
        views.setdefault((name, kind, side), replace(view, erfs=erfs[: len(STAGES)]))
        if erfs[len(STAGES) :]:
            views[name, "splits", side] = replace(view, erfs=erfs[len(STAGES) :])
        for erf in erfs[: len(STAGES)]:
            for number, picture in enumerate(pictures):
                about = _about(model, erf, side, kind, seed, picture.name)
                rows.append(about | {size: float(erf.each[size][number]) for size in SIZES})
    return Measured(pd.DataFrame(rows).astype({"seed": "Int64", "theory": "Int64"}), views)


def _splits(name: str) -> tuple[str, ...]:
    """The splits of the last block that cascades, in code order."""
    blocks: dict[str, list[str]] = {}
    for tap in theoretical_rf(name):
        block, _, last = tap.rpartition(".")
        if last.startswith("split") and last[5:].isdigit():
            blocks.setdefault(block, []).append(tap)
    return tuple(list(blocks.values())[-1]) if blocks else ()


def _about(model: Model, erf: Erf, side: int, weights: str, seed: int | None, unit: str) -> dict[str, Any]:
    return {
        "network": model.name,
        "title": model.title,
        "weights": weights,
        "seed": seed,
        "side": side,
        "layer": erf.layer,
        "unit": unit,
        "theory": None if erf.theory is None or erf.theory.unbounded else erf.theory.max,
    }


def _view(model: Model, erfs: tuple[Erf, ...]) -> ErfView:
    return ErfView(model.name, model.title, asdict(model.weights), model.seed, {}, erfs)
