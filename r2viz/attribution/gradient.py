"""Map functions: activations and gradients in, signed map out. They know no network and no picture."""

from __future__ import annotations

import torch
from torch import Tensor


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel sum weighted by each channel's mean gradient.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`, signed: equation 2 of Selvaraju et al. 2017 (arXiv 1610.02391) without
    its ReLU, which is a view of the map and not part of it.
    """
    return weighted_sum(activations, gradients.float().mean(dim=(2, 3)))


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
