"""Masks that are inputs, and gates, on the digits run: against what SPD's own code gave, with ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_command import spdexport as run
from safetensors.numpy import load_file, save_file
from torch import nn

import spdexport
from spdexport.errors import MaskError, UsageError
from spdexport.verification.result import Status

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples/01_digits/run"
FACTORY = f"{ROOT / 'examples/01_digits/digits_cnn.py'}:DigitsCNN"
GOLDEN = load_file(ROOT / "tests/data/spd_digits_golden.safetensors")
LAYERS = {"conv1": 24, "conv2": 64, "conv3": 64, "fc1": 64, "fc2": 32}
COMMON: dict[str, Any] = {"factory": FACTORY, "input_shape": "1x1x16x16"}


def converted(tmp_path: Path, **options: Any) -> tuple[onnxruntime.InferenceSession, spdexport.Conversion]:
    path = tmp_path / "m.onnx"
    result = spdexport.convert(RUN, path, **{**COMMON, "verify": False, **options})
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), result


def outputs(session: onnxruntime.InferenceSession, **feeds: Any) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": GOLDEN["input"], **feeds}), strict=True))


def close(found: Any, golden: Any) -> None:
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-5 * np.abs(golden).max())


def masks(kind: str) -> dict[str, Any]:
    return {f"mask/{layer}": GOLDEN[f"{kind}/{layer}"] for layer in LAYERS}


# Traced with a batch of 2, and run with 16.


def test_masks_for_each_sample_are_those_of_spd(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, runtime_masks="all")
    close(outputs(session, **masks("per_sample_mask"))["output"], GOLDEN["per_sample_mask_output"])


def test_masks_for_each_location_are_those_of_spd(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, runtime_masks="all", runtime_masks_per_location=True)
    close(outputs(session, **masks("ci"))["output"], GOLDEN["ci_mask_output"])


def test_exact_gates_are_those_of_spd(tmp_path: Path) -> None:
    session, result = converted(tmp_path, gates="exact", gate_outputs=True)
    found = outputs(session)
    close(found.pop("output"), GOLDEN["ci_mask_output"])
    assert set(found) == {f"ci/{layer}" for layer in LAYERS}
    for name, importance in found.items():
        close(importance, GOLDEN[name])
    assert all("gate (exact)" in layer.reason for layer in result.plan.layers)


def test_local_gates_differ_by_what_is_known_of_them(tmp_path: Path) -> None:
    session, result = converted(tmp_path, gates="local")
    error = np.abs(outputs(session)["output"] - GOLDEN["ci_mask_output"]).max()
    assert error / np.abs(GOLDEN["ci_mask_output"]).max() == pytest.approx(1.1e-2, rel=0.05)
    assert all("gate (local)" in layer.reason for layer in result.plan.layers)


def test_a_threshold_makes_masks_of_zeros_and_ones(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, gates="exact", gate_threshold=0.1)
    by_gates = outputs(session)["output"]
    session, _ = converted(tmp_path, runtime_masks="all", runtime_masks_per_location=True)
    binary = {name: (values > 0.1).astype(np.float32) for name, values in masks("ci").items()}
    close(outputs(session, **binary)["output"], by_gates)


def test_gates_and_masks_that_are_inputs_multiply(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, gates="exact", runtime_masks="all", runtime_masks_per_location=True)
    close(outputs(session)["output"], GOLDEN["ci_mask_output"])
    random = np.random.default_rng(0)
    drawn = {name: random.random(values.shape).astype(np.float32) for name, values in masks("ci").items()}
    product = {name: values * drawn[name] for name, values in masks("ci").items()}
    by_both = outputs(session, **drawn)["output"]
    session, _ = converted(tmp_path, runtime_masks="all", runtime_masks_per_location=True)
    close(outputs(session, **product)["output"], by_both)


@pytest.mark.parametrize(("delta", "golden"), [("drop", "unmasked_output"), ("keep", "unmasked_plus_delta_output")])
@pytest.mark.parametrize("per_location", [False, True])
@pytest.mark.sampled(2)
def test_a_mask_of_ones_one_left_out_and_none_are_the_same(
    tmp_path: Path, delta: str, golden: str, per_location: bool
) -> None:
    session, _ = converted(tmp_path, runtime_masks="all", runtime_masks_per_location=per_location, delta=delta)
    kind = "ci" if per_location else "per_sample_mask"
    ones = {name: np.ones_like(values) for name, values in masks(kind).items()}
    given, left_out = outputs(session, **ones)["output"], outputs(session)["output"]
    np.testing.assert_array_equal(given, left_out)
    session, _ = converted(tmp_path, delta=delta)
    close(given, outputs(session)["output"])
    close(given, GOLDEN[golden])


def test_fixed_masks_multiply_those_that_are_inputs(tmp_path: Path) -> None:
    session, result = converted(tmp_path, runtime_masks="all", masks=RUN / "fixed_masks.safetensors")
    close(outputs(session)["output"], GOLDEN["fixed_mask_output"])
    # All components stay, for the input has a value for each.
    assert {layer.name: layer.kept for layer in result.plan.layers} == LAYERS


def test_delta_masks_and_routing(tmp_path: Path) -> None:
    options = {"runtime_masks": "all", "runtime_delta_masks": True, "runtime_routing": True, "delta": "keep"}
    session, _ = converted(tmp_path, **options)
    zeros, ones = np.zeros(16, np.float32), np.ones(16, np.float32)
    every = {role: {f"{role}/{layer}": zeros for layer in LAYERS} for role in ("delta_mask", "routing")}
    close(outputs(session)["output"], GOLDEN["unmasked_plus_delta_output"])
    close(outputs(session, **every["delta_mask"])["output"], GOLDEN["unmasked_output"])
    # Where nothing is routed to the components, their masks have no say.
    close(outputs(session, **every["routing"], **masks("per_sample_mask"))["output"], GOLDEN["dense_output"])
    half = np.where(np.arange(16) < 8, zeros, ones)
    routed = dict.fromkeys(every["routing"], half)
    found = outputs(session, **routed, **every["delta_mask"], **masks("per_sample_mask"))["output"]
    close(found[:8], GOLDEN["dense_output"][:8])
    close(found[8:], GOLDEN["per_sample_mask_output"][8:])


def test_a_fixed_mask_for_each_location(tmp_path: Path) -> None:
    # With the same values at every location it is the mask for each component.
    fixed = load_file(RUN / "fixed_masks.safetensors")
    located = {name: np.ascontiguousarray(np.broadcast_to(v, (*GOLDEN[f"ci/{name}"].shape[1:-1], len(v))))
               for name, v in fixed.items()}  # fmt: skip
    save_file(located, tmp_path / "same.safetensors")
    session, result = converted(tmp_path, masks=tmp_path / "same.safetensors", verify=True)
    close(outputs(session)["output"], GOLDEN["fixed_mask_output"])
    assert result.verification is not None
    assert result.verification.verdict is Status.PASS
    # And with the importances of one image it is the mask of that image.
    save_file({name: GOLDEN[f"ci/{name}"][3] for name in LAYERS}, tmp_path / "one.safetensors")
    session, _ = converted(tmp_path, masks=tmp_path / "one.safetensors")
    close(outputs(session)["output"][3], GOLDEN["ci_mask_output"][3])


def test_a_fixed_mask_of_other_locations_is_refused(tmp_path: Path) -> None:
    save_file({"conv2": np.ones((7, 8, 64), np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(MaskError, match="mask of conv2 is for 7x8 locations, and the layer's output has 8x8"):
        converted(tmp_path, masks=tmp_path / "m.safetensors")


@pytest.mark.long
def test_the_graph_stays_readable(tmp_path: Path) -> None:
    def operators(**options: Any) -> list[str]:
        converted(tmp_path, **options)
        return [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]

    without = operators(delta="drop")
    # One Unsqueeze and one Mul for a convolution, one Mul for a linear layer.
    assert len(operators(runtime_masks="all")) == len(without) + 3 * 2 + 2
    local = operators(gates="local")
    # A grouped convolution, a Clip and a Mul; the linear layers' activations get an axis for it and lose it again.
    assert len(local) == len(without) + 3 * 3 + 2 * 5
    exact = operators(gates="exact")
    # The dense pass: each layer but the last, what is between, and V once more for each but the first.
    assert len(exact) == len(local) + 4 + 5 + 4


def test_the_dense_pass_ends_with_what_the_last_gate_needs(tmp_path: Path) -> None:
    converted(tmp_path, gates="exact")
    names = {value.name for value in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"conv1.weight", "conv2.weight", "conv3.weight", "fc1.weight"} <= names
    assert "fc2.weight" not in names


def test_inputs_that_are_required(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, runtime_masks=["conv2"], mask_inputs="required")
    assert {i.name: i.shape for i in session.get_inputs()} == {"x": ["batch", 1, 16, 16], "mask/conv2": ["batch", 64]}
    assert not session.get_overridable_initializers()


def test_inputs_that_may_be_left_out(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, runtime_masks=["conv2"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    (mask,) = session.get_overridable_initializers()
    # Its batch has a symbol of its own: were it the model's, a mask of one sample would be taken for one of all.
    assert (mask.name, mask.shape) == ("mask/conv2", ["batch_or_1_mask_conv2", 64])
    one = np.linspace(0, 1, 64, dtype=np.float32)[None]
    whole = np.repeat(one, 16, axis=0)
    assert np.array_equal(*(outputs(session, **{"mask/conv2": m})["output"] for m in (one, whole)))


def test_a_mask_that_is_left_out_beside_gates_whose_buffer_it_has(tmp_path: Path) -> None:
    # ONNX Runtime wrote the product of the default (1, H, W, C) and the importances (batch, H, W, C) into the first.
    session, _ = converted(
        tmp_path, gates="local", runtime_masks="all", runtime_masks_per_location=True, activation_outputs=True
    )
    assert outputs(session)["output"].shape == (16, 10)


def test_activations_are_those_of_v(tmp_path: Path) -> None:
    session, _ = converted(tmp_path, activation_outputs=True)
    found = outputs(session)
    assert {k: v.shape for k, v in found.items() if k != "output"} == {
        f"activation/{layer}": GOLDEN[f"ci/{layer}"].shape for layer in LAYERS
    }
    program = spdexport.factorize(RUN, activation_outputs=True, **COMMON)
    V = program.state_dict["conv1.V"]
    exact = torch.nn.functional.conv2d(torch.from_numpy(GOLDEN["input"]), V, padding=1)
    close(found["activation/conv1"], exact.movedim(1, -1).detach().numpy())


def test_the_program_takes_masks_as_keywords(tmp_path: Path) -> None:
    program = spdexport.factorize(RUN, runtime_masks="all", gates="exact", gate_outputs=True, **COMMON)
    torch.export.save(program, tmp_path / "m.pt2")
    module = torch.export.load(tmp_path / "m.pt2").module()
    ones = {f"mask_{layer}": torch.ones(16, count) for layer, count in LAYERS.items()}
    output, further = module(torch.from_numpy(GOLDEN["input"]), **ones)
    close(output.detach().numpy(), GOLDEN["ci_mask_output"])
    close(further["ci/conv3"].detach().numpy(), GOLDEN["ci/conv3"])


VERIFIED: dict[str, dict[str, Any]] = {
    "masks": {"runtime_masks": "all", "activation_outputs": True},
    "everything": {
        "runtime_masks": ["conv*"],
        "runtime_masks_per_location": True,
        "runtime_delta_masks": True,
        "runtime_routing": True,
        "delta": "keep",
        "gates": "exact",
        "gate_outputs": True,
    },
    "threshold": {"gates": "local", "gate_threshold": 0.1, "mask_inputs": "required", "runtime_masks": "fc1"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n == "threshold" else ()) for n in VERIFIED]
)
@pytest.mark.sampled(2)
def test_every_edge_passes_and_verify_repeats_the_options(tmp_path: Path, name: str) -> None:
    _, result = converted(tmp_path, verify=True, **VERIFIED[name])
    again = spdexport.verify(tmp_path / "m.onnx", against=RUN, **COMMON)
    assert result.verification is not None
    for verification in (result.verification, again):
        edges = {e.edge: e.status for e in verification.edges if e.provider != "cuda"}
        assert [edges[e] for e in ("capture", "weights", "rewrite", "export", "optimize")] == [Status.PASS] * 5
        told = " ".join(verification.inputs)
        assert ("masks left out" in told) == (name != "threshold")
        assert all(f"masks {kind}" in told for kind in ("random", "zero", "one", "binary"))
    assert spdexport.verify(tmp_path / "m.onnx").verdict is Status.PASS


def test_a_program_alone_is_verified_too(tmp_path: Path) -> None:
    options = {"runtime_masks": "all", "gates": "exact", "gate_outputs": True, "activation_outputs": True}
    result = spdexport.convert(RUN, tmp_path / "m.pt2", **COMMON, **options)
    assert result.verification is not None
    assert {e.edge: e.status for e in result.verification.edges}["rewrite"] is Status.PASS


def test_a_plan_repeats_beside_masks_that_are_inputs(tmp_path: Path) -> None:
    _, first = converted(tmp_path, runtime_masks="all", form="auto")
    assert {layer.form for layer in first.plan.layers} == {"factorized"}
    assert {layer.name: layer.kept for layer in first.plan.layers} == LAYERS
    (tmp_path / "plan.json").write_text(json.dumps(first.plan.as_json()))
    before = (tmp_path / "m.onnx").read_bytes()
    converted(tmp_path, runtime_masks="all", plan=tmp_path / "plan.json")
    assert len((tmp_path / "m.onnx").read_bytes()) == len(before)


def test_masks_beside_layers_in_their_cheapest_form(tmp_path: Path) -> None:
    # What is never live for the fixed masks may be removed; what a mask of ones would only seem to be, may not.
    options = {"masks": RUN / "fixed_masks.safetensors", "runtime_masks": ["conv2", "fc1"], "form": "auto"}
    session, result = converted(tmp_path, verify=True, **options)
    assert result.verification is not None
    assert result.verification.verdict is Status.PASS
    close(outputs(session)["output"], GOLDEN["fixed_mask_output"])
    assert {layer.name: layer.form for layer in result.plan.layers}["conv2"] == "factorized"


def test_another_option_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    converted(tmp_path, gates="exact")
    with pytest.raises(UsageError, match="made with gates = 'exact', not 'local'"):
        spdexport.verify(tmp_path / "m.onnx", against=RUN, gates="local", **COMMON)


def test_fold_leaves_a_layer_whose_mask_is_an_input(tmp_path: Path) -> None:
    converted(tmp_path, runtime_masks=["conv2"])
    result = spdexport.fold(tmp_path / "m.onnx", tmp_path / "folded.onnx")
    assert {s.name: s.reason for s in result.declined} == {"conv2": "the mask between is not constant"}
    assert result.verification is not None
    assert result.verification.verdict is Status.PASS
    session = onnxruntime.InferenceSession(tmp_path / "folded.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_overridable_initializers()] == ["mask/conv2"]


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    given = ["--factory", FACTORY, "--input-shape", "1x1x16x16", "--no-verify"]
    options = ["--gates", "--gate-outputs", "--runtime-masks", "conv*", "--report", str(tmp_path / "r.json")]
    result = run("convert", str(RUN), "-o", str(path), *given, *options)
    assert result.exit_code == 0, result.output
    names = [o.name for o in onnx.load(path).graph.output]
    assert names == ["output", *(f"ci/{layer}" for layer in LAYERS)]
    layers = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert "an input and computed by the layer's gate (exact)" in layers[0]["reason"]
    wrong = run("convert", str(RUN), "-o", str(path), *given, "--runtime-masks", "conv9")
    assert wrong.exit_code == 2
    assert "--runtime-masks" in wrong.output


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"runtime_masks_per_location": True}, "--runtime-masks-per-location has nothing to work on"),
    ({"runtime_routing": True}, "--runtime-routing has nothing to work on"),
    ({"gate_threshold": 0.1}, "--gate-threshold has nothing to work on"),
    ({"gate_outputs": True}, "--gate-outputs has nothing to work on"),
    ({"mask_inputs": "required"}, "no masks that are inputs"),
    ({"gates": "exact", "gate_threshold": float("nan")}, "gate threshold is nan"),
    ({"gates": "exact", "form": "dense"}, "dense layer has no components"),
    ({"gates": "sometimes"}, "'sometimes' is no value of gates"),
    ({"runtime_masks": "all", "runtime_delta_masks": True}, "No weight delta is kept"),
    ({"runtime_masks": "all", "rank": "4"}, "truncated weight has no components for a mask"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        converted(tmp_path, **options)


def test_gates_need_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No layer that is decomposed has a causal-importance function"):
        spdexport.convert(torch.nn.Linear(3, 2), tmp_path / "m.onnx", inputs=torch.ones(2, 3), gates="exact")


class Unsqueezed(nn.Module):
    """New axes in a row, which the exporter writes as one or as several nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y[:, None, None, :, None] * torch.relu(y).sum(-1)[:, None, None, None, None]


@pytest.mark.parametrize("options", [{}, {"runtime_masks": ("all",)}], ids=["plain", "masks"])
def test_new_axes_of_the_model_are_as_in_the_plain_export(options: dict[str, Any], tmp_path: Path) -> None:
    result = spdexport.convert(Unsqueezed(), tmp_path / "m.onnx", inputs=torch.randn(2, 6), **options)
    assert result.verdict is Status.PASS
