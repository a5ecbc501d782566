"""What a network costs: its parameters and multiply-adds, counted and not estimated."""

from __future__ import annotations

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
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    with frozen(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(module, shapes, (torch.empty(1, 3, *size, device="meta"),))
    return int(counter.get_total_flops()) // 2
