"""What a sample of data shows about a loss: bounds that hold for data to come, at a confidence that is said.

**A paired difference of accuracy.** Of n samples, b are right in the dense network alone and c in the compressed one
alone. The drop in the population is q (2 theta - 1): q of all samples change, theta of those for the worse. Each of
the two has an exact confidence distribution (Clopper and Pearson 1934), and melding them bounds their product (Fay and
Lumbard 2021, "Confidence intervals for difference in proportions for matched pairs compatible with exact McNemar's or
sign tests")::

    theta ~ Beta(b + 1, c),    q ~ Beta(b + c + 1, n - b - c)  where theta > 1/2,  Beta(b + c, n - b - c + 1)  else,

the upper bound is the quantile of q (2 theta - 1). Where c = 0 it is Clopper and Pearson's for b of n, and where
nothing changes 1 - alpha^(1/n), 3 / n for 95%: a normal interval would have no width there, which is where a budget of
nothing lies. A score interval (Tango 1998) is a little shorter, and holds in 94% of cases where it says 95.

**A mean of losses** of single samples, which are skewed: many near nothing, a few large. Student's interval then holds
too rarely, above. Hall's transformation (1992, "On the removal of skewness by transformation") corrects it to second
order; with s the standard deviation and g the skewness of the sample::

    mean < x - s / sqrt(n) * T^-1(-t),    T^-1(u) = 3 sqrt(n) / g * ((1 + g / sqrt(n) (u - g / (6 sqrt(n))))^(1/3) - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import Array, FloatArray

CONFIDENCE = 0.95
"""The probability with which a bound holds."""

_POINTS = 4_001
"""Places at which a distribution is worked out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate, and where it lies with ``confidence``: half of what is left is below, half above.

    Attributes:
        estimate: That of the sample.
        low: The lower end.
        high: The upper end.
        confidence: Of both ends together.
    """

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """How fine a budget a number of samples shows.

    Attributes:
        samples: The number.
        budget: What may be lost, as a share.
        least: The smallest budget that could be shown at all: by a network that answers alike on every sample.
        within: How far the bound lies above what is measured, where the measured drop is half of the budget.
        confidence: Of the bound.
    """

    samples: int
    budget: float
    least: float
    within: float
    confidence: float

    @property
    def shows(self) -> bool:
        """Whether any result could keep the budget with the bound."""
        return self.least <= self.budget


def drop_upper_bound(samples: int, worse: int, better: int, *, confidence: float = CONFIDENCE) -> float:
    """Return what the drop in accuracy is at most, as a share, with this confidence.

    Args:
        samples: n.
        worse: b: samples that the dense network alone gets right.
        better: c: samples that the compressed network alone gets right.
        confidence: Of the bound.

    Raises:
        ValueError: The counts are not those of any sample.
    """
    n, m = samples, worse + better
    if min(worse, better) < 0 or m > n or n < 1:
        raise ValueError(f"{worse} and {better} of {n} samples cannot change")
    above = _cumulative(m + 1, n - m)
    below = _cumulative(m, n - m + 1)
    theta, mass = _masses(worse + 1, better)
    lean = 2 * theta - 1

    def probability(drop: float) -> float:
        """Return that the drop is no more than this."""
        share = np.full_like(lean, 1.0 if drop >= 0 else 0.0)
        up, down = lean > 0, lean < 0
        share[up] = above(drop / lean[up])
        # q (2 theta - 1) <= drop where q is at least so large.
        share[down] = 1 - below(drop / lean[down])
        return float((mass * share).sum())

    low, high = -1.0, 1.0
    for _ in range(44):
        middle = (low + high) / 2
        low, high = (low, middle) if probability(middle) >= confidence else (middle, high)
    return high


def drop_interval(samples: int, worse: int, better: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the drop in accuracy with its two-sided interval; arguments as for ``drop_upper_bound``."""
    one_sided = (1 + confidence) / 2
    return Interval(
        estimate=(worse - better) / samples,
        low=-drop_upper_bound(samples, better, worse, confidence=one_sided),
        high=drop_upper_bound(samples, worse, better, confidence=one_sided),
        confidence=confidence,
    )


