from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from forms.layer_strategies import Layer, close, layers, masked_factors, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from spdexport.conv import ConvSpec
from spdexport.factors import (
    Factors,
    absorb_mask,
    break_even,
    delta,
    delta_is_rounding,
    delta_ratio,
    drop_dead,
    effective_weight,
    masked_weight,
    unit_rounding,
)
from spdexport.lowrank import svd_factors

quick = settings(max_examples=100)
CONV = ConvSpec(in_channels=2, out_channels=3, kernel=(2,), stride=(1,), padding=((0, 0),), dilation=(1,))


@quick
@given(layers())
def test_svd_reproduces_the_weight(layer: Layer) -> None:
    factors = svd_factors(layer.weight, layer.spec)
    assert factors.components <= max(1, min(layer.spec.patch, layer.spec.group_out))
    assert close(masked_weight(factors, layer.spec), layer.weight)


@quick
@given(layers())
def test_svd_balances_descending_orthogonal_components(layer: Layer) -> None:
    factors = svd_factors(layer.weight, layer.spec)
    V, U = (x.reshape(-1, *x.shape[-2:]) for x in (factors.V, factors.U))
    sigma = np.linalg.norm(V, axis=-2) * np.linalg.norm(U, axis=-1)
    assert (np.diff(sigma, axis=-1) <= 1e-12 * sigma.max()).all()
    flat = layer.weight.reshape(layer.spec.groups, layer.spec.group_out, layer.spec.patch)
    expected = np.linalg.svd(flat, compute_uv=False)[..., : factors.components]
    # Squaring the matrix costs half the digits of the smallest singular values.
    assert np.abs(sigma - expected).max() <= 2e-8 * expected.max()


@quick
@given(layers(np.float32))
def test_the_delta_of_rounded_svd_factors_is_rounding(layer: Layer) -> None:
    factors = svd_factors(layer.weight, layer.spec)
    assert factors.V.dtype == factors.U.dtype == np.float32
    assert delta_is_rounding(layer.weight, factors, layer.spec)


def test_filters_that_training_left_near_zero_need_no_delta() -> None:
    spec = ConvSpec.pointwise(16, 12, axes=2)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    weight[::2] *= 10.0 ** -np.arange(9, 15).reshape(-1, 1, 1, 1)
    weight = weight.astype(np.float32)
    assert delta_is_rounding(weight, svd_factors(weight, spec), spec)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_delta_at_other_dtypes(dtype: type) -> None:
    weight = np.random.default_rng(0).standard_normal(CONV.weight_shape).astype(dtype)
    factors = svd_factors(weight, CONV)
    assert factors.V.dtype == dtype
    assert delta_is_rounding(weight, factors, CONV)
    assert 0 < delta_ratio(weight, factors, CONV) < 4 * unit_rounding(np.dtype(dtype))


@quick
@given(layers(np.float32), st.floats(1e-4, 1.0))
def test_a_delta_that_says_something_is_not_rounding(layer: Layer, size: float) -> None:
    factors = svd_factors(layer.weight, layer.spec)
    largest = np.unravel_index(np.abs(layer.weight).argmax(), layer.weight.shape)
    changed = layer.weight.copy()
    changed[largest] = changed[largest] * (1 + size) if changed.any() else 1.0
    assert not delta_is_rounding(changed, factors, layer.spec)
    assert delta_ratio(changed, factors, layer.spec) > 1e-6


@quick
@given(specs(), st.data())
def test_dropping_and_absorbing_keep_the_masked_weight(spec: ConvSpec, data: st.DataObject) -> None:
    factors = data.draw(masked_factors(spec))
    expected = masked_weight(factors, spec)
    dropped = drop_dead(factors)
    assert dropped.components == (max(factors.live, 1) if factors.mask is not None else factors.components)
    assert dropped.live == factors.live
    assert close(masked_weight(dropped, spec), expected, scale=20.0)
    absorbed = absorb_mask(factors)
    assert absorbed.mask is None
    assert close(masked_weight(absorbed, spec), expected, scale=20.0)
    assert close(masked_weight(absorb_mask(dropped), spec), expected, scale=20.0)


@quick
@given(layers(), st.data())
def test_the_delta_makes_up_for_what_unmasked_factors_lack(layer: Layer, data: st.DataObject) -> None:
    factors = replace(data.draw(masked_factors(layer.spec)), mask=None)
    kept = effective_weight(layer.weight, factors, layer.spec, keep_delta=True)
    assert close(kept, layer.weight, scale=np.abs(layer.weight).max() + 100.0)
    dropped = effective_weight(layer.weight, factors, layer.spec, keep_delta=False)
    assert np.array_equal(dropped, masked_weight(factors, layer.spec))


