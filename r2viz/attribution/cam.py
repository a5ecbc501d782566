"""Class activation maps of a plain network and a batch: one forward pass, gradients of exactly what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from r2viz.attribution.methods import method_named
from r2viz.attribution.plan import planned_pass
from r2viz.attribution.rerun import Progress, Rerun, silent
from r2viz.attribution.scores import Score, Targets
from r2viz.errors import BadTarget, ModelError, TapError, UnknownName
from r2viz.taps import Point, device_of, frozen, lock, point, tap, unwrapped

PIXELS = "input"
"""The layer that maps of input pixels are filed under."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A finished forward pass that maps can still be asked of. The network itself is free again.

    Attributes:
        module: the network.
        batch: what it saw, `(N, 3, H, W)`.
        output: what it gave; `(N, classes)` of a classifier.
        activations: `{layer: (N, C, h, w)}`, whole tensors also where a layer names one split of them.
        points: the parsed layer names.
    """

    module: nn.Module
    batch: Tensor
    output: Any
    activations: dict[str, Tensor]
    points: dict[str, Point]
    _reruns: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """`(N, classes)`.

        Raises:
            ModelError: the network is no classifier.
        """
        if not isinstance(self.output, Tensor) or self.output.ndim != 2 or len(self.output) != len(self.batch):
            came = tuple(self.output.shape) if isinstance(self.output, Tensor) else type(self.output).__name__
            raise ModelError(
                f"the network gave {came}, but a classifier's output ({len(self.batch)}, classes) was expected"
            )
        return self.output

    def maps(
        self,
        targets: Targets,
        *,
        method: str = "gradcam",
        keep: bool = False,
        seed: int = 0,
        channels: int | None = None,
        progress: Progress = silent,
    ) -> dict[str, Tensor]:
        """Signed maps `{layer: (N, h, w)}`, float32, of the given targets.

        Args:
            targets: see `r2viz.attribution.scores.Targets`.
            method: a name in `METHODS`. A method of pixels gives one map, `{"input": (N, H, W)}`.
            keep: whether more maps will be asked of this pass; without, its graph is used up.
            seed: of methods that draw.
            channels: of methods that perturb channel by channel: only so many, the most varying ones.
            progress: told `(done, total)` by methods that run the network many times.
        """
        row = method_named(method)
        if not callable(targets):
            _ = self.logits
        score = row.score(targets, self.output)
        points = self.points if row.needs != "pixels" else dict(list(self.points.items())[:1])
        parts = {layer: where.part(self.activations[layer].detach()) for layer, where in points.items()}
        if row.needs == "activations":
            return {layer: row.function(part) for layer, part in parts.items()}
        if row.needs == "gradients":
            gradients = self._gradients(score, keep)
            return {layer: row.function(part, gradients[layer]) for layer, part in parts.items()}
        if row.needs == "curvature":
            return {layer: row.function(parts[layer], *pair) for layer, pair in self._curvature(score).items()}
        rows = torch.arange(len(self.batch), device=self.batch.device)
        with torch.inference_mode():
            base = score(self.output, rows)
        found = {}
        for layer, where in points.items():
            rerun = Rerun(
                self.module,
                layer,
                where,
                self.batch,
                parts[layer],
                base,
                score,
                seed=seed,
                channels=channels,
                progress=progress,
                _whole=self.activations[layer].detach(),
                _kept=self._reruns.setdefault(layer, {}),
            )
            found[PIXELS if row.needs == "pixels" else layer] = row.function(rerun)
        return found

    def _gradients(self, score: Score, keep: bool) -> dict[str, Tensor]:
        """`{layer: (N, C, h, w)}`: of each picture's score, by each layer's part."""
        wanted = {id(tensor): tensor for tensor in self.activations.values()}
        total = self._total(score)
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, retain_graph=keep)
        by_tensor = dict(zip(wanted, found, strict=True))
        gradients = {}
        for layer, where in self.points.items():
            whole = by_tensor[id(self.activations[layer])]
            if whole is None:
                raise _apart(layer)
            gradients[layer] = where.part(whole)
        return gradients

    def _curvature(self, score: Score) -> dict[str, tuple[Tensor, Tensor]]:
        """`{layer: (gradient, Hessian times activations)}`, `(N, C, h, w)` each, of the layer's part.

        The product is exact, by differentiating twice. It keeps the graph, which goes with the pass.
        """
        total, found = self._total(score), {}
        for layer, where in self.points.items():
            whole = self.activations[layer]
            with torch.inference_mode(False), torch.enable_grad():
                (slope,) = torch.autograd.grad(total, whole, create_graph=True, allow_unused=True)
                if slope is None:
                    raise _apart(layer)
                along = (where.part(slope) * where.part(whole.detach())).sum()
            bend = None
            if along.requires_grad:
                (bend,) = torch.autograd.grad(along, whole, retain_graph=True, allow_unused=True)
            gradient = where.part(slope.detach())
            found[layer] = gradient, torch.zeros_like(gradient) if bend is None else where.part(bend)
        return found

    def _total(self, score: Score) -> Tensor:
        """The sum of all pictures' scores, to be differentiated."""
        # The caller may be under `no_grad` or `inference_mode`, where the scores would lose their graph.
        with torch.inference_mode(False), torch.enable_grad():
            # One sum for the whole batch: in evaluation mode pictures do not influence each other.
            scores = score(self.output, torch.arange(len(self.batch), device=self.batch.device))
            if len(scores) != len(self.batch):
                raise BadTarget(f"the target function gave {len(scores)} numbers for {len(self.batch)} pictures")
            total = scores.sum()
        if not total.requires_grad:
            raise _apart(next(iter(self.points)))
        return total


