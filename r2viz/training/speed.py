"""The same layers, faster to train in bfloat16 on CPUs with matrix units (AMX).

oneDNN computes the gradient of a convolution's weights in bfloat16 three to five times slower than its forward pass
when maps are small (4x4 to 8x8, as here). Written as matrix products over pixels (a 1x1 convolution is one; a 3x3
one after its nine neighbours are laid side by side), it costs about twice what the forward pass does.

PyTorch's element-wise loops over bfloat16 convert to float32 and back, and that, not memory, is what they wait for;
so ReLU compares the bits as 16-bit integers. Its gradient took longest after the mean over the last map, whose own
gradient is not channels-last.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_UNFOLDED = 8
"""Side of the largest map whose neighbours are laid side by side: nine copies of a larger one cost more than is won."""

_PIXELS_UNFOLDED = 2048
"""So many pixels at a time."""

_ABOVE_NEGATIVE = -128
"""Bits of -inf as an integer: negative numbers are at most this, and NaNs with a sign, which must stay, are above."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def fast_layers(module: nn.Module) -> Iterator[None]:
    """Within, layers of `module` run in bfloat16 with gradients that take less time than PyTorch's.

    Plain 1x1 and 3x3 convolutions get theirs as matrix products; ReLU (of bfloat16) and the mean over a map keep to
    channels-last memory. Parameters stay float32 and get float32 gradients. State dict, hooks and module identities
    are untouched; convolutions that are grouped, dilated or biased keep their own forward.
    """
    changed: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and _plain(part):
            part.forward = partial(_forward, part)  # type: ignore[method-assign]
        elif type(part) is nn.ReLU:
            part.forward = partial(_rectified, part)  # type: ignore[method-assign]
        elif type(part) is nn.AdaptiveAvgPool2d and part.output_size in (1, (1, 1)):
            part.forward = _Mean.apply  # type: ignore[method-assign]
        else:
            continue
        changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            del part.forward


def _plain(conv: nn.Conv2d) -> bool:
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size in ((1, 1), (3, 3))
        and conv.stride == (stride, stride)
        and conv.padding == (kernel // 2, kernel // 2)
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
    )


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    function = _Pointwise if conv.kernel_size == (1, 1) else _Neighbours
    return function.apply(x, conv.weight, conv.stride[0])


def _rows(x: Tensor) -> Tensor:
    """`(N, C, H, W)` as `(N·H·W, C)`: a view when `x` is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, n: int, h: int, w: int) -> Tensor:
    """`(N·H·W, C)` as channels-last `(N, C, H, W)`."""
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution as one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = x.to(torch.bfloat16)
        ctx.stride, ctx.shape = stride, x.shape
        seen = x[:, :, ::stride, ::stride]
        rows, matrix = _rows(seen), weight.to(torch.bfloat16).flatten(1)
        ctx.save_for_backward(rows, matrix)
        return _maps(rows @ matrix.t(), seen.shape[0], seen.shape[2], seen.shape[3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        rows, matrix = ctx.saved_tensors
        (grad,) = grads
        out = _rows(grad)
        of_weight = (out.t() @ rows).float()[:, :, None, None]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _maps(out @ matrix, grad.shape[0], grad.shape[2], grad.shape[3])
            if ctx.stride > 1:
                whole = torch.zeros(ctx.shape, dtype=of_x.dtype).contiguous(memory_format=torch.channels_last)
                whole[:, :, :: ctx.stride, :: ctx.stride] = of_x
                of_x = whole
        return of_x, of_weight, None


class _Neighbours(torch.autograd.Function):
    """A 3x3 convolution with padding 1: oneDNN's, but for the weights' gradient on small maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight = weight.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, stride, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        stride = ctx.stride
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        channels, height = x.shape[1:3]
        unfold = channels > 4 and height <= LARGEST_UNFOLDED
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            [stride, stride],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [ctx.needs_input_grad[0], not unfold, False],
        )
        if unfold:
            of_weight = _unfolded(grad, x, stride)
        return of_x, of_weight.float(), None


def _unfolded(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The weights' gradient `(O, C, 3, 3)`, at least float32, from the output's `(N, O, h, w)` and the input."""
    n, channels = x.shape[:2]
    outputs, h, w = grad.shape[1:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    picture, row, pixel, _ = padded.stride()
    # In channels-last memory the three neighbours of a row lie side by side already.
    neighbours = padded.as_strided((n, h, w, 3, 3 * channels), (picture, row * stride, pixel * stride, row, 1))
    rows = _rows(grad)
    total = torch.zeros(outputs, 9 * channels, dtype=torch.promote_types(grad.dtype, torch.float32))
    # Few pictures at a time: the copies, nine times the map, are multiplied while they are in the cache.
    few = max(1, _PIXELS_UNFOLDED // (h * w))
    for start in range(0, n, few):
        patches = neighbours[start : start + few].reshape(-1, 9 * channels)
        total += rows[start * h * w : (start + few) * h * w].t() @ patches
    return total.view(outputs, 3, 3, channels).permute(0, 3, 1, 2)


def _rectified(relu: nn.ReLU, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16:
        return F.relu(x, inplace=relu.inplace)
    return _Rectifier.apply(x if relu.inplace and not x._is_view() else x.clone())


class _Rectifier(torch.autograd.Function):
    """ReLU in place, on bfloat16 numbers read as 16-bit integers, which have the same sign; exact, and -0 becomes 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        torch.threshold_(x.view(torch.int16), _ABOVE_NEGATIVE, 0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        of_x = torch.empty_like(y)
        torch.ops.aten.threshold_backward.grad_input(
            grads[0].view(torch.int16), y.view(torch.int16), 0, grad_input=of_x.view(torch.int16)
        )
        return of_x


class _Mean(torch.autograd.Function):
    """The mean over a map, `(N, C, H, W)` to `(N, C, 1, 1)`.

    PyTorch's own gradient is not channels-last; whatever comes next would cross memory the wrong way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _, _, h, w = ctx.shape
        return (grads[0] / (h * w)).expand(ctx.shape)


def keep_memory() -> None:
    """Let this process keep what it frees, in huge pages (Linux with glibc; elsewhere nothing happens).

    A step allocates and frees the same tens of megabytes hundreds of times. By default each block goes back to the
    system and comes back as thousands of page faults, which cost a third of the time. PyTorch asks for huge pages
    only if told so before its first tensor; later calls still save the faults.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28)):
        mallopt(option, value)
