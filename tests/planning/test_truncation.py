from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planning.models import WIDE, a_site, auto, some_factors

from spdexport.conv import ConvSpec
from spdexport.errors import UsageError
from spdexport.forms import fold_form
from spdexport.planning import FormChoice, PlanOptions, check_truncation, parse_rank

SITE = a_site()
FULL = (SITE, some_factors(SITE, 80, live=70))


@pytest.mark.parametrize(
    ("text", "expected"), [("16", (None, 16)), ("conv*=3", ("conv*", 3)), ("a=b=2", ("a=b", 2)), ("x = 4", ("x ", 4))]
)
def test_ranks_are_read(text: str, expected: tuple[str | None, int]) -> None:
    assert parse_rank(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "=4", "conv=", "conv=x", "²"])
def test_what_is_no_rank(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rank") as caught:
        parse_rank(text)
    assert caught.value.where == f"--rank {text}"


@pytest.mark.parametrize("options", [{"rank": ("20",)}, {"rank": ("conv=20",)}, {"energy": 0.5}, {"max_error": 0.6}])
def test_the_effective_weight_becomes_the_truncated_one(options: dict[str, Any]) -> None:
    exact = auto(FULL).decisions[0]
    plan = auto(FULL, **options)
    (decision,) = plan.decisions
    layer = decision.layer
    assert layer.form == "recompressed"
    assert layer.kept is not None
    assert layer.kept < layer.rank == 64
    assert plan.approximates
    assert decision.made is not None
    np.testing.assert_array_equal(decision.effective(), fold_form(decision.made).weight)
    error = np.linalg.norm(decision.effective() - exact.effective()) / np.linalg.norm(exact.effective())
    assert layer.truncation == pytest.approx(error, rel=1e-5)
    assert layer.reason.startswith(f"truncated to rank {layer.kept} of 64, relative error {layer.truncation:.2g}; ")
    if "energy" in options:
        assert 1 - error**2 >= 0.5
    if "max_error" in options:
        assert error <= 0.6


def test_a_rank_for_a_layer_is_stronger_than_one_for_all() -> None:
    other = a_site(name="other")
    plan = auto(
        FULL, (other, some_factors(other, 80, live=70)), form=FormChoice.FACTORIZED, rank=("20", "other=9", "o*=8")
    )
    assert [layer.kept for layer in plan.layers] == [20, 8]


def test_auto_truncates_only_where_that_is_cheaper() -> None:
    (layer,) = auto(FULL, energy=0.99).layers
    assert (layer.form, layer.truncation) == ("dense", None)
    assert "; not truncated, for rank " in layer.reason
    (layer,) = auto(FULL, rank=("64",)).layers
    assert layer.reason.endswith("; rank 64 truncates nothing")


def test_a_rank_that_would_not_be_cheaper_is_told() -> None:
    (layer,) = auto(FULL, rank=("63",)).layers
    assert (layer.form, layer.truncation) == ("dense", None)
    assert layer.reason.endswith("; not truncated, for rank 63 would not be cheaper")


def test_the_other_forms_truncate_as_they_are_told() -> None:
    plan = auto(FULL, form=FormChoice.FACTORIZED, rank=("60",))
    assert (plan.layers[0].form, plan.layers[0].kept) == ("recompressed", 60)
    dense = auto(FULL, form=FormChoice.DENSE, rank=("60",))
    assert (dense.layers[0].form, dense.layers[0].kept) == ("dense", None)
    np.testing.assert_array_equal(plan.decisions[0].effective(), dense.decisions[0].effective())
    assert auto(FULL, form=FormChoice.FACTORIZED, rank=("64",)).layers[0].form == "factorized"


def test_each_group_is_truncated() -> None:
    spec = ConvSpec(**{**{f: getattr(WIDE, f) for f in ("kernel", "stride", "padding", "dilation")},
                       "in_channels": 64, "out_channels": 128, "groups": 2})  # fmt: skip
    site = a_site(spec)
    (decision,) = auto((site, some_factors(site, 80, live=80)), form=FormChoice.FACTORIZED, rank=("7",)).decisions
    assert decision.made is not None
    assert decision.made.stages[0].weight.shape == (14, 32, 3, 3)
    half = decision.effective()[:64].reshape(64, -1)
    assert np.linalg.matrix_rank(half, tol=1e-4) == 7


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"energy": 0.9, "max_error": 0.1}, "how far all weights are truncated", "--energy and --max-error"),
        ({"energy": 0.9, "rank": ("4",)}, "how far all weights are truncated", "--rank and --energy"),
        ({"rank": ("4", "5")}, "how far all weights are truncated", "--rank and --rank"),
        ({"energy": 0.0}, "not a share from 0 to 1", "--energy"),
        ({"energy": 1.5}, "not a share from 0 to 1", "--energy"),
        ({"energy": float("nan")}, "not a share from 0 to 1", "--energy"),
        ({"max_error": -0.1}, "not a share from 0 to 1", "--max-error"),
        ({"energy": 0.9, "keep_masks": True}, "no components for a mask", "--keep-masks and --energy"),
        ({"rank": ("a=4",), "keep_masks": True}, "no components for a mask", "--keep-masks and --rank"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_truncation(PlanOptions(**options))
    assert caught.value.where == where


def test_a_rank_beside_energy_may_name_a_layer() -> None:
    check_truncation(PlanOptions(energy=0.9, rank=("conv=4",)))


def test_a_rank_for_no_layer() -> None:
    with pytest.raises(UsageError, match="'konv' matches no layer") as caught:
        auto(FULL, rank=("konv=4",))
    assert caught.value.where == "--rank"
