"""The only pipeline: pictures and networks in, records out. Command line, app and analyses all call this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from r2viz.attribution.rerun import Progress, silent
from r2viz.coverage import Region
from r2viz.errors import BadRegion, R2VizError
from r2viz.explain.assemble import Prepared, versions
from r2viz.explain.batch import run
from r2viz.explain.request import FUSIONS, REGISTRATIONS, Request, asks
from r2viz.image import Picture, decode
from r2viz.models.model import Model, fitted, load, load_pair
from r2viz.records import CamRecord

__all__ = [
    "FUSIONS",
    "REGISTRATIONS",
    "cam",
    "compare",
    "explain",
    "explain_batch",
    "explain_many",
    "panel",
    "panel_batch",
    "panel_many",
    "versions",
]


def cam(
    image: Any,
    model: Model | str = "res2net50_26w_4s",
    *,
    weights: str = "auto",
    device: str = "cpu",
    fit: str = "crop",
    **options: Any,
) -> CamRecord:
    """One network's class activation map of one picture.

    `weights` and `device` as for `r2viz.load`, where `model` is a name; `fit` as for `r2viz.models.model.fitted`;
    `options` as for `explain`.
    """
    return explain(image, [_ready(model, weights, device, fit)], **options)


def compare(
    image: Any,
    models: str | Sequence[Model | str] = "auto",
    *,
    weights: str = "auto",
    device: str = "cpu",
    fit: str = "crop",
    **options: Any,
) -> CamRecord:
    """Two networks' class activation maps of one picture; `models` is a pair's name or two networks.

    Other arguments as for `cam`.
    """
    both: Sequence[Model | str] = (
        load_pair(models, weights=weights, device=device) if isinstance(models, str) else models
    )
    return explain(image, [_ready(model, weights, device, fit) for model in both], **options)


def explain(
    image: Any,
    models: Sequence[Model],
    *,
    layers: Sequence[str] | None = None,
    method: str = "gradcam",
    target: str | int = "shared",
    region: Region | None = None,
    registration: str = "rf",
    fuse: str | None = None,
    smooth: bool = False,
    seed: int = 0,
    channels: int | None = None,
    compile: bool = False,
    progress: Progress = silent,
) -> CamRecord:
    """Class activation maps of one picture.

    Args:
        image: a path, encoded bytes, an array `(H, W, 3)`, a Pillow image or a decoded `Picture`.
        models: one network, or two of which the first is the baseline.
        layers: tap names (see `r2viz.taps`); without, each network's last stage.
        method: a name in `r2viz.attribution.METHODS`.
        target: `"shared"` (the class with the highest mean probability of the networks), `"top1"` (each its own),
            `"agree"` (the common top-1, or an error), a label, an index, or `"A vs B"`, a contrast of two of them.
        region: the object, for the share of the map's mass inside it.
        registration: `"rf"` lays map units where their receptive fields are centred, `"grid"` as resizing would.
        fuse: `"mean"` or `"max"` adds a map that joins those of all layers, each divided by its own maximum.
        smooth: take the mean map over flips and zooms of the picture (six variants, one batch).
        seed: of methods that draw at random.
        channels: of methods that perturb channel by channel: only so many, the most varying ones.
        compile: for many batches of one size: the first waits a minute (see `r2viz.attribution.compiled`).
        progress: told `(done, total)` by methods that run the network many times.

    Raises:
        R2VizError: of the kind that says what was wrong.
    """
    picture = image if isinstance(image, Picture) else decode(image)
    result = explain_batch(
        [picture],
        models,
        method=method,
        target=target,
        regions=[region],
        progress=progress,
        layers=layers,
        registration=registration,
        fuse=fuse,
        smooth=smooth,
        seed=seed,
        channels=channels,
        compile=compile,
    )[0]
    if isinstance(result, R2VizError):
        raise result
    return result


def panel(
    image: Any,
    models: Sequence[Model],
    *,
    methods: str | Sequence[str] = "all",
    targets: str | int | Sequence[str | int] = "shared",
    region: Region | None = None,
    progress: Progress = silent,
    **options: Any,
) -> list[CamRecord | R2VizError]:
    """Several methods and targets on one picture, from one forward pass per network.

    Args:
        image: as for `explain`.
        models: as for `explain`.
        methods: names in `r2viz.attribution.METHODS`, or `"all"`.
        targets: as `target` of `explain`, several, or `"top5"`: the five classes of highest mean probability.
        region: as for `explain`.
        progress: as for `explain`.
        options: `layers`, `registration`, `fuse`, `smooth`, `seed`, `channels` and `compile`, as for `explain`.

    Returns:
        Records, methods outermost; where a method cannot be used on these networks, the error that says why.

    Raises:
        R2VizError: what is wrong for all of them.
    """
    picture = image if isinstance(image, Picture) else decode(image)
    result = panel_batch(
        [picture], models, methods=methods, targets=targets, regions=[region], progress=progress, **options
    )[0]
    if isinstance(result, R2VizError):
        raise result
    return result


def explain_many(
    pictures: Iterable[Picture | R2VizError],
    models: Sequence[Model],
    *,
    batch: int = 8,
    region: Callable[[tuple[int, int]], Region] | None = None,
    **options: Any,
) -> Iterator[CamRecord | R2VizError]:
    """`explain` for many pictures, in order, `batch` at a time; what fails is handed on as the error that it is.

    Memory holds one batch. `region` makes the object's region from the picture's `(H, W)`; other `options` as for
    `explain_batch`.
    """
    return _many(pictures, models, batch, region, explain_batch, options)


def panel_many(
    pictures: Iterable[Picture | R2VizError],
    models: Sequence[Model],
    *,
    batch: int = 8,
    region: Callable[[tuple[int, int]], Region] | None = None,
    **options: Any,
) -> Iterator[list[CamRecord | R2VizError] | R2VizError]:
    """`panel` for many pictures, as `explain_many`; other `options` as for `panel_batch`."""
    return _many(pictures, models, batch, region, panel_batch, options)


def _many(
    pictures: Iterable[Picture | R2VizError],
    models: Sequence[Model],
    batch: int,
    region: Callable[[tuple[int, int]], Region] | None,
    engine: Callable[..., Sequence[Any]],
    options: dict[str, Any],
) -> Iterator[Any]:
    waiting: list[Picture | R2VizError] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == batch:
            yield from _flush(waiting, models, region, engine, options)
            waiting = []
    yield from _flush(waiting, models, region, engine, options)


def _flush(
    waiting: list[Picture | R2VizError],
    models: Sequence[Model],
    region: Callable[[tuple[int, int]], Region] | None,
    engine: Callable[..., Sequence[Any]],
    options: dict[str, Any],
) -> Iterator[Any]:
    good: list[Picture] = []
    regions: list[Region | None] = []
    for number, item in enumerate(waiting):
        if isinstance(item, Picture):
            try:
                regions.append(None if region is None else region(item.rgb.shape[:2]))
                good.append(item)
            except R2VizError as error:
                waiting[number] = error
    results = iter(engine(good, models, regions=regions, **options))
    for item in waiting:
        yield next(results) if isinstance(item, Picture) else item


def explain_batch(
    pictures: Sequence[Picture],
    models: Sequence[Model],
    *,
    method: str = "gradcam",
    target: str | int = "shared",
    regions: Sequence[Region | None] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> list[CamRecord | R2VizError]:
    """`explain` for a batch: one forward pass per network.

    A picture that the networks cannot take, or that has no target, gives its error; others go on. `options` are
    `layers`, `registration`, `fuse`, `smooth`, `seed`, `channels` and `compile`, as for `explain`.

    Raises:
        R2VizError: what is wrong for all pictures: an unknown layer, method or label, networks that do not fit.
    """
    Request(**options).checked(models)
    if len(asks(method, target, models)) > 1:
        raise R2VizError(f"method {method!r} and target {target!r} make several records; ask for a panel")
    answers = panel_batch(
        pictures, models, methods=method, targets=target, regions=regions, progress=progress, **options
    )
    return [answer if isinstance(answer, R2VizError) else answer[0] for answer in answers]


def panel_batch(
    pictures: Sequence[Picture],
    models: Sequence[Model],
    *,
    methods: str | Sequence[str] = "all",
    targets: str | int | Sequence[str | int] = "shared",
    regions: Sequence[Region | None] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> list[list[CamRecord | R2VizError] | R2VizError]:
    """`panel` for a batch: one forward pass per network for all its pictures, methods and targets."""
    request = Request(**options).checked(models)
    asked = asks(methods, targets, models)
    regions = [None] * len(pictures) if regions is None else regions
    prepared = [_prepared(picture, region, models) for picture, region in zip(pictures, regions, strict=True)]
    fit = [one for one in prepared if isinstance(one, Prepared)]
    results = iter(run(fit, models, asked, request, progress) if fit else ())
    return [next(results) if isinstance(one, Prepared) else one for one in prepared]


def _prepared(picture: Picture, region: Region | None, models: Sequence[Model]) -> Prepared | R2VizError:
    size = picture.rgb.shape[:2]
    if region is not None and region.mask.shape != size:
        came = " x ".join(map(str, region.mask.shape[::-1]))
        return BadRegion(f"the region is {came}, but the picture is {size[1]} x {size[0]}; they must be equal")
    try:
        return Prepared(picture, region, [model.preprocess(picture.rgb) for model in models])
    except R2VizError as error:
        return error


def _ready(model: Model | str, weights: str, device: str, fit: str) -> Model:
    return fitted(load(model, weights=weights, device=device) if isinstance(model, str) else model, fit)
