"""Maps by perturbation: channels taken away from a layer, and pictures seen through a layer's channels.

All of them weight a layer's channels; none needs gradients. Channels that `Rerun.channels` leaves out weigh nothing;
where Ablation-CAM has its closed form, it leaves none out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from r2viz.attribution.gradient import weighted_sum
from r2viz.attribution.rerun import Rerun

Order = Literal["upsample", "normalise"]

# --- Channels taken away ---------------------------------------------------------------------------------------------


def ablationcam(rerun: Rerun, *, fill: float | Literal["below"] = 0.0) -> Tensor:
    """Channel sum weighted by how much of the score goes when the channel is set to 0.

    `-> (N, h, w)`, signed, without the ReLU that the paper puts around it: Desai & Ramaswamy 2020 (WACV,
    doi 10.1109/WACV45572.2020.9093360), `w_k = (y - y_k) / y`, where `y_k` is the score without channel k.

    Where average pooling and one linear layer follow the tap, `y_k` is the head's output without the channel's mean
    times its column: no pass at all, and no approximation. Elsewhere only what follows the tap is run, for channels
    that are not 0 already.

    In float32 the closed form is also nearer to the truth than passes are, since no two scores are subtracted: of a
    ResNet-50 (random weights, `layer4`) 5e-6 of the largest value from the map in float64, where the passes that peers
    make are 3e-4 from it.

    Deviations: divided by |y|. The paper's division by a negative score turns the map inside out (what speaks against
    the class would be bright), and nothing else changes; a score of exactly 0 divides by 1.

    Peers: pytorch-grad-cam 1.5.7 divides by the signed score and gives the same map where the layer's smallest value
    is exactly 0 (after a ReLU, in practice). Where it is not, it puts a value 1e7 below the smallest in the channel's
    place, and 1e7 lower still for every further channel of a batch, so its map may then depend on its batch size;
    `fill="below"` is what it gives with a batch size of 1.

    Args:
        rerun: the network at the tap.
        fill: what stands in a channel's place; `"below"`: 1e7 less than the smallest activation of the picture.
    """
    head = rerun.head() if fill == 0 else None
    # By the head's formula a channel costs nothing, so none is left out.
    chosen = _chosen(rerun if head is None else replace(rerun, channels=None))
    activations = rerun.activations
    with torch.inference_mode():
        if head is not None:
            lost = _without_means(rerun, chosen)
        else:
            # A channel of nothing but the fill's value loses nothing: its score is known.
            changes = torch.ones_like(chosen, dtype=torch.bool)
            if fill == 0:
                changes = activations.ne(0).flatten(2).any(dim=2).gather(1, chosen)
            value = torch.full_like(activations[:, 0, 0, 0], 0.0 if fill == "below" else fill)
            if fill == "below":
                value = activations.flatten(1).amin(dim=1) - 1e7
            picture, place = changes.nonzero(as_tuple=True)
            channel = chosen[picture, place]

            def make(part: slice) -> Tensor:
                rows = picture[part]
                changed = activations.index_select(0, rows)
                changed[torch.arange(len(rows), device=rows.device), channel[part]] = value[rows, None, None]
                return changed

            scores = rerun.base[:, None].expand(chosen.shape).clone()
            scores[picture, place] = rerun.scores(picture, make, of="features")
            lost = (rerun.base[:, None] - scores).float()
        base = rerun.base.float()[:, None]
        drops = lost / base.abs().where(base != 0, 1)
    return weighted_sum(activations, _spread(drops, chosen, activations.shape[1]))


def _without_means(rerun: Rerun, chosen: Tensor) -> Tensor:
    """What scores lose without each of the chosen channels, `(N, K)`, by the head's formula."""
    head = rerun.head()
    assert head is not None
    means = rerun.activations.mean(dim=(2, 3))
    columns = head.weight.T
    found = []
    for number, logits in enumerate(head(means)):
        whole = rerun.score(logits[None], torch.full((1,), number, device=logits.device))
        for part in chosen[number].split(512):
            row = torch.full_like(part, number)
            # From the formula's own score: the network's differs in its last digit, alike for every channel.
            found.append((whole - rerun.score(logits - columns[part] * means[number, part, None], row)).float())
        rerun.progress(number + 1, len(means))
    return torch.cat(found).view(chosen.shape) if found else rerun.base.new_zeros(chosen.shape)


