"""Choices of a step: casts to integers and to floats of a byte, and all operators that quantize their results."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import onnx

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing, nothing
from spdexport.reference.decisions_elementwise import Rounding, Taken, distance, truncated
from spdexport.reference.onnx_quantized import before_rounding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array

SMALL_ELEMENTS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1")
)
SMALL_FLOATS = frozenset(map(onnx.helper.tensor_dtype_to_np_dtype, SMALL_ELEMENTS))
"""Floats of so few values that one of them is a choice: the reference rounds to them, and so must be followed."""

BYTE = (0, 255)


class ToNumber(Rounding):
    """A cast from floats to integers, to bool or to floats of a byte; one to other floats chooses nothing."""

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        dtype = node.outputs[0].dtype
        return (dtype.kind in "iub" or dtype in SMALL_FLOATS) and super().chooses(node)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        if node.outputs[0].dtype in SMALL_FLOATS:
            return to_small_floats(node.x, node.outputs[0], choice[0], noises.of(0))
        if node.outputs[0].dtype.kind != "b":
            return super().judge(node, choice, noises)
        return differing(node.outputs[0], choice[0], np.abs(node.x), noises.of(0))


class Quantize(Taken):
    """QuantizeLinear: margin and noise are in steps, and its own division is rounded too."""

    reads = (0, 1)

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        dtype = node.outputs[0].dtype
        return (is_integer(dtype) or dtype in SMALL_FLOATS) and super().chooses(node)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        scale, zero = self._spread(node, node.input(1)), 0.0
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            zero = self._spread(node, node.inputs[2].astype(np.float64))  # type: ignore[assignment]
        scale_noise = self._spread(node, noises.of(1)) if np.ndim(noises.of(1)) else noises.of(1)
        if node.outputs[0].dtype in SMALL_FLOATS:
            with np.errstate(all="ignore"):
                steps = node.x / scale
                noise = noises.of(0) / np.abs(scale) + np.abs(steps) * (scale_noise / np.abs(scale) + noises.rounding)
            return to_small_floats(steps, node.outputs[0], choice[0], noise)
        limits = _limits(node, node.outputs[0].dtype)
        margins, noise = in_steps(node.x, scale, zero, choice[0], noises.of(0), scale_noise, noises.rounding, limits)
        return differing(node.outputs[0].astype(np.float64), choice[0].astype(np.float64), margins, noise)

    @staticmethod
    def _spread(node: Decision, values: Array) -> Array:
        """Scales or zero points for each element: they are of the tensor, of an axis, or of blocks of one."""
        if values.size == 1:
            return values.reshape(())
        axis, block = int(node.attributes.get("axis", 1)), int(node.attributes.get("block_size", 0))
        if block:
            repeated = np.repeat(values, block, axis=axis)
            return np.take(repeated, np.arange(node.x.shape[axis]), axis=axis)
        shape = [1] * node.x.ndim
        shape[axis] = values.size
        return values.reshape(shape)


class DynamicQuantize(Rule):
    """DynamicQuantizeLinear: its scale varies steadily, its zero point and its values are rounded."""

    taken: ClassVar[tuple[int, ...]] = (0, 2)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [choice[0], node.outputs[1], choice[1]]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        x, scale, rounding = node.x, node.outputs[1].astype(np.float64), noises.rounding
        most = np.max(noises.of(0), initial=0.0)
        scale_noise = 2 * most / 255 + rounding * scale
        lowest = np.asarray(-min(float(x.min(initial=0.0)), 0.0))
        values, zero = choice
        found = differing(
            node.outputs[2].astype(np.float64),
            zero.astype(np.float64),
            *in_steps(lowest, scale, 0.0, zero, np.asarray(most), scale_noise, rounding, BYTE),
        )
        if found.wrong.any():
            return found
        zero_point = zero.astype(np.float64)
        right = np.clip(np.rint(x / scale) + zero_point, 0, 255)
        steps = in_steps(x, scale, zero_point, values, noises.of(0), scale_noise, rounding, BYTE)
        levels = differing(right, values.astype(np.float64), *steps)
        return found if found.places.size and not levels.wrong.any() else levels


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one of integers, those of four bits included."""
    return dtype.kind in "iu" or "int" in dtype.name


def in_steps(
    x: Array,
    scale: Any,
    zero: Any,
    got: Array,
    x_noise: Array,
    scale_noise: Any,
    rounding: float,
    limits: tuple[int, int],
) -> tuple[Array, Array]:
    """Return the margin and the noise of a quantized value, in steps of the quantizer.

    Args:
        x: What was quantized.
        scale: The size of a step.
        zero: The zero point.
        got: The integers that were chosen.
        x_noise: Of ``x``.
        scale_noise: Of ``scale``.
        rounding: Of the division, relative.
        limits: The smallest and the largest integer, that stand for all beyond them too.
    """
    with np.errstate(all="ignore"):
        steps = x / scale
        noise = x_noise / np.abs(scale) + np.abs(steps) * (scale_noise / np.abs(scale) + rounding)
    return off_level(steps, zero, got, limits), noise


def off_level(steps: Array, zero: Any, got: Array, limits: tuple[int, int]) -> Array:
    """Return how far numbers, in steps and without the zero point, are from what is rounded to some integers."""
    integers = got.astype(np.float64)
    low = np.where(integers <= limits[0], -np.inf, integers - zero - 0.5)
    high = np.where(integers >= limits[1], np.inf, integers - zero + 0.5)
    possible = (integers >= limits[0]) & (integers <= limits[1])
    return np.where(possible, distance(steps, low, high), np.inf)


