"""Pictures and networks through one forward pass per network, on whatever memory there is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from r2viz.attribution.rerun import Progress
from r2viz.errors import ModelError, R2VizError
from r2viz.explain.assemble import Prepared, Seen, look, records
from r2viz.explain.request import Ask, Request
from r2viz.models.model import Model
from r2viz.records import CamRecord
from r2viz.taps import device_of, lock, unwrapped

Results = list[list[CamRecord | R2VizError]]
"""For each picture, what came of each ask."""


def run(
    prepared: list[Prepared], models: Sequence[Model], asked: Sequence[Ask], request: Request, progress: Progress
) -> Results:
    """All asks of all pictures. A device that runs out of memory gets half the batch, then the CPU."""
    rest = (models, asked, request, progress)
    inputs = [[one.inputs[number] for one in prepared] for number in range(len(models))]
    if any(len({tensor.shape for tensor, _ in one}) > 1 for one in inputs):
        # Without a crop, inputs differ in size and cannot share a batch.
        return [run([one], *rest)[0] for one in prepared]
    try:
        seen = [look(model, one, request) for model, one in zip(models, inputs, strict=True)]
        by_ask = []
        for number, ask in enumerate(asked):
            last = number + 1 == len(asked)
            by_ask.append(
                _answer(prepared, seen, ask, request, keep=not last, progress=progress, alone=len(asked) == 1)
            )
        return [list(answers) for answers in zip(*by_ask, strict=True)]
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        # Nothing is computed in this handler: while it runs, the traceback keeps the failed tensors alive.
        seen = []
    if len(prepared) > 1:
        half = len(prepared) // 2
        _say_once("the device ran out of memory; going on with smaller batches")
        return run(prepared[:half], *rest) + run(prepared[half:], *rest)
    if any(device_of(model.module).type != "cpu" for model in models):
        _say_once("the device ran out of memory with a single picture; going on with the CPU")
        for model in models:
            with lock(unwrapped(model.module)):  # another thread may be in the middle of a forward pass
                model.module.to("cpu")
        torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
        return run(prepared, *rest)
    error_ = ModelError("out of memory with a single picture on the CPU; use a smaller network or input", code="memory")
    return [[error_ for _ in asked]]


def _answer(
    prepared: Sequence[Prepared],
    seen: Sequence[Seen],
    ask: Ask,
    request: Request,
    *,
    keep: bool,
    progress: Progress,
    alone: bool,
) -> list[CamRecord | R2VizError]:
    """A method among several that a network does not allow leaves its place to the reason; alone, it is the error."""
    try:
        return records(prepared, seen, ask, request, keep=keep, progress=progress)
    except R2VizError as error:
        if alone:
            raise
        return [error for _ in prepared]


def _out_of_memory(error: Exception) -> bool:
    # Only CUDA's allocator has an exception of its own; the CPU's and MPS's say it in words.
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    said = str(error).casefold()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in said for word in words)


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
