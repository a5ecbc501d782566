"""What all tests share: the development data beside the checkout, one thread for torch, and tiny networks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
NOT_RUN = "not run: needs ../shared"

# In CI the same examples every time, so that a red run means a change; new ones are looked for on developers' machines.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the checkout; a test that asks for it is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(NOT_RUN)
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=NOT_RUN))


def pytest_collection_finish() -> None:
    # One thread: on a busy machine two wait for each other at every operation (measured: 9.8 s instead of 0.6 s for
    # two forward passes). Here and not by an import: most test files do not need torch, and should not wait for it.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missed = sum(
        1
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and NOT_RUN in report.longrepr[2]
    )
    if missed:
        terminalreporter.write_line(
            f"{missed} test{'' if missed == 1 else 's'} marked 'shared' did NOT run: the data folder ../shared is "
            "missing beside this checkout",
            yellow=True,
        )


@pytest.fixture(scope="session")
def net() -> Callable[..., Any]:
    """`net("resnet" | "res2net", seed=0, depths=…, classes=7, **options)`: a tiny network with a used look.

    Every call builds a new module, in evaluation mode, from its own generator; statistics of the batch normalisations
    and their affine parts differ from 0 and 1, without which many a mistake would not show.
    """
    import torch

    from r2viz.models.blocks import Bottleneck, Res2NetBlock
    from r2viz.models.resnet import ResNet

    def build(kind: str = "res2net", *, seed: int = 0, depths: Any = (2, 2, 1, 1), classes: int = 7, **options: Any):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "res2net":
                options = {"base_width": 26, "scale": 4, **options}
            block = {"resnet": Bottleneck, "res2net": Res2NetBlock}[kind]
            module = ResNet(block, depths, widths=(8, 16, 32, 64), num_classes=classes, **options)
        return perturb(module, seed).eval()

    return build


def perturb(module: Any, seed: int = 0) -> Any:
    """Moves every floating-point entry of the state dict a little, in place; variances stay positive."""
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            scale = 0.4 if tensor.ndim < 2 else 0.1 * float(tensor.std())
            tensor.add_(torch.rand(tensor.shape, generator=generator).to(tensor) - 0.3, alpha=scale)
    return module
