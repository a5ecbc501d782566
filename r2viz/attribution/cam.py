"""Class activation maps of a plain network and a batch: one forward pass, gradients of exactly what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r2viz.attribution.methods import METHODS, Method
from r2viz.errors import BadTarget, ModelError, TapError, UnknownName, nearest, one_line
from r2viz.taps import Point, device_of, frozen, lock, point, tap, unwrapped

Targets = int | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class Pass:
    """A finished forward pass that gradients can still be asked of. The network itself is free again.

    Attributes:
        logits: `(N, classes)`.
        activations: `{layer: (N, C, h, w)}`, whole tensors also where a layer names one split of them.
        points: the parsed layer names.
    """

    logits: Tensor
    activations: dict[str, Tensor]
    points: dict[str, Point]

    def maps(self, targets: Targets, *, method: str = "gradcam") -> dict[str, Tensor]:
        """Signed maps `{layer: (N, h, w)}`, float32, of the given classes. The graph is used up."""
        function = method_named(method).function
        layers = list(self.points)
        wanted = {id(self.activations[layer]): self.activations[layer] for layer in layers}
        # The caller may be under `no_grad` or `inference_mode`, where the scores would lose their graph.
        with torch.inference_mode(False), torch.enable_grad():
            # One sum for the whole batch: in evaluation mode pictures do not influence each other.
            scores = self.logits.gather(1, class_indices(targets, self.logits)[:, None]).sum()
        if not scores.requires_grad:
            raise TapError(f"the class scores do not depend on {layers[0]!r}; choose a layer that leads to the output")
        grads = dict(zip(wanted, torch.autograd.grad(scores, list(wanted.values()), allow_unused=True), strict=True))
        found: dict[str, Tensor] = {}
        for layer, where in self.points.items():
            activations = self.activations[layer]
            gradients = grads[id(activations)]
            if gradients is None:
                raise TapError(f"the class scores do not depend on {layer!r}; choose a layer that leads to the output")
            found[layer] = function(where.part(activations.detach()), where.part(gradients))
        return found


def forward_pass(module: nn.Module, batch: Tensor, layers: Sequence[str]) -> Pass:
    """Run `module` once on `batch` `(N, 3, H, W)`, with taps at `layers`.

    The network is put into evaluation mode with frozen parameters while it runs and left as it was, also after an
    error. Safe from several threads.

    Raises:
        UnknownName, TapError: see `r2viz.taps.tap`.
        ModelError: the output is not `(N, classes)`.
    """
    module = unwrapped(module)
    # A lone name is a sequence of letters to Python; nobody means that.
    layers = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    if not layers:
        raise UnknownName("no layer was named; say at least one, for example 'layer4'")
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ModelError(
            "the network's weights were made under torch.inference_mode, so no gradient can pass them; "
            "build or load the network outside of it"
        )
    with (
        lock(module),
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen(module),
        tap(module, layers, differentiable=True) as taken,
    ):
        batch = _like(module, batch)
        logits = module(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the network gave {came}, but a classifier's output ({len(batch)}, classes) was expected")
    return Pass(logits, taken, {layer: point(module, layer) for layer in layers})


def cam_maps(
    module: nn.Module,
    batch: Tensor,
    *,
    targets: Targets = None,
    layers: Sequence[str] = ("layer4",),
    method: str = "gradcam",
    relu: bool = False,
) -> dict[str, Tensor]:
    """Class activation maps of a batch.

    Args:
        module: any classifier of pictures; left exactly as it was.
        batch: `(N, 3, H, W)`, preprocessed.
        targets: a class index for all, one per picture, or None for each picture's own top-1.
        layers: tap names (see `r2viz.taps`).
        method: a name in `r2viz.attribution.METHODS`.
        relu: clip negative values to 0. Without it maps are signed.

    Returns:
        `{layer: (N, h, w)}`, float32, at the layer's own resolution, on the network's device.

    Raises:
        UnknownName: no such layer or method.
        BadTarget: a class index out of range, or a number of targets other than N.
        TapError, ModelError: see `forward_pass`.
    """
    method_named(method)
    maps = forward_pass(module, batch, layers).maps(targets, method=method)
    return {layer: map_.clamp_(min=0) for layer, map_ in maps.items()} if relu else maps


def class_indices(targets: Targets, logits: Tensor) -> Tensor:
    """`targets` as one class index per picture, `(N,)`, checked against `(N, classes)`."""
    count, classes = logits.shape
    if targets is None:
        return logits.detach().argmax(dim=1)
    try:
        indices = torch.as_tensor(targets, device=logits.device)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # what torch says of text, None, ragged lists, 2**70
        raise BadTarget(
            f"targets {one_line(repr(targets), 60)} are not class indices; give one for all pictures, or one for each"
        ) from None
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise BadTarget(f"targets are of type {indices.dtype}; class indices are whole numbers")
    indices = indices.clone().long()  # a tensor made under inference_mode could not be saved for the gradient
    if indices.ndim == 0:
        indices = indices.expand(count)
    if indices.shape != (count,):
        raise BadTarget(f"{tuple(indices.shape)} targets came for {count} pictures; give one for all, or one for each")
    wrong = indices[(indices < 0) | (indices >= classes)]
    if len(wrong):
        raise BadTarget(f"class {int(wrong[0])} does not exist: the network has classes 0 to {classes - 1}")
    return indices


def method_named(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in METHODS:
        raise UnknownName(
            f"no method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}", code="unknown_name.method"
        )
    return METHODS[name]


def _like(module: nn.Module, batch: Tensor) -> Tensor:
    """The batch on the network's device, in its memory order and floating-point type, and without a past.

    A graph below the batch would be of no use, and a tensor made under `inference_mode` cannot be differentiated.
    """
    if not isinstance(batch, Tensor):
        raise ModelError(f"the batch is a {type(batch).__name__}; expected a tensor (N, 3, H, W)")
    if batch.ndim != 4 or not batch.is_floating_point():
        raise ModelError(f"the batch is {tuple(batch.shape)} of {batch.dtype}; expected floating point (N, 3, H, W)")
    batch = batch.clone() if batch.is_inference() else batch.detach()
    weight = next((p for p in module.parameters() if p.ndim == 4), None)
    if weight is None:
        return batch.to(device_of(module))
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return batch.to(weight.device, weight.dtype, memory_format=torch.channels_last if last else torch.preserve_format)
