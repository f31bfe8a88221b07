from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spdexport.conv import ConvSite, ConvSpec, Skipped
from spdexport.errors import UsageError
from spdexport.factors import Factors, masked_weight
from spdexport.lowrank import svd_factors
from spdexport.planning import Delta, FormChoice, Plan, PlanOptions, make_plan

SPEC = ConvSpec(in_channels=4, out_channels=6, kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
RNG = np.random.default_rng(0)


def site(name: str, spec: ConvSpec = SPEC) -> ConvSite:
    weight = RNG.normal(size=spec.weight_shape).astype(np.float32)
    return ConvSite(name=name, spec=spec, weight=weight, bias=None, node=name, positions=10)


SITES = (site("a.conv"), site("a.other"), site("b"))


def rough(found: ConvSite, mask: Any = None) -> Factors:
    """Factors whose product is not the weight: there is a delta."""
    exact = svd_factors(found.weight, found.spec)
    return Factors(V=exact.V, U=exact.U * np.float32(0.9), mask=mask)


def plan(source: Any = lambda s: svd_factors(s.weight, s.spec), **options: Any) -> Plan:
    return make_plan(SITES, (), source, PlanOptions(**options))


def test_exact_factors_leave_no_delta_and_change_nothing() -> None:
    found = plan()
    assert [(layer.name, layer.form, layer.components, layer.rank, layer.delta) for layer in found.layers] == [
        ("a.conv", "factorized", 6, 6, "none"),
        ("a.other", "factorized", 6, 6, "none"),
        ("b", "factorized", 6, 6, "none"),
    ]
    assert not found.approximates
    assert list(found.dense_forms()) == []


def test_cost_and_break_even() -> None:
    layer = plan().layers[0]
    assert layer.macs_before == 6 * 36 * 10
    assert layer.macs_after == 6 * (36 + 6) * 10
    assert layer.break_even == pytest.approx(36 * 6 / (36 + 6))
    assert layer.reason == "6 live of 6 components, break-even 5"


@pytest.mark.parametrize(
    ("delta", "masked", "expected"),
    [
        (Delta.AUTO, False, "kept"),
        (Delta.AUTO, True, "dropped"),
        (Delta.KEEP, True, "kept"),
        (Delta.KEEP, False, "kept"),
        (Delta.DROP, False, "dropped"),
        (Delta.DROP, True, "dropped"),
    ],
)
def test_what_becomes_of_the_delta(delta: Delta, masked: bool, expected: str) -> None:
    # A mask of ones is a mask: the user named the layer.
    mask = np.ones(6) if masked else None
    found = plan(lambda s: rough(s, mask), delta=delta)
    assert {layer.delta for layer in found.layers} == {expected}
    assert {layer.form for layer in found.layers} == {"factorized+delta" if expected == "kept" else "factorized"}
    assert found.layers[0].delta_ratio == pytest.approx(0.1, rel=1e-5)
    assert found.approximates == (masked or expected == "dropped")


def test_effective_weights() -> None:
    mask = np.array([1, 0, 0.5, 1, 1, 0])
    for delta in (Delta.KEEP, Delta.DROP):
        decision = plan(lambda s: rough(s, mask), delta=delta).decisions[0]
        factors = rough(decision.site, mask)
        wanted = masked_weight(factors, SPEC)
        if delta is Delta.KEEP:
            wanted = wanted + decision.site.weight - masked_weight(rough(decision.site), SPEC)
        np.testing.assert_allclose(decision.effective(), wanted, rtol=0, atol=1e-15 * np.abs(wanted).max() * 10)


def test_the_dense_form_has_the_dense_cost() -> None:
    found = plan(lambda s: rough(s, np.ones(6)), form=FormChoice.DENSE)
    assert {layer.form for layer in found.layers} == {"dense"}
    assert found.macs_after == found.macs_before
    assert [form.name for _, form in found.forms()] == ["dense"] * 3


def test_a_layer_whose_components_are_all_masked_keeps_one_zero_component() -> None:
    found = plan(lambda s: rough(s, np.zeros(6)))
    assert [(layer.live, layer.rank, layer.macs_after) for layer in found.layers] == [(0, 0, 42 * 10)] * 3
    ((_, form), *_) = found.forms()
    assert [stage.spec.out_channels for stage in form.stages] == [1, 6]


def test_layers_and_exclude() -> None:
    found = plan(layers=("a.*",), exclude=("*other",))
    assert [(layer.form, layer.reason) for layer in found.layers[1:]] == [
        ("dense", "excluded by --exclude"),
        ("dense", "not named by --layers"),
    ]
    assert found.layers[0].form == "factorized"


def test_a_source_may_have_nothing_or_a_reason() -> None:
    answers = {"a.conv": None, "a.other": Skipped(name="a.other", kind="conv2d", reason="too small")}
    found = plan(lambda s: answers.get(s.name, svd_factors(s.weight, s.spec)))
    assert [layer.reason for layer in found.layers[:2]] == ["it has no components", "too small"]


@pytest.mark.parametrize("option", ["layers", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    with pytest.raises(UsageError, match=r"The pattern 'a.konv' matches no layer") as caught:
        plan(**{option: ("a.konv",)})
    assert caught.value.where == f"--{option}"
    assert "a.conv" in caught.value.hint


def test_the_plan_as_json_has_no_arrays_or_paths() -> None:
    import json

    written = json.loads(json.dumps(plan().as_json()))
    assert written["options"] == {
        "form": "factorized",
        "delta": "auto",
        "keep_masks": False,
        "layers": [],
        "exclude": [],
        "optimize_for": "macs",
        "lane_width": 16,
        "rank": [],
        "energy": None,
        "max_error": None,
    }
    assert written["schema_version"] == 1
    assert written["cost"]["unit"] == "MACs"
    assert written["layers"][0]["name"] == "a.conv"


def test_with_a_mask_a_delta_that_is_only_rounding_is_no_part_of_the_weight() -> None:
    decision = plan(lambda s: Factors(**_exact(s), mask=np.zeros(6))).decisions[0]
    assert decision.layer.delta == "none"
    assert not decision.effective().any()


def test_components_that_no_layer_has_can_be_excluded() -> None:
    found = make_plan(SITES, (), lambda _: None, PlanOptions(exclude=("gone",)), others=("gone",))
    assert len(found.layers) == 3


def _exact(found: ConvSite) -> dict[str, Any]:
    factors = svd_factors(found.weight, found.spec)
    return {"V": factors.V, "U": factors.U}
