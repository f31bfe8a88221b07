"""What a compressed network loses against the dense one, on samples that both have answered.

Each loss is a mean over samples, so that what is seen of it on some tells of others: with d the per-sample loss and b
the budget, the mean of ``d - b`` is to be below zero. The relative norm, which is the root of a ratio of sums, is one
too: sum of e / sum of n <= b^2 wherever the mean of e - b^2 n is below zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from spdexport.compression.bounds import (
    CONFIDENCE,
    Interval,
    drop_interval,
    drop_upper_bound,
    mean_upper_bound,
)
from spdexport.compression.budgets import LossKind
from spdexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from spdexport.conv import Array, FloatArray

    Outputs = Mapping[str, Array]  # what a network gives for one batch, by name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lost:
    """What is lost on some samples.

    Attributes:
        value: The loss.
        sizes: For each sample, what ``loss <= b`` is judged by: e of the relative norm, the loss of others.
        scales: For each sample, n of the relative norm; 1 of others.
        power: 2 for the relative norm, 1 for others: the loss is (sum of sizes / sum of scales)^(1 / power).
    """

    value: float
    sizes: FloatArray
    scales: FloatArray
    power: int

    @classmethod
    def of(cls, sizes: FloatArray, scales: FloatArray | None = None, *, power: int = 1) -> Self:
        """Return the loss of all samples together."""
        scales = np.ones_like(sizes) if scales is None else scales
        whole, total = float(scales.sum()), float(sizes.sum())
        ratio = total / whole if whole else (0.0 if total == 0 else np.inf)
        value = float(ratio ** (1 / power)) if power > 1 else ratio
        return cls(value=value, sizes=sizes, scales=scales, power=power)

    def merge(self, other: Self) -> Self:
        """Return the loss of the samples of both."""
        sizes, scales = (np.concatenate([getattr(one, name) for one in (self, other)]) for name in ("sizes", "scales"))
        return type(self).of(sizes, scales, power=self.power)

    def upper_bound(self, *, confidence: float = CONFIDENCE) -> float:
        """Return what the loss of samples to come is at most, with this confidence."""
        if self.is_paired:
            return drop_upper_bound(len(self.sizes), *self._changes, confidence=confidence)
        return self._root(lambda values: mean_upper_bound(values, confidence=confidence))

    def interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return the loss with its two-sided interval."""
        if self.is_paired:
            return drop_interval(len(self.sizes), *self._changes, confidence=confidence)
        one_sided = (1 + confidence) / 2
        return Interval(
            estimate=self.value,
            low=self._root(lambda values: -mean_upper_bound(-values, confidence=one_sided)),
            high=self._root(lambda values: mean_upper_bound(values, confidence=one_sided)),
            confidence=confidence,
        )

    @property
    def is_paired(self) -> bool:
        """Whether each sample is won, lost or as it was, as answers are that are right or wrong."""
        return self.power == 1 and bool(np.isin(self.sizes, (-1, 0, 1)).all())

    @property
    def _changes(self) -> tuple[int, int]:
        """Samples that are lost, and samples that are won."""
        return int((self.sizes > 0).sum()), int((self.sizes < 0).sum())

    def _root(self, bound: Callable[[FloatArray], float]) -> float:
        """Return the loss for which a bound of the mean of what is beyond it is zero."""
        if self.power == 1:
            return bound(self.sizes)
        low, high = 0.0, max(2 * self.value, 1e-12)
        while bound(self.sizes - high**self.power * self.scales) > 0:
            if high > 1e12 or len(self.sizes) < 2:
                return float("inf")
            low, high = high, 2 * high
        for _ in range(50):
            middle = (low + high) / 2
            above = bound(self.sizes - middle**self.power * self.scales) > 0
            low, high = (middle, high) if above else (low, middle)
        return high


class Loss(Protocol):
    """A way to tell what is lost."""

    @property
    def title(self) -> str:
        """What it is, in a few words."""

    def of_batch(self, dense: Outputs, compressed: Outputs, labels: Array | None) -> tuple[FloatArray, FloatArray]:
        """Return sizes and scales of the samples of a batch."""

    @property
    def power(self) -> int:
        """As ``Lost.power``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Top1Drop:
    """The share of samples that the network answers wrongly now, less the share that it answers rightly only now.

    Without labels: the share that gets another top class.
    """

    title: str = "top-1 drop"
    power: int = 1

    def of_batch(self, dense: Outputs, compressed: Outputs, labels: Array | None) -> tuple[FloatArray, FloatArray]:
        """Return -1, 0 or 1 for each sample."""
        name, before = next(iter(dense.items()))
        if before.ndim != 2:
            raise UsageError(
                f"The model has no top class: its first output, {name}, has {before.ndim} axes.",
                where="--max-top1-drop",
                hint="Give --max-relative-l2, or a measure of your own with --metric.",
            )
        classes, now = before.argmax(axis=1), compressed[name].argmax(axis=1)
        if labels is None:
            sizes = (classes != now).astype(np.float64)
        else:
            sizes = (classes == labels).astype(np.float64) - (now == labels)
        return sizes, np.ones_like(sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeL2:
    """The norm of the change of all float outputs over the norm of what they were."""

    title: str = "relative L2"
    power: int = 2

    def of_batch(self, dense: Outputs, compressed: Outputs, labels: Array | None) -> tuple[FloatArray, FloatArray]:  # noqa: ARG002
        """Return the squares for each sample."""
        errors = norms = 0.0
        for name, before in dense.items():
            if before.dtype.kind == "f":
                flat = before.reshape(len(before), -1).astype(np.float64)
                change = compressed[name].reshape(len(before), -1) - flat
                errors, norms = errors + (change**2).sum(axis=1), norms + (flat**2).sum(axis=1)
        return np.asarray(errors), np.asarray(norms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL(dense || compressed) of the softmax of the first output, in nats; its last axis has the classes."""

    title: str = "KL divergence"
    power: int = 1

    def of_batch(self, dense: Outputs, compressed: Outputs, labels: Array | None) -> tuple[FloatArray, FloatArray]:  # noqa: ARG002
        """Return the divergence of each sample, the mean over its locations where it has some."""
        name, before = next(iter(dense.items()))
        p, q = _log_softmax(before), _log_softmax(compressed[name])
        each = (np.exp(p) * (p - q)).sum(axis=-1)
        sizes = each.reshape(len(each), -1).mean(axis=1)
        return sizes, np.ones_like(sizes)


def _log_softmax(values: Array) -> FloatArray:
    x = values.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


LOSSES: Mapping[LossKind, Loss] = {
    LossKind.TOP1: Top1Drop(),
    LossKind.RELATIVE_L2: RelativeL2(),
    LossKind.KL: Divergence(),
}
"""Those that need nothing of the user's."""


def measured(loss: Loss, pairs: Iterable[tuple[Outputs, Outputs, Array | None]]) -> Lost:
    """Return what is lost on some batches: the answers of both networks, and the labels."""
    sizes, scales = zip(*(loss.of_batch(*pair) for pair in pairs), strict=True)
    return Lost.of(np.concatenate(sizes), np.concatenate(scales), power=loss.power)
