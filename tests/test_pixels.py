"""Pixel attributions: captum's answers on the network itself, completeness, and the copy that is taken apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from tiny import network, pair, photo
from torch import Tensor, nn

from r2viz.attribution import METHODS, Contrast, cam_maps
from r2viz.attribution.pixels import apart
from r2viz.errors import ModelError
from r2viz.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")

PIXEL = [name for name, row in METHODS.items() if row.needs == "pixels"]
CAPTUM = ["occlusion", "integratedgradients", "saliency", "smoothgrad", "guidedgradcam", "guidedbackprop", "lrp"]


def batch(count: int = 2) -> Tensor:
    return torch.cat([network().preprocess(photo(seed=seed))[0] for seed in range(count)])


@pytest.fixture(params=["resnet_tiny", "res2net_tiny"])
def module(request: pytest.FixtureRequest) -> nn.Module:
    return network(request.param).module


class Plain(nn.Module):
    """Layers once each, nothing in place: what captum takes as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer4 = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer4(x)).flatten(1))


def test_table_has_them() -> None:
    assert set(CAPTUM) <= set(PIXEL)


@pytest.mark.parametrize("method", CAPTUM)
def test_one_signed_finite_map_per_picture_whatever_the_batch_and_the_gradient_mode(
    module: nn.Module, method: str
) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    targets = torch.tensor([1, 2])
    with torch.no_grad():
        found = cam_maps(module, batch(), targets=targets, method=method)
    assert list(found) == ["input"]
    maps = found["input"]
    assert maps.shape == (2, 64, 64)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.std() > 0
    for number in range(2):
        alone = cam_maps(module, batch()[number : number + 1], targets=int(targets[number]), method=method)["input"]
        torch.testing.assert_close(alone[0], maps[number], atol=1e-4 * float(maps.abs().max()), rtol=1e-3)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._backward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("method", CAPTUM)
def test_equals_captum_called_by_hand(method: str) -> None:
    attr = pytest.importorskip("captum.attr")
    module, x = Plain().eval(), batch()
    found = cam_maps(module, x, targets=3, method=method)["input"]

    def by_hand() -> Any:
        if method == "saliency":
            return attr.Saliency(module).attribute(x, 3)
        if method == "integratedgradients":
            return attr.IntegratedGradients(module).attribute(x, target=3, n_steps=50)
        if method == "occlusion":
            return attr.Occlusion(module).attribute(x, (3, 8, 8), strides=(3, 4, 4), target=3) / 3
        if method == "guidedbackprop":
            return attr.GuidedBackprop(module).attribute(x, 3)
        if method == "guidedgradcam":
            guided = attr.GuidedBackprop(module).attribute(x, 3)
            coarse = attr.LayerGradCam(module, module.layer4).attribute(x, 3).clamp(min=0)
            return guided * torch.nn.functional.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        if method == "lrp":
            return attr.LRP(module).attribute(x, 3)
        noise = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        spread = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
        return torch.stack([attr.Saliency(module).attribute(x + 0.15 * spread * one, 3) for one in noise]).mean(dim=0)

    expected = by_hand().detach().sum(dim=1).float()
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_integrated_gradients_add_up_to_the_score_s_difference(module: nn.Module) -> None:
    x = batch()
    found = cam_maps(module, x, targets=Contrast(1, 4), method="integratedgradients")["input"].sum(dim=(1, 2))
    with torch.inference_mode():
        score = Contrast(1, 4)
        expected = score(module(x)) - score(module(torch.zeros_like(x)))
    torch.testing.assert_close(found, expected, atol=0.03 * float(expected.abs().max()) + 5e-3, rtol=0.05)


def test_occlusion_is_the_fall_of_the_score_under_each_window(module: nn.Module) -> None:
    x = batch(1)
    found = cam_maps(module, x, targets=1, method="occlusion")["input"][0]
    total, count = torch.zeros(64, 64), torch.zeros(64, 64)
    with torch.inference_mode():
        base = module(x)[0, 1]
        for top in range(0, 57, 4):
            for left in range(0, 57, 4):
                covered = x.clone()
                covered[:, :, top : top + 8, left : left + 8] = 0
                fall = base - module(covered)[0, 1]
                total[top : top + 8, left : left + 8] += fall
                count[top : top + 8, left : left + 8] += 1
    torch.testing.assert_close(found, total / count, atol=1e-5, rtol=1e-3)


def test_a_network_taken_apart_is_the_same_function_with_modules_called_once(module: nn.Module) -> None:
    copy = apart(module)
    x = batch()
    with torch.inference_mode():
        torch.testing.assert_close(copy(x), module(x))
    calls: dict[int, int] = {}
    for part in copy.modules():
        part.register_forward_hook(lambda part, *_: calls.update({id(part): calls.get(id(part), 0) + 1}))
        assert not getattr(part, "inplace", False)
    copy(x)
    assert set(calls.values()) == {1}
    kinds = {type(part).__name__ for part in copy.modules()}
    assert "Addition_Module" in kinds
    assert "Identity" not in kinds
    for weight in copy.parameters():
        weight.data.zero_()  # its own memory
    with torch.inference_mode():
        assert module(x).abs().sum() > 0


def test_what_cannot_be_followed_is_said_in_one_line() -> None:
    class Branches(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(ModelError, match=r"Branches cannot be followed operation by operation.*such as gradcam"):
        cam_maps(Branches().eval(), batch(), targets=0, method="lrp")

    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.layer4[2] = nn.SiLU()

    with pytest.raises(ModelError, match=r"captum cannot follow this network here \(.*\); use another method"):
        cam_maps(Odd().eval(), batch(), targets=0, method="lrp")


@pytest.mark.parametrize("smooth", [False, True])
def test_through_the_pipeline_a_pixel_map_lies_where_its_pixels_are(smooth: bool) -> None:
    models = pair()
    record = explain(photo(), models, method="saliency", smooth=smooth)
    assert record.layers == ("input",)
    for view in record.views:
        map_ = view.map("input")
        assert (map_.raw.shape, map_.start, map_.jump) == ((64, 64), (0, 0), (1, 1))
        laid, geometry = view.on_source("input"), view.geometry
        y0, x0, y1, x1 = geometry.seen
        rows = np.clip(np.arange(y0, y1) * geometry.scale[0] + geometry.offset[0], 0, 63)
        columns = np.clip(np.arange(x0, x1) * geometry.scale[1] + geometry.offset[1], 0, 63)
        expected = map_coordinates(map_.positive, np.meshgrid(rows, columns, indexing="ij"), order=1)
        np.testing.assert_allclose(laid[y0:y1, x0:x1], expected, atol=1e-4 * expected.max())
