from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from spdexport.compression.bounds import (
    drop_interval,
    drop_upper_bound,
    mean_interval,
    mean_upper_bound,
    supported,
)


def test_where_none_gets_better_the_bound_is_that_of_clopper_and_pearson() -> None:
    assert drop_upper_bound(2_000, 0, 0) == pytest.approx(1 - 0.05 ** (1 / 2_000), rel=1e-5)
    # Quantiles of Beta(worse + 1, n - worse), from R's qbeta and scipy.
    assert drop_upper_bound(2_000, 5, 0) == pytest.approx(0.005249275286933494, rel=1e-4)
    assert drop_upper_bound(10, 3, 0) == pytest.approx(0.6066242, rel=1e-4)
    assert drop_upper_bound(10, 10, 0) == pytest.approx(1.0)


def test_bounds_of_many_samples_are_normal() -> None:
    n, worse, better = 1_000_000, 12_000, 4_000
    drop = (worse - better) / n
    deviation = math.sqrt(((worse + better) / n - drop**2) / n)
    assert drop_upper_bound(n, worse, better) == pytest.approx(drop + 1.645 * deviation, rel=2e-3)
    interval = drop_interval(n, worse, better)
    assert interval.estimate == drop
    assert (interval.low, interval.high) == pytest.approx((drop - 1.96 * deviation, drop + 1.96 * deviation), rel=2e-3)


@cache
def bound(n: int, worse: int, better: int) -> float:
    return drop_upper_bound(n, worse, better)


@pytest.mark.parametrize(
    ("n", "worse", "better"),
    [
        (200, 0.005, 0.0),
        (200, 0.01, 0.005),
        (200, 0.02, 0.02),
        (200, 0.05, 0.03),
        (2_000, 0.001, 0.002),
        (2_000, 0.005, 0.002),
        pytest.param(2_000, 0.02, 0.02, marks=pytest.mark.long),
        pytest.param(2_000, 0.2, 0.2, marks=pytest.mark.long),
    ],
)
def test_the_bound_holds_as_often_as_it_says(n: int, worse: float, better: float) -> None:
    trials = 1_500
    draws = np.random.default_rng(0).multinomial(n, [worse, better, 1 - worse - better], size=trials)
    holds = np.mean([bound(n, int(b), int(c)) >= worse - better for b, c, _ in draws])
    # Less two deviations of what so many trials tell.
    assert holds >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / trials)


def test_more_that_gets_worse_raises_the_bound_and_more_data_lower_it() -> None:
    assert drop_upper_bound(500, 3, 1) < drop_upper_bound(500, 4, 1)
    assert drop_upper_bound(500, 3, 2) < drop_upper_bound(500, 3, 1)
    assert drop_upper_bound(5_000, 30, 10) < drop_upper_bound(500, 3, 1)
    assert drop_upper_bound(500, 3, 1, confidence=0.9) < drop_upper_bound(500, 3, 1, confidence=0.99)
    assert drop_upper_bound(500, 0, 100) < 0


@pytest.mark.parametrize("counts", [(0, 0, 0), (10, 6, 5), (10, -1, 0)])
def test_counts_of_no_sample_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot change"):
        drop_upper_bound(*counts)


@pytest.mark.parametrize(("shape", "least"), [(0.0, 0.94), (0.5, 0.94), (1.0, 0.92)])
def test_the_bound_of_a_mean_holds_for_skewed_losses(shape: float, least: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3_000, 400))
    mean = 0.0
    if shape:
        values, mean = np.exp(shape * values), math.exp(shape**2 / 2)
    holds = np.mean([mean_upper_bound(row) >= mean for row in values])
    student = np.mean(values.mean(1) + 1.6487 * values.std(1, ddof=1) / 20 >= mean)
    assert holds >= least
    assert holds >= student - 0.005


def test_the_interval_of_a_mean_has_bounds_on_both_sides() -> None:
    values = np.random.default_rng(0).exponential(size=1_000)
    interval = mean_interval(values, confidence=0.9)
    assert interval.low < interval.estimate < interval.high
    assert interval.high == mean_upper_bound(values, confidence=0.95)
    assert interval.high - interval.estimate > interval.estimate - interval.low, "the long tail is above"
    assert mean_upper_bound(np.ones(5)) == 1.0
    assert mean_upper_bound(np.ones(1)) == math.inf
    # Student's quantile for 9 degrees of freedom and a sample without skewness: 1.8331.
    symmetric = np.array([-1.0, 1.0] * 5)
    assert mean_upper_bound(symmetric) == pytest.approx(1.8331 * symmetric.std(ddof=1) / math.sqrt(10), rel=1e-3)


def test_what_a_number_of_samples_supports() -> None:
    found = supported(2_000, 0.01)
    assert found.shows
    assert 0.004 < found.within < 0.006, "2,000 samples show 1% to within 0.5"
    assert found.least == pytest.approx(0.0015, rel=0.01)
    few = supported(100, 0.01)
    assert not few.shows
    assert few.least > 0.01
    assert supported(100_000, 0.01).within < supported(10_000, 0.01).within < found.within
