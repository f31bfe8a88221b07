"""Faults planted in converted files: each must fail at the right edge, under the right layer's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from planting import (
    attribute,
    double_output,
    drop_bias,
    extra_output,
    one_off,
    planted,
    remove_output,
    rename_output,
    reshape_output,
    to_bfloat16,
    to_float16,
    to_tf32,
    weight,
    with_nan,
)
from small_nets import two_outputs
from subjects import DIGITS, make_subject

from spdexport import pipeline
from spdexport.verification.result import EdgeResult, Status, Verification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from planting import Edit

    from spdexport.verification.torch_source import Subject

    Verify = Callable[[Subject, Path], Verification]


def edge(found: Verification, name: str) -> EdgeResult:
    return next(e for e in found.edges if e.edge == name)


def assert_blames(found: Verification, layer: str, *edges: str) -> None:
    """These edges fail and name the layer; what does not involve the file passes."""
    assert found.verdict is Status.FAIL
    for name in edges:
        result = edge(found, name)
        assert result.status is Status.FAIL, result
        assert result.first_divergence == layer, result
        assert result.reason
    for name in ("capture", "rewrite"):
        assert edge(found, name).status is Status.PASS


ALL = ("weights", "export", "optimize")

DIGITS_FAULTS: list[tuple[str, str, Edit, tuple[str, ...]]] = [
    ("one weight of V off by 1%", "conv2", weight("conv2.V", one_off), ALL),
    ("one weight of U off by 1%", "conv3", weight("conv3.U", one_off), ALL),
    ("one linear weight off by 1%", "fc1", weight("fc1.V", one_off), ALL),
    ("components of V permuted", "conv2", weight("conv2.V", lambda v: v[::-1]), ALL),
    ("taps of V flipped", "conv1", weight("conv1.V", lambda v: v[..., ::-1, :]), ALL),
    ("U transposed", "fc1", weight("fc1.U", lambda u: u.T), ALL),
    ("U permuted", "fc2", weight("fc2.U", lambda u: np.roll(u, 1, axis=1)), ALL),
    ("two filters swapped", "conv3", weight("conv3.U", lambda u: u[[1, 0, *range(2, len(u))]]), ALL),
    ("bias dropped", "conv2", drop_bias("conv2.U"), ALL),
    ("bias off", "conv1", weight("conv1.bias", one_off), ALL),
    ("bias of another layer", "conv2", weight("conv2.bias", lambda b: b[::-1]), ALL),
    ("padding shifted", "conv1", attribute("conv1.V", "pads", [0, 1, 2, 1]), ALL),
    ("padding of an even stride shifted", "conv2", attribute("conv2.V", "pads", [1, 0, 1, 2]), ALL),
    ("a component dropped", "conv2", weight("conv2.U", lambda u: u * (np.arange(u.shape[1]) != 7)[:, None, None]), ALL),
    ("rounded to bfloat16", "conv2", weight("conv2.V", to_bfloat16), ALL),
    ("rounded to float16", "conv1", weight("conv1.U", to_float16), ALL),
    ("rounded to TF32", "fc2", weight("fc2.V", to_tf32), ALL),
    ("NaN in a weight", "conv3", weight("conv3.V", with_nan), ALL),
    ("NaN in a bias", "fc1", weight("fc1.bias", with_nan), ALL),
]


@pytest.mark.parametrize(("fault", "layer", "edit", "edges"), DIGITS_FAULTS, ids=[f[0] for f in DIGITS_FAULTS])
@pytest.mark.sampled(8)
def test_a_fault_in_the_digits_run_is_found_and_named(
    fault: str, layer: str, edit: Edit, edges: tuple[str, ...], digits: Subject, check: Verify, tmp_path: Path
) -> None:
    found = check(digits, planted(digits.file, edit, tmp_path / "planted.onnx"))
    assert_blames(found, layer, *edges)


OUTPUT_FAULTS: list[tuple[str, Edit, str, str]] = [
    ("renamed", rename_output, "renamed", "there is a further output renamed; output is missing"),
    ("a further one", extra_output, "output", "there is a further output relu"),
    ("reshaped", reshape_output, "output", "output has shape 2x1x10 where 2x10 is right"),
    ("double", double_output, "output", "output is float64 where float32 is right"),
]


@pytest.mark.parametrize(("fault", "edit", "_", "reason"), OUTPUT_FAULTS, ids=[f[0] for f in OUTPUT_FAULTS])
def test_outputs_that_are_not_what_they_should_be_fail(
    fault: str, edit: Edit, _: str, reason: str, digits: Subject, check: Verify, tmp_path: Path
) -> None:
    found = check(digits, planted(digits.file, edit, tmp_path / "planted.onnx"))
    assert edge(found, "weights").status is Status.FAIL
    assert edge(found, "weights").first_divergence == "output"
    for name in ("export", "optimize"):
        result = edge(found, name)
        assert result.status is Status.FAIL
        assert reason in result.reason
        assert result.noise_ratio == float("inf")
        # Names and dtypes are no layer's doing, and no layer is looked for.
        assert "no layer diverges" not in result.reason
        assert fault == "reshaped" or result.first_divergence is None


def test_a_missing_output_fails(check: Verify, tmp_path: Path) -> None:
    module, inputs = two_outputs()
    subject = make_subject(tmp_path, module, {"inputs": inputs})
    found = check(subject, planted(subject.file, remove_output, tmp_path / "planted.onnx"))
    for name in ("export", "optimize"):
        assert edge(found, name).status is Status.FAIL
        assert "scores is missing" in edge(found, name).reason
    assert edge(found, "weights").status is Status.FAIL


def test_a_wrong_mask_index_is_found(digits: Subject, check: Verify, tmp_path: Path) -> None:
    # The file has component 5 of conv1 where 6 is live, or the other way round: one column of V and U is another's.
    site = next(d for d in digits.plan.decisions if d.site.name == "conv1")
    assert site.factors is not None
    assert site.factors.mask is not None
    dead = int(np.flatnonzero(site.factors.mask.reshape(-1) == 0)[0])
    V, U = site.factors.V.reshape(9, -1), site.factors.U.reshape(-1, 16)

    def edit(model: onnx.ModelProto) -> None:
        def put(values: np.ndarray, column: np.ndarray, axis: int) -> np.ndarray:
            index = (0,) if axis == 0 else (slice(None), 0)
            values[index] = column.reshape(values[index].shape)
            return values

        weight("conv1.V", lambda v: put(v, V[:, dead], 0))(model)
        weight("conv1.U", lambda u: put(u, U[dead], 1))(model)

    assert_blames(check(digits, planted(digits.file, edit, tmp_path / "planted.onnx")), "conv1", *ALL)


def test_a_delta_left_out_is_found(digits: Subject, check: Verify, tmp_path: Path) -> None:
    kept = make_subject(
        tmp_path,
        DIGITS / "run",
        {"factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", "input_shape": ["2x1x16x16"], "delta": "keep"},
    )
    left_out = make_subject(
        tmp_path,
        DIGITS / "run",
        {"factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", "input_shape": ["2x1x16x16"], "delta": "drop"},
    )
    found = check(kept, left_out.file)
    assert_blames(found, "conv1", "weights")
    assert edge(found, "export").status is Status.FAIL


BN_FAULTS: list[tuple[str, str, Edit]] = [
    ("one weight off by 1%", "0", weight("0.V", one_off)),
    ("U permuted", "3", weight("3.U", lambda u: np.roll(u, 1, axis=1))),
    ("folded shift off", "0", weight("0.U_bias", one_off)),
    ("folded shift dropped", "0", drop_bias("0.U")),
    ("rounded to bfloat16", "8", weight("8.V", to_bfloat16)),
]


@pytest.mark.parametrize(("fault", "layer", "edit"), BN_FAULTS, ids=[f[0] for f in BN_FAULTS])
@pytest.mark.sampled(3)
def test_a_fault_beside_a_folded_batch_norm_is_found_and_named(
    fault: str, layer: str, edit: Edit, conv_bn: Subject, check: Verify, tmp_path: Path
) -> None:
    found = check(conv_bn, planted(conv_bn.file, edit, tmp_path / "planted.onnx"))
    assert_blames(found, layer, "weights")
    for name in ("export", "optimize"):
        assert edge(found, name).status is Status.FAIL
        assert edge(found, name).first_divergence == layer


def test_a_stale_u_from_before_the_batch_norm_was_folded_is_found(
    conv_bn: Subject, check: Verify, tmp_path: Path
) -> None:
    # The file's `3.U` has the batch norm in it: U itself, of the same name and shape, is stale there.
    stale = conv_bn.intended.state_dict["3.U"].detach().numpy()
    found = check(conv_bn, planted(conv_bn.file, weight("3.U", lambda _: stale), tmp_path / "planted.onnx"))
    assert_blames(found, "3", "weights")
    assert edge(found, "export").status is Status.FAIL


def test_another_epsilon_is_found(conv_bn: Subject, check: Verify, tmp_path: Path) -> None:
    module = torch.nn.Sequential(*conv_bn.module.children())  # type: ignore[union-attr]
    epsilon = module[1].eps
    try:
        module[1].eps = 1e-3
        other = make_subject(tmp_path, module, {"inputs": conv_bn.example})
    finally:
        module[1].eps = epsilon
    found = check(conv_bn, other.file)
    assert_blames(found, "0", "weights")
    assert edge(found, "export").status is Status.FAIL


def test_another_stride_of_the_same_output_shape_is_found(check: Verify, tmp_path: Path) -> None:
    # The last column is never reached with a kernel this wide, so both strides give two columns.
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, stride=3), torch.nn.ReLU()).eval()
    subject = make_subject(tmp_path, module, {"inputs": torch.randn(2, 2, 7, 7)})
    fault = attribute("0.V", "strides", [4, 4])
    found = check(subject, planted(subject.file, fault, tmp_path / "planted.onnx"))
    assert_blames(found, "0", *ALL)
    assert "strides" in edge(found, "weights").reason


def test_a_constant_off_is_found(check: Verify, tmp_path: Path) -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(x)) * 0.7

    subject = make_subject(tmp_path, Shifted().eval(), {"inputs": torch.randn(2, 2, 6, 6)})

    def edit(model: onnx.ModelProto) -> None:
        scale = next(t for t in model.graph.initializer if not t.dims)
        scale.CopyFrom(numpy_helper.from_array(np.float32(0.7001), scale.name))

    found = check(subject, planted(subject.file, edit, tmp_path / "planted.onnx"))
    assert edge(found, "weights").status is Status.FAIL
    assert edge(found, "export").first_divergence == "mul_4"  # the name of the lowered node: no module


def test_another_opset_is_found(digits: Subject, check: Verify, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version -= 1

    found = edge(check(digits, planted(digits.file, edit, tmp_path / "planted.onnx")), "weights")
    assert found.status is Status.FAIL
    assert "is of opset" in found.reason


@pytest.mark.parametrize("layer", range(5))
@pytest.mark.sampled(3)
def test_the_first_layer_that_diverges_is_named(layer: int, five_convs: Subject, check: Verify, tmp_path: Path) -> None:
    path = str(2 * layer)
    fault = weight(f"{path}.U", lambda u: u * 1.001)
    found = check(five_convs, planted(five_convs.file, fault, tmp_path / "planted.onnx"))
    assert_blames(found, path, *ALL)


def test_verify_against_the_source_fails_on_a_planted_file(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU())
    x = torch.randn(2, 2, 6, 6)
    pipeline.convert(module, tmp_path / "m.onnx", inputs=x, verify=False)
    planted(tmp_path / "m.onnx", weight("0.V", one_off), tmp_path / "planted.onnx")
    assert pipeline.verify(tmp_path / "m.onnx", against=module, inputs=x).verdict is Status.PASS
    assert_blames(pipeline.verify(tmp_path / "planted.onnx", against=module, inputs=x), "0", *ALL)


@pytest.mark.parametrize(("change", "part"), [("eps", "1"), ("weight", "3")])
def test_a_module_that_is_not_what_was_traced_is_named_by_its_part(change: str, part: str, conv_bn: Subject) -> None:
    import copy
    from dataclasses import replace

    from spdexport.verification.check import Check
    from spdexport.verification.torch_source import verify_subject

    module = copy.deepcopy(conv_bn.module)
    assert isinstance(module, torch.nn.Sequential)
    if change == "eps":
        module[1].eps = 1e-3  # type: ignore[assignment]
    else:
        with torch.no_grad():
            module[3].bias[0] += 0.01  # type: ignore[index]
    found = edge(verify_subject(replace(conv_bn, module=module), Check()), "capture")
    assert found.status is Status.FAIL
    assert found.first_divergence == part


def test_a_graph_with_a_missing_value_fails_and_says_so(five_convs: Subject, check: Verify, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if "4.V" in n.input).input[0] = "nowhere"

    found = check(five_convs, planted(five_convs.file, edit, tmp_path / "planted.onnx"))
    assert_blames(found, "4", "weights")
    assert edge(found, "weights").reason == "Conv reads nowhere, which nothing computes"
    assert edge(found, "export").status is Status.FAIL
