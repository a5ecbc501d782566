"""Interventions carried out: the network once per batch, and of every change what it reaches once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.agreement import rank_correlation
from r2viz.attribution import cam_maps
from r2viz.attribution.rerun import Rerun
from r2viz.attribution.scores import class_indices
from r2viz.causal_records import Effect
from r2viz.errors import ModelError
from r2viz.graph import Halves
from r2viz.partition.causal_block import Change, Entry, Opened, opened
from r2viz.partition.measure import _kind
from r2viz.partition.places import Block
from r2viz.taps import Point, device_of, frozen, lock, tap

Wanted = Mapping[str, Mapping[tuple[int, str], Change]]
"""By block, for each of its parts and intervention, the change that it means."""


@dataclass(eq=False)
class Run:
    """Blocks opened once, and what every batch gave.

    Attributes:
        wanted: what is to be done.
        layer: whose maps are compared; None: no maps.
        means: by block, of what goes into `conv3`, `(C,)`.
        seed: of random orders.
        opened: the blocks in which anything is to be done.
        base: of every batch, what the network said before any change; `found` likewise after each change.
    """

    module: nn.Module
    places: Sequence[Block]
    wanted: Wanted
    layer: str | None
    means: dict[str, np.ndarray]
    seed: int
    opened: list[Opened] = field(default_factory=list)
    base: list[dict[str, np.ndarray]] = field(default_factory=list)
    found: dict[tuple[str, Change], list[dict[str, np.ndarray]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen = [block for block in self.places if self.wanted[block.path]]
        self.opened = [opened(self.module, block, of=len(chosen), layer=self.layer) for block in chosen]

    def take(self, batch: Tensor, labels: np.ndarray | None, targets: np.ndarray | None) -> None:
        """Run the network once, and what every change reaches once more."""
        module = self.module
        batch = batch.to(device_of(module), _kind(module))
        with lock(module), torch.inference_mode(), frozen(module):
            with tap(module, [name for one in self.opened for name in one.taps]) as taken:
                logits = self._logits(module(batch), len(batch))
            follow = targets if targets is not None else labels
            classes = class_indices(None if follow is None else torch.from_numpy(follow), logits)
            before = _told(logits, classes, None if labels is None else torch.from_numpy(labels))
            map_ = None
            if self.layer is not None:
                with torch.inference_mode(False):
                    followed = classes.clone()
                    map_ = cam_maps(module, batch, targets=followed, layers=[self.layer], fold=False)[self.layer]
            self.base.append({**before, "target": classes.cpu().numpy()})
            if labels is not None:
                self.base[-1]["labels"] = labels
            for one in self.opened:
                self._rerun(one, one.enter(batch, taken), batch, logits, classes, labels, map_)

    def _logits(self, output: Any, count: int) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the network gave {came}, but a classifier's output ({count}, classes) was expected")
        if not bool(output.isfinite().all()):
            raise ModelError("the network's output is not finite, even before any change; look at its input")
        return output

    def _rerun(
        self,
        one: Opened,
        entry: Entry,
        batch: Tensor,
        logits: Tensor,
        classes: Tensor,
        labels: np.ndarray | None,
        base: Tensor | None,
    ) -> None:
        """All changes of one block, each once, however many interventions mean it."""
        block, count = one.block, len(batch)
        changes = list(dict.fromkeys(self.wanted[block.path].values()))
        means = self.means.get(block.path)
        mean = None if means is None else torch.as_tensor(means).to(entry.into)
        crossing = entry.crossing
        if base is not None:
            if not crossing:
                raise ModelError(
                    f"what follows {block.path} depends on the number of pictures, so maps after a change cannot be "
                    "made; leave them out"
                )
            crossing = (*crossing, classes)
        halves = None if one.tail is None or not crossing else Halves(_nothing, one.tail)  # type: ignore[arg-type]

        def make(rows: slice) -> Tensor:
            parts = []
            for number in range(rows.start // count, -(-rows.stop // count)):
                some = slice(max(rows.start - number * count, 0), min(rows.stop - number * count, count))
                parts.append(one.changed(entry, changes[number], some, means=mean, seed=self.seed))
            return torch.cat(parts)

        rerun = Rerun(
            self.module,
            f"{block.conv3}_in",
            Point(block.conv3, into=True, split=None),
            batch,
            entry.into,
            logits,
            _everything,  # whole outputs instead of single scores
            # What crosses is known already; to find it again, all that comes before would have to be run.
            _kept={"halves": (halves, crossing)},
        )
        rows = torch.arange(count, device=batch.device).repeat(len(changes))
        after = rerun.scores(rows, make, of="features").view(len(changes), count, -1)
        truth = None if labels is None else torch.from_numpy(labels)
        for what, output in zip(changes, after, strict=True):
            told = _told(output[:, : logits.shape[1]], classes, truth)
            if base is not None:
                maps = output[:, logits.shape[1] :].reshape(base.shape).double().cpu().numpy()
                told["map"] = _unlike(base.double().cpu().numpy(), maps)
            self.found.setdefault((block.path, what), []).append(told)

    def before(self) -> dict[str, np.ndarray]:
        """The record's fields that tell of the network as it is."""
        return {key: np.concatenate([one[key] for one in self.base]) for key in self.base[0]}

    def effects(self) -> Iterator[Effect]:
        """By block, part and intervention."""
        before = self.before()
        for block in self.places:
            for (number, intervention), what in self.wanted[block.path].items():
                told = self.found[block.path, what]
                after = {key: np.concatenate([one[key] for one in told]) for key in told[0]}
                yield Effect(
                    block.parts[number].split,
                    intervention,
                    after["logit"] - before["logit"],
                    after["probability"] - before["probability"],
                    after.get("correct"),
                    after.get("map"),
                )


def _told(logits: Tensor, classes: Tensor, labels: Tensor | None) -> dict[str, np.ndarray]:
    """Of each picture, the target's logit and probability, float64, and whether the label is the top-1."""
    exact = logits.double() if logits.device.type != "mps" else logits.float()
    at = classes[:, None]
    found = {
        "logit": exact.gather(1, at)[:, 0].double().cpu().numpy(),
        "probability": exact.softmax(dim=1).gather(1, at)[:, 0].double().cpu().numpy(),
    }
    if labels is not None:
        found["correct"] = (logits.argmax(dim=1).cpu() == labels).numpy()
    return found


def _unlike(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """1 - Spearman of maps `(N, h, w)`, picture by picture; NaN where one is constant."""
    found = np.full(len(before), np.nan)
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            found[number] = 1 - rank_correlation(one.ravel(), other.ravel())
    return found


def _everything(output: Tensor, _rows: Tensor) -> Tensor:
    return output


def _nothing(_batch: Tensor) -> tuple[Tensor, ...]:
    raise AssertionError("what crosses was given")
