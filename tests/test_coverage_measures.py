"""Every measure: by hand, by slow formulas written here, and by what theory says of plain maps."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from r2viz.coverage import (
    MEASURES,
    Held,
    Region,
    Row,
    Rows,
    baseline,
    best_threshold,
    box_region,
    centre_gaussian,
    coverage_curve,
    data_set_value,
    mask_region,
    measure,
    measures_for,
    merge,
    part_cells,
    stack,
)
from r2viz.errors import BadRegion, UnknownName

SIZE = (40, 60)
SINGLE = [name for name, row in MEASURES.items() if row.of == "picture"]


def _disc(size: tuple[int, int] = SIZE, at: tuple[float, float] = (18, 33), radius: float = 11) -> Region:
    rows, columns = np.indices(size)
    return mask_region((rows - at[0]) ** 2 + (columns - at[1]) ** 2 <= radius**2, size)


def _values(map_: np.ndarray, region: Region) -> dict[str, float]:
    return dict(measure(map_, region, measures=[name for name in SINGLE if name in measures_for(region)]).values)


# --- By hand ---------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    map_ = np.array([[4, 3, 0, 0], [2, 1, 0, 0], [0, 0, 0, 10]], dtype=np.float32)
    mask = np.zeros((3, 4), dtype=bool)
    mask[:2, :2] = True
    found = _values(map_, mask_region(mask, (3, 4)))
    assert found["pointing"] == 0
    assert found["energy"] == pytest.approx(10 / 20)
    assert found["leakage"] == pytest.approx(10 / 20)
    assert found["energy_gain"] == pytest.approx(10 / 20 - 4 / 12)
    assert found["area_coverage"] == pytest.approx(3 / 4)  # 10, 4, 3, 2 are the four strongest
    assert found["area_coverage_gain"] == pytest.approx(3 / 4 - 4 / 12)
    assert found["coverage_at_precision"] == pytest.approx(1)  # above 0: four of five are object, precision 0.8
    entropy = -sum(share * math.log(share) for share in (0.4, 0.3, 0.2, 0.1))
    assert found["evenness"] == pytest.approx(math.exp(entropy) / 4)
    # Four pixels make four parts; that of value 1 is left out.
    assert found["least_part"] == 0
    assert found["parts_covered"] == pytest.approx(3 / 4)


def test_ties_count_what_they_would_on_average() -> None:
    map_ = np.zeros((2, 5), dtype=np.float32)
    map_[0, 0] = 1
    mask = np.zeros((2, 5), dtype=bool)
    mask[0, :4] = True
    # One pixel is surely right; the three others are drawn from nine at zero, of which three are the object's.
    assert _values(map_, mask_region(mask, (2, 5)))["area_coverage"] == pytest.approx((1 + 3 * 3 / 9) / 4)
    corners = np.zeros((100, 100), dtype=np.float32)
    corners[0, 0] = corners[0, 99] = corners[99, 0] = 1
    assert _values(corners, box_region((0, 0, 10, 10), (100, 100)))["pointing"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("side", "tolerance"), [(500, 15), (100, 3), (64, 1.92), (20, 1)])
def test_pointing_tolerance_goes_with_the_picture(side: int, tolerance: float) -> None:
    region = box_region((0, 0, 5, side), (side, side))
    for column in range(5, 5 + int(tolerance) + 3):
        map_ = np.zeros((side, side), dtype=np.float32)
        map_[2, column] = 1
        assert measure(map_, region, measures=["pointing"]).values["pointing"] == float(column - 4 < tolerance)


# --- Slow formulas ---------------------------------------------------------------------------------------------------


def _slow(map_: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    pixels = sorted(((float(map_[at]), bool(mask[at])) for at in np.ndindex(map_.shape)), reverse=True)
    total, size = sum(value for value, _ in pixels), sum(inside for _, inside in pixels)
    within = [value for value, inside in pixels if inside and value > 0]
    shares = [value / sum(within) for value in within]
    best = 0.0
    for threshold in {value for value, _ in pixels if value > 0}:
        above = [inside for value, inside in pixels if value >= threshold]
        if sum(above) / len(above) >= 0.8:
            best = max(best, sum(above) / size)
    rows, columns = np.unravel_index(map_.argmax(), map_.shape)
    near = any(
        (row - rows) ** 2 + (column - columns) ** 2 < (0.03 * max(map_.shape)) ** 2 for row, column in np.argwhere(mask)
    )
    covered = sum(inside for _, inside in pixels[:size]) / size
    return {
        "pointing": float(near),
        "energy": sum(value for value, inside in pixels if inside) / total,
        "area_coverage": covered,
        "area_coverage_gain": covered - size / len(pixels),
        "coverage_at_precision": best,
        "evenness": math.exp(-sum(share * math.log(share) for share in shares)) / size,
    }


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_slow_formulas(seed: int) -> None:
    chance = np.random.default_rng(seed)
    region = _disc(radius=chance.uniform(3, 18))
    map_ = (chance.random(SIZE) + 2 * region.mask * chance.random(SIZE)).astype(np.float64)
    found = _values(map_, region)
    for name, expected in _slow(map_, region.mask).items():
        assert found[name] == pytest.approx(expected), name


# --- What theory says of plain maps ----------------------------------------------------------------------------------


def test_perfect_and_inverted_maps() -> None:
    region = _disc()
    area = region.mask.mean()
    perfect, inverted = _values(region.mask.astype(float), region), _values((~region.mask).astype(float), region)
    for name in ("pointing", "energy", "area_coverage", "coverage_at_precision", "evenness", "least_part"):
        assert perfect[name] == pytest.approx(1), name
    assert perfect["parts_covered"] == 1
    assert perfect["leakage"] == pytest.approx(0)
    assert perfect["energy_gain"] == pytest.approx(1 - area)
    for name in ("energy", "area_coverage", "coverage_at_precision", "evenness", "least_part", "parts_covered"):
        assert inverted[name] == 0, name


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_maps_count_and_get_what_chance_gives(value: float) -> None:
    region = _disc()
    row = measure(np.full(SIZE, value), region)
    assert row.constant
    assert row.values["pointing"] == 0
    for name in ("energy", "leakage", "energy_gain", "area_coverage", "area_coverage_gain", "least_part"):
        assert row.values[name] == pytest.approx(row.chance[name]), name
    assert row.values["evenness"] == pytest.approx(float(value > 0))
    assert row.box_iou is not None
    assert not row.box_iou.any()
    rows = stack([row])
    assert data_set_value("pointing", rows) == 0
    assert data_set_value("maxboxaccv2", rows) == 0


def test_random_maps_get_chance_on_average() -> None:
    region, chance = _disc(), np.random.default_rng(0)
    rows = stack(
        measure(chance.random(SIZE), region, measures=["pointing", "energy", "area_coverage"]) for _ in range(300)
    )
    for name in rows.values:
        error = rows.values[name].std() / np.sqrt(len(rows))
        assert rows.values[name].mean() == pytest.approx(rows.chance[name].mean(), abs=4 * error), name


def test_centre_gaussian_is_the_baseline() -> None:
    map_ = centre_gaussian((41, 61))
    assert np.unravel_index(map_.argmax(), map_.shape) == (20, 30)
    np.testing.assert_allclose(map_, map_[::-1, ::-1])
    middle, corner = _disc((41, 61), (20, 30), 8), _disc((41, 61), (5, 5), 4)
    assert baseline(middle).values["energy_gain"] > 0.05
    assert baseline(corner).values["energy_gain"] < 0
    assert baseline(middle).values == measure(map_, middle).values


def test_whole_against_part_maps() -> None:
    """Evenness and part completeness put a map of the whole object above one of its head, at equal mass inside."""
    rows, columns = np.indices((64, 64))
    mask = ((rows - 32) / 12) ** 2 + ((columns - 32) / 26) ** 2 <= 1
    region = mask_region(mask, (64, 64))
    spread = [
        np.exp(-(((rows - 32) / high) ** 2) - ((columns - at) / wide) ** 2)
        for high, at, wide in ((14, 32, 30), (8, 14, 8))
    ]
    whole, part = (_values(map_, region) for map_ in spread)
    for name in ("evenness", "least_part", "parts_covered", "area_coverage"):
        assert whole[name] > part[name] + 0.15, name
    halves = [mask & (columns < 32), mask]
    half, full = (_values(map_.astype(float), region) for map_ in halves)
    assert full["evenness"] == pytest.approx(1)
    assert half["evenness"] == pytest.approx(0.5, abs=0.03)
    assert half["least_part"] < 0.5 < full["least_part"]


@pytest.mark.parametrize("name", ["area_coverage", "coverage_at_precision", "least_part", "pointing"])
def test_measures_of_order_ignore_rescaling(name: str) -> None:
    map_ = np.random.default_rng(0).random(SIZE)
    assert _values(map_, _disc())[name] == _values(np.exp(3 * map_), _disc())[name]


def test_cells_are_five_and_near() -> None:
    mask = np.zeros((80, 20), dtype=bool)
    mask[:, 5:15] = True
    cells = part_cells(mask)
    assert sorted(np.bincount(cells)) == pytest.approx([160] * 5, abs=40)
    np.testing.assert_array_equal(cells, part_cells(mask))
    assert np.ptp(np.argwhere(mask)[cells == cells[0]][:, 0]) < 25
    assert set(part_cells(np.eye(3, dtype=bool)).tolist()) == {0, 1, 2}
    assert len(set(part_cells(np.ones((300, 300), dtype=bool)).tolist())) == 5


# --- Crops, boxes, refusals ------------------------------------------------------------------------------------------


def test_only_what_was_seen_counts() -> None:
    """A crop gives what the cropped map over the cropped region gives, and says how much of the object it lost."""
    region, map_ = _disc(), np.random.default_rng(0).random(SIZE)
    seen = np.full(SIZE, np.nan)
    seen[:, 10:35] = map_[:, 10:35]
    row = measure(seen, region)
    part = Held(map_[:, 10:35], Region(region.mask[:, 10:35]))
    for name in ("energy", "area_coverage", "coverage_at_precision", "evenness", "least_part"):
        assert row.values[name] == pytest.approx(MEASURES[name].function(part)), name
    assert row.seen == pytest.approx(region.mask[:, 10:35].sum() / region.mask.sum())
    unseen = measure(np.where(region.mask, np.nan, 1.0), region)
    assert unseen.seen == 0
    assert np.isnan(unseen.values["area_coverage"])


def test_a_box_allows_what_it_can_and_refuses_the_rest() -> None:
    region = box_region((5, 5, 30, 25), SIZE)
    map_ = np.random.default_rng(0).random(SIZE)
    assert set(measure(map_, region).values) == {"pointing", "energy", "leakage", "energy_gain"}
    assert measure(map_, region).inside is None
    for name, row in MEASURES.items():
        if row.needs == "box":
            measure(map_, region, measures=[name])
            continue
        with pytest.raises(BadRegion) as caught:
            measure(map_, region, measures=[name])
        assert f"{name} needs a mask, and the object is the box 5,5,30,25; a box allows pointing, energy" in str(
            caught.value
        )
    assert measures_for("mask") == list(MEASURES)


def test_refusals() -> None:
    with pytest.raises(UnknownName, match="no measure 'evennes'; did you mean 'evenness'"):
        measure(np.ones(SIZE), _disc(), measures=["evennes"])
    with pytest.raises(BadRegion, match="the map is 10 x 10, but the region's picture is 60 x 40; lay the map over it"):
        measure(np.ones((10, 10)), _disc())
    with pytest.raises(BadRegion, match="the map has negative values; measures take its positive part"):
        measure(-np.ones(SIZE), _disc())
    with pytest.raises(ValueError, match="the rows keep no inside; measure them with what needs it"):
        data_set_value("pxap", stack([measure(np.ones(SIZE), _disc(), measures=["energy"])]))
    with pytest.raises(ValueError, match="no rows to stack"):
        stack([])


# --- Data sets -------------------------------------------------------------------------------------------------------


@cache
def _data_set(count: int = 12, seed: int = 0) -> tuple[list[Row], list[tuple[np.ndarray, np.ndarray]]]:
    chance = np.random.default_rng(seed)
    rows, pairs = [], []
    for number in range(count):
        region = _disc(at=(chance.uniform(10, 30), chance.uniform(10, 50)), radius=chance.uniform(3, 12))
        map_ = np.clip(chance.random(SIZE) - 0.3, 0, None) + region.mask * chance.random(SIZE)
        rows.append(measure(map_, region, correct=bool(chance.random() < 0.7), name=str(number)))
        pairs.append((map_ / map_.max(), region.mask))
    return rows, pairs


def test_pxap_equals_the_pooled_formula() -> None:
    rows, pairs = _data_set()
    found = float(data_set_value("pxap", stack(rows)))
    thresholds = np.arange(100) / 100
    precision, recall = [], []
    for threshold in [*thresholds[::-1], -1]:
        hits = sum(int((mask & (map_ > threshold)).sum()) for map_, mask in pairs)
        claimed = sum(int((map_ > threshold).sum()) for map_, _ in pairs)
        precision.append(hits / max(claimed, 1))
        recall.append(hits / sum(int(mask.sum()) for _, mask in pairs))
    expected = sum(now * (up - before) for now, up, before in zip(precision, recall, [0, *recall], strict=False))
    assert found == pytest.approx(expected, abs=1e-4)
    # The published bins are closed below instead of above, and the pixels at zero share the lowest: hardly another.
    inside = np.concatenate([map_[mask] for map_, mask in pairs])
    outside = np.concatenate([map_[~mask] for map_, mask in pairs])
    edges = [*np.arange(0, 1, 0.01), 1.0, 2.0, 3.0]
    hits, misses = (np.histogram(values, bins=edges)[0][::-1].cumsum() for values in (inside, outside))
    published = hits / np.maximum(hits + misses, 1)
    assert found == pytest.approx(float((published[1:] * np.diff(hits / hits[-1])).sum()), abs=0.005)


def test_iou_and_coverage_at_thresholds() -> None:
    rows, pairs = _data_set()
    table = stack(rows)
    ious = np.array([[(m & (s > k / 100)).sum() / (m | (s > k / 100)).sum() for k in range(100)] for s, m in pairs])
    assert float(data_set_value("iou", table)) == pytest.approx(ious.mean(axis=0).max(), abs=1e-4)
    assert best_threshold(table) == ious.mean(axis=0).argmax() / 100
    held_out = stack(_data_set(seed=1)[0])
    at = round(100 * best_threshold(held_out))
    assert float(data_set_value("iou", table, held_out=held_out)) == pytest.approx(ious.mean(axis=0)[at], abs=1e-4)
    curve = coverage_curve(table)
    for k in (0, 30, 99):
        assert curve.coverage[k] == pytest.approx(np.mean([(s[m] > k / 100).mean() for s, m in pairs]), abs=1e-4)
        assert curve.spill[k] == pytest.approx(np.mean([(s[~m] > k / 100).mean() for s, m in pairs]), abs=1e-4)


def test_thresholds_are_met_exactly() -> None:
    """A pixel at 0.7 of the maximum is not above 0.7."""
    map_ = np.arange(101)[None].astype(np.float32) / 100
    row = measure(map_, mask_region(np.ones((1, 101), dtype=bool), (1, 101)), measures=["coverage_curve"])
    assert row.inside is not None
    np.testing.assert_array_equal(row.inside, np.ones(101))


def test_localisation_counts_by_hand() -> None:
    table = _rows_of(
        box_iou=np.array([[0.2, 0.4, 0.8], [0.6, 0.0, 0.0], [0.35, 0.55, 0.1]]),
        largest_iou=np.array([[0.6, 0.1, 0.8], [0.6, 0.0, 0.0], [0.2, 0.55, 0.1]]),
        correct=np.array([True, False, True]),
    )
    assert data_set_value("maxboxacc", table) == pytest.approx(2 / 3)
    assert data_set_value("gt_known_loc", table) == pytest.approx(2 / 3)
    assert data_set_value("top1_loc", table) == pytest.approx(1 / 3)
    assert data_set_value("maxboxaccv2", table) == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    counts = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 3]])
    np.testing.assert_allclose(data_set_value("maxboxacc", table, counts=counts), [2 / 3, 1, 1])
    assert data_set_value("maxboxacc", table, held_out=table.take(np.array([2]))) == pytest.approx(1 / 3)


def _rows_of(**columns: np.ndarray) -> Rows:
    nothing = np.zeros(3)
    return Rows(("a", "b", "c"), {}, {}, nothing.astype(bool), nothing, nothing, **columns)


def test_resampled_values_are_those_of_the_drawn_pictures() -> None:
    rows, _ = _data_set()
    table = stack(rows)
    drawn = np.random.default_rng(0).integers(0, len(rows), (5, len(rows)))
    counts = np.stack([np.bincount(row, minlength=len(rows)) for row in drawn]).astype(float)
    for name in MEASURES:
        if name != "coverage_curve":
            expected = [data_set_value(name, table.take(row)) for row in drawn]
            np.testing.assert_allclose(data_set_value(name, table, counts=counts), expected, err_msg=name)


def test_parts_merge_to_the_whole() -> None:
    rows, _ = _data_set()
    whole, merged = stack(rows), merge([stack(rows[:5]), stack(rows[5:])])
    assert merged.names == whole.names
    for name in MEASURES:
        if name != "coverage_curve":
            assert data_set_value(name, merged) == data_set_value(name, whole)


def test_every_row_of_the_table_is_whole() -> None:
    for row in MEASURES.values():
        assert row.title
        assert row.citation
        assert (row.of == "picture") == (row.chance is not None) == (not row.keeps)
