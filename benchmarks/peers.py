"""The peers as their documentation shows them, and at their best; each beside its raw map, for comparison.

Those that make class activation maps take a plain network and a batch, and explain class 0 of every picture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openerf
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import AblationCAM, GradCAM, ScoreCAM, ablation_cam, score_cam
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchGradCAM
from torchcam.methods import ScoreCAM as TorchScoreCAM

DOCUMENTED, BEST = "as documented", "at its best"


@dataclass(frozen=True)
class Peer:
    """One way to use one package: `run` is what is timed, `raw` its maps `{layer: (N, h, w)}`, not rescaled.

    `clipped` tells that negative values are gone from them.
    """

    name: str
    how: str
    run: Callable[[], object]
    raw: Callable[[], dict[str, Tensor]]
    clipped: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} {self.how}"


def gradcam_peers(module: nn.Module, batch: Tensor, layers: Sequence[str]) -> list[Peer]:
    """Grad-CAM of pytorch-grad-cam, captum (one layer only) and torch-cam."""
    peers = []
    for how in (DOCUMENTED, BEST):
        network = prepared(module, layers[0]) if how == BEST else _copy(module)
        peers += [_pytorch_grad_cam(network, batch, layers, how), _torch_cam(network, batch, layers, how)]
        if len(layers) == 1:
            # Captum works with everything frozen, and then begins its graph at the layer.
            free = _copy(module).requires_grad_(how == DOCUMENTED)
            peers.append(_captum(free, batch, layers[0], how))
    return peers


def prepared(module: nn.Module, layer: str) -> nn.Module:
    """A copy for packages that need gradients to exist: frozen but for the last parameter before the layer's output.

    Their graph begins there, and no gradient of another parameter is computed.
    """
    module = _copy(module).requires_grad_(False)
    list(module.get_submodule(layer).parameters())[-1].requires_grad_(True)
    return module


def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(True)


def _pytorch_grad_cam(network: nn.Module, batch: Tensor, layers: Sequence[str], how: str) -> Peer:
    targets = [ClassifierOutputTarget(0)] * len(batch)
    at = [network.get_submodule(layer) for layer in layers]
    kept: list[Any] = []

    def made() -> Any:
        return GradCAM(model=network, target_layers=at)

    def run() -> object:
        if how == DOCUMENTED:
            with made() as cam:
                return cam(input_tensor=batch, targets=targets)
        if not kept:
            kept.append(made())
        return kept[0](input_tensor=batch, targets=targets)

    def raw() -> dict[str, Tensor]:
        with made() as cam:
            maps = _raw_maps(cam)
            cam(input_tensor=batch, targets=targets)
        return dict(zip(layers, maps, strict=True))

    return Peer("pytorch-grad-cam", how, run, raw)


def _raw_maps(cam: Any) -> list[Tensor]:
    """A list that the maps of an extractor of pytorch-grad-cam come into before it clips, scales and enlarges them."""
    maps: list[Tensor] = []
    image = cam.get_cam_image

    def seen(*args: Any, **kwargs: Any) -> np.ndarray:
        found = image(*args, **kwargs)
        maps.append(torch.from_numpy(found.copy()))
        return found

    cam.get_cam_image = seen
    return maps


def _torch_cam(network: nn.Module, batch: Tensor, layers: Sequence[str], how: str) -> Peer:
    kept: list[Any] = []

    def made() -> Any:
        return TorchGradCAM(network, list(layers))

    def run() -> object:
        if how == DOCUMENTED:
            with made() as extractor:
                return extractor(0, network(batch))
        if not kept:
            kept.append(made())
        return kept[0](0, network(batch), normalized=False)

    def raw() -> dict[str, Tensor]:
        with made() as extractor:
            return dict(zip(layers, extractor(0, network(batch), normalized=False), strict=True))

    return Peer("torch-cam", how, run, raw, clipped=True)


def _captum(network: nn.Module, batch: Tensor, layer: str, how: str) -> Peer:
    explainer = LayerGradCam(network, network.get_submodule(layer))

    def run() -> Tensor:
        return explainer.attribute(batch, target=0)

    return Peer("captum", how, run, lambda: {layer: run()[:, 0].detach()})


# --- Methods that run the network once per channel --------------------------------------------------------------------


class _Some(AblationLayer):
    """Takes away the given channels only."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = channels

    def activations_to_be_ablated(self, activations: Any, ratio_channels_to_ablate: float = 1.0) -> Any:
        self.indices = np.array(self.channels, dtype=np.int32)
        return self.indices


