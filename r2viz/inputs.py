"""From what a user names (files, folders, patterns, `-`) to picture files, each with a place of its own for results."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from r2viz.errors import BadImage, R2VizError, one_line
from r2viz.image import SUFFIXES, Picture, decode


@dataclass(frozen=True)
class Input:
    """A picture to read (None: standard input) and its result's path without suffix, relative to the output folder.

    `error` says what is wrong with it already: it is a folder or a pattern that holds no picture.
    """

    path: Path | None
    key: PurePosixPath
    error: BadImage | None = None

    @property
    def shown(self) -> str:
        """A name fit for a message."""
        return "<stdin>" if self.path is None else one_line(str(self.path))


def gather(arguments: Sequence[str], *, recursive: bool = False) -> list[Input]:
    """Inputs in the order named; a folder's pictures are sorted, links to folders are not followed.

    Results mirror the pictures' paths below the deepest folder that holds all arguments, so that equal names in
    different folders stay apart; pictures that differ only in their ending keep it.

    Raises:
        BadImage: folders and patterns without pictures are all that was named. (Beside others, one is an input with
            its error, as a missing file is an input of its own, so that the others go on.)
    """
    found: list[Path | None] = []
    roots: list[Path] = []
    errors: dict[Path, BadImage] = {}
    for argument in arguments:
        if not argument:  # a shell's empty variable, not the folder that we are in
            raise BadImage("one of the pictures is an empty name; give a file, a folder, a pattern or -")
        if argument == "-":
            found.append(None)
            continue
        path = Path(argument)
        try:
            if os.path.isdir(path):
                found += _pictures(path, recursive)
                roots.append(path)
            elif not os.path.lexists(path) and glob.has_magic(argument):
                matches = _matches(argument)
                found += matches
                roots += [match.parent for match in matches]
            else:
                found.append(path)
                roots.append(path.parent)
        except BadImage as error:
            errors[path] = error
            found.append(path)
            roots.append(Path(os.path.abspath(path)).parent)
    if found and len(errors) == len(set(found)):
        raise next(iter(errors.values()))
    # One file named in two ways is one input. Without `..`, which would lead results out of the output folder.
    unique: dict[str | None, Path | None] = {}
    for one in found:
        unique.setdefault(None if one is None else os.path.abspath(one), one)
    base = os.path.commonpath([os.path.abspath(root) for root in roots]) if roots else ""
    keys = _keys(list(unique), base)
    return [
        Input(one, key, None if one is None else errors.get(one))
        for one, key in zip(unique.values(), keys, strict=True)
    ]


def decoded(inputs: Iterable[Input]) -> Iterator[Picture | R2VizError]:
    """The pictures, one at a time; what cannot be used is handed on as the error that it is, so that others go on."""
    for item in inputs:
        if item.error is not None:
            yield item.error
            continue
        try:
            yield decode(sys.stdin.buffer, name="stdin") if item.path is None else decode(item.path)
        except R2VizError as error:
            yield error


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


def _matches(pattern: str) -> list[Path]:
    """The files that a pattern names, sorted; through a folder that links to one above it, none comes twice."""
    matches: dict[str, Path] = {}
    for match in sorted(glob.glob(pattern, recursive=True), key=lambda name: (len(Path(name).parts), name)):
        if not os.path.isdir(match) and not _is_result(match):
            place = os.path.join(os.path.realpath(os.path.dirname(match)), os.path.basename(match))
            matches.setdefault(place, Path(match))
    if not matches:
        raise BadImage(f"the pattern {one_line(pattern)!r} matches no picture", code="bad_image.missing")
    return sorted(matches.values())


def _is_result(name: str) -> bool:
    """Our own figures are not taken for pictures when results lie beside their sources."""
    return Path(name).stem.endswith((".cam", ".panel", ".erf", ".splits"))


def _keys(places: Sequence[str | None], base: str) -> list[PurePosixPath]:
    """A key for each absolute path (None: standard input), relative to `base`, no two alike.

    Standard input's bears an ending that no file has, to be kept beside a file called `stdin`.
    """
    relative = [
        # The root of the disk, named and without pictures, has no name to keep.
        PurePosixPath("stdin.-")
        if place is None
        else PurePosixPath(Path(place).relative_to(base) if place != base else "root")
        for place in places
    ]
    bare = [path.with_suffix("") for path in relative]
    # Without regard to case, for file systems that have none. A bare name must not be another's full one either.
    taken = Counter(str(path).casefold() for path in bare)
    full = Counter(str(path).casefold() for path in relative)
    return [
        path if taken[str(short).casefold()] > 1 or (short != path and str(short).casefold() in full) else short
        for path, short in zip(relative, bare, strict=True)
    ]
