"""Quantized operators of every opset, and those of com.microsoft that quantizers write, in exact arithmetic.

A quantized value is ``clip(round(x / scale) + zero point)``, ties to even; it stands for ``scale * (value - zero
point)``. Each operator of ONNX Runtime that takes quantized values is the float operator between the two.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops._op_list import load_op

from spdexport.reference.onnx_operators import promote, run_stock
from spdexport.reference.onnx_windows import AveragePool, Conv

if TYPE_CHECKING:
    from spdexport.conv import Array

MICROSOFT = "com.microsoft"


def _along(numbers: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales or zero points beside the values that they belong to: for all, for each of an axis, or for each block."""
    if numbers.size == 1:
        return numbers.reshape(())
    if block:
        rows = np.repeat(numbers, block, axis=axis)
        return rows.take(np.arange(shape[axis]), axis=axis)
    if numbers.ndim != 1:
        raise ValueError(f"scales of shape {numbers.shape} without blocks")
    return numbers.reshape(*(-1 if n == axis % len(shape) else 1 for n in range(len(shape))))


def _grid(
    shape: tuple[int, ...], scale: Array, zero: Array | None, axis: int | None, block: int | None
) -> tuple[Array, Array | int]:
    """The steps and the zero points of quantized values of a shape, in float64."""
    place, length = 1 if axis is None else axis, block or 0
    shift = 0 if zero is None else _along(zero.astype(np.float64), shape, place, length)
    return _along(scale.astype(np.float64), shape, place, length), shift


def dequantized(
    x: Array, scale: Array, zero: Array | None = None, axis: int | None = None, block: int | None = None
) -> Array:
    """Return what quantized values stand for, in float64.

    Args:
        x: Integers.
        scale: One, one for each of an axis, or one for each block of it.
        zero: As `scale`; None for 0.
        axis: That of `scale` where it is no single number; None for 1.
        block: The length of a block; None or 0 where there are none.
    """
    steps, shift = _grid(x.shape, scale, zero, axis, block)
    return np.asarray((x.astype(np.float64) - shift) * steps)


def quantized(
    x: Array, scale: Array, zero: Array | None, axis: int | None = None, block: int | None = None, dtype: Any = np.uint8
) -> Array:
    """Return float64 values as integers of the dtype of `zero`, or of `dtype` where there is no zero point.

    Args:
        x: Float64.
        scale: One, one for each of an axis, or one for each block of it.
        zero: As `scale`; None for 0.
        axis: That of `scale` where it is no single number; None for 1.
        block: The length of a block; None or 0 where there are none.
        dtype: Of integers with at most 16 bits.
    """
    target = np.dtype(dtype) if zero is None else zero.dtype
    steps, shift = _grid(x.shape, scale, zero, axis, block)
    values = np.rint(x / steps) + shift
    limits = np.iinfo(target)
    return np.asarray(np.clip(values, limits.min, limits.max).astype(target))


class DequantizeLinear(OpRun):
    """The values that integers stand for; onnx's own begins at opset 19, and passes through float32."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero: Array | None = None,
        axis: int | None = None,
        block_size: int | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        if x.dtype.kind not in "iu":  # floats of 8 bits and less, integers of 4
            opset = self.run_params["opsets"][""]
            settings = {"axis": axis, **({"block_size": block_size} if opset >= 21 else {})}
            return run_stock(load_op("", "DequantizeLinear", opset), self, x, scale, zero, **settings)
        return (dequantized(x, scale, zero, axis, block_size),)


class QuantizeLinear(OpRun):
    """Integers for values."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero: Array | None = None,
        axis: int | None = None,
        block_size: int | None = None,
        output_dtype: int | None = None,
        saturate: int | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        target = np.dtype(np.uint8)
        if zero is not None:
            target = zero.dtype
        elif output_dtype:
            target = onnx.helper.tensor_dtype_to_np_dtype(output_dtype)
        if target.kind not in "iu":  # floats of 8 bits and less, integers of 4
            opset = self.run_params["opsets"][""]
            settings: dict[str, Any] = {"axis": axis}
            settings |= {"saturate": saturate} if opset >= 19 else {}
            settings |= {"block_size": block_size, "output_dtype": output_dtype} if opset >= 21 else {}
            return run_stock(load_op("", "QuantizeLinear", opset), self, x, scale, zero, **settings)
        return (quantized(x.astype(np.float64), scale, zero, axis, block_size, target),)


class DynamicQuantizeLinear(OpRun):
    """Unsigned integers for values, with scale and zero point from the range of the values and 0."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        low, high = min(x.min(initial=0), 0.0), max(x.max(initial=0), 0.0)
        scale = np.asarray((high - low) / 255 or 1.0)
        zero = np.asarray(np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8))
        return quantized(x, scale, zero), scale, zero


class QLinearConv(OpRun):
    """A convolution of quantized values, with an integer bias in units of the product of the scales."""

    def _run(
        self,
        x: Array,
        x_scale: Array,
        x_zero: Array,
        w: Array,
        w_scale: Array,
        w_zero: Array,
        y_scale: Array,
        y_zero: Array,
        bias: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        # The sums of integers are exact in float64, and rounding is of these.
        w_shift = w_zero.astype(np.float64).reshape(-1, *(1,) * (w.ndim - 1))
        settings: dict[str, Any] = {name: attributes.get(name) for name in _CONV_ATTRIBUTES}
        shifted = x.astype(np.float64) - x_zero, w.astype(np.float64) - w_shift
        given = None if bias is None else bias.astype(np.float64)
        (sums,) = Conv(self.onnx_node, self.run_params)._run(*shifted, given, **settings)
        return (quantized(sums * _along(x_scale * w_scale, sums.shape, 1, 0), y_scale, y_zero),)


_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class QLinearMatMul(OpRun):
    """A matrix product of quantized values, scaled by rows of the first and columns of the second."""

    def _run(
        self,
        a: Array,
        a_scale: Array,
        a_zero: Array,
        b: Array,
        b_scale: Array,
        b_zero: Array,
        y_scale: Array,
        y_zero: Array,
        **_: Any,
    ) -> tuple[Array, ...]:
        left, right = dequantized(a, a_scale, a_zero, -2), dequantized(b, b_scale, b_zero, -1)
        return (quantized(left @ right, y_scale, y_zero),)


class Microsoft(OpRun):
    """An operator of ONNX Runtime's own domain."""

    op_domain = MICROSOFT

    def attribute(self, name: str, default: Any) -> Any:
        """The node's attribute, or the default of ONNX Runtime's own schema, which onnx does not know."""
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


QUANTIZED_OPERATORS: tuple[type[OpRun], ...] = (
    DequantizeLinear,
    DynamicQuantizeLinear,
    DynamicQuantizeMatMul,
    MatMulIntegerToFloat,
    QGemm,
    QLinearAdd,
    QLinearAveragePool,
    QLinearConcat,
    QLinearConv,
    QLinearGlobalAveragePool,
    QLinearLeakyRelu,
    QLinearMatMul,
    QLinearMul,
    QLinearSigmoid,
    QLinearSoftmax,
    QuantizeLinear,
    named(_MicrosoftDequantize, "DequantizeLinear"),
    named(_MicrosoftQuantize, "QuantizeLinear"),
)
"""Those of this module, of both domains."""
