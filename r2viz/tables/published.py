"""What the tables of the Res2Net paper print, and where the print is at odds with itself. Imports no torch.

Source: Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", IEEE TPAMI 2021, arXiv 1904.01169.
`paper_tables.csv` holds the numbers with the digits that are printed there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from r2viz.errors import UnknownName, nearest

SOURCE = "Gao et al. 2021, arXiv 1904.01169"
TITLES = {
    "T1": "ImageNet-1k, top-1 and top-5 error of the 50-layer networks",
    "T2": "ImageNet-1k, deeper networks",
    "T3": "ImageNet-1k, width against scale at equal and growing cost",
    "T4": "CIFAR-100",
    "T5": "Object detection: Faster R-CNN",
    "T6": "Object detection by object size: Faster R-CNN on COCO",
    "T7": "Semantic segmentation: DeepLabv3+ on VOC12",
    "T8": "Instance segmentation: Mask R-CNN on COCO",
    "T9": "Salient object detection: DSS",
    "T10": "Keypoints on COCO",
}
COMPARED = ("T1", "T2", "T3", "T4")
"""The classification tables, whose networks are counted and measured here. The others are only listed."""


@dataclass(frozen=True)
class Printed:
    """One number of a table, as text with its digits."""

    table: str
    task: str
    dataset: str
    model: str
    metric: str
    value: str
    unit: str
    source: str

    @property
    def number(self) -> Decimal:
        """The value, without the rounding of binary fractions: 100 − 22.01 is 77.99."""
        return Decimal(self.value)


@dataclass(frozen=True)
class Remark:
    """What a reader should know of some printed numbers: of these models and metrics; empty means all."""

    table: str
    text: str
    models: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


_OLD_DOCUMENTATION = (
    "Equals torchvision's old documentation digit for digit. The paper says that all networks were trained alike; "
    "by its authors this baseline is torchvision's, and Res2Net was trained with label smoothing, worth about 0.2."
)
REMARKS = (
    Remark("T1", _OLD_DOCUMENTATION, ("ResNet-50", "InceptionV3")),
    Remark("T2", _OLD_DOCUMENTATION, ("DenseNet-161", "ResNet-101")),
    Remark("T3", _OLD_DOCUMENTATION, ("ResNet-50 (64w)",), ("top1_error",)),
    Remark("T1", "The paper's text gives this pair a gain of 1.27; its table gives 1.79.", ("Res2Net-DLA-60",)),
    Remark("T3", "The paper does not say on what hardware, at which batch size.", (), ("runtime",)),
    Remark("T3", "FLOPs in the paper are multiply-adds.", (), ("flops",)),
    Remark(
        "T10",
        "The paper's text gives gains of 3.3 and 3.0 AP; its table gives 1.1 and 0.8.",
        ("Res2Net-50", "Res2Net-101"),
        ("AP",),
    ),
)

PAIRS = (
    ("ResNet-50", "Res2Net-50"),
    ("InceptionV3", "Res2Net-50-299"),
    ("ResNeXt-50", "Res2NeXt-50"),
    ("DLA-60", "Res2Net-DLA-60"),
    ("DLA-X-60", "Res2NeXt-DLA-60"),
    ("SENet-50", "SE-Res2Net-50"),
    ("bLResNet-50", "bLRes2Net-50"),
    ("ResNet-101", "Res2Net-101"),
    ("ResNeXt-29, 8c x 64w", "Res2NeXt-29, 8c x 25w x 4s"),
    ("ResNeXt-29, 8c x 64w - SE", "Res2NeXt-29, 8c x 25w x 4s - SE"),
)
"""(baseline, the same with Res2Net blocks) of the paper's classification tables."""


@cache
def printed() -> tuple[Printed, ...]:
    """Every number of the tables, in the paper's order."""
    with Path(__file__).with_name("paper_tables.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Printed(**row) for row in csv.DictReader(file))


def networks(table: str) -> dict[str, tuple[Printed, ...]]:
    """The numbers of one table by network, in the paper's order."""
    found: dict[str, list[Printed]] = {}
    for one in printed():
        if one.table == table:
            found.setdefault(one.model, []).append(one)
    return {model: tuple(numbers) for model, numbers in found.items()}


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Tables by name, however written (`T3`, `t3`, `3`), in the paper's order; none means those that are compared.

    Raises:
        UnknownName: the paper has no such table.
    """
    wanted = []
    for name in names:
        table = name.strip().upper()
        table = table if table.startswith("T") else f"T{table}"
        if table not in TITLES:
            raise UnknownName(
                f"no table {name!r}{nearest(name, TITLES)}; there are {', '.join(TITLES)}", code="unknown_name.table"
            )
        wanted.append(table)
    return tuple(table for table in TITLES if table in wanted) or COMPARED


def remarks(table: str, model: str, metric: str) -> tuple[str, ...]:
    """What to know of one number."""
    return tuple(
        one.text
        for one in REMARKS
        if one.table == table and model in (one.models or (model,)) and metric in (one.metrics or (metric,))
    )
