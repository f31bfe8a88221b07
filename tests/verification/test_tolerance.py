"""A tolerance that the user sets, and the worst case that can be run again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from planting import double_output, planted, rename_output, weight, with_nan

from spdexport import pipeline
from spdexport.errors import UsageError
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.verification.check import Check
from spdexport.verification.compare import Tolerance, compare
from spdexport.verification.result import Status
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import Verification
    from spdexport.verification.torch_source import Subject

EXACT = np.array([1.0, 100.0, 0.0])


def statuses(found: Verification) -> dict[str, Status]:
    return {e.edge: e.status for e in found.edges}


def test_an_error_within_the_users_tolerance_passes_and_says_so() -> None:
    loose = Tolerance(atol=0.01, rtol=0.0)
    found = compare("y", EXACT + 0.005, EXACT, 1e-6, tolerance=loose)
    assert found.status is Status.PASS
    assert found.noise_ratio == pytest.approx(5000)
    assert found.reason == "y is within the user's --atol 0.01 --rtol 0, and 5e+03 times what rounding explains"
    assert compare("y", EXACT + 0.02, EXACT, 1e-6, tolerance=loose).status is Status.FAIL


def test_a_tolerance_can_be_stricter_than_the_models_own() -> None:
    found = compare("y", EXACT + 5e-6, EXACT, 1e-6, tolerance=Tolerance(atol=1e-6, rtol=0.0))
    assert found.status is Status.FAIL
    assert "5 times what rounding explains, more than the user's --atol 1e-06 --rtol 0" in found.reason


def test_a_relative_tolerance_is_of_each_entry() -> None:
    relative = Tolerance(atol=0.0, rtol=0.01)
    assert compare("y", EXACT * 1.005, EXACT, 1e-6, tolerance=relative).status is Status.PASS
    off = EXACT + np.array([0.0, 0.5, 0.001])
    found = compare("y", off, EXACT, 1e-6, tolerance=relative)
    assert found.status is Status.FAIL
    assert found.reason.startswith("y[2] is 0.001 where 0 is right")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_tolerance_hides_what_is_no_number(bad: float) -> None:
    got = EXACT.copy()
    got[1] = bad
    for tolerance in (Tolerance(atol=1e30, rtol=1e30), None):
        assert compare("y", got, EXACT, 1e-6, tolerance=tolerance).status is Status.FAIL
    assert compare("y", EXACT[:2], EXACT, 1e-6, tolerance=Tolerance(atol=1e30, rtol=0)).status is Status.FAIL
    whole = np.array([1, 2])
    assert compare("y", whole + 1, whole, 0.0, tolerance=Tolerance(atol=9, rtol=0)).status is Status.FAIL


@pytest.mark.parametrize(("option", "value"), [("atol", -1.0), ("rtol", float("nan")), ("atol", float("inf"))])
def test_a_tolerance_is_a_finite_number(option: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{option}"):
        pipeline.verify(tmp_path / "none.onnx", **{option: value})  # type: ignore[arg-type]


def test_a_tolerance_is_of_outputs_and_reported(conv_bn: Subject, tmp_path: Path) -> None:
    assert conv_bn.file is not None
    file = planted(conv_bn.file, weight("8.V", lambda v: v * 1.001), tmp_path / "p.onnx")
    subject = replace(conv_bn, file=file)
    found = verify_subject(subject, Check(tolerance=Tolerance.of(1e6, None)))
    assert (found.atol, found.rtol) == (1e6, 0)
    assert statuses(found)["export"] is Status.PASS
    assert "within the user's --atol 1e+06" in next(e for e in found.edges if e.edge == "export").reason
    # The weights are what they are.
    assert statuses(found)["weights"] is Status.FAIL
    assert verify_subject(conv_bn, Check()).atol is None
    for fault in (weight("8.V", with_nan), rename_output, double_output):
        broken = replace(conv_bn, file=planted(conv_bn.file, fault, tmp_path / "p.onnx"))
        assert statuses(verify_subject(broken, Check(tolerance=Tolerance.of(1e6, 1e6))))["export"] is Status.FAIL


def test_the_worst_case_can_be_run_again(five_convs: Subject, tmp_path: Path) -> None:
    assert five_convs.file is not None
    file = planted(five_convs.file, weight("4.U", lambda u: u * 1.01), tmp_path / "p.onnx")
    found = verify_subject(replace(five_convs, file=file), Check())
    worst = found.worst
    assert worst is not None
    assert worst.status is Status.FAIL
    assert worst.edge in ("export", "optimize")
    assert worst.case in found.inputs
    settings = SessionSettings(optimized=worst.edge == "optimize")
    again = open_session(file, settings).run(worst.inputs)
    assert set(again) == set(worst.outputs) == set(worst.reference)
    for name, value in again.items():
        np.testing.assert_allclose(value, worst.outputs[name], rtol=1e-5)
        assert worst.reference[name].dtype == np.float64
    largest = max(np.abs(worst.outputs[n] - worst.reference[n]).max() for n in again)
    assert largest == pytest.approx(
        max(e.max_abs or 0 for e in found.edges if e.edge in ("export", "optimize")), rel=0.5
    )


def test_a_pass_has_a_worst_case_too(five_convs: Subject) -> None:
    worst = verify_subject(five_convs, Check()).worst
    assert worst is not None
    assert worst.status is Status.PASS
    assert worst.noise_ratio < 8
