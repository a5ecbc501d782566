"""The same convolutions, faster to train in bfloat16 on CPUs with matrix units (AMX).

oneDNN computes the gradient of a convolution's weights in bfloat16 three to five times slower than its forward pass
when maps are small (4x4 to 8x8, as here). Written as matrix products over pixels (a 1x1 convolution is one; a 3x3
one after its nine neighbours are laid side by side), it costs about what the forward pass does.
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

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def matrix_convolutions(module: nn.Module) -> Iterator[None]:
    """Within, plain 1x1 and 3x3 convolutions of `module` run in bfloat16 with gradients as matrix products.

    Parameters stay float32 and get float32 gradients. State dict, hooks and module identities are untouched;
    convolutions that are grouped, dilated or biased keep their own forward.
    """
    changed = [conv for conv in module.modules() if isinstance(conv, nn.Conv2d) and _plain(conv)]
    for conv in changed:
        conv.forward = partial(_forward, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in changed:
            del conv.forward


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
        n, channels, height, _ = x.shape
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
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            picture, row, pixel, _ = padded.stride()
            h, w = grad.shape[2:]
            # In channels-last memory the three neighbours of a row lie side by side already.
            patches = padded.as_strided(
                (n, h, w, 3, 3 * channels), (picture, row * stride, pixel * stride, row, 1)
            ).reshape(n * h * w, 9 * channels)
            of_weight = (_rows(grad).t() @ patches).view(weight.shape[0], 3, 3, channels).permute(0, 3, 1, 2)
        return of_x, of_weight.float(), None


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
