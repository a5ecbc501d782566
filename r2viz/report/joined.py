"""One page that leads to several reports."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from r2viz.errors import BadRecord, R2VizError, one_line
from r2viz.report.folder import ABOUT, PAGE
from r2viz.report.page import filled, paragraphs
from r2viz.store import write_set


def join(
    reports: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str = "What does Res2Net see that ResNet does not?",
    overwrite: bool = False,
) -> Path:
    """A page with every report's title, finding and verdict, and links to the pages; returns it.

    Args:
        reports: folders that `write` has made.
        out: folder for the page; links are relative to it, so that all may be moved together.
        title: of the page.
        overwrite: replace a page that exists.

    Raises:
        BadRecord: a folder holds no report.
        OutputError: the page exists and `overwrite` is off, or it cannot be written.
    """
    if not reports:
        raise R2VizError("no report came; expected at least one folder that r2viz report made")
    target = Path(out) / PAGE
    rows = [_row(Path(folder), Path(out)) for folder in reports]
    write_set({target: filled("joined.html", title=title, reports=rows)}, overwrite=overwrite)
    return target


def _row(folder: Path, out: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["kind"] != "report" or not (folder / PAGE).is_file():
            raise ValueError
        link = Path(os.path.relpath(folder / PAGE, out)).as_posix()
        return {
            "link": quote(os.fsencode(link)),
            "folder": one_line(folder.resolve().name),
            "title": str(about["title"]),
            "finding": str(about["finding"]),
            "verdict": paragraphs(str(about["verdict"])),
            "figures": len(about["figures"]),
            "tables": len(about["tables"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise BadRecord(
            f"{one_line(str(folder))} holds no report ({ABOUT} and {PAGE}); expected a folder that r2viz report made"
        ) from None
