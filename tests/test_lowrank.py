from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from forms.layer_strategies import Layer, close, layers, masked_factors, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from spdexport.conv import ConvSpec
from spdexport.factors import Factors, effective_weight, masked_weight, unit_rounding
from spdexport.lowrank import (
    TAIL,
    numerical_rank,
    orthogonal,
    rank_for_energy,
    rank_for_error,
    recompressed,
    singular_values,
    svd_factors,
    truncated,
    truncation_error,
)

quick = settings(max_examples=60)
SPEC = ConvSpec(in_channels=8, out_channels=24, kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1))
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def of_rank(rank: int, spec: ConvSpec = SPEC, *, seed: int = 0) -> np.ndarray:
    """A weight that is a product of that rank in each group, in float64."""
    rng = np.random.default_rng(seed)
    V = rng.standard_normal((spec.groups, spec.patch, rank))
    U = rng.standard_normal((spec.groups, rank, spec.group_out))
    return np.swapaxes(V @ U, -1, -2).reshape(spec.weight_shape)


def is_weight(factors: Factors, weight: np.ndarray, spec: ConvSpec, *, roundings: float) -> bool:
    """Whether the factors are the weight, to so many roundings of |V| |U| at each entry."""
    size = masked_weight(Factors(V=np.abs(factors.V), U=np.abs(factors.U)), spec)
    bound = roundings * unit_rounding(factors.V.dtype) * size + 1e-14 * np.abs(weight).max(initial=0)
    return bool((np.abs(masked_weight(factors, spec) - weight) <= bound).all())


@quick
@given(layers())
def test_singular_values_are_those_of_each_group(layer: Layer) -> None:
    flat = layer.weight.reshape(layer.spec.groups, layer.spec.group_out, layer.spec.patch)
    expected = np.linalg.svd(flat, compute_uv=False)
    exact = singular_values(layer.weight, layer.spec, DOUBLE)
    assert np.abs(exact - expected).max() <= 1e-13 * expected.max()
    found = singular_values(layer.weight, layer.spec, SINGLE)
    assert np.abs(found - expected).max() <= 2e-8 * expected.max()


@quick
@given(layers(), st.sampled_from([SINGLE, DOUBLE]))
def test_the_orthogonal_product_is_the_weight(layer: Layer, dtype: np.dtype) -> None:
    found = orthogonal(layer.weight, layer.spec, dtype)
    product = np.swapaxes(found.V @ found.U, -1, -2).reshape(layer.spec.weight_shape)
    assert close(product, layer.weight)
    assert (np.diff(found.sigma, axis=-1) <= 1e-12 * found.sigma.max()).all()