def _limits(node: Decision, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The integers that a quantizer may give: those of its dtype, or as it says."""
    info = ml_dtypes.iinfo(dtype)
    return int(node.attributes.get("low", info.min)), int(node.attributes.get("high", info.max))


@cache
def _rounded_to(dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """The finite values of a dtype, sorted, and the ends of what is rounded to each."""
    bits = np.arange(2 ** (4 if "float4" in dtype.name else 8), dtype=np.uint8)
    values = bits.view(dtype).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    return values, np.concatenate(([-np.inf], middles)), np.concatenate((middles, [np.inf]))


def to_small_floats(x: Array, right: Array, got: Array, noise: Array) -> Judged:
    """Judge values of so few bits that each is a choice: the margin is the distance from what is rounded to it.

    Args:
        x: What was rounded.
        right: What float64 gives, of the small dtype.
        got: What was chosen, in whatever floats.
        noise: Of ``x``.
    """
    values, low, high = _rounded_to(right.dtype)
    own, chosen = right.astype(np.float64), got.astype(np.float64)
    place = np.clip(np.searchsorted(values, chosen), 0, values.size - 1)
    margins = np.where(values[place] == chosen, distance(x, low[place], high[place]), np.inf)
    # Where float64 does not saturate, what lies half a step beyond the largest value is no finite one.
    last = values[-1] + (values[-1] - values[-2]) / 2
    is_odd = ~np.isfinite(own) | ~np.isfinite(chosen)
    margins = np.where(is_odd & (np.isfinite(own) != np.isfinite(chosen)), np.abs(np.abs(x) - last), margins)
    return differing(own, chosen, margins, noise)


class QuantizedResult(Taken):
    """An operator on quantized values that quantizes what it computes: the float before that is within a step of it.

    Args:
        result: The places of scale and zero point of the result, among the inputs.
        terms: The places of the scales of what is added up to one value, where its terms may be larger than it.
    """

    def __init__(self, result: tuple[int, int], terms: Sequence[int] = ()) -> None:
        self._scale, self._zero = result
        self._terms = terms

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        return bool(node.output_names[0]) and is_integer(node.outputs[0].dtype)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice: scales are multiplied and divided, and none of it is exact."""
        with before_rounding() as found:
            node.compute(node.inputs)
        if not found:
            return nothing("what it rounds is not known")
        steps, zero = found[-1], np.zeros(())
        if self._zero < len(node.inputs) and node.inputs[self._zero] is not None:
            zero = node.input(self._zero).astype(np.float64)
        scale = float(np.abs(node.input(self._scale)).min())
        size = np.abs(steps) + np.abs(zero)
        for index in self._terms:
            size = size + 2 * BYTE[1] * float(np.abs(node.input(index)).max()) / scale
        noise = size * (noises.rounding + self._of_scales(node, noises))
        margins = off_level(steps, zero, choice[0], _limits(node, node.outputs[0].dtype))
        return differing(node.outputs[0].astype(np.float64), choice[0].astype(np.float64), margins, noise)

    @staticmethod
    def _of_scales(node: Decision, noises: Noises) -> float:
        """The relative noise of all scales together; 0 for those that are weights."""
        total = 0.0
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype.kind == "f" and value.size:
                with np.errstate(all="ignore"):
                    total += float(np.max(noises.of(index) / np.abs(value)))
        return total


class FakeQuantize(Rule):
    """What torch quantizes and turns into floats at once: the step is told from the value.

    Inputs are the values, the scales and the zero points, of shapes that spread; attributes the limits.
    """

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """Return the integers that the outputs tell."""
        with np.errstate(all="ignore"):
            steps = np.rint(values[0].astype(np.float64) / node.input(1)) + node.input(2)
        return np.where(np.isfinite(steps), steps, node.input(2)).astype(np.int64)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray((choice - node.input(2)) * node.input(1))]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        own = self.choice(node, node.outputs).astype(np.float64)
        limits = int(node.attributes["low"]), int(node.attributes["high"])
        margins, noise = in_steps(
            node.x, node.input(1), node.input(2), choice, noises.of(0), noises.of(1), noises.rounding, limits
        )
        return differing(own, choice.astype(np.float64), margins, noise)


MICROSOFT: dict[str, Rule] = {
    "QGemm": QuantizedResult((7, 8)),
    "QLinearAdd": QuantizedResult((6, 7), terms=(1, 4)),
    "QLinearAveragePool": QuantizedResult((3, 4), terms=(1,)),
    "QLinearConcat": QuantizedResult((0, 1)),
    "QLinearGlobalAveragePool": QuantizedResult((3, 4), terms=(1,)),
    "QLinearLeakyRelu": QuantizedResult((3, 4), terms=(1,)),
    "QLinearMul": QuantizedResult((6, 7)),
    "QLinearSigmoid": QuantizedResult((3, 4)),
    "QLinearSoftmax": QuantizedResult((3, 4)),
}
"""Those of com.microsoft whose names ONNX does not have."""

RULES: dict[str, Rule] = {
    **MICROSOFT,
    **dict.fromkeys(("Cast", "CastLike"), ToNumber(truncated)),
    "DynamicQuantizeLinear": DynamicQuantize(),
    "FakeQuantize": FakeQuantize(),  # torch's, which ONNX does not have
    "QLinearConv": QuantizedResult((6, 7)),
    "QLinearMatMul": QuantizedResult((6, 7)),
    "QuantizeLinear": Quantize(),
}