# --- Pictures seen through channels ----------------------------------------------------------------------------------


def scorecam(rerun: Rerun, *, order: Order = "upsample", corners: bool = False) -> Tensor:
    """Channel sum weighted by the score of the picture seen through the channel alone.

    `-> (N, h, w)`, signed, without the paper's ReLU: Wang et al. 2020 (arXiv 1910.01279), algorithm 1:

        m_k = minmax(upsample(A_k)),   s_k = y(m_k ∘ x) - y(0),   w = softmax over channels of s

    A channel without variation masks everything (its m_k is 0), so one black picture serves all of these. The score
    of the black picture does not change a softmax and is not subtracted.

    With `Rerun.channels` the softmax is over the chosen ones; docs/methods.md has what that loses.

    Deviations: upsampling is bilinear between pixel centres; the paper names no method. The authors' code has
    probabilities for y and leaves the softmax out; this is the paper's equation.

    Peers: pytorch-grad-cam 1.5.7 is `corners=True` (bilinear between corners), torch-cam 0.5.0 `order="normalise"`
    (smallest and largest value taken before upsampling, not after).

    Args:
        rerun: the network at the tap.
        order: what comes first, to upsample the channels or to scale them to [0, 1].
        corners: whether upsampling aligns corners.
    """
    return _seen(rerun, _Masks(rerun, order, corners), (1.0,))


def sscam(
    rerun: Rerun, *, samples: int = 35, sigma: float = 2.0, order: Order = "upsample", corners: bool = False
) -> Tensor:
    """Score-CAM whose score is the mean over noisy masks.

    `-> (N, h, w)`, signed: Wang et al. 2020 (arXiv 2006.14255), the variant with noise on the feature map:

        s_k = mean over i of y((m_k + δ_i) ∘ x) - y(0),   δ_i ~ N(0, σ²) per pixel,   w = softmax over channels of s

    Deviations: the same δ_i for all channels and pictures, from `Rerun.seed` and the sample's number. That is the same
    expectation; what it takes away is a difference between channels that only the noise made.

    Peers: torch-cam 0.5.0 is `order="normalise"` and draws anew for every channel, by torch's global generator.

    Args:
        rerun: the network at the tap.
        samples: noisy masks per channel. The cost is so many times that of Score-CAM.
        sigma: standard deviation of the noise, where masks go from 0 to 1.
        order: as in `scorecam`.
        corners: as in `scorecam`.
    """
    return _seen(rerun, _Masks(rerun, order, corners, sigma), (1.0,) * samples)


def iscam(
    rerun: Rerun,
    *,
    steps: int = 10,
    path: Literal["summed", "straight"] = "summed",
    order: Order = "upsample",
    corners: bool = False,
) -> Tensor:
    """Score-CAM whose score is the mean along a path of growing masks.

    `-> (N, h, w)`, signed: Naidu et al. 2020 (arXiv 2010.03023), as torch-cam transcribes it:

        s_k = mean over i = 1 … n of y(c_i · m_k ∘ x) - y(0),   w = softmax over channels of s

    with `c_i = (1 + 2 + … + i) / n`, the masks summed up so far. These go beyond 1 (5.5 for 10 steps): the picture
    is brighter than the network ever saw. `path="straight"` is `c_i = i / n`, the integral from black to Score-CAM's
    picture that the method's name promises.

    Peers: torch-cam 0.5.0 is `order="normalise"`.

    Args:
        rerun: the network at the tap.
        steps: n. The cost is so many times that of Score-CAM.
        path: how masks grow.
        order: as in `scorecam`.
        corners: as in `scorecam`.
    """
    growing = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    factors = growing.cumsum(0) if path == "summed" else growing
    return _seen(rerun, _Masks(rerun, order, corners), tuple(factors.tolist()))


