"""What a map explains: one number per picture, made from a network's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2viz.errors import BadTarget, ModelError, one_line

Targets = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None
"""A class for all pictures, one for each, None for each picture's own top-1, or a function of the output."""

Score = Callable[[Any, Tensor], Tensor]
"""`(output (M, …), rows (M,)) -> (M,)`: the score of variant m, made from picture `rows[m]` of the batch."""


@dataclass(frozen=True)
class Contrast:
    """Why `wanted` and not `other`: the difference of two classes' logits, `(N, classes) -> (N,)`."""

    wanted: int
    other: int

    def __call__(self, output: Tensor) -> Tensor:
        logits = _logits(output)
        for index in (self.wanted, self.other):
            _in_range(torch.tensor([index]), logits)
        return logits[:, self.wanted] - logits[:, self.other]


@dataclass(frozen=True, eq=False)
class Pixels:
    """A class's score over a set of pixels of a segmentation output, `(N, classes, H, W) -> (N,)`.

    The sum of the class's logits over `mask` `(H, W)` (Vinogradova et al. 2020, Seg-Grad-CAM, equation 2, up to the
    constant number of pixels); None takes the pixels where the class is the most probable one.
    """

    index: int
    mask: np.ndarray | Tensor | None = None

    def __call__(self, output: Any) -> Tensor:
        maps = output["out"] if isinstance(output, dict) else output
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            raise ModelError(f"the network gave {_shape(maps)}, but a segmentation (N, classes, H, W) was expected")
        if not 0 <= self.index < maps.shape[1]:
            raise BadTarget(f"class {self.index} does not exist: the network has classes 0 to {maps.shape[1] - 1}")
        if self.mask is None:
            where = (maps.argmax(dim=1) == self.index).detach()
        else:
            where = torch.as_tensor(self.mask, device=maps.device).bool()
            if where.shape != maps.shape[2:]:
                raise BadTarget(f"the mask is {tuple(where.shape)}, but the network's output {tuple(maps.shape[2:])}")
        return (maps[:, self.index] * where).sum(dim=(1, 2))


def score_of(targets: Targets, output: Any) -> Score:
    """`targets` as a function that also scores variants of the batch that gave `output`.

    Raises:
        BadTarget: a class index out of range, or a number of targets other than N.
        ModelError: the output is not `(N, classes)`, and the target is no function of it.
    """
    if callable(targets):
        function = targets

        def own(output: Any, _rows: Tensor) -> Tensor:
            values = function(output)
            if not isinstance(values, Tensor) or values.ndim != 1:
                raise BadTarget(f"the target function gave {_shape(values)}; expected one number per picture, (N,)")
            return values

        return own
    indices = class_indices(targets, _logits(output))
    return lambda output, rows: _logits(output).gather(1, indices[rows][:, None])[:, 0]


def rest_score(targets: Targets, output: Any) -> Score:
    """`y_c + log softmax(y)_c`, the residual softmax target class (Cai 2025, arXiv 2501.06261).

    The logit together with how it stands to the others. A function of the output is taken as it is.

    Raises:
        BadTarget, ModelError: see `score_of`.
    """
    logit = score_of(targets, output)
    if callable(targets):
        return logit
    return lambda output, rows: 2 * logit(output, rows) - torch.logsumexp(_logits(output), dim=1)


def finer_score(targets: Targets, output: Any, *, others: int = 3, gamma: float = 0.6) -> Score:
    """`y_c - γ · mean of y_d` over the classes d whose logits are nearest to the class's own.

    Zhang et al. 2025 (arXiv 2501.11309): what tells the class from those it is most like. They are chosen once, from
    `output`; fewer than `others` where the network has fewer.

    Raises:
        BadTarget: the target is a function, which names no class, or the network has one class only.
        ModelError: see `score_of`.
    """
    if callable(targets):
        raise BadTarget(
            "Finer-CAM compares a class with those most like it, but the target is a function; give a class index, "
            "or use method 'gradcam'"
        )
    logits = _logits(output).detach()
    indices = class_indices(targets, logits)
    if logits.shape[1] < 2:
        raise BadTarget("Finer-CAM compares a class with others, but the network has one class; use method 'gradcam'")
    apart = (logits - logits.gather(1, indices[:, None])).float().abs().scatter(1, indices[:, None], torch.inf)
    # Sorted, not topk: of equal distances the first class, on every device.
    near = apart.sort(dim=1, stable=True).indices[:, : min(others, logits.shape[1] - 1)]

    def score(output: Any, rows: Tensor) -> Tensor:
        found = _logits(output)
        return found.gather(1, indices[rows][:, None])[:, 0] - gamma * found.gather(1, near[rows]).mean(dim=1)

    return score


def class_indices(targets: Any, logits: Tensor) -> Tensor:
    """`targets` as one class index per picture, `(N,)`, checked against `(N, classes)`."""
    count = len(logits)
    if targets is None:
        return logits.detach().argmax(dim=1)
    try:
        indices = torch.as_tensor(targets, device=logits.device)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # what torch says of text, None, ragged lists, 2**70
        raise BadTarget(
            f"targets {one_line(repr(targets), 60)} are not class indices; give one for all pictures, or one for each"
        ) from None
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise BadTarget(f"targets are of type {indices.dtype}; class indices are whole numbers")
    indices = indices.clone().long()  # a tensor made under inference_mode could not be saved for the gradient
    if indices.ndim == 0:
        indices = indices.expand(count)
    if indices.shape != (count,):
        raise BadTarget(f"{tuple(indices.shape)} targets came for {count} pictures; give one for all, or one for each")
    _in_range(indices, logits)
    return indices


def _in_range(indices: Tensor, logits: Tensor) -> None:
    classes = logits.shape[1]
    wrong = indices[(indices < 0) | (indices >= classes)]
    if len(wrong):
        raise BadTarget(f"class {int(wrong[0])} does not exist: the network has classes 0 to {classes - 1}")


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ModelError(f"the network gave {_shape(output)}, but a classifier's output (N, classes) was expected")
    return output


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