@pytest.mark.parametrize("dtype", [SINGLE, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_a_product_that_was_rounded_has_the_rank_that_it_had(rank: int, groups: int, dtype: np.dtype) -> None:
    spec = replace(SPEC, groups=groups)
    weight = of_rank(rank, spec).astype(dtype).astype(np.float64)
    found = numerical_rank(weight, spec, dtype)
    assert (found.rank, found.full) == (rank, min(spec.patch, spec.group_out))
    assert found.next is not None
    assert 0 < found.next <= found.rounding
    # Without the rounding to explain it, every direction counts.
    assert numerical_rank(weight, spec, DOUBLE).rank == found.full


def test_the_decision_is_told_with_both_numbers() -> None:
    found = numerical_rank(of_rank(12).astype(np.float32), SPEC, SINGLE)
    assert found.told().startswith("rank 12 of 24; next singular value ")
    assert "e-08 of the largest, rounding " in found.told()
    full = numerical_rank(of_rank(24), SPEC, SINGLE)
    assert full.told() == "rank 24 of 24"
    assert numerical_rank(np.zeros(SPEC.weight_shape), SPEC, SINGLE).rank == 0


def test_what_rounding_v_and_u_adds_is_no_rank() -> None:
    rng = np.random.default_rng(0)
    # A product of rank 3 in 6 components, V rounded: its 6 columns are independent at the level of float32 only.
    V = (rng.standard_normal((72, 3)) @ rng.standard_normal((3, 6))).astype(np.float32)
    factors = Factors(V=V, U=rng.standard_normal((6, 24)).astype(np.float32))
    assert numerical_rank(masked_weight(factors, SPEC), SPEC, SINGLE, factors=factors).rank == 3
    one = replace(factors, mask=np.eye(6)[0])
    assert numerical_rank(masked_weight(one, SPEC), SPEC, SINGLE, factors=one).rank == 1


@quick
@given(specs(), st.data())
def test_recompressed_factors_are_the_effective_weight_to_rounding(spec: ConvSpec, data: st.DataObject) -> None:
    factors = data.draw(masked_factors(spec))
    weight = effective_weight(np.zeros(spec.weight_shape), factors, spec, keep_delta=False)
    rank = numerical_rank(weight, spec, SINGLE, factors=factors)
    found = recompressed(weight, spec, SINGLE, rank)
    assert found is not None
    assert found[1].V.dtype == SINGLE
    assert found[1].components == max(found[0].rank, 1) >= rank.rank
    assert is_weight(found[1], weight, spec, roundings=TAIL + 2.01)


def test_a_filter_far_smaller_than_the_others_keeps_its_digits() -> None:
    weight = of_rank(3)
    weight[:, 0] = 0.0  # input channel 0 is read by the last filter alone
    weight[5] = 0.0
    weight[5, 0] = 1e-12
    rank = numerical_rank(weight, SPEC, SINGLE)
    assert rank.rank == 3, "as a matrix, that filter is below rounding"
    found = recompressed(weight, SPEC, SINGLE, rank)
    assert found is not None
    assert found[0].rank == 4
    assert is_weight(found[1], weight, SPEC, roundings=TAIL + 2.01)
    assert recompressed(weight, SPEC, SINGLE, rank, pays=lambda size: size <= 3) is None


def test_groups_are_padded_to_the_one_that_needs_most() -> None:
    spec = replace(SPEC, groups=2)
    weight = of_rank(2, spec)
    weight[:12] = of_rank(5, spec)[:12]
    found = recompressed(weight, spec, SINGLE, numerical_rank(weight, spec, SINGLE))
    assert found is not None
    assert found[1].V.shape == (2, spec.patch, 5)
    assert is_weight(found[1], weight, spec, roundings=TAIL + 2.01)


@pytest.mark.parametrize("rank", [1, 7, 24, 99])
def test_truncation_is_the_best_approximation_of_its_rank(rank: int) -> None:
    weight = of_rank(24)
    found = truncated(weight, SPEC, DOUBLE, rank)
    flat = weight.reshape(24, -1)
    left, sigma, right = np.linalg.svd(flat, full_matrices=False)
    best = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    np.testing.assert_allclose(masked_weight(found, SPEC).reshape(24, -1), best, atol=1e-12)
    error = np.linalg.norm(best - flat) / np.linalg.norm(flat)
    assert truncation_error(singular_values(weight, SPEC, DOUBLE), rank) == pytest.approx(error, abs=1e-14)


def test_ranks_for_energy_and_error() -> None:
    sigma = np.array([[3.0, 2.0, 1.0, 0.0]])  # energies 9, 4, 1 of 14
    assert [rank_for_energy(sigma, e) for e in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert [rank_for_error(sigma, e) for e in (0.0, 0.2, np.sqrt(1 / 14), 0.5, np.sqrt(5 / 14), 1.0)] == [
        3,
        3,
        2,
        2,
        1,
        1,
    ]
    two = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert (rank_for_energy(two, 0.9), rank_for_error(two, 0.1)) == (3, 3), "the group that needs most decides"
    assert rank_for_energy(np.zeros((1, 3)), 0.999) == 1


def test_components_of_a_float64_layer_have_the_accuracy_of_float64() -> None:
    spec = ConvSpec.pointwise(8, 6, axes=0, groups=1)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (6, 8))
    sigma = np.logspace(0, np.log10(3e-10), 6)
    weight = (left * sigma) @ right[:6]
    found = svd_factors(weight, spec)
    # The columns of V and the rows of U have the root of the singular value each, and are orthogonal among themselves.
    for sizes in (np.linalg.norm(found.V, axis=0), np.linalg.norm(found.U, axis=1)):
        np.testing.assert_allclose(sizes**2, sigma, rtol=1e-5)
    np.testing.assert_allclose((found.V @ found.U).T, weight, atol=1e-16)
    for vectors in (found.V.T, found.U):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(unit @ unit.T, np.eye(6), atol=1e-6)
