"""The spatial form: its geometry, its exactness, and the decomposition that gives its stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_strategies import Layer, close, example_input, layers, run

from spdexport.conv import ConvSpec
from spdexport.forms import FormKind, Stage, fold_form, spatial_form
from spdexport.forms.spatial import spatial_specs, spatial_stages, unfolded, without_spatial
from spdexport.lowrank import numerical_rank, svd_factors, truncated, truncation_error

quick = settings(max_examples=60, deadline=None)
SPEC = ConvSpec(in_channels=1, out_channels=1, kernel=(3, 3), stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1))
ROWS = np.array([[int(c) for c in row] for row in ("12301", "01230", "30123", "23012", "12301")], dtype=np.float64)


def decomposed(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    weight, linear = unfolded(layer.weight, layer.spec)
    return spatial_stages(layer.spec, svd_factors(weight, linear))


@quick
@given(layers())
def test_all_components_are_the_layer_of_any_geometry(layer: Layer) -> None:
    assume(without_spatial(layer.spec) is None)
    form = spatial_form(layer.spec, *decomposed(layer), layer.bias)
    folded = fold_form(form)
    assert folded.spec == layer.spec
    assert close(np.asarray(folded.weight), layer.weight)
    x = example_input(layer.spec, layer.rng)
    expected = run(Stage(spec=layer.spec, weight=layer.weight, bias=layer.bias), x)
    magnitude = run(Stage(spec=layer.spec, weight=np.abs(layer.weight)), x.abs()).max()
    found = run(form.stages[1], run(form.stages[0], x))
    assert close(found, expected, scale=10 * float(magnitude) + float(expected.abs().max()))


def test_equal_rows_are_one_pair_of_kernels() -> None:
    """The digital filter 1 0 -1: its answer on these rows is known."""
    weight = np.broadcast_to(np.array([1.0, 0.0, -1.0]), (1, 1, 3, 3))
    layer = Layer(spec=SPEC, weight=weight, bias=None, rng=np.random.default_rng(0))
    first, second = decomposed(layer)
    assert (first.shape, second.shape) == ((1, 1, 3, 1), (1, 1, 1, 3))
    assert np.allclose(first[0, 0, :, 0] * second[0, 0, 0, 0], 1, atol=1e-15)
    form = spatial_form(SPEC, first, second, None)
    out = run(form.stages[1], run(form.stages[0], torch.from_numpy(ROWS)[None, None]))
    assert out.shape == (1, 1, 3, 3)
    assert abs(float(out[0, 0, 0, 0]) - -2) < 1e-14


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_an_exact_rank_is_found(rank: int, groups: int) -> None:
    spec = replace(SPEC, in_channels=8, out_channels=24, kernel=(3, 5), groups=groups)
    rng = np.random.default_rng(rank)
    one, two = spatial_specs(spec, rank)
    form = spatial_form(spec, rng.standard_normal(one.weight_shape), rng.standard_normal(two.weight_shape), None)
    weight = np.asarray(fold_form(form).weight).astype(np.float32)
    matrix, linear = unfolded(weight, spec)
    assert numerical_rank(matrix, linear, weight.dtype).rank == rank
    again = spatial_form(spec, *spatial_stages(spec, truncated(matrix, linear, np.dtype(np.float64), rank)), None)
    assert np.abs(np.asarray(fold_form(again).weight) - weight).max() <= 1e-5 * np.abs(weight).max()


@quick
@given(layers(), st.integers(1, 4))
def test_the_error_is_that_of_the_singular_values(layer: Layer, rank: int) -> None:
    assume(without_spatial(layer.spec) is None and layer.weight.any())
    matrix, linear = unfolded(layer.weight, layer.spec)
    made = truncated(matrix, linear, np.dtype(np.float64), rank)
    folded = np.asarray(fold_form(spatial_form(layer.spec, *spatial_stages(layer.spec, made), None)).weight)
    sigma = np.linalg.svd(matrix.reshape(layer.spec.groups, linear.group_out, linear.patch), compute_uv=False)
    error = np.linalg.norm(folded - layer.weight) / np.linalg.norm(layer.weight)
    assert abs(error - truncation_error(sigma, rank)) < 1e-7


def test_a_kernel_that_is_wide_along_later_axes_alone_is_split_there() -> None:
    spec = replace(SPEC, kernel=(1, 3, 5), stride=(2, 3, 1), padding=((0, 0), (1, 0), (2, 2)), dilation=(1, 2, 1))
    one, two = spatial_specs(spec, 4)
    assert (one.describe(), two.describe()) == ("1>4 1x3x1 s1x3x1 p0x1:0x0 d1x2x1", "4>1 1x1x5 s2x1x1 p0x0x2")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ((), "a linear layer has no kernel to split"),
        ((1, 1), "its kernel is a single tap"),
        ((5,), "its kernel is wider than one along a single axis"),
        ((1, 3), "its kernel is wider than one along a single axis"),
    ],
)
def test_layers_without_the_form_have_a_reason(kernel: tuple[int, ...], reason: str) -> None:
    n = len(kernel)
    spec = ConvSpec(
        in_channels=2, out_channels=2, kernel=kernel, stride=(1,) * n, padding=((0, 0),) * n, dilation=(1,) * n
    )
    assert without_spatial(spec) == reason
    with pytest.raises(ValueError, match=reason):
        spatial_specs(spec, 1)


def test_the_form_has_its_name_and_its_bias_last() -> None:
    first, second = np.ones((2, 1, 3, 1)), np.ones((1, 2, 1, 3))
    form = spatial_form(SPEC, first, second, np.ones(1))
    assert form.name is FormKind.SPATIAL
    assert [(stage.name, stage.bias is None) for stage in form.stages] == [("first", True), ("second", False)]
