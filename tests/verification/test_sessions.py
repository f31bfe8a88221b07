from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from planting import to_tf32

from spdexport import pipeline
from spdexport.ort.providers import CPU, CUDA, OPENVINO, PROVIDERS, TENSORRT, Provider, Purpose
from spdexport.ort.sessions import PlacedNode, RuntimeFailure, SessionSettings, provider_status
from spdexport.verification import sessions
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.sessions import SessionEdges
from spdexport.verification.trial import Trial, make_trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array
    from spdexport.verification.torch_source import Subject

W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
EXACT = X.astype(np.float64) @ W.astype(np.float64)


def trial() -> Trial:
    def perturbed(seed: int, u: float) -> dict[str, Array]:
        normal = np.random.default_rng(seed).standard_normal(EXACT.shape)
        return {"y": EXACT + u * (np.abs(X) @ np.abs(W)) * normal}

    own = {"y": EXACT.astype(np.float32)}
    return make_trial("case", {"y": EXACT}, own, perturbed, seed=0, unit_rounding=2.0**-24)


class FakeSession:
    def __init__(self, settings: SessionSettings, compute: Any, placed: str) -> None:
        self._settings, self._compute, self._placed = settings, compute, placed

    def run(self, _: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self._compute(self._settings).astype(np.float32)}

    def placed_nodes(self) -> tuple[PlacedNode, ...]:
        return (PlacedNode(self._placed, "node_MatMul_0", "MatMul", ""), PlacedNode("CPU", "shape", "Shape", ""))


def run(
    monkeypatch: pytest.MonkeyPatch,
    compute: Any,
    provider: Provider = CUDA,
    placed: str | None = None,
) -> list[EdgeResult]:
    """The device results with sessions that compute what they are told to."""
    monkeypatch.setattr(sessions, "provider_status", lambda _: None)
    monkeypatch.setattr(sessions, "_is_quantized", lambda _: False)
    monkeypatch.setattr(
        sessions, "open_session", lambda _, settings: FakeSession(settings, compute, placed or provider.ort_name)
    )
    edges = SessionEdges(Path("m.onnx"), [provider], is_evaluated=True)
    edges.compare(trial(), {"x": X}, lambda _: ("layer", ""))
    return [e for e in edges.results() if e.edge == "device"]


def to_bfloat16(value: Array) -> Array:
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)


COARSE = {"TF32": to_tf32, "bfloat16": to_bfloat16}
"""How a coarse format of the table rounds what it multiplies."""


def rounded(settings: SessionSettings) -> Array:
    coarse = settings.provider.coarse
    if coarse is None or (settings.purpose is Purpose.CHECK and settings.provider.check is not None):
        return X @ W
    to_coarse = COARSE[coarse.name]
    return to_coarse(X) @ to_coarse(W)


CHECKED = [row for row in PROVIDERS.values() if row.check is not None]


@pytest.mark.parametrize("provider", CHECKED, ids=lambda p: p.name)
def test_a_coarse_format_is_named_and_is_no_failure_of_the_model(
    monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    assert provider.coarse is not None
    check, deployed = run(monkeypatch, rounded, provider)
    assert check.status is Status.PASS
    assert check.reason.startswith(f"{provider.coarse.name} off: ")
    assert deployed.status is Status.PASS
    assert deployed.noise_ratio is not None
    assert deployed.noise_ratio > 8
    assert deployed.reason.startswith("the provider's own settings: y[")
    assert f"this is {provider.coarse.name}, not the model: {provider.coarse.advice}" in deployed.reason


@pytest.mark.parametrize("provider", CHECKED, ids=lambda p: p.name)
def test_a_fault_beside_a_coarse_format_still_fails(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    check, deployed = run(monkeypatch, lambda s: rounded(s) * 1.25, provider)
    assert (check.status, deployed.status) == (Status.FAIL, Status.FAIL)


def test_a_provider_without_settings_for_a_check_has_one_result_that_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS.values():
        if provider.check is None and provider is not CPU:
            (deployed,) = run(monkeypatch, lambda _: X @ W, provider)
            assert deployed.status is Status.PASS
            (deployed,) = run(monkeypatch, lambda s: X @ W * (1 if s.provider is CPU else 1.25), provider)
            assert deployed.status is Status.FAIL


def test_a_fault_beside_tf32_still_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check, deployed = run(monkeypatch, lambda s: rounded(s) * 1.05)
    assert (check.status, deployed.status) == (Status.FAIL, Status.FAIL)
    assert check.first_divergence == "layer"


def test_a_fault_that_only_a_deployment_has_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check, deployed = run(monkeypatch, lambda s: rounded(s) * (1.05 if s.purpose is Purpose.DEPLOYMENT else 1))
    assert (check.status, deployed.status) == (Status.PASS, Status.FAIL)


def test_a_difference_that_tf32_alone_does_not_show_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    check, deployed = run(monkeypatch, lambda s: rounded(s) if s.purpose is Purpose.DEPLOYMENT else X @ W)
    assert (check.status, deployed.status) == (Status.PASS, Status.INCONCLUSIVE)
    assert "the convolution algorithm that was chosen may" in deployed.reason


def test_tensorrt_has_one_result_and_cannot_tell_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    (deployed,) = run(monkeypatch, rounded, TENSORRT)
    assert deployed.status is Status.INCONCLUSIVE
    assert "NVIDIA_TF32_OVERRIDE=0" in deployed.reason


def test_a_provider_that_left_products_to_another_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    for result in run(monkeypatch, rounded, placed="CPUExecutionProvider"):
        assert result.status is Status.INCONCLUSIVE
        assert "cuda did not run all convolutions: node_MatMul_0 (MatMul) ran on CPUExecutionProvider" in result.reason


def test_a_provider_that_ran_nothing_of_a_file_without_products_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeSession, "placed_nodes", lambda _: (PlacedNode("CPUExecutionProvider", "n", "Relu", ""),))
    for result in run(monkeypatch, rounded, OPENVINO):
        assert result.status is Status.INCONCLUSIVE
        assert "openvino ran none of the 1 nodes of the file" in result.reason


def test_a_placement_that_cannot_be_read_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSession, "placed_nodes", lambda _: None)
    for result in run(monkeypatch, rounded, OPENVINO):
        assert result.status is Status.INCONCLUSIVE
        assert "does not say which provider ran which node: 1.24 and later do" in result.reason


