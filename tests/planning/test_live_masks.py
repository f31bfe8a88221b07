"""Masks that are known only at run time, as a constraint of the planner."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from models import a_site, some_factors

from spdexport.errors import UsageError
from spdexport.forms import FormKind
from spdexport.planning import FormChoice, Objective, Plan, PlanOptions, make_plan, parse_plan
from spdexport.planning.live_masks import LiveMasks, LiveOptions

SITE = a_site()
FACTORS = some_factors(SITE, 12, live=3)


def planned(live: dict[str, Any], record: Any = None, **options: Any) -> Plan:
    masks = LiveMasks(options=LiveOptions(**live))
    return make_plan([SITE], (), lambda _: FACTORS, PlanOptions(**options), live_masks=masks, record=record)


@pytest.mark.parametrize("form", [FormChoice.FACTORIZED, FormChoice.AUTO])
def test_a_live_mask_leaves_one_form_whatever_is_cheapest(form: FormChoice) -> None:
    (layer,) = planned({"runtime_masks": ("all",)}, form=form).layers
    assert (layer.form, layer.kept, layer.live) == (FormKind.FACTORIZED, 12, 3)
    assert layer.weighed == ()
    assert layer.gain is None
    assert planned({}, form=form).layers[0].kept != 12


def test_what_stays_for_the_sake_of_a_live_mask_is_counted() -> None:
    (fixed,), (live,) = planned({}).layers, planned({"runtime_masks": ("all",)}).layers
    assert live.macs_after == fixed.macs_after * 12 // 3  # V and U with all components
    routed = planned({"runtime_masks": ("all",), "runtime_routing": True}).layers[0]
    assert routed.macs_after == live.macs_after + live.macs_before  # and the original layer beside them


def test_nothing_is_measured_for_a_layer_that_has_no_choice() -> None:
    def cost(*_: Any) -> float:
        pytest.fail("a form was weighed")

    cost.name = cost.unit = "seconds"  # type: ignore[attr-defined]
    make_plan(
        [SITE],
        (),
        lambda _: FACTORS,
        PlanOptions(form=FormChoice.AUTO, optimize_for=Objective.LATENCY),
        live_masks=LiveMasks(options=LiveOptions(runtime_masks=("all",))),
        cost_model=cost,  # type: ignore[arg-type]
    )


def test_a_plan_with_live_masks_over_fixed_ones_can_be_repeated() -> None:
    plan = planned({"runtime_masks": ("all",)})
    record = parse_plan(json.loads(json.dumps(plan.as_json())), "plan.json")
    again = planned({"runtime_masks": ("all",)}, record)
    assert again.layers == plan.layers
    assert np.array_equal(again.decisions[0].effective(), plan.decisions[0].effective())


def test_a_live_mask_has_no_components_of_a_truncated_weight_to_choose_among() -> None:
    with pytest.raises(UsageError, match="truncated weight has no components"):
        planned({"runtime_masks": ("all",)}, rank=("2",))
