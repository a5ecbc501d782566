"""Methods that look at noisy copies of a picture, many copies in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from r2viz.attribution.gradient import weighted_sum
from r2viz.attribution.rerun import Rerun

COPIES_AT_ONCE = 16
"""Copies per pass where the caller does not say; a batch that is larger goes in passes of its own size."""


def smooth_gradcam_plus_plus(rerun: Rerun, *, copies: int = 4, sigma: float = 0.3) -> Tensor:
    """Grad-CAM++ with derivatives averaged over noisy copies of the picture.

    `-> (N, h, w)`, signed: Omeiza et al. 2019 (arXiv 1908.01224): `w = Σ_ij α · ReLU(mean G)` with
    `α = mean G² / (2 mean G² + S · mean G³)`, S the sum of the channel's activations in the picture without noise,
    which are also what is weighted. `copies` and `sigma` (in units of the preprocessed input) are torch-cam's.

    Departures: the numerator is the mean square, as in Grad-CAM++ and in torch-cam; the paper prints the mean
    gradient. The gradient under the ReLU is averaged, too, and the activations are those of the picture, where
    torch-cam takes the last copy's. All pictures see the same
    noise, drawn on the CPU from the seed, so that a map depends neither on the batch nor on the device.
    """
    batch, activations = rerun.batch, rerun.activations.float()
    count = len(batch)
    noise = torch.randn(copies, *batch.shape[1:], generator=rerun.generator()).to(batch) * sigma
    sums = [torch.zeros_like(activations) for _ in range(3)]
    scale = activations.new_zeros(count)
    rows = torch.arange(count * copies, device=batch.device) % max(count, 1)
    which = torch.arange(count * copies, device=batch.device) // max(count, 1)
    size = rerun.rows_at_once or max(count, COPIES_AT_ONCE)
    for start in range(0, count * copies, size):
        now, drawn = rows[start : start + size], which[start : start + size]
        _, _, gradients = rerun.look(batch[now] + noise[drawn], now)
        gradients = gradients.float()
        # In units of the largest gradient so far: cubes of small gradients would vanish in float32.
        larger = scale.scatter_reduce(0, now, gradients.abs().amax(dim=(1, 2, 3)), "amax")
        shrink = (scale / larger.masked_fill(larger == 0, 1))[:, None, None, None]
        scale = larger
        share = gradients / scale[now].masked_fill(scale[now] == 0, 1)[:, None, None, None]
        for power, total in enumerate(sums, start=1):
            total.mul_(shrink**power).index_add_(0, now, share**power / copies)
        rerun.progress(min(start + size, count * copies), count * copies)
    first, second, third = sums
    area, scale = activations.sum(dim=(2, 3), keepdim=True), scale[:, None, None, None]
    below = 2 * second + area * scale * third
    alpha = torch.where(below == 0, 0, second / below.masked_fill(below == 0, 1))
    return weighted_sum(activations, (alpha * first.clamp(min=0) * scale).sum(dim=(2, 3)))
