"""Figures of coverage: by their artists, data and words, from hand-made surveys whose answers are known."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import tiny
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from r2viz.coverage import Row, coverage_curve, mask_region, stack
from r2viz.errors import OutputError, UnknownName
from r2viz.explain import explain
from r2viz.figures import (
    Case,
    StratumDifference,
    cases,
    coverage_by_size,
    coverage_curves,
    difference_by_stratum,
    grid,
    render,
    scale_response,
)
from r2viz.statistics import SIZES, Interval, mean_interval, seed_interval, strata_of
from r2viz.surveys import Look, Survey

SHARES = (0.03, 0.12, 0.4)


def rows(names: list[str], areas: np.ndarray, gain: np.ndarray, *, masks: bool) -> Any:
    """`gain` above chance; pixels of the object and of the rest spread over five levels."""
    levels = np.array([4, 6, 8, 10, 12])
    return stack(
        Row(
            name,
            {"energy_gain": float(value), "leakage": float(1 - area - value)},
            {"energy_gain": 0.0, "leakage": float(1 - area)},
            False,
            float(area),
            1.0,
            inside=(levels + n % 3).astype(np.uint32) if masks else None,
            outside=(2 * levels[::-1]).astype(np.uint32) if masks else None,
        )
        for n, (name, area, value) in enumerate(zip(names, areas, gain, strict=True))
    )


def survey(networks: int = 2, *, masks: bool = True, scenes: bool = False, random: bool = False) -> Survey:
    """Sixty pictures, or four objects on three backgrounds in three sizes; the second network gains 0.1 · area."""
    chance = np.random.default_rng(0)
    if scenes:
        items = [f"{who}.jpg on b{back}.jpg at 0.5,0.5" for who in "abcd" for back in range(3) for _ in SHARES]
        areas = np.tile(SHARES, 12) + chance.normal(0, 1e-4, 36)
        names = [f"{item} {share:.1%}" for item, share in zip(items, np.tile(SHARES, 12), strict=True)]
    else:
        names = items = [f"{n}.jpg" for n in range(60)]
        areas = np.geomspace(0.01, 0.95, 60)
    first = 0.2 + chance.normal(0, 0.05, len(names))
    weights = {"kind": "random" if random else "file", "source": "w.safetensors", "sha256": "0" * 64}
    looks = tuple(
        Look(
            f"net{n}", f"Net {n}", weights, None, {}, "gradcam", "Grad-CAM", "layer4",
            rows(names, areas, first + n * 0.1 * areas, masks=masks), np.full(len(names), 0.5),
        )
        for n in range(networks)
    )  # fmt: skip
    gaussian = rows(names, areas, np.full(len(names), 0.1), masks=masks)
    return Survey(
        "made up", "by hand", "mask" if masks else "box", "label", "rf", looks, gaussian, ("",) * len(names),
        tuple(items), (), {"r2viz": "0"}, "cpu",
    )  # fmt: skip


def lines(ax: Axes, label: str) -> list[Any]:
    return [line for line in ax.lines if line.get_label() == label]


def words(drawing: Figure) -> str:
    texts = [text.get_text() for text in drawing.texts]
    texts += [text.get_text() for ax in drawing.axes for text in ax.texts]
    texts += [text.get_text() for legend in drawing.legends for text in legend.get_texts()]
    return " ".join(texts)


def fits(drawing: Figure) -> None:
    """No letter is cut off by the figure's edge."""
    image = np.asarray(Image.open(io.BytesIO(render(drawing, "png"))).convert("L"))
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert edge.min() > 200


def test_means_of_strata_are_those_of_statistics() -> None:
    made = survey()
    drawing = coverage_by_size(made)
    assert [ax.texts for ax in drawing.axes]
    assert len(drawing.axes) == 2
    members = strata_of(made.area)
    for place in range(2):
        (line,) = lines(drawing.axes[0], f"means{place}")
        values = made.look(place).rows.values["energy_gain"]
        assert np.allclose(line.get_ydata(), [values[which].mean() for which in members.values()])
        middle = [np.exp(np.log(made.area[which]).mean()) for which in members.values()]
        assert np.allclose(np.log(line.get_xdata()), np.log(middle), atol=0.04)
        (points,) = lines(drawing.axes[0], f"pictures{place}")
        assert np.array_equal(points.get_ydata(), values)
    (gaussian,) = lines(drawing.axes[0], "gaussian")
    assert np.allclose(gaussian.get_ydata(), 0.1)
    (chance,) = lines(drawing.axes[1], "chance")
    assert np.allclose(chance.get_ydata(), [1 - made.area[which].mean() for which in members.values()])
    said = words(drawing)
    beyond = int((made.area > 0.8).sum())
    for part in ("made up: 60 pictures with masks", "Net 1, w.safetensors", f"{beyond} pictures in no stratum", "BCa"):
        assert part in said
    for name, which in members.items():
        assert f"{name}\nn = {int(which.sum())}" in said
    fits(drawing)


