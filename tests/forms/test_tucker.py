"""The Tucker-2 form: its geometry, its exactness, and the decomposition that gives its stages."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_strategies import Layer, close, example_input, layers, run

from spdexport.conv import ConvSpec
from spdexport.forms import Form, FormKind, Stage, fold_form, tucker_form
from spdexport.forms.tucker import tucker_specs, tucker_stages, without_tucker
from spdexport.multilinear import numerical_ranks, tucker, tucker_error, tucker_factors

quick = settings(max_examples=60, deadline=None)
SPEC = ConvSpec(in_channels=12, out_channels=16, kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1))


def decomposed(layer: Layer, inner: int, outer: int | None) -> Form:
    first, core, *last = tucker_stages(layer.spec, tucker(layer.weight, layer.spec), inner, outer)
    return tucker_form(layer.spec, first, core, last[0] if last else None, layer.bias)


def full(spec: ConvSpec) -> tuple[int, int]:
    return spec.in_channels // spec.groups, spec.group_out


@quick
@given(layers(), st.booleans())
def test_full_ranks_are_the_layer_of_any_geometry(layer: Layer, both_sides: bool) -> None:
    assume(without_tucker(layer.spec) is None)
    inner, outer = full(layer.spec)
    form = decomposed(layer, inner, outer if both_sides else None)
    assert [stage.name for stage in form.stages] == ["first", "core", "last"][: 3 if both_sides else 2]
    folded = fold_form(form)
    assert folded.spec == layer.spec
    assert close(np.asarray(folded.weight), layer.weight)
    x = example_input(layer.spec, layer.rng)
    found = x
    for stage in form.stages:
        found = run(stage, found)
    expected = run(Stage(spec=layer.spec, weight=layer.weight, bias=layer.bias), x)
    magnitude = run(Stage(spec=layer.spec, weight=np.abs(layer.weight)), x.abs()).max()
    assert close(found, expected, scale=10 * float(magnitude) + float(expected.abs().max()))


@quick
@given(layers(), st.integers(1, 3), st.integers(1, 3))
def test_errors_are_told_truly_and_improved_on(layer: Layer, inner: int, outer: int) -> None:
    assume(without_tucker(layer.spec) is None and layer.weight.any())
    found = tucker(layer.weight, layer.spec)
    norms = np.linalg.norm(found.weight.reshape(layer.spec.groups, -1), axis=1)
    bound = np.linalg.norm(found.lost(inner, outer) * norms) / np.linalg.norm(norms)
    folded = np.asarray(
        fold_form(
            replace_bias(decomposed(layer, *(min(a, b) for a, b in zip((inner, outer), full(layer.spec), strict=True))))
        ).weight
    )
    error = np.linalg.norm(folded - layer.weight) / np.linalg.norm(layer.weight)
    assert error <= bound + 1e-7
    _, core, _ = tucker_factors(found, inner, outer)
    assert abs(error - tucker_error(found, core)) < 1e-7


def replace_bias(form: Form) -> Form:
    return replace(form, chains=tuple(tuple(replace(stage, bias=None) for stage in chain) for chain in form.chains))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 5), (6, 3)])
def test_exact_ranks_are_found(ranks: tuple[int, int], groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    rng = np.random.default_rng(sum(ranks))
    weights = [rng.standard_normal(own.weight_shape) for own in tucker_specs(spec, *ranks)]
    weight = np.asarray(fold_form(tucker_form(spec, *weights, None)).weight).astype(np.float32)
    found = tucker(weight, spec)
    assert numerical_ranks(found, weight.dtype) == ranks
    again = fold_form(tucker_form(spec, *tucker_stages(spec, found, *ranks), None))
    assert np.abs(np.asarray(again.weight) - weight).max() <= 1e-6 * np.abs(weight).max()


def test_sweeps_gain_over_the_first_bases() -> None:
    found = tucker(np.random.default_rng(1).standard_normal(SPEC.weight_shape), SPEC)
    _, core, _ = tucker_factors(found, 4, 4)
    assert tucker_error(found, core) < float(found.lost(4, 4)[0]) - 1e-3


def test_a_weight_of_zeros_has_one_direction() -> None:
    found = tucker(np.zeros(SPEC.weight_shape), SPEC)
    assert numerical_ranks(found, np.dtype(np.float32)) == (1, 1)
    assert float(found.lost(1, 1)[0]) == 0
    assert (found.losses == 0).all()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ConvSpec(in_channels=4, out_channels=4), "a linear layer has no kernel between its channels"),
        (ConvSpec.pointwise(4, 4, axes=2), "its kernel is a single tap"),
        (replace(SPEC, groups=4, in_channels=4), "each of its groups reads a single channel"),
        (SPEC, None),
    ],
)
def test_layers_without_the_form_have_a_reason(spec: ConvSpec, reason: str | None) -> None:
    assert without_tucker(spec) == reason


def test_the_form_has_its_name_and_its_bias_last() -> None:
    specs = tucker_specs(SPEC, 2, 3)
    assert [own.describe() for own in specs] == ["12>2 1x1", "2>3 3x3 p1", "3>16 1x1"]
    form = tucker_form(SPEC, *(np.ones(own.weight_shape) for own in specs), np.ones(16))
    assert form.name is FormKind.TUCKER
    assert [stage.bias is None for stage in form.stages] == [True, True, False]
