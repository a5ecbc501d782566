"""Records, panels and what was checked of them, in a few lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from r2viz.checks import Verdict
from r2viz.errors import R2VizError, one_line
from r2viz.panels import Panel
from r2viz.records import CamRecord, View


def lines(found: CamRecord | Panel) -> list[str]:
    """What the command line prints for a picture."""
    return _panel_lines(found) if isinstance(found, Panel) else _record_lines(found)


def _record_lines(record: CamRecord) -> list[str]:
    """Each network's target, top-1, and how its map lies."""
    targets = " / ".join(dict.fromkeys(view.target.label for view in record.views))
    said = [f"{record.picture.name}: {record.method_title} of {targets!r} ({_policy(record)})"]
    width = max(len(view.title) for view in record.views)
    for view in record.views:
        said.append(
            f"  {view.title:<{width}}  target {view.target.probability:7.2%}  "
            f"top-1 {one_line(view.top[0].label)} {view.top[0].probability:.2%}  weights: {view.weights['source']}"
        )
        for map_ in view.maps:
            inside = record.inside(view, map_.layer)
            share = "" if inside is None else f"  {inside}"
            state = "constant map, nothing to show" if map_.constant else f"raw maximum {map_.raw.max():.4g}"
            said.append(f"  {'':<{width}}  {map_.layer}: {state}{share}")
    for layer in record.layers:
        agreement = record.agreement(layer)
        if agreement is not None:
            said.append(f"  {layer}: {agreement}")
        ratio = record.maximum_ratio(layer)
        if ratio is not None:
            said.append(f"  {layer}: ratio of raw maxima {ratio:.3g}, second network over first")
    if record.random:
        said.append("  RANDOM WEIGHTS: untrained networks; the maps say nothing about learning")
    return said + [f"  note: {note}" for note in (*record.picture.notes, *record.notes)]


def _policy(record: CamRecord) -> str:
    own = record.policy in ("shared", "top1", "agree") or record.policy.startswith("shared, rank")
    return record.policy if own else "named"


def _panel_lines(panel: Panel) -> list[str]:
    """A table: a row per map, a column per network with the map's raw maximum, and how far two networks agree."""
    records, views = panel.records, panel.records[0].views
    names = _row_names(records)
    methods = dict.fromkeys(record.method_title for record in records)
    targets = dict.fromkeys(_target(record) for record in records)
    what = next(iter(methods)) if len(methods) == 1 else f"{len(methods)} methods"
    of = (
        f"{next(iter(targets))!r} ({_policy(records[0])})"
        if len({(_target(record), record.policy) for record in records}) == 1
        else f"{len(targets)} targets"
    )
    said = [f"{panel.picture.name}: {what} of {of}"]
    for view in views:
        said.append(
            f"  {view.title}: top-1 {one_line(view.top[0].label)} {view.top[0].probability:.2%}  "
            f"weights: {view.weights['source']}"
        )
    agreeing = ["rank corr.", "SSIM", "overlap"] if len(views) == 2 else []
    rows = [["", *(view.title for view in views), *agreeing]]
    for record, name in zip(records, names, strict=True):
        for layer in record.layers:
            shown = [_cell(record, view, layer) for view in record.views]
            row = [name if len(record.layers) == 1 else f"{name}, {layer}", *shown]
            agreement = record.agreement(layer)
            if agreeing and agreement is not None:
                row += [
                    f"{agreement.spearman:.2f}",
                    f"{agreement.ssim:.2f}",
                    f"{list(agreement.overlap.values())[1]:.2f}",
                ]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    said += _aligned(rows)
    area = records[0].agreement(records[0].layers[-1])
    said.append(
        "  cells: raw maximum" + (", and the share inside the region" if records[0].region is not None else "")
        + (f"; overlap: of the top {100 * list(area.overlap)[1]:g} %" if area is not None else "")
    )  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for one in panel.missing:
        reasons.setdefault(one.error, []).append(one.title)
    said += [f"  not used: {', '.join(dict.fromkeys(titles))}: {error}" for error, titles in reasons.items()]
    if any(record.random for record in records):
        said.append("  RANDOM WEIGHTS: untrained networks; the maps say nothing about learning")
    return said + [f"  note: {note}" for note in panel.picture.notes]


def _row_names(records: Sequence[CamRecord]) -> list[str]:
    """What tells the records apart: method, target, or both."""
    parts = []
    if len({record.method for record in records}) > 1:
        parts.append([record.method_title for record in records])
    if len({_target(record) for record in records}) > 1 or not parts:
        parts.append([one_line(_target(record), 60) for record in records])
    return [", ".join(names) for names in zip(*parts, strict=True)]


def _target(record: CamRecord) -> str:
    return " / ".join(dict.fromkeys(view.target.label for view in record.views))


def _cell(record: CamRecord, view: View, layer: str) -> str:
    map_ = view.map(layer)
    inside = record.inside(view, layer)
    share = "" if inside is None or not 0 <= inside.share <= 1 else f" {inside.share:.0%}"
    return "constant" if map_.constant else f"{map_.raw.max():.4g}{share}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" if not column else f"{cell:>{width}}" for column, (cell, width) in
                         enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip


def check_lines(records: Sequence[CamRecord], checks: Sequence[tuple[Verdict, ...] | R2VizError]) -> list[str]:
    """What was checked: a row per map and network, then each warning with the maps that it is about."""
    if not checks:
        return []
    rows = [["checked", "deletion gain", "insertion gain", "ROAD", "drop", "left after re-initialisation"]]
    warnings: dict[str, list[str]] = {}
    names = _row_names(records) if len(records) > 1 else [""]
    said = []
    for record, name, answer in zip(records, names, checks, strict=True):
        if isinstance(answer, R2VizError):
            said.append(f"  not checked: {name}{': ' if name else ''}{answer}")
            continue
        for view, verdict in zip(record.views, answer, strict=True):
            called = f"{name}, {view.title}" if name else view.title
            one, gate = verdict.faithfulness, verdict.randomisation
            numbers = (one.deletion_gain, one.insertion_gain, one.road, one.drop)
            left = "" if gate is None else f"{gate.spearman[-1]:.2f}"
            rows.append([called, *(f"{number:.2f}" for number in numbers), left])
            for warning in verdict.warnings:
                warnings.setdefault(warning, []).append(called)
    table = _aligned(rows) if len(rows) > 1 else []
    return table + said + [f"  warning: {warning}: {'; '.join(maps)}" for warning, maps in warnings.items()]
