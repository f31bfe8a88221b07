"""Quantized operators of com.microsoft, which quantizers for ONNX Runtime write, in exact arithmetic."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from spdexport.reference.onnx_operators import promote
from spdexport.reference.onnx_quantized import DynamicQuantizeLinear, dequantized, quantized
from spdexport.reference.onnx_windows import AveragePool

if TYPE_CHECKING:
    from spdexport.conv import Array

MICROSOFT = "com.microsoft"


class Microsoft(OpRun):
    """An operator of ONNX Runtime's own domain."""

    op_domain = MICROSOFT

    def attribute(self, name: str, default: Any) -> Any:
        """Return the node's attribute, or the default of ONNX Runtime's own schema, which onnx does not know."""
        found = (onnx.helper.get_attribute_value(a) for a in self.onnx_node.attribute if a.name == name)
        value = next(found, default)
        return value.decode() if isinstance(value, bytes) else value


class _MicrosoftDequantize(Microsoft):
    def _run(self, x: Array, scale: Array, zero: Array | None = None, **_: Any) -> tuple[Array, ...]:
        return (dequantized(x, scale, zero, self.attribute("axis", 1), self.attribute("block_size", 0)),)


class _MicrosoftQuantize(Microsoft):
    def _run(self, x: Array, scale: Array, zero: Array | None = None, **_: Any) -> tuple[Array, ...]:
        return (quantized(x, scale, zero, self.attribute("axis", 1), self.attribute("block_size", 0)),)


class _Pair(Microsoft):
    """Two quantized operands, elementwise: (A, scale, zero, B, scale, zero, scale, zero)."""

    @abstractmethod
    def combine(self, a: Array, b: Array) -> Array:
        """Apply the float operator."""

    def _run(self, *given: Any, **_: Any) -> tuple[Array, ...]:
        a, b = dequantized(*given[:3]), dequantized(*given[3:6])
        return (quantized(self.combine(a, b), given[6], given[7] if len(given) > 7 else None, dtype=given[0].dtype),)


class QLinearAdd(_Pair):
    """The sum of quantized values."""

    def combine(self, a: Array, b: Array) -> Array:
        """Their sum."""
        return a + b


class QLinearMul(_Pair):
    """The product of quantized values."""

    def combine(self, a: Array, b: Array) -> Array:
        """Their product."""
        return a * b


class _Single(Microsoft):
    """One quantized operand: (X, scale, zero, scale, zero)."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """Apply the float operator."""

    def _run(self, *given: Any, **_: Any) -> tuple[Array, ...]:
        zero = given[4] if len(given) > 4 else None
        return (quantized(self.apply(dequantized(*given[:3])), given[3], zero, dtype=given[0].dtype),)


class QLinearSigmoid(_Single):
    """The sigmoid of quantized values."""

    def apply(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""
        return np.asarray(1 / (1 + np.exp(-x)))


class QLinearLeakyRelu(_Single):
    """Leaky ReLU of quantized values."""

    def apply(self, x: Array) -> Array:
        """X, or alpha x where x is negative."""
        return np.where(x >= 0, x, self.attribute("alpha", 0.01) * x)


class QLinearSoftmax(_Single):
    """Softmax of quantized values, over one axis or, as before opset 13, over all from there on."""

    def apply(self, x: Array) -> Array:
        """exp(x) over its sum."""
        axis = self.attribute("axis", -1) % x.ndim
        over = (axis,) if self.attribute("opset", 13) >= 13 else tuple(range(axis, x.ndim))
        powers = np.exp(x - x.max(axis=over, keepdims=True))
        return np.asarray(powers / powers.sum(axis=over, keepdims=True))


class QLinearGlobalAveragePool(_Single):
    """The mean of quantized values over the spatial axes."""

    def apply(self, x: Array) -> Array:
        """Means, with the axes kept."""
        axes = range(1, x.ndim - 1) if self.attribute("channels_last", 0) else range(2, x.ndim)
        return np.asarray(x.mean(axis=tuple(axes), keepdims=True))


class QLinearAveragePool(_Single):
    """Average pooling of quantized values."""

    def apply(self, x: Array) -> Array:
        """Means of windows."""
        last = self.attribute("channels_last", 0)
        names = ("kernel_shape", "auto_pad", "ceil_mode", "count_include_pad", "pads", "strides")
        settings = {name: value for name in names if (value := self.attribute(name, None)) is not None}
        pool = AveragePool(self.onnx_node, self.run_params)
        x = np.moveaxis(x, -1, 1) if last else x
        (y,) = pool._run(x, **{"auto_pad": None, "pads": None, "strides": None, **settings})
        return np.moveaxis(y, 1, -1) if last else y


class QLinearConcat(Microsoft):
    """Quantized values of several scales side by side: (scale, zero, then each with its own two)."""

    def _run(self, scale: Array, zero: Array, *given: Any, **_: Any) -> tuple[Array, ...]:
        parts = [dequantized(*given[k : k + 3]) for k in range(0, len(given), 3)]
        return (quantized(np.concatenate(parts, axis=self.attribute("axis", 1)), scale, zero),)


class QGemm(Microsoft):
    """A matrix product of quantized values, with an integer bias; without a scale of its output it gives floats."""

    def _run(
        self,
        a: Array,
        a_scale: Array,
        a_zero: Array,
        b: Array,
        b_scale: Array,
        b_zero: Array,
        bias: Array | None = None,
        y_scale: Array | None = None,
        y_zero: Array | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        left = a.astype(np.float64) - a_zero
        right = b.astype(np.float64)
        left = left.T if self.attribute("transA", 0) else left
        right = (right.T if self.attribute("transB", 0) else right) - b_zero
        sums = self.attribute("alpha", 1.0) * (left @ right) + (0 if bias is None else bias.astype(np.float64))
        values = sums * promote(a_scale) * promote(b_scale)
        return (values if y_scale is None else quantized(values, y_scale, y_zero, dtype=a.dtype),)


class MatMulIntegerToFloat(Microsoft):
    """A matrix product of quantized values, as floats, and a bias."""

    def _run(
        self,
        a: Array,
        b: Array,
        a_scale: Array,
        b_scale: Array,
        a_zero: Array | None = None,
        b_zero: Array | None = None,
        bias: Array | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        product = dequantized(a, a_scale, a_zero, -2) @ dequantized(b, b_scale, b_zero, -1)
        return (product if bias is None else product + bias,)


class DynamicQuantizeMatMul(Microsoft):
    """A matrix product whose first factor is quantized when it runs."""

    def _run(
        self,
        a: Array,
        b: Array,
        b_scale: Array,
        b_zero: Array | None = None,
        bias: Array | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        found = DynamicQuantizeLinear(self.onnx_node, self.run_params)._run(a)
        product = dequantized(found[0], found[1], found[2]) @ dequantized(b, b_scale, b_zero, -1)
        return (product if bias is None else product + bias,)


def named(operator: type[OpRun], name: str) -> type[OpRun]:
    """Return a class under the name of its operator, by which onnx finds it, where that name is taken."""
    return type(name, (operator,), {})


MICROSOFT_QUANTIZED: tuple[type[OpRun], ...] = (
    DynamicQuantizeMatMul,
    MatMulIntegerToFloat,
    QGemm,
    QLinearAdd,
    QLinearAveragePool,
    QLinearConcat,
    QLinearGlobalAveragePool,
    QLinearLeakyRelu,
    QLinearMul,
    QLinearSigmoid,
    QLinearSoftmax,
    named(_MicrosoftDequantize, "DequantizeLinear"),
    named(_MicrosoftQuantize, "QuantizeLinear"),
)
"""Those of this module."""
