"""What is told of each layer: the error of its weights, the bound on its output, and the output itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from planting import node_with, one_off, planted, weight
from small_nets import two_outputs

from spdexport import pipeline
from spdexport.conv import ConvSpec
from spdexport.verification.check import Check
from spdexport.verification.layer_errors import largest_patch
from spdexport.verification.result import Status
from spdexport.verification.tapping import channel_ratio
from spdexport.verification.torch_source import verify_subject
from spdexport.verification.weight_errors import spectral_norm

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import LayerResult, Verification
    from spdexport.verification.torch_source import Subject


def by_name(found: Verification) -> dict[str, LayerResult]:
    return {layer.name: layer for layer in found.layers}


def checked(subject: Subject, file: Path | None = None, *, thorough: bool = False) -> Verification:
    return verify_subject(replace(subject, file=file or subject.file), Check(thorough=thorough))


def test_every_layer_of_the_plan_has_its_weights_and_bound(digits: Subject) -> None:
    found = checked(digits)
    assert [x.name for x in found.layers] == [d.site.name for d in digits.plan.decisions]
    for layer in found.layers:
        assert layer.status is Status.PASS
        assert layer.weights_ratio is not None
        assert layer.weights_ratio <= 1
        assert layer.bound is not None
        assert layer.bound < 1e-3
        assert layer.output_ratio is None


def test_a_folded_batch_norm_leaves_the_layers_known(conv_bn: Subject) -> None:
    assert all(layer.weights_ratio is not None and layer.bound is not None for layer in checked(conv_bn).layers)


def test_only_the_faulty_layer_fails_and_its_bound_holds(five_convs: Subject, tmp_path: Path) -> None:
    assert five_convs.file is not None
    file = planted(five_convs.file, weight("4.V", one_off), tmp_path / "p.onnx")
    found = checked(five_convs, file)
    layers = by_name(found)
    assert {name for name, x in layers.items() if x.status is Status.FAIL} == {"4"}
    bound = layers["4"].bound
    assert bound is not None

    # One location of the layer's output cannot be further off than the bound, on an input that was compared.
    x = np.random.default_rng([0, 0]).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (output_of(f, "4.U", x) for f in (five_convs.file, file))
    moved = float(np.sqrt(((after - before) ** 2).sum(axis=1)).max())
    assert 0 < moved <= bound * 1.001


def output_of(file: Path, weight_name: str, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    model = onnx.load(file)
    name = node_with(model, weight_name).output[0]
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(model.SerializeToString()).run([name], {"input": x})[0]


def test_a_fault_in_two_layers_is_told_of_both(five_convs: Subject, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        weight("2.V", one_off)(model)
        weight("6.U", one_off)(model)

    assert five_convs.file is not None
    found = checked(five_convs, planted(five_convs.file, edit, tmp_path / "p.onnx"))
    assert [x.name for x in found.layers if x.status is Status.FAIL] == ["2", "6"]
    assert next(e for e in found.edges if e.edge == "weights").first_divergence == "2"


def test_thorough_tells_every_output(digits: Subject) -> None:
    found = checked(digits, thorough=True)
    assert found.verdict is Status.PASS
    assert all(x.output_ratio is not None and 0 < x.output_ratio <= 4 for x in found.layers)


def test_thorough_finds_what_the_outputs_hide(tmp_path: Path) -> None:
    class Hidden(torch.nn.Module):
        """A layer whose output hardly counts beside another's."""

        def __init__(self) -> None:
            super().__init__()
            self.loud, self.soft = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loud(x) + 1e-5 * self.soft(x)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    module = Hidden().eval()
    pipeline.convert(module, tmp_path / "m.onnx", inputs=x, verify=False)

    def round_input(model: onnx.ModelProto) -> None:
        node = node_with(model, "soft.V")
        index = list(model.graph.node).index(node)
        down = helper.make_node("Cast", [node.input[0]], ["low"], to=onnx.TensorProto.FLOAT16)
        up = helper.make_node("Cast", ["low"], ["rounded"], to=onnx.TensorProto.FLOAT)
        node.input[0] = "rounded"
        model.graph.node.insert(index, up)
        model.graph.node.insert(index, down)

    file = planted(tmp_path / "m.onnx", round_input, tmp_path / "p.onnx")
    plain = pipeline.verify(file, against=module, inputs=x, providers=["cpu"])
    assert next(e for e in plain.edges if e.edge == "export").status is Status.PASS
    found = pipeline.verify(file, against=module, inputs=x, providers=["cpu"], thorough=True)
    export = next(e for e in found.edges if e.edge == "export")
    assert export.status is Status.FAIL
    assert export.first_divergence == "soft"
    assert "the output of soft is off by" in export.reason
    assert by_name(found)["loud"].status is Status.PASS


