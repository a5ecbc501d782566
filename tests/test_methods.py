"""Every method beside a slow reference written here and every peer that is right; what all have in common."""

from __future__ import annotations

import gc
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn

from r2viz.attribution import METHODS, Rerun, cam_maps, forward_pass, method_named
from r2viz.attribution.decomposition import centred_eigencam, eigencam, eigengradcam, fem, kpcacam
from r2viz.attribution.fullgrad import full_gradients
from r2viz.attribution.gradient import gradcam_plus_plus
from r2viz.attribution.sampling import smooth_gradcam_plus_plus
from r2viz.attribution.scores import Contrast, score_of
from r2viz.errors import ModelError, R2VizError, TapError
from r2viz.models.dla import dla
from r2viz.records import LayerMap
from r2viz.taps import Point, frozen, point

BENCH = "not run: the peer is in the extra 'bench'"
OF_FEATURES = [name for name, row in METHODS.items() if row.needs in ("activations", "gradients", "curvature")]
OWN = [
    *("cam", "gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam", "hirescam", "shapleycam", "finercam"),
    *("eigencam", "eigencam-centred", "eigengradcam", "kpcacam", "fem", "fullgrad", "random"),
]
"""The methods that this file answers for."""
UNSIGNED = ["eigencam", "eigencam-centred", "eigengradcam", "kpcacam"]
"""Whose peers leave the sign to chance."""


