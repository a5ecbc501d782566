"""Weights: read from a file, fitted strictly into a module, and named by a digest."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r2viz.errors import BadWeights, nearest, one_line
from r2viz.models import pdparams
from r2viz.models.layouts import nearest_layout

if TYPE_CHECKING:
    import torch
    from torch import nn

# Where checkpoints keep the state dict (looked for in this order), and what wrappers put before its keys.
WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema", "ema_state_dict", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.")
# What a file of torch.save from before its zip archives begins with, behind a few bytes; other pickles lack it.
_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Weights:
    """What was loaded, for provenance; holds no tensors.

    Attributes:
        kind: where the weights came from.
        source: `"timm/res2net50_26w_4s.in1k@<commit>"`, a file's base name, `"random weights, seed 0"`, …
        sha256: of the file; for random weights the content `digest` of the state dict.
        note: what a caption should add, say `"head of 37 classes"`.
    """

    kind: Literal["hub", "file", "random", "embedded"]
    source: str
    sha256: str
    note: str = ""

    @property
    def random(self) -> bool:
        """Whether nothing was learnt: every output must say so."""
        return self.kind == "random"


# --- Files -----------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The state dict in a safetensors, PyTorch or PaddlePaddle file, on the CPU, as tensors of their own memory.

    What a checkpoint wraps around it (`{"state_dict": …}`, `{"model": …}`, their `_ema` kin when there is nothing
    else, the prefixes of `DataParallel` and `torch.compile`) is taken off. The kind of file is told by its content.
    Nothing is mapped into memory: a mapped file that a running training overwrites would kill the process.

    Args:
        path: the file.
        dtype: floating-point tensors become this, one after the other, so that a file of half precision does not
            stand beside its own copy in memory.

    Raises:
        BadWeights: missing, unreadable, damaged, no weights, or a pickle that would run code.
    """
    import torch

    path = Path(path)
    shown = one_line(str(path))
    begins = _beginning(path, shown)
    if path.suffix == ".safetensors" or begins[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: Any = load_file(path, backend="pread")
        except (SafetensorError, OSError, MemoryError, ValueError, OverflowError) as error:
            raise BadWeights(
                f"{shown} is no whole safetensors file ({_first_line(error)}); fetch it again, it may have been cut"
            ) from error
    elif begins[:2] == b"PK" or begins[:1] == b"\x80":
        found = _read_pickle(path, shown, paddle=begins[:1] == b"\x80" and _TORCH not in begins)
    else:
        raise BadWeights(
            f"{shown} is no weights file: it begins with {one_line(repr(begins[:16]))}; "
            "expected .safetensors or a state dict saved by torch.save"
        )
    state = _unwrap(found, shown)
    del found  # or what is cast would stay in memory
    for key in state if dtype is not None else ():
        if state[key].is_floating_point() and state[key].layout == torch.strided:
            state[key] = state[key].to(dtype)
    return state


def _beginning(path: Path, shown: str) -> bytes:
    if not path.exists():
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise BadWeights(f"no weights file {shown}{nearest(path.name, siblings) or '; check the path'}")
    if path.is_dir():
        raise BadWeights(f"{shown} is a folder; pass the .safetensors or .pth file in it")
    if not path.is_file():
        raise BadWeights(f"{shown} is no regular file; pass a .safetensors or .pth file")
    try:
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError as error:
        raise BadWeights(f"{shown} cannot be read ({error.strerror}); check its permissions") from error
    if not begins:
        raise BadWeights(f"{shown} is empty; fetch it again")
    if begins.startswith(b"version https://git-lfs"):
        raise BadWeights(f"{shown} is a Git LFS pointer, not the weights; run `git lfs pull` where it came from")
    return begins


def _read_pickle(path: Path, shown: str, paddle: bool) -> Any:
    import torch

    kind = "PaddlePaddle" if paddle else "PyTorch"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:  # torch.save compresses nothing
                raise BadWeights(
                    f"{shown} is refused: its {path.stat().st_size:,} bytes would become {unpacked:,}, and torch.save "
                    "compresses nothing; fetch it again from where you trust"
                )
        return pdparams.read(path) if paddle else torch.load(path, map_location="cpu", weights_only=True)
    except BadWeights:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"global (\S+) ", str(error))
        if asked is None:
            raise BadWeights(f"{shown} is no whole {kind} file ({_first_line(error)}); fetch it again") from error
        raise BadWeights(
            f"{shown} is refused: it is a pickle that would run code ({one_line(asked[1])}); save the weights alone, "
            "with torch.save(model.state_dict(), …) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file can make the reader raise anything
        raise BadWeights(f"{shown} is no whole {kind} file ({_first_line(error)}); fetch it again") from error


def _first_line(error: BaseException) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0], 120)


