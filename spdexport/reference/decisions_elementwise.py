"""Choices that each element makes by itself: comparisons, rounding to integers, quantizing, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array


class _Taken(Rule):
    """An operator with one output, that is the choice."""

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """All outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]


class Comparison(_Taken):
    """Greater, Less, Equal and their kind: the margin is the distance of the two numbers."""

    reads = (0, 1)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        with np.errstate(invalid="ignore"):
            margins = np.abs(node.x - node.input(1))
        noise = noises.of(0) + noises.of(1)
        return differing(node.outputs[0], choice[0], margins, noise)


class Rounding(_Taken):
    """An operator that gives an integer for a whole interval of numbers: the margin is the distance from the interval.

    Args:
        region: From the integers to the ends of their intervals.
    """

    def __init__(self, region: Callable[[Array], tuple[Array, Array]]) -> None:
        self._region = region

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        got = choice[0].astype(np.float64)
        margins = distance(node.x, *self._region(got))
        possible = got == (np.sign(got) if node.op == "Sign" else np.rint(got))
        return differing(node.outputs[0], choice[0], np.where(possible, margins, np.inf), noises.of(0))


class ToNumber(Rounding):
    """A cast from floats to integers or to bool; one to floats chooses nothing."""

    def chooses(self, node: Decision) -> bool:
        """Whether the node chooses, and can be followed."""
        return node.outputs[0].dtype.kind in "iub" and super().chooses(node)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        if node.outputs[0].dtype.kind != "b":
            return super().judge(node, choice, noises)
        return differing(node.outputs[0], choice[0], np.abs(node.x), noises.of(0))


class Quantize(_Taken):
    """QuantizeLinear to integers: margin and noise are in steps, and its own division is rounded too."""

    reads = (0, 1)

    def chooses(self, node: Decision) -> bool:
        """Whether the node chooses, and can be followed."""
        return is_integer(node.outputs[0].dtype) and super().chooses(node)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        scale, zero = self._spread(node, node.input(1)), 0.0
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            zero = self._spread(node, node.inputs[2].astype(np.float64))  # type: ignore[assignment]
        scale_noise = self._spread(node, noises.of(1)) if np.ndim(noises.of(1)) else noises.of(1)
        margins, noise = in_steps(node.x, scale, zero, choice[0], noises.of(0), scale_noise, noises.rounding)
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
        """All outputs, given the choice."""
        return [choice[0], node.outputs[1], choice[1]]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        x, scale, rounding = node.x, node.outputs[1].astype(np.float64), noises.rounding
        most = np.max(noises.of(0), initial=0.0)
        scale_noise = 2 * most / 255 + rounding * scale
        lowest = np.asarray(-min(float(x.min(initial=0.0)), 0.0))
        values, zero = choice
        found = differing(
            node.outputs[2].astype(np.float64),
            zero.astype(np.float64),
            *in_steps(lowest, scale, 0.0, zero, np.asarray(most), scale_noise, rounding),
        )
        if found.wrong.any():
            return found
        zero_point = zero.astype(np.float64)
        right = np.clip(np.rint(x / scale) + zero_point, 0, 255)
        steps = in_steps(x, scale, zero_point, values, noises.of(0), scale_noise, rounding)
        levels = differing(right, values.astype(np.float64), *steps)
        return found if found.places.size and not levels.wrong.any() else levels


class Remainder(Rule):
    """Mod of floats: the number of times that the divisor goes into the number is the choice."""

    reads = (0, 1)

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """The choice that the outputs tell."""
        with np.errstate(all="ignore"):
            return np.rint((node.x - values[0].astype(np.float64)) / node.input(1))

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """All outputs, given the choice."""
        with np.errstate(all="ignore"):
            found = node.x - choice * node.input(1)
        return [np.where(np.isfinite(found), found, node.outputs[0])]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        divisor = node.input(1)
        with np.errstate(all="ignore"):
            times = node.x / divisor
            own = np.trunc(times) if node.attributes.get("fmod") else np.floor(times)
            region = truncated if node.attributes.get("fmod") else floored
            margins = distance(times, *region(choice)) * np.abs(divisor)
        noise = noises.of(0) + np.abs(choice) * noises.of(1)
        finite = np.isfinite(own) & np.isfinite(choice)
        return differing(np.where(finite, own, 0.0), np.where(finite, choice, 0.0), margins, noise)


