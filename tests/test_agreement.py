"""Agreement of two maps: against scikit-image's SSIM where it is installed, and against what can be said by hand."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from r2viz.agreement import AREAS, LONGEST, agreement, equal_area_overlap, rank_correlation, structural_similarity


def noise(seed: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_a_map_agrees_with_itself_in_any_unit() -> None:
    map_ = noise(0)
    found = agreement(map_, 1e6 * map_)
    assert found.spearman == pytest.approx(1)
    assert found.ssim == pytest.approx(1, abs=1e-6)
    assert found.overlap == pytest.approx(dict.fromkeys(AREAS, 1.0))


def test_unrelated_maps_overlap_as_chance_says() -> None:
    found = agreement(noise(0, (200, 200)), noise(1, (200, 200)))
    assert abs(found.spearman) < 0.03
    assert abs(found.ssim) < 0.8
    for area, overlap in found.overlap.items():
        assert overlap == pytest.approx(area / (2 - area), abs=0.02)


def test_opposite_maps() -> None:
    map_ = noise(3)
    found = agreement(map_, 1 - map_)
    assert found.spearman == pytest.approx(-1)
    assert found.overlap[0.2] == 0


@pytest.mark.parametrize("blurred", [False, True])
def test_ssim_equals_scikit_images(blurred: bool) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="not run: needs scikit-image")
    first, second = noise(0).astype(float), noise(1).astype(float)
    if blurred:
        first, second = first.cumsum(axis=1) / 64, (first + 0.1 * second).cumsum(axis=1) / 70
    _, whole = metrics.structural_similarity(
        first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    # Away from the border, where scikit-image mirrors the picture and this does not.
    seen = np.ones(first.shape, bool)
    inner = np.zeros_like(seen)
    inner[5:-5, 5:-5] = True

    def part(where: np.ndarray) -> float:
        return float(whole[where].mean())

    full = structural_similarity(first, second, seen)
    assert full == pytest.approx(part(seen), abs=0.02)
    by_pixel = _slow_ssim(first, second)
    assert by_pixel[inner].mean() == pytest.approx(part(inner), abs=1e-6)
    assert by_pixel.mean() == pytest.approx(full, abs=1e-6)


def _slow_ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    height, width = first.shape
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    out = np.empty_like(first)
    for row in range(height):
        for column in range(width):
            rows, columns = row + offsets, column + offsets
            rows_in, columns_in = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
            w = weights[np.ix_(rows_in, columns_in)]
            w = w / w.sum()
            x = first[np.ix_(rows[rows_in], columns[columns_in])]
            y = second[np.ix_(rows[rows_in], columns[columns_in])]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
            out[row, column] = ((2 * mx * my + 1e-4) * (2 * cov + 9e-4)) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return out


def test_only_what_both_saw_counts() -> None:
    first, second = noise(0), noise(1)
    second[:, :20] = first[:, :20]
    expected = agreement(first[:, 20:], second[:, 20:])
    first[:, :20] = np.nan
    found = agreement(first, second)
    assert found.spearman == pytest.approx(expected.spearman)
    assert found.overlap == pytest.approx(expected.overlap)
    assert found.ssim == pytest.approx(expected.ssim)


def test_large_pictures_are_compared_on_every_kth_pixel() -> None:
    rows = np.linspace(0, 1, 3 * LONGEST)
    first, second = np.add.outer(rows, rows), np.add.outer(rows, rows**2)
    assert agreement(first, second).spearman == pytest.approx(
        stats.spearmanr(first[::3, ::3].ravel(), second[::3, ::3].ravel()).statistic
    )


@given(values=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40))
def test_rank_correlation_is_scipys(values: list[tuple[int, int]]) -> None:
    first, second = np.array(values, dtype=float).T
    assume(np.ptp(first) > 0 and np.ptp(second) > 0)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


@given(seed=st.integers(0, 50), area=st.floats(0.01, 0.99), zeros=st.floats(0, 1))
def test_overlap_is_symmetric_bounded_and_blind_to_the_order_of_pixels(seed: int, area: float, zeros: float) -> None:
    chance = np.random.default_rng(seed)
    first, second = chance.random(200), chance.random(200)
    first[chance.random(200) < zeros] = 0
    found = equal_area_overlap(first, second, area)
    assert 0 <= found <= 1
    assert found == pytest.approx(equal_area_overlap(second, first, area))
    order = chance.permutation(200)
    assert found == pytest.approx(equal_area_overlap(first[order], second[order], area))
    assert equal_area_overlap(first, first, area) == pytest.approx(1)


def test_constant_maps_have_no_rank_correlation_and_json_says_so() -> None:
    found = agreement(np.ones((8, 8)), noise(0, (8, 8)))
    assert np.isnan(found.spearman)
    assert found.as_dict()["spearman"] is None
    assert found.overlap[0.5] == pytest.approx(1 / 3, abs=0.01)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"one shape \(H, W\); these have \(2, 2\) and \(2, 3\)"):
        agreement(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="seen by both"):
        agreement(np.full((2, 2), np.nan), np.ones((2, 2)))
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        equal_area_overlap(np.ones(4), np.ones(4), 1)
