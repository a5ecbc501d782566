"""Taps: named points of a network that an analysis looks at, and the guard that leaves the network as it was.

Names: `layer4` or `layer3.0.bn3` is the output of that module; `layer3.2.split1` the output y_1 of a split of a
Res2Net block, cascade included; `layer3.2.conv3_in` what goes *into* a module, and `layer3.2.conv3_in[1]` one
split's part of it: the same activation as `split1`, but its gradient holds the direct path only.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from r2viz.errors import TapError, UnknownName, nearest, one_line

_locks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()
_NAME = re.compile(r"(?P<path>.*?)(?P<side>_in)?(\[(?P<split>\d+)\])?")


@dataclass(frozen=True)
class Point:
    """A parsed tap name: which module, its output or its input, and which split's channels (None: all)."""

    path: str
    into: bool
    split: int | None
    splits: int = 1

    @property
    def gradient(self) -> str:
        """What a gradient taken here holds: every path from here on, or the split's direct path into `conv3`."""
        return "direct" if self.into and self.split is not None else "total"

    def part(self, whole: Tensor) -> Tensor:
        """This split's channels of `(N, C, H, W)`."""
        return whole if self.split is None else whole.chunk(self.splits, dim=1)[self.split]


def point(module: nn.Module, name: str, *, called: str | None = None) -> Point:
    """`name` as a `Point` of `module`, which a message calls `called`.

    Raises:
        UnknownName: there is no such module or split; the message suggests the nearest name.
    """
    if _has(module, name):
        return Point(name, into=False, split=None)
    modules = dict(module.named_modules())
    modules.pop("", None)
    match = _NAME.fullmatch(name)
    path = match["path"] if match else name
    if match is None or path not in modules or not match["side"]:
        depth = name.count(".")
        near = nearest(name, [known for known in modules if known.count(".") == depth]) or nearest(name, modules)
        raise UnknownName(
            f"no layer {one_line(name, 80)!r} in {called or type(module).__name__}{near or _top(module)}",
            code="unknown_name.layer",
        )
    if match["split"] is None:
        return Point(path, into=True, split=None)
    parent = modules.get(path.rpartition(".")[0])
    scale = getattr(parent, "scale", None)
    if not isinstance(scale, int) or not path.endswith("conv3"):
        raise UnknownName(
            f"{name!r} asks for one split, but {path!r} is not the last convolution of a Res2Net block; "
            "splits are named like 'layer3.2.conv3_in[1]'",
            code="unknown_name.layer",
        )
    split = int(match["split"])
    if split >= scale:
        raise UnknownName(
            f"no split {split} in {path!r}: the block has scale {scale}, so splits 0 to {scale - 1}",
            code="unknown_name.layer",
        )
    return Point(path, into=True, split=split, splits=scale)


def _has(module: nn.Module, name: str) -> bool:
    """Whether a part of that name exists: by steps, since listing all takes a small network as long as a block."""
    part: nn.Module | None = module if name else None
    for step in name.split("."):
        part = part._modules[step] if part is not None and step in part._modules else None
    return part is not None


def _top(module: nn.Module) -> str:
    names = [name for name, _ in module.named_children()]
    return f"; its top-level parts are {', '.join(names[:12])}" if names else ""


def lock(module: nn.Module) -> Any:
    """The one re-entrant lock of this very module: hooks and flags of a network are changed by one thread at a time."""
    with _locks_guard:
        return _locks.setdefault(module, threading.RLock())


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode with no parameter requiring gradients; flags and modes are as before afterwards.

    `.grad` is never touched. With frozen parameters autograd builds no graph below the first tapped tensor.
    """
    modes = [(part, part.training) for part in module.modules() if part.training]
    wanting = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for part, _ in modes:
            part.training = False
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


@contextmanager
def tap(module: nn.Module, names: Sequence[str], *, differentiable: bool = False) -> Iterator[dict[str, Tensor]]:
    """Look at named points during the one forward pass inside this block.

    Yields a dict that the forward pass fills with `{name: (N, C, H, W)}`, unsliced for single splits (`Point.part`
    cuts them, so that a gradient can be taken with respect to what was really computed with). What is kept is never
    what flows on, nor what the caller still holds (an input, or the output of an `nn.Identity`): an in-place
    operation further down, or `x += block(x)`, would overwrite it.

    With `differentiable=True` a tensor that needs no gradient becomes a leaf that does, so that the graph begins
    there.

    Raises:
        UnknownName: a name that the network does not have.
        TapError: a point was not passed (say, in a compiled network), was passed twice, or gives no feature map.
    """
    points = {name: point(module, name) for name in names}
    sources: dict[tuple[str, bool], list[str]] = {}
    for name, where in points.items():
        sources.setdefault((where.path, where.into), []).append(name)
    taken: dict[str, Tensor] = {}
    owner = threading.get_ident()

    def keep(tapped: list[str], value: object, *, shared: bool) -> Tensor:
        if tapped[0] in taken:
            raise TapError(
                f"{tapped[0]!r} is called more than once in a forward pass, so it does not name one feature map; "
                "tap a module that is called once (the splits of a Res2Net block are split0, split1, …)",
                code="tap.twice",
            )
        if not isinstance(value, Tensor) or value.ndim != 4:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TapError(
                f"{tapped[0]!r} gives {shape}, not a feature map (N, C, H, W); choose a convolutional layer",
                code="tap.not_a_map",
            )
        if differentiable and not value.requires_grad:
            value = value.detach()
        if shared:
            value = value.clone()
        if differentiable:
            value.requires_grad_(True)
        taken.update(dict.fromkeys(tapped, value))
        return value.clone()

    def after(tapped: list[str]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if threading.get_ident() != owner:
                return None
            return keep(tapped, output, shared=any(_same_memory(output, given) for given in args))

        return hook

    def before(tapped: list[str]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            if threading.get_ident() != owner:
                return None
            return (keep(tapped, args[0] if args else None, shared=True), *args[1:])

        return hook

    with ExitStack() as stack:
        for (path, into), tapped in sources.items():
            part = module.get_submodule(path)
            handle = (
                part.register_forward_pre_hook(before(tapped)) if into else part.register_forward_hook(after(tapped))
            )
            stack.callback(handle.remove)
        yield taken
    missing = [name for name in names if name not in taken]
    if missing:
        raise TapError(
            f"the forward pass never reached {missing[0]!r}: hooks do not fire inside compiled or scripted parts, "
            "nor in layers that forward() skips; tap the original module",
            code="tap.silent",
        )


def _same_memory(output: object, given: object) -> bool:
    if not isinstance(output, Tensor) or not isinstance(given, Tensor):
        return False
    return output.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()


def unwrapped(module: nn.Module) -> nn.Module:
    """The plain network behind the wrappers of `torch.compile` and of data parallelism.

    Hooks placed on the parts of a compiled network would never fire; `DataParallel` calls copies of the network, whose
    taps nobody reads.
    """
    while True:
        original = getattr(module, "_orig_mod", None)
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            original = module.module
        if not isinstance(original, nn.Module):
            return module
        module = original


def device_of(module: nn.Module) -> torch.device:
    """Where the first parameter or buffer lives; the CPU for a network with neither."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
