"""Timing things against each other on a machine that is never quiet: interleaved runs, medians, and their spread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import FloatArray

WARM_UP = 3
"""Runs before the first that counts: memory is allocated, and algorithms are chosen, in the first ones."""

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The times of one thing.

    Attributes:
        median: Seconds.
        low: The lower quartile, seconds.
        high: The upper quartile, seconds.
        runs: How many runs it was measured in.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Return the median and quartiles of some times in seconds, at least one."""
        low, median, high = (float(q) for q in np.quantile(np.asarray(seconds), (0.25, 0.5, 0.75)))
        return cls(median=median, low=low, high=high, runs=len(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How much longer one thing takes than another.

    Attributes:
        median: The median over all pairs of runs of the first's time over the second's.
        low: The lower end of its confidence interval.
        high: The upper end.
        confidence: Of the interval, such as 0.95.
    """

    median: float
    low: float
    high: float
    confidence: float


def interleaved(
    things: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> tuple[tuple[float, ...], ...]:
    """Return the times of several things, each run once in every round, so that a slow moment hits all of them alike.

    Every other round runs them in reverse, so that none always has the caches that the same other one left.

    Args:
        things: What is timed.
        rounds: How many rounds count, at least one, after ``WARM_UP`` that do not.
        seconds: After this long no further round begins; None for all rounds.
        told: Called with the number of each round that is done.

    Returns:
        For each thing its time in seconds in every round.
    """
    for _ in range(WARM_UP):
        for thing in things:
            thing()
    found: list[list[float]] = [[] for _ in things]
    end = None if seconds is None else time.perf_counter() + seconds
    for number in range(rounds):
        order = range(len(things)) if number % 2 == 0 else reversed(range(len(things)))
        for index in order:
            start = time.perf_counter()
            things[index]()
            found[index].append(time.perf_counter() - start)
        told(number + 1)
        if end is not None and time.perf_counter() > end:
            break
    return tuple(map(tuple, found))


def ratio_of(first: Sequence[float], second: Sequence[float], *, seed: int) -> Ratio:
    """Return the median ratio of paired times, with a confidence interval by the percentile bootstrap over the pairs.

    Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.

    Args:
        first: Seconds, in the order of the rounds.
        second: Seconds in the same rounds.
        seed: Of the resampling.
    """
    pairs: FloatArray = np.asarray(first, np.float64) / np.asarray(second, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    medians = np.median(pairs[draws], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(medians, (tail, 1 - tail)))
    return Ratio(median=float(np.median(pairs)), low=low, high=high, confidence=CONFIDENCE)
