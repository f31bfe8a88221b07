from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_strategies import Layer, close, example_input, layers, masked_factors, run, specs

from spdexport.conv import ConvSpec
from spdexport.factors import Factors, absorb_mask, delta, drop_dead, effective_weight
from spdexport.forms import Form, Stage, compose, dense, factorized, fold_form
from spdexport.forms.base import CannotComposeError
from spdexport.lowrank import svd_factors

quick = settings(max_examples=60)


def outputs(form: Form, x):
    total = 0
    for chain in form.chains:
        y = x
        for stage in chain:
            y = run(stage, y)
        total = total + y
    return total


@quick
@given(layers())
def test_the_factorized_layer_computes_what_the_dense_layer_does(layer: Layer) -> None:
    x = example_input(layer.spec, layer.rng)
    expected = run(dense(layer.spec, layer.weight, layer.bias).stages[0], x)
    form = factorized(layer.spec, svd_factors(layer.weight, layer.spec), layer.bias)
    # The scale of the sums that are rounded, for they may cancel.
    magnitude = run(Stage(spec=layer.spec, weight=np.abs(layer.weight)), x.abs()).max()
    assert close(outputs(form, x), expected, scale=float(magnitude) + float(expected.abs().max()))


@quick
@given(layers(), st.data(), st.booleans(), st.booleans())
def test_folding_gives_the_effective_weight(
    layer: Layer, data: st.DataObject, keep_delta: bool, keep_mask: bool
) -> None:
    factors = data.draw(masked_factors(layer.spec))
    more = delta(layer.weight, factors, layer.spec) if keep_delta else None
    form = factorized(layer.spec, factors, layer.bias, delta=more, keep_mask=keep_mask)
    assert form.name == ("factorized+delta" if keep_delta else "factorized")
    assert [stage.name for stage in form.stages] == ["V", "U"] + ["delta"] * keep_delta
    folded = fold_form(form)
    assert folded.spec == layer.spec
    expected = effective_weight(layer.weight, factors, layer.spec, keep_delta=keep_delta)
    scale = np.abs(layer.weight).max() + 50 * (np.abs(factors.V).max() * np.abs(factors.U).max())
    assert close(folded.weight, expected, scale=scale)
    assert (folded.bias is None) == (layer.bias is None)
    if layer.bias is not None:
        assert np.array_equal(folded.bias, layer.bias)
    x = example_input(layer.spec, layer.rng)
    assert close(outputs(form, x), run(folded, x), scale=float(scale) * 1e3)


@quick
@given(specs(), st.data())
def test_masking_then_folding_is_folding_masked_factors(spec: ConvSpec, data: st.DataObject) -> None:
    factors = data.draw(masked_factors(spec))
    visible = fold_form(factorized(spec, factors, None, keep_mask=True))
    absorbed = fold_form(factorized(spec, absorb_mask(drop_dead(factors)), None))
    assert close(visible.weight, absorbed.weight, scale=50.0)


@pytest.mark.parametrize("groups", [1, 2])
def test_zeros_of_the_mask_remove_components(groups: int) -> None:
    spec = ConvSpec.pointwise(4, 6, axes=2, groups=groups)
    lead = (groups,) if groups > 1 else ()
    factors = Factors(
        V=np.ones((*lead, spec.patch, 5)),
        U=np.ones((*lead, 5, spec.group_out)),
        mask=np.broadcast_to(np.array([0.0, 2.0, 0.0, 1.0, 0.0]), (*lead, 5)),
    )
    v, u = factorized(spec, factors, None).stages
    assert v.spec.out_channels == u.spec.in_channels == 2 * groups
    assert v.mask is None
    v, u = factorized(spec, factors, None, keep_mask=True).stages
    assert v.spec.out_channels == 5 * groups
    assert v.mask.tolist() == [0.0, 2.0, 0.0, 1.0, 0.0] * groups


def test_a_layer_without_live_components_is_its_bias() -> None:
    spec = ConvSpec.pointwise(3, 2, axes=1)
    factors = Factors(V=np.ones((3, 4)), U=np.ones((4, 2)), mask=np.zeros(4))
    form = factorized(spec, factors, np.array([1.0, -2.0]))
    assert form.stages[0].spec.out_channels == 1
    folded = fold_form(form)
    assert not np.asarray(folded.weight).any()
    assert folded.bias.tolist() == [1.0, -2.0]


@quick
@given(layers(), st.data())
def test_composed_stages_compute_the_same_as_the_two(layer: Layer, data: st.DataObject) -> None:
    """With masks and biases on both, and groups in either."""
    a = layer.spec
    choices = [a.groups * n for n in (1, 2) if a.out_channels % (a.groups * n) == 0]
    groups = data.draw(st.sampled_from(choices))
    outs = groups * data.draw(st.integers(1, 3))

    def vector(size: int) -> np.ndarray | None:
        return layer.rng.standard_normal(size) if data.draw(st.booleans()) else None

    first = Stage(spec=a, weight=layer.weight, mask=vector(a.out_channels), bias=vector(a.out_channels))
    b = ConvSpec.pointwise(a.out_channels, outs, axes=a.axes, groups=groups if a.axes else 1)
    second = Stage(spec=b, weight=layer.rng.standard_normal(b.weight_shape), mask=vector(outs), bias=vector(outs))
    composed = compose(first, second)
    x = example_input(a, layer.rng)
    expected = run(second, run(first, x))
    scale = float(run(Stage(spec=a, weight=np.abs(layer.weight)), x.abs()).max()) + 1.0
    assert close(run(composed, x), expected, scale=100 * scale)
    assert composed.mask is None


@quick
@given(layers())
def test_the_dense_form_folds_to_itself(layer: Layer) -> None:
    folded = fold_form(dense(layer.spec, layer.weight, layer.bias))
    assert np.array_equal(folded.weight, layer.weight)
    assert folded.spec == layer.spec


def test_a_mask_on_a_single_stage_leaves_the_bias_alone() -> None:
    spec = ConvSpec.pointwise(1, 2, axes=0)
    stage = Stage(spec=spec, weight=np.ones((2, 1)), mask=np.array([2.0, 0.0]), bias=np.array([3.0, 4.0]))
    folded = fold_form(Form(name="dense", chains=((stage,),)))
    assert np.asarray(folded.weight).tolist() == [[2.0], [0.0]]
    assert folded.bias.tolist() == [3.0, 4.0]


def ones(spec: ConvSpec) -> Stage:
    return Stage(spec=spec, weight=np.ones(spec.weight_shape))


FOUR = ConvSpec.pointwise(4, 4, axes=1)


def test_chains_of_different_geometry_do_not_fold() -> None:
    form = Form(name="x", chains=((ones(FOUR),), (ones(replace(FOUR, stride=(2,))),)))
    with pytest.raises(CannotComposeError, match="what is added to it has another stride"):
        fold_form(form)


@pytest.mark.parametrize("field", ["weight", "mask", "bias"])
def test_a_stage_refuses_values_that_do_not_fit(field: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit|need shape \(4,\)"):
        replace(ones(FOUR), **{field: np.ones(3)})
