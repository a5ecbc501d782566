"""The folder of a report: page, figures, tables, and how it was made."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from r2viz.errors import OutputError, one_line
from r2viz.report import pictures, tables
from r2viz.report.content import Report
from r2viz.report.page import page
from r2viz.store import refuse_existing, write_set
from r2viz.version import __version__

SCHEMA = 1
PAGE, ABOUT, RUN = "index.html", "report.json", "run.json"
_LIBRARIES = ("numpy", "matplotlib", "pandas", "pyarrow", "scipy", "torch", "torchvision", "pillow")
_STARTED = time.time()


def refuse(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise before anything is computed where a report stands already.

    Raises:
        OutputError: one does, and `overwrite` is off; or the folder's name is that of a file.
    """
    folder = Path(out)
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{one_line(str(folder))} is a file; choose a folder with -o", code="output.exists")
    refuse_existing([folder / name for name in (PAGE, ABOUT, RUN)], overwrite=overwrite)


def write(
    report: Report,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """The report in a folder, all of it or nothing; returns the page.

    `index.html` (self-contained, at most 15 MB), `figures/*.png` and `*.pdf`, `tables/*.csv` and `*.parquet`,
    `report.json` (title, verdict, provenance and what there is) are the same bytes for an equal report. Only
    `run.json` says when, where and how long; `run` is added to it, say the seconds of each part.

    Raises:
        OutputError: a file exists and `overwrite` is off, or one cannot be written.
    """
    folder = Path(out)
    refuse(folder, overwrite=overwrite)
    files: dict[Path, bytes] = {}
    images = {}
    for drawing in report.figures():
        images[drawing.name] = files[folder / "figures" / f"{drawing.name}.png"] = pictures.png(drawing)
        files[folder / "figures" / f"{drawing.name}.pdf"] = pictures.pdf(drawing)
    for table in report.tables():
        files[folder / "tables" / f"{table.name}.csv"] = tables.csv(table)
        files[folder / "tables" / f"{table.name}.parquet"] = tables.parquet(table)
    files[folder / PAGE] = page(report, images)
    files[folder / ABOUT] = _json(_about(report))
    files[folder / RUN] = _json({**_run(folder), **(run or {})})
    write_set(files, overwrite=overwrite)
    return folder / PAGE


def _about(report: Report) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "report",
        "title": report.title,
        "finding": report.finding,
        "verdict": report.verdict,
        "sections": [section.title for section in report.sections],
        "figures": [{"name": one.name, "alt": one.alt, "caption": one.caption} for one in report.figures()],
        "tables": [
            {"name": one.name, "caption": one.caption, "rows": len(one.data), "units": dict(one.units)}
            for one in report.tables()
        ],
        "provenance": dict(report.provenance),
    }


def _run(folder: Path) -> dict[str, Any]:
    now = time.time()
    return {
        "schema": SCHEMA,
        "argv": sys.argv,
        "folder": str(folder.resolve()),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "seconds_since_start": round(now - _STARTED, 3),
        "versions": {
            "r2viz": __version__,
            "python": platform.python_version(),
            **{name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        },
        "platform": platform.platform(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    return text.encode("utf-8", "backslashreplace")
