"""Figures of splits by their artists, data and words; and the record on disk, read back as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tiny import one_thread, photo

import r2viz
from r2viz import store
from r2viz.causal_records import CausalRecord, Effect
from r2viz.errors import BadRecord, OutputError, UnknownName
from r2viz.figures import (
    causal_figure,
    cka_figure,
    feature_maps,
    render,
    spectrum_figure,
    split_heatmap,
    split_ridgelines,
    splits_provenance,
)
from r2viz.geometry import Geometry
from r2viz.split_records import CASCADE, FIRST, PERMUTED, Histogram, SplitRecord


@pytest.fixture(scope="module")
def record() -> Iterator[SplitRecord]:
    """The mini pair's last two stages over five pictures."""
    with one_thread():
        pictures = [photo(64, 64, seed) for seed in range(5)]
        yield r2viz.splits(pictures, pair="mini", layers=["layer3", "layer4"])


def words(drawing: Figure) -> str:
    texts = [text.get_text() for text in drawing.texts]
    texts += [text.get_text() for ax in drawing.axes for text in ax.texts]
    return " ".join(" ".join(texts).split())


def matrices(drawing: Figure) -> list[Axes]:
    return [ax for ax in drawing.axes if ax.images]


def labels(ax: Axes) -> tuple[list[str], list[str]]:
    return ([text.get_text() for text in ax.get_yticklabels()], [text.get_text() for text in ax.get_xticklabels()])


# --- Cells -----------------------------------------------------------------------------------------------------------


def test_a_heat_map_has_every_value_at_its_block_and_split_on_one_scale(record: SplitRecord) -> None:
    drawing = split_heatmap(record, "centroid")
    control, splits = matrices(drawing)
    assert labels(splits) == (["layer3.0", "layer3.1", "layer4.0", "layer4.1"], ["0", "1", "2", "3"])
    assert labels(control)[1] == [f"{kind}{number}" for kind in "gp" for number in range(4)]
    for ax, model in ((control, "resnet26_mini"), (splits, "res2net26_mini")):
        rows, columns = labels(ax)
        shown = np.asarray(ax.images[0].get_array())
        for row in record.select("centroid", model=model):
            prefix = {"g": "g", "p": "p"}.get(row.split.tap.rpartition(".")[2][0], "")
            at = rows.index(row.split.path), columns.index(f"{prefix}{row.split.split}")
            assert shown[at] == row.interval.mean
    norms = {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in (control, splits)}
    assert len(norms) == 1
    hatched = {patch.get_xy() for patch in splits.patches if patch.get_label() == "first of stage"}
    assert hatched == {(x - 0.5, y - 0.5) for x in range(4) for y in (0, 2)}
    assert not control.patches


def test_a_heat_map_s_caption_says_what_it_is_made_of(record: SplitRecord) -> None:
    said = words(split_heatmap(record, "centroid"))
    for needed in ("5 pictures", "code order", "passed through", "Control: a ResNet has no splits", "in a random order",
                   "cycles per input pixel", "Hatched: first block", "95 % intervals over pictures reach ±",
                   "Res2Net-26 mini: weights r2viz mini v1", record.digest[:16]):  # fmt: skip
        assert needed in said
    assert "RANDOM" not in said
    assert "random order" not in words(split_heatmap(record, "centroid", permuted=False))
    with pytest.raises(UnknownName, match="no statistic 'centriod'; did you mean 'centroid'"):
        split_heatmap(record, "centriod")
    assert json.loads(splits_provenance(record))["digest"] == record.digest


