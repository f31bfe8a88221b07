"""Operators in forms that onnx's own reference does not know or gets wrong: old opsets, rare options, odd ranks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops._op_list import NonMaxSuppression as StockNonMaxSuppression
from onnx.reference.ops._op_list import Pad_18 as StockPad
from onnx.reference.ops._op_list import ReduceSumSquare_18 as StockReduceSumSquare
from onnx.reference.ops._op_list import RoiAlign as StockRoiAlign
from onnx.reference.ops._op_list import ScatterElements as StockScatterElements

from spdexport.reference.onnx_operators import run_stock
from spdexport.reference.unavailable import UndefinedFormError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array


def _given(node: OpRun, name: str, value: Any, default: Any) -> Any:
    """An attribute as the node has it: onnx fills in the newest opset's default, which is not that of older ones."""
    return value if any(attribute.name == name for attribute in node.onnx_node.attribute) else default


class Hardmax(OpRun):
    """1 at the first largest element, else 0; before opset 13 over all axes from `axis` (default 1) on, as one."""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array, ...]:
        old = self.run_params["opsets"][""] < 13
        axis = _given(self, "axis", axis, 1 if old else -1)
        rows = x.reshape(*x.shape[:axis], -1) if old else np.moveaxis(x, axis, -1)
        out = np.zeros_like(rows)
        np.put_along_axis(out, rows.argmax(axis=-1)[..., None], 1, axis=-1)
        return (out.reshape(x.shape) if old else np.moveaxis(out, -1, axis),)


