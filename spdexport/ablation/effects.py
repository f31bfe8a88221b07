"""How far an output is from what it was, added up over samples. Pure numpy, float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an ablation does to one output, over all samples.

    Attributes:
        change: The mean 2-norm of the change.
        relative: The mean of that norm over the baseline's norm; samples whose baseline is zero do not count.
        largest: The greatest 2-norm of the change.
        top_changed: The share of samples whose greatest entry is another; None unless the output is (batch, classes).
        kl: The mean Kullback-Leibler divergence of the softmax after from before, in nats; None likewise.
    """

    change: float
    relative: float
    largest: float
    top_changed: float | None
    kl: float | None


def log_softmax(x: FloatArray) -> FloatArray:
    """log(exp(x) / sum(exp(x))) over the last axis, without an overflow."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


class Baseline:
    """The outputs without an ablation, on one batch.

    Args:
        output: Shape (samples, ...), of any float dtype.
    """

    def __init__(self, output: Array) -> None:
        self.values: FloatArray = np.asarray(output, np.float64)
        self.has_classes = output.ndim == 2 and output.shape[1] > 1
        self.norms = np.linalg.norm(self.values.reshape(len(output), -1), axis=1)
        if self.has_classes:
            self.top = self.values.argmax(axis=1)
            self.log_share = log_softmax(self.values)
            self.share = np.exp(self.log_share)


class Running:
    """Takes in the outputs of several ablations batch by batch.

    Args:
        ablations: How many.

    Attributes:
        notes: What the user should know of how they were come by.
    """

    def __init__(self, ablations: int) -> None:
        self._change, self._relative, self._largest = (np.zeros(ablations) for _ in range(3))
        self._top, self._kl = np.zeros(ablations), np.zeros(ablations)
        self._samples = np.zeros(ablations, np.int64)
        self._nonzero = np.zeros(ablations, np.int64)
        self._has_classes = False
        self.notes: tuple[str, ...] = ()

    def add(self, which: slice, outputs: Array, baseline: Baseline) -> None:
        """Take in what some ablations give on one batch.

        Args:
            which: The ablations.
            outputs: Shape (ablations, samples, ...).
            baseline: On the same samples.
        """
        values: FloatArray = np.asarray(outputs, np.float64)
        number, samples = values.shape[:2]
        norms = np.linalg.norm((values - baseline.values).reshape(number, samples, -1), axis=2)
        counted = baseline.norms > 0
        self._change[which] += norms.sum(axis=1)
        self._relative[which] += (norms[:, counted] / baseline.norms[counted]).sum(axis=1)
        self._largest[which] = np.maximum(self._largest[which], norms.max(axis=1, initial=0.0))
        self._samples[which] += samples
        self._nonzero[which] += int(counted.sum())
        self._has_classes = baseline.has_classes
        if baseline.has_classes:
            self._top[which] += (values.argmax(axis=2) != baseline.top).sum(axis=1)
            after = log_softmax(values)
            self._kl[which] += (baseline.share * (baseline.log_share - after)).sum(axis=(1, 2))

    def merge(self, other: Self) -> Self:
        """Return what both have taken in of the same ablations."""
        merged = type(self)(len(self._change))
        for name in ("_change", "_relative", "_top", "_kl", "_samples", "_nonzero"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        merged._largest = np.maximum(self._largest, other._largest)
        merged._has_classes = self._has_classes or other._has_classes
        merged.notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return merged

    def effects(self) -> tuple[Effect, ...]:
        """Return what was found of each ablation; at least one batch of each was taken in."""
        return tuple(
            Effect(
                change=float(self._change[i] / n),
                relative=float(self._relative[i] / max(self._nonzero[i], 1)),
                largest=float(self._largest[i]),
                top_changed=float(self._top[i] / n) if self._has_classes else None,
                # A divergence is not negative; that of equal outputs is a rounding error on either side.
                kl=max(float(self._kl[i] / n), 0.0) if self._has_classes else None,
            )
            for i, n in enumerate(self._samples)
        )
