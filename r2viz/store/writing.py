"""Files that belong together, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from r2viz.errors import OutputError, one_line


def write_set(files: Mapping[Path, bytes], *, overwrite: bool = False) -> None:
    """Files that belong together: all appear under their names, each complete, or none does.

    Raises:
        OutputError: one exists and `overwrite` is off, or one cannot be written (no permission, disk full); then
            none was changed and nothing half-written is left. So too after an interruption from the keyboard.
    """
    refuse_existing(files, overwrite=overwrite)
    staged: dict[Path, Path] = {}
    former: dict[Path, Path] = {}
    placed: list[Path] = []
    path = next(iter(files), Path())
    try:
        try:
            for path, content in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Beside its target, so that the rename stays within one disk; with the umask's permissions. The name
                # is short whatever the target's: a file system's limit is in bytes.
                mark = path.parent / f".{secrets.token_hex(8)}.r2viz"
                staged[path] = mark.with_suffix(".part")
                with open(staged[path], "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():
                    former[path] = mark.with_suffix(".old")
                    _keep(path, former[path])
            for path in files:
                placed.append(path)
                os.replace(staged[path], path)
        except BaseException:
            for done in placed:
                with contextlib.suppress(OSError):
                    if done in former:
                        os.replace(former[done], done)
                    elif not staged[done].exists():
                        done.unlink()
            raise
    except OSError as error:
        shown = one_line(str(path))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{shown} cannot be written: the disk is full; nothing half-written was left", code="output.disk_full"
            ) from error
        reason = one_line(error.strerror or str(error), 120)
        raise OutputError(
            f"{shown} cannot be written ({reason}); choose a folder that you may write to with -o", code="output.denied"
        ) from error
    finally:
        for temporary in (*staged.values(), *former.values()):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _keep(path: Path, aside: Path) -> None:
    """A second name for a file, so that it outlives being replaced; a copy where the disk knows no second names."""
    try:
        os.link(path, aside)
    except OSError:
        shutil.copy2(path, aside)


def refuse_existing(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """Raise for the first of `paths` that must not be written over.

    Raises:
        OutputError: a folder of that name exists, or a file does and `overwrite` is off.
    """
    for path in paths:
        # os.path's questions, not Path's: those raise for a name that is too long, these leave it to the writing.
        if os.path.isdir(path):
            raise OutputError(f"{one_line(str(path))} is a folder; choose another place with -o", code="output.exists")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(
                f"{one_line(str(path))} exists already; use --overwrite, or another folder with -o",
                code="output.exists",
            )