def test_intervals_are_drawn_as_they_are() -> None:
    made = survey(1)
    drawing = coverage_by_size(made, measures=["leakage"])
    (ax,) = drawing.axes
    bars = [segment for found in ax.collections for segment in found.get_segments()]
    assert len(bars) == len(SIZES)
    for (_, low, high), which in zip(
        sorted((bar[0][0], bar[0][1], bar[1][1]) for bar in bars), strata_of(made.area).values(), strict=True
    ):
        expected = mean_interval(made.look(0).rows.values["leakage"][which])
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert "lower is better" in words(drawing)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UnknownName, match="no measure 'energi'; did you mean 'energy_gain'"):
        coverage_by_size(survey(), measures=["energi"])
    with pytest.raises(UnknownName, match="has no net0 by nothing"):
        coverage_by_size(survey(), method="nothing")
    with pytest.raises(OutputError, match="needs composed scenes"):
        scale_response(survey())
    with pytest.raises(OutputError, match="curves need masks"):
        coverage_curves(survey(masks=False))
    with pytest.raises(OutputError, match="needs at least one row"):
        difference_by_stratum([], networks=("a", "b"))
    with pytest.raises(OutputError, match="cases need at least one"):
        cases({"largest gain": []}, measure="energy_gain")


def test_random_weights_are_said() -> None:
    assert "RANDOM WEIGHTS" in words(coverage_by_size(survey(random=True)))
    assert "RANDOM WEIGHTS" not in words(coverage_by_size(survey()))


def test_response_is_the_mean_over_objects_not_over_scenes() -> None:
    made = survey(scenes=True)
    drawing = scale_response(made, measures=["energy_gain"])
    (ax,) = drawing.axes
    who = np.array([item[0] for item in made.items])
    levels = np.tile(np.arange(3), 12)
    for place in range(2):
        values = made.look(place).rows.values["energy_gain"]
        table = np.array([[values[(who == one) & (levels == level)].mean() for level in range(3)] for one in "abcd"])
        thin = np.array([line.get_ydata() for line in lines(ax, f"object{place}")])
        assert np.allclose(thin, table)
        (thick,) = lines(ax, f"means{place}")
        assert np.allclose(thick.get_ydata(), table.mean(axis=0))
        bars = [
            s for found in ax.collections for s in found.get_segments() if np.isclose(s[0][0], thick.get_xdata()[2])
        ]
        expected = seed_interval(table[:, 2])
        assert (bars[0][0][1], bars[0][1][1]) == pytest.approx((expected.low, expected.high))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["3 %", "12 %", "40 %"]
    assert "4 objects" in words(drawing)
    fits(drawing)


def test_objects_may_be_named() -> None:
    made = survey(1, scenes=True)
    drawing = scale_response(made, measures=["leakage"], objects=["x"] * 18 + ["y"] * 18)
    assert len(lines(drawing.axes[0], "object0")) == 2


def test_curves_are_those_of_coverage() -> None:
    made = survey()
    drawing = coverage_curves(made, subset="objects above a quarter of the picture")
    curve = coverage_curve(made.look(1).rows)
    for ax, name in zip(drawing.axes, ("coverage", "spill", "iou"), strict=True):
        (line,) = lines(ax, "means1")
        assert np.array_equal(line.get_ydata(), getattr(curve, name))
        assert len(lines(ax, "gaussian")) == 1
    # By hand: at the lowest threshold all but the first level of the object lies above it.
    shares = [(4 * 0 + 36 + 4 * (n % 3)) / (40 + 5 * (n % 3)) for n in range(60)]
    assert lines(drawing.axes[0], "means0")[0].get_ydata()[0] == pytest.approx(np.mean(shares))
    band = next(found for found in drawing.axes[0].collections if found.get_label() == "band0")
    half = 1.96 * np.std(shares, ddof=1) / np.sqrt(60)
    at_zero = [y for x, y in band.get_paths()[0].vertices if x == 0]
    assert max(at_zero) - np.mean(shares) == pytest.approx(half)
    assert "Only objects above a quarter of the picture." in words(drawing)
    fits(drawing)


