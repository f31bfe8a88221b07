"""The digits run, converted, against the outputs that SPD's own code gave for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from spdexport.pipeline import convert
from spdexport.verification.result import Status

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples/01_digits/run"
FACTORY = f"{ROOT / 'examples/01_digits/digits_cnn.py'}:DigitsCNN"
GOLDEN = load_file(ROOT / "tests/data/spd_digits_golden.safetensors")
MASKS = {"masks": RUN / "fixed_masks.safetensors"}

CASES: dict[str, dict[str, Any]] = {
    "fixed_mask_output": MASKS,
    "fixed_mask_plus_delta_output": {**MASKS, "delta": "keep"},
    "unmasked_output": {"delta": "drop"},
    "unmasked_plus_delta_output": {},
    "dense_output": {"form": "dense"},
}


@pytest.fixture(scope="module", params=CASES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    options = CASES[request.param]
    return request.param, path, convert(RUN, path, factory=FACTORY, input_shape="1x1x16x16", **options)


def test_onnx_runtime_gives_the_outputs_of_spd(converted: tuple[str, Path, Any]) -> None:
    name, path, _ = converted
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": GOLDEN["input"]})
    np.testing.assert_allclose(output, GOLDEN[name], rtol=0, atol=1e-5 * np.abs(GOLDEN[name]).max())


def test_every_edge_that_runs_on_a_cpu_passes(converted: tuple[str, Path, Any]) -> None:
    verification = converted[2].verification
    assert verification.verdict is Status.PASS
    edges = {e.edge: e.status for e in verification.edges if e.provider != "cuda"}
    assert [edges[e] for e in ("capture", "weights", "rewrite", "export", "optimize")] == [Status.PASS] * 5


def test_the_live_components_are_those_that_the_run_counted(converted: tuple[str, Path, Any]) -> None:
    name, _, conversion = converted
    live = {layer.name: layer.live for layer in conversion.plan.layers}
    masked = {"conv1": 11, "conv2": 41, "conv3": 63, "fc1": 64, "fc2": 32}
    assert live == (masked if "fixed" in name else {"conv1": 24, "conv2": 64, "conv3": 64, "fc1": 64, "fc2": 32})


def test_what_is_intended_to_change_is_reported_as_approximation(converted: tuple[str, Path, Any]) -> None:
    name, _, conversion = converted
    change = conversion.verification.approximation
    if name in ("dense_output", "unmasked_plus_delta_output"):
        assert change is None
    else:
        assert change.max_abs > 0
        assert 0 < change.relative_l2 < 1
        assert 0 <= change.top1_agreement <= 1


def test_the_same_command_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"factory": FACTORY, "input_shape": "1x1x16x16", "verify": False, **MASKS}
    for name in ("a", "b"):
        convert(RUN, [tmp_path / f"{name}.onnx", tmp_path / f"{name}.pt2"], **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


def test_the_cheapest_forms_give_the_same_outputs_and_cost_no_more_than_dense(tmp_path: Path) -> None:
    path = tmp_path / "auto.onnx"
    result = convert(RUN, path, factory=FACTORY, input_shape="1x1x16x16", form="auto", **MASKS)
    assert result.verdict is Status.PASS
    assert result.plan.macs_after <= result.plan.macs_before
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": GOLDEN["input"]})
    wanted = GOLDEN["fixed_mask_output"]
    np.testing.assert_allclose(output, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