def test_values_that_are_not_known_are_dashes_and_equal_ones_have_a_scale(record: SplitRecord) -> None:
    rows = tuple(
        dataclasses.replace(row, interval=dataclasses.replace(row.interval, mean=np.nan, low=np.nan, high=np.nan))
        for row in record.select("dead")
    )
    empty = split_heatmap(dataclasses.replace(record, rows=rows), "dead")
    assert "–" in words(empty)
    assert "Too few pictures for intervals" in words(empty)
    assert not np.asarray(matrices(empty)[0].images[0].get_array().compressed()).size
    zero = tuple(dataclasses.replace(row, interval=type(row.interval)(0.0, 0.0, 0.0, 5)) for row in rows)
    norm = matrices(split_heatmap(dataclasses.replace(record, rows=zero), "dead"))[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, 1)


def test_likeness_within_and_between_networks(record: SplitRecord) -> None:
    drawing = cka_figure(record)
    panels = matrices(drawing)
    assert len(panels) == 6  # two stages' last blocks; each network, then both
    own = next(one for one in record.likenesses if one.rows[0].tap == "layer3.1.split0" and not one.between)
    np.testing.assert_array_equal(np.asarray(panels[2].images[0].get_array()), own.values)
    both = next(one for one in record.likenesses if one.rows[0].path == "layer4.1" and one.between)
    kept = [number for number, split in enumerate(both.rows) if split.kind != PERMUTED]
    np.testing.assert_array_equal(np.asarray(panels[5].images[0].get_array()), both.values[kept])
    assert labels(panels[5]) == (["g0", "g1", "g2", "g3"], ["0", "1", "2", "3"])
    assert "Few pictures: intervals reach" in words(drawing)
    assert len(matrices(cka_figure(record, blocks=["layer4.0"]))) == 3
    with pytest.raises(UnknownName, match=r"no block 'layer4\.7' was measured in resnet26_mini; did you mean 'layer4"):
        cka_figure(record, blocks=["layer4.7"])
    with pytest.raises(OutputError, match="measure with the statistic 'cka'"):
        cka_figure(dataclasses.replace(record, likenesses=()))
    unknown = tuple(dataclasses.replace(one, values=one.values * np.nan) for one in record.likenesses)
    with pytest.raises(OutputError, match="not known from one picture; give more, four at least"):
        cka_figure(dataclasses.replace(record, likenesses=unknown, pictures=1))


# --- Curves ----------------------------------------------------------------------------------------------------------


def test_spectra_are_the_record_s_beside_the_fields_of_theory(record: SplitRecord) -> None:
    drawing = spectrum_figure(record, blocks=["layer4.1"])
    _, _, ax, fields = drawing.axes
    lines = {line.get_label(): line for line in ax.lines}
    for one in record.spectra:
        if (one.split.model, one.split.path) == ("res2net26_mini", "layer4.1"):
            at = one.shuffled > 0
            np.testing.assert_array_equal(lines[str(one.split.split)].get_ydata(), one.power[at])
            np.testing.assert_array_equal(lines[str(one.split.split)].get_xdata(), one.frequency[at])
            bar = fields.patches[one.split.split]
            assert bar.get_width() == one.split.field
    assert len({lines[str(number)].get_color() for number in range(4)}) == 4
    assert drawing.axes[0].get_ylim() == ax.get_ylim()
    assert {text.get_text() for text in fields.texts} == {"191", "207", "223", "175"}
    with pytest.raises(OutputError, match="measure with the statistic 'spectra'"):
        spectrum_figure(dataclasses.replace(record, spectra=()))


def test_ridges_hold_the_share_of_positive_values_and_zeros_are_written(record: SplitRecord) -> None:
    drawing = split_ridgelines(record, blocks=["layer3.1"])
    ax = drawing.axes[1]
    histogram = next(
        one for one in record.histograms if (one.split.model, one.split.tap) == ("res2net26_mini", "layer3.1.split2")
    )
    line = next(line for line in ax.lines if line.get_label() == "2")
    heights = np.asarray(line.get_ydata()) - 1  # the third of four stands on 1
    inside = (histogram.edges[:-1] > 0) & (histogram.counts > 0)
    assert len(heights) >= inside.sum()
    peak = int(np.argmax(heights))
    x = float(line.get_xdata()[peak])
    place = int(np.argmax(np.where(histogram.edges[:-1] > 0, histogram.counts, 0)
                          / np.log2(np.maximum(histogram.edges[1:], 1e-9) / np.maximum(histogram.edges[:-1], 1e-10))
                          .clip(1e-9)))  # fmt: skip
    assert histogram.edges[place] <= x <= histogram.edges[place + 1]
    assert f"{histogram.zeros / histogram.total:.0%} zero" in words(drawing)
    assert drawing.axes[0].get_xlim() == ax.get_xlim()


