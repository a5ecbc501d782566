"""Map functions without a class: what a layer's features have most in common, and where they stand out.

The features of a picture are a matrix X `(h·w, C)`, a row for each position. All compute in float32 or better,
whatever the type of the activations. A component's sign is arbitrary in mathematics and decided here (`_signed`).
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_DENSE = 512
"""Up to this size of matrix all eigenvectors are computed; beyond it, the first alone by Lanczos' method."""


def eigencam(activations: Tensor) -> Tensor:
    """The features' projection on their first right singular vector, `X v₁`.

    `(N, C, h, w) -> (N, h, w)`: Muhammad & Yeasin 2020 (arXiv 2008.00299), equations 3 and 4. Features are not
    centred, as in the paper, so that maps of features that are never negative are never negative either. Away from the
    last layers that is mostly the features' mean; `centred_eigencam` is pytorch-grad-cam's form. No class takes part.
    """
    return _first_component(_positions(activations), activations.shape)


def centred_eigencam(activations: Tensor) -> Tensor:
    """The features' first principal component proper: as `eigencam`, after each channel's mean is taken away.

    `(N, C, h, w) -> (N, h, w)`: what pytorch-grad-cam calls Eigen-CAM (there with a sign left to chance; here positive
    where the layer is more active than on average). No class takes part.
    """
    features = _positions(activations)
    return _first_component(features - features.mean(dim=1, keepdim=True), activations.shape)


def eigengradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """The first principal component of `A · G`, positive where there is more evidence for the class than on average.

    `(N, C, h, w), (N, C, h, w) -> (N, h, w)`: pytorch-grad-cam's variant of Eigen-CAM, its only source; centred like
    there.
    """
    features = _positions(activations.float() * gradients.float())
    return _first_component(features - features.mean(dim=1, keepdim=True), activations.shape)


def kpcacam(activations: Tensor) -> Tensor:
    """The first component of kernel PCA with the sigmoid kernel `tanh(x·y / C + 1)` of centred features.

    `(N, C, h, w) -> (N, h, w)`: Karmani et al. 2024 (arXiv 2410.00267), with the kernel's parameters as in the authors'
    code (pytorch-grad-cam, by scikit-learn's defaults). Costs a matrix of `(h·w)²` numbers per picture: 80 MB at 56
    × 56. No class takes part.
    """
    count, channels, height, width = activations.shape
    features = _positions(activations)
    features = features - features.mean(dim=1, keepdim=True)
    wide = features if features.device.type == "mps" else features.double()  # MPS knows no float64
    maps = [features.new_zeros(0, height * width)]
    # One by one: the kernel matrices of a whole batch would not fit.
    for one, start in zip(wide.split(1), features.sum(dim=2).split(1), strict=True):
        kernel = torch.tanh(one @ one.mT / channels + 1)
        kernel = (
            kernel
            - kernel.mean(dim=1, keepdim=True)
            - kernel.mean(dim=2, keepdim=True)
            + kernel.mean(dim=(1, 2), keepdim=True)
        )
        value, vector = _first_eigenvector(kernel, start.to(kernel.dtype))
        # What rounding leaves of equal features is no component.
        value = value.masked_fill(value <= 100 * height * width * torch.finfo(kernel.dtype).eps, 0)
        maps.append(_signed((vector * value.sqrt()[:, None]).float(), start))
    return torch.cat(maps).view(count, height, width)


def fem(activations: Tensor, *, sigmas: float = 2) -> Tensor:
    """`Σ_c μ_c · [A_c > μ_c + 2 σ_c]`: where channels are unusually active, weighted by their mean activation.

    `(N, C, h, w) -> (N, h, w)`: Fuad et al. 2020 (doi 10.1109/IPTA50016.2020.9286629), mean μ and population deviation
    σ over positions. As in the authors' code and in Xplique; pytorch-grad-cam's FEM is another map, the activations
    weighted by the share of positions above the threshold. No class takes part. Of four positions or fewer none can be
    two deviations above their mean, so that the map is 0.
    """
    activations = activations.float()
    mean = activations.mean(dim=(2, 3), keepdim=True)
    deviation = (activations - mean).square().mean(dim=(2, 3), keepdim=True).sqrt()
    return (mean * (activations > mean + sigmas * deviation)).sum(dim=1)


def _positions(activations: Tensor) -> Tensor:
    """`(N, C, h, w) -> (N, h·w, C)`, float32."""
    count, channels, height, width = activations.shape
    return activations.float().permute(0, 2, 3, 1).reshape(count, height * width, channels)