def test_forest_says_what_it_shows() -> None:
    found = [
        StratumDifference("Energy inside", "≤ 5 %", Interval(0.05, 0.03, 0.07, 66)),
        StratumDifference("Energy inside", "5-25 %", Interval(0.01, -0.01, 0.03, 198)),
        StratumDifference("Leakage", "≤ 5 %", Interval(-0.05, -0.07, -0.03, 66), higher_is_better=False),
        StratumDifference("Leakage", "5-25 %", Interval(0.02, float("nan"), float("nan"), 2), higher_is_better=False),
    ]
    drawing = difference_by_stratum(found, networks=("One", "Two"), note="made up", last="r2viz 0 · abc")
    assert len(drawing.axes) == 2
    first, second = drawing.axes
    assert first.get_xlim() == second.get_xlim() == pytest.approx((-7.56, 7.56))
    signs = {line.get_label(): line for line in first.lines if line.get_label() in SIZES}
    assert signs["≤ 5 %"].get_xdata()[0] == pytest.approx(5)
    assert signs["≤ 5 %"].get_markerfacecolor() != "white"
    assert signs["5-25 %"].get_markerfacecolor() == "white"
    # Less leakage favours the second network as much as more energy does.
    leakage = {line.get_label(): line for line in second.lines}["≤ 5 %"]
    assert leakage.get_markerfacecolor() == signs["≤ 5 %"].get_markerfacecolor()
    said = words(drawing)
    parts = ("+5.0  [+3.0, +7.0]", "n = 198", "+2.0  (no interval)", "Leakage ↓", "Two − One", "95 %", "made up", "abc")
    for part in parts:
        assert part in said
    (margin,) = [patch for patch in first.patches if patch.get_label() == "margin"]
    assert (margin.get_x(), margin.get_x() + margin.get_width()) == (-2, 2)
    fits(drawing)


@pytest.fixture(scope="module")
def record() -> Any:
    with tiny.one_thread():
        found = explain(tiny.photo(), tiny.pair())
    mask = np.zeros(found.picture.rgb.shape[:2], dtype=bool)
    mask[20:50, 25:60] = True
    return dataclasses.replace(found, region=mask_region(mask, mask.shape))


def test_cases_show_numbers_beneath_and_differences_above(record: Any) -> None:
    one, other = Case(record, (0.1, 0.35)), Case(record, (0.2, float("nan")))
    drawing = cases({"largest gain": [one, one], "at random": [other]}, measure="energy_gain", note="Of made up.")
    said = words(drawing)
    for part in (
        "largest gain",
        "at random",
        "+25.0 points",
        "+10.0 points",
        "+35.0 points",
        "not seen",
        "Of made up.",
    ):
        assert part in said
    assert said.count("largest gain") == 1
    panels = [ax for ax in drawing.axes if ax.images]
    assert len(panels) == 9
    assert all(ax.collections for ax in panels)  # the object's outline
    fits(drawing)


def test_cases_of_one_network(record: Any) -> None:
    alone = dataclasses.replace(record, views=record.views[:1], region=None)
    drawing = cases({"drawn at random": [Case(alone, (0.4,))]}, measure="energy")
    assert "40.0 %" in words(drawing)
    assert "points" not in words(drawing)
    assert not any(ax.collections for ax in drawing.axes if ax.images)


def test_grid_says_probabilities_and_what_is_added(record: Any) -> None:
    drawing = grid([record, record], headings=["small", "big"], labels=[["a"], ["b"]], numbers=[["x1", "x2"]] * 2)
    said = words(drawing)
    for part in ("small", "big", "x1", "x2", f"{100 * record.views[0].target.probability:.1f} %"):
        assert part in said


def test_equal_surveys_give_equal_bytes() -> None:
    assert render(coverage_curves(survey()), "png") == render(coverage_curves(survey()), "png")
