"""The measures against torch's own, and in batches as in one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from spdexport.ablation.effects import Baseline, Running

RNG = np.random.default_rng(0)


def found(before, after, cuts=()):
    running = Running(len(after))
    for part in np.split(np.arange(len(before)), cuts):
        if len(part):
            running.add(slice(0, len(after)), after[:, part], Baseline(before[part]))
    return running.effects()


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 300.0]), cuts=st.sets(st.integers(1, 11), max_size=3))
def test_classes(seed, scale, cuts):
    rng = np.random.default_rng(seed)
    before, after = scale * rng.standard_normal((12, 5)), scale * rng.standard_normal((3, 12, 5))
    for effect, values in zip(found(before, after, sorted(cuts)), after, strict=True):
        norms = np.linalg.norm(values - before, axis=1)
        np.testing.assert_allclose(effect.change, norms.mean(), rtol=1e-12)
        np.testing.assert_allclose(effect.largest, norms.max(), rtol=1e-12)
        np.testing.assert_allclose(effect.relative, (norms / np.linalg.norm(before, axis=1)).mean(), rtol=1e-12)
        assert effect.top_changed == (before.argmax(1) != values.argmax(1)).mean()
        a, b = (torch.log_softmax(torch.tensor(x), dim=1) for x in (before, values))
        right = functional.kl_div(b, a, log_target=True, reduction="batchmean")
        np.testing.assert_allclose(effect.kl, float(right), rtol=1e-9, atol=1e-12)


def test_other_outputs_have_no_classes():
    before = RNG.standard_normal((4, 3, 2))
    (effect,) = found(before, 2 * before[None])
    assert (effect.top_changed, effect.kl) == (None, None)
    np.testing.assert_allclose(effect.relative, 1.0)


def test_nothing_changes():
    before = RNG.standard_normal((4, 3))
    (effect,) = found(before, before[None])
    assert (effect.change, effect.relative, effect.largest, effect.top_changed, effect.kl) == (0, 0, 0, 0, 0)


def test_a_baseline_of_zero_has_no_relative_change():
    before = np.array([[0.0, 0.0], [3.0, 4.0]])
    (effect,) = found(before, before[None] + 1)
    np.testing.assert_allclose(effect.relative, np.sqrt(2) / 5)
