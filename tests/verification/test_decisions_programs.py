"""What torch has and ONNX has not, or tells otherwise: buckets, places, quantizers, pixels, floats of a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers its operators
from torch import nn
from torch.nn import functional

from spdexport import pipeline
from spdexport.reference.decisions import Decision, Judged, Noises
from spdexport.reference.decisions_table import RULES
from spdexport.verification import recipes
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

decomposed = torch.ops.quantized_decomposed
BORDERS = torch.linspace(-1, 1, 9)
N = 96
SCALES, ZEROS = torch.full((N,), 0.1), torch.zeros(N, dtype=torch.int64)


class Near(nn.Module):
    """A linear layer whose results are as near to a target as float32 can tell, and what is chosen of them."""

    def __init__(self, choose: Callable[[torch.Tensor], torch.Tensor], target: list[float], x: torch.Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.choose, self.head = choose, nn.Linear(64, N)
        wanted = torch.tensor(target, dtype=torch.float64).repeat(N)[:N]
        with torch.no_grad():
            product = x.double() @ self.head.weight.double().T
            self.head.bias.copy_((wanted - product[0]).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self.head(x))


def through_integers(z: torch.Tensor) -> torch.Tensor:
    limits = (0.1, 3, -128, 127, torch.int8)
    return decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(z, *limits), *limits)


def through_integers_of_channels(z: torch.Tensor) -> torch.Tensor:
    limits = (SCALES, ZEROS, 1, -128, 127, torch.int8)
    return decomposed.dequantize_per_channel(decomposed.quantize_per_channel(z, *limits), *limits)


PROGRAMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[float], str]] = {
    # What is chosen, what it is near, and the operator that says so.
    "nonzero": (lambda z: torch.nonzero(torch.relu(z)), [0.0, 1.0], "NonZero node nonzero"),
    "bucketize": (lambda z: torch.bucketize(z, BORDERS), [0.25, 0.5, -0.5], "Bucketize node bucketize"),
    "bucketize, right": (lambda z: torch.bucketize(z, BORDERS, right=True), [0.25, -0.5], "Bucketize node bucketize"),
    "fake quantizer": (
        lambda z: torch.fake_quantize_per_tensor_affine(z, 0.1, 2, -128, 127), [0.05, 0.15, -0.25], "FakeQuantize node",
    ),
    "fake quantizer of channels": (
        lambda z: torch.fake_quantize_per_channel_affine(z, SCALES, ZEROS.int(), 1, -128, 127), [0.05, 0.15, -0.25],
        "FakeQuantize node",
    ),
    "quantizer": (through_integers, [0.05, 0.15, -0.25], "QuantizeLinear node quantize_per_tensor"),
    "quantizer of channels": (
        through_integers_of_channels, [0.05, 0.15, -0.25], "QuantizeLinear node quantize_per_channel",
    ),
    "float8": (lambda z: z.to(torch.float8_e5m2).float(), [1.125, -2.25, 3.25], "Cast node to"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.sampled(3)
def test_what_torch_chooses_within_rounding_is_followed(name: str, tmp_path: Path) -> None:
    choose, target, words = PROGRAMS[name]
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    found = pipeline.convert(Near(choose, target, x), tmp_path / "m.onnx", inputs=(x,)).verification
    assert found is not None
    assert found.verdict is Status.PASS, [edge.reason for edge in found.edges]
    capture = next(edge for edge in found.edges if edge.edge == "capture")
    assert "within rounding followed: " in capture.reason
    assert words in capture.reason


PIXELS = {
    "to a size": {"size": 99},
    "by a scale": {"scale_factor": 1.7},
    "half pixels": {"size": 99, "mode": "nearest-exact"},
    "half pixels, by a scale": {"scale_factor": 2.3, "mode": "nearest-exact"},
}


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.sampled(2)
def test_pixels_of_torch_are_those_of_its_file(name: str, tmp_path: Path) -> None:
    def choose(z: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(z.reshape(1, 2, N // 2), **PIXELS[name])

    x = torch.randn(1, 64)
    found = pipeline.convert(Near(choose, [1.0, 2.0], x), tmp_path / "m.onnx", inputs=(x,)).verification
    assert found is not None
    assert found.verdict is Status.PASS, [edge.reason for edge in found.edges]


def judged(op: str, inputs: list[Any], right: Any, got: Any, noise: float, **attributes: Any) -> Judged:
    """How a rule judges a choice, where the first input has some noise and the others are exact."""
    arrays = tuple(np.asarray(value) for value in inputs)
    node = Decision(
        op=op,
        name="n",
        inputs=arrays,
        outputs=(np.asarray(right),),
        output_names=("q",),
        attributes=attributes,
        compute=lambda _: [np.asarray(right)],
    )
    noises = tuple(
        np.full(array.shape, noise if index == 0 else 0.0) if array.dtype.kind == "f" else None
        for index, array in enumerate(arrays)
    )
    rule = RULES[op]
    assert rule.chooses(node)
    return rule.judge(node, rule.choice(node, [np.asarray(got)]), Noises(inputs=noises, rounding=0.0))


CHOICES: dict[str, tuple[str, list[Any], Any, Any, float, dict[str, Any]]] = {
    # The operator, its inputs, what float64 chooses, what is chosen, and how far that is.
    "bucket": ("Bucketize", [[0.26], [0.0, 0.25, 0.5]], [2], [1], 0.01, {}),
    "first bucket": ("Bucketize", [[0.01], [0.0, 0.25, 0.5]], [1], [0], 0.01, {}),
    "last bucket": ("Bucketize", [[0.49], [0.0, 0.25, 0.5]], [2], [3], 0.01, {}),
    "rows of borders": ("Bucketize", [[[0.24]], [[0.0, 0.25]]], [[1]], [[2]], 0.01, {}),
    "fake step": ("FakeQuantize", [[0.16], [0.1], [0]], [0.2], [0.1], 0.01, {"low": -8, "high": 7}),
    "narrow range": (
        "QuantizeLinear", [[0.74], 0.1, np.int8(0)], np.int8([7]), np.int8([8]), np.inf, {"low": 0, "high": 7},
    ),
    "nonzero": ("NonZero", [[0.0, 0.01]], [[1]], np.zeros((1, 0), int), 0.01, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_a_margin_is_measured(name: str) -> None:
    op, inputs, right, got, margin, attributes = CHOICES[name]
    assert not judged(op, inputs, right, right, 1.0, **attributes).wrong.any()
    if np.isfinite(margin):
        assert not judged(op, inputs, right, got, margin * 1.01, **attributes).wrong.any()
    found = judged(op, inputs, right, got, min(margin, 1e9) * 0.99, **attributes)
    assert found.wrong.all()
    if np.isfinite(margin):
        assert found.noises / found.margins == pytest.approx(0.99)


@pytest.mark.parametrize("bucket", [-1, 4])
def test_a_bucket_that_is_none_is_a_fault(bucket: int) -> None:
    assert judged("Bucketize", [[0.3], [0.0, 0.25, 0.5]], [2], [bucket], 9.0).fault == "a bucket is out of range"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])
def test_each_value_of_a_float_of_a_byte_has_its_interval(dtype: str) -> None:
    import ml_dtypes

    small = np.dtype(getattr(ml_dtypes, dtype))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(500), 10.0 ** rng.uniform(-6, 2, 500)])
    right = x.astype(small)
    assert not judged("Cast", [x], right, right.astype(np.float64), 0.0).places.size
    steps = np.abs(right.astype(np.float64)) * 0.13 + 1e-3
    other = (x + steps).astype(small)
    found = judged("Cast", [x], right, other.astype(np.float64), 0.0)
    assert found.wrong.sum() == (other != right).sum()
    assert not judged("Cast", [x], right, np.nextafter(right, small.type(100)).astype(np.float64), 1e9).wrong.any()
    assert judged("Cast", [x], right, right.astype(np.float64) + 1e-9, 1e9).wrong.all(), "no such values are there"
