"""Quantized operators of every opset, in exact arithmetic.

A quantized value is ``clip(round(x / scale) + zero point)``, ties to even; it stands for ``scale * (value - zero
point)``. Each operator of ONNX Runtime that takes quantized values is the float operator between the two.
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops._op_list import load_op

from spdexport.reference.onnx_operators import run_stock
from spdexport.reference.onnx_windows import Conv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.conv import Array

_BEFORE: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar("before", default=None)


def along(numbers: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
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
    shift = 0 if zero is None else along(zero.astype(np.float64), shape, place, length)
    return along(scale.astype(np.float64), shape, place, length), shift


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
    levels = np.asarray(x / steps)
    before = _BEFORE.get()
    if before is not None:
        before.append(levels)
    values = np.rint(levels) + shift
    limits = np.iinfo(target)
    return np.asarray(np.clip(values, limits.min, limits.max).astype(target))


@contextmanager
def before_rounding() -> Iterator[list[Array]]:
    """Give a list of what is rounded to whole numbers while the context lasts, in steps and without zero points."""
    found: list[Array] = []
    token = _BEFORE.set(found)
    try:
        yield found
    finally:
        _BEFORE.reset(token)


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
        return (quantized(sums * along(x_scale * w_scale, sums.shape, 1, 0), y_scale, y_zero),)


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


QUANTIZED_OPERATORS: tuple[type[OpRun], ...] = (
    DequantizeLinear,
    DynamicQuantizeLinear,
    QLinearConv,
    QLinearMatMul,
    QuantizeLinear,
)
"""Those of this module."""
