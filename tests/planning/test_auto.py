"""The cheapest form of each layer computes what the literal masked form computes."""

from __future__ import annotations

from functools import reduce

import ml_dtypes
import numpy as np
import pytest
import torch
from forms.layer_strategies import close, example_input, masked_factors, run, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from planning.models import WIDE, FewComponents, a_site, auto, some_factors

from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import MacsCost
from spdexport.factors import Factors, masked_weight
from spdexport.forms import Form, factorized
from spdexport.planning import Delta, FormChoice, Objective, PlanOptions, make_plan

DENSE = FewComponents(dense=-1.0)
PAIR = FewComponents()


def output(form: Form, x: torch.Tensor) -> torch.Tensor:
    """What a form computes, in float64."""
    return sum(reduce(lambda value, stage: run(stage, value), chain, x) for chain in form.chains)  # type: ignore[return-value]


@settings(max_examples=150)
@given(specs(), st.data(), st.sampled_from([DENSE, PAIR, MacsCost(lane=1), MacsCost()]), st.sampled_from(list(Delta)))
def test_auto_computes_what_the_literal_form_computes(
    spec: ConvSpec, data: st.DataObject, cost: object, delta: Delta
) -> None:
    factors = data.draw(masked_factors(spec))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    exact = rng.random() < 0.3 and factors.mask is None
    weight = masked_weight(factors, spec) if exact else rng.standard_normal(spec.weight_shape)
    bias = rng.standard_normal(spec.out_channels)
    site = ConvSite(name="layer", spec=spec, weight=weight, bias=bias, node="layer", positions=7)
    (decision,) = auto((site, factors), cost=cost, delta=delta).decisions
    form = decision.build_form(keep_masks=False)
    assert form is not None
    assert form.name == decision.layer.form
    kept = weight - masked_weight(Factors(V=factors.V, U=factors.U), spec) if decision.layer.delta == "kept" else None
    literal = factorized(spec, factors, bias, delta=kept, keep_mask=True)
    x = example_input(spec, rng)
    wanted = output(literal, x)
    assert close(output(form, x), wanted, scale=float(wanted.abs().max()) + np.abs(weight).max())


def test_few_live_components_make_v_and_u_cheapest() -> None:
    site = a_site()
    (layer,) = auto((site, some_factors(site, 40, live=16))).layers
    assert (layer.form, layer.kept, layer.live, layer.rank) == ("factorized", 16, 16, 16)
    assert [w.form for w in layer.weighed] == ["dense", "factorized", "recompressed"]
    dense, pair, again = (w.cost for w in layer.weighed)
    assert pair == again < dense
    assert layer.reason.startswith("cheapest as factorized: 16 live of 40 components, break-even 52; rank 16 of 64; ")


def test_an_overcomplete_layer_of_low_rank_is_recompressed() -> None:
    site = a_site()
    rng = np.random.default_rng(0)
    factors = Factors(
        V=(rng.standard_normal((288, 5)) @ rng.standard_normal((5, 80))).astype(np.float32),
        U=rng.standard_normal((80, 64)).astype(np.float32),
        mask=np.ones(80),
    )
    plan = auto((site, factors))
    (layer,) = plan.layers
    assert (layer.form, layer.kept, layer.rank) == ("recompressed", 5, 5)
    assert "rank 5 of 64; next singular value " in layer.reason
    assert ", rounding " in layer.reason
    assert layer.macs_after == 5 * (288 + 64) * 100
    assert layer.params_after == 5 * (288 + 64) + 64
    assert plan.bytes_saved == 4 * (64 * 288 - 5 * (288 + 64))


def test_many_live_components_of_full_rank_stay_dense() -> None:
    site = a_site()
    (layer,) = auto((site, some_factors(site, 80, live=70))).layers
    assert (layer.form, layer.kept, layer.rank) == ("dense", None, 64)
    assert layer.macs_after == layer.macs_before
    assert layer.gain is not None
    assert layer.gain.macs == layer.macs_after
    assert 0 < layer.gain.paying_rank < 64
    assert 0 < layer.gain.paying_error < 1


