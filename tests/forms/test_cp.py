"""The CP form: its geometry, its exactness, and the decomposition that gives its stages."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_strategies import Layer, close, example_input, layers, run

from spdexport.canonical import CANCELLING, canonical, canonical_rank
from spdexport.conv import ConvSpec
from spdexport.forms import Form, FormKind, Stage, fold_form
from spdexport.forms.cp import cp_specs, decomposed_cp, largest_cp, without_cp
from spdexport.forms.families import FAMILIES

quick = settings(max_examples=60, deadline=None)
SPEC = ConvSpec(in_channels=12, out_channels=16, kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1))
FAMILY = FAMILIES[FormKind.CP]
FLOAT32 = np.dtype(np.float32)


def product_of(spec: ConvSpec, rank: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    """A weight that is a sum of products, written down from the definition."""
    rng = np.random.default_rng(seed)
    sizes = spec.group_out, spec.in_channels // spec.groups, int(np.prod(spec.kernel))
    factors = [rng.standard_normal((spec.groups, size, rank)) for size in sizes]
    return np.einsum("gor,gir,gtr->goit", *factors).reshape(spec.weight_shape).astype(dtype)


def form_of(layer: Layer, rank: int) -> Form:
    found = decomposed_cp(layer.weight, layer.spec, np.dtype(np.float64))
    return FAMILY.form(layer.spec, found.weights((rank,)), layer.bias)


@quick
@given(layers())
def test_the_largest_rank_is_the_layer_of_any_geometry(layer: Layer) -> None:
    assume(without_cp(layer.spec) is None)
    form = form_of(layer, *largest_cp(layer.spec))
    assert [stage.name for stage in form.stages] == ["first", "core", "last"]
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
@given(layers(), st.integers(1, 5))
def test_errors_are_told_truly_and_lie_between_their_bounds(layer: Layer, rank: int) -> None:
    assume(without_cp(layer.spec) is None and layer.weight.any())
    found = decomposed_cp(layer.weight, layer.spec, np.dtype(np.float64))
    rank = min(rank, *found.full)
    folded = np.asarray(fold_form(FAMILY.form(layer.spec, found.weights((rank,)), None)).weight)
    shape = layer.spec.groups, layer.spec.group_out, -1
    if layer.spec.transposed:
        assert folded.shape == layer.weight.shape
    off, whole = ((w.reshape(shape) ** 2).sum(axis=(1, 2)) ** 0.5 for w in (folded - layer.weight, layer.weight))
    error = off / np.where(whole > 0, whole, 1)
    assert np.allclose(found.lost((rank,)), error, atol=1e-7)
    assert (error <= found.found.tails[:, rank - 1] + 1e-7).all()
    assert (error >= found.found.floors[:, rank - 1] - 1e-7).all()


@quick
@given(layers(), st.floats(0.05, 0.9))
def test_what_is_within_an_error_is(layer: Layer, allowed: float) -> None:
    assume(without_cp(layer.spec) is None and layer.weight.any())
    found = decomposed_cp(layer.weight, layer.spec, np.dtype(np.float64))
    ((rank,),) = found.within(np.full(layer.spec.groups, allowed))
    assert (found.lost((rank,)) <= allowed + 1e-12).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3, 5, 6])
def test_exact_ranks_are_found(rank: int, groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    weight = product_of(spec, rank, seed=rank)
    found = decomposed_cp(weight, spec, FLOAT32)
    assert found.exact == (rank,)
    again = fold_form(FAMILY.form(spec, [w.astype(np.float32) for w in found.weights((rank,))], None))
    assert np.abs(np.asarray(again.weight) - weight).max() <= 2e-6 * np.abs(weight).max()


def test_a_kernel_that_is_one_outer_product_is_one_term() -> None:
    """Sobel's filter on the sum of two channels, for one output and its double."""
    sobel = np.outer([1.0, 2.0, 1.0], [1.0, 0.0, -1.0])
    weight = np.einsum("o,i,kl->oikl", [1.0, 2.0], [1.0, 1.0], sobel).astype(np.float32)
    spec = replace(SPEC, in_channels=2, out_channels=2)
    found = decomposed_cp(weight, spec, FLOAT32)
    assert found.exact == (1,)
    first, core, last = found.weights((1,))
    assert np.allclose(np.abs(first.ravel()), 0.5**0.5)
    assert np.allclose(np.abs(core.reshape(3, 3)), np.abs(sobel) / np.linalg.norm(sobel))
    assert np.allclose(np.abs(last.ravel()), np.linalg.norm(sobel) * 2**0.5 * np.array([1, 2]))


def test_fits_gain_over_the_orthogonal_terms_and_do_not_cancel() -> None:
    rng = np.random.default_rng(1)
    weight = product_of(SPEC, 6, seed=1, dtype=np.float64) + 0.1 * rng.standard_normal(SPEC.weight_shape)
    found = canonical(weight, SPEC)
    assert found.lost(6)[0] < 0.5 * found.tails[0, 5]
    assert np.linalg.norm(found.terms(6).outer) <= CANCELLING * np.linalg.norm(weight)


def test_terms_that_would_cancel_are_not_taken() -> None:
    """A tensor of rank 3 with a border rank of 2 (de Silva and Lim 2008): ever better pairs of ever larger terms."""
    a, b = np.eye(12)[0], np.eye(12)[1]
    A, B, x, y = (np.eye(16)[0], np.eye(16)[1], np.eye(9)[0], np.eye(9)[1])
    terms = ((A, a, y), (A, b, x), (B, a, x))
    weight = sum(np.einsum("o,i,t->oit", *term) for term in terms).reshape(SPEC.weight_shape)
    found = canonical(weight, SPEC)
    assert np.linalg.norm(found.terms(2).outer) <= CANCELLING * np.linalg.norm(weight)
    assert canonical_rank(found, FLOAT32) >= 3


def test_a_weight_of_zeros_has_one_term() -> None:
    found = decomposed_cp(np.zeros(SPEC.weight_shape), SPEC, FLOAT32)
    assert found.exact == (1,)
    assert found.lost((1,)) == [0]


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
    assert without_cp(spec) == reason


def test_the_form_has_its_name_and_its_bias_last() -> None:
    specs = cp_specs(replace(SPEC, stride=(2, 2)), 5)
    assert [own.describe() for own in specs] == ["12>5 1x1", "5>5 3x3 s2 p1 g5", "5>16 1x1"]
    form = FAMILY.form(SPEC, [np.ones(own.weight_shape) for own in specs], np.ones(16))
    assert form.name is FormKind.CP
    assert [stage.bias is None for stage in form.stages] == [True, True, False]
