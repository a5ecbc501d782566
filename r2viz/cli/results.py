"""What a run of `r2viz cam` leaves: files, lines of text or JSON, and the checks that go into both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.errors import OutputError, R2VizError, one_line

if TYPE_CHECKING:
    from r2viz.checks import Verdict
    from r2viz.inputs import Input
    from r2viz.models.model import Model
    from r2viz.panels import Panel
    from r2viz.records import CamRecord

    Check = tuple[Verdict, ...] | R2VizError
    Verdicts = dict[tuple[str, str], list[Verdict]]


def outputs(folder: Path, item: Input, kinds: Sequence[str], what: str) -> list[Path]:
    """A picture's results, the JSON last; `what` is `cam` or `panel`."""
    stem = folder / item.key.parent / f"{item.key.name}.{what}"
    return [Path(f"{stem}.{kind}") for kind in (*kinds, "npz", "json")]


def prepare(folder: Path) -> None:
    """Learn before the work, not after, that nothing can be written; a run that fails leaves no empty folder."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise OutputError(
            f"{one_line(str(there))} is a file, so no folder for results; choose another with -o", code="output.denied"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {one_line(str(there))} cannot be written to; choose another with -o", code="output.denied"
        )


def kept(item: Input, paths: Sequence[Path], request: str) -> bool:
    """Whether the picture's results are there already, from this very picture and this very request.

    Raises:
        OutputError: they are there, but from another.
    """
    from r2viz.models.weights import file_digest
    from r2viz.store import made_by

    if item.path is None or item.error is not None or not all(map(os.path.exists, paths)):
        return False
    picture, asked = made_by(paths[-1])
    if asked == request and os.path.isfile(item.path) and picture == file_digest(item.path):
        return True
    raise OutputError(
        f"{one_line(str(paths[-1]))} was made from another picture or with other options, so --resume cannot go on "
        "from it; use --overwrite, or another folder with -o",
        code="output.other",
    )


def write(
    found: CamRecord | Panel,
    checks: Sequence[Check],
    paths: Sequence[Path],
    kinds: Sequence[str],
    request: str,
    *,
    overwrite: bool,
) -> None:
    """The figures, the NPZ and the JSON, all or none."""
    from r2viz.figures import drawn, render
    from r2viz.store import files, write_set

    drawing, provenance = drawn(found)
    pictures = {path: render(drawing, kind, provenance=provenance) for path, kind in zip(paths, kinds, strict=False)}
    write_set({**pictures, **files(found, paths[-1], request=request, **_checked(found, checks))}, overwrite=overwrite)


def show(
    found: CamRecord | Panel,
    checks: Sequence[Check],
    item: Input,
    paths: Sequence[Path],
    *,
    many: bool,
    as_json: bool,
) -> None:
    """The record or panel on standard output: as JSON, or in a few lines."""
    from r2viz.store import as_dict
    from r2viz.summary import check_lines, lines

    if as_json:
        document = as_dict(found, arrays=paths[-2].name) | _checked(found, checks)
        document |= {"input": item.shown, "status": "ok", "files": [str(path) for path in paths]}
        click.echo(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=None if many else 1))
        return
    for line in (*lines(found), *check_lines(records_of(found), checks)):
        click.echo(line)
    click.echo(f"  → {one_line(str(paths[0]), 1000)}")


def json_line(item: Input, status: str, **more: Any) -> None:
    """A line of JSON about a picture that has no new record."""
    from r2viz.records import SCHEMA

    click.echo(json.dumps({"schema": SCHEMA, "input": item.shown, "status": status, **more}, ensure_ascii=False))


def about(item: Input, error: R2VizError) -> str:
    """The message, with the picture's name where it does not begin with it (or with the end of a long one) already."""
    text = str(error)
    return text if item.error is not None or text.startswith((f"{item.shown}: ", "…")) else f"{item.shown}: {text}"