def test_the_lane_width_counts() -> None:
    # 17 components fill two lanes of 16: at that they cost what 32 do.
    site = a_site(ConvSpec.pointwise(32, 48, axes=2))
    factors = some_factors(site, 17, live=17)
    assert [w.cost for w in auto((site, factors), lane_width=1).layers[0].weighed] == [
        48 * 32 * 100,
        17 * (32 + 48) * 100 + 8 * 2 * 17 * 100 * 4,
        17 * (32 + 48) * 100 + 8 * 2 * 17 * 100 * 4,
    ]
    (layer,) = auto((site, factors)).layers
    assert layer.form == "dense"
    assert layer.weighed[1].cost == 32 * (32 + 48) * 100 + 8 * 2 * 32 * 100 * 4


def test_a_tie_is_dense() -> None:
    site = a_site()
    (layer,) = auto((site, some_factors(site, 8, live=8)), cost=FewComponents(dense=8)).layers
    assert layer.form == "dense"


def test_parameters_alone_may_choose_otherwise() -> None:
    site = a_site(ConvSpec.pointwise(32, 48, axes=2))
    pair = (site, some_factors(site, 17, live=17))
    assert auto(pair).layers[0].form == "dense"
    plan = auto(pair, optimize_for=Objective.PARAMS)
    assert (plan.layers[0].form, plan.unit) == ("factorized", "parameters")
    assert plan.layers[0].params_after == 17 * (32 + 48) + 48


def test_a_layer_whose_components_are_all_masked_is_its_bias() -> None:
    for spec in (WIDE, ConvSpec.pointwise(8, 6, axes=2, groups=2), ConvSpec.pointwise(8, 6, axes=0)):
        site = a_site(spec, dtype=np.float64)
        (decision,) = auto((site, some_factors(site, 8, live=0))).decisions
        assert (decision.layer.form, decision.layer.rank, decision.layer.live) == ("constant", 0, 0)
        assert decision.layer.reason == "no component is live: the output is the bias"
        form = decision.build_form(keep_masks=False)
        assert form is not None
        found = output(form, example_input(spec, np.random.default_rng(0)))
        np.testing.assert_array_equal(found.movedim(1 if spec.axes else -1, -1)[..., :], np.broadcast_to(
            site.bias, found.movedim(1 if spec.axes else -1, -1).shape))  # fmt: skip


def test_with_the_delta_kept_a_masked_layer_is_no_constant() -> None:
    site = a_site()
    (layer,) = auto((site, some_factors(site, 8, live=0)), delta=Delta.KEEP).layers
    assert layer.form == "dense"
    assert [w.form for w in layer.weighed] == ["dense", "factorized+delta", "recompressed"]


def test_masks_that_stay_visible_keep_v_and_u() -> None:
    masked, other = a_site(name="a"), a_site(name="b")
    plain = some_factors(other, 80, live=80)
    factors = (masked, some_factors(masked, 40, live=2)), (other, Factors(V=plain.V, U=plain.U))
    a, b = auto(*factors, keep_masks=True).layers
    assert (a.form, a.kept) == ("factorized", 40)
    assert a.reason.endswith("; its mask stays visible")
    assert a.params_after == 40 * (288 + 64) + 64 + 40
    assert b.form == "dense"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_floats_have_a_coarser_rank(dtype: type) -> None:
    site = a_site()
    low = masked_weight(some_factors(site, 6, live=6), WIDE)
    half = ConvSite(name="half", spec=WIDE, weight=low.astype(dtype), bias=None, node="half", positions=100)
    everything = np.eye(64)
    flat = np.asarray(half.weight, np.float64).reshape(64, -1)
    factors = Factors(V=flat.T.astype(dtype), U=everything.astype(dtype))
    (decision,) = auto((half, factors)).decisions
    assert (decision.layer.form, decision.layer.kept) == ("recompressed", 6)
    assert decision.made is not None
    assert np.asarray(decision.made.stages[0].weight).dtype == dtype


def test_latency_is_what_the_model_of_it_says() -> None:
    site = a_site()
    pair = (site, some_factors(site, 60, live=60))
    plan = auto(pair, cost=FewComponents(dense=70), optimize_for=Objective.LATENCY)
    assert (plan.layers[0].form, plan.cost, plan.unit) == ("factorized", "components", "components")
    assert plan.as_json()["cost"] == {"model": "components", "unit": "components"}


def test_other_forms_are_not_weighed() -> None:
    site = a_site()
    plan = make_plan([site], (), lambda s: some_factors(s, 8, live=8), PlanOptions(form=FormChoice.FACTORIZED))
    assert plan.layers[0].weighed == ()
    assert plan.layers[0].gain is None