def mean_upper_bound(values: Array, *, confidence: float = CONFIDENCE) -> float:
    """Return what the mean of the population is at most, with this confidence; infinite for fewer than 2 values.

    Args:
        values: One loss for each sample, shape (n,). Of differences in pairs, the differences.
        confidence: Of the bound.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        return math.inf
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation == 0:
        return mean
    root = math.sqrt(n)
    skew = float((((values - mean) / deviation) ** 3).mean())
    u = -_student(confidence, n - 1)
    if abs(skew) > 1e-6:
        inner = 1 + skew / root * (u - skew / (6 * root))
        u = 3 * root / skew * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)
    return mean - deviation / root * u


def mean_interval(values: Array, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean with its two-sided interval; arguments as for ``mean_upper_bound``."""
    values = np.asarray(values, dtype=np.float64)
    one_sided = (1 + confidence) / 2
    return Interval(
        estimate=float(values.mean()),
        low=-mean_upper_bound(-values, confidence=one_sided),
        high=mean_upper_bound(values, confidence=one_sided),
        confidence=confidence,
    )


def supported(samples: int, budget: float, *, confidence: float = CONFIDENCE) -> Support:
    """Return how fine a budget of accuracy a number of samples shows.

    Where a network loses half of the budget, three samples change for the worse for each one that changes for the
    better: that is what compressed networks do near such budgets, give or take.

    Args:
        samples: How many there are.
        budget: What may be lost, as a share.
        confidence: Of the bound.
    """
    drop = budget / 2
    better = round(samples * drop / 2)
    worse = better + round(samples * drop)
    changed = worse + better <= samples
    measured = (worse - better) / samples
    return Support(
        samples=samples,
        budget=budget,
        least=1 - (1 - confidence) ** (1 / samples),
        within=drop_upper_bound(samples, worse, better, confidence=confidence) - measured if changed else 1.0,
        confidence=confidence,
    )


def _masses(a: float, b: float) -> tuple[FloatArray, FloatArray]:
    """Places and their probabilities for Beta(a, b); a distribution with b = 0 is 1, with a = 0 it is 0."""
    if a == 0 or b == 0:
        return np.array([0.0 if a == 0 else 1.0]), np.ones(1)
    places, density = _density(a, b)
    mass = density * np.gradient(places)
    return places, mass / mass.sum()


def _cumulative(a: float, b: float) -> Callable[[FloatArray], FloatArray]:
    """The distribution function of Beta(a, b)."""
    if a == 0 or b == 0:
        only = 0.0 if a == 0 else 1.0
        return lambda x: np.asarray(np.asarray(x) >= only, dtype=np.float64)
    places, density = _density(a, b)
    steps = (density[1:] + density[:-1]) / 2 * np.diff(places)
    sums = np.concatenate([[0.0], steps.cumsum()])
    return lambda x: np.interp(x, places, sums / sums[-1], left=0.0, right=1.0)


def _density(a: float, b: float) -> tuple[FloatArray, FloatArray]:
    """Places from end to end of what counts of Beta(a, b), a and b at least 1, and the density there up to a factor."""
    mean = a / (a + b)
    deviation = math.sqrt(mean * (1 - mean) / (a + b + 1))
    places = np.linspace(max(mean - 20 * deviation, 0.0), min(mean + 20 * deviation, 1.0), _POINTS)
    with np.errstate(divide="ignore"):
        # 0 * log 0 is 0 here: x^0 is 1 at 0 too.
        logs = (np.log(places) * (a - 1) if a > 1 else 0.0) + (np.log1p(-places) * (b - 1) if b > 1 else 0.0)
    logs = logs + np.zeros_like(places)
    return places, np.exp(logs - logs.max())


def _student(probability: float, freedom: int) -> float:
    """A quantile of Student's distribution, by Cornish and Fisher's expansion: to 1% from 3 degrees of freedom."""
    z, v = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
