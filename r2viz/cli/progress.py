"""Bars on a terminal's standard error, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

AFTER = 1.0
"""Seconds of work before a method shows a bar of its own."""


def counted(items: Iterable[Any], total: int, unit: str, *, least: int = 3) -> Iterator[Any]:
    """`items` with a bar, from `least` of them on."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, unit=unit, file=sys.stderr, disable=True if total < least else None))


class Steps:
    """What methods that run a network many times tell of it: a bar each, under that of the pictures."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total or done < self._bar.n:
            self.close()
            self._bar = tqdm(
                total=total, unit="step", file=sys.stderr, disable=None, leave=False, delay=AFTER, position=1
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
