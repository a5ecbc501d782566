"""From what a user names (files, folders, patterns, `-`) to picture files, each with a place of its own for results."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from r2viz.errors import BadImage, one_line
from r2viz.image import SUFFIXES


@dataclass(frozen=True)
class Input:
    """A picture to read (None: standard input) and its result's path without suffix, relative to the output folder."""

    path: Path | None
    key: PurePosixPath

    @property
    def shown(self) -> str:
        """A name fit for a message."""
        return "<stdin>" if self.path is None else one_line(str(self.path))


def gather(arguments: Sequence[str], *, recursive: bool = False) -> list[Input]:
    """Inputs in the order named; a folder's pictures are sorted, links to folders are not followed.

    Results mirror the pictures' paths below the deepest folder that holds all arguments, so that equal names in
    different folders stay apart; pictures that differ only in their ending keep it.

    Raises:
        BadImage: a folder or pattern without pictures. (A missing file is an input of its own, so that others go on.)
    """
    found: list[Path | None] = []
    roots: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found.append(None)
            continue
        path = Path(argument)
        if path.is_dir():
            found += _pictures(path, recursive)
            roots.append(path)
        elif not path.exists() and glob.has_magic(argument):
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
            if not matches:
                raise BadImage(f"the pattern {one_line(argument)!r} matches no file", code="bad_image.missing")
            files = [match for match in matches if not match.is_dir()]
            found += files
            roots += [match.parent for match in files]
        else:
            found.append(path)
            roots.append(path.parent)
    unique = list(dict.fromkeys(found))
    base = Path(os.path.commonpath([root.absolute() for root in roots])) if roots else Path()
    return [Input(path, key) for path, key in zip(unique, _keys(unique, base), strict=True)]


def _pictures(folder: Path, recursive: bool) -> list[Path]:
    pictures: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        pictures += [
            Path(parent, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".") and not _is_result(name)
        ]
    if not pictures:
        deeper = "" if recursive else "; --recursive looks into its folders too"
        raise BadImage(
            f"the folder {one_line(str(folder))} holds no pictures ({', '.join(sorted(SUFFIXES))}){deeper}",
            code="bad_image.empty_folder",
        )
    return pictures


def _is_result(name: str) -> bool:
    """Our own figures are not taken for pictures when results lie beside their sources."""
    return Path(name).stem.endswith(".cam")


def _keys(paths: Sequence[Path | None], base: Path) -> list[PurePosixPath]:
    relative = [
        PurePosixPath("stdin") if path is None else PurePosixPath(path.absolute().relative_to(base)) for path in paths
    ]
    bare = [str(path.with_suffix("")).casefold() for path in relative]
    return [path if bare.count(name) > 1 else path.with_suffix("") for path, name in zip(relative, bare, strict=True)]
