"""Resize of every opset, and Upsample: interpolation axis by axis, in float64.

Which pixel is nearest is decided at whole and half numbers, and coordinates fall on those often; they are computed in
float32, as all runtimes do, where a pixel is chosen, and in float64 where it is weighed.

The standard leaves open what `align_corners` and `tf_crop_and_resize` stretch over an output of ``scale * length``
pixels where that is no whole number: onnx's own reference takes the fraction, ONNX Runtime and PyTorch the length that
the output has. Their reading is used here, so that no way of asking gives another answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops._op_list import Resize as StockResize

from spdexport.reference.onnx_operators import run_stock
from spdexport.reference.unavailable import UndefinedFormError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearestAxis:
    """An axis of which each output position is one pixel of the input.

    Attributes:
        axis: Which.
        length: Of the input.
        exact: Where each output position lies in the input, in float64, (out,).
        own: The pixels that the reference takes, (out,).
        region: The distances from a pixel within which coordinates are that pixel: (before, behind).
        is_exact: Whether no runtime rounds anything in finding the coordinates: the scale is a power of two.
    """

    axis: int
    length: int
    exact: Array
    own: Array
    region: tuple[float, float]
    is_exact: bool


Axis = tuple[int, float, int, tuple[float, float]]
"""An axis to be resized: which, by how much, to what length, and the part of it (start, end) that is wanted."""


def _coordinates(mode: str, axis: Axis, length: int, dtype: Any) -> Array:
    """Where in an axis of `length` each output position lies, (out,)."""
    _, scale, out, (start, end) = axis
    number, one_half = np.dtype(dtype).type, np.dtype(dtype).type(0.5)
    x, factor = np.arange(out, dtype=dtype), number(scale)
    match mode:
        case "align_corners":
            found = x * 0 if out == 1 else x * number(length - 1) / number(out - 1)
        case "asymmetric":
            found = x / factor
        case "half_pixel" | "half_pixel_symmetric":
            shift = 0.0 if mode == "half_pixel" else length / 2 * (1 - out / (float(scale) * length))
            found = number(shift) + (x + one_half) / factor - one_half
        case "pytorch_half_pixel":
            found = x * 0 if out == 1 else (x + one_half) / factor - one_half
        case "tf_half_pixel_for_nn":
            found = (x + one_half) / factor
        case "tf_crop_and_resize":
            first, whole = number(start) * number(length - 1), number(end - start) * number(length - 1)
            middle = np.full(1, number(0.5 * (start + end) * (length - 1)))
            found = middle if out == 1 else first + x * whole / number(out - 1)
        case _:
            raise UndefinedFormError(f"coordinate_transformation_mode {mode}")
    return np.asarray(found)


def _nearest(x: Array, mode: str) -> Array:
    match mode:
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
        case "round_prefer_ceil":
            return np.asarray(np.floor(x + x.dtype.type(0.5)))
        case "round_prefer_floor":
            return np.asarray(np.ceil(x - x.dtype.type(0.5)))
        case _:
            raise UndefinedFormError(f"nearest_mode {mode}")


def _linear(t: Array) -> list[Array]:
    return [1 - t, t]


def _cubic(t: Array, a: float) -> list[Array]:
    """The weights of the four neighbours of a position t behind the second one: Keys' kernel with parameter a."""

    def near(x: Array) -> Array:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Array) -> Array:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _weighed(
    x: Array, axis: int, where: Array, weights: Callable[[Array], Sequence[Array]], *, exclude_outside: bool
) -> Array:
    """The weighted sums of the pixels around each coordinate of one axis."""
    length, base = x.shape[axis], np.floor(where)
    taps = weights(where - base)
    rows = [base.astype(np.int64) + position - (len(taps) // 2 - 1) for position in range(len(taps))]
    if exclude_outside:
        taps = [np.where((row >= 0) & (row < length), tap, 0) for row, tap in zip(rows, taps, strict=True)]
        total = np.sum(taps, axis=0)
        taps = [tap / total for tap in taps]
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    parts = (x.take(np.clip(r, 0, length - 1), axis) * t.reshape(shape) for r, t in zip(rows, taps, strict=True))
    return np.asarray(sum(parts))


def interpolate(
    x: Array,
    axes: Sequence[Axis],
    *,
    mode: str,
    transformation: str,
    nearest_mode: str = "round_prefer_floor",
    cubic: float = -0.75,
    exclude_outside: bool = False,
    extrapolation: float = 0.0,
) -> Array:
    """Return an array with some of its axes resized.

    Args:
        x: Of any rank and dtype.
        axes: Those to be resized.
        mode: ``nearest``, ``linear`` or ``cubic``.
        transformation: Resize's ``coordinate_transformation_mode``.
        nearest_mode: How a coordinate becomes a pixel.
        cubic: The parameter of the cubic kernel.
        exclude_outside: Whether weights outside of the image are left out.
        extrapolation: The value outside of the image, for ``tf_crop_and_resize``.
    """
    outside = np.zeros((1,) * x.ndim, dtype=bool)
    result = x if mode == "nearest" else x.astype(np.float64)
    for each in axes:
        axis, _, out, _ = each
        where = _coordinates(transformation, each, x.shape[axis], np.float32 if mode == "nearest" else np.float64)
        if transformation == "tf_crop_and_resize":
            beyond = (where < 0) | (where > x.shape[axis] - 1)
            outside = outside | beyond.reshape(-1, *(1,) * (x.ndim - axis - 1))
        if not out or not x.shape[axis]:
            result = np.zeros((*result.shape[:axis], out, *result.shape[axis + 1 :]), result.dtype)
        elif mode == "nearest":
            rows = np.clip(_nearest(where, nearest_mode), 0, x.shape[axis] - 1).astype(np.int64)
            result = result.take(rows, axis)
        elif mode == "linear":
            where = where if exclude_outside else np.clip(where, 0, x.shape[axis] - 1)
            result = _weighed(result, axis, where, _linear, exclude_outside=exclude_outside)
        elif mode == "cubic":
            result = _weighed(result, axis, where, lambda t: _cubic(t, cubic), exclude_outside=exclude_outside)
        else:
            raise UndefinedFormError(f"mode {mode}")
    result = np.where(outside, np.asarray(extrapolation, result.dtype), result) if outside.any() else result
    # ONNX Runtime and torch cut what is between two integers.
    return result if x.dtype.kind == "f" else np.asarray(onnx.numpy_helper.saturate_cast(np.trunc(result), x.dtype))


def _scaled(x: Array, scales: Sequence[float], axes: Sequence[int], roi: Array | None) -> list[Axis]:
    """Lengths by scales: the floor of a float32 product, as ONNX Runtime has it.

    The scale 1.3 is a little less than that in float32: in float64, 10 * 1.3 would give 12.
    """
    lengths = [math.floor(np.float32(scale) * np.float32(x.shape[a])) for scale, a in zip(scales, axes, strict=True)]
    return _axes(x, scales, lengths, axes, roi)


def _sized(x: Array, sizes: Sequence[int], axes: Sequence[int], roi: Array | None, policy: str) -> list[Axis]:
    scales = [size / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    if policy in ("not_larger", "not_smaller"):
        scale = min(scales) if policy == "not_larger" else max(scales)
        scales, sizes = [scale] * len(scales), [math.floor(scale * x.shape[axis] + 0.5) for axis in axes]
    return _axes(x, scales, sizes, axes, roi)


def _axes(
    x: Array, scales: Sequence[float], lengths: Sequence[int], axes: Sequence[int], roi: Array | None
) -> list[Axis]:
    """The axes that change."""
    n = len(axes)
    parts = [(0.0, 1.0)] * n if roi is None else [(float(roi[k]), float(roi[n + k])) for k in range(n)]
    found = zip(axes, scales, lengths, parts, strict=True)
    return [
        (axis, float(scale), int(length), part)
        for axis, scale, length, part in found
        if (scale, length, part) != (1, x.shape[axis], (0.0, 1.0))
    ]


_REGIONS = {"floor": (0.0, 1.0), "ceil": (1.0, 0.0)}


def nearest_axes(
    op: str, version: int, inputs: Sequence[Any], attributes: Mapping[str, Any], shape: Sequence[int]
) -> list[NearestAxis]:
    """Return the axes that a Resize or an Upsample takes the nearest pixels of; none where it weighs them.

    Args:
        op: ``Resize`` or ``Upsample``.
        version: Of the operator set.
        inputs: Of the node.
        attributes: Of the node.
        shape: Of its output.
    """
    x, given = inputs[0], [*inputs[1:], None, None, None]
    is_old = op == "Upsample" or version < 11
    transformation = attributes.get("coordinate_transformation_mode") or ("asymmetric" if is_old else "half_pixel")
    if (attributes.get("mode") or "nearest") != "nearest" or transformation == "tf_crop_and_resize":
        return []
    axes = [a % x.ndim for a in attributes.get("axes") or range(x.ndim)]
    scales = given[0] if is_old else given[1]
    scales = attributes.get("scales") if scales is None else scales
    if scales is None or not np.size(scales):
        numbers = [shape[axis] / max(x.shape[axis], 1) for axis in axes]
    else:
        numbers = [float(scale) for scale in np.reshape(scales, -1)]
    found = []
    for axis, scale in zip(axes, numbers, strict=True):
        length, out = x.shape[axis], shape[axis]
        if (out == length and scale == 1) or not length or not out:
            continue
        rounding = attributes.get("nearest_mode") or "round_prefer_floor"
        rounding = ("ceil" if scale < 1 else "floor") if is_old else rounding
        part = (axis, scale, out, (0.0, 1.0))
        where = _coordinates(transformation, part, length, np.float32)
        ratio = (out - 1) / max(length - 1, 1) if transformation == "align_corners" else scale
        found.append(
            NearestAxis(
                axis=axis,
                length=length,
                exact=_coordinates(transformation, part, length, np.float64),
                own=np.clip(_nearest(where, rounding), 0, length - 1).astype(np.int64),
                region=_REGIONS.get(rounding, (0.5, 0.5)),
                is_exact=math.frexp(ratio)[0] in (0.0, 0.5),
            )
        )
    return found


class Resize(OpRun):
    """Resizing, of opset 10 on."""

    def _run(
        self,
        x: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        if self.run_params["opsets"][""] < 11:  # (x, scales), and the coordinates of Upsample
            return (_upsampled(x, np.asarray(roi), attributes.get("mode") or "nearest"),)
        axes = [a % x.ndim for a in attributes.get("axes") or range(x.ndim)]
        transformation = attributes.get("coordinate_transformation_mode") or "half_pixel"
        mode = attributes.get("mode") or "nearest"
        roi = roi if roi is not None and roi.size and transformation == "tf_crop_and_resize" else None
        if scales is not None and scales.size:
            resized = _scaled(x, scales.tolist(), axes, roi)
        elif sizes is not None:
            resized = _sized(x, sizes.tolist(), axes, roi, attributes.get("keep_aspect_ratio_policy") or "stretch")
        else:
            raise ValueError("neither scales nor sizes are given")
        if attributes.get("antialias") and any(scale < 1 for _, scale, _, _ in resized):
            return self._antialiased(x, resized, attributes)
        return (
            interpolate(
                x,
                resized,
                mode=mode,
                transformation=transformation,
                nearest_mode=attributes.get("nearest_mode") or "round_prefer_floor",
                cubic=-0.75 if (a := attributes.get("cubic_coeff_a")) is None else a,
                exclude_outside=bool(attributes.get("exclude_outside")) and mode == "cubic",
                extrapolation=attributes.get("extrapolation_value") or 0.0,
            ),
        )

    def _antialiased(self, x: Array, resized: Sequence[Axis], attributes: dict[str, Any]) -> tuple[Array, ...]:
        """What onnx's own gives, on the lengths that were found."""
        scales = np.ones(x.ndim)
        for axis, scale, length, _ in resized:
            fits = math.floor(scale * x.shape[axis]) == length
            # One ulp up, so that the product with the input's size is not below the whole number again.
            scales[axis] = scale if fits else np.nextafter(length / x.shape[axis], np.inf)
        settings = {**attributes, "axes": None, "keep_aspect_ratio_policy": "stretch"}
        return run_stock(StockResize, self, x, None, scales, None, **settings)


def _upsampled(x: Array, scales: Array, mode: str) -> Array:
    """Upsample's definition, whose pixels are those at or before a coordinate; Resize 10 shrinks to those behind."""
    axes = _scaled(x, scales.tolist(), range(x.ndim), None)
    mode = "linear" if mode == "bilinear" else mode
    if mode != "nearest":
        return interpolate(x, axes, mode=mode, transformation="asymmetric")
    for axis in axes:
        rounding = "ceil" if axis[1] < 1 else "floor"
        x = interpolate(x, [axis], mode=mode, transformation="asymmetric", nearest_mode=rounding)
    return x


class Upsample(OpRun):
    """Upsampling, with its scales as an attribute (opset 7) or as an input (opset 9)."""

    def _run(
        self, x: Array, given: Array | None = None, scales: Any = None, mode: str | None = None, **_: Any
    ) -> tuple[Array, ...]:
        return (_upsampled(x, np.asarray(scales if given is None else given), mode or "nearest"),)


RESIZE_OPERATORS: tuple[type[OpRun], ...] = (Resize, Upsample)
"""Those of this module."""