class Pad(OpRun):
    """Padding of every opset; negative numbers crop, before or after what is added at other ends."""

    def _run(
        self,
        x: Array,
        given: Array | None = None,
        fill: Array | None = None,
        axes: Array | None = None,
        pads: Sequence[int] | None = None,
        value: float | None = None,
        mode: str | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        numbers = np.asarray(pads if given is None else given, dtype=np.int64).reshape(2, -1)
        which = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        whole = np.zeros((2, x.ndim), np.int64)
        whole[:, list(which)] = numbers
        crop = np.maximum(-whole, 0)
        x = x[tuple(slice(lo, size - hi) for lo, hi, size in zip(*crop, x.shape, strict=True))]
        constant = value if fill is None else fill.reshape(()) if fill.size else None
        fits = {"mode": mode or "constant"}
        return run_stock(
            StockPad, self, x, np.maximum(whole, 0).reshape(-1), np.asarray(constant or 0, x.dtype), **fits
        )


class OneHot(OpRun):
    """One-hot rows; an index outside of [-depth, depth) gives a row of the off value."""

    def _run(self, indices: Array, depth: Array, values: Array, axis: int | None = None) -> tuple[Array, ...]:
        axis, size = -1 if axis is None else axis, int(depth.reshape(-1)[0])
        whole = indices.astype(np.int64)
        whole = np.where(whole < 0, whole + size, whole)
        off, on = values
        return (np.moveaxis(np.where(whole[..., None] == np.arange(size), on, off), -1, axis),)


class Scatter(OpRun):
    """ScatterElements under its first name."""

    def _run(self, data: Array, indices: Array, updates: Array, axis: int | None = None) -> tuple[Array, ...]:
        return run_stock(StockScatterElements, self, data, indices, updates, axis=axis or 0)


class GatherElements(OpRun):
    """One element for each index; the other axes of the indices may be shorter than those of the data."""

    def _run(self, data: Array, indices: Array, axis: int | None = None) -> tuple[Array, ...]:
        axis = (axis or 0) % data.ndim
        part = tuple(slice(None) if n == axis else slice(size) for n, size in enumerate(indices.shape))
        whole = np.where(indices < 0, indices + data.shape[axis], indices)
        return (np.take_along_axis(data[part], whole, axis=axis),)


class Unsqueeze(OpRun):
    """New axes of length 1, counted in the output, in any order."""

    def _run(self, x: Array, given: Array | None = None, axes: Sequence[int] | None = None) -> tuple[Array, ...]:
        numbers = axes if given is None else given.reshape(-1).tolist()
        return (np.expand_dims(x, tuple(numbers or ())),)


class CumSum(OpRun):
    """Sums along an axis, which is given with rank 0 or 1."""

    def _run(
        self, x: Array, axis: Array, exclusive: int | None = None, reverse: int | None = None
    ) -> tuple[Array, ...]:
        (along,) = axis.reshape(-1).tolist()
        turned = np.flip(x, along) if reverse else x
        sums = np.cumsum(turned, axis=along, dtype=x.dtype)
        sums = sums - turned if exclusive and x.dtype.kind != "f" else sums
        if exclusive and x.dtype.kind == "f":  # by a shift, for sums lose what they are much larger than
            sums = np.roll(sums, 1, axis=along)
            sums[(*(slice(None),) * (along % x.ndim), slice(0, 1))] = 0
        return (np.flip(sums, along) if reverse else sums,)


class Dropout(OpRun):
    """Dropout for inference: its input, and where the mask is asked for, what ONNX Runtime has for it."""

    def _run(self, x: Array, ratio: Array | None = None, training: Array | None = None, **_: Any) -> tuple[Array, ...]:
        opset = self.run_params["opsets"][""]
        if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
            raise UndefinedFormError("Dropout in training mode: its output is random")
        # Before opset 12 the mask is not filled; of opset 7 it has the input's type.
        mask = np.ones(x.shape, bool) if opset >= 12 else np.zeros(x.shape, bool if opset >= 10 else x.dtype)
        return (x, mask)[: max(len(self.output), 1)]


class LRN(OpRun):
    """Local response normalization: ``x / (bias + alpha / size * sum of squares of the channels around)^beta``."""

    def _run(self, x: Array, alpha: Any = None, beta: Any = None, bias: Any = None, size: int = 1) -> tuple[Array, ...]:
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        padded = np.pad(x**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        sums = sum(padded[:, k : k + x.shape[1]] for k in range(size))
        return (x / (bias + alpha / size * sums) ** beta,)


class LpNormalization(OpRun):
    """An axis divided by its norm of order 1 or 2; zeros stay."""

    def _run(self, x: Array, axis: int | None = None, p: int | None = None) -> tuple[Array, ...]:
        axis = -1 if axis is None else axis
        norm = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt((x**2).sum(axis, keepdims=True))
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class GlobalLpPool(OpRun):
    """The norm of order p over the spatial axes."""

    def _run(self, x: Array, p: int | None = None) -> tuple[Array, ...]:
        order, axes = p or 2, tuple(range(2, x.ndim))
        return ((np.abs(x) ** order).sum(axis=axes, keepdims=True) ** (1 / order),)


class ReduceSumSquare(OpRun):
    """Sums of squares, integers in their own type."""

    def _run(self, x: Array, axes: Any = None, **attributes: Any) -> tuple[Array, ...]:
        newest = StockReduceSumSquare(self.onnx_node, self.run_params)
        given = None if axes is None else np.asarray(axes, np.int64)
        (squares,) = newest._run(x, given, **attributes)  # type: ignore[no-untyped-call]
        return (squares.astype(x.dtype),)


class MaxUnpool(OpRun):
    """Values back at the indices that MaxPool gave, which count in the output's own shape."""

    def _run(
        self,
        x: Array,
        indices: Array,
        output_shape: Array | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        n = len(kernel_shape)
        strides, pads = strides or [1] * n, pads or [0] * 2 * n
        sizes = [
            (size - 1) * s - lo - hi + k
            for size, s, lo, hi, k in zip(x.shape[2:], strides, pads[:n], pads[n:], kernel_shape, strict=True)
        ]
        shape = (*x.shape[:2], *sizes) if output_shape is None else tuple(output_shape.tolist())
        out = np.zeros(int(np.prod(shape)), x.dtype)
        out[indices.reshape(-1)] = x.reshape(-1)
        return (out.reshape(shape),)


class MaxRoiPool(OpRun):
    """Maximum pooling over a grid in each region (batch, x1, y1, x2, y2), whole pixels of both ends included."""

    def _run(
        self, x: Array, rois: Array, pooled_shape: Sequence[int] = (), spatial_scale: Any = None
    ) -> tuple[Array, ...]:
        sizes, scale = x.shape[2:], 1.0 if spatial_scale is None else spatial_scale
        out = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
        for row, (batch, x1, y1, x2, y2) in enumerate(rois):
            starts, ends = ([np.floor(v * scale + 0.5) for v in pair] for pair in ((y1, x1), (y2, x2)))
            bins = [
                self._bins(int(start), max(int(end) - int(start) + 1, 1), count, size)
                for start, end, count, size in zip(starts, ends, pooled_shape, sizes, strict=True)
            ]
            for i, j in itertools.product(range(pooled_shape[0]), range(pooled_shape[1])):
                (top, bottom), (left, right) = bins[0][i], bins[1][j]
                if top < bottom and left < right:
                    window = x[int(batch), :, top:bottom, left:right]
                    out[row, :, i, j] = window.max(axis=(1, 2))
        return (out,)

    @staticmethod
    def _bins(start: int, length: int, count: int, size: int) -> list[tuple[int, int]]:
        # In whole numbers, for the quotient of a length that the count divides is one.
        edges = [(start + n * length // count, start - (-(n + 1) * length // count)) for n in range(count)]
        return [(min(max(lo, 0), size), min(max(hi, 0), size)) for lo, hi in edges]


class RoiAlign(OpRun):
    """Regions sampled at fractions of pixels; before opset 16 without the half pixel."""

    def _run(self, *inputs: Any, coordinate_transformation_mode: Any = None, **attributes: Any) -> tuple[Array, ...]:
        if self.run_params["opsets"][""] < 16:
            coordinate_transformation_mode = "output_half_pixel"
        settings = {**attributes, "coordinate_transformation_mode": coordinate_transformation_mode}
        return run_stock(StockRoiAlign, self, *inputs, **settings)


class NonMaxSuppression(OpRun):
    """The boxes that are kept, with the defaults of inputs that are not given and numbers of rank 0."""

    def _run(self, boxes: Array, scores: Array, *limits: Array | None, **attributes: Any) -> tuple[Array, ...]:
        defaults = (np.zeros(1, np.int64), np.zeros(1), np.full(1, -np.inf))
        given = [*limits, *[None] * (3 - len(limits))]
        numbers = [d if v is None else v.reshape(-1) for v, d in zip(given, defaults, strict=True)]
        if not int(numbers[0][0]):
            return (np.zeros((0, 3), np.int64),)
        return run_stock(StockNonMaxSuppression, self, boxes, scores, *numbers, **attributes)


LEGACY_OPERATORS: tuple[type[OpRun], ...] = (
    CumSum,
    Dropout,
    GatherElements,
    GlobalLpPool,
    Hardmax,
    LRN,
    LpNormalization,
    MaxRoiPool,
    MaxUnpool,
    NonMaxSuppression,
    OneHot,
    Pad,
    ReduceSumSquare,
    RoiAlign,
    Scatter,
    Unsqueeze,
)
"""Those of this module."""
