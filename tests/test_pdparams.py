from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from r2viz.errors import BadWeights
from r2viz.models import pdparams
from r2viz.models.weights import read

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "double": np.array([1 / 3]),
    "count": np.array(7, dtype=np.int64),
    "byte": np.array([1, 255], dtype=np.uint8),
    "flag": np.array([True, False]),
    "none": np.zeros((0, 3), dtype=np.float32),
}


@pytest.fixture
def written(tmp_path):
    def write(found, protocol=4):
        path = tmp_path / "x.pdparams"
        path.write_bytes(found if isinstance(found, bytes) else pickle.dumps(found, protocol))
        return path

    return write


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_back_as_tensors(written, protocol):
    found = read(written({**ARRAYS, "StructuredToParameterName@@": {"conv.weight": "conv2d_0.w_0"}}, protocol))
    assert found.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert torch.equal(found[key], torch.from_numpy(array)), key
        found[key].zero_()  # memory of its own, which may be written


def test_other_orders_of_bytes_and_of_axes(written):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read(written({"big": array.astype(">f4"), "fortran": np.asfortranarray(array), "view": array.T[:, :1]}))
    assert torch.equal(found["big"], torch.from_numpy(array))
    assert torch.equal(found["fortran"], torch.from_numpy(array))
    assert found["fortran"].is_contiguous()
    assert torch.equal(found["view"], torch.from_numpy(array.T[:, :1].copy()))


def test_ordered_dicts_wrappers_and_tensors_saved_with_their_names(written):
    array = ARRAYS["conv.weight"]
    found = read(written(OrderedDict(a=array, b=("linear_0.w_0", array))))
    assert list(found) == ["a", "b"]
    assert all(torch.equal(value, torch.from_numpy(array)) for value in found.values())


def test_names_of_older_numpy(written):
    content = pickle.dumps({"a": ARRAYS["conv.weight"]}, 4)
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert new in content
    content = content.replace(new, old)
    # One byte less in the frame, whose length stands behind the first opcode.
    length = struct.unpack("<Q", content[3:11])[0]
    content = content[:3] + struct.pack("<Q", length - 1) + content[11:]
    assert torch.equal(read(written(content))["a"], torch.from_numpy(ARRAYS["conv.weight"]))


# --- Hostile files ---------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function` with `given`."""

    def __init__(self, function, *given):
        self.function, self.given = function, given

    def __reduce__(self):
        return self.function, self.given


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"a": evil}, lambda evil: {**ARRAYS, "z": (evil,)}])
def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(written, tmp_path, place, protocol):
    ran = tmp_path / "ran"
    path = written(place(Calls(os.mkdir, str(ran))), protocol)
    with pytest.raises(BadWeights, match=r"refused: it is a pickle that would run code \(posix.mkdir\)|is no weights"):
        read(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # the payload is a real one


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (eval, ("1",)),  # PaddlePaddle itself pickles some tensors so
        (getattr, ("", "join")),
        (np.load, ("x.npy",)),
        (np.frombuffer, (b"1234",)),
        (codecs.open, ("x",)),
        (torch.tensor, (1,)),
        (io.FileIO, ("x",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_else_is_called_is_refused_too(written, function, given):
    with pytest.raises(
        BadWeights, match=r"is refused: it is a pickle that would run code \([\w.]+\); save the weights"
    ):
        read(written({"a": Calls(function, *given)}))


def test_a_pickled_state_dict_of_torch_is_refused_with_advice(written):
    with pytest.raises(
        BadWeights, match=r"would run code \(torch._utils._rebuild\w*\); save the weights alone, with torch.save"
    ):
        read(written({"fc.weight": torch.ones(2)}))


def _array_pickle(dtype=b"f4", order=b"<", shape=(2,), data=b"\0" * 8):
    """A pickle of {"a": array} whose parts need not go together."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    sizes = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in shape) + b"t"
    return (
        b"\x80\x03}" + text(b"a") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\0tC\x01b\x87R"
        b"(K\x01" + sizes + b"cnumpy\ndtype\n(" + text(dtype) + b"tR(K\x03" + text(order) + b"tb\x89"
        b"B" + struct.pack("<I", len(data)) + data + b"tbs."
    )


def test_the_forged_array_is_a_real_one_when_its_parts_go_together(written):
    assert torch.equal(read(written(_array_pickle()))["a"], torch.zeros(2))


@pytest.mark.parametrize(
    "parts",
    [
        {"dtype": b"O8"},  # bytes as addresses of objects: NumPy itself may follow them
        {"dtype": b"V8"},
        {"dtype": b"f4,O"},
        {"dtype": b"U2"},
        {"order": b"x"},
        {"shape": (3,)},
        {"shape": (1000000, 1000000, 1000000)},
        {"shape": (-1, -2)},
        {"shape": (2,), "data": b"\0" * 7},
    ],
    ids=str,
)
def test_arrays_whose_parts_do_not_go_together_are_refused(written, parts):
    with pytest.raises(
        BadWeights, match=r"is no whole PaddlePaddle file \(an array whose size, kind and content do not"
    ):
        read(written(_array_pickle(**parts)))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # sets an attribute of a stand-in's class
        b"\x80\x02cnumpy\nndarray\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cbuiltins\ntuple\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x02cnumpy\nndarray.__init__.__globals__\n.",  # a path through attributes
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.ctx\x93.",
        b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",  # bytes(2**31 - 1)
        b"\x80\x02P1\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02B\xff\xff\xff\x7f.",  # two gigabytes announced, none there
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02(" * 1000,
        b"\x80\x04.",
        b"\x80",
        b"\x80\xff.",
    ],
)
def test_hostile_opcodes_are_refused_and_change_nothing(written, content):
    before = {name: dict(vars(stand_in)) for name, stand_in in pdparams._NAMES.items() if stand_in not in (tuple, dict)}
    with pytest.raises(BadWeights) as caught:
        read(written(content))
    assert "\n" not in str(caught.value)
    assert before == {name: dict(vars(pdparams._NAMES[name])) for name in before}


def test_what_holds_no_weights(written):
    for found, text in [([1, 2], "holds a list; expected"), ({"epoch": 3}, r"holds no weights \(it holds epoch\)")]:
        with pytest.raises(BadWeights, match=text):
            read(written(found))
