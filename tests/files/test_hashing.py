import hashlib

import torch

from spdexport.files import hashing
from spdexport.files.hashing import sha256_file, sha256_tensors


def test_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_order_and_strides_make_no_difference():
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(True)
    assert sha256_tensors({"a": a, "b": b}) == sha256_tensors({"b": b, "a": a.T.contiguous().T})


def test_name_dtype_shape_and_content_make_a_difference():
    a = torch.zeros(2, 3)
    changed = a.clone()
    changed[1, 2] = 1
    variants = [
        {"a": a}, {"b": a}, {"a": a.reshape(3, 2)}, {"a": a.int()}, {"a": a.bfloat16()}, {"a": changed}, {},
        {"a": torch.zeros(0)}, {"a": torch.zeros(())}, {"a": a, "b": a},
    ]  # fmt: skip
    assert len({sha256_tensors(v) for v in variants}) == len(variants)


def test_pieces_do_not_change_the_hash(monkeypatch):
    tensors = {"a": torch.arange(1000)}
    whole = sha256_tensors(tensors)
    monkeypatch.setattr(hashing, "_CHUNK", 7)
    assert sha256_tensors(tensors) == whole
