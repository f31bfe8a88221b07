"""Choices that each element makes by itself: comparisons, rounding to integers, steps, buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array


class Taken(Rule):
    """An operator with one output, that is the choice."""

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]


class Comparison(Taken):
    """Greater, Less, Equal and their kind: the margin is the distance of the two numbers."""

    reads = (0, 1)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        with np.errstate(invalid="ignore"):
            margins = np.abs(node.x - node.input(1))
        noise = noises.of(0) + noises.of(1)
        return differing(node.outputs[0], choice[0], margins, noise)


class Rounding(Taken):
    """An operator that gives an integer for a whole interval of numbers: the margin is the distance from the interval.

    Args:
        region: From the integers to the ends of their intervals.
    """

    def __init__(self, region: Callable[[Array], tuple[Array, Array]]) -> None:
        self._region = region

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        got = choice[0].astype(np.float64)
        margins = distance(node.x, *self._region(got))
        possible = got == (np.sign(got) if node.op == "Sign" else np.rint(got))
        return differing(node.outputs[0], choice[0], np.where(possible, margins, np.inf), noises.of(0))


class Remainder(Rule):
    """Mod of floats: the number of times that the divisor goes into the number is the choice."""

    reads = (0, 1)

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """Return the choice that the outputs tell."""
        with np.errstate(all="ignore"):
            return np.rint((node.x - values[0].astype(np.float64)) / node.input(1))

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        with np.errstate(all="ignore"):
            found = node.x - choice * node.input(1)
        return [np.where(np.isfinite(found), found, node.outputs[0])]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
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
        """Return the choice that the outputs tell."""
        own = node.outputs[0]
        passed = np.where(values[0] == 0, 0.0, np.sign(node.x))
        # What is let through may be 0 itself.
        return np.where((own == 0) == (values[0] == 0), self._own(node), passed)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        bias = 0.0 if node.op == "ThresholdedRelu" else float(node.attributes.get("bias", 0.0))
        return [np.where(choice == 0, 0.0, node.x - choice * bias)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
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


def distance(x: Array, low: Array, high: Array) -> Array:
    """Return how far numbers are from intervals; 0 inside."""
    with np.errstate(invalid="ignore"):
        found: Array = np.maximum(np.maximum(low - x, x - high), 0.0)
    return found


class Bucket(Taken):
    """The bucket between sorted boundaries that a number falls into: how many of them lie before it."""

    reads = (0, 1)

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        got, borders = choice[0].astype(np.int64), node.input(1)
        if not ((got >= 0) & (got <= borders.shape[-1])).all():
            return nothing("a bucket is out of range")
        noise = np.broadcast_to(noises.of(1), borders.shape)
        end = np.full((*borders.shape[:-1], 1), np.inf)
        ends = np.concatenate((-end, borders, end), axis=-1)
        sizes = np.concatenate((0 / end, noise, 0 / end), axis=-1)
        if borders.ndim == 1:
            low, high, below, above = ends[got], ends[got + 1], sizes[got], sizes[got + 1]
        else:
            low, high = (np.take_along_axis(ends, got + i, axis=-1) for i in (0, 1))
            below, above = (np.take_along_axis(sizes, got + i, axis=-1) for i in (0, 1))
        return differing(node.outputs[0], choice[0], distance(node.x, low, high), noises.of(0) + below + above)


def floored(n: Array) -> tuple[Array, Array]:
    """Return the numbers whose floor is n."""
    return n, n + 1


def truncated(n: Array) -> tuple[Array, Array]:
    """Return the numbers that are n without their fraction."""
    return np.where(n > 0, n, n - 1), np.where(n < 0, n, n + 1)


def _raised(n: Array) -> tuple[Array, Array]:
    return n - 1, n


def _nearest(n: Array) -> tuple[Array, Array]:
    return n - 0.5, n + 0.5


def _signed(n: Array) -> tuple[Array, Array]:
    return np.where(n < 0, -np.inf, 0.0), np.where(n > 0, np.inf, 0.0)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"), Comparison()),
    "Bucketize": Bucket(),  # torch's, which ONNX does not have
    "Floor": Rounding(floored),
    "Ceil": Rounding(_raised),
    "Round": Rounding(_nearest),
    "Sign": Rounding(_signed),
    "Trunc": Rounding(truncated),
    "Mod": Remainder(),
    **dict.fromkeys(("ThresholdedRelu", "Shrink"), Threshold()),
}
