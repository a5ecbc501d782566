"""FullGrad: the gradient of the input and of every bias of the network, on one map of the input's size."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from r2viz.attribution.rerun import Rerun
from r2viz.errors import ModelError
from r2viz.taps import frozen, lock

PICTURES_AT_ONCE = 8
"""Pictures per pass where the caller does not say: the outputs of all layers with a bias are kept."""


@dataclass(frozen=True, eq=False)
class FullGradients:
    """A score taken apart: in a network of ReLUs, `score = Σ input + Σ layers + Σ others`, exactly.

    Attributes:
        input: `∂s/∂x · x`, `(N, 3, H, W)`.
        layers: `∂s/∂z · b` for every layer output z with a bias b and a place, `(N, C, h, w)`, in the order they ran.
        others: the sum over biases that have no place (of linear layers, or behind a global pooling), `(N,)`.
    """

    input: Tensor
    layers: tuple[Tensor, ...]
    others: Tensor


def fullgrad(rerun: Rerun) -> Tensor:
    """`ψ(∂s/∂x · x) + Σ_layers Σ_c ψ(∂s/∂z · b)`, with `ψ = upsample(rescale(|·|))`.

    `-> (N, H, W)`, of the input's size, whatever the layer: Srinivas & Fleuret 2019 (arXiv 1905.00780), equation 8;
    never negative. As in the authors' code, ψ rescales all channels of a layer together to [0, 1] (pytorch-grad-cam
    rescales each channel) and upsamples bilinearly, corners aligned. The map is a sum of rescaled parts, so that its
    height compares with nothing but itself.

    Biases are those of convolutions and of batch normalisations, `β - μ γ / √(σ² + ε)` in evaluation mode. Biases
    without a place, and the implicit ones of nonlinearities other than ReLU (the sigmoid of squeeze-and-excitation),
    are left out.

    Raises:
        ModelError: a bias is hidden inside a layer that does more than normalise or convolve.
    """
    size = rerun.rows_at_once or PICTURES_AT_ONCE
    height, width = rerun.batch.shape[2:]
    maps = [rerun.batch.new_zeros(0, height, width, dtype=torch.float32)]
    for start in range(0, len(rerun.batch), size):
        rows = torch.arange(start, min(start + size, len(rerun.batch)), device=rerun.batch.device)
        parts = full_gradients(rerun, rows)
        total = _rescaled(parts.input).sum(dim=1)
        for layer in parts.layers:
            small = _rescaled(layer).sum(dim=1, keepdim=True)
            large = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=True)
            # Interpolated equal values differ in the last digit; a map that is constant shall be seen to be.
            low, high = small.amin(dim=(2, 3), keepdim=True), small.amax(dim=(2, 3), keepdim=True)
            total += large.clamp(low, high)[:, 0]
        maps.append(total)
        rerun.progress(int(rows[-1]) + 1, len(rerun.batch))
    return torch.cat(maps)


def full_gradients(rerun: Rerun, rows: Tensor) -> FullGradients:
    """The parts of the scores of the pictures `rows`, float32.

    Raises:
        ModelError: see `fullgrad`.
    """
    module = rerun.module
    biased = {part: bias for part in module.modules() if (bias := _bias(part)) is not None}
    kept: list[tuple[Tensor, nn.Module]] = []
    owner = threading.get_ident()

    def keep(part: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != owner:
            return None
        kept.append((output, part))
        return output.clone()  # a ReLU in place would turn what was kept into its own output

    with (
        lock(module),
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen(module),
        ExitStack() as stack,
    ):
        for part in biased:
            stack.callback(part.register_forward_hook(keep).remove)
        batch = rerun.batch[rows].clone().requires_grad_(True)
        total = rerun.score(module(batch), rows.clone()).sum()
    found = torch.autograd.grad(total, [batch, *(output for output, _ in kept)], allow_unused=True)
    if found[0] is None:
        raise ModelError("the class scores do not depend on the picture's pixels by a path that a gradient can follow")
    others = torch.zeros(len(rows), device=batch.device)
    layers = []
    for (_, part), gradient in zip(kept, found[1:], strict=True):
        if gradient is None:
            continue
        channels_first = gradient.movedim(-1, 1) if isinstance(part, nn.Linear) else gradient
        share = channels_first.float() * biased[part].view(-1, *[1] * (gradient.ndim - 2))
        if share.ndim == 4 and share.shape[2] * share.shape[3] > 1:
            layers.append(share)
        else:
            others += share.flatten(1).sum(dim=1)
    return FullGradients((found[0] * batch.detach()).float(), tuple(layers), others)


def _bias(part: nn.Module) -> Tensor | None:
    """What `part` adds to its output whatever its input, `(C,)` in float32; None: nothing."""
    if isinstance(part, _BatchNorm):
        if part.running_mean is None or part.running_var is None:
            raise ModelError(
                "FullGrad needs batch normalisations with running statistics: without, a bias depends on the batch; "
                "use another method"
            )
        _plain(part, _BatchNorm)
        spread = torch.rsqrt(part.running_var.float() + part.eps)
        weight = 1 if part.weight is None else part.weight.detach().float()
        bias = 0 if part.bias is None else part.bias.detach().float()
        return bias - part.running_mean.float() * spread * weight
    if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None:
        _plain(part, nn.Conv2d if isinstance(part, nn.Conv2d) else nn.Linear)
        return part.bias.detach().float()
    return None


def _plain(part: nn.Module, kind: type[nn.Module]) -> None:
    if type(part).forward is not kind.forward:
        raise ModelError(
            f"FullGrad needs to see what each bias is added to, but {type(part).__name__} does more than "
            f"{kind.__name__.strip('_')}; use another method"
        )


def _rescaled(part: Tensor) -> Tensor:
    """`|part|` `(N, C, h, w)` stretched to [0, 1] per picture; all zero where it is the same everywhere."""
    part = part.abs()
    low, high = part.amin(dim=(1, 2, 3), keepdim=True), part.amax(dim=(1, 2, 3), keepdim=True)
    return (part - low) / (high - low).masked_fill(high == low, 1)