def test_a_dead_split_says_so(record: SplitRecord) -> None:
    dead = tuple(
        Histogram(one.split, one.edges, np.zeros_like(one.counts), one.total) if one.split.split == 1 else one
        for one in record.histograms
    )
    said = words(split_ridgelines(dataclasses.replace(record, histograms=dead), blocks=["layer4.1"]))
    assert said.count("dead: no positive value") == 2
    assert "100% zero" in said
    none = tuple(dataclasses.replace(one, power=one.power * np.nan, shuffled=one.shuffled * np.nan)
                 for one in record.spectra)  # fmt: skip
    assert "nothing varies: no spectrum" in words(spectrum_figure(dataclasses.replace(record, spectra=none)))


def test_first_blocks_and_random_weights_are_said(record: SplitRecord) -> None:
    first = spectrum_figure(record, blocks=["layer4.0"])
    assert "Res2Net-26 mini, first of stage" in words(first)
    assert any(one.split.kind == FIRST for one in record.spectra)
    weights = {**record.networks[1].weights, "kind": "random", "source": "random weights, seed 0"}
    random = dataclasses.replace(record.networks[1], weights=weights)
    made = dataclasses.replace(record, networks=(record.networks[0], random))
    assert "RANDOM WEIGHTS in Res2Net-26 mini" in words(split_ridgelines(made))


def test_equal_records_give_equal_bytes(record: SplitRecord) -> None:
    drawn = [render(cka_figure(record, blocks=["layer4.1"]), "svg") for _ in range(2)]
    assert drawn[0] == drawn[1]


# --- Interventions ---------------------------------------------------------------------------------------------------


def test_effects_stand_at_their_splits_with_intervals(record: SplitRecord) -> None:
    random = np.random.default_rng(0)
    target = np.zeros(6, dtype=np.int64)
    made = []
    for network in record.networks:
        effects = tuple(
            Effect(split, name, random.normal(size=6), random.normal(size=6) / 10)
            for split in network.splits
            for name in ("zero", "cut")
            if split.stage == "layer4" and (name == "zero" or (split.kind == CASCADE and split.split))
        )
        made.append(CausalRecord(effects, target, np.ones(6), np.full(6, 0.5)))
    drawing = causal_figure(made, networks=record.networks)
    zero, cut = drawing.axes
    rows = {row.tap: row for one in made for row in one.rows() if (row.effect, row.intervention) == ("logit", "zero")}
    marks = {line.get_label(): line for line in zero.lines if line.get_label() in rows}
    assert set(marks) == {tap for tap in rows if tap and "permuted" not in tap}
    for tap, line in marks.items():
        assert line.get_ydata()[0] == rows[tap].interval.mean
        assert abs(line.get_xdata()[0] - rows[tap].split) < 0.5
        assert (line.get_markerfacecolor() == "white") == (".0." in tap)
    bars = {tuple(path.vertices[:, 1]) for bars in zero.collections for path in bars.get_paths()}
    assert bars == {(rows[tap].interval.low, rows[tap].interval.high) for tap in marks}
    assert {line.get_label() for line in cut.lines if str(line.get_label()).startswith("layer")} == {
        "layer4.1.split1", "layer4.1.split2",
    }  # fmt: skip
    said = words(drawing)
    for needed in (
        "means over 6 pictures",
        "95 % intervals",
        "cut: the previous split's output is not added",
        "hollow",
    ):
        assert needed in said
    with pytest.raises(UnknownName, match="no effect 'logits'; did you mean 'logit'"):
        causal_figure(made, effect="logits")
    with pytest.raises(UnknownName, match="no intervention 'mean'"):
        causal_figure(made, interventions=["mean"])
    with pytest.raises(OutputError, match="no effect of any intervention"):
        causal_figure([])


