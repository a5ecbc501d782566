"""What a network loses without one of its splits: interventions inside a block, and what follows run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.causal_records import INTERVENTIONS, CausalRecord
from r2viz.errors import BadTarget, ModelError, UnknownName, nearest, one_line
from r2viz.partition.causal_block import Change, change
from r2viz.partition.causal_run import Run, Wanted
from r2viz.partition.measure import _checked, _kind
from r2viz.partition.places import Block, blocks
from r2viz.partition.watch import watching
from r2viz.split_records import FIRST
from r2viz.taps import device_of, frozen, lock, unwrapped


def ablate(
    module: nn.Module,
    batches: Tensor | Iterable[Tensor],
    *,
    places: Sequence[Block] | None = None,
    interventions: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    targets: int | Sequence[int] | None = None,
    maps: bool | str = False,
    means: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CausalRecord:
    """Change every split of the blocks in turn, and see what becomes of the class and its map.

    The network itself runs once per batch; of each change only what it reaches is computed again, in batches sized to
    memory. Nothing is changed in the network, which is left as it was, also after an error. Of each batch some 45 MB
    per picture are kept for all blocks of a 50-layer network at 224 px, 3 MB for `layer4` alone.

    What follows a change is run with normalisations folded, so a change without consequence is 0 up to rounding.

    Args:
        module: any network that `places.blocks` finds splits in, or a ResNet's channel groups.
        batches: preprocessed pictures `(N, 3, H, W)`, or an iterable of such. It is read twice where channel means
            are needed and not given: then a list, not a generator.
        places: blocks; None takes all.
        interventions: names in `r2viz.causal_records.INTERVENTIONS`; None takes all that can be done.
        labels: class numbers, one per picture, for accuracy, and as targets unless those are given.
        targets: class numbers whose logits are followed, one for all or one per picture; None: the labels, without
            those each picture's own top-1 before any change.
        maps: whether Grad-CAM maps are compared, too: at the last stage, or at the layer of this name.
        means: of each block's `conv3` input, by block, `(C,)`, as `channel_means` gives them (of other pictures, say).
        seed: of random orders.
        name: what to call the network; its class unless given.
        progress: called with the number of pictures done since the last call.

    Raises:
        UnknownName: no such intervention.
        BadTarget: a class out of range, or not one per picture.
        ModelError: no splits, no pictures, no classifier, or nothing that can be done; a layer for maps that the blocks
            do not lead to.
        TapError: the network does not call its blocks where that can be seen.
    """
    module = unwrapped(module)
    places = blocks(module, name=name) if places is None else tuple(places)
    asked = _asked(interventions)
    wanted, notes = _wanted(places, asked, all_of_them=interventions is None)
    layer = (places[-1].stage if maps is True else str(maps)) if maps else None
    if means is None and any(INTERVENTIONS[one].value == "mean" for one in asked):
        if not isinstance(batches, Tensor) and iter(batches) is batches:
            raise ModelError(
                "channel means need the pictures twice, and a generator came; give a list of batches, the means "
                "(channel_means), or interventions without them"
            )
        means = channel_means(module, batches, places)
    given_means = {path: np.asarray(values) for path, values in (means or {}).items()}
    for block in places if means is not None else ():
        came = given_means.get(block.path, np.empty(0)).shape
        if came != (block.channels,):
            raise ModelError(
                f"means of {block.path} came as {came}; expected ({block.channels},), as channel_means gives them"
            )
    given = {kind: _numbers(some, kind) for kind, some in (("labels", labels), ("targets", targets))}
    run = Run(module, places, wanted, layer, given_means, seed)
    done = 0
    for batch in _checked([batches] if isinstance(batches, Tensor) else batches):
        part = {kind: _part(some, done, len(batch), kind) for kind, some in given.items()}
        run.take(batch, part["labels"], part["targets"])
        done += len(batch)
        if progress is not None:
            progress(len(batch))
    for kind, some in given.items():
        if some is not None and some.ndim and len(some) != done:
            raise BadTarget(f"{len(some)} {kind} came for {done} pictures; give one per picture")
    if done == 0:
        raise ModelError("no pictures came; interventions need at least one")
    follows = "given" if targets is not None else "labels" if labels is not None else "top1"
    return CausalRecord(
        effects=tuple(run.effects()),
        **run.before(),
        map_layer=layer,
        settings={"interventions": list(asked), "seed": seed, "targets": follows},
        device=str(device_of(module)),
        dtype=str(_kind(module)).removeprefix("torch."),
        notes=tuple(notes),
    )


def channel_means(
    module: nn.Module, batches: Tensor | Iterable[Tensor], places: Sequence[Block]
) -> dict[str, np.ndarray]:
    """By block, each channel's mean of what goes into `conv3`, float64 `(C,)`: over positions, then over pictures."""
    module = unwrapped(module)
    sums = {block.conv3: np.zeros(block.channels) for block in places}
    count = 0

    def see(path: str, features: Tensor) -> None:
        values = features if features.dtype in (torch.float32, torch.float64) else features.float()
        sums[path] += values.mean(dim=(2, 3)).cpu().double().sum(dim=0).numpy()

    for batch in _checked([batches] if isinstance(batches, Tensor) else batches):
        with lock(module), torch.inference_mode(), frozen(module), watching(module, list(sums), see):
            module(batch.to(device_of(module), _kind(module)))
        count += len(batch)
    return {block.path: sums[block.conv3] / max(1, count) for block in places}


