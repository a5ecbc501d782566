"""What a network can see, asked by the network's name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from r2viz.errors import ModelError
from r2viz.models.model import Model
from r2viz.models.zoo import row
from r2viz.receptive.theory import Field
from r2viz.receptive.trace import fields
from r2viz.taps import point, unwrapped


def theoretical_rf(network: str | Model | nn.Module, taps: Sequence[str] | None = None) -> dict[str, Field]:
    """The theoretical receptive field at taps of a network: sizes in input pixels with their path counts.

    Args:
        network: a name of `r2viz models` or from elsewhere (no weights are needed), a loaded model, or any module
            that `torch.fx` can follow.
        taps: tap names (see `r2viz.taps`); None takes all modules whose outputs have a place on the picture.

    Raises:
        UnknownName: no such network or tap.
        ModelError: a tap has no lattice on the picture, or the network cannot be followed so far.
    """
    if isinstance(network, str):
        with torch.device("meta"):
            name, module = network, row(network).build()
    else:
        module = unwrapped(network.module if isinstance(network, Model) else network)
        name = network.name if isinstance(network, Model) else type(module).__name__
    found = fields(module)
    if taps is None:
        return {path: field for path, field in found.items() if field is not None and not path.endswith("_in")}
    answer = {}
    for tap in taps:
        where = point(module, tap, called=name)
        path = where.path + ("_in" if where.into else "")
        if where.split is not None:  # a split's part of what goes into conv3 is what that split gives
            path = f"{where.path.rpartition('.')[0]}.split{where.split}"
        if path not in found:
            raise ModelError(f"{name} cannot be followed as far as {tap!r} (torch.fx); its field is not known")
        field = found[path]
        if field is None:
            raise ModelError(
                f"{tap!r} of {name} has no lattice on the picture: it comes after global pooling or an operation "
                "that is not known; choose a layer before it"
            )
        answer[tap] = field
    return answer


def main_taps(found: dict[str, Field], *, splits: bool) -> list[str]:
    """The taps worth a line each: stem, stages and blocks, and on request every split."""
    containers = {path.rpartition(".")[0] for path in found}
    parts = {path: path.split(".") for path in found}
    return [
        path
        for path, names in parts.items()
        if len(names) == 1
        or (len(names) == 2 and path in containers)
        or (splits and names[-1].startswith("split") and names[-1][5:].isdigit())
    ]
