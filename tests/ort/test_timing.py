"""Statistics of times, on times that are made up; nothing is measured here."""

import numpy as np
import pytest

from spdexport.ort import timing
from spdexport.ort.timing import Spread, interleaved, ratio_of


def test_spread():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0, runs=5)
    assert Spread.of([7.0]) == Spread(median=7.0, low=7.0, high=7.0, runs=1)


def test_every_round_runs_all_and_the_order_turns():
    said = []
    done = []
    times = interleaved([lambda: said.append("a"), lambda: said.append("b")], rounds=4, told=done.append)
    assert said[2 * timing.WARM_UP :] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert done == [1, 2, 3, 4]
    assert [len(t) for t in times] == [4, 4]
    assert all(t >= 0 for thing in times for t in thing)


def test_no_round_begins_after_the_time_and_one_always_runs(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(now)))
    # Each round takes three ticks: two around the thing, one to look at the clock.
    (times,) = interleaved([lambda: None], rounds=100, seconds=7.0)
    assert times == (1.0, 1.0, 1.0)
    (once,) = interleaved([lambda: None], rounds=100, seconds=0.0)
    assert len(once) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_a_ratio_holds_it(seed):
    rng = np.random.default_rng(seed)
    busy = np.exp(rng.normal(0, 0.5, 200))  # slow moments, which hit both of a pair
    first = 1.3 * busy * np.exp(rng.normal(0, 0.05, 200))
    second = busy * np.exp(rng.normal(0, 0.05, 200))
    ratio = ratio_of(first, second, seed=0)
    assert ratio.low < 1.3 < ratio.high
    assert ratio.high - ratio.low < 0.05
    assert ratio == ratio_of(first, second, seed=0)


def test_equal_times_have_a_ratio_without_doubt():
    ratio = ratio_of([2.0, 4.0], [1.0, 2.0], seed=3)
    assert (ratio.low, ratio.median, ratio.high, ratio.confidence) == (2.0, 2.0, 2.0, 0.95)