# --- What is asked for -----------------------------------------------------------------------------------------------


def _asked(interventions: Sequence[str] | None) -> tuple[str, ...]:
    if interventions is None:
        return tuple(INTERVENTIONS)
    asked = (interventions,) if isinstance(interventions, str) else tuple(dict.fromkeys(interventions))
    for one in asked:
        if one not in INTERVENTIONS:
            known = ", ".join(INTERVENTIONS)
            raise UnknownName(
                f"no intervention {one_line(one, 60)!r}{nearest(one, INTERVENTIONS)}; there are {known}",
                code="unknown_name.intervention",
            )
    return asked


def _wanted(places: Sequence[Block], asked: Sequence[str], *, all_of_them: bool) -> tuple[Wanted, list[str]]:
    """What is to be done in every block, and remarks on what cannot be."""
    wanted: dict[str, dict[tuple[int, str], Change]] = {}
    for block in places:
        wanted[block.path] = {}
        for number in range(len(block.parts)):
            for one in asked:
                what = change(block, number, one)
                if what is not None:
                    wanted[block.path][number, one] = what
    notes = []
    first = [block.path for block in places if block.first]
    if "cut" in asked and first:
        notes.append(f"cut: {', '.join(first)} ({FIRST}): these blocks have no links between splits")
    elsewhere = [one for one in asked if not INTERVENTIONS[one].control]
    if elsewhere and not all_of_them and any(not block.cascaded for block in places):
        notes.append(f"{', '.join(elsewhere)}: a ResNet's channel groups have neither cascade nor links")
    if not any(wanted.values()):
        why = "; ".join(notes) or "they have no links between splits"
        raise ModelError(f"nothing to do in {len(places)} blocks: {one_line(why, 300)}; ask for 'zero' or other blocks")
    return wanted, notes


def _numbers(given: int | Sequence[int] | None, kind: str) -> np.ndarray | None:
    if given is None:
        return None
    numbers = np.asarray(given)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or (kind == "labels" and numbers.ndim == 0):
        raise BadTarget(f"{kind} are {numbers.dtype} {numbers.shape}; give class numbers, one per picture")
    return numbers.astype(np.int64)


def _part(given: np.ndarray | None, begun: int, count: int, kind: str) -> np.ndarray | None:
    if given is None or given.ndim == 0:
        return given
    if begun + count > len(given):
        raise BadTarget(f"{len(given)} {kind} came for more pictures than that; give one per picture")
    return given[begun : begun + count]