def test_thorough_works_for_a_file_alone(tmp_path: Path) -> None:
    module, inputs = two_outputs()
    pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, verify=False)
    assert pipeline.verify(tmp_path / "m.onnx", providers=["cpu"]).layers == ()
    found = pipeline.verify(tmp_path / "m.onnx", providers=["cpu"], thorough=True)
    assert set(by_name(found)) == {"stem", "head", "fc"}
    assert all(x.status is Status.PASS and x.output_ratio is not None for x in found.layers)


def test_the_largest_patch_is_what_unfolding_gives() -> None:
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    spec = ConvSpec(
        in_channels=4, out_channels=6, kernel=(3, 2), stride=(2, 1), padding=((1, 1), (0, 0)), dilation=(1, 2), groups=2
    )
    patches = torch.nn.functional.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
    assert largest_patch(x, spec) == pytest.approx(float(patches.norm(dim=1).max()))
    # A transposed convolution with stride 2 and a kernel of 2 reads one location for each of the output.
    spread = ConvSpec(
        in_channels=4, out_channels=6, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1),
        transposed=True,
    )  # fmt: skip
    assert largest_patch(x, spread) == pytest.approx(float(x.norm(dim=1).max()))
    rows = torch.randn(3, 5, 8)
    linear = ConvSpec(in_channels=8, out_channels=2)
    assert largest_patch(rows, linear) == pytest.approx(float(rows.double().norm(dim=-1).max()))


def test_the_norm_is_the_largest_singular_value() -> None:
    random = np.random.default_rng(0)
    for shape in ((3, 40), (40, 3), (7, 7)):
        matrix = random.standard_normal(shape) * 1e-170
        assert spectral_norm(matrix) == pytest.approx(np.linalg.norm(matrix * 1e170, 2) * 1e-170)
    assert spectral_norm(np.zeros((2, 3))) == 0
    assert spectral_norm(np.full((2, 3), np.inf)) == np.inf
    # A bound where the matrix is too large for its eigenvalues.
    wide = random.standard_normal((2100, 2200))
    assert spectral_norm(wide) >= np.linalg.norm(wide, 2)


def test_a_channel_is_judged_by_its_own_noise() -> None:
    exact = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
    noise = 1e-6 * np.random.default_rng(1).standard_normal(exact.shape)
    noise[:, 0] = 0
    off = exact.copy()
    off[0, 0, 0, 0] += 2e-6
    assert channel_ratio(exact + noise, exact, [exact - noise], 2.0**-53, 1) < 2
    assert channel_ratio(off, exact, [exact - noise], 2.0**-53, 1) > 1e6
    assert channel_ratio(off[:, :2], exact, [exact], 2.0**-24, 1) == np.inf
    off[0, 1, 0, 0] = np.nan
    assert channel_ratio(off, exact, [exact], 2.0**-24, 1) == np.inf


def test_a_wrong_mask_is_named_with_its_component(tmp_path: Path) -> None:
    from subjects import DIGITS, make_subject

    subject = make_subject(
        tmp_path,
        DIGITS / "run",
        {
            "factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN",
            "masks": DIGITS / "run" / "fixed_masks.safetensors",
            "input_shape": ["2x1x16x16"],
            "keep_masks": True,
        },
    )
    assert checked(subject).verdict is Status.PASS
    mask = next(d.factors.mask for d in subject.plan.decisions if d.site.name == "conv2" and d.factors is not None)
    assert mask is not None
    dead, live = int(np.flatnonzero(mask == 0)[0]), int(np.flatnonzero(mask)[0])

    def swapped(value: np.ndarray) -> np.ndarray:
        value[[dead, live]] = value[[live, dead]]
        return value

    def woken(value: np.ndarray) -> np.ndarray:
        value[dead] = 1e-30
        return value

    assert subject.file is not None
    found = checked(subject, planted(subject.file, weight("conv2.mask", swapped), tmp_path / "p.onnx"))
    edge = next(e for e in found.edges if e.edge == "weights")
    assert (edge.status, edge.first_divergence) == (Status.FAIL, "conv2")
    assert f"component {dead} is dead and has 1 (1 such); component {live} is live, with 1, and has 0" in edge.reason
    # So little that no weight shows it.
    found = checked(subject, planted(subject.file, weight("conv2.mask", woken), tmp_path / "p.onnx"))
    edge = next(e for e in found.edges if e.edge == "weights")
    assert edge.status is Status.FAIL
    assert f"component {dead} is dead and has 1e-30" in edge.reason


def test_what_is_put_in_front_of_a_layer_is_named_by_it(five_convs: Subject, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = node_with(model, "4.V")
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
        model.graph.node.insert(
            list(model.graph.node).index(node), helper.make_node("Mul", [node.input[0], "two"], ["m"])
        )
        node.input[0] = "m"

    assert five_convs.file is not None
    found = checked(five_convs, planted(five_convs.file, edit, tmp_path / "p.onnx"))
    edge = next(e for e in found.edges if e.edge == "weights")
    assert edge.first_divergence == "4"
    assert edge.reason.startswith("the file has Mul where Conv is right")
