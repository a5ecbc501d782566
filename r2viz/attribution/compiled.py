"""What needs no gradient, compiled by inductor with its weights as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def compiled(
    prefix: fx.GraphModule, batch: Tensor, agrees: Callable[[tuple[Any, ...], Tensor], bool]
) -> Callable[[Tensor], tuple[Any, ...]] | str:
    """`prefix` for batches of exactly `batch`'s shape, or why that cannot be: a compiler is missing, or fails.

    Args:
        prefix: batch -> tensors.
        batch: compiled for, and tried with.
        agrees: whether what was found for the first picture is right.
    """
    try:
        with torch.no_grad():
            # The setting goes with this one call: a user's own torch.compile is not ours to change.
            function = torch.compile(prefix, dynamic=False, options={"freezing": True})
            found = tuple(it[:1] if isinstance(it, Tensor) else it for it in function(batch))
            return function if agrees(found, batch[:1]) else "what the compiler made gives other numbers"
    except Exception as error:  # a compiler may be missing, too old or broken in many ways
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