@dataclass(frozen=True, eq=False)
class _Masks:
    """A layer's channels as masks of the picture, made when they are wanted."""

    rerun: Rerun
    order: Order
    corners: bool
    sigma: float = 0.0

    def __call__(self, picture: Tensor, channel: Tensor, turn: Tensor) -> Tensor:
        """`(M, 1, H, W)`: of these pictures and channels, with the noise of these turns; 0 for channels of -1."""
        maps = self.rerun.activations[picture, channel.clamp(min=0)].float()[:, None]
        maps = maps * (channel >= 0)[:, None, None, None]
        if self.order == "normalise":
            maps = _to_one(maps)
        size = self.rerun.batch.shape[2:]
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=self.corners)
        if self.order == "upsample":
            maps = _to_one(maps)
        return maps + self._noise(turn) if self.sigma else maps

    def _noise(self, turns: Tensor) -> Tensor:
        # By turn, not in sequence: the same whatever is in a batch, and made again when a batch is.
        drawn: dict[int, Tensor] = {}
        for turn in turns.tolist():
            if turn not in drawn:
                generator = torch.Generator().manual_seed(self.rerun.seed * 1_000_003 + turn)
                noise = torch.randn(1, *self.rerun.batch.shape[2:], generator=generator) * self.sigma
                drawn[turn] = noise.to(turns.device)
        if len(drawn) == 1:
            return next(iter(drawn.values()))
        return torch.stack([drawn[turn] for turn in turns.tolist()])


def _to_one(maps: Tensor) -> Tensor:
    """Each map's values from 0 to 1; 0 where it does not vary."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    span = high - low
    return (maps - low) / span.where(span > 0, 1)


def _seen(rerun: Rerun, masks: _Masks, factors: tuple[float, ...]) -> Tensor:
    """The channel sum weighted by the softmax of mean scores over the `factors`, one variant of the masks each."""
    chosen = _chosen(rerun)
    turns = len(factors)
    with torch.inference_mode():
        maps = rerun.activations.flatten(2)
        varies = (maps.amax(dim=2) > maps.amin(dim=2)).gather(1, chosen)
        # Per picture: its varying channels, then -1, which stands for all the others, where there are any.
        runs = [
            torch.cat([channels[some], channels.new_full((int(not some.all()),), -1)])
            for channels, some in zip(chosen, varies, strict=True)
        ]
        counts = [len(run) for run in runs]
        channel = torch.cat(runs) if runs else chosen.flatten()
        numbers = torch.arange(len(counts), device=chosen.device)
        picture = numbers.repeat_interleave(torch.tensor(counts, dtype=torch.long, device=chosen.device))
        scale = torch.tensor(factors, device=chosen.device)
        index = torch.arange(len(channel) * turns, device=chosen.device)
        # Turn by turn: the noise of one turn serves all of its batches.
        turn, which = index // max(1, len(channel)), index % max(1, len(channel))

        def make(part: slice) -> Tensor:
            now, at = turn[part], which[part]
            mask = masks(picture[at], channel[at], now) * scale[now][:, None, None, None]
            return mask.to(rerun.batch.dtype) * rerun.batch.index_select(0, picture[at])

        scores = rerun.scores(picture[which], make, of="pictures")
        means = scores.float().view(turns, len(channel)).mean(dim=0)
        found = torch.empty(chosen.shape, device=chosen.device)
        for number, run in enumerate(means.split(counts) if counts else ()):
            some = varies[number]
            found[number] = run[-1]
            found[number, some] = run[: int(some.sum())]
        weights = found.softmax(dim=1)
    return weighted_sum(rerun.activations, _spread(weights, chosen, rerun.activations.shape[1]))


# --- Which channels --------------------------------------------------------------------------------------------------


def _chosen(rerun: Rerun) -> Tensor:
    """`(N, K)`: the channels to look at, each picture's own; those that vary most in space, when not all are."""
    count, channels = rerun.activations.shape[:2]
    everything = torch.arange(channels, device=rerun.activations.device).expand(count, channels)
    if rerun.channels is None or rerun.channels >= channels:
        return everything
    spread = rerun.activations.float().flatten(2).var(dim=2, correction=0)
    # A stable sort: of equal channels the first, on every device.
    order = spread.sort(dim=1, descending=True, stable=True).indices
    return order[:, : max(1, rerun.channels)].sort(dim=1).values


def _spread(weights: Tensor, chosen: Tensor, channels: int) -> Tensor:
    """Weights `(N, K)` of the chosen channels as `(N, C)`, 0 elsewhere."""
    if chosen.shape[1] == channels:
        return weights.clone()
    return torch.zeros(len(weights), channels, device=weights.device).scatter(1, chosen, weights)
