import json
import math
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from results import worst

from spdexport.errors import UsageError
from spdexport.loading.inputs import inputs_from_file
from spdexport.report.repro import write_repro


def test_inputs_and_outputs_by_name(tmp_path):
    write_repro(worst(), tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as archive:
        assert sorted(archive) == ["output:y", "reference:y", "x"]
        assert archive["output:y"].dtype == np.float32
        assert archive["reference:y"].tolist() == [[1.0, 1.0, 1.0]]


def test_only_the_inputs_are_read_back(tmp_path):
    write_repro(worst(), tmp_path / "one.npz")
    one = inputs_from_file(tmp_path / "one.npz")
    assert len(one.args) == 1
    assert one.args[0].shape == (1, 2)
    two = {"ids": np.arange(4), "mask": np.array(0.5, np.float32)}
    write_repro(worst(inputs=two), tmp_path / "two.npz")
    read = inputs_from_file(tmp_path / "two.npz")
    assert read.args == ()
    assert torch.equal(read.kwargs["ids"], torch.arange(4))
    assert read.kwargs["mask"].shape == ()


@pytest.mark.parametrize("name", ["file", "a/b", "trust", "schicht.äöü"])
def test_names_of_every_kind(tmp_path, name):
    write_repro(worst(inputs={name: np.ones(2), "other": np.ones(3)}), tmp_path / "r.npz")
    assert set(inputs_from_file(tmp_path / "r.npz").kwargs) == {name, "other"}


def test_bfloat16_stays_bfloat16(tmp_path):
    values = np.array([1.5, math.inf], ml_dtypes.bfloat16)
    write_repro(worst(inputs={"x": values}), tmp_path / "r.npz")
    read = inputs_from_file(tmp_path / "r.npz").args[0]
    assert read.dtype is torch.bfloat16
    assert read.tolist() == [1.5, math.inf]


def test_the_comment_tells_where_it_comes_from(tmp_path):
    write_repro(worst(noise_ratio=math.inf), tmp_path / "r.npz")
    with zipfile.ZipFile(tmp_path / "r.npz") as archive:
        assert json.loads(archive.comment) == {
            "edge": "export", "provider": "cpu", "case": "normal, batch 1", "status": "fail", "noise_ratio": None,
        }  # fmt: skip


def test_the_same_finding_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_repro(worst(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="folder of the output does not exist"):
        write_repro(worst(), tmp_path / "no" / "r.npz")