def _first_component(features: Tensor, shape: torch.Size) -> Tensor:
    """`X v₁` of `(N, h·w, C)`, by the smaller of the two Gram matrices: `(N, h, w)`."""
    total = features.sum(dim=2)
    if features.shape[1] <= features.shape[2]:
        _, left = _first_eigenvector(features @ features.mT, total)
        right = features.mT @ left[:, :, None]
        right = right / right.norm(dim=1, keepdim=True).clamp(min=torch.finfo(right.dtype).tiny)
    else:
        _, right = _first_eigenvector(features.mT @ features, features.sum(dim=1))
        right = right[:, :, None]
    # Projected rather than `σ u`: equal positions get equal values, to the last digit.
    return _signed((features @ right)[:, :, 0], total).view(shape[0], *shape[2:])


def _signed(component: Tensor, total: Tensor) -> Tensor:
    """`component` `(N, h·w)` with the sign that makes it go with `total`, the channel sum of what was decomposed.

    Where the two are orthogonal, the entry of the largest size is made positive.
    """
    agreement = (component * total).sum(dim=1)
    largest = component.gather(1, component.abs().argmax(dim=1, keepdim=True))[:, 0]
    orthogonal = agreement.abs() <= 1e-5 * component.norm(dim=1) * total.norm(dim=1)
    return torch.where(torch.where(orthogonal, largest, agreement)[:, None] < 0, -component, component)


def _first_eigenvector(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue `(N,)` and its vector `(N, n)` of symmetric `(N, n, n)`; NaN where entries are not finite.

    `start` `(N, n)` is where a search begins, for large matrices.
    """
    finite = matrix.isfinite().all(dim=2).all(dim=1)
    matrix = torch.where(finite[:, None, None], matrix, 0)
    if matrix.shape[-1] <= LARGEST_DENSE:
        home = matrix.device
        values, vectors = torch.linalg.eigh(matrix.cpu() if home.type == "mps" else matrix)
        value, vector = values[:, -1].to(home), vectors[:, :, -1].to(home)
    else:
        value, vector = _lanczos(matrix, torch.where(finite[:, None], start, 1))
    bad = ~finite
    return value.masked_fill(bad, torch.nan), vector.masked_fill(bad[:, None], torch.nan)


def _lanczos(matrix: Tensor, start: Tensor, *, steps: int = 48, restarts: int = 20) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue and its vector by Lanczos' method, orthogonalised in full and restarted until it holds.

    Golub & Van Loan 2013, chapter 10: the first Ritz vector of `steps` dimensions starts the next round, until the
    residual is below 1e-6 (float64: 1e-10) of the eigenvalue.
    """
    bound = 1e-10 if matrix.dtype == torch.float64 else 1e-6
    # A fixed ramp of cosines besides: a start that happens to be orthogonal to the answer would never find it.
    ramp = torch.linspace(0, 40, matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).cos()
    vector = start / start.norm(dim=1, keepdim=True).clamp(min=torch.finfo(start.dtype).tiny) + 0.1 * ramp / ramp.norm()
    largest = matrix.abs().amax(dim=(1, 2))[:, None]
    for _ in range(restarts):
        basis = [vector / vector.norm(dim=1, keepdim=True)]
        for _ in range(steps):
            new = (matrix @ basis[-1][:, :, None])[:, :, 0]
            known = torch.stack(basis, dim=2)
            for _ in range(2):  # twice is enough (Kahan)
                new = new - (known @ (known.mT @ new[:, :, None]))[:, :, 0]
            length = new.norm(dim=1, keepdim=True)
            # Nothing but rounding is left once the basis holds all that `start` can reach.
            new = torch.where(length > bound * 1e-3 * largest, new, 0)
            basis.append(new / length.clamp(min=torch.finfo(new.dtype).tiny))
        known = torch.stack(basis, dim=2)
        inside = known.mT @ matrix @ known
        values, vectors = torch.linalg.eigh((inside + inside.mT).cpu() / 2)
        value = values[:, -1].to(matrix)
        vector = (known @ vectors[:, :, -1:].to(matrix))[:, :, 0]
        vector = vector / vector.norm(dim=1, keepdim=True)
        residual = (matrix @ vector[:, :, None])[:, :, 0] - value[:, None] * vector
        if bool((residual.norm(dim=1) <= bound * value.abs()).all()):
            break
    return value, vector