def records_of(found: CamRecord | Panel) -> tuple[CamRecord, ...]:
    """A panel's records, or the one."""
    from r2viz.panels import Panel

    return found.records if isinstance(found, Panel) else (found,)


# --- Checks ----------------------------------------------------------------------------------------------------------


def checked(
    found: CamRecord | Panel, models: Sequence[Model], *, layers: Sequence[str] | None, seed: int
) -> list[Check]:
    """Each record's verdicts, one per network, or the reason why there are none."""
    from r2viz.cli.progress import counted
    from r2viz.explain.trust import check

    records = records_of(found)
    answers: list[Check] = []
    for record in counted(records, len(records), "check"):
        try:
            answers.append(check(record, models, layers=layers, seed=seed))
        except R2VizError as error:
            answers.append(error)
    return answers


def verdicts_of(found: CamRecord | Panel, checks: Sequence[Check]) -> Verdicts:
    """A picture's verdicts by what made the map and network."""
    seen: Verdicts = {}
    for record, answer in zip(records_of(found), checks, strict=False):
        if not isinstance(answer, R2VizError):
            for view, verdict in zip(record.views, answer, strict=True):
                seen.setdefault((f"{record.method_title} ({record.policy})", view.title), []).append(verdict)
    return seen


def kept_verdicts(path: Path) -> Verdicts:
    """The same, of results that are there already, read from their JSON.

    Raises:
        OutputError: the file does not hold what `r2viz cam --check` writes.
    """
    from r2viz.checks import Verdict

    seen: Verdicts = {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        several = document["kind"] == "panel"
        records = document["records"] if several else [document]
        for record, answer in zip(records, document["check"] if several else [document["check"]], strict=True):
            for network in answer.get("networks", ()):
                key = (f"{record['method_title']} ({record['policy']})", network["title"])
                seen.setdefault(key, []).append(Verdict.of_dict(network))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{one_line(str(path))} does not hold the checks that --resume goes on from ({type(error).__name__}); "
            "use --overwrite, or another folder with -o",
            code="output.other",
        ) from None
    return seen


def summarise(pictures: Sequence[Verdicts], as_json: bool) -> None:
    """Means over pictures with intervals: a line of JSON on standard output, or text on standard error."""
    from r2viz.checks import over_pictures
    from r2viz.records import SCHEMA

    seen: Verdicts = {}
    for one in pictures:
        for key, verdicts in one.items():
            seen.setdefault(key, []).extend(verdicts)
    if not seen:
        return
    found = [(made, network, over_pictures(verdicts)) for (made, network), verdicts in seen.items()]
    if as_json:
        rows = [
            {"map": made, "network": network, **{name: one.as_dict() for name, one in measures.items()}}
            for made, network, measures in found
        ]
        document = {"schema": SCHEMA, "kind": "check", "status": "summary", "over_pictures": rows}
        click.echo(json.dumps(document, allow_nan=False, ensure_ascii=False))
        return
    click.echo("checks over the pictures: mean [95 % interval] (n = pictures)", err=True)
    for made, network, measures in found:
        click.echo(f"  {made}, {network}", err=True)
        for name, interval in measures.items():
            click.echo(f"    {name.replace('_', ' ')}: {interval}", err=True)


def _checked(found: CamRecord | Panel, checks: Sequence[Check]) -> dict[str, Any]:
    """`{"check": …}`, of a panel one for each record; nothing where nothing was checked."""
    from r2viz.panels import Panel

    described = [_check_dict(record, one) for record, one in zip(records_of(found), checks, strict=False)]
    if not described:
        return {}
    return {"check": described if isinstance(found, Panel) else described[0]}


def _check_dict(record: CamRecord, answer: Check) -> dict[str, Any]:
    if isinstance(answer, R2VizError):
        return {"error_code": answer.code, "error": str(answer)}
    verdicts = zip(record.views, answer, strict=True)
    return {
        "layer": record.layers[-1],
        "networks": [{"model": view.model, "title": view.title, **_plain(one.as_dict())} for view, one in verdicts],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite becomes None, as JSON wants it."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }
