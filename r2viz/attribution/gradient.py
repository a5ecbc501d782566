"""Map functions of activations and gradients: signed map out. They know no network and no picture.

All take tensors `(N, C, h, w)` of any floating-point type in any memory order and compute in float32. The last ReLU of
the published formulas is a view of the map, not part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from r2viz.attribution.rerun import Rerun
from r2viz.errors import ModelError

# --- Channel weights -------------------------------------------------------------------------------------------------


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel sum weighted by each channel's mean gradient.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: equation 2 of Selvaraju et al. 2017 (arXiv 1610.02391) without
    its ReLU, which is a view of the map and not part of it.
    """
    return weighted_sum(activations, gradients.float().mean(dim=(2, 3)))


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel sum weighted by `w = Σ_ij α · ReLU(G)`, with a weight α for every position.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: Chattopadhay et al. 2018 (arXiv 1710.11063), equations 5, 11 and
    19 for the score `Y = exp(s)`, whose derivatives are powers of G = ∂s/∂A. The factor exp(s), one positive number
    per picture, is left out, as every implementation does.

    `α = G² / (2 G² + S G³)` with `S = Σ_ij A` is computed as `1 / (2 + S G)`, which is the same number where G ≠ 0:
    squares and cubes of gradients vanish in float32, and the 1e-6 that pytorch-grad-cam adds to the denominator is not
    small beside it (gradients of 5e-4 at `layer4` of the mini pair: its maps are up to 18 % of their maximum off).
    Where the denominator is 0, possible only for activations that are negative in sum, α is 0.
    """
    sums = activations.float().sum(dim=(2, 3), keepdim=True)
    return weighted_sum(activations, plus_plus_weights(sums, gradients.float()))


def plus_plus_weights(sums: Tensor, gradients: Tensor) -> Tensor:
    """`Σ_ij ReLU(G) / (2 + S G)`: `(N, C, 1, 1), (N, C, h, w) -> (N, C)`."""
    positive = gradients.clamp(min=0)
    return _over(positive, 2 + sums * positive).sum(dim=(2, 3))


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel sum weighted by the mean gradient over a channel's activations, `Σ_ij G A / Σ_ij A`.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: Fu et al. 2020 (arXiv 2008.02312), equation 8. A channel whose
    activations sum to 0 gets weight 0; peers add 1e-7 to the sum instead. Where the gradient is the same everywhere
    (pooling and a linear layer follow), it is Grad-CAM.
    """
    activations = activations.float()
    weights = _over((activations * gradients.float()).sum(dim=(2, 3)), activations.sum(dim=(2, 3)))
    return weighted_sum(activations, weights)


def shapleycam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """Channel sum weighted by the mean of `G - H·A / 2`: Grad-CAM with the score's curvature taken into account.

    `(N, C, h, w) × 3 -> (N, h, w)`, signed: Cai 2025 (arXiv 2501.06261), the second-order Taylor expansion of the
    Shapley value. `products` is the exact product of the Hessian with the activations. The score of a class is the
    paper's ReST, `y_c + log softmax(y)_c`: networks of ReLUs are piecewise linear, so that for a bare logit the
    product is 0 and the map Grad-CAM's. A score function of one's own is taken as it is.
    """
    return weighted_sum(activations, (gradients.float() - products.float() / 2).mean(dim=(2, 3)))


# --- Element by element ----------------------------------------------------------------------------------------------


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`Σ_c ReLU(G) · A`: every position has its own weight, and only gradients that speak for the class count.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: Jiang et al. 2021 (doi 10.1109/TIP.2021.3089943), equations 5
    and 6. The scaling by tanh, equation 9, which the paper applies to shallow layers before it fuses, is not part of
    the map.
    """
    return (gradients.float().clamp(min=0) * activations.float()).sum(dim=1)


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`Σ_c G · A`: gradients are not averaged, so the map sums to what the linearised network gets from the layer.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: Draelos & Carin 2020 (arXiv 2011.08891), equation 3.
    """
    return (gradients.float() * activations.float()).sum(dim=1)


# --- By way of the head, and a control -------------------------------------------------------------------------------


def cam(rerun: Rerun) -> Tensor:
    """Channel sum weighted by the class's row of the linear layer that follows global average pooling.

    `-> (N, h, w)`, signed: Zhou et al. 2016 (arXiv 1512.04150), equation 2. A score that is a function of several
    logits (a contrast of two classes) weights with the same function of their rows, by its gradient.

    Raises:
        ModelError: what follows the layer is not average pooling and one linear layer.
    """
    head = rerun.linear_head()
    if head is None:
        raise ModelError(
            f"CAM needs average pooling and one linear layer right after the layer, and {rerun.layer!r} of "
            f"{type(rerun.module).__name__} is not followed by them; use method 'gradcam', which generalises CAM"
        )
    rows = torch.arange(len(rerun.activations), device=rerun.activations.device)
    logits = replace(rerun, score=_everything).after(rerun.activations, rows)
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits.clone().requires_grad_(True)
        (share,) = torch.autograd.grad(rerun.score(logits, rows).sum(), logits)
        return weighted_sum(rerun.activations, share.float() @ head.detach().float())


def random(rerun: Rerun) -> Tensor:
    """A control: independent numbers, uniform on [0, 1), `-> (N, h, w)`.

    Drawn from the seed, the network's architecture, the layer's name and the picture's content: the same whatever
    batch the picture is in and on every device, another for every picture and for the other network of a pair. A
    measure that cannot tell a method from it says nothing of the method.
    """
    shapes = [(name, tuple(weight.shape)) for name, weight in rerun.module.named_parameters()]
    drawn = []
    for picture in rerun.batch:
        digest = hashlib.blake2b(digest_size=7)
        digest.update(f"{rerun.seed} {rerun.layer} {shapes}".encode())
        digest.update(picture.detach().float().cpu().contiguous().numpy().tobytes())
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))
        drawn.append(torch.rand(rerun.activations.shape[2:], generator=generator))
    if not drawn:
        return rerun.activations.new_zeros(0, *rerun.activations.shape[2:], dtype=torch.float32)
    return torch.stack(drawn).to(rerun.activations.device)


def _everything(output: Any, _rows: Tensor) -> Tensor:
    return output


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """`Σ_c weights[n, c] · activations[n, c]`: `(N, C, h, w), (N, C) -> (N, h, w)`, float32.

    As one matrix product per picture in the memory order that the activations have, with no product tensor.
    """
    activations = activations.float()
    count, channels, height, width = activations.shape
    if activations.is_contiguous(memory_format=torch.channels_last):
        flat = activations.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        return torch.bmm(flat, weights[:, :, None]).view(count, height, width)
    flat = activations.reshape(count, channels, height * width)
    return torch.bmm(weights[:, None, :], flat).view(count, height, width)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is 0."""
    none = denominator == 0
    return (numerator / denominator.masked_fill(none, 1)).masked_fill(none, 0)
