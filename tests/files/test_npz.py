"""NumPy archives: the same bytes, bfloat16, and files that are none."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest

from spdexport.errors import ExampleInputError, MaskError
from spdexport.files.npz import read_npz, write_npz


def test_bfloat16_comes_back_and_nothing_else_changes(tmp_path):
    arrays = {
        "file": np.arange(3, dtype=np.float32),
        "x": np.array([1.5, -2, np.inf], ml_dtypes.bfloat16),
        "n": np.array(7),
    }
    write_npz(tmp_path / "a.npz", arrays, {"edge": "export"})
    found = dict(read_npz(tmp_path / "a.npz"))
    assert {name: value.dtype for name, value in found.items()} == {n: a.dtype for n, a in arrays.items()}
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert json.loads(archive.comment) == {"edge": "export", "bfloat16": ["x"]}


@pytest.mark.parametrize("comment", [b"", b"{", b"[1]", b'{"bfloat16": 3}', b'{"bfloat16": ["n", 4]}', b"\xff"])
def test_other_comments_mean_nothing(tmp_path, comment):
    np.savez(tmp_path / "a.npz", n=np.arange(3), x=np.ones(2, np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.comment = comment
    assert [value.dtype for value in dict(read_npz(tmp_path / "a.npz")).values()] == [np.int64, np.float32]


def test_what_would_need_a_pickle_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", ok=np.ones(1), bad=np.array([{}], dtype=object))
    with pytest.raises(MaskError, match="'bad' is not a tensor: it holds Python objects"):
        dict(read_npz(tmp_path / "a.npz", error=MaskError))


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(2))
    with pytest.raises(ExampleInputError, match=r"a NumPy array \(\.npy\), not a NumPy archive"):
        dict(read_npz(tmp_path / "a.npy"))
