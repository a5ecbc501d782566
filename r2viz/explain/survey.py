"""A data set's pictures through networks, every map held against its object: one picture's record is soon forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from r2viz.attribution.labels import by_wnid, output_of
from r2viz.attribution.rerun import silent
from r2viz.attribution.targets import policies
from r2viz.coverage import MEASURES, Row, baseline, measure, measures_for, stack
from r2viz.coverage.boxes import THRESHOLDS, PixelBox
from r2viz.datasets import DataSet, Located
from r2viz.datasets.located import Opens
from r2viz.datasets.scenes import Scene
from r2viz.errors import BadData, BadRegion, BadTarget, R2VizError, UnknownName, nearest
from r2viz.explain.assemble import Prepared, versions
from r2viz.explain.batch import run
from r2viz.explain.request import Ask, Request, asks
from r2viz.models.model import Model
from r2viz.records import CamRecord
from r2viz.surveys import Failure, Look, Survey
from r2viz.taps import device_of

BATCH = 32
PER_PICTURE = ("label", "shared")


def survey(
    dataset: DataSet,
    models: Sequence[Model],
    *,
    methods: str | Sequence[str] = "gradcam",
    measures: Sequence[str] | None = None,
    target: str = "label",
    thresholds: int = THRESHOLDS,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Survey:
    """Hold the maps of networks against the objects of a data set.

    Memory holds one batch of pictures and a small row for each picture and map. A picture that cannot be used is named
    among the failures, and others go on.

    Args:
        dataset: see `r2viz.datasets.open_dataset`.
        models: one network, or two to compare (the baseline first).
        methods: CAM methods; `"all"` is not among them.
        measures: names in `r2viz.coverage.MEASURES`; by default all that the data set's regions allow.
        target: `"label"` explains the class that the data set names, and the shared class where it names none;
            `"shared"` always the class that both hold most probable together.
        thresholds: of boxes and histograms.
        batch: pictures at once.
        progress: called with the number of pictures done since the last call.
        options: as for `r2viz.explain.explain`: `layers`, `registration`, `smooth`, `seed`, `channels`, ….

    Raises:
        UnknownName: no such measure, method, layer or target.
        BadRegion: a measure that needs masks, of a data set of boxes.
        BadData: no picture could be used.
    """
    if target not in PER_PICTURE:
        raise UnknownName(
            f"no target {target!r}{nearest(target, PER_PICTURE)} for a data set; there are {' and '.join(PER_PICTURE)}",
            code="unknown_name.target",
        )
    wanted = _measures(dataset, measures)
    request = Request(**options).checked(models)
    asked = asks(methods, "shared", models)
    found = _Found(len(models) * len(asked))
    known = [by_wnid(model) for model in models]
    rule = policies("shared", [model.classes for model in models])[0]
    for group in _batches(_opened(dataset, models, known, target, found, progress), batch):
        _look(group, models, [Ask(ask.method, rule) for ask in asked], request, wanted, thresholds, found)
        if progress is not None:
            progress(len(group))
    if not found.kept:
        first = f"; the first: {found.failures[0].error}" if found.failures else ""
        raise BadData(f"{dataset.name}: none of {len(dataset)} pictures could be used{first}")
    return _survey(dataset, models, asked, request, target, found, thresholds)


class _Kept(NamedTuple):
    """What is kept of a picture, beside its rows."""

    label: str
    item: str
    object: str
    pixels: int
    chosen: float


class _Found:
    """What has been measured so far."""

    def __init__(self, looks: int) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(looks)]
        self.probability: list[list[float]] = [[] for _ in range(looks)]
        self.about: list[CamRecord] = []
        self.gaussian: list[Row] = []
        self.kept: list[_Kept] = []
        self.failures: list[Failure] = []
        self.seconds = {"opening": 0.0, "maps": 0.0, "measuring": 0.0}

    def fail(self, name: str, error: R2VizError) -> None:
        self.failures.append(Failure(name, error.code, str(error)))


Opened = tuple[Located, Prepared, Opens]


def _opened(
    dataset: DataSet,
    models: Sequence[Model],
    known: Sequence[dict[str, int]],
    target: str,
    found: _Found,
    progress: Callable[[int], None] | None,
) -> Iterator[Opened]:
    """Pictures that can be used, read and prepared; others are among the failures."""
    for entry in dataset:
        begun = perf_counter()
        try:
            located = entry.open()
            ready = _prepared(located, models, known, target)
        except R2VizError as error:
            found.fail(entry.name, error)
            if progress is not None:
                progress(1)
            continue
        finally:
            found.seconds["opening"] += perf_counter() - begun
        yield located, ready, entry


def _prepared(located: Located, models: Sequence[Model], known: Sequence[dict[str, int]], target: str) -> Prepared:
    targets = None
    if target == "label" and located.label is not None:
        found = [output_of(located.label, model, table) for model, table in zip(models, known, strict=True)]
        for model, output in zip(models, found, strict=True):
            if output is None:
                raise BadTarget(
                    f"{located.name}: its class {located.label!r} is none of {model.name}'s {len(model.classes)}; "
                    "explain the shared class instead, or leave such pictures out",
                    code="bad_target.unknown_class",
                )
        targets = tuple(output for output in found if output is not None)
    inputs = [model.preprocess(located.picture.rgb) for model in models]
    return Prepared(located.picture, None, inputs, targets)


def _batches(opened: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    waiting: list[Opened] = []
    for one in opened:
        waiting.append(one)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _look(
    group: Sequence[Opened],
    models: Sequence[Model],
    asked: Sequence[Ask],
    request: Request,
    wanted: Sequence[str],
    thresholds: int,
    found: _Found,
) -> None:
    begun = perf_counter()
    answers = run([ready for _, ready, _ in group], models, asked, request, silent)
    found.seconds["maps"] += perf_counter() - begun
    begun = perf_counter()
    for (located, ready, entry), records in zip(group, answers, strict=True):
        errors = [record for record in records if isinstance(record, R2VizError)]
        if errors:
            found.fail(located.name, errors[0])
            continue
        try:
            measured = [
                _measured(located, ready, record, number, wanted, thresholds)
                for number in range(len(models))
                for record in records
                if isinstance(record, CamRecord)
            ]
            knowing_nothing = _gaussian(located, wanted, thresholds)
        except R2VizError as error:
            found.fail(located.name, error)
            continue
        for place, (row, probability) in enumerate(measured):
            found.rows[place].append(row)
            found.probability[place].append(probability)
        found.gaussian.append(knowing_nothing)
        found.kept.append(_kept(located, entry))
        if not found.about:
            found.about = [record for record in records if isinstance(record, CamRecord)]
    found.seconds["measuring"] += perf_counter() - begun


def _kept(located: Located, entry: Opens) -> _Kept:
    scene = entry if isinstance(entry, Scene) else None
    return _Kept(
        located.label or "",
        located.name if scene is None else scene.item,
        located.name if scene is None else scene.object,
        int(located.region.mask.sum()),
        math.nan if scene is None else scene.share,
    )


def _measured(
    located: Located, ready: Prepared, record: CamRecord, number: int, wanted: Sequence[str], thresholds: int
) -> tuple[Row, float]:
    view = record.views[number]
    laid = view.on_source(view.maps[-1].layer)
    if located.ignored is not None:
        laid = np.where(located.ignored, np.nan, laid)
    row = measure(
        laid,
        located.region,
        measures=wanted,
        boxes=_pixel_boxes(located),
        correct=None if ready.targets is None else view.top[0].index == view.target.index,
        thresholds=thresholds,
        name=located.name,
    )
    return row, view.target.probability


def _gaussian(located: Located, wanted: Sequence[str], thresholds: int) -> Row:
    return baseline(
        located.region, measures=wanted, boxes=_pixel_boxes(located), thresholds=thresholds, name=located.name
    )


def _pixel_boxes(located: Located) -> list[PixelBox]:
    """In the convention of MaxBoxAcc's publication: corners within the picture."""
    height, width = located.region.mask.shape
    return [
        (
            max(0, math.floor(x0)),
            max(0, math.floor(y0)),
            min(math.ceil(x1), width - 1),
            min(math.ceil(y1), height - 1),
        )
        for x0, y0, x1, y1 in located.boxes
    ]


