"""Which networks a command is about, their weights fetched before torch is imported, and the loaded models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from r2viz.models.model import Model


def named(models: Sequence[str], pair: str | None, weights: Sequence[str]) -> list[tuple[str, str]]:
    """(name, weights) of each network, public weights fetched: all before torch is imported, which takes seconds."""
    from r2viz.models.pairs import choose, obtain
    from r2viz.models.pairs import pair as pair_named
    from r2viz.models.zoo import canonical

    if pair and models:
        raise click.UsageError("--pair and --model exclude each other; give one of them")
    if len(models) > 2:
        raise click.UsageError(f"{len(models)} networks came; give one --model, or two to compare")
    weights = tuple(weights) or ("auto",)
    if models:
        names = tuple(canonical(name) for name in models)
    else:
        names = pair_named(choose(pair or "auto", weights[0] if len(weights) == 1 else "file")).models
    if len(weights) not in (1, len(names)):
        raise click.UsageError(f"{len(weights)} times --weights for {len(names)} networks; give one for each")
    known = weights[0] in ("auto", "imagenet", "mini", "random")
    if len(weights) == 1 and len(names) == 2 and not known and os.path.exists(weights[0]):
        raise click.UsageError(f"one weights file for two networks ({', '.join(names)}); give --weights twice")
    networks = list(zip(names, weights * len(names) if len(weights) == 1 else weights, strict=True))
    obtain(networks)
    return networks


def loaded(networks: Sequence[tuple[str, str]], *, device: str, seed: int | None) -> list[Model]:
    """The models; the seed is that of random weights."""
    from r2viz.models.model import load, resolve_device

    where: Any = resolve_device(device)
    return [
        load(name, weights=weights, device=where, seed=seed if weights == "random" else None)
        for name, weights in networks
    ]