def test_a_masked_weight_by_hand() -> None:
    spec = ConvSpec.pointwise(2, 2, axes=0)
    factors = Factors(V=np.array([[1.0, 10.0], [2.0, 20.0]]), U=np.array([[1.0, 3.0], [5.0, 7.0]]))
    assert masked_weight(factors, spec).tolist() == [[51.0, 102.0], [73.0, 146.0]]
    factors = replace(factors, mask=np.array([1.0, 0.5]))
    assert masked_weight(factors, spec).tolist() == [[26.0, 52.0], [38.0, 76.0]]
    # The delta is of the unmasked product, and is not masked.
    weight = np.full((2, 2), 100.0)
    assert delta(weight, factors, spec).tolist() == [[49.0, -2.0], [27.0, -46.0]]
    assert effective_weight(weight, factors, spec, keep_delta=True).tolist() == [[75.0, 50.0], [65.0, 30.0]]


def test_groups_with_different_numbers_of_live_components() -> None:
    rng = np.random.default_rng(0)
    spec = ConvSpec.pointwise(6, 9, axes=2, groups=3)
    mask = np.array([[1.0, 0, 0, 0], [0, 0.5, 0, 2.0], [0, 0, 0, 0]])
    factors = Factors(V=rng.standard_normal((3, 2, 4)), U=rng.standard_normal((3, 4, 3)), mask=mask)
    dropped = drop_dead(factors)
    assert (factors.live, dropped.components, dropped.live) == (2, 2, 2)
    assert dropped.mask.tolist() == [[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]]
    assert not dropped.V[0, :, 1].any()
    assert not dropped.U[0, 1].any()
    assert close(masked_weight(dropped, spec), masked_weight(factors, spec))


@pytest.mark.parametrize("groups", [(), (2,)])
def test_a_mask_of_zeros_leaves_one_zero_component(groups: tuple[int, ...]) -> None:
    factors = Factors(V=np.ones((*groups, 3, 4)), U=np.ones((*groups, 4, 2)), mask=np.zeros((*groups, 4)))
    dropped = drop_dead(factors)
    assert (dropped.components, dropped.live) == (1, 0)
    assert not dropped.V.any()
    assert not dropped.U.any()


def test_absorbing_rounds_once_to_the_dtype_of_u() -> None:
    factors = Factors(V=np.ones((1, 1), np.float32), U=np.full((1, 1), 3, np.float32), mask=np.array([1 / 3]))
    assert absorb_mask(factors).U.dtype == np.float32
    assert absorb_mask(factors).U[0, 0] == np.float32(3 * (1 / 3))


def test_groups_of_very_different_size_keep_their_digits() -> None:
    spec = ConvSpec.pointwise(4, 4, axes=1, groups=2)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    weight[:2] *= 1e-18
    weight[3] = weight[2]  # so that the large group, by itself, needs one component only
    factors = svd_factors(weight, spec)
    for half in (slice(0, 2), slice(2, 4)):
        assert close(masked_weight(factors, spec)[half], weight[half])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ConvSpec.pointwise(64, 10, axes=0), 64 * 10 / (64 + 10)),
        (replace(CONV, in_channels=16, out_channels=32), 32 * 32 / 64),
        (replace(CONV, in_channels=16, out_channels=32, groups=4), 8 * 8 / 16),
    ],
)
def test_break_even(spec: ConvSpec, expected: float) -> None:
    assert break_even(spec) == expected
    # At that number of components V and U take as many multiplications as the dense weight, in each group.
    assert expected * (spec.patch + spec.group_out) == pytest.approx(spec.patch * spec.group_out)


def test_the_delta_ratio_of_zero_weights() -> None:
    zero = np.zeros(CONV.weight_shape)
    assert delta_ratio(zero, svd_factors(zero, CONV), CONV) == 0.0
    assert delta_ratio(zero, Factors(V=np.ones((4, 1)), U=np.ones((1, 3))), CONV) == float("inf")


@pytest.mark.parametrize(
    ("V", "U", "mask"),
    [
        ((4, 2), (3, 3), None),
        ((4,), (4, 3), None),
        ((2, 4, 2), (2, 3), None),
        ((2, 4, 2), (3, 2, 3), None),
        ((4, 2), (2, 3), (3,)),
        ((2, 4, 2), (2, 2, 3), (2,)),
    ],
)
def test_factors_that_do_not_go_together(V: tuple[int, ...], U: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"axes|agree|fit"):
        Factors(V=np.ones(V), U=np.ones(U), mask=None if mask is None else np.ones(mask))
