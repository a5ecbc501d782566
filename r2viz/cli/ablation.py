"""`r2viz splits --ablate`: what a network loses without each of its splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r2viz.cli.erf import aligned

if TYPE_CHECKING:
    import pandas as pd

    from r2viz.causal_records import CausalRecord
    from r2viz.image import Picture
    from r2viz.models.model import Model
    from r2viz.split_records import SplitRecord


def ablated(
    pictures: Sequence[Picture], models: Sequence[Model], record: SplitRecord, *, layers: Sequence[str], seed: int,
) -> list[CausalRecord]:  # fmt: skip
    """All interventions on the splits that the record is about, a ResNet's channels cut as finely as there."""
    from r2viz.cli.progress import counted
    from r2viz.partition.causal import ablate
    from r2viz.partition.places import blocks
    from r2viz.taps import unwrapped

    found = []
    for model, network in counted(zip(models, record.networks, strict=True), len(models), "network", least=2):
        groups = 1 + max(split.split for split in network.splits)
        places = blocks(
            unwrapped(model.module), name=model.name, layers=list(layers) or None, groups=groups, permuted=False
        )
        inputs = [model.preprocess(picture.rgb)[0] for picture in pictures]
        found.append(ablate(model.module, inputs, places=places, seed=seed, name=model.name))
    return found


def frame(records: Sequence[CausalRecord]) -> pd.DataFrame:
    """Effects on each split and averaged over those of a stage, in long form."""
    import pandas as pd

    return pd.concat([record.frame(("split", "stage")) for record in records], ignore_index=True)


def lines(records: Sequence[CausalRecord], titles: Sequence[str]) -> list[str]:
    """The change of the logit of each picture's own top-1, averaged over a stage's splits of one kind."""
    rows = [["network", "stage", "splits", "intervention", "change of logit"]]
    for record, title in zip(records, titles, strict=True):
        for row in record.rows("stage"):
            if row.effect == "logit":
                found = row.interval
                interval = f" [{found.low:.3g}, {found.high:.3g}]" if found.low < found.high else ""
                rows.append([title, row.stage, row.kind, row.intervention, f"{found.mean:.3g}{interval}"])
    return ["", f"interventions over {records[0].pictures} pictures; 95 % intervals over them", *aligned(rows)]
