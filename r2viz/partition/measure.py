"""One pass over pictures that gathers all statistics of all splits: in constant memory, and mergeable.

What grows with the number of pictures is a few float32 numbers per picture and split, for the intervals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.errors import ModelError, UnknownName, nearest, one_line
from r2viz.partition import likeness as likenesses
from r2viz.partition import moments as moments_of
from r2viz.partition import spectra as spectra_of
from r2viz.partition.classes import Classes
from r2viz.partition.histograms import Histograms
from r2viz.partition.intervals import jackknifed, mean_intervals
from r2viz.partition.likeness import Likeness
from r2viz.partition.look import Look, Scratch
from r2viz.partition.moments import Moments
from r2viz.partition.places import SCALE, Block, blocks
from r2viz.partition.spectra import Spectra
from r2viz.partition.watch import watching
from r2viz.split_records import Histogram, Row, Spectrum
from r2viz.split_records import Likeness as LikenessRecord
from r2viz.statistics import Interval
from r2viz.taps import device_of, frozen, lock, unwrapped

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "moments": ("mean", "variance", "sparsity", "dead", "energy", "energy_conv3"),
    "covariance": ("participation_ratio", "participation_share", "effective_rank", "effective_share"),
    "spectra": spectra_of.PER_PICTURE,
    "selectivity": ("selectivity", "selectivity_shuffled"),
    "quantiles": ("q05", "q25", "q50", "q75", "q95"),
    "cka": (),
}
"""What is gathered together, and the statistics that it gives; `cka` gives matrices instead."""

ALL = tuple(FAMILIES)

_AT_ONCE = 2**23
"""Values of one block that are looked at at once: 32 MB of working memory, for any batch size."""


def families(statistics: Sequence[str] | None, *, labelled: bool) -> tuple[str, ...]:
    """The families that give these statistics (names of either); None takes all that there are labels for.

    Raises:
        UnknownName: no such statistic.
        ModelError: class selectivity without labels.
    """
    if statistics is None:
        return tuple(name for name in ALL if labelled or name != "selectivity")
    of = {statistic: family for family, given in FAMILIES.items() for statistic in (family, *given)}
    for statistic in statistics:
        if statistic not in of:
            raise UnknownName(
                f"no statistic {one_line(statistic, 60)!r}{nearest(statistic, of)}; there are {', '.join(of)}",
                code="unknown_name.statistic",
            )
    chosen = {"moments", *(of[statistic] for statistic in statistics)}
    if "selectivity" in chosen and not labelled:
        raise ModelError("class selectivity needs labels: give one class number per picture, or leave it out")
    return tuple(name for name in ALL if name in chosen)


@dataclass(eq=False)
class _Gathered:
    """All accumulators of one block."""

    moments: Moments
    spectra: Spectra | None
    classes: Classes | None
    histograms: Histograms | None
    likeness: Likeness | None

    @classmethod
    def empty(cls, block: Block, chosen: Sequence[str], eps: float, weight: Tensor | None) -> _Gathered:
        return cls(
            Moments(block, eps, "covariance" in chosen, weight),
            Spectra(block) if "spectra" in chosen else None,
            Classes(block) if "selectivity" in chosen else None,
            Histograms.empty(block) if "quantiles" in chosen else None,
            Likeness(block) if "cka" in chosen else None,
        )

    def add(self, look: Look) -> None:
        means = self.moments.add(look)
        for more in (self.spectra, self.classes, self.likeness):
            if more is not None:
                more.add(look, means)
        if self.histograms is not None:
            self.histograms.add(look)

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, part) for name, part in vars(self).items() if part is not None)

    def merge(self, other: _Gathered) -> _Gathered:
        theirs = vars(other)
        merged: dict[str, Any] = {name: part.merge(theirs[name]) for name, part in self.items()}
        return replace(self, **merged)


@dataclass(eq=False)
class Measured:
    """What was gathered of one network's splits over some pictures; `merge` joins what shards or machines found.

    Attributes:
        blocks: where the splits are.
        chosen: names in `FAMILIES`.
        eps: values up to here count as zero.
        seed: of shuffled labels.
        pictures: how many.
    """

    blocks: tuple[Block, ...]
    chosen: tuple[str, ...]
    eps: float = 0.0
    seed: int = 0
    pictures: int = 0
    held: dict[str, _Gathered] = field(default_factory=dict)
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __post_init__(self) -> None:
        for block in self.blocks:
            self.held.setdefault(block.path, _Gathered.empty(block, self.chosen, self.eps, None))

    def take(
        self,
        module: nn.Module,
        batch: Tensor,
        *,
        first: int | None = None,
        labels: np.ndarray | None = None,
        shuffled: np.ndarray | None = None,
    ) -> Tensor:
        """Run the network on one batch `(N, 3, H, W)` and take in what its splits show.

        Args:
            module: the network that `blocks` were found in; left as it was, also after an error.
            batch: preprocessed pictures.
            first: number of the batch's first picture; goes on counting unless given.
            labels: int64 `(N,)`, the pictures' classes; for class selectivity.
            shuffled: the same in random order.

        Returns:
            What the network returned, to the last bit what it returns unwatched.

        Raises:
            ModelError: values that are not finite; the message names the layer.
            TapError: a block was not reached.
        """
        module = unwrapped(module)
        index = np.arange(len(batch), dtype=np.int64) + (self.pictures if first is None else first)
        paths = {block.conv3: block for block in self.blocks}
        size = (int(batch.shape[2]), int(batch.shape[3]))

        def see(path: str, features: Tensor) -> None:
            block = paths[path]
            step = max(1, _AT_ONCE // max(1, features[0].numel()))
            for start in range(0, len(features), step):
                cut = slice(start, start + step)
                values = features[cut].detach()
                if values.dtype not in (torch.float32, torch.float64):
                    values = values.float()
                some = None if labels is None else labels[cut], None if shuffled is None else shuffled[cut]
                self.held[block.path].add(Look(values, index[cut], self.scratch, size, *some))

        with lock(module), torch.inference_mode(), frozen(module):
            for path, block in paths.items():
                moments = self.held[block.path].moments
                if moments.weight is None:
                    moments.weight = module.get_submodule(path).weight.detach().flatten(1).double().cpu()  # type: ignore[operator]
            with watching(module, list(paths), see):
                output = module(batch.to(device_of(module), _kind(module)))
        self.pictures += len(batch)
        return output

    def merge(self, other: Measured) -> Measured:
        """Of both, in any order.

        Raises:
            ModelError: other splits or other statistics were measured.
        """
        mine, theirs = (
            (one.chosen, one.eps, [part.split.tap for block in one.blocks for part in block.parts])
            for one in (self, other)
        )
        if mine != theirs:
            raise ModelError(
                "two measurements of different splits, statistics or ε cannot be merged; measure the same in all shards"
            )
        held = {path: part.merge(other.held[path]) for path, part in self.held.items()}
        return Measured(self.blocks, self.chosen, self.eps, self.seed, self.pictures + other.pictures, held)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the blocks as named arrays, to be stored or sent to another machine."""
        about = {"chosen": self.chosen, "eps": self.eps, "seed": self.seed, "pictures": self.pictures}
        found = {"about": np.array(json.dumps(about))}
        for path, gathered in self.held.items():
            for name, part in gathered.items():
                found |= {f"{path}/{name}/{key}": value for key, value in part.state().items()}
        return found

    @classmethod
    def from_arrays(cls, found_blocks: Sequence[Block], arrays: Mapping[str, np.ndarray]) -> Measured:
        """The reverse of `arrays`, given the same network's blocks."""
        about = json.loads(str(arrays["about"]))
        result = cls(tuple(found_blocks), tuple(about["chosen"]), about["eps"], about["seed"], about["pictures"])
        for path, gathered in result.held.items():
            for name, part in gathered.items():
                prefix = f"{path}/{name}/"
                part.restore({key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)})
        return result

    # --- What came of it ---------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every statistic of every split with its interval over pictures; by block, split, statistic."""
        averaged = self._averaged()
        rows = []
        for block in self.blocks:
            gathered = self.held[block.path]
            grouped = [self._grouped(gathered, number) for number in range(len(block.parts))]
            classes = self._selectivity(gathered)
            for number, part in enumerate(block.parts):
                known = {**averaged[block.path, number], **grouped[number], **classes[number]}
                for statistic in (name for family in self.chosen for name in FAMILIES[family]):
                    rows.append(Row(part.split, statistic, known[statistic]))
        return rows

    def _averaged(self) -> dict[tuple[str, int], dict[str, Interval]]:
        """Statistics that are means of one number per picture: one bootstrap for all."""
        keys, columns = [], []
        for block in self.blocks:
            gathered = self.held[block.path]
            given = [(moments_of.PER_PICTURE, gathered.moments.each)]
            if gathered.spectra is not None:
                given.append((spectra_of.PER_PICTURE, gathered.spectra.each))
            for names, each in given:
                keys += [(block.path, number, name) for number in range(len(block.parts)) for name in names]
                columns.append(each.sorted()[1])
        found: dict[tuple[str, int], dict[str, Interval]] = {}
        for (path, number, name), interval in zip(keys, mean_intervals(np.concatenate(columns, axis=1)), strict=True):
            found.setdefault((path, number), {})[name] = interval
        return found

    def _grouped(self, gathered: _Gathered, number: int) -> dict[str, Interval]:
        """Statistics with an interval from groups of pictures, but for class selectivity."""
        moments = gathered.moments
        width = len(moments.block.parts[number].channels)
        names = ["variance", "dead"]
        if moments.products:
            names += FAMILIES["covariance"]
        shares = {name: int(name[1:]) / 100 for name in FAMILIES["quantiles"]}
        if gathered.histograms is not None:
            names += shares

        def values(groups: np.ndarray) -> np.ndarray:
            spread = moments.covariance(number, groups)
            found = [float((spread.diagonal() if moments.products else spread).mean()), moments.dead(number, groups)]
            if moments.products:
                ratio, rank = moments_of.participation_ratio(spread), moments_of.effective_rank(spread)
                found += [ratio, ratio / width, rank, rank / width]
            if gathered.histograms is not None:
                histogram = Histogram(moments.block.parts[number].split, *gathered.histograms.of(number, groups))
                found += [histogram.quantile(share) for share in shares.values()]
            return np.array(found)

        return self._intervals(names, jackknifed(values, moments.pictures.tolist()))

    def _selectivity(self, gathered: _Gathered) -> list[dict[str, Interval]]:
        count = len(gathered.moments.block.parts)
        classes = gathered.classes
        if classes is None:
            return [{} for _ in range(count)]

        def values(groups: np.ndarray) -> np.ndarray:
            return np.stack([classes.selectivity(groups, shuffled=shuffled) for shuffled in (False, True)])

        found = jackknifed(values, gathered.moments.pictures.tolist())
        return [
            self._intervals(FAMILIES["selectivity"], tuple(one[:, number] for one in found)) for number in range(count)
        ]

    def _intervals(self, names: Sequence[str], found: tuple[np.ndarray, ...]) -> dict[str, Interval]:
        ends = zip(names, *(one.tolist() for one in found), strict=True)
        return {name: Interval(value, low, high, self.pictures) for name, value, low, high in ends}

    def spectra(self) -> list[Spectrum]:
        """Power by spatial frequency of every split; none unless asked for."""
        found = []
        for block in self.blocks:
            gathered = self.held[block.path].spectra
            if gathered is None or gathered.edges is None:
                continue
            centres = (gathered.edges[1:] + gathered.edges[:-1]) / 2
            mean, reach, shuffled = gathered.curves()
            for number, part in enumerate(block.parts):
                low, high = mean[number] - reach[number], mean[number] + reach[number]
                count = int(gathered.counted[number])
                found.append(Spectrum(part.split, centres, mean[number], low, high, shuffled[number], count))
        return found

    def histograms(self) -> list[Histogram]:
        """All values of every split; none unless asked for."""
        return [
            Histogram(part.split, *gathered.histograms.of(number))
            for gathered in self.held.values()
            if gathered.histograms is not None
            for number, part in enumerate(gathered.moments.block.parts)
        ]

    def likenesses(self, other: Measured | None = None) -> list[LikenessRecord]:
        """CKA between the splits of each block, or with those of another network's block of equal stage and number."""
        found = []
        theirs = {(block.stage, block.index): block for block in (other or self).blocks}
        for block in self.blocks:
            match = theirs.get((block.stage, block.index))
            if match is None:
                continue
            mine, against = self.held[block.path].likeness, (other or self).held[match.path].likeness
            if mine is None or against is None:
                continue
            value, low, high, count = likenesses.compared(mine, against)
            rows, columns = (tuple(part.split for part in one.parts) for one in (block, match))
            found.append(LikenessRecord(rows, columns, value, low, high, count))
        return found


