"""Does a map name what the network uses? The picture is taken apart in the map's order, or the network forgets.

Settings and definitions are those of the protocols' own code where it is right; departures are told at each function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2viz.agreement import rank_correlation, structural_similarity
from r2viz.checks import Faithfulness, Randomisation
from r2viz.taps import frozen, lock, unwrapped

STEPS = 28
"""Steps of the insertion and deletion curves: 1,792 pixels each at 224 x 224."""
REMOVED = (0.2, 0.4, 0.6, 0.8)
"""Shares of pixels that ROAD removes."""

Probability = Callable[[Tensor], np.ndarray]
"""`(M, 3, H, W) -> (M,)`: the explained class's probability."""


@contextmanager
def probability_of(module: nn.Module, index: int, *, batch: int = 32) -> Iterator[Probability]:
    """The network as a function from variants of a picture to the probability of class `index`.

    Within, the network is locked, frozen and in evaluation mode; afterwards as before. At most `batch` at a time.
    """
    module = unwrapped(module)

    def probability(variants: Tensor) -> np.ndarray:
        found = [module(part).float().softmax(dim=1)[:, index] for part in variants.split(batch)]
        return torch.cat(found).double().cpu().numpy()

    with lock(module), torch.inference_mode(), frozen(module):
        yield probability


def faithfulness(
    probability: Probability,
    picture: Tensor,
    importance: np.ndarray,
    *,
    black: Sequence[float] = (0.0, 0.0, 0.0),
    steps: int = STEPS,
    removed: Sequence[float] = REMOVED,
    seed: int = 0,
) -> Faithfulness:
    """All measures of `Faithfulness` for one map.

    Args:
        probability: see `probability_of`.
        picture: `(1, 3, H, W)`, as the network takes it.
        importance: the map over it, `(H, W)`, not negative; its unit does not matter.
        black: what black is in the network's input, per channel.
        steps: of the curves.
        removed: shares of pixels for ROAD.
        seed: of random orders, ties and ROAD's noise.
    """
    if importance.shape != tuple(picture.shape[2:]) or len(picture) != 1:
        raise ValueError(f"a map {importance.shape} does not lie over a picture {tuple(picture.shape)}")
    chance = np.random.default_rng(seed)
    own, other = ranks(importance, chance), ranks(np.zeros_like(importance), chance)
    whole = float(probability(picture)[0])
    top = float(importance.max())
    share = torch.as_tensor(importance / top if top > 0 else np.zeros_like(importance)).to(picture)
    dark = torch.as_tensor(black).to(picture).view(1, 3, 1, 1)
    dimmed = float(probability(dark + share * (picture - dark))[0])
    return Faithfulness(
        probability=whole,
        deletion=area(probability(deleted(picture, own, steps))),
        insertion=area(probability(inserted(picture, own, steps))),
        deletion_random=area(probability(deleted(picture, other, steps))),
        insertion_random=area(probability(inserted(picture, other, steps))),
        road=road(probability, picture, own, removed=removed, seed=seed),
        drop=max(0.0, whole - dimmed) / whole if whole > 0 else 0.0,
        increase=dimmed > whole,
        complexity=float(share.float().mean()),
    )


