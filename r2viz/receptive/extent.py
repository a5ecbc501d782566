"""How large a map of influence is: areas, squares, moments, a Gaussian; and the sizes other protocols define."""

from __future__ import annotations

import math

import numpy as np

from r2viz.erf_records import SHARES, Gaussian, Pair, Sizes

_LUO = 1 - 0.9545
_NARROWEST = 0.1
_ENOUGH = 1e-9
"""Rounding of sums must not make a set that holds exactly the asked share look too small."""


def sizes(
    map_: np.ndarray,
    centre: Pair,
    *,
    picture: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
    fit: bool = True,
) -> Sizes | None:
    """The sizes of a non-negative map `(h, w)`; None where it has no mass.

    Args:
        map_: the part of the picture outside of which the map is zero.
        centre: (y, x) of the unit in the picture, 0-based centre of the first pixel.
        picture: (H, W); the map's own size unless given.
        corner: (y, x) of `map_[0, 0]` in the picture.
        fit: whether to fit a Gaussian, which costs more than everything else.
    """
    values = np.asarray(map_)
    picture = (values.shape[0], values.shape[1]) if picture is None else picture
    total = float(values.sum(dtype=np.float64))
    if not (np.isfinite(total) and total > 0):
        return None
    rows, columns = _axes(values.shape, corner)
    along = values.sum(axis=1, dtype=np.float64) / total, values.sum(axis=0, dtype=np.float64) / total
    middle = float(along[0] @ rows), float(along[1] @ columns)
    variances = float(along[0] @ (rows - middle[0]) ** 2), float(along[1] @ (columns - middle[1]) ** 2)
    at = round(centre[0]) - corner[0], round(centre[1]) - corner[1]
    inside = 0 <= at[0] < values.shape[0] and 0 <= at[1] < values.shape[1]
    found = Sizes(
        area=_areas(values, total),
        square=_squares(values, total, centre, corner),
        sigma=math.sqrt(sum(variances) / 2),
        sigma_yx=(math.sqrt(variances[0]), math.sqrt(variances[1])),
        mass_centre=middle,
        luo=math.sqrt(np.count_nonzero(values > _LUO * values[at])) if inside and values[at] > 0 else math.nan,
    )
    if not fit:
        return found
    gaussian = fit_gaussian(values, found, picture=picture, corner=corner)
    return Sizes(found.area, found.square, found.sigma, found.sigma_yx, found.mass_centre, found.luo, gaussian)