class Threshold(Rule):
    """ThresholdedRelu and Shrink: an element is let through or not."""

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """The choice that the outputs tell."""
        own = node.outputs[0]
        passed = np.where(values[0] == 0, 0.0, np.sign(node.x))
        # What is let through may be 0 itself.
        return np.where((own == 0) == (values[0] == 0), self._own(node), passed)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """All outputs, given the choice."""
        bias = 0.0 if node.op == "ThresholdedRelu" else float(node.attributes.get("bias", 0.0))
        return [np.where(choice == 0, 0.0, node.x - choice * bias)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Whether rounding explains the choice."""
        limit = self._limit(node)
        size = node.x if node.op == "ThresholdedRelu" else np.abs(node.x)
        return differing(self._own(node), choice, np.abs(size - limit), noises.of(0))

    def _own(self, node: Decision) -> Array:
        limit = self._limit(node)
        below = (node.x < -limit) & (node.op == "Shrink")
        return np.where(node.x > limit, 1.0, np.where(below, -1.0, 0.0))

    @staticmethod
    def _limit(node: Decision) -> float:
        if node.op == "ThresholdedRelu":
            return float(node.attributes.get("alpha", 1.0))
        return float(node.attributes.get("lambd", 0.5))


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of integers, those of four bits included."""
    return dtype.kind in "iu" or "int" in dtype.name


def in_steps(
    x: Array, scale: Any, zero: Any, got: Array, x_noise: Array, scale_noise: Any, rounding: float
) -> tuple[Array, Array]:
    """The margin and the noise of a quantized value, in steps of the quantizer.

    Args:
        x: What was quantized.
        scale: The size of a step.
        zero: The zero point.
        got: The integers that were chosen.
        x_noise: Of ``x``.
        scale_noise: Of ``scale``.
        rounding: Of the division, relative.
    """
    limits = ml_dtypes.iinfo(got.dtype)
    level = got.astype(np.float64) - zero
    low = np.where(got == limits.min, -np.inf, level - 0.5)
    high = np.where(got == limits.max, np.inf, level + 0.5)
    with np.errstate(all="ignore"):
        steps = x / scale
        noise = x_noise / np.abs(scale) + np.abs(steps) * (scale_noise / np.abs(scale) + rounding)
    return distance(steps, low, high), noise


def distance(x: Array, low: Array, high: Array) -> Array:
    """How far numbers are from intervals; 0 inside."""
    with np.errstate(invalid="ignore"):
        found: Array = np.maximum(np.maximum(low - x, x - high), 0.0)
    return found


def floored(n: Array) -> tuple[Array, Array]:
    """The numbers whose floor is n."""
    return n, n + 1


def truncated(n: Array) -> tuple[Array, Array]:
    """The numbers that are n without their fraction."""
    return np.where(n > 0, n, n - 1), np.where(n < 0, n, n + 1)


def _raised(n: Array) -> tuple[Array, Array]:
    return n - 1, n


def _nearest(n: Array) -> tuple[Array, Array]:
    return n - 0.5, n + 0.5


def _signed(n: Array) -> tuple[Array, Array]:
    return np.where(n < 0, -np.inf, 0.0), np.where(n > 0, np.inf, 0.0)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"), Comparison()),
    "Floor": Rounding(floored),
    "Ceil": Rounding(_raised),
    "Round": Rounding(_nearest),
    "Sign": Rounding(_signed),
    "Trunc": Rounding(truncated),
    **dict.fromkeys(("Cast", "CastLike"), ToNumber(truncated)),
    "QuantizeLinear": Quantize(),
    "DynamicQuantizeLinear": DynamicQuantize(),
    "Mod": Remainder(),
    **dict.fromkeys(("ThresholdedRelu", "Shrink"), Threshold()),
}