def ranks(importance: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Each pixel's place in the order from the most to the least important, `(H, W)`; ties in a random order.

    In memory order, the zeros that cover most of a map after its ReLU would be taken away row by row; and a threshold
    at a percentile inside them takes all or none.
    """
    order = np.lexsort((chance.permutation(importance.size), -importance.ravel()))
    found = np.empty(importance.size, dtype=np.int64)
    found[order] = np.arange(importance.size)
    return found.reshape(importance.shape)


def deleted(picture: Tensor, places: np.ndarray, steps: int = STEPS) -> Tensor:
    """The picture with more and more of its first pixels at zero (the data set's mean), `(steps + 1, 3, H, W)`.

    Source: Petsiuk et al. 2018 (RISE), arXiv 1806.07421, section 3.3.
    """
    return picture * ~_first(picture, places, steps)


def inserted(picture: Tensor, places: np.ndarray, steps: int = STEPS) -> Tensor:
    """The blurred picture with more and more of its first pixels sharp, `(steps + 1, 3, H, W)`.

    Blur as in the authors' code: Gaussian, σ = 5 pixels, cut to 11 x 11, zeros (the mean) beyond the border.
    """
    return torch.where(_first(picture, places, steps), picture, blurred(picture))


def _first(picture: Tensor, places: np.ndarray, steps: int) -> Tensor:
    """Whether a pixel is among the first k/steps, bool `(steps + 1, 1, H, W)`."""
    counts = torch.round(torch.linspace(0, places.size, steps + 1, dtype=torch.float64)).long()
    return (torch.as_tensor(places)[None] < counts[:, None, None])[:, None].to(picture.device)


def blurred(picture: Tensor, *, side: int = 11, sigma: float = 5.0) -> Tensor:
    """`(N, 3, H, W)` through a truncated Gaussian."""
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    line = (line / line.sum()).to(picture)
    channels = picture.shape[1]
    rows = F.conv2d(picture, line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), padding=(side // 2, 0), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), padding=(0, side // 2), groups=channels)


def area(curve: np.ndarray) -> float:
    """The area under a curve over 0..1, by trapezoids."""
    return float((curve.sum() - (curve[0] + curve[-1]) / 2) / (len(curve) - 1))


def road(
    probability: Probability,
    picture: Tensor,
    places: np.ndarray,
    *,
    removed: Sequence[float] = REMOVED,
    seed: int = 0,
) -> float:
    """Remove And Debias: mean over shares removed of (probability, least important gone - most important gone) / 2.

    Source: Rong et al. 2022, arXiv 2202.00449, section 4. Removed pixels are imputed from their neighbours; which are
    removed is told by rank and not by a percentile of values, so that the zeros of a map do not all go at once.
    ROAD favours blurred maps (arXiv 2304.13836): compare within a network.
    """
    chance = np.random.default_rng(seed)
    variants = []
    for share in removed:
        count = round(share * places.size)
        for gone in (places < count, places >= places.size - count):
            variants.append(imputed(picture[0].double().cpu().numpy(), gone, chance))
    found = probability(torch.as_tensor(np.stack(variants)).to(picture)).reshape(-1, 2)
    return float(((found[:, 1] - found[:, 0]) / 2).mean())


def imputed(picture: np.ndarray, gone: np.ndarray, chance: np.random.Generator, *, noise: float = 0.01) -> np.ndarray:
    """The picture `(3, H, W)` with the pixels of `gone` replaced by the weighted mean of their neighbours, plus noise.

    Weights are 1/6 for the four direct neighbours and 1/12 for the diagonal ones (of those inside the picture, so
    that they sum to 1), all unknown pixels at once: a sparse linear system (arXiv 2202.00449, section 4.1).
    """
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    height, width = gone.shape
    unknown = np.full(gone.shape, -1)
    unknown[gone] = np.arange(gone.sum())
    rows, columns = np.nonzero(gone)
    total = len(rows)
    if total in (0, gone.size):
        filled = picture if total == 0 else np.zeros_like(picture)
        return filled + (noise * chance.standard_normal(picture.shape) * gone)
    weights_sum, right = np.zeros(total), np.zeros((total, len(picture)))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy == dx == 0:
                continue
            weight = 1 / 12 if dy and dx else 1 / 6
            y, x = rows + dy, columns + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = np.nonzero(inside)[0]
            y, x = y[inside], x[inside]
            weights_sum[index] += weight
            other = unknown[y, x]
            known = other < 0
            right[index[known]] += weight * picture[:, y[known], x[known]].T
            entries.append((index[~known], other[~known], np.full((~known).sum(), -weight)))
    entries.append((np.arange(total), np.arange(total), weights_sum))
    at, to, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    solved = splu(csc_matrix((values, (at, to)), shape=(total, total))).solve(right)
    filled = picture.copy()
    filled[:, gone] = solved.T + noise * chance.standard_normal((len(picture), total))
    return filled


# --- The network forgets ---------------------------------------------------------------------------------------------


def randomisation(
    module: nn.Module, map_of: Callable[[nn.Module], np.ndarray], *, draws: int = 3, seed: int = 0
) -> Randomisation:
    """Re-initialise a copy of the network part by part from the output to the input, and compare its maps.

    The parts are the network's direct children that have parameters. Convolutions are drawn as at the start of
    training (He normal, fan out), normalisations forget their statistics. A map of 7 x 7 or 8 x 8 smooth units has
    few degrees of freedom, so two unrelated ones often correlate at 0.5: results are means over `draws` cascades.

    Args:
        module: the network; it is not changed.
        map_of: a network's signed map `(h, w)` of the picture and class in question.
        draws: cascades, each with other weights.
        seed: of the new weights.

    Source: Adebayo et al. 2018, arXiv 1810.03292, section 3.2 (cascading randomisation).
    """
    module = unwrapped(module)
    stages = [name for name, part in module.named_children() if any(True for _ in part.parameters())][::-1]
    before = map_of(copy.deepcopy(module))
    found = np.empty((3, draws, len(stages)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for draw in range(draws):
            network = copy.deepcopy(module)
            for number, name in enumerate(stages):
                forget(network.get_submodule(name))
                after = map_of(network)
                found[:, draw, number] = (
                    _ranked(before, after),
                    _ranked(np.abs(before), np.abs(after)),
                    _similar(before, after),
                )
    spearman, absolute, similarity = (tuple(map(float, rows)) for rows in found.mean(axis=1))
    return Randomisation(tuple(stages), spearman, absolute, similarity)


def forget(part: nn.Module) -> None:
    """Draw the weights of a part of a network anew, in place."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _ranked(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return rank_correlation(first.ravel(), second.ravel())


def _similar(first: np.ndarray, second: np.ndarray) -> float:
    shown = []
    for map_ in (first, second):
        positive = np.maximum(map_, 0).astype(np.float64)
        shown.append(positive / positive.max() if positive.max() > 0 else positive)
    return structural_similarity(shown[0], shown[1], np.ones(first.shape, dtype=bool))
