"""A network's accuracy and speed on labelled pictures, and its counted cost. torch is imported when it is called."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from r2viz.errors import BadData, BadImage, BadRecord, one_line
from r2viz.tables.validation import Item, Labelled, numbered, outputs

if TYPE_CHECKING:
    import torch

    from r2viz.models.model import Model

IMAGENET = "ImageNet-1k"
_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Measured:
    """What one network scored on the pictures of one data set.

    Attributes:
        weights: `source` and `sha256` of the weights.
        data: `"ImageNet-1k"` where all of its classes were there, else the folder's name.
        digest: of the pictures' listing and of how many of them were drawn.
        pictures: that were decoded and classified; `refused` could not be.
        top1, top5: how many of them were right; `top5` is None with fewer than six classes.
        params, macs: counted on this network, macs at its input of `size` (h, w).
        speed: pictures per second through the network alone, without decoding; None with fewer than two full batches.
        device: with the number of CPU threads where it is the CPU.
    """

    network: str
    title: str
    weights: dict[str, str]
    data: str
    digest: str
    pictures: int
    refused: int
    top1: int
    top5: int | None
    params: int
    macs: int
    size: tuple[int, int]
    speed: float | None
    device: str
    batch: int

    def error(self, which: str = "top1") -> tuple[float, float, float]:
        """(error, low, high) in percent, with the 95 % interval of `wilson`; `which` is "top1" or "top5"."""
        right = getattr(self, which)
        low, high = wilson(self.pictures - right, self.pictures)
        return 100 * (1 - right / self.pictures), 100 * low, 100 * high


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `count` independent pictures (Wilson 1927, without continuity correction).

    It holds for other pictures drawn alike; that a network would come out otherwise if it were trained again, it does
    not cover.
    """
    share = hits / count
    middle = share + _Z**2 / (2 * count)
    half = _Z * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    scale = 1 + _Z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def measure(
    model: Model,
    pictures: Labelled,
    *,
    limit: int | None = None,
    batch: int = 32,
    progress: bool | None = None,
    refused: list[str] | None = None,
) -> Measured:
    """Classify the pictures as the network's own preprocessing shows them to it.

    Args:
        model: on the device to measure on.
        pictures: see `r2viz.tables.validation.read`.
        limit: take so many, drawn without replacement; None takes all.
        batch: pictures per forward pass.
        progress: a bar on stderr; None shows it on a terminal only.
        refused: takes one line for each picture that cannot be decoded; those are left out.

    Raises:
        BadData: the network lacks one of the classes, or no picture could be decoded.
    """
    import torch
    from tqdm import tqdm

    wanted = outputs(pictures, model)
    device = next(model.module.parameters()).device
    count = pictures.count if limit is None else min(limit, pictures.count)
    names, seconds = [], []
    hits = np.zeros((0, 5), dtype=bool)
    best = min(5, len(model.classes))
    size: tuple[int, int] | None = None
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(
            total=count,
            desc=model.name,
            unit="picture",
            disable=None if progress is None else not progress,
            leave=False,
        ) as bar,
        torch.inference_mode(),
    ):
        # Beside another device the next batches are decoded meanwhile; on the CPU that would slow what is timed.
        ahead = 0 if device.type == "cpu" else 2
        for prepared in _batches(pool, pictures.sample(limit), model, batch, ahead):
            good = [(x, label) for x, label in prepared if isinstance(x, torch.Tensor)]
            names += [str(x) for x, _ in prepared if not isinstance(x, torch.Tensor)]
            for group in _alike(good):
                x = torch.cat([one for one, _ in group])
                size = size or (x.shape[2], x.shape[3])
                start = time.perf_counter()
                logits = model.module(x.to(device, memory_format=torch.channels_last))
                found = logits.topk(best, dim=1).indices.cpu().numpy()  # waits for the device
                if len(group) == batch:
                    seconds.append(time.perf_counter() - start)
                right = found == wanted[[label for _, label in group]][:, None]
                hits = np.concatenate([hits, np.pad(right, ((0, 0), (0, 5 - best)))])
            bar.update(len(prepared))
    if refused is not None:
        refused += names
    if len(hits) == 0 or size is None:
        raise BadData(f"{pictures.name}: none of {count} pictures could be decoded; the first: {names[0]}")
    params, macs = cost(model.module, size)
    whole = len(model.classes) == len(pictures.classes) == 1000
    return Measured(
        network=model.name,
        title=model.title,
        weights={"source": model.weights.source, "sha256": model.weights.sha256},
        data=IMAGENET if whole else pictures.name,
        digest=identity(pictures, limit),
        pictures=len(hits),
        refused=len(names),
        top1=int(hits[:, 0].sum()),
        top5=int(hits.any(1).sum()) if len(model.classes) > 5 else None,
        params=params,
        macs=macs,
        size=size,
        # The first batch pays for what later ones find ready.
        speed=batch * (len(seconds) - 1) / sum(seconds[1:]) if len(seconds) > 1 else None,
        device=_device_name(device),
        batch=batch,
    )


