"""Statistics of a stream of batches are those of all samples together, computed at once in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spdexport.atlases.statistics import RunningFiring, RunningStatistics

PLACES = st.sampled_from([(), (3,), (2, 4), (2, 1, 2)])


def drawn(seed, samples, places, components, *, coarse):
    random = np.random.default_rng(seed)
    values = random.normal(size=(samples, *places, components))
    # Coarse numbers are often equal, so that the order of equal ones is seen.
    activation = (np.rint(values) if coarse else values).astype(np.float32)
    importance = np.clip(random.normal(size=activation.shape), 0, 1).astype(np.float32)
    return activation, importance


def brute_force(activation, importance, component, number):
    """Every sample's strongest place, by loops over all of them."""
    found = []
    for sample in range(len(activation)):
        a, m = (x[sample, ..., component].reshape(-1) for x in (activation, importance))
        place = max(range(a.size), key=lambda i: (abs(m[i] * a[i]), -i))
        found.append((abs(m[place] * a[place]), sample, place, a[place], m[place]))
    found.sort(key=lambda one: (-one[0], one[1]))
    return [one for one in found[:number] if one[0] > 0]


@given(
    seed=st.integers(0, 999), samples=st.integers(1, 12), places=PLACES, cuts=st.integers(1, 5),
    number=st.integers(0, 6), coarse=st.booleans(), gated=st.booleans(),
)  # fmt: skip
def test_a_stream_gives_what_all_samples_give_at_once(seed, samples, places, cuts, number, coarse, gated):
    activation, importance = drawn(seed, samples, places, 3, coarse=coarse)
    running, firing = RunningStatistics(3, number), RunningFiring(0.3)
    for part in np.array_split(np.arange(samples), cuts):
        if len(part):
            running.add(activation[part], importance[part] if gated else None)
            firing.add(importance[part])
    found, fires = running.result(), firing.result()
    axes = tuple(range(activation.ndim - 1))
    np.testing.assert_allclose(found.mean_activation, np.abs(activation).mean(axes, np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.peak_activation, np.abs(activation).max(axes), rtol=1e-6)
    if gated:
        np.testing.assert_allclose(found.mean_importance, importance.mean(axes, np.float64), rtol=1e-6)
        np.testing.assert_allclose(found.peak_importance, importance.max(axes))
    else:
        assert found.mean_importance is found.peak_importance is None
    weights = importance if gated else np.ones_like(importance)
    for component in range(3):
        right = brute_force(activation, weights, component, number)
        tops = found.tops
        rows = zip(tops.sample[component], tops.place[component], tops.activation[component],
                   tops.importance[component], strict=True)  # fmt: skip
        got = [(s, p, a, m) for s, p, a, m in rows if s >= 0]
        assert [one[:2] for one in got] == [one[1:3] for one in right]
        np.testing.assert_allclose([one[2:] for one in got], [one[3:] for one in right])
    above = (importance > np.float32(0.3)).mean(axis=0)
    np.testing.assert_allclose(fires.map, np.moveaxis(above, -1, 0))
    np.testing.assert_allclose(fires.density, above.reshape(-1, 3).mean(axis=0))


def test_what_never_fires_has_no_samples():
    running = RunningStatistics(2, 4)
    running.add(np.array([[0.0, 1.0], [0.0, 0.0]], np.float32), None)
    assert running.result().tops.sample.tolist() == [[-1, -1], [0, -1]]


@pytest.mark.parametrize("limit", [0.1, np.array([0.1, 2.0])])
def test_a_limit_is_compared_in_the_values_own_dtype(limit):
    firing = RunningFiring(limit)
    firing.add(np.array([[0.1, 0.1], [0.2, 0.2]], np.float32))  # 0.1 in float32 is greater than in float64
    assert firing.result().density.tolist() == [0.5, 0.5 if np.ndim(limit) == 0 else 0.0]
