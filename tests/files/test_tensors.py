import json
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from spdexport.errors import ComponentsError, MaskError, PickleRefusedError
from spdexport.files.tensors import read_tensors


def _read(path):
    return read_tensors(path, error=MaskError)


def test_safetensors_npz_and_torch_give_the_same(tmp_path):
    tensors = {"a.V": torch.randn(2, 3), "b": torch.arange(3), "c": torch.tensor(True)}
    safetensors.torch.save_file(tensors, tmp_path / "s")
    torch.save(OrderedDict(tensors), tmp_path / "z")
    torch.save(tensors, tmp_path / "p", _use_new_zipfile_serialization=False)
    with (tmp_path / "n").open("wb") as file:
        np.savez_compressed(file, **{name: t.numpy() for name, t in tensors.items()})
    for name in "szpn":
        read = _read(tmp_path / name)
        assert {k: (v.dtype, v.tolist()) for k, v in read.items()} == {
            k: (v.dtype, v.tolist()) for k, v in tensors.items()
        }


def test_json_lists(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"a": [1.0, 0.5], "b": [1, 0], "c": [True, False], "d": [[1.0], [2]]}))
    read = _read(tmp_path / "m.json")
    assert {k: (v.dtype, v.tolist()) for k, v in read.items()} == {
        "a": (torch.float32, [1.0, 0.5]),
        "b": (torch.int64, [1, 0]),
        "c": (torch.bool, [True, False]),
        "d": (torch.float32, [[1.0], [2.0]]),
    }


def test_bfloat16_and_big_endian_arrays(tmp_path):
    torch.save({"a": torch.ones(2).bfloat16()}, tmp_path / "b.pt")
    assert _read(tmp_path / "b.pt")["a"].dtype is torch.bfloat16
    np.savez(tmp_path / "e.npz", a=np.array([1.5, 2.0], dtype=">f4"), b=np.ones(2, dtype=ml_dtypes.bfloat16))
    with pytest.raises(MaskError, match="'b' is not a tensor"):  # npz drops the name of the dtype
        _read(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", a=np.array([1.5, 2.0], dtype=">f4"))
    assert _read(tmp_path / "f.npz")["a"].tolist() == [1.5, 2.0]


def test_nested_names_are_refused(tmp_path):
    torch.save({"layer": {"V": torch.ones(2)}}, tmp_path / "n.pt")
    with pytest.raises(ComponentsError, match="'layer' is a dict") as caught:
        read_tensors(tmp_path / "n.pt", error=ComponentsError)
    assert "layer.V" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [1, [2]]}', "'a' is not a tensor"),
        ('{"a": "text"}', "'a' is not a tensor"),
        ('{"a": ["x"]}', "'a' is not a tensor"),
        ('{"a": [null]}', "'a' is not a tensor"),
        ("[1, 2]", "holds a list, not tensors by name"),
        ('{"a": [1', "damaged"),
    ],
)
def test_bad_json(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(MaskError, match=message) as caught:
        _read(tmp_path / "m.json")
    assert str(caught.value).count("\n") == 2


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([{}], dtype=object))
    with pytest.raises(MaskError, match="'a' is not a tensor"):
        _read(tmp_path / "o.npz")


def test_damaged_safetensors(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(100)}, tmp_path / "s")
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-40])
    with pytest.raises(MaskError, match="damaged"):
        _read(tmp_path / "s")


def test_other_kinds_and_missing_files(tmp_path):
    (tmp_path / "t").write_text("hello")
    with pytest.raises(MaskError, match="cannot be read from a file of unknown kind"):
        _read(tmp_path / "t")
    with pytest.raises(MaskError, match="cannot be read from a directory"):
        _read(tmp_path)
    with pytest.raises(MaskError, match="no such file"):
        _read(tmp_path / "none")


def test_pickled_objects_are_refused(tmp_path):
    torch.save({"a": torch.nn.ReLU()}, tmp_path / "m.pt")
    with pytest.raises(PickleRefusedError, match="ReLU"):
        _read(tmp_path / "m.pt")
