"""Channel attention, for the blocks' place after the last normalisation and before the addition."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.ops import SqueezeExcitation

from r2viz.errors import nearest


def squeeze_excitation(channels: int, *, reduction: int = 16) -> nn.Module:
    """Squeeze-and-excitation: every channel is scaled by a gate that the means of all channels decide.

    Maps `(N, C, H, W)` to the same shape: x · σ(W₂ · ReLU(W₁ · mean(x))), where W₁ leaves `C / reduction` channels,
    rounded to a multiple of eight as in the public weights (it rounds nothing where C is a multiple of
    `8 · reduction`, so in no network of the table). Keys are `fc1` and `fc2`, 1x1 convolutions with bias.

    The mean is over the whole map, so behind it the theoretical receptive field is the whole picture. Centres stay
    where they are: a gate is the same at every place.

    Source: Hu et al. 2018, equations 2-4; the layer itself is torchvision's.
    """
    squeezed = max(8, (channels // reduction + 4) // 8 * 8)
    return SqueezeExcitation(channels, squeezed)


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {"se": squeeze_excitation}


def attention(name: str) -> Callable[[int], nn.Module]:
    """The attention of that name, as a function from channels to a module.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"no attention {name!r}{nearest(name, ATTENTIONS)}; there is {', '.join(ATTENTIONS)}")
    return ATTENTIONS[name]
