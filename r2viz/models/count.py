"""What a network costs: its parameters and multiply-adds, counted and not estimated."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from r2viz.taps import frozen


def params(module: nn.Module) -> int:
    """The number of parameters, each shared one once; the statistics of normalisations are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one picture of `size` (h, w).

    Counted by torch as a forward pass runs, without computing anything: the pass sees shapes only, whatever device
    the module is on. Additions, normalisations, activations and pooling are not counted, as is usual.
    """
    with FlopCounterMode(display=False) as counter:
        shapes(module, size)
    return int(counter.get_total_flops()) // 2


def shapes(module: nn.Module, size: tuple[int, int]) -> Any:
    """What `module` gives for one picture of `size` (h, w), as tensors of shape without values; nothing is computed.

    Hooks see such tensors too. The module stays as it is, whatever its mode and device.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    bare = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    with frozen(module), torch.no_grad():
        return functional_call(module, bare, (torch.empty(1, 3, *size, device="meta"),))
