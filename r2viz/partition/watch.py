"""Look at what goes into a network's `conv3` layers while it runs, changing and keeping nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from r2viz.errors import TapError

_ABSENT = object()


@contextmanager
def watching(module: nn.Module, paths: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(path, input)` whenever one of these modules is called by this thread.

    `see` must neither keep nor change the tensor: on the way to the next layer its memory may be written over. For the
    same reason these are no hooks: with hooks in it a block of ours stops reusing its memory (see
    `r2viz.models.blocks.unwatched`), and a forward pass of Res2Net-50 takes half as long again. The module's own
    `forward` is wrapped instead, and put back afterwards, also after an error.

    Raises:
        TapError: the network ran without calling one of them (compiled, or it skips that layer).
    """
    owner = threading.get_ident()
    seen: set[str] = set()

    def wrapped(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Any, **more: Any) -> Any:
            if threading.get_ident() == owner:
                seen.add(path)
                see(path, x)
            return forward(x, *rest, **more)

        return call

    with ExitStack() as stack:
        for path in paths:
            part = module.get_submodule(path)
            before = part.__dict__.get("forward", _ABSENT)
            part.__dict__["forward"] = wrapped(path, part.forward)
            stack.callback(_put_back, part, before)
        yield
    missing = [path for path in paths if path not in seen]
    if missing:
        raise TapError(
            f"the forward pass never reached {missing[0]!r}: nothing can be seen inside compiled or scripted parts, "
            "nor in layers that forward() skips; measure the original module",
            code="tap.silent",
        )


def _put_back(part: nn.Module, before: object) -> None:
    if before is _ABSENT:
        part.__dict__.pop("forward", None)
    else:
        part.__dict__["forward"] = before
