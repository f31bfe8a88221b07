"""Plans that are written down and repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning.models import WIDE, FewComponents, a_site, auto, some_factors

from spdexport.conv import ConvSite
from spdexport.errors import PlanError
from spdexport.factors import Factors
from spdexport.planning import FormChoice, Plan, PlanRecord, as_file, parse_plan, read_plan


def pairs() -> list[tuple[ConvSite, Factors]]:
    """Layers that take each of the forms."""
    sites = {name: a_site(name=name) for name in ("few", "many", "none", "low", "with_delta")}
    rng = np.random.default_rng(0)
    low = Factors(
        V=(rng.standard_normal((288, 5)) @ rng.standard_normal((5, 80))).astype(np.float32),
        U=rng.standard_normal((80, 64)).astype(np.float32),
        mask=np.ones(80),
    )
    kept = some_factors(sites["with_delta"], 8, live=8)
    return [
        (sites["few"], some_factors(sites["few"], 40, live=16)),
        (sites["many"], some_factors(sites["many"], 80, live=70)),
        (sites["none"], some_factors(sites["none"], 8, live=0)),
        (sites["low"], low),
        (sites["with_delta"], Factors(V=kept.V, U=kept.U)),
    ]


def written(plan: Plan, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(as_file(plan.as_json()))
    return {**found, **changes}


def record(plan: Plan, *, strict: bool = True, **changes: Any) -> PlanRecord:
    return parse_plan(written(plan, **changes), "--plan F.json", strict=strict)


@pytest.mark.parametrize(
    "options", [{}, {"rank": ("12",)}, {"energy": 0.5, "optimize_for": "params"}, {"form": FormChoice.DENSE}]
)
def test_a_plan_is_repeated_to_the_letter(options: dict[str, Any]) -> None:
    plan = auto(*pairs(), **options)
    found = record(plan)
    assert found.options == plan.options
    # By a cost model that would choose otherwise.
    again = make_again(found)
    assert as_file(again.as_json()) == as_file(plan.as_json())
    for one, other in zip(plan.forms(), again.forms(), strict=True):
        for a, b in zip(one[1].stages, other[1].stages, strict=True):
            np.testing.assert_array_equal(a.weight, b.weight)


def make_again(found: PlanRecord, layers: Any = None) -> Plan:
    options = {name: getattr(found.options, name) for name in found.options.__dataclass_fields__}
    return auto(*(layers or pairs()), cost=FewComponents(dense=-1), record=found, **options)


def test_the_plan_has_every_form() -> None:
    forms = [layer.form for layer in auto(*pairs()).layers]
    assert forms == ["factorized", "dense", "constant", "recompressed", "dense"]


def _edited(index: int, **changes: Any) -> dict[str, Any]:
    found = written(auto(*pairs()))
    found["layers"][index].update(changes)
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "there is list where an object is expected"),
        ({"schema_version": 2}, "schema version is 2, and 1 is known"),
        ({}, "schema version is None, and 1 is known"),
        ({"schema_version": 1}, "'layers' is no list"),
        (_edited(0, form="sparse"), "layer 'few' has the unknown form 'sparse'"),
        (_edited(0, name=3), "'name' is 3"),
        (_edited(0, delta="gone"), "the delta of layer 'few' is 'gone'"),
        (_edited(3, kept=0), "'kept' is 0"),
        (_edited(3, kept=None), "layer 'low' is recompressed, and its rank is missing"),
        (_edited(3, kept=True), "'kept' is True"),
        (_edited(1, name="few"), "a layer is there twice"),
        ({**_edited(0), "options": {"form": "cubic"}}, "'cubic' is not a valid FormChoice"),
        ({**_edited(0), "options": {"speed": 1}}, "its option 'speed' is not known"),
        ({**_edited(0), "options": {"layers": "a"}}, "its option layers is no list of texts"),
        ({**_edited(0), "options": {"energy": "0.5"}}, "'energy' is '0.5'"),
        ({**_edited(0), "cost": None}, "there is NoneType where an object is expected"),
    ],
)
def test_what_is_no_plan(content: Any, message: str) -> None:
    with pytest.raises(PlanError, match="The file is no plan that can be used") as caught:
        parse_plan(content, "--plan F.json")
    assert message in caught.value.what
    assert caught.value.where == "--plan F.json"
    assert caught.value.exit_status == 4


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"not JSON|not text|no plan"):
        read_plan(path)
    with pytest.raises(PlanError, match="There is no such file"):
        read_plan(tmp_path / "other.json")


def _without_mask(layers: list[tuple[ConvSite, Factors]], index: int) -> list[tuple[ConvSite, Factors]]:
    site, factors = layers[index]
    assert factors.mask is not None
    return [*layers[:index], (site, replace(factors, mask=np.ones_like(factors.mask))), *layers[index + 1 :]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda p: p[1:], "The plan has a layer 'few', and the model none."),
        (lambda p: [*p, (a_site(name="new"), p[0][1])], "The model has a layer 'new', and the plan none."),
        (
            lambda p: [(replace(p[0][0], spec=replace(WIDE, stride=(2, 1))), p[0][1]), *p[1:]],
            "The layer 'few' is conv2d 32>64 3x3 s2x1 p1, and in the plan conv2d 32>64 3x3 p1.",
        ),
        (lambda p: _without_mask(p, 0), "The form factorized of rank 16 that the plan has for 'few' is not its weight"),
        (lambda p: _without_mask(p, 2), "The form constant of rank 1 that the plan has for 'none' is not its weight"),
        (
            lambda p: [*p[:3], (p[3][0], some_factors(p[3][0], 80, live=6)), p[4]],
            "The form recompressed of rank 5 that the plan has for 'low' is not its weight here.",
        ),
        (
            lambda p: [*p[:4], (p[4][0], replace(p[4][1], mask=np.ones(8)))],
            "The weight delta of 'with_delta' is kept in the plan, and dropped here.",
        ),
    ],
)
def test_a_plan_of_another_model_is_an_error(changed: Any, message: str) -> None:
    found = record(auto(*pairs()))
    with pytest.raises(PlanError) as caught:
        make_again(found, changed(pairs()))
    assert message in caught.value.what
    assert caught.value.where == "--plan F.json"
    assert caught.value.hint


def test_what_a_file_says_of_itself_is_only_a_statement() -> None:
    plan = auto(*pairs())
    layers = written(plan)["layers"]
    layers[0].update(form="constant", kept=1)  # a layer that is not zero
    layers[1].update(form="recompressed", kept=3)  # one that has another rank
    layers[3].update(geometry="1>1 9x9")
    again = make_again(record(plan, strict=False, layers=layers[:4]))
    forms = [(layer.form, layer.kept) for layer in again.layers]
    assert forms == [("dense", None), ("recompressed", 64), ("constant", 1), ("dense", None), ("dense", None)]
    assert not any(layer.truncation for layer in again.layers)
