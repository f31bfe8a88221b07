"""What is remembered of causal importances while a data set goes by, and the masks that follow. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray


class Measure(StrEnum):
    """What a component is judged by."""

    PEAK = "peak"
    MEAN = "mean"
    FREQUENCY = "frequency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which components are kept.

    Attributes:
        by: What they are judged by.
        threshold: Kept where the peak or mean is greater; for ``frequency``, an importance above it counts as firing.
        min_frequency: For ``frequency``, kept where the share of firings is at least this and not zero.
        top: Where given, the so many greatest of each layer are kept in the place of a limit; of equal ones the first.
    """

    by: Measure = Measure.PEAK
    threshold: float = 0.1
    min_frequency: float = 0.0
    top: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Importances:
    """The importances of one layer's components over a data set, each (C,), float64; None for what is not known.

    Attributes:
        peak: The greatest.
        mean: Over all samples and locations.
        frequency: The share of samples and locations where it exceeds the rule's threshold.
    """

    peak: FloatArray | None
    mean: FloatArray | None
    frequency: FloatArray | None

    def measured(self, measure: Measure) -> FloatArray | None:
        """Return what is known by one measure."""
        found: FloatArray | None = getattr(self, measure.value)
        return found

    def mask(self, rule: Rule) -> Array:
        """1 for components that are kept and 0 for others: shape (C,), float32."""
        measured = self.measured(rule.by)
        assert measured is not None, "a rule is about what is known"
        if rule.top is not None:
            # Stable, so that of equal ones the first are kept.
            order = np.argsort(-measured, kind="stable")
            kept = np.zeros(measured.shape, bool)
            kept[order[: rule.top]] = True
        elif rule.by is Measure.FREQUENCY:
            kept = (measured >= rule.min_frequency) & (measured > 0)
        else:
            kept = measured > rule.threshold
        return kept.astype(np.float32)


class Running:
    """Takes in importances batch by batch; what it holds does not grow.

    Args:
        components: C.
        threshold: Above which a component fires. It is compared in the importances' own dtype.
    """

    def __init__(self, components: int, threshold: float) -> None:
        self._threshold = threshold
        self._peak = np.full(components, -np.inf)
        self._sum = np.zeros(components)
        self._fired = np.zeros(components, np.int64)
        self._count = 0

    def add(self, importances: Array) -> None:
        """Take in importances of shape (..., C), finite."""
        rows = importances.reshape(-1, importances.shape[-1])
        self._peak = np.maximum(self._peak, rows.max(axis=0, initial=-np.inf))
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._fired += (rows > self._threshold).sum(axis=0)
        self._count += rows.shape[0]

    def merge(self, other: Self) -> Self:
        """Return what both have taken in, of the same layer with the same threshold."""
        merged = type(self)(len(self._peak), self._threshold)
        merged._peak = np.maximum(self._peak, other._peak)
        merged._sum = self._sum + other._sum
        merged._fired = self._fired + other._fired
        merged._count = self._count + other._count
        return merged

    def result(self) -> Importances:
        """Return what was found; at least one batch was taken in."""
        return Importances(peak=self._peak, mean=self._sum / self._count, frequency=self._fired / self._count)