def noise(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def close(found: Any, expected: Any, bound: float = 1e-5) -> None:
    """Within `bound` of each picture's own largest value."""
    found, expected = (torch.as_tensor(np.asarray(value)).double() for value in (found, expected))
    assert found.shape == expected.shape
    error = (found - expected).abs().amax(dim=(1, 2)) / expected.abs().amax(dim=(1, 2)).clamp(min=1e-30)
    assert error.max() <= bound, error


def as_signed(found: Tensor, expected: Any) -> Any:
    """`expected` with each picture's sign turned to `found`'s, for peers whose sign is arbitrary."""
    expected = np.asarray(expected)
    turn = np.sign((found.numpy() * expected).sum(axis=(1, 2), keepdims=True))
    return expected * turn


DEPTHS = (1, 2, 1, 1)


@pytest.fixture
def module(net: Callable[..., Any]) -> nn.Module:
    return net(depths=DEPTHS)


def rerun_of(module: nn.Module, batch: Tensor, layer: str, targets: Any = 0, **options: Any) -> Rerun:
    """What `Pass.maps` hands to a method, made here by hand."""
    with frozen(module), torch.no_grad():
        output = module(batch)
    where = point(module, layer)
    features = forward_pass(module, batch, [layer]).activations[layer].detach()
    score = score_of(targets, output)
    rows = torch.arange(len(batch))
    return Rerun(module, layer, where, batch, where.part(features), score(output, rows), score, **options)


# --- The table tests itself ------------------------------------------------------------------------------------------


def call(name: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """A method of features, with the gradients' double where it wants a Hessian's product."""
    row = METHODS[name]
    given = {
        "activations": (activations,),
        "gradients": (activations, gradients),
        "curvature": (activations, gradients, 2 * gradients),
    }
    return row.function(*given[row.needs])


@pytest.mark.parametrize("name", METHODS)
class TestEveryRow:
    def test_is_titled_cited_and_told(self, name: str) -> None:
        row = method_named(name)
        assert row.title
        assert "arXiv" in row.citation or "doi" in row.citation.casefold()
        told = inspect.getdoc(row.function)
        assert told
        assert name not in OWN or "(N, " in told
        assert len({known.title for known in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", OF_FEATURES)
class TestEveryMethodOfFeatures:
    def test_a_constant_network_gives_a_constant_map(self, name: str) -> None:
        for value in (3.0, 0.1, 1 / 3):
            found = call(name, torch.full((2, 6, 5, 4), value), torch.full((2, 6, 5, 4), 0.25))
            assert found.shape == (2, 5, 4)
            assert (found == found[:, :1, :1]).all()

    def test_no_gradient_gives_no_evidence(self, name: str) -> None:
        if METHODS[name].needs == "activations":
            assert not METHODS[name].per_class
            return
        found = call(name, torch.randn(2, 6, 5, 4), torch.zeros(2, 6, 5, 4))
        assert torch.equal(found, torch.zeros(2, 5, 4))

    @pytest.mark.parametrize("shape", [(3, 6, 5, 4), (3, 40, 5, 4), (3, 1, 5, 4), (3, 6, 1, 4), (3, 6, 1, 1)])
    def test_pictures_channels_and_memory_order(self, name: str, shape: tuple[int, ...]) -> None:
        activations, gradients = torch.randn(shape).relu(), torch.randn(shape)
        kept = activations.clone(), gradients.clone()
        found = call(name, activations, gradients)
        assert found.shape == (3, *shape[2:])
        assert torch.equal(activations, kept[0])
        assert torch.equal(gradients, kept[1])
        size = found.abs().max()
        assert torch.allclose(call(name, activations[[1]], gradients[[1]]), found[[1]], atol=1e-5 * size)
        shuffled = torch.randperm(shape[1])
        again = call(name, activations[:, shuffled], gradients[:, shuffled])
        assert torch.allclose(again, found, atol=1e-4 * size)
        last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (activations, gradients)]
        assert torch.allclose(call(name, *last), found, atol=1e-4 * size)

    def test_half_precision_is_computed_in_float32(self, name: str) -> None:
        where = torch.arange(4.0).view(1, 1, 2, 2)
        high, low = (200 + where).expand(1, 600, 2, 2).half(), torch.full((1, 600, 2, 2), 2.0).half()
        found = call(name, high, low)
        assert found.dtype == torch.float32
        assert found.isfinite().all()  # 240 000 is more than float16 holds
        assert torch.equal(found, call(name, high.float(), low.float()))

    def test_no_pictures_give_no_maps(self, name: str) -> None:
        assert call(name, torch.zeros(0, 6, 5, 4), torch.zeros(0, 6, 5, 4)).shape == (0, 5, 4)

    def test_features_that_are_not_finite_show(self, name: str) -> None:
        """The record refuses them in words; no method may hide them or fail in linear algebra's."""
        activations = torch.randn(2, 6, 5, 4).relu()
        activations[1, :, 2, 2] = torch.nan
        found = call(name, activations, torch.randn(2, 6, 5, 4))
        assert found[0].isfinite().all()
        if name != "fem":  # compares, so NaN is nowhere above a threshold
            assert found[1].isnan().any()


# --- Slow references -------------------------------------------------------------------------------------------------


def by_channel(weight: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A map as the loop over channels with one weight each, `(C, h, w), (C, h, w) -> (h, w)`."""

    def slow(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        total = np.zeros(activation.shape[1:])
        for a, g in zip(activation, gradient, strict=True):
            total += weight(a, g) * a
        return total

    return slow


def alpha_weight(a: np.ndarray, g: np.ndarray) -> float:
    """Equation 19 of Grad-CAM++ letter by letter, `Σ α · ReLU(G)`."""
    total = 0.0
    for i, j in np.ndindex(g.shape):
        if g[i, j] != 0:
            alpha = g[i, j] ** 2 / (2 * g[i, j] ** 2 + a.sum() * g[i, j] ** 3)
            total += alpha * max(g[i, j], 0)
    return total


def by_place(term: Callable[[float, float], float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def slow(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        total = np.zeros(activation.shape[1:])
        for c, i, j in np.ndindex(activation.shape):
            total[i, j] += term(activation[c, i, j], gradient[c, i, j])
        return total

    return slow


def rows(features: np.ndarray) -> np.ndarray:
    return features.reshape(len(features), -1).T


def singular(features: np.ndarray) -> np.ndarray:
    """`X v₁` by NumPy's full SVD, of `(C, h, w)`."""
    _, _, right = np.linalg.svd(rows(features), full_matrices=True)
    return (rows(features) @ right[0]).reshape(features.shape[1:])


def kernel_component(features: np.ndarray) -> np.ndarray:
    """Kernel PCA by its textbook: kernel, double centring, the first eigenvector times √λ."""
    x = rows(features) - rows(features).mean(axis=0)
    n = len(x)
    kernel = np.array([[math.tanh(x[i] @ x[j] / x.shape[1] + 1) for j in range(n)] for i in range(n)])
    centre = np.eye(n) - np.ones((n, n)) / n
    values, vectors = np.linalg.eigh(centre @ kernel @ centre)
    return (vectors[:, -1] * math.sqrt(values[-1])).reshape(features.shape[1:])


def unusual(activation: np.ndarray, _gradient: np.ndarray) -> np.ndarray:
    total = np.zeros(activation.shape[1:])
    for a in activation:
        total += a.mean() * np.where(a > a.mean() + 2 * a.std(), 1, 0)
    return total


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "gradcam": by_channel(lambda a, g: g.mean()),
    "finercam": by_channel(lambda a, g: g.mean()),
    "gradcam++": by_channel(alpha_weight),
    "xgradcam": by_channel(lambda a, g: (g * a).sum() / a.sum() if a.sum() else 0),
    "shapleycam": by_channel(lambda a, g: (g - 2 * g / 2).mean()),  # `call` gives 2 G as the product
    "layercam": by_place(lambda a, g: max(g, 0) * a),
    "hirescam": by_place(lambda a, g: g * a),
    "eigencam": lambda a, g: singular(a),
    "eigencam-centred": lambda a, g: singular(a - a.mean(axis=(1, 2), keepdims=True)),
    "eigengradcam": lambda a, g: singular(a * g - (a * g).mean(axis=(1, 2), keepdims=True)),
    "kpcacam": lambda a, g: kernel_component(a),
    "fem": unusual,
}


@pytest.mark.parametrize("shape", [(2, 9, 5, 4), (2, 40, 5, 4)], ids=["few-channels", "many-channels"])
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_slow_reference(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(name))
    activations, gradients = (torch.randn(shape, generator=generator) for _ in range(2))
    activations = activations.relu()
    activations[:, 2] = 0  # a dead channel
    gradients[:, 3] = 0
    found = call(name, activations, gradients)
    wide = activations.double().numpy(), gradients.double().numpy()
    expected = np.stack([REFERENCES[name](a, g) for a, g in zip(*wide, strict=True)])
    if name == "shapleycam":
        assert found.abs().max() < 1e-6  # G - 2 G / 2; its real proof is below
        return
    close(found, as_signed(found, expected) if name in UNSIGNED else expected, 1e-4 if name in UNSIGNED else 1e-5)


def test_all_methods_of_features_have_a_reference() -> None:
    assert set(REFERENCES) == set(OF_FEATURES) & set(OWN)


def test_gradcam_plus_plus_keeps_its_weights_where_squares_vanish() -> None:
    """Squares of 1e-25 are 0 in float32, and 1e-4 squared is below the 1e-6 that pytorch-grad-cam adds."""
    activations, gradients = torch.rand(1, 5, 4, 4), torch.rand(1, 5, 4, 4)
    for size in (1e-4, 1e-25):
        expected = by_channel(alpha_weight)(activations[0].double().numpy(), size * gradients[0].double().numpy())
        close(gradcam_plus_plus(activations, size * gradients), expected[None])


def test_gradcam_plus_plus_and_xgradcam_survive_sums_of_zero() -> None:
    activations = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4)  # sums to 0
    minus = torch.full((1, 1, 4, 4), -2 / 16)  # S = -2, so that 2 + S G = 0 for G = 1
    for name, features in itertools.product(("gradcam++", "xgradcam"), (activations, minus)):
        assert call(name, features, torch.ones(1, 1, 4, 4)).isfinite().all()
    assert torch.equal(call("xgradcam", activations, torch.ones(1, 1, 4, 4)), torch.zeros(1, 4, 4))


# --- Peers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer(net: Callable[..., Any]) -> nn.Module:
    return net(depths=(1, 1, 2, 1))


def grad_cam(cls: str, module: nn.Module, layer: str, batch: Tensor, target: int, kind: str = "") -> np.ndarray:
    """pytorch-grad-cam's raw map, before it clips, rescales and resizes: `(N, h, w)`."""
    package = pytest.importorskip("pytorch_grad_cam", reason=BENCH)
    from pytorch_grad_cam.utils import model_targets

    module = module.requires_grad_(True)
    with getattr(package, cls)(model=module, target_layers=[module.get_submodule(layer)]) as made:
        raw: list[np.ndarray] = []
        make = made.get_cam_image
        made.get_cam_image = lambda *args, **more: raw.append(make(*args, **more)) or raw[-1]
        made(batch.clone(), targets=[getattr(model_targets, kind or "ClassifierOutputTarget")(target)] * len(batch))
        (found,) = raw
    for parameter in module.parameters():
        parameter.grad = None
    return np.asarray(found)


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
@pytest.mark.parametrize(
    ("name", "cls", "bound"),
    [
        ("gradcam", "GradCAM", 1e-5),
        ("xgradcam", "XGradCAM", 1e-4),  # it adds 1e-7 to the sum
        ("layercam", "LayerCAM", 1e-5),
        ("hirescam", "HiResCAM", 1e-5),
        ("eigencam-centred", "EigenCAM", 1e-4),
        ("eigengradcam", "EigenGradCAM", 1e-4),
        ("kpcacam", "KPCA_CAM", 1e-4),
    ],
)
def test_equals_pytorch_grad_cam(peer: nn.Module, name: str, cls: str, bound: float, layer: str) -> None:
    batch = noise(3, 96)
    found = cam_maps(peer, batch, targets=4, method=name, layers=[layer])[layer]
    expected = grad_cam(cls, peer, layer, batch, 4)
    close(found, as_signed(found, expected) if name in UNSIGNED else expected, bound)


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_shapleycam_equals_pytorch_grad_cam(peer: nn.Module, layer: str) -> None:
    """It differentiates through its own tap, so one picture at a time and one layer at a time."""
    batch = noise(2, 96)
    found = cam_maps(peer, batch, targets=4, method="shapleycam", layers=["layer2", "layer3", "layer4"])[layer]
    expected = grad_cam("ShapleyCAM", peer, layer, batch, 4, "ClassifierOutputReST")
    close(found, expected, 1e-4)


def test_gradcam_plus_plus_equals_pytorch_grad_cam_where_gradients_are_large() -> None:
    """For small ones its constant of 1e-6 outweighs G²: the maps of a real last layer differ."""
    package = pytest.importorskip("pytorch_grad_cam", reason=BENCH)
    activations, gradients = torch.randn(2, 9, 7, 7).relu().double(), torch.randn(2, 9, 7, 7).double()

    def theirs(scale: float) -> np.ndarray:
        weights = package.GradCAMPlusPlus.get_cam_weights(
            None, None, None, None, activations.numpy(), scale * gradients.numpy()
        )
        return (weights[:, :, None, None] * activations.numpy()).sum(axis=1)

    close(gradcam_plus_plus(activations, 1e3 * gradients), theirs(1e3), 1e-4)
    small = gradcam_plus_plus(activations, 1e-4 * gradients).double().numpy()
    assert np.abs(theirs(1e-4)).max() < 0.05 * small.max()  # instead of α = 1/2, α = G² / 1e-6


@pytest.fixture
def torchcam() -> Any:
    return pytest.importorskip("torchcam.methods", reason=BENCH)


def torch_cam(cls: Any, module: nn.Module, layer: str, batch: Tensor, target: int, **options: Any) -> Tensor:
    """torch-cam's map before it rescales; it has clipped it: `(N, h, w)`."""
    with cls(module, layer, **options) as made:
        scores = module(batch.clone().requires_grad_(True))
        (found,) = made([target] * len(batch), scores, normalized=False)
    return found.detach()


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
@pytest.mark.parametrize(
    ("name", "cls"),
    [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM"), ("finercam", "FinerCAM")],
)
def test_equals_torch_cam(peer: nn.Module, torchcam: Any, name: str, cls: str, layer: str) -> None:
    batch = noise(3, 96)
    found = cam_maps(peer, batch, targets=4, method=name, layers=[layer], relu=True)[layer]
    close(found, torch_cam(getattr(torchcam, cls), peer, layer, batch, 4))


def test_torch_cams_gradcam_plus_plus_leaves_alpha_out(peer: nn.Module, torchcam: Any) -> None:
    """Why it is not among the peers: its division edits a copy, so its weights are Σ G² · ReLU(G)."""
    batch = noise(2, 96)
    expected = torch_cam(torchcam.GradCAMpp, peer, "layer3", batch, 4)
    seen = forward_pass(peer, batch, ["layer3"])
    activations = seen.activations["layer3"]
    (gradients,) = torch.autograd.grad(seen.output[:, 4].sum(), activations)
    weights = (gradients**2 * gradients.relu()).sum(dim=(2, 3), keepdim=True)
    close((weights * activations.detach()).sum(dim=1).relu(), expected, 1e-4)
    ours = cam_maps(peer, batch, targets=4, method="gradcam++", layers=["layer3"])["layer3"]
    with pytest.raises(AssertionError):
        close(ours / ours.amax(dim=(1, 2), keepdim=True), expected / expected.amax(dim=(1, 2), keepdim=True), 1e-2)


@pytest.mark.parametrize(("name", "cls"), [("gradcam", LayerGradCam), ("hirescam", LayerGradientXActivation)])
def test_equals_captum(peer: nn.Module, name: str, cls: Any) -> None:
    batch = noise(3, 96)
    for layer in ("layer2", "layer4", "layer3.1.bn3"):
        found = cam_maps(peer, batch, targets=[4, 0, 6], method=name, layers=[layer])[layer]
        expected = cls(peer, peer.get_submodule(layer)).attribute(batch, target=torch.tensor([4, 0, 6])).detach()
        close(found, expected.sum(dim=1))


# --- CAM -------------------------------------------------------------------------------------------------------------


def test_cam_is_the_heads_row(module: nn.Module) -> None:
    batch, targets = noise(3), [1, 5, 1]
    features = forward_pass(module, batch, ["layer4"]).activations["layer4"].detach()
    expected = torch.zeros(3, 2, 2)
    for number, target in enumerate(targets):
        for channel, weight in enumerate(module.fc.weight[target].detach()):
            expected[number] += weight * features[number, channel]
    found = cam_maps(module, batch, targets=targets, method="cam")["layer4"]
    close(found, expected)
    close(found, 4 * cam_maps(module, batch, targets=targets)["layer4"])  # 2 × 2 positions
    contrast = cam_maps(module, batch, targets=Contrast(1, 5), method="cam")["layer4"]
    one, other = (cam_maps(module, batch, targets=index, method="cam")["layer4"] for index in (1, 5))
    close(contrast, one - other)


def test_a_head_that_is_a_convolution_serves_as_the_linear_layer_that_it_is() -> None:
    """DLA's: pooling, a 1x1 convolution, flattening."""
    trees = dla(widths=(4, 8, 16, 32, 48, 64), num_classes=7).eval()
    batch = noise(2)
    head = rerun_of(trees, batch, "level5").head()
    assert head is not None
    assert head.weight.data_ptr() == trees.fc.weight.data_ptr()  # no copy
    made = cam_maps(trees, batch, targets=[1, 5], layers=["level5"], method="cam")["level5"]
    close(made, 4 * cam_maps(trees, batch, targets=[1, 5], layers=["level5"])["level5"])  # 2 × 2 positions
    with torch.no_grad():
        trees.fc = nn.Sequential(trees.fc, nn.ReLU())
    assert rerun_of(trees, batch, "level5").head() is None  # the output is not the convolution's


def test_cam_equals_torch_cam(peer: nn.Module, torchcam: Any) -> None:
    batch = noise(3, 96)
    with torchcam.CAM(peer, "layer4", "fc") as made:
        peer(batch)
        (expected,) = made([4, 0, 2], normalized=False)
    close(cam_maps(peer, batch, targets=[4, 0, 2], method="cam")["layer4"], expected)


@pytest.mark.parametrize("layer", ["layer3", "layer4.0.bn3", "layer4.0.conv3_in[1]"])
def test_cam_refuses_other_layers_in_one_line(module: nn.Module, layer: str) -> None:
    with pytest.raises(
        ModelError, match=r"CAM needs average pooling and one linear layer right after .* use method 'gradcam'"
    ) as caught:
        cam_maps(module, noise(1), method="cam", layers=[layer])
    assert repr(layer) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Shapley-CAM and Finer-CAM ---------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """With a curvature of its own: no ReLU after the tapped layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.after(torch.sigmoid(self.conv(x)))).mean(dim=(2, 3)))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


@pytest.mark.parametrize("own", [False, True], ids=["class", "function"])
def test_shapleycam_by_the_whole_hessian(own: bool) -> None:
    module, batch = seeded(Smooth), noise(2, 8)
    target: Any = (lambda output: output[:, 1] ** 2 + output[:, 0]) if own else 2

    def score(features: Tensor) -> Tensor:
        logits = module.fc(torch.tanh(module.after(torch.sigmoid(features[None]))).mean(dim=(2, 3)))
        return target(logits)[0] if own else logits[0, 2] + torch.log_softmax(logits, dim=1)[0, 2]

    expected = []
    for picture in batch:
        features = module.conv(picture[None])[0].detach()
        hessian = torch.autograd.functional.hessian(score, features)
        slope = torch.autograd.functional.jacobian(score, features)
        product = torch.einsum("abcdef,def->abc", hessian, features)
        weights = (slope - product / 2).mean(dim=(1, 2))
        expected.append(torch.einsum("c,chw->hw", weights, features))
    found = cam_maps(module, batch, targets=target, method="shapleycam", layers=["conv"])["conv"]
    close(found, torch.stack(expected))
    plain = cam_maps(module, batch, targets=target, layers=["conv"])["conv"]
    assert (found - plain).abs().max() > 1e-3 * plain.abs().max()


def test_shapleycam_of_a_bare_logit_is_gradcam(module: nn.Module) -> None:
    """A network of ReLUs is piecewise linear: without ReST the Hessian has nothing to say."""
    layers = ["layer2", "layer4", "layer2.1.split1", "layer2.1.conv3_in[0]"]
    found = cam_maps(module, noise(2), targets=lambda output: output[:, 3], method="shapleycam", layers=layers)
    for layer, map_ in cam_maps(module, noise(2), targets=3, layers=layers).items():
        close(found[layer], map_)
    rest = cam_maps(module, noise(2), targets=3, method="shapleycam", layers=layers)
    assert all((rest[layer] - found[layer]).abs().max() > 1e-3 * found[layer].abs().max() for layer in layers)


def test_shapleycam_is_asked_again_of_one_pass(module: nn.Module) -> None:
    seen = forward_pass(module, noise(2), ["layer3", "layer4"])
    first, again = (seen.maps(2, method="shapleycam") for _ in range(2))
    plain = seen.maps(2)
    for layer in first:
        assert torch.equal(first[layer], again[layer])
        close(plain[layer], cam_maps(module, noise(2), targets=2, layers=[layer])[layer])


def test_finercam_is_gradcam_of_a_difference_of_logits(module: nn.Module) -> None:
    batch = noise(3)
    logits = module(batch).detach()
    targets = [2, 0, 6]
    found = cam_maps(module, batch, targets=targets, method="finercam", layers=["layer3"])["layer3"]
    for number, target in enumerate(targets):
        apart = [abs(float(logit - logits[number, target])) for logit in logits[number]]
        near = sorted((index for index in range(7) if index != target), key=apart.__getitem__)[:3]
        single = batch[[number]]
        maps = {
            index: cam_maps(module, single, targets=index, layers=["layer3"])["layer3"] for index in [target, *near]
        }
        close(found[[number]], maps[target] - 0.6 * sum(maps[index] for index in near) / 3, 1e-4)


# --- Decompositions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, -1])
def test_signs_are_decided_and_not_left_to_chance(turn: int) -> None:
    """`turn` times features that are never negative: the map goes where the layer is active, or least negative."""
    features = turn * torch.randn(4, 12, 6, 5).relu()
    for function in (eigencam, centred_eigencam, kpcacam):
        found = function(features).flatten(1)
        total = features.sum(dim=1).flatten(1)
        centred = total - total.mean(dim=1, keepdim=True) if function is not eigencam else total
        assert ((found * centred).sum(dim=1) > 0).all()
    if turn > 0:
        assert (eigencam(features) >= -1e-6).all()
    product = torch.randn(4, 12, 6, 5)
    evidence = (features * product).sum(dim=1).flatten(1)
    found = eigengradcam(features, product).flatten(1)
    assert ((found * (evidence - evidence.mean(dim=1, keepdim=True))).sum(dim=1) > 0).all()


def test_a_component_orthogonal_to_the_sum_has_its_largest_entry_positive() -> None:
    one = torch.tensor([3.0, -1, -1, -1]).view(1, 1, 2, 2)
    found = eigencam(torch.cat([one, -one], dim=1))
    close(found, math.sqrt(2) * one[:, 0])


def test_large_kernels_go_by_lanczos_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from r2viz.attribution import decomposition

    features = torch.randn(2, 24, 14, 14, generator=torch.Generator().manual_seed(3)).relu()
    features = features + torch.nn.functional.avg_pool2d(features, 7, 1, 3) * 6
    dense = kpcacam(features), eigencam(features)
    monkeypatch.setattr(decomposition, "LARGEST_DENSE", 10)
    close(kpcacam(features), dense[0])
    close(eigencam(features), dense[1])
    for value in (0.0, 0.1):
        flat = kpcacam(torch.full((1, 6, 5, 4), value))
        assert (flat == flat[:, :1, :1]).all()


def test_fem_of_four_positions_says_nothing() -> None:
    assert not fem(torch.randn(2, 30, 2, 2).relu()).any()
    assert fem(torch.randn(2, 30, 3, 3).relu()).any()


# --- Smooth Grad-CAM++ -----------------------------------------------------------------------------------------------


def smooth_by_hand(rerun: Rerun, noises: Tensor, *, last: bool = False) -> np.ndarray:
    """A loop over copies and channels, in float64; `last`: as torch-cam has it."""
    derivatives = []
    for one in noises:
        rows = torch.arange(len(rerun.batch))
        derivatives.append(rerun.look(rerun.batch + 0.3 * one, rows)[2].double().numpy())
    latest = rerun_of(rerun.module, rerun.batch + 0.3 * noises[-1], rerun.layer).activations
    maps = []
    for number, activation in enumerate(rerun.activations.double().numpy()):
        total = np.zeros(activation.shape[1:])
        for channel, a in enumerate(activation):
            g = [derivative[number, channel] for derivative in derivatives]
            second, third = (np.mean([one**power for one in g], axis=0) for power in (2, 3))
            below = 2 * second + ((a * third).sum() if last else a.sum() * third)
            alpha = np.where(below == 0, 0, second / np.where(below == 0, 1, below))
            slope = g[-1] if last else np.mean(g, axis=0)
            total += (alpha * np.maximum(slope, 0)).sum() * (latest[number, channel].numpy() if last else a)
        maps.append(total)
    return np.stack(maps)


@pytest.mark.parametrize("layer", ["layer3", "layer2.1.split1"])
def test_smooth_equals_the_loop_however_it_is_cut(module: nn.Module, layer: str) -> None:
    rerun = rerun_of(module, noise(3), layer, [0, 3, 6], seed=5)
    noises = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    expected = smooth_by_hand(rerun, noises)
    for size in (None, 1, 5, 12):
        told: dict[int, int] = {}
        found = smooth_gradcam_plus_plus(replace(rerun, rows_at_once=size, progress=told.__setitem__))
        close(found, expected, 1e-4)
        assert list(told.items())[-1] == (12, 12)
    through = cam_maps(module, noise(3), targets=[0, 3, 6], method="smoothgradcam++", layers=[layer], seed=5)[layer]
    close(through, expected, 1e-4)
    assert not torch.equal(through, smooth_gradcam_plus_plus(replace(rerun, seed=6)))


def test_smooth_without_noise_is_gradcam_plus_plus(module: nn.Module) -> None:
    rerun = rerun_of(module, noise(2), "layer3")
    found = smooth_gradcam_plus_plus(rerun, sigma=0)
    close(found, cam_maps(module, noise(2), targets=0, method="gradcam++", layers=["layer3"])["layer3"], 1e-4)


@pytest.mark.parametrize("copies", [1, 4])
def test_smooth_beside_torch_cam(peer: nn.Module, torchcam: Any, copies: int) -> None:
    """Hand-made its way, the maps are equal: the last copy's activations and gradient, and `Σ A G³` for `S G³`."""
    batch = noise(2, 64)
    noises = torch.randn(copies, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = iter(0.3 * noises)
    with torchcam.SmoothGradCAMpp(peer, "layer3", num_samples=copies, std=0.3) as made:
        made._distrib = type("Given", (), {"sample": staticmethod(lambda size: next(given).expand(size))})
        peer(batch)
        (expected,) = made([4, 4], normalized=False, eps=0.0)
    rerun = rerun_of(peer, batch, "layer3", 4)
    close(np.maximum(smooth_by_hand(rerun, noises, last=True), 0), expected, 1e-3)


# --- FullGrad --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resnet", "res2net"])
def test_full_gradients_add_up_to_the_score(net: Callable[..., Any], kind: str) -> None:
    """Completeness, equation 4 of the paper: one bias missed, or taken after an in-place ReLU, and it fails."""
    module, batch = net(kind).double(), noise(3).double()
    rerun = rerun_of(module, batch, "layer4", [0, 3, 6])
    parts = full_gradients(rerun, torch.arange(3))
    total = (
        parts.input.double().sum(dim=(1, 2, 3)) + parts.others + sum(part.sum(dim=(1, 2, 3)) for part in parts.layers)
    )
    assert torch.allclose(total.double(), rerun.base, rtol=1e-4)
    count = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert len(parts.layers) == count
    assert all(part._forward_hooks == {} for part in module.modules())


def authors_map(module: nn.Module, rerun: Rerun, number: int) -> np.ndarray:
    """The authors' post-processing as loops over layers, for one picture."""
    parts = full_gradients(rerun, torch.tensor([number]))

    def stretched(part: Tensor) -> Tensor:
        part = part.abs()
        return (part - part.min()) / (part - part.min()).max()

    total = stretched(parts.input)[0].sum(dim=0)
    for layer in parts.layers:
        large = torch.nn.functional.interpolate(stretched(layer), size=total.shape, mode="bilinear", align_corners=True)
        total = total + large[0].sum(dim=0)
    return total.numpy()


def test_fullgrad_equals_the_loop_however_it_is_cut(module: nn.Module) -> None:
    batch = noise(3)
    rerun = rerun_of(module, batch, "layer4", 2)
    expected = np.stack([authors_map(module, rerun, number) for number in range(3)])
    for size in (None, 1, 2):
        close(METHODS["fullgrad"].function(replace(rerun, rows_at_once=size)), expected, 1e-4)
    found = cam_maps(module, batch, targets=2, method="fullgrad", layers=["layer1", "layer4"])
    assert list(found) == ["input"]
    close(found["input"], expected, 1e-4)
    assert (found["input"] >= 0).all()


def test_full_gradients_are_pytorch_grad_cams(peer: nn.Module) -> None:
    """Which rescales every channel by itself and aligns no corners: its map is made here of our parts."""
    pytest.importorskip("pytorch_grad_cam", reason=BENCH)
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.image import scale_accross_batch_and_channels, scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    batch = noise(1)
    parts = full_gradients(rerun_of(peer, batch, "layer4", 4), torch.tensor([0]))
    total = sum(
        scale_accross_batch_and_channels(part.abs().numpy(), (64, 64)).sum(axis=1)
        for part in (parts.input, *parts.layers)
    )
    module = peer.requires_grad_(True)
    with FullGrad(model=module, target_layers=[]) as made:
        expected = made(batch.clone(), targets=[ClassifierOutputTarget(4)])
    for parameter in module.parameters():
        parameter.grad = None
    close(scale_cam_image(total), expected, 1e-3)


class Fused(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_fullgrad_refuses_what_it_cannot_see() -> None:
    fused = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Fused(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(
        ModelError, match="FullGrad needs to see what each bias is added to, but Fused does more than Ba"
    ):
        cam_maps(fused, noise(1, 16), layers=["0"], method="fullgrad")
    assert all(part._forward_hooks == {} for part in fused.modules())
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(ModelError, match="FullGrad needs batch normalisations with running statistics"):
        cam_maps(untracked.eval(), noise(1, 8), layers=["0"], method="fullgrad")


def test_fullgrad_counts_biases_without_a_place_but_does_not_draw_them() -> None:
    """Of linear layers, also on channels-last features, and behind a global pooling; a unit that runs twice, twice."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.pooled = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            for _ in range(2):
                x = self.mix(x.movedim(1, -1)).movedim(-1, 1).relu()
            return self.fc(self.pooled(x.mean(dim=(2, 3), keepdim=True)).flatten(1).relu())

    module = seeded(Odd)
    rerun = rerun_of(module, noise(2, 8), "conv", 1)
    parts = full_gradients(rerun, torch.arange(2))
    assert [tuple(part.shape) for part in parts.layers] == [(2, 4, 6, 6)] * 3
    total = parts.input.sum(dim=(1, 2, 3)) + parts.others + sum(part.sum(dim=(1, 2, 3)) for part in parts.layers)
    assert torch.allclose(total, rerun.base, atol=1e-5)


# --- Random ----------------------------------------------------------------------------------------------------------


def test_random_is_of_picture_layer_seed_and_architecture_and_of_nothing_else(
    net: Callable[..., Any], module: nn.Module
) -> None:
    batch, layers = noise(3), ["layer2", "layer3"]
    found = cam_maps(module, batch, method="random", layers=layers)
    before = torch.get_rng_state()
    assert torch.equal(cam_maps(module, batch[[2]], method="random", layers=layers)["layer2"][0], found["layer2"][2])
    assert torch.equal(torch.get_rng_state(), before)
    other = net("resnet", seed=3)
    again = net("resnet", seed=4)
    maps = [cam_maps(one, batch, method="random", layers=["layer2"])["layer2"] for one in (other, again)]
    assert torch.equal(maps[0], maps[1])  # weights do not matter
    alike = {name: weight.shape for name, weight in module.named_parameters()} == {
        name: weight.shape for name, weight in other.named_parameters()
    }
    assert torch.equal(maps[0], found["layer2"]) == alike
    assert not torch.equal(
        cam_maps(module, batch, method="random", layers=["layer2"], seed=1)["layer2"], found["layer2"]
    )
    flat = cam_maps(module, noise(1, 256), method="random", layers=["layer1"])["layer1"].flatten()
    assert flat.min() >= 0
    assert flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.02
    assert abs(flat.var() - 1 / 12) < 0.01
    pairs = torch.stack([found["layer2"][0].flatten(), found["layer2"][1].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.5


# --- What all methods have in common ---------------------------------------------------------------------------------

COMMON = ["layer4", "layer2.1.split1"]


def maps_of(name: str, module: nn.Module, batch: Tensor, targets: Any = 1, layers: Any = None, **more: Any) -> Any:
    layers = layers or (["layer4"] if name == "cam" else COMMON)
    return cam_maps(module, batch, targets=targets, method=name, layers=layers, **more)


@pytest.mark.parametrize("name", OWN)
class TestEveryMethod:
    def test_pictures_do_not_influence_each_other(self, name: str, module: nn.Module) -> None:
        batch, order, targets = noise(4, 96), torch.tensor([2, 0, 3, 1]), torch.tensor([0, 3, 6, 3])
        found = maps_of(name, module, batch, targets)
        permuted = maps_of(name, module, batch[order], targets[order])
        alone = maps_of(name, module, batch[[2]], 6)
        for layer, map_ in found.items():
            assert map_.isfinite().all()
            assert map_.dtype == torch.float32
            assert map_.std() > 0
            close(permuted[layer], map_[order], 1e-3)
            close(alone[layer], map_[[2]], 1e-3)

    def test_a_constant_network_gives_a_constant_map_and_the_record_says_so(self, name: str, net: Any) -> None:
        if name == "random":
            return
        module = net("resnet")
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.zeros_(part.weight)
        for layer, map_ in maps_of(name, module, noise(2), 0, ["layer4"]).items():
            for one in map_.numpy():
                assert LayerMap(layer, one, (0, 0), (1, 1), "rf", "total").constant, one

    def test_the_classes_matter_or_do_not(self, name: str, module: nn.Module) -> None:
        one, other = (maps_of(name, module, noise(2), targets) for targets in (0, 5))
        same = [torch.equal(one[layer], other[layer]) for layer in one]
        assert not any(same) if METHODS[name].per_class else all(same)

    def test_the_network_is_left_as_it_was(self, name: str, module: nn.Module) -> None:
        """In training mode, half frozen, with gradients of the user's own; batch statistics take no part."""
        expected = maps_of(name, module, noise(2, 96))
        module.train()
        module.layer2.requires_grad_(False)
        module.fc.weight.grad = torch.ones_like(module.fc.weight)
        flags = [parameter.requires_grad for parameter in module.parameters()]
        before = {key: value.clone() for key, value in module.state_dict().items()}
        found = maps_of(name, module, noise(2, 96))
        for layer, map_ in expected.items():
            close(found[layer], map_)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        assert all(part.training for part in module.modules())
        assert [parameter.requires_grad for parameter in module.parameters()] == flags
        assert torch.equal(module.fc.weight.grad, torch.ones_like(module.fc.weight))
        assert module.conv1.weight.grad is None
        assert all(part._forward_hooks == {} and part._forward_pre_hooks == {} for part in module.modules())

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_the_callers_gradient_mode_does_not_matter(self, name: str, context: Any, module: nn.Module) -> None:
        expected = maps_of(name, module, noise(2, 96))
        with context():
            found = maps_of(name, module, noise(2, 96), torch.tensor([1, 1]))
        for layer, map_ in expected.items():
            close(found[layer], map_)
            assert not map_.requires_grad

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.95), (torch.bfloat16, 0.8), (torch.float64, 0.999)])
    def test_other_precisions(self, name: str, dtype: torch.dtype, bound: float, net: Callable[..., Any]) -> None:
        """`bound` is the least correlation with the float32 map of each picture."""
        expected = maps_of(name, net(depths=DEPTHS), noise(2, 96))
        found = maps_of(name, net(depths=DEPTHS).to(dtype), noise(2, 96))
        for layer, map_ in found.items():
            assert map_.dtype == torch.float32
            assert map_.isfinite().all()
            if name == "random" and dtype != torch.float64:
                continue  # of the picture as the network sees it, and that is rounded
            for one, other in zip(map_, expected[layer], strict=True):
                assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > bound, layer

    def test_channels_last(self, name: str, net: Callable[..., Any]) -> None:
        expected = maps_of(name, net(depths=DEPTHS), noise(2, 96))
        found = maps_of(name, net(depths=DEPTHS).to(memory_format=torch.channels_last), noise(2, 96))
        for layer, map_ in expected.items():
            close(found[layer], map_, 1e-3)

    def test_wrapped_networks(self, name: str, module: nn.Module) -> None:
        expected = maps_of(name, module, noise(2))
        for wrapped in (
            nn.DataParallel(module),
            torch.compile(module, backend="eager"),
            nn.DataParallel(torch.compile(module, backend="eager")),
        ):
            for layer, map_ in maps_of(name, wrapped, noise(2)).items():
                close(map_, expected[layer])


def test_nothing_waits_for_the_collector(module: nn.Module) -> None:
    """Reference counts alone free what a method used: on a GPU, garbage that waits is memory that is missing."""
    for name in OWN:
        maps_of(name, module, noise(2))
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        for name in OWN:
            found = maps_of(name, module, noise(2))
            assert all(map_.grad_fn is None and not map_.requires_grad for map_ in found.values()), name
        del found
        assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) == before
    finally:
        gc.enable()


SCALED = {
    **dict.fromkeys(["cam", "gradcam", "xgradcam", "layercam", "hirescam", "finercam", "eigengradcam"], 1),
    **dict.fromkeys(["eigencam", "eigencam-centred", "kpcacam", "fem", "random", "fullgrad"], 0),
}
"""By which power of the scale of all logits a map grows; Grad-CAM++ and ReST are of the exponential of the score."""


@pytest.mark.parametrize("name", SCALED)
def test_scaling_all_logits_leaves_the_shape(name: str, net: Callable[..., Any]) -> None:
    plain, scaled = net(depths=DEPTHS), net(depths=DEPTHS)
    with torch.no_grad():
        scaled.fc.weight *= 7
        scaled.fc.bias *= 7
    expected = maps_of(name, plain, noise(2, 96))
    for layer, map_ in maps_of(name, scaled, noise(2, 96)).items():
        close(map_, 7 ** SCALED[name] * expected[layer], 1e-4)


# --- Networks that are not ready -------------------------------------------------------------------------------------


def test_data_parallel_is_unwrapped_of_one_process_too(module: nn.Module) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        close(cam_maps(wrapped, noise(2), targets=1)["layer4"], cam_maps(module, noise(2), targets=1)["layer4"])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_network_compiled_in_place_gives_maps_or_says_why_not() -> None:
    module, batch = seeded(Smooth), noise(2, 8)
    expected = cam_maps(module, batch, targets=1, layers=["conv"])["conv"]
    module.compile(backend="eager")
    module(batch)
    message = None
    try:
        close(cam_maps(module, batch, targets=1, layers=["conv"])["conv"], expected)
    except TapError as error:
        message = str(error)
    assert message is None or ("hooks do not fire inside compiled" in message and "\n" not in message)


@pytest.mark.parametrize("name", OWN)
def test_half_made_networks_say_what_is_missing(name: str, net: Callable[..., Any]) -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(
        ModelError, match=r"the network's '0.weight' has no shape yet; run one batch through the network"
    ):
        cam_maps(lazy, noise(1, 16), layers=["0"], method=name)
    partly = net(depths=DEPTHS)
    partly.layer3[0].conv1.weight = nn.Parameter(torch.empty_like(partly.layer3[0].conv1.weight, device="meta"))
    with pytest.raises(
        ModelError, match=r"'layer3.0.conv1.weight' has no values \(it is on the device 'meta'\); load wei"
    ):
        cam_maps(partly, noise(1), method=name)
    lazy(noise(1, 16))
    assert next(iter(cam_maps(lazy, noise(1, 16), layers=["1"], method=name, targets=0).values())).isfinite().all()


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_own_methods_are_the_tables(module: nn.Module) -> None:
    """A row that nobody answers for would be missed by the tests above."""
    assert set(OWN) <= set(METHODS)
    assert isinstance(point(module, "layer4"), Point)
    with pytest.raises(R2VizError):
        method_named("grad cam")