def _apart(layer: str) -> TapError:
    return TapError(f"the class scores do not depend on {layer!r}; choose a layer that leads to the output")


def forward_pass(
    module: nn.Module, batch: Tensor, layers: Sequence[str], *, compile: bool = False, fold: bool | None = None
) -> Pass:
    """Run `module` once on `batch` `(N, 3, H, W)`, with taps at `layers`.

    The network is put into evaluation mode with frozen parameters while it runs and left as it was, also after an
    error. Safe from several threads.

    Args:
        module: any network of pictures.
        batch: `(N, 3, H, W)`, preprocessed.
        layers: tap names (see `r2viz.taps`).
        compile: for many batches of one size: see `r2viz.attribution.plan`. The first call takes a minute.
        fold: normalisations into convolutions, in a copy of the weights. None: after some 32 pictures of 224 pixels,
            where it is safe; True: at once, with a warning where it cannot be; False: never.

    Raises:
        UnknownName, TapError: see `r2viz.taps.tap`.
    """
    module = unwrapped(module)
    # A lone name is a sequence of letters to Python; nobody means that.
    layers = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    if not layers:
        raise UnknownName("no layer was named; say at least one, for example 'layer4'")
    _refuse_unfinished(module)
    points = {layer: point(module, layer) for layer in layers}
    with lock(module), torch.inference_mode(False), torch.enable_grad(), frozen(module):
        batch = _like(module, batch)
        faster = planned_pass(module, batch, layers, compile=compile, fold=fold)
        if faster is not None:
            return Pass(module, batch, *faster, points)
        with tap(module, layers, differentiable=True) as taken:
            output = module(batch)
    return Pass(module, batch, output, taken, points)


def cam_maps(
    module: nn.Module,
    batch: Tensor,
    *,
    targets: Targets = None,
    layers: Sequence[str] = ("layer4",),
    method: str = "gradcam",
    relu: bool = False,
    compile: bool = False,
    fold: bool | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Class activation maps of a batch.

    Args:
        module: any network of pictures; left exactly as it was.
        batch: `(N, 3, H, W)`, preprocessed.
        targets: a class index for all, one per picture, `(N, K)` for K classes of each picture (one forward pass for
            all), None for each picture's own top-1, or a function of the output that gives a number per picture.
        layers: tap names (see `r2viz.taps`).
        method: a name in `r2viz.attribution.METHODS`.
        relu: clip negative values to 0. Without it maps are signed.
        compile: as for `forward_pass`.
        fold: as for `forward_pass`.
        options: `seed`, `channels` and `progress`, as for `Pass.maps`.

    Returns:
        `{layer: (N, h, w)}`, float32, at the layer's own resolution, on the network's device; `(N, K, h, w)` for
        `(N, K)` targets.

    Raises:
        UnknownName: no such layer or method.
        BadTarget: a class index out of range, or a number of targets other than N.
        TapError, ModelError: see `forward_pass`.
    """
    method_named(method)
    seen = forward_pass(module, batch, layers, compile=compile, fold=fold)
    several = _columns(targets, len(seen.batch))
    if several is None:
        found = seen.maps(targets, method=method, **options)
    else:
        each = [
            seen.maps(column, method=method, keep=number + 1 < len(several), **options)
            for number, column in enumerate(several)
        ]
        found = {layer: torch.stack([maps[layer] for maps in each], dim=1) for layer in each[0]}
    return {layer: map_.clamp_(min=0) for layer, map_ in found.items()} if relu else found


def _refuse_unfinished(module: nn.Module) -> None:
    """A network whose weights have no values, or values that no gradient can pass, says so before it runs."""
    # Without names first: finding those costs a small network a fifth of its forward pass.
    if not any(
        tensor is not None and (is_lazy(tensor) or tensor.is_meta or tensor.is_inference())
        for part in module.modules()
        for tensor in (*part._parameters.values(), *part._buffers.values())
    ):
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"the network's {name!r} has no shape yet; run one batch through the network, which gives lazy layers "
                "their shapes, before it is explained"
            )
        if tensor.is_meta:
            raise ModelError(
                f"the network's {name!r} has no values (it is on the device 'meta'); load weights into it, with "
                "load_state_dict(…, assign=True), before it is explained"
            )
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ModelError(
            "the network's weights were made under torch.inference_mode, so no gradient can pass them; "
            "build or load the network outside of it"
        )


def _columns(targets: Targets, count: int) -> tuple[Tensor, ...] | None:
    """The columns of `(N, K)` targets, None for any other kind."""
    if callable(targets) or targets is None or isinstance(targets, (int, str)):
        return None
    try:
        table = torch.as_tensor(targets)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None  # refused in words where targets are read
    if table.ndim != 2:
        return None
    if table.shape[0] != count or table.shape[1] == 0:
        raise BadTarget(f"{tuple(table.shape)} targets came for {count} pictures; give (N,) or (N, K) of them")
    return table.unbind(dim=1)


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