def ablation_map(module: nn.Module, picture: Tensor, layer: str, target: int, channels: Sequence[int]) -> Tensor:
    """pytorch-grad-cam's raw Ablation-CAM `(h, w)` with these channels of `layer` taken away; the others weigh 0."""
    network = copy.deepcopy(module).eval()
    _quiet()
    with AblationCAM(network, [network.get_submodule(layer)], ablation_layer=_Some(channels)) as cam:
        maps = _raw_maps(cam)
        cam(picture, [ClassifierOutputTarget(target)])
    return maps[0][0]


def score_peers(module: nn.Module, picture: Tensor, layer: str, target: int, channels: Tensor) -> list[Peer]:
    """Score-CAM of one picture through these channels of `layer` only."""
    _quiet()
    network = copy.deepcopy(module).eval()

    def pytorch_grad_cam() -> dict[str, Tensor]:
        with ScoreCAM(network, [network.get_submodule(layer)]) as cam:
            with torch.no_grad():
                cam.activations_and_grads(picture)
            found = cam.activations_and_grads.activations[0][:, channels].numpy()
            at = [network.get_submodule(layer)]
            weights = cam.get_cam_weights(picture, at, [ClassifierOutputTarget(target)], found, None)
        return {layer: torch.from_numpy((weights[:, :, None, None] * found).sum(axis=1))}

    def torch_cam(size: int) -> dict[str, Tensor]:
        with TorchScoreCAM(network, layer, batch_size=size) as extractor:
            with torch.inference_mode():
                network(picture)
            extractor.hook_a[0] = extractor.hook_a[0][:, channels]
            with torch.inference_mode():
                return {layer: extractor(target, normalized=False)[0]}

    return [
        Peer("pytorch-grad-cam", "", pytorch_grad_cam, pytorch_grad_cam),
        Peer("torch-cam", "", lambda: torch_cam(32), lambda: torch_cam(32), clipped=True),
        Peer("torch-cam", "batches of 8", lambda: torch_cam(8), lambda: torch_cam(8), clipped=True),
    ]


def _quiet() -> None:
    """No progress bars: they are not what is measured."""
    for part in (score_cam, ablation_cam):
        part.tqdm.tqdm = lambda items, **_: items


# --- Effective receptive fields ---------------------------------------------------------------------------------------


def openerf_map(network: nn.Module, folder: Path, layer: str) -> np.ndarray:
    """OpenERF's map `(H, W)` of the pictures in a folder, by the package itself: it reads them, one at a time."""
    found = openerf.compute_erf(network, image_dir=folder, target_layer=layer, show_progress=False)
    return np.asarray(found.erf_map)


def plain_erf(network: nn.Module, pictures: Tensor, layer: str) -> np.ndarray:
    """RepLKNet's measure as a plain loop: whole network, one picture at a time, all gradients by `loss.backward()`.

    The centre unit's sum over channels after a ReLU; positive gradients summed over the input's channels; mean.
    """
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _module, _args, output: kept.append(output))
    total: Tensor | None = None
    try:
        for picture in pictures:
            given = picture[None].contiguous().requires_grad_()
            network.zero_grad()
            network(given)
            features = kept.pop()
            features[0, :, features.shape[2] // 2, features.shape[3] // 2].relu().sum().backward()
            assert given.grad is not None
            map_ = given.grad[0].relu().sum(0)
            total = map_ if total is None else total + map_
    finally:
        handle.remove()
    assert total is not None
    return (total / len(pictures)).numpy()