def test_feature_maps_box_the_strongest_unit_of_the_most_active_channels() -> None:
    rgb = np.full((64, 64, 3), 90, dtype=np.uint8)
    maps = np.zeros((5, 8, 8), dtype=np.float32)
    maps[1, 2, 3], maps[4, 6, 1] = 1.0, 3.0
    drawing = feature_maps(
        rgb, maps, title="Net, layer1.1.split1", geometry=Geometry((64, 64), (64, 64), (1.0, 1.0), (0.0, 0.0)),
        start=(0.0, 0.0), jump=(8.0, 8.0), reach=15,
    )  # fmt: skip
    assert [ax.texts[0].get_text() for ax in drawing.axes] == ["max 3", "max 1"]
    first, second = drawing.axes
    assert (first.patches[0].get_xy(), first.patches[0].get_width()) == ((8.5 - 7.5, 48.5 - 7.5), 15)
    assert [tuple(ax.lines[0].get_xydata()[0]) for ax in (first, second)] == [(8.5, 48.5), (24.5, 16.5)]
    assert np.asarray(first.images[1].get_array()).max() == 1
    assert "the 2 of 5 channels" in words(drawing)
    with pytest.raises(OutputError, match="no channel is active"):
        feature_maps(
            rgb, maps * 0, title="Net", geometry=Geometry((64, 64), (64, 64), (1.0, 1.0), (0.0, 0.0)),
            start=(0.0, 0.0), jump=(8.0, 8.0), reach=None,
        )  # fmt: skip


# --- On disk ---------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back_as_it_was(record: SplitRecord, tmp_path: Path) -> None:
    path = store.save(record, tmp_path / "a.json")
    found = store.open_any(path)
    assert isinstance(found, SplitRecord)
    assert store.dumps(found) == store.dumps(record)
    assert store.npz(found) == store.npz(record)
    assert found.digest == record.digest
    assert found.as_dict() == record.as_dict()
    assert store.splits_csv(found) == store.splits_csv(record)
    assert store.splits_parquet(found) == store.splits_parquet(record)


def test_one_network_with_two_weights_keeps_its_rows_apart(record: SplitRecord, tmp_path: Path) -> None:
    twin = dataclasses.replace(record.networks[1], splits=tuple(map(dataclasses.replace, record.networks[1].splits)))
    rows = tuple(
        dataclasses.replace(record.rows[0], split=split) for net in (record.networks[1], twin) for split in net.splits
    )
    both = SplitRecord((record.networks[1], twin), rows, 5)
    found = store.open_any(store.save(both, tmp_path / "a.json"))
    assert isinstance(found, SplitRecord)
    half = len(rows) // 2
    assert all(row.split is split for row, split in zip(found.rows[half:], found.networks[1].splits, strict=True))


def test_damaged_files_are_refused_in_a_line(record: SplitRecord, tmp_path: Path) -> None:
    path = store.save(record, tmp_path / "a.json")
    document = json.loads(path.read_text())
    document["rows"][0]["place"] = [0, -1]
    path.write_text(json.dumps(document))
    with pytest.raises(BadRecord, match="damaged"):
        store.open_any(path)
    document["rows"][0]["place"] = [0, 0]
    document["likenesses"][0]["rows"] = document["likenesses"][0]["rows"][:2]
    path.write_text(json.dumps(document))
    with pytest.raises(BadRecord, match="came for 2 and 8 splits"):
        store.open_any(path)