def _unwrap(found: Any, shown: str) -> dict[str, torch.Tensor]:
    import torch

    for _ in range(8):  # a pickle can hold itself
        inner = next(
            (key for key in WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None
        )
        if inner is None:
            break
        found = found[inner]
    if not isinstance(found, Mapping):
        raise BadWeights(f"{shown} holds a {type(found).__name__}; expected a state dict (names to tensors)")
    state = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not state:
        keys = one_line(", ".join(map(str, list(found)[:5])), 80) or "nothing"
        raise BadWeights(f"{shown} holds no weights (it holds {keys}); expected a state dict (names to tensors)")
    hollow = next((key for key, value in state.items() if _hollow(value)), None)
    if hollow is not None:
        raise BadWeights(
            f"{shown} is damaged: {one_line(hollow, 80)} has the shape {tuple(state[hollow].shape)} and fewer values; "
            "fetch it again"
        )
    state.pop("n_averaged", None)  # torch's AveragedModel counts beside "module."
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _hollow(tensor: torch.Tensor) -> bool:
    """Whether a tensor claims more values than it brought: a few bytes that whoever copies them makes gigabytes of."""
    import torch

    if tensor.layout != torch.strided:
        return False  # what a dense one takes is refused by `fit`
    return tensor.is_meta or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


# --- Into a module ---------------------------------------------------------------------------------------------------


def head_size(state: Mapping[str, torch.Tensor], head: str = "fc") -> int | None:
    """The number of classes of a state dict's head (a linear layer, or a 1x1 convolution), None if it has none."""
    weight = state.get(f"{head}.weight")
    return None if weight is None or weight.ndim < 2 else int(weight.shape[0])


def fit(module: nn.Module, state: Mapping[str, torch.Tensor], *, name: str, source: str) -> None:
    """Load `state` into `module`, in place: every key there, none over, every shape equal; or nothing is changed.

    Only `num_batches_tracked` may be missing (older files lack it; it does nothing in evaluation). Floating-point
    tensors of another precision are cast. A module on the meta device takes the tensors themselves, so that the
    weights exist once in memory; any other module copies them.

    Args:
        module: the network.
        state: what `read` gave.
        name: the network's name, for messages.
        source: the file's or repository's name, for messages.

    Raises:
        BadWeights: the keys, shapes or kinds differ, or a value is not finite.
    """
    import numpy as np
    import torch

    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    told = [
        f"{len(keys)} {what} ({one_line('; '.join(map(str, keys[:3])), 160)}{', …' if len(keys) > 3 else ''})"
        for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"))
        if keys
    ]
    if told:
        raise BadWeights(
            f"{source} does not fit {name}: keys {', '.join(told)}; {_hint(expected, state, missing, wrong)}"
        )
    filled: dict[str, torch.Tensor] = {}
    for key, value in expected.items():
        if key not in state:
            filled[key] = torch.zeros(value.shape, dtype=value.dtype)
            continue
        given = state[key].detach()
        if (
            given.layout != torch.strided
            or given.is_meta
            or (value.is_floating_point() and not given.is_floating_point())
        ):
            raise BadWeights(f"{source} does not fit {name}: {key} is {given.dtype}, expected {value.dtype}")
        filled[key] = given.to(value.dtype)
        if given.ndim == 2:
            filled[key] = filled[key].contiguous()  # a transposed classifier; other orders in memory do no harm
        # A sum is several times cheaper than isfinite().all(), and is finite only if every term is; NumPy's, since
        # handing hundreds of small tensors to torch's threads takes ten times as long on a busy machine.
        with np.errstate(all="ignore"):
            suspect = value.is_floating_point() and not np.isfinite(filled[key].float().cpu().numpy().sum())
        if suspect:
            bad = int((~filled[key].isfinite()).sum())
            if bad:
                raise BadWeights(
                    f"{source} holds {bad} values that are not finite numbers in {key} ({given.dtype}, {value.numel()} "
                    "values): the file is damaged or its training diverged; use another one"
                )
    module.load_state_dict(filled, strict=True, assign=any(value.is_meta for value in expected.values()))


def _hint(expected: Mapping[str, object], state: Mapping[str, object], missing: list[str], wrong: list[str]) -> str:
    def kind(keys: Mapping[str, object]) -> str:
        return "Res2Net" if any(".convs." in key for key in keys) else "ResNet"

    if not set(expected) & set(state):
        return f"nothing matches, it is another architecture's; {nearest_layout(state)}"
    if kind(expected) != kind(state):
        return f"these are a {kind(state)}'s weights, and {kind(expected)}'s were expected"
    head = ("fc.", "classifier.", "head.")
    if missing and all(key.startswith(head) for key in missing):
        return "the file has no classifier: use the one that the network was trained with as a classifier"
    if len(wrong) == sum(line.startswith(head) for line in wrong) > 0:
        return "only the head differs: build the network with the file's number of classes"
    return "choose the network that the file was made for"


# --- Digests ---------------------------------------------------------------------------------------------------------


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of a state dict's content: names in order, kinds, shapes, values; not of its layout in memory."""
    import torch

    total = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        total.update(f"{key}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
