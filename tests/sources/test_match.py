from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from source_layers import conv_spec, site

from spdexport.conv import ConvSite, ConvSpec, Skipped
from spdexport.errors import ComponentsError
from spdexport.factors import masked_weight
from spdexport.sources.components import ComponentSet, RawComponent
from spdexport.sources.match import check_target, match_components
from spdexport.sources.spd import load_components

GOLDEN = Path(__file__).parents[1] / "data" / "spd_digits_golden.safetensors"


def nothing(name: str) -> bool:
    return False


def raw(*v_shape: int, out: int) -> RawComponent:
    *groups, _, components = v_shape
    return RawComponent(V=torch.ones(v_shape), U=torch.ones(*groups, components, out))


def from_spd(**layers: RawComponent) -> ComponentSet:
    components = {name.replace("_", "-"): r for name, r in layers.items()}
    return ComponentSet(kind="spd", components=components, dashed=True, layout="current", path=Path("run.pth"))


def from_file(**layers: RawComponent) -> ComponentSet:
    return ComponentSet(kind="file", components=layers, path=Path("f.npz"))


def linear(name: str, inputs: int = 3, outputs: int = 4) -> ConvSite:
    return site(name, ConvSpec.pointwise(inputs, outputs, axes=0), torch.ones(outputs, inputs))


def conv(name: str, *, groups: int = 1, padding_mode: str = "zeros") -> ConvSite:
    spec = conv_spec(4, 8, groups=groups)
    return site(name, spec, torch.ones(spec.weight_shape), padding_mode=padding_mode)


def test_the_digits_run_gives_the_weights_that_spd_gives(run: Path, sites: list[ConvSite]) -> None:
    found = load_components(run)
    check_target(found, sites)
    factors = match_components(found, sites, [], excluded=nothing)
    golden = load_file(GOLDEN)
    assert list(factors) == [s.name for s in sites]
    for layer in sites:
        expected = golden[f"weight/{layer.name}"]
        error = np.abs(masked_weight(factors[layer.name], layer.spec) - expected).max()
        assert error <= 1e-6 * np.abs(expected).max()


def test_dashed_names_are_matched_from_the_models_side() -> None:
    found = match_components(from_spd(a_b_c=raw(3, 2, out=4)), [linear("a.b-c")], [], excluded=nothing)
    assert list(found) == ["a.b-c"]


def test_sites_that_the_file_does_not_name_are_left_alone() -> None:
    found = match_components(from_file(a=raw(3, 2, out=4)), [linear("a"), linear("b")], [], excluded=nothing)
    assert list(found) == ["a"]


def test_all_calls_of_a_module_get_its_components() -> None:
    calls = [linear("a"), linear("a#2"), linear("a#x")]
    assert list(match_components(from_spd(a=raw(3, 2, out=4)), calls[:2], [], excluded=nothing)) == ["a", "a#2"]
    assert list(match_components(from_file(a=raw(3, 2, out=4)), calls, [], excluded=nothing)) == ["a", "a#2"]


def test_a_file_may_have_groups() -> None:
    found = match_components(from_file(a=raw(2, 18, 5, out=4)), [conv("a", groups=2)], [], excluded=nothing)
    assert found["a"].V.shape == (2, 18, 5)
    assert masked_weight(found["a"], conv("a", groups=2).spec).shape == (8, 2, 3, 3)


def test_factors_have_the_dtype_of_the_layer() -> None:
    half = replace(linear("a"), weight=np.ones((4, 3), ml_dtypes.bfloat16))
    found = match_components(from_file(a=raw(3, 2, out=4)), [half], [], excluded=nothing)
    assert found["a"].V.dtype == found["a"].U.dtype == ml_dtypes.bfloat16


def test_values_beyond_the_dtype_of_the_layer() -> None:
    half = replace(linear("a"), weight=np.ones((4, 3), np.float16))
    large = RawComponent(V=torch.ones(3, 2), U=torch.full((2, 4), 1e6))
    with pytest.raises(ComponentsError, match=r"U of a \(linear 3>4\) has values beyond the range of float16"):
        match_components(from_file(a=large), [half], [], excluded=nothing)


@pytest.mark.parametrize("names", ["head.fc1", "head-fc1"])
def test_two_layers_with_the_same_dashed_name(names: str) -> None:
    layers = [linear("head.fc1"), linear("head-fc1")]
    found = from_spd(head_fc1=raw(3, 2, out=4))
    with pytest.raises(ComponentsError, match=r"head-fc1 may mean head\.fc1 or head-fc1: the run writes '\.'"):
        match_components(found, layers, [], excluded=nothing)
    # Leaving one out says which one is meant.
    [left] = match_components(found, layers, [], excluded=lambda name: name == names)
    assert left != names


def test_a_component_without_a_layer() -> None:
    with pytest.raises(ComponentsError, match="components for haed-fc1, and the model has no such layer") as caught:
        match_components(from_spd(haed_fc1=raw(3, 2, out=4)), [linear("head.fc1")], [], excluded=nothing)
    assert caught.value.where == "run.pth, layer haed-fc1"
    assert caught.value.hint == "Did you mean head-fc1? Or leave it out with --exclude haed-fc1."


def test_a_component_that_does_not_fit() -> None:
    message = r"V \(9, 2\) and U \(2, 8\) do not fit a \(conv2d 4>8 3x3 p1\), which needs V \(36, 2\) and U \(2, 8\)\."
    with pytest.raises(ComponentsError, match=message) as caught:
        match_components(from_file(a=raw(9, 2, out=8)), [conv("a")], [], excluded=nothing)
    assert caught.value.where == "f.npz, layer a"
    with pytest.raises(ComponentsError, match=r"conv2d 4>8 3x3 p1 g2\), which needs V \(2, 18, 2\) and U \(2, 2, 4\)"):
        match_components(from_file(a=raw(36, 2, out=8)), [conv("a", groups=2)], [], excluded=nothing)


@pytest.mark.parametrize("kind", ["embedding", "conv_transpose2d"])
def test_a_kind_of_layer_that_is_no_site(kind: str) -> None:
    skipped = [Skipped(name="body.x", kind=kind, reason="it is not a convolution")]
    with pytest.raises(ComponentsError, match=f"body.x, of kind {kind}, which was skipped: it is not a convolution"):
        match_components(from_spd(body_x=raw(3, 2, out=4)), [], skipped, excluded=nothing)
    assert match_components(from_spd(body_x=raw(3, 2, out=4)), [], skipped, excluded=lambda n: n == "body.x") == {}


def test_inserted_identity() -> None:
    inserted = {"body-a": raw(3, 2, out=4), "body-a-pre_identity": raw(3, 2, out=3)}
    found = replace(from_spd(), components=inserted, identity=("body-a",))
    with pytest.raises(ComponentsError, match=r"identity components in front of body-a: no layer") as caught:
        match_components(found, [linear("body.a")], [], excluded=nothing)
    assert caught.value.hint.endswith("or leave them out with --exclude body-a-pre_identity.")
    assert match_components(found, [linear("body.a")], [], excluded=lambda n: n == "body.a") == {}


def test_spd_over_groups_or_another_padding_mode() -> None:
    with pytest.raises(ComponentsError, match=r"as if it had no groups, and it has 2: .* trained on another layer"):
        match_components(from_spd(a=raw(36, 2, out=8)), [conv("a", groups=2)], [], excluded=nothing)
    circular = [conv("a", padding_mode="circular")]
    with pytest.raises(ComponentsError, match=r"its padding_mode is circular: .* trained on another layer"):
        match_components(from_spd(a=raw(36, 2, out=8)), circular, [], excluded=nothing)
    assert list(match_components(from_file(a=raw(36, 2, out=8)), circular, [], excluded=nothing)) == ["a"]


@pytest.mark.parametrize(
    "layer",
    [linear("a"), conv("a", groups=2), conv("a", padding_mode="reflect"), linear("b")],
    ids=["does not fit", "groups", "padding mode", "no such layer"],
)
def test_excluded_layers_are_passed_over(layer: ConvSite) -> None:
    found = from_spd(a=raw(9, 2, out=8))
    assert match_components(found, [layer], [], excluded=lambda name: name == "a") == {}


def test_a_component_without_a_layer_is_excluded_by_its_dotted_name_too() -> None:
    found = from_spd(body_a=raw(9, 2, out=8))
    for name in ("body.a", "body-a"):
        assert match_components(found, [], [], excluded=lambda n, name=name: n == name) == {}


def with_target(weight: torch.Tensor, name: str = "a.weight") -> ComponentSet:
    return replace(from_spd(a=raw(3, 2, out=4)), target={name: weight})


def test_a_target_that_is_not_the_models(run: Path, sites: list[ConvSite]) -> None:
    found = load_components(run)
    changed = list(sites)
    changed[2] = replace(sites[2], weight=sites[2].weight * np.float32(1.001))
    with pytest.raises(ComponentsError, match=r"at conv3 they differ by 9\.99e-04 of the weight's norm") as caught:
        check_target(found, changed)
    assert "conv3" in caught.value.where
    assert "weight delta would otherwise hide" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_target_is_compared_at_the_coarser_dtype(dtype: torch.dtype) -> None:
    # Among them numbers below float16's normal range, where its rounding is absolute.
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 10.0 ** -torch.arange(1, 13).reshape(4, 3)
    model = site("a", ConvSpec.pointwise(3, 4, axes=0), weight)
    check_target(with_target(weight.to(dtype)), [model])
    coarse = site("a", ConvSpec.pointwise(3, 4, axes=0), weight.to(dtype))
    check_target(with_target(weight), [coarse])
    with pytest.raises(ComponentsError, match="at a they differ by"):
        check_target(with_target(weight.to(dtype).float()), [model])


def test_a_target_may_be_stored_transposed() -> None:
    weight = torch.arange(12.0).reshape(4, 3)
    model = site("a", ConvSpec.pointwise(3, 4, axes=0), weight)
    check_target(with_target(weight.T.contiguous()), [model])
    check_target(with_target(weight, name="a"), [model])
    with pytest.raises(ComponentsError, match="they differ by"):
        check_target(with_target(weight.T + 1), [model])


def test_a_target_of_another_shape_or_missing() -> None:
    with pytest.raises(ComponentsError, match=r"weight of shape \(4, 5\) for a, and the model's has \(4, 3\)"):
        check_target(with_target(torch.ones(4, 5)), [linear("a")])
    with pytest.raises(ComponentsError, match=r"no dense weight a\.weight to compare"):
        check_target(with_target(torch.ones(4, 3), name="b.weight"), [linear("a")])


def test_a_target_that_is_nan_differs() -> None:
    with pytest.raises(ComponentsError, match="they differ by nan"):
        check_target(with_target(torch.full((4, 3), torch.nan)), [linear("a")])


def test_sites_without_components_are_not_compared() -> None:
    check_target(with_target(torch.ones(4, 3)), [linear("a"), linear("b")])
    check_target(from_file(a=raw(3, 2, out=4)), [linear("a")])