def measure_each(
    pictures: Labelled,
    names: Sequence[str] | None,
    *,
    device: str = "auto",
    limit: int | None = None,
    batch: int = 32,
    known: Sequence[Measured] = (),
    progress: bool | None = None,
) -> Iterator[tuple[Measured, list[str], bool]]:
    """Measure networks one after another: (result, lines on pictures left out, whether it was known already).

    Args:
        pictures: see `r2viz.tables.validation.read`.
        names: of networks; None takes those whose weights are at hand and which know the pictures' classes.
        device: as for `r2viz.load`.
        limit: as for `measure`.
        batch: as for `measure`.
        progress: as for `measure`.
        known: earlier results, taken where weights and pictures are the same.

    Raises:
        BadData: no network knows these classes, or one that was named does not.
    """
    from r2viz.models.model import load

    none = True
    for name in at_hand() if names is None else names:
        model = load(name, device=device)
        if names is None and not suits(pictures, model):
            continue
        none = False
        same = (model.name, identity(pictures, limit), model.weights.sha256)
        before = next((one for one in known if (one.network, one.digest, one.weights["sha256"]) == same), None)
        refused: list[str] = []
        found = before or measure(model, pictures, limit=limit, batch=batch, progress=progress, refused=refused)
        yield found, refused, before is not None
    if none:
        some = ", ".join(one_line(name, 40) for name in pictures.classes[:3])
        raise BadData(
            f"{pictures.name}: no network whose weights are at hand knows its {len(pictures.classes)} classes ({some}"
            f"{', …' if len(pictures.classes) > 3 else ''}); name one with --models, or fetch its weights"
        )


def at_hand() -> list[str]:
    """Networks of the zoo whose weights are in the package or in the cache."""
    from r2viz.models.hub import cached
    from r2viz.models.zoo import ZOO

    return [name for name, row in ZOO.items() if row.embedded or (row.hub and cached(row.hub) is not None)]


def suits(pictures: Labelled, model: Model) -> bool:
    """Whether the network knows the pictures' classes. Numbers suit only where there are as many classes."""
    try:
        outputs(pictures, model)
    except BadData:
        return False
    return not numbered(pictures) or len(pictures.classes) == len(model.classes)


def identity(pictures: Labelled, limit: int | None) -> str:
    """Says whether two measurements were of the same pictures."""
    drawn = pictures.count if limit is None else min(limit, pictures.count)
    return f"{pictures.digest[:32]}:{drawn}"


def cost(module: torch.nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """(parameters, multiply-adds of one picture), counted."""
    from r2viz.models.count import macs, params

    return params(module), macs(module, size)


def recount(name: str) -> tuple[int, int]:
    """(parameters, multiply-adds) of a network of the zoo, built without weights and counted."""
    import torch

    from r2viz.models.zoo import row

    known = row(name)
    with torch.device("meta"):
        module = known.build()
    return cost(module.eval(), known.size)


def as_dict(one: Measured) -> dict[str, Any]:
    """For JSON; `from_dict` reads it back."""
    return asdict(one)


def from_dict(document: Any) -> Measured:
    """What `as_dict` wrote.

    Raises:
        BadRecord: something else.
    """
    try:
        names = {field.name for field in fields(Measured)}
        height, width = document["size"]
        return Measured(**{**{name: document[name] for name in names}, "size": (int(height), int(width))})
    except (KeyError, TypeError, ValueError):
        raise BadRecord("no measurement of r2viz tables; remove the file, or choose another folder with -o") from None


def _batches(
    pool: ThreadPoolExecutor, items: Iterator[Item], model: Model, batch: int, ahead: int
) -> Iterator[list[tuple[torch.Tensor | str, int]]]:
    def one(item: Item) -> tuple[torch.Tensor | str, int]:
        from r2viz.image import decode

        encoded, label, name = item
        try:
            return model.preprocess(decode(encoded, name=name).rgb)[0], label
        except BadImage as error:
            text = str(error)
            return (text if name in text else f"{name}: {text}"), label

    waiting: deque[list[Future[tuple[torch.Tensor | str, int]]]] = deque()
    while True:
        while len(waiting) <= ahead and (portion := list(islice(items, batch))):
            waiting.append([pool.submit(one, item) for item in portion])
        if not waiting:
            return
        yield [future.result() for future in waiting.popleft()]


def _alike(pairs: Sequence[tuple[torch.Tensor, int]]) -> list[list[tuple[torch.Tensor, int]]]:
    """Inputs that can share a forward pass: without a crop, pictures differ in size."""
    groups: dict[tuple[int, ...], list[tuple[torch.Tensor, int]]] = {}
    for x, label in pairs:
        groups.setdefault(tuple(x.shape), []).append((x, label))
    return list(groups.values())


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
