"""The gradient back to the input for less than autograd takes: convolutions and the normalisations after them.

The forward pass is the network's own, bit for bit: a ReLU whose input is all but zero must not switch. Only the way
back is another, and it is linear, so it differs by rounding alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FEW_CHANNELS = 4
"""Libraries take five times the forward pass for the gradient of so few input channels."""


@dataclass(frozen=True, eq=False)
class _Convolution:
    """What `y = conv2d(x, weight, ...)` was called with."""

    x: Tensor
    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def back(self, gradient: Tensor, scale: Tensor | None) -> Tensor:
        """The gradient `(N, C, H, W)` of `x` from that of `y · scale`."""
        weight = self.weight
        if scale is not None and weight.numel() <= gradient.numel():
            weight = weight * scale[:, None, None, None]
        elif scale is not None:
            gradient = gradient * scale[:, None, None, None].transpose(0, 1)
        plain = self.groups == 1 and self.dilation == (1, 1)
        if plain and weight.shape[2:] == (1, 1) and self.padding == (0, 0):
            return _back_pointwise(gradient, weight[:, :, 0, 0], self.x, self.stride)
        if plain and weight.shape[1] <= _FEW_CHANNELS and self.stride[0] == self.stride[1]:
            return _back_by_phases(gradient, weight, self.x, self.stride[0], self.padding)
        called = gradient, self.x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups
        return torch.ops.aten.convolution_backward(*called, [True, False, False])[0]


def _back_pointwise(gradient: Tensor, weight: Tensor, x: Tensor, stride: tuple[int, int]) -> Tensor:
    """A 1x1 convolution is a matrix product over pixels, and so is its gradient."""
    found = (gradient.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    if stride == (1, 1):
        return found
    whole = torch.zeros_like(x)
    whole[:, :, :: stride[0], :: stride[1]] = found
    return whole


def _back_by_phases(gradient: Tensor, weight: Tensor, x: Tensor, step: int, padding: tuple[int, int]) -> Tensor:
    """Pixels of equal remainder by the stride are channels of one convolution of stride 1, then laid side by side.

    With `u + p = s·q + r` the gradient at pixel u is `Σ_j g[q − j] · w[s·j + r]`.
    """
    outputs, inputs, height, width = weight.shape
    rows, columns = -(-height // step), -(-width // step)
    filled = F.pad(weight, (0, columns * step - width, 0, rows * step - height))
    phases = filled.reshape(outputs, inputs, rows, step, columns, step).flip(2, 4)
    kernel = phases.permute(1, 3, 5, 0, 2, 4).reshape(inputs * step * step, outputs, rows, columns)
    found = F.pixel_shuffle(F.conv2d(gradient, kernel, padding=(rows - 1, columns - 1)), step)
    (top, left), (bottom, right) = padding, (padding[0] + x.shape[2], padding[1] + x.shape[3])
    # What no window reaches has no gradient.
    beyond = (0, max(0, right - found.shape[3]), 0, max(0, bottom - found.shape[2]))
    return F.pad(found, beyond)[:, :, top:bottom, left:right]


class _Convolved(torch.autograd.Function):
    """`y = conv2d(x)`, or what a normalisation made of it, as a function of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Callable[[], Tensor], made: _Convolution, scale: Tensor | None) -> Tensor:
        ctx.made, ctx.scale = made, scale
        return result()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.made.back(gradients[0], ctx.scale), None, None, None


class Sloped(TorchFunctionMode):
    """Within, a frozen network in evaluation mode runs as ever, with a cheaper way back to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[weakref.ref[Tensor], int, _Convolution] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs and args[0].requires_grad:
            return self._convolved(*args)
        if func is F.batch_norm and self.last is not None and self.last[0]() is args[0]:
            return self._normalised(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolved(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or weight.requires_grad or x.ndim != 4:
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        run = partial(torch.conv2d, x, weight, bias, stride, padding, dilation, groups)
        made = _Convolution(x.detach(), weight, _pair(stride), _pair(padding), _pair(dilation), groups)
        found = _Convolved.apply(x, run, made, None)
        self.last = weakref.ref(found), found._version, made
        self.source = x
        return found

    def _normalised(
        self,
        y: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        run = partial(F.batch_norm, y, mean, variance, weight, bias, training, momentum, eps)
        assert self.last is not None
        _, version, made = self.last
        if training or variance is None or y._version != version:
            return run()
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        return _Convolved.apply(self.source, run, made, scale)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    return (value[0], value[-1])
