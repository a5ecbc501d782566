"""Weights saved by PaddlePaddle: a pickle of NumPy arrays, read without giving the pickle anything to call.

What a pickle names is looked up among a handful of stand-ins that only remember what they were given. NumPy's own
constructors are not among them: with hostile arguments they can be made to read memory that is not theirs.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class _Inert:
    """A stand-in; that `__setstate__` exists keeps a pickle from setting attributes of the class itself."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert):
    """For `numpy.ndarray` and its `_reconstruct`: the state is (version, shape, dtype, Fortran order, bytes)."""


class _Dtype(_Inert):
    """For `numpy.dtype`: called with its code; the state's second entry is the byte order."""


class _Bytes(_Inert):
    """For `_codecs.encode`, by which old pickles spell bytes, and for `bytes`, called with nothing for none."""

    def __new__(cls, text: Any = "", encoding: Any = "latin1") -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("bytes that are not spelt as NumPy spells them")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("collections", "OrderedDict"): dict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not read")
        return _NAMES[module, name]


def read(path: Path) -> Any:
    """What `paddle.save` wrote, with tensors on the CPU for arrays. Each array is copied once and then let go of.

    Raises:
        pickle.UnpicklingError: the pickle names something to call; the message begins with `GLOBAL` and the name.
        Exception: any other, for a file that is cut or damaged.
    """
    with path.open("rb") as file:
        found = _Reader(file).load()
    if not isinstance(found, dict):
        return found
    for key in list(found):
        value = found[key]
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
            value = value[1]  # a tensor that was saved with its name
        if isinstance(value, _Array):
            found[key] = None
            found[key] = _tensor(value)
    return found


def _tensor(array: _Array) -> torch.Tensor:
    import numpy as np
    import torch

    _, shape, dtype, fortran, data = array.state
    code, order = dtype.given[0], dtype.state[1] if dtype.state else "="
    if isinstance(data, str):
        data = data.encode("latin1")
    if not (
        isinstance(code, str)
        and re.fullmatch("[fiu][1248]|b1", code)
        and order in ("<", ">", "=", "|")
        and isinstance(data, bytes)
        and isinstance(shape, tuple)
        and all(type(size) is int and size >= 0 for size in shape)
        and math.prod(shape) * int(code[1]) == len(data)
    ):
        raise ValueError("an array whose size, kind and content do not go together")
    values = np.frombuffer(data, np.dtype(order + code)).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C", copy=True))
