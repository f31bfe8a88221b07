"""Every kind of convolution through convert (exact SVD) and fold: verified, or left alone with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import spdexport
from spdexport.errors import CaptureError
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X1, X2, X3 = (3, 4, 9), (3, 4, 9, 8), (2, 4, 5, 6, 5)

pytestmark = pytest.mark.long


class StandardizedConv(nn.Conv2d):
    """Weight standardization, as in Big Transfer: the weight is an expression of the parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        scale = self.weight.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5
        return self._conv_forward(x, (self.weight - mean) * scale.rsqrt(), self.bias)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight + weight.flip(-1)) / 2


def parametrized() -> nn.Module:
    layer = nn.Conv2d(4, 6, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


class Shared(nn.Module):
    """One parameter as the weight of two convolutions, of a linear layer, and in an expression."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(functional.conv2d(x, self.weight, self.bias * 2))
        y = torch.relu(functional.conv2d(y, self.weight, dilation=2, stride=2))
        return functional.linear(y.mean((2, 3)), self.weight[:, :, 0, 0], self.bias) + self.weight.sum()


class Twice(nn.Module):
    """One convolution called twice, and a submodule under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.other = self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(torch.relu(self.one(torch.relu(self.conv(torch.relu(self.conv(x)))))))


class Transposed1D(nn.Module):
    """Hugging Face's ``Conv1D``: a linear layer that stores the transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        return torch.addmm(self.bias, x.reshape(-1, 4), self.weight).view(*x.shape[:-1], 6)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), X1, 1),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 0), groups=2, dilation=(1, 2)),
        X2,
        1,
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, bias=False), X3, 1),
    "kernel of the whole input": (lambda: nn.Conv2d(4, 6, (9, 8)), X2, 1),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), X2, 1),
    "strides that differ": (lambda: nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 3, 2), padding=(0, 1, 1), groups=2), X3, 1),
    "same, even kernel, dilation": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1)), X2, 1),
    "valid": (lambda: nn.Conv1d(4, 6, 3, padding="valid", bias=False), X1, 1),
    **{
        mode: (lambda mode=mode: nn.Conv2d(4, 6, (3, 2), padding=(1, 2), padding_mode=mode), X2, 1)
        for mode in ("reflect", "replicate", "circular")
    },
    "circular, same": (lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), X1, 1),
    "weight norm": (lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3)), X2, 1),
    "old weight norm": (lambda: weight_norm(nn.Conv2d(4, 6, 3)), X2, 1),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), X2, 1),
    "old spectral norm": (lambda: spectral_norm(nn.Conv2d(4, 6, 3)), X2, 1),
    "parametrization": (parametrized, X2, 1),
    "weight standardization": (lambda: StandardizedConv(4, 6, 3), X2, 1),
    "one weight, several layers": (Shared, X2, 3),
    "called twice, two names": (Twice, X2, 4),
    "a stored transpose": (Transposed1D, X1, 1),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_it_is_decomposed_verified_and_folded(name: str, tmp_path: Path) -> None:
    make, shape, layers = CASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(make()).eval()
    x = torch.randn(shape)
    result = spdexport.convert(model, [tmp_path / "a.onnx", tmp_path / "a.pt2"], inputs=x)
    assert result.verdict is Status.PASS
    assert [layer.form for layer in result.plan.layers] == ["factorized"] * layers
    assert result.plan.skipped == ()
    for ending in (".onnx", ".pt2"):
        folded = spdexport.fold(tmp_path / f"a{ending}", tmp_path / f"b{ending}")
        assert folded.verdict is Status.PASS
        assert len(folded.folded) == layers
        assert folded.declined == ()


@pytest.mark.slow
def test_a_padding_mode_stays_in_front_of_v(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    program = spdexport.factorize(model, inputs=torch.randn(X2))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls[-2:] == ["aten.conv2d.default"] * 2
    assert "conv" not in "".join(calls[:-2])
    assert calls[:-2]


class Quantized(nn.Module):
    """A weight of eight bits with its scale, which is a constant expression of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 127, (6, 4, 3, 3), dtype=torch.int8))
        self.conv = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(functional.conv2d(x, self.weight.float() * 0.01)))


@pytest.mark.slow
def test_a_weight_that_is_dequantized_is_decomposed(tmp_path: Path) -> None:
    result = spdexport.convert(Quantized(), [tmp_path / "a.onnx"], inputs=torch.randn(X2))
    assert result.verdict is Status.PASS
    assert [layer.form for layer in result.plan.layers] == ["factorized"] * 2


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_module_is_refused_by_its_name() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(252, 5))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(CaptureError, match=r"The layer 2 is quantized \(Linear\)"):
        spdexport.inspect(quantized, inputs=torch.randn(X2))


@pytest.mark.slow
def test_depthwise_layers_are_left_alone_with_their_reason(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, groups=4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4),
    )  # fmt: skip
    result = spdexport.convert(model, [tmp_path / "a.onnx"], inputs=torch.randn(X2))
    assert result.verdict is Status.PASS
    one, other, multiplied = result.plan.layers
    assert one.form == other.form == "dense"
    assert one.reason == other.reason == "each group's weight is of rank one already, so V and U have nothing to gain"
    assert (multiplied.form, multiplied.components) == ("factorized", 2)
