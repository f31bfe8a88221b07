"""The device edge on sessions of a real provider beside the CPU's: OpenVINO runs on any x86-64 processor."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from cli_command import DIGITS, spdexport
from onnx import numpy_helper
from planting import one_off, planted, to_bfloat16, weight

from spdexport import pipeline
from spdexport.ort.providers import CUDA, OPENVINO, Provider, Purpose
from spdexport.ort.sessions import SessionSettings, open_session, provider_status
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.torch_source import Subject, verify_subject

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import Verification

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(provider_status(OPENVINO) is not None, reason=str(provider_status(OPENVINO))),
]


def devices(found: Verification) -> list[EdgeResult]:
    return [edge for edge in found.edges if edge.edge == "device"]


def on(provider: Provider, subject: Subject, **changes: Any) -> Verification:
    return verify_subject(replace(subject, **changes), providers=(provider,), seed=0)


@pytest.mark.parametrize("name", ["five_convs", "digits"])
def test_a_correct_file_passes_on_nodes_that_openvino_ran(request: pytest.FixtureRequest, name: str) -> None:
    subject: Subject = request.getfixturevalue(name)
    assert subject.file is not None
    for purpose in (Purpose.CHECK, Purpose.DEPLOYMENT):
        session = open_session(subject.file, SessionSettings(provider=OPENVINO, optimized=True, purpose=purpose))
        placed = session.placed_nodes()
        assert placed
        assert {node.provider for node in placed} == {OPENVINO.ort_name}
    check, deployed = devices(on(OPENVINO, subject))
    for edge in (check, deployed):
        assert (edge.status, edge.provider) == (Status.PASS, "openvino")
        assert edge.noise_ratio is not None
        # Not 0: another library's kernels, whose sums have another order.
        assert 0 < edge.noise_ratio < 8
    assert check.reason.startswith("bfloat16 off: ")
    assert check.reason.endswith(" inputs compared")


def test_a_planted_fault_is_caught_on_the_device_edge(five_convs: Subject, tmp_path: Path) -> None:
    assert five_convs.file is not None
    layer = next(x.name for x in five_convs.plan.layers)
    faulty = planted(five_convs.file, weight(f"{layer}.V", one_off), tmp_path / "faulty.onnx")
    for edge in devices(on(OPENVINO, five_convs, file=faulty)):
        assert edge.status is Status.FAIL
        assert edge.first_divergence == layer


def test_a_fault_that_only_the_device_has_is_told_from_the_file(five_convs: Subject) -> None:
    """A provider that rounds to bfloat16 where a check asked for float32."""
    assert OPENVINO.coarse is not None
    found = on(replace(OPENVINO, check=OPENVINO.coarse.options), five_convs)
    by_edge = {edge.edge: edge for edge in found.edges if edge.edge != "device"}
    assert [by_edge[e].status for e in ("weights", "export", "optimize")] == [Status.PASS] * 3
    check, _ = devices(found)
    assert check.status is Status.FAIL
    assert check.noise_ratio is not None
    assert check.noise_ratio > 100
    assert check.first_divergence == "0"


def test_bfloat16_in_a_deployment_is_named_and_is_no_failure_of_the_model(five_convs: Subject) -> None:
    assert OPENVINO.coarse is not None
    assert OPENVINO.coarse.options is not None
    check, deployed = devices(on(replace(OPENVINO, deployment=OPENVINO.coarse.options), five_convs))
    assert (check.status, deployed.status) == (Status.PASS, Status.PASS)
    assert "this is bfloat16, not the model: INFERENCE_PRECISION_HINT f32" in deployed.reason
    assert deployed.noise_ratio is not None
    assert deployed.noise_ratio > 8


def test_a_file_in_bfloat16_weights_is_not_excused_by_a_coarse_provider(five_convs: Subject, tmp_path: Path) -> None:
    assert five_convs.file is not None
    layer = next(x.name for x in five_convs.plan.layers)
    faulty = planted(five_convs.file, weight(f"{layer}.V", to_bfloat16), tmp_path / "faulty.onnx")
    assert {edge.status for edge in devices(on(OPENVINO, five_convs, file=faulty))} == {Status.FAIL}


def test_products_that_openvino_does_not_take_are_named(tmp_path: Path) -> None:
    text = "g (double[2,4] x) => (double[2,4] y) { z = MatMul (x, w)  y = Relu (z) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.append(numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 4)), "w"))
    for node in model.graph.node:
        node.name = f"the_{node.op_type.lower()}"
    file = tmp_path / "double.onnx"
    onnx.save(model, file)
    found = pipeline.verify(file, providers=["openvino"])
    assert found.verdict is Status.INCONCLUSIVE
    for edge in devices(found):
        assert edge.status is Status.INCONCLUSIVE
        assert edge.reason.endswith(
            "openvino did not run all convolutions: the_matmul (MatMul) ran on CPUExecutionProvider"
        )


def test_cuda_is_missing_with_the_package_to_install(five_convs: Subject) -> None:
    (device,) = devices(on(CUDA, five_convs))
    assert device.status is Status.INCONCLUSIVE
    assert "the installed onnxruntime-openvino has no CUDAExecutionProvider" in device.reason


def test_the_commands_take_openvino(tmp_path: Path) -> None:
    file, report = tmp_path / "m.onnx", tmp_path / "r.json"
    done = spdexport("convert", *DIGITS, "-o", file, "--provider", "openvino", "--report", report)
    assert done.exit_code == 0, done.output
    edges = [edge for edge in json.loads(report.read_text())["edges"] if edge["edge"] == "device"]
    assert [(edge["provider"], edge["status"]) for edge in edges] == [("openvino", "pass")] * 2
    done = spdexport("bench", file, "--provider", "openvino", "--rounds", 2, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "ran on OpenVINOExecutionProvider (" in done.output