def _axes(shape: tuple[int, ...], corner: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(shape[0], dtype=np.float64) + corner[0], np.arange(shape[1], dtype=np.float64) + corner[1]


def _areas(values: np.ndarray, total: float) -> dict[int, int]:
    mass = np.cumsum(np.sort(values, axis=None)[::-1], dtype=np.float64)
    return {share: int(np.searchsorted(mass, share / 100 * total * (1 - _ENOUGH))) + 1 for share in SHARES}


def _squares(values: np.ndarray, total: float, centre: Pair, corner: tuple[int, int]) -> dict[int, float]:
    radii, mass = square_masses(values, centre, corner)
    reached = np.searchsorted(mass, [share / 100 * total * (1 - _ENOUGH) for share in SHARES])
    return {
        share: float(2 * radii[min(index, len(radii) - 1)] + 1) for share, index in zip(SHARES, reached, strict=True)
    }


def square_masses(values: np.ndarray, centre: Pair, corner: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Distances from a centre to further pixels along an axis, and the mass of the square of each; both `(n,)`."""
    rows, columns = _axes(values.shape, corner)
    radii = np.unique(np.concatenate([np.abs(rows - centre[0]), np.abs(columns - centre[1])]))
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    # Centres are sums of halves, so a hair is enough to keep a pixel on the edge inside.
    slack = 1e-6
    top, bottom = (np.searchsorted(rows, centre[0] + sign * (radii + slack)) for sign in (-1, 1))
    left, right = (np.searchsorted(columns, centre[1] + sign * (radii + slack)) for sign in (-1, 1))
    return radii, table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def fit_gaussian(
    map_: np.ndarray, start: Sizes, *, picture: tuple[int, int], corner: tuple[int, int] = (0, 0)
) -> Gaussian | None:
    """The Gaussian of least squares over the whole picture, from the map's moments; None where none is found.

    `h · a(y) b(x)` is separable and its best height follows from the rest, so what is left to maximise is
    `(aᵀMb)² / (|a|² |b|²)` over centre and sigmas (variable projection: Golub and Pereyra 1973). Pixels outside
    `map_` are zeros: they count in `|a|²` and `|b|²` alone, so a crop gives the fit of the whole.
    """
    from scipy.optimize import minimize

    values = np.asarray(map_, dtype=np.float64)
    values = values / values.sum()
    full = np.arange(picture[0], dtype=np.float64), np.arange(picture[1], dtype=np.float64)
    part = slice(corner[0], corner[0] + values.shape[0]), slice(corner[1], corner[1] + values.shape[1])

    def bell(axis: int, at: float, log_sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        away = full[axis] - at
        inverse = math.exp(-2 * log_sigma)
        bell_ = np.exp(-0.5 * inverse * away**2)
        return bell_, bell_ * away * inverse, bell_ * away**2 * inverse

    def unlike(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        one, other = bell(0, parameters[0], parameters[2]), bell(1, parameters[1], parameters[3])
        sides = values @ other[0][part[1]], one[0][part[0]] @ values
        common = float(one[0][part[0]] @ sides[0])
        squared = [float(bell_ @ bell_) for bell_ in (one[0], other[0])]
        if common < 1e-200 or min(squared) < 1e-200:  # it has lost the map
            return 1e6, np.zeros(4)
        slopes = [
            2 * float(bells[kind][part[axis]] @ sides[axis]) / common
            - 2 * float(bells[0] @ bells[kind]) / squared[axis]
            for kind in (1, 2)
            for axis, bells in enumerate((one, other))
        ]
        return math.log(squared[0]) + math.log(squared[1]) - 2 * math.log(common), -np.array(slopes)

    bounds = [(0, picture[0] - 1), (0, picture[1] - 1), *[(math.log(_NARROWEST), math.log(4 * max(picture)))] * 2]
    # From the whole mass and from its inner half: a sharp peak on a wide skirt has two optima.
    inner = math.sqrt(start.area[50] / (2 * math.pi * math.log(2)))
    guesses = [start.sigma_yx, (inner, inner)]
    centre = np.clip(start.mass_centre, 0, np.array(picture) - 1)
    best = min(
        (
            minimize(
                unlike,
                [*centre, *np.log(np.clip(guess, 2 * _NARROWEST, None))],
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"ftol": 1e-13, "gtol": 1e-9, "maxiter": 200},
            )
            for guess in guesses
        ),
        key=lambda found: found.fun,
    )
    square, area = float((values**2).sum()), picture[0] * picture[1]
    spread = square - 1 / area
    if not np.isfinite(best.fun) or best.fun >= 1e6 or spread <= 1e-15:
        return None
    y, x, log_y, log_x = map(float, best.x)
    explained = math.exp(-best.fun)
    bells = bell(0, y, log_y)[0], bell(1, x, log_x)[0]
    height = math.sqrt(explained / float(bells[0] @ bells[0]) / float(bells[1] @ bells[1]))
    total = float(np.asarray(map_).sum(dtype=np.float64))
    return Gaussian((y, x), (math.exp(log_y), math.exp(log_x)), height * total, 1 - (square - explained) / spread)


def replknet_sizes(map_: np.ndarray) -> dict[str, float | None]:
    """Side and share of the picture of the smallest square above 20/30/50/99 % of `log10(A + 1)`, as RepLKNet has it.

    `map_` is `(H, W)`, over the whole picture. The square is centred on pixel (H // 2, W // 2) whatever the unit, is at
    least 3 pixels wide and stays within the picture; None where no such square holds enough. The logarithm makes the
    sizes depend on the scale of the gradient: compare with other papers, not between networks.

    Source: Ding et al. 2022, arXiv 2203.06717, appendix on effective receptive fields, and its published script.
    """
    values = np.log10(np.asarray(map_) + 1)
    height, width = values.shape
    _, mass = square_masses(values, (height // 2, width // 2))
    total = float(np.sum(values, dtype=np.float64))
    found: dict[str, float | None] = {}
    for share in (20, 30, 50, 99):
        side = next(
            (2 * radius + 1 for radius in range(1, min(height, width) // 2) if mass[radius] > share / 100 * total), None
        )
        found[f"side{share}"] = side
        found[f"area_ratio{share}"] = None if side is None else side / height * side / width
    return found


def openerf_sizes(map_: np.ndarray) -> dict[str, float | None]:
    """Mass within 5 to 80 pixels of (H // 2, W // 2), centre of mass, and the sigmas of a Gaussian fit with its R².

    `map_` is `(H, W)`, over the whole picture. R² is one minus the *variance* of the residual over that of the map, as
    OpenERF has it, which forgives a residual whose mean is not zero.

    Source: OpenERF 0.6 (Kim et al., BMVC 2023).
    """
    values = np.asarray(map_, dtype=np.float64)
    total = values.sum()
    if not total > 0:
        return {}
    values = values / total
    rows, columns = _axes(values.shape, (0, 0))
    distances = np.hypot(rows[:, None] - values.shape[0] // 2, columns[None] - values.shape[1] // 2)
    found: dict[str, float | None] = {
        f"mass_within_{radius}": float(values[distances <= radius].sum()) for radius in (5, 10, 20, 30, 40, 60, 80)
    }
    found |= {"com_y": float(values.sum(axis=1) @ rows), "com_x": float(values.sum(axis=0) @ columns)}
    found_sizes = sizes(values, (values.shape[0] // 2, values.shape[1] // 2))
    gaussian = None if found_sizes is None else found_sizes.gaussian
    if gaussian is None:  # a flat map
        return found
    bell = [
        np.exp(-((axis - at) ** 2) / (2 * sigma**2))
        for axis, at, sigma in zip((rows, columns), gaussian.centre, gaussian.sigma, strict=True)
    ]
    residual = values - gaussian.height * np.outer(*bell)
    r2 = 1 - float(residual.var() / values.var())
    return found | {"sigma_y": gaussian.sigma[0], "sigma_x": gaussian.sigma[1], "r_squared": r2}
