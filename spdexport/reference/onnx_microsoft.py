"""Float operators of com.microsoft that ONNX Runtime's optimizer and exporters for it write, in float64.

Each is a formula of standard operators; what is not here is missing, and named so. ONNX Runtime writes
SimplifiedLayerNormalization in ONNX's own domain, which does not have it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from spdexport.reference.onnx_microsoft_quantized import Microsoft, named
from spdexport.reference.onnx_operators import erf
from spdexport.reference.onnx_windows import Conv, MaxPool
from spdexport.reference.unavailable import UndefinedFormError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array


def _activated(x: Array, name: str, given: Sequence[float]) -> Array:
    """One of the activations that ONNX Runtime fuses, with its parameters in order."""
    numbers: list[Any] = list(given)
    match name, len(numbers):
        case "", _:
            y = x
        case "Relu", _:
            y = np.maximum(x, 0)
        case "Sigmoid", _:
            y = 1 / (1 + np.exp(-x))
        case "Tanh", _:
            y = np.tanh(x)
        case "LeakyRelu", 1:
            y = np.where(x >= 0, x, numbers[0] * x)
        case "Clip", 2:
            y = np.clip(x, numbers[0], numbers[1])
        case "HardSigmoid", 2:
            y = np.clip(numbers[0] * x + numbers[1], 0, 1)
        case _:
            raise UndefinedFormError(f"the fused activation {name} with {len(numbers)} parameters")
    return np.asarray(y)


class FusedProduct(Microsoft):
    """A product, what is added to it, and an activation."""

    @property
    def has_activation(self) -> bool:
        """Whether there is a function behind the sums."""
        return bool(self.attribute("activation", ""))

    @abstractmethod
    def before(self, *inputs: Any) -> Array:
        """Compute what the activation reads."""

    @abstractmethod
    def size(self, *inputs: Any) -> Array:
        """Compute the sums of the magnitudes of all that is added up."""

    @abstractmethod
    def terms(self, *inputs: Any) -> int:
        """Count the products in each sum."""

    def activated(self, x: Array) -> Array:
        """Apply the activation."""
        return _activated(x, self.attribute("activation", ""), self.attribute("activation_params", ()))

    def _run(self, *inputs: Any, **_: Any) -> tuple[Array, ...]:
        return (self.activated(self.before(*inputs)),)


def _magnitudes(inputs: Sequence[Any]) -> list[Any]:
    return [None if value is None else np.abs(value) for value in inputs]


class FusedConv(FusedProduct):
    """A convolution, a sum with a fourth input, and an activation."""

    def before(self, x: Array, w: Array, b: Array | None = None, z: Array | None = None) -> Array:
        """Compute the convolution and the sum."""
        names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        (y,) = Conv(self.onnx_node, self.run_params)._run(x, w, b, **{n: self.attribute(n, None) for n in names})
        return y if z is None else y + z

    def size(self, *inputs: Any) -> Array:
        """Compute both of magnitudes."""
        return self.before(*_magnitudes(inputs))

    def terms(self, x: Array, w: Array, *_: Any) -> int:  # noqa: ARG002 - those of all products
        """Count the weights of one filter."""
        return int(w.size // max(w.shape[0], 1))


class FusedGemm(FusedProduct):
    """A Gemm and an activation."""

    def before(self, a: Array, b: Array, c: Array | None = None) -> Array:
        """Compute the Gemm."""
        return self._product(a, b, c, self.attribute("alpha", 1.0), self.attribute("beta", 1.0))

    def size(self, *inputs: Any) -> Array:
        """Compute it of magnitudes, its two factors among them."""
        a, b, *c = _magnitudes(inputs)
        alpha, beta = abs(self.attribute("alpha", 1.0)), abs(self.attribute("beta", 1.0))
        return self._product(a, b, c[0] if c else None, alpha, beta)

    def terms(self, a: Array, *_: Any) -> int:
        """Count the columns of the first matrix."""
        return int(a.shape[0 if self.attribute("transA", 0) else -1])

    def activated(self, x: Array) -> Array:
        """Apply the activation, whose parameters have attributes of their own."""
        found = [self.attribute(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]
        return _activated(x, self.attribute("activation", ""), [v for v in found if v is not None])

    def _product(self, a: Array, b: Array, c: Array | None, alpha: float, beta: float) -> Array:
        a = a.T if self.attribute("transA", 0) else a
        b = b.T if self.attribute("transB", 0) else b
        return np.asarray(alpha * (a @ b) if c is None else alpha * (a @ b) + beta * c)


class FusedMatMul(FusedProduct):
    """A matrix product of transposed stacks, times a number."""

    def before(self, a: Array, b: Array) -> Array:
        """Compute it."""
        return np.asarray(self.attribute("alpha", 1.0) * (self._turned(a, "A") @ self._turned(b, "B")))

    def size(self, *inputs: Any) -> Array:
        """Compute it of magnitudes."""
        return np.abs(self.before(*_magnitudes(inputs)))

    def terms(self, a: Array, *_: Any) -> int:
        """Count the columns of the first matrix."""
        return int(self._turned(a, "A").shape[-1])

    def _turned(self, x: Array, side: str) -> Array:
        if self.attribute(f"transBatch{side}", 0):
            # The first axis stands where the rows are.
            x = np.moveaxis(x, 0, -2)
        turned = self.attribute(f"trans{side}", 0) and x.ndim > 1
        return np.asarray(np.swapaxes(x, -1, -2) if turned else x)


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


class _Gelu(Microsoft):
    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        return (_gelu(x),)


class BiasGelu(Microsoft):
    """Gelu of a sum."""

    def _run(self, x: Array, bias: Array, **_: Any) -> tuple[Array, ...]:
        return (_gelu(x + bias),)


class FastGelu(Microsoft):
    """Gelu by its approximation with tanh, whose constants have these few digits."""

    def _run(self, x: Array, bias: Array | None = None, **_: Any) -> tuple[Array, ...]:
        x = x if bias is None else x + bias
        return (0.5 * x * (1 + np.tanh(0.7978845608028654 * x + 0.035677408136300125 * x**3)),)


class QuickGelu(Microsoft):
    """``x * sigmoid(alpha x)``."""

    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        return (x / (1 + np.exp(-self.attribute("alpha", 1.702) * x)),)


class Inverse(Microsoft):
    """The inverses of square matrices."""

    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        return (np.linalg.inv(x),)


class NhwcMaxPool(Microsoft):
    """Maximum pooling of values with the channels last."""

    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        names = ("kernel_shape", "auto_pad", "ceil_mode", "dilations", "pads", "strides")
        settings = {n: self.attribute(n, None) for n in names}
        pool = MaxPool(onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1]), self.run_params)
        (y,) = pool._run(np.moveaxis(x, -1, 1), **settings)
        return (np.moveaxis(y, 1, -1),)


def _normalized(x: Array, scale: Array, bias: Array | None, epsilon: float, *, centered: bool) -> tuple[Array, ...]:
    """Layer normalization over the last axes, as many as the scale has: the result, mean and inverse deviation."""
    axes = tuple(range(x.ndim - scale.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True) if centered else np.zeros((1,) * x.ndim)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
    y = (x - mean) * inverse * scale
    return y if bias is None else y + bias, mean, inverse


class SkipLayerNormalization(Microsoft):
    """Layer normalization of a sum of two values and a bias; the sum is the fourth output."""

    def _run(
        self,
        x: Array,
        skip: Array,
        gamma: Array,
        beta: Array | None = None,
        bias: Array | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        total = x + skip if bias is None else x + skip + bias
        found = _normalized(total, gamma, beta, self.attribute("epsilon", 1e-12), centered=True)
        return (*found, total)[: max(len(self.output), 1)]


class SkipSimplifiedLayerNormalization(Microsoft):
    """The same without the mean."""

    def _run(self, x: Array, skip: Array, gamma: Array, bias: Array | None = None, **_: Any) -> tuple[Array, ...]:
        total = x + skip if bias is None else x + skip + bias
        found = _normalized(total, gamma, None, self.attribute("epsilon", 1e-12), centered=False)
        return (*found, total)[: max(len(self.output), 1)]


class SimplifiedLayerNormalization(OpRun):
    """Layer normalization without the mean; in ONNX's own domain, where only ONNX Runtime knows it."""

    def _run(self, x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> tuple[Array, ...]:
        if scale.ndim != x.ndim - axis % x.ndim:
            raise UndefinedFormError(f"a scale of shape {scale.shape} from axis {axis} on")
        y, _mean, inverse = _normalized(x, scale, None, epsilon, centered=False)
        return (y, inverse)[: max(len(self.output), 1)]


MICROSOFT_OPERATORS: tuple[type[OpRun], ...] = (
    BiasGelu,
    FastGelu,
    FusedConv,
    FusedGemm,
    FusedMatMul,
    Inverse,
    NhwcMaxPool,
    QuickGelu,
    SimplifiedLayerNormalization,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    named(_Gelu, "Gelu"),
)
"""Those of this module."""