def _measures(dataset: DataSet, measures: Sequence[str] | None) -> list[str]:
    allowed = measures_for("box" if dataset.kind == "box" else "mask")
    if measures is None:
        return allowed
    for name in measures:
        if name not in MEASURES:
            raise UnknownName(f"no measure {name!r}{nearest(name, MEASURES)}", code="unknown_name.measure")
        if name not in allowed:
            raise BadRegion(
                f"{name} needs masks, and {dataset.name} has boxes; a box allows {', '.join(allowed)}, and --grabcut "
                "guesses masks from boxes"
            )
    return list(dict.fromkeys(measures))


def _survey(
    dataset: DataSet,
    models: Sequence[Model],
    asked: Sequence[Ask],
    request: Request,
    target: str,
    found: _Found,
    thresholds: int,
) -> Survey:
    looks = []
    for number in range(len(models)):
        for place, record in enumerate(found.about):
            view = record.views[number]
            index = number * len(asked) + place
            looks.append(
                Look(
                    view.model,
                    view.title,
                    view.weights,
                    view.seed,
                    view.preprocess,
                    record.method,
                    record.method_title,
                    view.maps[-1].layer,
                    stack(found.rows[index]),
                    np.array(found.probability[index]),
                )
            )
    return Survey(
        dataset=dataset.name,
        format=dataset.format,
        kind=dataset.kind,
        target=target,
        registration=request.registration,
        looks=tuple(looks),
        gaussian=stack(found.gaussian),
        labels=tuple(one.label for one in found.kept),
        items=tuple(one.item for one in found.kept),
        failures=tuple(found.failures),
        versions=versions(),
        device=str(device_of(models[0].module)),
        settings={**request.settings, **({"thresholds": thresholds} if thresholds != THRESHOLDS else {})},
        seconds=dict(found.seconds),
        objects=tuple(one.object for one in found.kept),
        pixels=np.array([one.pixels for one in found.kept]),
        chosen=np.array([one.chosen for one in found.kept]),
    )
