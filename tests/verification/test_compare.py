from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from spdexport.verification.compare import compare, floor_of, worst
from spdexport.verification.result import Status
from spdexport.verification.trial import make_trial

EXACT = np.array([1.0, -2.0, 0.0])


def test_the_floor_is_the_largest_effect_of_rounding_and_one_ulp() -> None:
    own = (EXACT + 1e-6).astype(np.float32)
    floor = floor_of(EXACT, own, [EXACT + 3e-6, EXACT - 2e-6])
    assert floor == pytest.approx(3e-6 + 2.0**-22)
    assert floor_of(EXACT, EXACT.astype(ml_dtypes.bfloat16), []) == 2.0**-6
    assert 0 < floor_of(np.zeros(3), np.zeros(3, np.float32), []) < 1e-300


@pytest.mark.parametrize(("error", "status"), [(7.9e-6, Status.PASS), (8.1e-6, Status.FAIL)])
def test_eight_floors_are_allowed(error: float, status: Status) -> None:
    found = compare("y", EXACT + np.array([0, error, 0]), EXACT, 1e-6)
    assert found.status is status
    assert found.noise_ratio == pytest.approx(error / 1e-6)
    if status is Status.FAIL:
        assert found.reason == "y[1] is -1.9999919 where -2 is right: off by 8.1e-06, 8.1 times what rounding explains"


@pytest.mark.parametrize(
    ("value", "exact"),
    [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf), (np.inf, np.nan), (np.nan, np.inf), (1.0, np.inf)],
)
def test_non_finite_values_must_agree_in_place_and_kind(value: float, exact: float) -> None:
    found = compare("y", np.array([0.0, value]), np.array([0.0, exact]), 1.0)
    assert found.status is Status.FAIL
    assert found.reason == f"y[1] is {value} where {exact} is right"
    assert compare("y", np.array([0.0, exact]), np.array([0.0, exact]), 1.0).status is Status.PASS


def test_other_shapes_fail_even_where_they_broadcast() -> None:
    assert compare("y", np.ones((3, 1)), np.ones((3, 3)), 1.0).reason == "y has shape 3x1 where 3x3 is right"


def test_integers_are_equal_or_unstable() -> None:
    a, b = np.array([1, 2]), np.array([1, 3])
    assert compare("k", a, a, 0.0).status is Status.PASS
    assert compare("k", a, b, 0.0).status is Status.FAIL
    assert compare("k", a, b, 0.0, stable=False).status is Status.INCONCLUSIVE


def test_no_outputs_prove_nothing() -> None:
    assert worst([]).status is Status.FAIL


def test_numbers_below_the_smallest_normal_one_may_be_flushed_to_zero() -> None:
    small = np.array([3e-39, -1e-40])
    floor = floor_of(small, small.astype(np.float32), [])
    assert compare("y", np.zeros(2, np.float32), small, floor).status is Status.PASS
    half = np.array([3e-6, 1e-7])
    floor = floor_of(half, half.astype(np.float16), [])
    assert compare("y", half.astype(np.float16), half, floor).noise_ratio <= 0.5
    assert compare("y", np.zeros(2, np.float16), half, floor).status is Status.FAIL


def test_what_rounding_makes_infinite_is_no_tolerance() -> None:
    exact = np.array([1.0, -16.0])
    trial = make_trial(
        "case",
        {"y": exact},
        {"y": exact.astype(np.float32)},
        lambda seed, u: {"y": np.array([1.0 + u, -np.inf if seed else -16.0])},
        seed=0,
        unit_rounding=2.0**-24,
    )
    assert trial.unsettled == ("y",)
    assert trial.floors["y"] < 1e-5