def test_a_kernel_that_is_missing_says_nothing_about_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(message: str) -> list[Status]:
        def open_session(*_: object) -> None:
            raise RuntimeFailure(message)

        monkeypatch.setattr(sessions, "open_session", open_session)
        return [e.status for e in SessionEdges(Path("m.onnx"), []).results() if e.edge != "device"]

    assert refuse("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no Conv") == [Status.INCONCLUSIVE] * 2
    no_op = "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. Error No Op registered for Odd with"
    assert refuse(no_op) == [Status.INCONCLUSIVE] * 2
    assert refuse("[ONNXRuntimeError] : 1 : FAIL : bad") == [Status.FAIL] * 2


@pytest.mark.skipif(provider_status(CUDA) is None, reason="CUDA runs here")
def test_cuda_that_is_missing_is_inconclusive_with_what_is_missing(five_convs: Subject) -> None:
    edges = SessionEdges(five_convs.file, [CUDA])
    (device,) = [e for e in edges.results() if e.edge == "device"]
    assert device.status is Status.INCONCLUSIVE
    assert device.reason == provider_status(CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(provider_status(CUDA) is not None, reason=str(provider_status(CUDA)))
def test_a_correct_file_passes_on_cuda_and_tf32_is_only_named(five_convs: Subject, tmp_path: Path) -> None:
    found = pipeline.verify(five_convs.file, providers=["cuda"])
    check, deployed = (e for e in found.edges if e.edge == "device")
    assert check.status is Status.PASS
    assert check.reason.startswith("TF32 off: ")
    assert deployed.status is Status.PASS
    if deployed.noise_ratio is not None and deployed.noise_ratio > 8:
        assert "TF32" in deployed.reason


def test_a_coarser_unit_rounding_gives_a_coarser_tolerance() -> None:
    fine = trial()
    assert fine.rounded_to(2.0**-11).floors["y"] > 1000 * fine.floors["y"]


class Counted:
    """Gives another result at each call."""

    def __init__(self, *shifts: float) -> None:
        self._shifts = list(shifts)

    def __call__(self, settings: SessionSettings) -> Array:
        if settings.provider is CPU or settings.purpose is Purpose.DEPLOYMENT:
            return X @ W
        return X @ W + np.float32(self._shifts.pop(0) if self._shifts else 0)


def test_runs_that_differ_beyond_tolerance_are_inconclusive_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first run is right, the second is not; and the other way round.
    for shifts in ((0.0, 0.5), (0.5, 0.0)):
        check, _ = run(monkeypatch, Counted(*shifts))
        assert check.status is Status.INCONCLUSIVE
        assert check.reason.startswith(
            "TF32 off: nondeterministic: two runs of one session on one input differ by 0.5, "
        )


def test_runs_that_are_both_wrong_fail_whatever_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    check, _ = run(monkeypatch, Counted(0.5, -0.5))
    assert check.status is Status.FAIL
    assert "nondeterministic" in check.reason


def test_a_spread_within_rounding_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    check, _ = run(monkeypatch, Counted(0.0, 1e-6))
    assert check.status is Status.PASS


def test_a_second_run_that_fails_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter((False, True))

    def compute(settings: SessionSettings) -> Array:
        if settings.provider is CUDA and settings.purpose is Purpose.CHECK and next(calls):
            raise RuntimeFailure("out of memory")
        return X @ W

    check, _ = run(monkeypatch, compute)
    assert check.status is Status.INCONCLUSIVE
    assert "failed the second time: out of memory" in check.reason
