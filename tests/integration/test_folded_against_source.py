"""What was converted, then folded, is still the model that it was converted from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from spdexport import Status, UsageError, convert, fold, verify

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS = Path(__file__).parents[2] / "examples/01_digits"
MASKS = DIGITS / "run/fixed_masks.safetensors"
NETS = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(12, 5, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).eval()
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path / 'nets.py'}:make"


def both(tmp_path: Path, made: Callable[[Path], object]) -> Path:
    """The folded file of what ``made`` converts."""
    made(tmp_path / "a.onnx")
    assert fold(tmp_path / "a.onnx", tmp_path / "b.onnx").verdict is Status.PASS
    return tmp_path / "b.onnx"


def test_exact_svd(tmp_path: Path, factory: str) -> None:
    shape = {"factory": factory, "input_shape": "2x3x16x16"}
    folded = both(tmp_path, lambda path: convert(None, path, verify=False, **shape))
    result = verify(folded, **shape)
    assert result.verdict is Status.PASS, result.edges
    assert not {node.op_type for node in onnx.load(folded).graph.node} & {"Mul"}


def test_a_weight_that_is_off_is_still_found(tmp_path: Path, factory: str) -> None:
    shape = {"factory": factory, "input_shape": "2x3x16x16"}
    folded = both(tmp_path, lambda path: convert(None, path, verify=False, **shape))
    model = onnx.load(folded)
    tensor = next(t for t in model.graph.initializer if t.name == "3.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folded)
    (edge,) = (e for e in verify(folded, **shape).edges if e.edge == "weights")
    assert edge.status is Status.FAIL
    assert edge.first_divergence == "3"


@pytest.mark.long
def test_an_spd_run_with_masks(tmp_path: Path) -> None:
    source = {"factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", "input_shape": "2x1x16x16"}
    folded = both(tmp_path, lambda path: convert(DIGITS / "run", path, verify=False, masks=MASKS, **source))
    assert verify(folded, against=DIGITS / "run", masks=MASKS, **source).verdict is Status.PASS
    with pytest.raises(UsageError, match="was made with masks, and they are not given"):
        verify(folded, against=DIGITS / "run", **source)


def test_masks_on_singular_components(tmp_path: Path, factory: str) -> None:
    shape = {"factory": factory, "input_shape": "2x3x16x16"}
    save_file({"9": torch.tensor([1.0, 0.0, 0.5, 0.0])}, tmp_path / "masks.safetensors")
    masked = {"masks": tmp_path / "masks.safetensors", **shape}
    folded = both(tmp_path, lambda path: convert(None, path, verify=False, **masked))
    assert verify(folded, **masked).verdict is Status.PASS
    save_file({**load_file(tmp_path / "masks.safetensors"), "9": torch.ones(4)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="other masks"):
        verify(folded, masks=tmp_path / "other.safetensors", **shape)


def test_an_onnx_source(tmp_path: Path, factory: str) -> None:
    dense = tmp_path / "dense.onnx"
    convert(None, dense, verify=False, form="dense", factory=factory, input_shape="2x3x16x16")
    model = onnx.load(dense)
    del model.metadata_props[:]
    onnx.save(model, dense)
    folded = both(tmp_path, lambda path: convert(dense, path, verify=False))
    assert verify(folded, against=dense).verdict is Status.PASS
