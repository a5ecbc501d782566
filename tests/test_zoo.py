"""The table parametrises its own tests: a new row tests itself."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch
from torch import nn

from r2viz.models import count, zoo
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.pairs import PAIRS, pair
from r2viz.models.row import Row
from r2viz.receptive.trace import grids

ROWS = [pytest.param(name, row, id=name) for name, row in zoo.ZOO.items()]
ORACLES = [pytest.param(row, id=name) for name, row in zoo.ZOO.items() if row.oracle]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_build_and_counts(name: str, row: Row) -> None:
    with torch.device("meta"):  # how long it takes is `python -m benchmarks.zoo`'s to say: here others compute as well
        module = row.build()
    assert count.params(module) == row.params
    maps = _noted_maps(module)
    assert count.macs(module, row.size) == row.macs
    if "es2Ne" in row.title:
        blocks = [part for part in module.modules() if isinstance(part, Res2NetBlock)]
        assert len(blocks) >= 4
        assert all(block.scale == row.arguments["scale"] for block in blocks)
    known = grids(module)
    assert len(maps) >= 1
    for part, size in maps.items():
        grid = known[part]
        assert grid is not None, f"{part}: units have no place on the input"
        # As many units as the stride says, up to what unpadded stems cut off.
        assert all(0 <= row.size[axis] / grid.jump[axis] - size[axis] + 1 < 6 for axis in (0, 1)), part


def _noted_maps(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Filled by the next forward pass: the top-level parts that give a map of more than one unit, and its size."""
    found: dict[str, tuple[int, int]] = {}
    for name, part in module.named_children():
        part.register_forward_hook(
            lambda _part, _into, out, name=name: (
                found.__setitem__(name, tuple(out.shape[2:]))
                if isinstance(out, torch.Tensor) and out.ndim == 4 and out.shape[-1] > 1
                else None
            )
        )
    return found


@pytest.mark.parametrize("row", ORACLES)
def test_equals_the_same_network_elsewhere(row: Row) -> None:
    with torch.device("meta"):
        ours, theirs = row.build(), oracle.elsewhere(str(row.oracle))
    assert oracle.shapes(ours) == oracle.shapes(theirs)
    if type(ours).__module__.startswith("r2viz."):
        # Built from our blocks, not lent: for what is lent there is nothing to prove.
        assert type(ours) is not type(theirs)
        assert any(isinstance(part, (Bottleneck, Res2NetBlock)) for part in ours.modules())
    else:
        assert "es2Ne" not in row.title
    compared = oracle.same_outputs(ours, theirs)
    assert len(compared) >= 3
    assert "the logits" in compared


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in zoo.ZOO.items() if row.hub])
def test_public_weights_are_where_their_library_says(row: Row) -> None:
    import timm

    assert re.fullmatch(r"timm/[a-z0-9_]+\.[a-z0-9_]+", str(row.hub))
    config = timm.get_pretrained_cfg(str(row.hub).removeprefix("timm/"))
    assert config.hf_hub_id == row.hub
    assert row.preprocess.crop is not None
    if "larger pictures than" not in row.note:
        assert row.preprocess.crop == config.input_size[1:]
    assert row.preprocess.resize == int(row.preprocess.crop[1] / config.crop_pct)
    assert row.preprocess.interpolation == config.interpolation
    assert (row.preprocess.mean, row.preprocess.std) == (config.mean, config.std)
    assert row.measured_top1 is None or 70 < row.measured_top1 < 85


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_row_is_told(name: str, row: Row) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", name)
    assert row.title
    assert row.citation
    assert row.licence
    assert row.preprocess.crop is not None
    assert row.hub or row.embedded or row.note, "without weights there should be a sentence why"
    assert row.top1 == (row.published[0].top1 if row.published else None)


def test_names_are_unique_and_lead_to_their_row() -> None:
    known = [name for key, row in zoo.ZOO.items() for name in (key, *row.aliases)]
    assert len(known) == len(set(known)), "two networks share a name"
    titles = [row.title for row in zoo.ZOO.values()]
    assert len(titles) == len(set(titles)), "two networks share a title"
    for key, row in zoo.ZOO.items():
        for name in (key, *row.aliases):
            assert zoo.canonical(name) == key
            assert zoo.row(name) is row


def test_pairs_are_of_the_table() -> None:
    for name, known in PAIRS.items():
        assert pair(name) is known
        assert [zoo.canonical(model) for model in known.models] == list(known.models)
    assert pair("imagenet").models == ("resnet50", "res2net50_26w_4s")


@pytest.mark.shared
def test_published_is_what_the_paper_prints(shared: Path) -> None:
    with (shared / "facts" / "paper_tables.csv").open() as file:
        printed = {
            (line["table"], line["model"], line["metric"]): float(line["value"]) for line in csv.DictReader(file)
        }
    told = [claim for row in zoo.ZOO.values() for claim in row.published]
    assert len({(claim.table, claim.called) for claim in told}) == len(told)
    for claim in told:
        for metric, value in (("top1_error", claim.top1), ("top5_error", claim.top5)):
            if value is not None and (metric == "top1_error" or (claim.table, claim.called, metric) in printed):
                assert 100 - value == pytest.approx(printed[claim.table, claim.called, metric]), claim


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; from r2viz.models import zoo, pairs; zoo.row('res2net50d').title;"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "size"), [("densenet161", {}, 100), ("inception_v3", {"aux_logits": True}, 299)]
)
def test_what_torchvision_lends_equals_timms(name: str, options: dict[str, bool], size: int) -> None:
    """Their weights come from timm's repositories; the file of Inception's holds the auxiliary head."""
    with torch.device("meta"):
        ours, theirs = zoo.ZOO[name].build(), oracle.elsewhere(f"timm:{name}", **options)
    assert oracle.shapes(ours) == oracle.shapes(theirs)
    state = oracle.numbers(ours)
    batch = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(8))
    for module in (ours, theirs):
        module.load_state_dict(state, strict=True, assign=True)
        module.eval()
    with torch.inference_mode():
        one, other = ours(batch), theirs(batch)
    assert isinstance(one, torch.Tensor), "an auxiliary head answers in training only"
    other = other[0] if isinstance(other, tuple) else other
    scale = max(1.0, float(other.abs().max()))
    assert one.std() > 1e-3 * scale
    assert float((one - other).abs().max()) <= 1e-5 * scale


def test_fresh_networks_tell_pictures_apart() -> None:
    """An initialisation that fades out, or a zeroed branch, would leave an untrained network with nothing to show."""
    for name in ("inception_v3", "densenet161", "bl_res2net50_26w_4s", "se_res2net50_26w_4s"):
        torch.manual_seed(0)
        module = zoo.ZOO[name].build().eval()
        with torch.inference_mode():
            one, other = module(torch.randn(2, 3, 107, 107))
        assert one.isfinite().all()
        assert (one - other).abs().max() > 1e-3 * one.abs().max(), name