def measure(
    module: nn.Module,
    batches: Tensor | Iterable[Tensor],
    *,
    statistics: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    groups: int = SCALE,
    eps: float = 0.0,
    seed: int = 0,
    first: int = 0,
    name: str | None = None,
    outputs: Callable[[Tensor], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Statistics of a network's splits over pictures, in one pass.

    Args:
        module: any network with Res2Net blocks, or with bottlenecks (then their channels are cut into `groups`).
        batches: preprocessed pictures `(N, 3, H, W)`, or an iterable of such, which is read once.
        statistics: names in `FAMILIES` or of single statistics; None takes all (class selectivity only with labels).
        layers: only these stages, blocks, or the blocks of these splits.
        labels: class numbers, one per picture.
        groups: how many groups a ResNet's middle channels are cut into.
        eps: values up to here count as zero.
        seed: of the random orders of a ResNet's channels and of the labels.
        first: number of the first picture, where several shards share the work; it decides nothing but which pictures
            are sampled and grouped for intervals, and must not overlap.
        name: what to call the network; its class unless given.
        outputs: told what the network returned for each batch.
        progress: called with the number of pictures done since the last call.

    Raises:
        UnknownName: no such layer or statistic.
        ModelError: no splits; no pictures, or not as many as labels; values that are not finite.
        TapError: the network does not call its blocks' `conv3` where it can be seen, or more than once.
    """
    module = unwrapped(module)
    chosen = families(statistics, labelled=labels is not None)
    result = Measured(blocks(module, name=name, layers=layers, groups=groups, seed=seed), chosen, eps, seed)
    given = None if labels is None else np.asarray(labels, dtype=np.int64)
    shuffled = None if given is None else np.random.default_rng(seed).permutation(given)
    for batch in _checked([batches] if isinstance(batches, Tensor) else batches):
        done = slice(result.pictures, result.pictures + len(batch))
        if given is not None and done.stop > len(given):
            raise ModelError(f"{len(given)} labels came for more pictures than that; give one label per picture")
        both = (None, None) if given is None or shuffled is None else (given[done], shuffled[done])
        output = result.take(module, batch, first=first + done.start, labels=both[0], shuffled=both[1])
        if outputs is not None:
            outputs(output)
        if progress is not None:
            progress(len(batch))
    if result.pictures == 0:
        raise ModelError("no pictures came; statistics need at least one")
    if given is not None and len(given) != result.pictures:
        raise ModelError(f"{len(given)} labels came for {result.pictures} pictures; give one label per picture")
    return result


def _checked(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point():
            came = f"{batch.dtype} {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ModelError(
                f"a batch is {came}; expected preprocessed pictures, floating-point (N, 3, H, W)", code="model.input"
            )
        if len(batch):
            yield batch


def _kind(module: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)
