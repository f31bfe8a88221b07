"""Statistics in batches are those of the whole, and rules keep what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spdexport.importance.statistics import Importances, Measure, Rule, Running

FOUND = Importances(
    peak=np.array([0.1, 0.5, 1.0, 0.0]), mean=np.array([0.05, 0.5, 0.2, 0.0]), frequency=np.array([0.0, 1.0, 0.1, 0.0])
)


@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 29), max_size=4), threshold=st.floats(-0.5, 1.5))
def test_batches_are_the_whole(seed, cuts, threshold):
    values = np.random.default_rng(seed).uniform(-0.2, 1.2, (30, 2, 3, 5)).astype(np.float32)
    running = Running(5, threshold)
    for part in np.split(values, sorted(set(cuts))):
        running.add(part)
    found, flat = running.result(), values.reshape(-1, 5)
    np.testing.assert_array_equal(found.peak, flat.max(axis=0))
    np.testing.assert_allclose(found.mean, flat.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.frequency, (flat > threshold).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Rule(), [0, 1, 1, 0]),
        (Rule(threshold=0.5), [0, 0, 1, 0]),
        (Rule(by=Measure.MEAN), [0, 1, 1, 0]),
        (Rule(by=Measure.MEAN, threshold=0.2), [0, 1, 0, 0]),
        (Rule(by=Measure.FREQUENCY), [0, 1, 1, 0]),
        (Rule(by=Measure.FREQUENCY, min_frequency=0.1), [0, 1, 1, 0]),
        (Rule(by=Measure.FREQUENCY, min_frequency=0.5), [0, 1, 0, 0]),
        (Rule(top=1), [0, 0, 1, 0]),
        (Rule(by=Measure.MEAN, top=2), [0, 1, 1, 0]),
        (Rule(by=Measure.FREQUENCY, top=3), [1, 1, 1, 0]),
        (Rule(top=9), [1, 1, 1, 1]),
    ],
)
def test_rules(rule, kept):
    mask = FOUND.mask(rule)
    assert (mask.tolist(), mask.dtype) == (kept, np.float32)
