"""Candidates and the decompositions that they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forms.layer_strategies import specs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spdexport.compression.candidates import grouped_weight, kinds_of, layer_candidates, ranks
from spdexport.compression.decomposition import EXACT, decompose
from spdexport.compression.metric import Metric
from spdexport.compression.moments import Moments, moments_of
from spdexport.compression.separable import decomposed
from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import FormShape, MacsCost, ParameterCost
from spdexport.factors import Factors
from spdexport.forms import Form, FormKind, factorized, fold_form
from spdexport.forms.families import FAMILIES

DOUBLE = np.dtype(np.float64)
CONV = ConvSpec(in_channels=48, out_channels=64, kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1))
DEPTHWISE = replace(CONV, in_channels=32, out_channels=32, kernel=(5, 5), groups=32)
LINEAR = ConvSpec(in_channels=96, out_channels=80)


def coloured(spec: ConvSpec, *, seed: int = 0, samples: int = 12) -> np.ndarray:
    """Inputs whose channels and neighbours depend on each other, with means."""
    rng = np.random.default_rng(seed)
    shape = (samples, spec.in_channels, *(11,) * spec.axes) if spec.axes else (samples * 30, spec.in_channels)
    x = rng.standard_normal(shape)
    for axis in range(2, 2 + spec.axes):
        x = x + np.roll(x, 1, axis)
    mix = rng.standard_normal((spec.in_channels,) * 2) * np.logspace(0, -2, spec.in_channels)
    return np.moveaxis(np.moveaxis(x, 1, -1) @ mix.T + rng.standard_normal(spec.in_channels), -1, 1)


def site_of(spec: ConvSpec, weight: np.ndarray | None = None, *, seed: int = 0, bias: bool = True) -> ConvSite:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(spec.weight_shape) if weight is None else weight
    b = rng.standard_normal(spec.out_channels).astype(weight.dtype) if bias else None
    size = (11,) * spec.axes
    return ConvSite(name="layer", spec=spec, weight=weight, bias=b, node="n", positions=121, input_size=size)


def moments(spec: ConvSpec, *, seed: int = 0, **options: int) -> Moments:
    return moments_of(spec, coloured(spec, seed=seed), rng=np.random.default_rng(seed), **options)


def measured(site: ConvSite, form: Form, metric: Metric) -> float:
    weight = grouped_weight(site.weight, site.spec)
    changed = grouped_weight(np.asarray(fold_form(form).weight), site.spec)
    return metric.size(weight - changed) / metric.size(weight)


@pytest.mark.parametrize("spec", [CONV, replace(CONV, groups=2, stride=(2, 2)), DEPTHWISE, LINEAR], ids=str)
@pytest.mark.parametrize("full_patch", [4_608, 1])
def test_errors_are_those_that_the_forms_have(spec: ConvSpec, full_patch: int) -> None:
    site, found = site_of(spec), moments(spec, full_patch=full_patch)
    metric = Metric.of(found)
    dense, *others = layer_candidates(site, found, ParameterCost())
    assert (dense.kind, dense.error, dense.ranks) == (FormKind.DENSE, 0.0, ())
    np.testing.assert_array_equal(np.asarray(dense.make().stages[0].weight), site.weight)
    assert others
    assert {c.kind for c in others} <= set(kinds_of(spec))
    for candidate in others:
        form = candidate.make()
        assert candidate.error == pytest.approx(measured(site, form, metric), rel=1e-6, abs=1e-10)
        assert tuple(stage.spec for stage in form.stages) == candidate.shape.stages
        assert form.name == candidate.kind


@settings(max_examples=60)
@given(specs(), st.data())
def test_a_decomposition_of_full_rank_is_the_layer(spec: ConvSpec, data: st.DataObject) -> None:
    kinds = kinds_of(spec)
    assume(kinds)
    kind = data.draw(st.sampled_from(kinds))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = rng.standard_normal(spec.weight_shape)
    patch = rng.standard_normal((spec.groups, spec.patch, spec.patch))
    second = patch @ np.swapaxes(patch, 1, 2)
    metric = Metric.of(Moments(count=1, inputs=np.zeros((spec.groups, spec.patch)), second=second))
    full = FAMILIES[kind].largest(spec)
    made = decomposed(grouped_weight(weight, spec), spec, metric, kind, 999)
    bias = rng.standard_normal(spec.out_channels)
    for chosen in {full[:1], full if len(full) in FAMILIES[kind].numbers else full[:1]}:
        stage = fold_form(made.form((min(chosen[0], len(made.errors)), *chosen[1:]), bias, DOUBLE))
        assert np.abs(np.asarray(stage.weight) - weight).max() <= 1e-6 * max(np.abs(weight).max(), 1)
        np.testing.assert_allclose(stage.bias, bias, atol=1e-12)


def test_pairs_are_the_best_there_are() -> None:
    """Against the whitened singular value decomposition: no weight of that rank errs less in this metric."""
    site, found = site_of(CONV), moments(CONV)
    metric = Metric.of(found)
    W, root = grouped_weight(site.weight, CONV)[0], np.linalg.cholesky(metric.full[0])
    energies = np.linalg.svd(W @ root, compute_uv=False) ** 2
    pairs = [c for c in layer_candidates(site, found, ParameterCost()) if c.kind is FormKind.RECOMPRESSED]
    assert len(pairs) >= 2
    for pair in pairs:
        assert pair.error == pytest.approx(energies[pair.ranks[0] :].sum() / energies.sum(), rel=1e-8)


def test_the_second_stage_is_the_least_squares_fit() -> None:
    """Any other second stage behind the same first errs more; and the first is better than that of the plain SVD."""
    site, found = site_of(CONV), moments(CONV)
    metric = Metric.of(found)
    W = grouped_weight(site.weight, CONV)
    made = decompose(W, CONV, metric, FormKind.SPATIAL, 16)
    form = made.form((16,), None, DOUBLE)
    least = measured(site, form, metric)
    first, second = form.stages
    rng = np.random.default_rng(0)
    for _ in range(5):
        off = np.asarray(second.weight) + 1e-3 * rng.standard_normal(second.weight.shape)
        moved = replace(form, chains=((first, replace(second, weight=off)),))
        assert measured(site, moved, metric) > least
    family = FAMILIES[FormKind.SPATIAL]
    plain = family.form(CONV, family.decompose(site.weight, CONV, DOUBLE).weights((16,)), None)
    assert least < 0.8 * measured(site, plain, metric)


def test_the_mean_of_the_output_stays() -> None:
    site, found = site_of(CONV), moments(CONV)
    before = (grouped_weight(site.weight, CONV) @ found.mean[..., None]).ravel() + site.bias
    for candidate in layer_candidates(site, found, MacsCost())[1:]:
        stage = fold_form(candidate.make())
        after = (grouped_weight(np.asarray(stage.weight), CONV) @ found.mean[..., None]).ravel() + stage.bias
        np.testing.assert_allclose(after, before, atol=1e-9)


def planted(kind: FormKind, rank: tuple[int, ...], *, seed: int = 0, spec: ConvSpec = CONV) -> np.ndarray:
    """A weight of float32 that has a form of these ranks."""
    rng, family = np.random.default_rng(seed), FAMILIES[kind]
    weights = [rng.standard_normal(stage.weight_shape) for stage in family.specs(spec, rank)]
    return np.asarray(fold_form(family.form(spec, weights, None)).weight).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        (FormKind.RECOMPRESSED, (3,)),
        (FormKind.RECOMPRESSED, (20,)),
        (FormKind.SPATIAL, (3,)),
        (FormKind.SPATIAL, (11,)),
        (FormKind.SPATIAL, (20,)),
        (FormKind.TUCKER, (5,)),
        (FormKind.TUCKER, (20,)),
        (FormKind.TUCKER, (7, 13)),
        (FormKind.TUCKER, (20, 17)),
    ],
)
def test_a_planted_rank_is_found_and_loses_nothing(kind: FormKind, rank: tuple[int, ...]) -> None:
    site = site_of(CONV, planted(kind, rank))
    candidates = layer_candidates(site, moments(CONV), MacsCost())
    exact = [c for c in candidates if c.error <= 1e-12]
    assert (kind, rank) in [(c.kind, c.ranks) for c in exact]
    # A product of rank 3 is one of rank 9 in other kinds, which may be cheaper: all that is called exact is.
    for candidate in exact:
        folded = np.asarray(fold_form(candidate.make()).weight)
        assert np.abs(folded - site.weight).max() <= 2e-5 * np.abs(site.weight).max()


def test_a_planted_depthwise_layer_is_found() -> None:
    site = site_of(DEPTHWISE, planted(FormKind.SPATIAL, (1,), spec=DEPTHWISE))
    exact = [c for c in layer_candidates(site, moments(DEPTHWISE), ParameterCost()) if c.error <= 1e-12]
    assert [(c.kind, c.ranks) for c in exact[1:]] == [(FormKind.SPATIAL, (1,))]
    assert exact[1].cost < exact[0].cost
    # Where work is counted, what moves between its stages is dearer than the 15 taps that it saves.
    assert len(layer_candidates(site, moments(DEPTHWISE), MacsCost())) == 1


def test_what_reads_nothing_has_forms_that_lose_nothing() -> None:
    dead = moments_of(CONV, np.zeros((2, 48, 9, 9)), rng=np.random.default_rng(0))
    for candidate in layer_candidates(site_of(CONV), dead, MacsCost()):
        assert candidate.error == 0.0
        assert all(np.isfinite(np.asarray(stage.weight)).all() for stage in candidate.make().stages)
    x = coloured(CONV)
    x[:, 5:] = 0.0
    some = moments_of(CONV, x, rng=np.random.default_rng(0))
    zero = site_of(CONV, np.zeros(CONV.weight_shape))
    for site in (site_of(CONV), zero):
        for candidate in layer_candidates(site, some, MacsCost()):
            assert 0.0 <= candidate.error <= 1.0
            assert all(np.isfinite(np.asarray(stage.weight)).all() for stage in candidate.make().stages)


def test_no_form_is_weighed_in_vain() -> None:
    class Measured:
        """As one that takes time: half of the multiply-accumulates."""

        name = unit = "measured"

        def __init__(self) -> None:
            self.calls: list[FormShape] = []

        def __call__(self, site: ConvSite, shape: FormShape) -> float:
            self.calls.append(shape)
            return MacsCost()(site, shape) / 2

    cost = Measured()
    candidates = layer_candidates(site_of(CONV), moments(CONV), cost)
    assert len(cost.calls) == len(candidates) < 40
    assert all(c.cost < candidates[0].cost for c in candidates[1:])
    for kind in kinds_of(CONV):
        own = [(c.cost, c.error) for c in candidates if c.kind is kind]
        assert own == sorted(own, key=lambda pair: (-pair[0], pair[1]))
        assert len({price for price, _ in own}) == len({error for _, error in own}) == len(own)


def test_forms_of_other_origin_are_weighed_as_they_are() -> None:
    rng = np.random.default_rng(0)
    site, found = site_of(CONV), moments(CONV)
    pair = factorized(CONV, Factors(V=rng.standard_normal((432, 12)), U=rng.standard_normal((12, 64))), site.bias)
    *_, last = layer_candidates(site, found, MacsCost(), foreign=[pair])
    assert (last.kind, last.ranks) == (FormKind.FACTORIZED, (12,))
    assert last.error == min(measured(site, pair, Metric.of(found)), 1.0)
    made = last.make()
    assert made.stages[0] is pair.stages[0]
    mean = found.mean[..., None]
    changed = grouped_weight(np.asarray(fold_form(made).weight), CONV)
    np.testing.assert_allclose(
        (changed @ mean).ravel() + made.stages[-1].bias,
        (grouped_weight(site.weight, CONV) @ mean).ravel() + site.bias,
    )


def test_ranks_fill_lanes() -> None:
    assert ranks(50, 16) == (1, 2, 4, 8, 16, 32, 48)
    assert ranks(3, 16) == (1, 2)
    assert ranks(4, 1) == (1, 2, 3, 4)
    many = ranks(2048, 16)
    assert len(many) <= 24 + 4
    assert all(r % 16 == 0 for r in many[4:])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_sum_of_products_is_found_on_data(groups: int) -> None:
    spec = replace(CONV, groups=groups)
    rng = np.random.default_rng(3)
    sizes = spec.group_out, spec.in_channels // groups, 9
    factors = [rng.standard_normal((groups, size, 7)) for size in sizes]
    weight = np.einsum("gor,gir,gtr->goit", *factors).reshape(spec.weight_shape)
    site, found = site_of(spec, weight), moments(spec)
    exact = [one for one in layer_candidates(site, found, MacsCost(lane=1), lane=1) if one.error <= EXACT]
    best = min(exact, key=lambda one: one.cost)
    assert (best.kind, best.ranks) == (FormKind.CP, (7,))
    assert measured(site, best.make(), Metric.of(found)) < 1e-10
    assert best.cost < 0.4 * exact[0].cost


def test_errors_of_the_cp_form_fall_with_its_rank_on_data() -> None:
    site, found = site_of(CONV), moments(CONV)
    options = [one for one in layer_candidates(site, found, MacsCost(lane=1), lane=8) if one.kind is FormKind.CP]
    assert len(options) > 3
    errors = [one.error for one in sorted(options, key=lambda one: one.cost)]
    assert errors == sorted(errors, reverse=True)
    assert all(abs(measured(site, one.make(), Metric.of(found)) - one.error) < 1e-6 for one in options[:3])
