"""Two networks that should be one: the same keys and shapes, and from the same numbers the same outputs."""

from __future__ import annotations

import functools
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

# Odd at every stage (100, 50, 25, 13, 7, 4 after each halving): a wrong padding or pooling flag shows at the border,
# which 96 or 224 pixels would hide.
SIZE = 100


def elsewhere(name: str, **options: Any) -> nn.Module:
    """The network that `"timm:NAME"` or `"torchvision:NAME"` is, without weights."""
    where, _, called = name.partition(":")
    if where == "timm":
        found = timm.create_model(called, pretrained=False, **options)
        if called.startswith("dla"):
            # At odd sizes its pooled shortcut rounds down where the convolutions beside it round up, and it stops with
            # an error. Rounding up is all it lacks; at even sizes nothing changes (test_dla.py has it as it is).
            for part in found.modules():
                if isinstance(part, torch.nn.MaxPool2d):
                    part.ceil_mode = True
        return found
    assert where == "torchvision"
    extra = {"init_weights": False} if called == "inception_v3" else {}
    return torchvision.models.get_model(called, weights=None, **extra, **options)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@functools.cache
def _bank() -> Tensor:
    # Enough for the largest tensor; drawing each anew is slow.
    return torch.randn(8_000_000, generator=torch.Generator().manual_seed(6))


def numbers(module: nn.Module, seed: int = 7) -> dict[str, Tensor]:
    """A state dict for `module`, as after a training: normalisations have statistics and affine parts of their own."""
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size) -> Tensor:
        begin = int(torch.randint(len(_bank()) - shape.numel(), (1,), generator=generator))
        return _bank()[begin : begin + shape.numel()].view(shape)

    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = torch.ones(tensor.shape, dtype=tensor.dtype)
        elif tensor.ndim == 4:
            state[key] = normal(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
        elif tensor.ndim == 2:
            state[key] = normal(tensor.shape) * 0.02
        else:  # biases, and all four of batch normalisation
            middle = 0.0 if key.endswith(("bias", "mean")) else 1.0
            state[key] = middle + torch.rand(tensor.shape, generator=generator) - (0.5 if middle == 0 else 0.6)
    return state


def same_outputs(ours: nn.Module, theirs: nn.Module, *, size: int = SIZE) -> list[str]:
    """Assert equal logits, and equal outputs of the top-level parts that both have; the names of those compared.

    Both come on the meta device and take the same tensors, so that the weights exist once.
    """
    state = numbers(ours)
    outputs: list[dict[str, Tensor]] = []
    batch = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(8))
    for module in (ours, theirs):
        module.load_state_dict(state, strict=True, assign=True)
        module.eval()
        outputs.append({})
        for name, part in module.named_children():

            def keep(_part: nn.Module, _into: Any, out: Any, *, kept: dict[str, Tensor] = outputs[-1], name=name):
                if isinstance(out, Tensor):
                    kept[name] = out.clone()  # an in-place activation would overwrite it

            part.register_forward_hook(keep)
        with torch.inference_mode():
            outputs[-1]["the logits"] = module(batch)
    one, other = outputs
    compared = [name for name in one if name in other]
    for name in compared:
        scale = max(1.0, float(other[name].abs().max()))
        assert one[name].std() > 1e-3 * scale, f"{name} is nearly constant: nothing would show"
        assert float((one[name] - other[name]).abs().max()) <= 1e-5 * scale, name
    return compared
