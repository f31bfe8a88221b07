"""Spatial and Tucker-2 forms in a plan: asked for, weighed where an error is allowed, filled, and repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planning.models import WIDE, a_site

from spdexport.conv import ConvSite, ConvSpec
from spdexport.errors import PlanError
from spdexport.factors import Factors
from spdexport.forms import FAMILIES, Form, FormKind, fold_form
from spdexport.planning import FormChoice, Plan, PlanOptions, PlanRecord, as_file, make_plan, parse_plan
from spdexport.sources.svd import svd_source


def planned(*sites: ConvSite, record: PlanRecord | None = None, source: Any = svd_source, **options: Any) -> Plan:
    return make_plan(sites, (), source, PlanOptions(**options), record=record)


def of_ranks(kind: FormKind, *ranks: int, spec: ConvSpec = WIDE, name: str = "conv") -> ConvSite:
    """A layer that is exactly a form of these ranks."""
    rng = np.random.default_rng(0)
    family = FAMILIES[kind]
    form = family.form(spec, [rng.standard_normal(own.weight_shape) for own in family.specs(spec, ranks)], None)
    site = a_site(spec, name=name)
    return replace(site, weight=np.asarray(fold_form(form).weight).astype(np.float32))


def error_of(plan: Plan, index: int = 0) -> float:
    decision = plan.decisions[index]
    weight = np.asarray(decision.site.weight, np.float64)
    return float(np.linalg.norm(decision.effective() - weight) / np.linalg.norm(weight))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "ranks"), [(FormKind.SPATIAL, (3,)), (FormKind.SPATIAL, (20,)), (FormKind.TUCKER, (3, 12))]
)
def test_an_exact_form_is_found_and_changes_nothing(kind: FormKind, ranks: tuple[int, ...], groups: int) -> None:
    site = of_ranks(kind, *ranks, spec=replace(WIDE, groups=groups))
    plan = planned(site, form=FormChoice(kind.value))
    (layer,) = plan.layers
    assert (layer.form, layer.ranks, layer.truncation) == (kind, ranks, None)
    assert "holds the weight" in layer.reason
    assert not plan.approximates
    # Where an error of nothing is allowed, auto finds it among all others.
    (layer,) = planned(site, form=FormChoice.AUTO, max_error=0.0, lane_width=1).layers
    assert (layer.form, layer.truncation) == (kind, None)
    assert layer.ranks in (ranks, ranks[:1])  # a last stage may cost more than it saves


@pytest.mark.parametrize("kind", [FormChoice.SPATIAL, FormChoice.TUCKER])
@pytest.mark.parametrize(("options", "most"), [({"energy": 0.6}, 0.4**0.5), ({"max_error": 0.3}, 0.3)])
def test_an_error_that_is_allowed_is_kept(kind: FormChoice, options: dict[str, float], most: float) -> None:
    plan = planned(a_site(), form=kind, **options)
    assert plan.layers[0].form == kind
    assert 0.5 * most < error_of(plan) <= most
    assert plan.layers[0].truncation == pytest.approx(error_of(plan), rel=1e-5)
    assert [form.name for _, form in plan.forms()] == [kind]


def test_a_rank_is_that_of_all_sides() -> None:
    spatial, tucker = (planned(a_site(), form=kind, rank=("7",)).layers[0] for kind in list(FormChoice)[2:4])
    assert (spatial.ranks, tucker.ranks) == ((7,), (7, 7))
    assert tucker.macs_after == (32 * 7 + 7 * 7 * 9 + 7 * 64) * 100


def test_auto_weighs_all_forms_and_fills_their_lanes() -> None:
    """The rank that an error asks for is raised to what the padded lanes hold, at the same cost."""
    bare, filled = (planned(a_site(), form=FormChoice.AUTO, energy=0.4, lane_width=lane) for lane in (1, 16))
    assert [one.form for one in bare.layers[0].weighed][-4:] == ["recompressed", "spatial", "tucker2", "cp"]
    for one, other in zip(bare.layers[0].weighed[-4:], filled.layers[0].weighed[-4:], strict=True):
        before, after = ((w.components,) if w.components else w.ranks for w in (one, other))
        assert all(size % 16 == 0 for size in after)
        assert all(b <= a < b + 16 for b, a in zip(before, after, strict=False)) or other.form == "tucker2"
    assert error_of(filled) < error_of(bare) <= 0.6**0.5


def test_lanes_are_filled_with_what_there_is() -> None:
    site = of_ranks(FormKind.RECOMPRESSED, 20)
    (layer,) = planned(site, form=FormChoice.AUTO, rank=("5",)).layers
    sizes = {one.form: one.components for one in layer.weighed}
    assert sizes["recompressed"] == 16
    (layer,) = planned(site, form=FormChoice.AUTO, rank=("17",)).layers
    assert {one.form: one.components for one in layer.weighed}["recompressed"] == 20


def test_without_padding_nothing_is_filled() -> None:
    grouped = a_site(replace(WIDE, groups=2))
    for site, options in ((a_site(), {"form": FormChoice.FACTORIZED}), (grouped, {"form": FormChoice.AUTO})):
        (layer,) = planned(site, rank=("5",), **options).layers
        sizes = [one.components for one in layer.weighed if one.form == "recompressed"] or [layer.kept]
        assert sizes[-1] == 5


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ConvSpec.pointwise(32, 48, axes=2), "it has no spatial form, for its kernel is a single tap"),
        (ConvSpec.pointwise(32, 48, axes=0), "it has no spatial form, for a linear layer has no kernel to split"),
    ],
)
def test_a_layer_without_the_form_stays_dense(spec: ConvSpec, reason: str) -> None:
    plan = planned(a_site(spec), form=FormChoice.SPATIAL, rank=("2",))
    assert (plan.layers[0].form, plan.layers[0].reason, plan.approximates) == ("dense", reason, False)


def test_masks_are_in_the_weight_that_takes_the_form() -> None:
    site = a_site()
    rng = np.random.default_rng(3)
    V, U = (rng.standard_normal(shape).astype(np.float32) for shape in ((288, 6), (6, 64)))
    factors = Factors(V=V, U=U, mask=np.array([1.0, 1, 1, 0, 0, 0]))
    plan = planned(site, source=lambda _: factors, form=FormChoice.TUCKER)
    effective = (factors.V[:, :3] @ factors.U[:3]).T.reshape(64, 32, 3, 3)
    (form,) = [form for _, form in plan.forms()]
    assert plan.layers[0].ranks[-1] == 3
    assert np.abs(np.asarray(fold_form(form).weight) - effective).max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"form": FormChoice.SPATIAL},
        {"form": FormChoice.SPATIAL, "rank": ("9",)},
        {"form": FormChoice.TUCKER, "max_error": 0.5},
        {"form": FormChoice.AUTO, "energy": 0.5},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_plan_is_repeated(options: dict[str, Any], strict: bool) -> None:
    sites = a_site(), of_ranks(FormKind.SPATIAL, 4, name="low"), a_site(ConvSpec.pointwise(8, 8, axes=2), name="one")
    plan = planned(*sites, **options)
    record = parse_plan(json.loads(as_file(plan.as_json())), "plan.json", strict=strict)
    again = planned(*sites, record=record, **options)
    assert again.as_json() == plan.as_json()
    for (_, one), (_, other) in zip(plan.forms(), again.forms(), strict=True):
        for a, b in zip(one.stages, other.stages, strict=True):
            np.testing.assert_array_equal(a.weight, b.weight)


def record_of(plan: Plan, *, strict: bool, **edits: Any) -> PlanRecord:
    content = json.loads(as_file(plan.as_json()))
    content["layers"][0].update(edits)
    return parse_plan(content, "plan.json", strict=strict)


def test_what_a_file_says_of_itself_allows_nothing() -> None:
    """A smaller rank than the options allow: the layer is taken as dense, and the weights edge tells."""
    options = {"form": FormChoice.SPATIAL, "max_error": 0.3}
    plan = planned(a_site(), **options)
    record = record_of(plan, strict=False, ranks=[2])
    (layer,) = planned(a_site(), record=record, **options).layers
    assert (layer.form, layer.reason) == ("dense", "the plan truncates this layer further than the options do")
    record = record_of(plan, strict=False, form="tucker2", ranks=[2, 2])
    assert planned(a_site(), record=record, **options).layers[0].form == "dense"


def test_a_strict_plan_has_to_fit() -> None:
    plan = planned(of_ranks(FormKind.SPATIAL, 4), form=FormChoice.SPATIAL)
    with pytest.raises(PlanError, match="spatial of rank 4 that the plan has for 'conv' is not its weight here"):
        planned(a_site(), record=record_of(plan, strict=True), form=FormChoice.SPATIAL)
    flat = a_site(ConvSpec.pointwise(32, 64, axes=2))
    told = {"kind": "conv2d", "geometry": flat.spec.describe()}
    with pytest.raises(PlanError, match="The layer 'conv' has no form spatial of rank 4"):
        planned(flat, record=record_of(plan, strict=True, **told), form=FormChoice.SPATIAL)
    assert planned(flat, record=record_of(plan, strict=False, **told)).layers[0].form == "dense"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"ranks": 3}, "'ranks' is 3"),
        ({"ranks": [0]}, r"'ranks' is \[0\]"),
        ({"ranks": [True]}, r"'ranks' is \[True\]"),
        ({"ranks": []}, "layer 'conv' is spatial, with 0 ranks"),
        ({"ranks": [2, 2]}, "layer 'conv' is spatial, with 2 ranks"),
    ],
)
def test_ranks_that_are_none(edits: dict[str, Any], message: str) -> None:
    plan = planned(a_site(), form=FormChoice.SPATIAL, rank=("4",))
    with pytest.raises(PlanError, match=message):
        record_of(plan, strict=True, **edits)


def given(site: ConvSite, kind: FormKind, rank: int, *, bias: Any = None) -> Form:
    found = FAMILIES[kind].decompose(site.weight, site.spec, np.dtype(np.float64))
    return FAMILIES[kind].form(site.spec, found.weights(found.at(rank)), site.bias if bias is None else bias)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_a_form_that_is_given_stands_as_it_is(kind: FormKind) -> None:
    site = a_site()
    form = given(site, kind, 6)
    plan = planned(site, source=lambda _: form, form=FormChoice.DENSE)
    (layer,) = plan.layers
    assert (layer.form, layer.given, layer.is_decomposed, layer.components) == (kind, True, True, None)
    assert list(plan.forms()) == [(site, form)]
    assert layer.truncation == pytest.approx(error_of(plan), rel=1e-6)
    record = parse_plan(json.loads(as_file(plan.as_json())), "plan.json")
    again = planned(site, source=lambda _: form, record=record, form=FormChoice.DENSE)
    assert again.as_json() == plan.as_json()
    with pytest.raises(PlanError, match="has another form in the plan than in the components"):
        planned(site, source=lambda _: given(site, kind, 5), record=record)


def test_a_bias_that_is_given_is_a_change() -> None:
    site = of_ranks(FormKind.SPATIAL, 4)
    same, other = (given(site, FormKind.SPATIAL, 4, bias=bias) for bias in (None, np.ones(64, np.float32)))
    plan = planned(site, source=lambda _: same)
    assert (plan.approximates, plan.layers[0].truncation) == (False, None)
    plan = planned(site, source=lambda _: other)
    assert (plan.approximates, plan.layers[0].truncation) == (True, None)
    ((_, dense),) = plan.dense_forms()
    np.testing.assert_array_equal(dense.stages[0].weight, site.weight)
    assert (dense.stages[0].bias == 1).all()
