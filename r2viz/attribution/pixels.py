"""Attributions of input pixels, by captum: what a class activation map is too coarse to show, and a control for it.

All give one signed map per picture, `(N, H, W)`, the sum over the colour channels. captum's methods want a network
whose modules are called once each and never in place; `apart` makes such a copy out of the network's graph.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from r2viz.attribution.rerun import Rerun
from r2viz.errors import ModelError, one_line
from r2viz.graph import trace
from r2viz.taps import frozen, lock

ROWS = 16
"""Variants per pass where the caller does not say."""


def saliency(rerun: Rerun) -> Tensor:
    """Sum over channels of the absolute gradient of the score: Simonyan et al. 2013, arXiv 1312.6034, section 3.1.

    The authors take the largest channel instead of the sum.
    """
    from captum.attr import Saliency

    return _summed(_asked(rerun, lambda function, x, rows: Saliency(function).attribute(x, None, True, rows)))


def smoothgrad(rerun: Rerun, *, copies: int = 16, sigma: float = 0.15) -> Tensor:
    """Saliency averaged over noisy copies: Smilkov et al. 2017, arXiv 1706.03825, equation 1.

    `sigma` is a share of each picture's range of values, as in the paper (10 to 20 %). Noise is drawn on the CPU from
    the seed and is the same for all pictures, so that a map depends neither on the batch nor on the device.
    """
    noise = torch.randn(copies, *rerun.batch.shape[1:], generator=rerun.generator()).to(rerun.batch)
    spread = rerun.batch.amax(dim=(1, 2, 3), keepdim=True) - rerun.batch.amin(dim=(1, 2, 3), keepdim=True)
    total = torch.zeros_like(rerun.batch, dtype=torch.float32)
    for number, one in enumerate(noise, start=1):
        noisy = rerun.batch + sigma * spread * one
        total += _asked(rerun, lambda function, x, rows: _gradient(function, x, rows).abs(), noisy).float()
        rerun.progress(number, copies)
    return _summed(total / copies)


def integrated_gradients(rerun: Rerun, *, steps: int = 50) -> Tensor:
    """Gradients integrated from the mean picture (zeros, after preprocessing) to the picture, times the difference.

    Sundararajan et al. 2017, arXiv 1703.01365, equation 1; Gauss-Legendre quadrature with `steps` points.
    """
    from captum.attr import IntegratedGradients

    def ask(function: Callable[..., Tensor], x: Tensor, rows: Tensor) -> Tensor:
        return IntegratedGradients(function).attribute(
            x, n_steps=steps, internal_batch_size=max(len(x), rerun.rows_at_once or ROWS), additional_forward_args=rows
        )

    return _summed(_asked(rerun, ask))


def occlusion(rerun: Rerun, *, windows: int = 8) -> Tensor:
    """How much the score falls when a grey window covers a place: Zeiler & Fergus 2014, arXiv 1311.2901, section 3.

    A window is 1/`windows` of each side and moves by half of itself; a pixel gets the mean over the windows on it.
    """
    from captum.attr import Occlusion

    height, width = rerun.batch.shape[2:]
    window = (3, max(1, height // windows), max(1, width // windows))
    strides = (3, max(1, window[1] // 2), max(1, window[2] // 2))

    def ask(function: Callable[..., Tensor], x: Tensor, rows: Tensor) -> Tensor:
        at_once = max(1, (rerun.rows_at_once or ROWS) // len(x))
        with torch.inference_mode():
            return Occlusion(function).attribute(
                x, window, strides=strides, additional_forward_args=rows, perturbations_per_eval=at_once
            )

    return _summed(_asked(rerun, ask)) / 3  # captum gives each channel the window's whole effect


def guided_backpropagation(rerun: Rerun) -> Tensor:
    """Gradients that pass a ReLU only where they are positive: Springenberg et al. 2014, arXiv 1412.6806, section 3.4.

    A control: it hardly depends on the class or on what was learnt (Adebayo et al. 2018).
    """
    from captum.attr import GuidedBackprop

    return _summed(_asked_apart(rerun, lambda module, x, target: GuidedBackprop(module).attribute(x, target)))


def guided_gradcam(rerun: Rerun) -> Tensor:
    """Guided backpropagation times Grad-CAM at the layer: Selvaraju et al. 2017, arXiv 1610.02391, section 3.2.

    Grad-CAM after its ReLU, enlarged bilinearly to the input by where its units lie in the layer's own lattice
    (half-pixel centres, as the authors have it).
    """
    from r2viz.attribution.gradient import gradcam

    rows = torch.arange(len(rerun.batch), device=rerun.batch.device)
    _, activations, gradients = rerun.look(rerun.batch, rows)
    coarse = gradcam(activations, gradients).clamp(min=0)[:, None]
    size = (rerun.batch.shape[2], rerun.batch.shape[3])
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)[:, 0]
    return guided_backpropagation(rerun) * fine


def lrp(rerun: Rerun) -> Tensor:
    """Layer-wise relevance propagation with the epsilon rule: Bach et al. 2015, doi 10.1371/journal.pone.0130140.

    At an addition relevance is shared in proportion to what each side brought; normalisation is a layer of its own.
    """
    from captum.attr import LRP

    return _summed(_asked_apart(rerun, lambda module, x, target: LRP(module).attribute(x, target)))


# --- Through captum --------------------------------------------------------------------------------------------------


def _asked(
    rerun: Rerun, ask: Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor], batch: Tensor | None = None
) -> Tensor:
    """What `ask` makes of `(score function of (pictures, rows), pictures, rows)` on the frozen network."""
    batch = rerun.batch if batch is None else batch
    rows = torch.arange(len(batch), device=batch.device)

    def function(variants: Tensor, which: Tensor) -> Tensor:
        return rerun.score(rerun.module(variants), which)

    with lock(rerun.module), torch.inference_mode(False), torch.enable_grad(), frozen(rerun.module):
        return _quietly(lambda: ask(function, batch.detach().clone(), rows))


def _asked_apart(rerun: Rerun, ask: Callable[[nn.Module, Tensor, Any], Tensor]) -> Tensor:
    """What `ask` makes of `(network whose only output is the score, pictures, None)`, the network taken apart."""
    with lock(rerun.module), torch.inference_mode(False), torch.enable_grad(), frozen(rerun.module):
        module = apart(rerun.module)
        scored = _Scored(module.requires_grad_(False), rerun)
        try:
            return _quietly(lambda: ask(scored, rerun.batch.detach().clone(), 0))
        except (TypeError, RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = one_line(str(error).splitlines()[0], 120)
            raise ModelError(
                f"captum cannot follow this network here ({reason}); use another method, or a network of plain layers"
            ) from error


def _quietly(call: Callable[[], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="captum")  # what it sets and removes itself
        return call().detach()


def _gradient(function: Callable[..., Tensor], x: Tensor, rows: Tensor) -> Tensor:
    x = x.requires_grad_(True)
    return torch.autograd.grad(function(x, rows).sum(), x)[0]


def _summed(attribution: Tensor) -> Tensor:
    return attribution.detach().float().sum(dim=1)


class _Scored(nn.Module):
    """A network with one output per picture: the score in question."""

    def __init__(self, module: nn.Module, rerun: Rerun) -> None:
        super().__init__()
        self.module = module
        self._score = rerun.score

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        return self._score(self.module(x), rows)[:, None]


def apart(module: nn.Module) -> nn.Module:
    """A copy of a network in which every operation that captum looks at is a module that is called once, not in place.

    Additions become modules, a ReLU that is called five times becomes five, identities and dropout go. Weights are
    copied.

    Raises:
        ModelError: `torch.fx` cannot follow the network.
    """
    from captum.attr._utils.custom_modules import Addition_Module

    traced = trace(module)
    if traced.graph is None or not traced.whole:
        raise ModelError(
            f"{type(module).__name__} cannot be followed operation by operation (torch.fx), which this method needs; "
            "use a method of features, such as gradcam"
        )
    parts: dict[str, nn.Module] = {}
    graph = fx.Graph()
    twin: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            if isinstance(part, (nn.Identity, nn.Dropout, nn.Dropout2d)):
                twin[node] = twin[node.all_input_nodes[0]]
                continue
            name = f"part{len(parts)}"
            parts[name] = copy.deepcopy(part)
            if hasattr(parts[name], "inplace"):
                parts[name].inplace = False  # type: ignore[assignment]
        elif node.target in (operator.add, operator.iadd, torch.add) and len(node.all_input_nodes) == 2:
            name = f"part{len(parts)}"
            parts[name] = Addition_Module()
        elif node.op == "call_function" and getattr(node.target, "__name__", "") in ("relu", "relu_"):
            name = f"part{len(parts)}"
            parts[name] = nn.ReLU()
        else:
            if node.op == "get_attr":
                name = str(node.target)
                parts.setdefault(name.partition(".")[0], copy.deepcopy(getattr(module, name.partition(".")[0])))
            twin[node] = graph.node_copy(node, lambda source: twin[source])
            continue
        twin[node] = graph.call_module(name, tuple(twin[source] for source in node.all_input_nodes))
    result = fx.GraphModule(parts, graph)
    return result.eval()
