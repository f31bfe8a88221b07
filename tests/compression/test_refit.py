from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from compression.test_candidates import CONV, DEPTHWISE, DOUBLE, LINEAR, coloured, site_of
from forms.layer_strategies import run

from spdexport.compression.candidates import grouped_weight
from spdexport.compression.decomposition import decompose
from spdexport.compression.metric import Metric
from spdexport.compression.moments import Moments, moments_of
from spdexport.compression.refit import anchored, last_stage_refitted, refitted
from spdexport.conv import ConvSite, ConvSpec
from spdexport.forms import Form, FormKind, Stage, fold_form


def run_form(form: Form, x: np.ndarray) -> np.ndarray:
    found = torch.from_numpy(x)
    for stage in form.stages:
        found = run(stage, found)
    return found.numpy()


def pair_of_networks(site: ConvSite) -> tuple[np.ndarray, np.ndarray]:
    """What the layer reads in the compressed network, and what it gives in the dense one."""
    x = coloured(site.spec)
    y = run(Stage(spec=site.spec, weight=site.weight, bias=site.bias), torch.from_numpy(x)).numpy()
    rng = np.random.default_rng(7)
    return x + 0.3 * np.tanh(np.roll(x, 1, axis=1)) + 0.1 * rng.standard_normal(x.shape) + 0.5, y


def both(spec: ConvSpec, x: np.ndarray, y: np.ndarray) -> Moments:
    return moments_of(spec, x, y, rng=np.random.default_rng(0))


def error(form: Form, x: np.ndarray, y: np.ndarray) -> float:
    return float(((run_form(form, x) - y) ** 2).mean())


SPECS = [CONV, replace(CONV, groups=2, stride=(2, 2)), replace(DEPTHWISE, kernel=(3, 3)), LINEAR]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_without_a_ridge_the_weight_is_the_least_squares_fit(spec: ConvSpec) -> None:
    site = site_of(spec)
    x, y = pair_of_networks(site)
    form = refitted(site, FormKind.DENSE, (), both(spec, x, y), ridge=1e-12)
    # Its normal equations hold: what is left is orthogonal to all that the layer reads, and to the constant.
    left = both(spec, x, run_form(form, x) - y)
    before = both(spec, x, y)
    assert np.abs(left.cross_covariance()).max() <= 1e-6 * np.abs(before.cross_covariance()).max()
    assert np.abs(left.target_mean).max() <= 1e-9 * np.abs(before.target_mean).max()


def test_the_anchored_weight_is_that_of_augmented_rows() -> None:
    """As least squares in float64 finds it: rows of the data, and root t times the identity with the layer's own."""
    site = site_of(LINEAR)
    x, y = pair_of_networks(site)
    B, bias = anchored(site.weight, LINEAR, both(LINEAR, x, y), ridge=0.05)
    rows, answers = x - x.mean(axis=0), y - y.mean(axis=0)
    t = 0.05 * (rows**2).mean(axis=0).sum() / 96
    root = np.sqrt(t * len(x))
    stacked = np.vstack([rows, root * np.eye(96)]), np.vstack([answers, root * site.weight.T])
    expected = np.linalg.lstsq(*stacked, rcond=None)[0].T
    np.testing.assert_allclose(B[0], expected, atol=1e-10)
    np.testing.assert_allclose(bias, y.mean(axis=0) - expected @ x.mean(axis=0), atol=1e-10)


def test_where_the_data_say_nothing_the_weight_stays() -> None:
    site = site_of(CONV)
    x, y = np.ones((2, 48, 9, 9)), np.full((2, 64, 7, 7), 3.0)
    spec = replace(CONV, padding=((0, 0),) * 2)
    B, bias = anchored(site.weight, spec, both(spec, x, y))
    np.testing.assert_allclose(B.reshape(site.weight.shape), site.weight)
    np.testing.assert_allclose(bias, 3.0 - site.weight.sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_that_reads_what_it_read_stays_what_it_was(spec: ConvSpec) -> None:
    site = site_of(spec)
    x = coloured(spec)
    y = run(Stage(spec=spec, weight=site.weight, bias=site.bias), torch.from_numpy(x)).numpy()
    B, bias = anchored(site.weight, spec, both(spec, x, y))
    np.testing.assert_allclose(B.reshape(site.weight.shape), site.weight, atol=1e-8)
    np.testing.assert_allclose(bias, site.bias, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        (FormKind.RECOMPRESSED, (16,)),
        (FormKind.SPATIAL, (16,)),
        (FormKind.TUCKER, (16,)),
        (FormKind.TUCKER, (16, 32)),
    ],
)
def test_each_step_of_a_refit_loses_less(kind: FormKind, ranks: tuple[int, ...]) -> None:
    site = site_of(CONV)
    x, y = pair_of_networks(site)
    clean = moments_of(CONV, coloured(CONV), rng=np.random.default_rng(0))
    made = decompose(grouped_weight(site.weight, CONV), CONV, Metric.of(clean), kind, ranks[0])
    plain = made.form(ranks, site.bias, DOUBLE)
    z = x
    for stage in plain.stages[:-1]:
        z = run(stage, torch.from_numpy(z)).numpy()
    last = last_stage_refitted(plain, both(plain.stages[-1].spec, z, y))
    whole = refitted(site, kind, ranks, both(CONV, x, y))
    assert [stage.spec for stage in whole.stages] == [stage.spec for stage in plain.stages]
    assert error(whole, x, y) < error(last, x, y) < error(plain, x, y)
    assert all(a is b for a, b in zip(last.stages[:-1], plain.stages[:-1], strict=True))


def test_anchored_pairs_are_the_formula() -> None:
    site = site_of(CONV)
    x, y = pair_of_networks(site)
    found = both(CONV, x, y)
    metric = Metric.of(found)
    B = anchored(site.weight, CONV, found)[0][0]
    Q = np.linalg.eigh(B @ metric.full[0] @ B.T)[1][:, -16:]
    form = refitted(site, FormKind.RECOMPRESSED, (16,), found)
    np.testing.assert_allclose(np.asarray(fold_form(form).weight).reshape(64, -1), Q @ Q.T @ B, atol=1e-8)


def test_a_weight_of_long_patches_has_its_last_stage_fitted() -> None:
    sketched = moments_of(
        CONV, coloured(CONV), coloured(replace(CONV, in_channels=64)), rng=np.random.default_rng(0), full_patch=1
    )
    with pytest.raises(ValueError, match="of longer patches the last stage is"):
        anchored(site_of(CONV).weight, CONV, sketched)
