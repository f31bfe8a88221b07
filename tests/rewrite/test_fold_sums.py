"""Random chains and sums become one convolution each, and it is the one that impulses through the source show."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from fold_networks import KINDS, Draw, kernel_of, onnx_model
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from spdexport import verify
from spdexport.arrays import to_numpy
from spdexport.cli import main
from spdexport.folding import fold
from spdexport.model_files import save_program
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_graph import read_layer
from spdexport.rewrite.torch_fold import fold_program
from spdexport.rewrite.torch_graph import list_sites
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path


def close(got: np.ndarray, right: np.ndarray) -> bool:
    return got.shape == right.shape and bool(np.abs(got - right).max(initial=0) <= 1e-10 * (1 + np.abs(right).max()))


def ops_of(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type not in ("Identity", "Dropout")]


def check_onnx(kind: str, seed: int) -> None:
    """One Conv, and its kernel and bias are those that the source answers impulses with."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    model = onnx_model(module, x)
    result = fold_onnx(ir.from_proto(model))
    before, after = (OnnxReference(m) for m in (model, ir.to_proto(result.model)))
    right = before.run({"x": x.numpy()})["y"]
    assert close(module(x).detach().numpy(), right), (kind, seed)
    assert close(after.run({"x": x.numpy()})["y"], right), (kind, seed)
    if kind == "mixed":
        assert ops_of(result.model).count("Conv") == 1 + module[0].foreign, (kind, seed, module, result.declined)
    if kind in ("wild", "mixed"):
        return
    ops = ops_of(result.model)
    assert ops == ["Conv"], (kind, seed, module, ops, result.declined)
    assert result.declined == (), (kind, seed)
    stage = next(s for node in result.model.graph if (s := read_layer(node)) is not None).stage
    kernel, bias = kernel_of(lambda v: before.run({"x": v})["y"], stage.spec, tuple(x.shape[2:]))
    groups, spec = stage.spec.groups, stage.spec
    whole = np.zeros((groups, spec.group_out, groups, spec.in_channels // groups, *spec.kernel))
    for group, own in enumerate(np.split(np.asarray(stage.weight), groups)):
        whole[group, :, group] = own
    whole = whole.reshape(kernel.shape)
    # A tap that only ever meets the zeros around so small an input leaves no answer.
    assert close(np.where(np.isnan(kernel), whole, kernel), whole), (kind, seed)
    assert close(np.zeros_like(bias) if stage.bias is None else stage.bias, bias), (kind, seed)


def check_torch(kind: str, seed: int) -> None:
    """One convolution, which computes in float64 what the source does."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    result = fold_program(program)
    (before,), (after,) = (evaluate(p, (x,)) for p in (program, result.program))
    assert close(to_numpy(after), to_numpy(before)), (kind, seed)
    if kind == "mixed":
        assert len(list_sites(result.program)[0]) == 1 + module[0].foreign, (kind, seed, module, result.declined)
    if kind in ("wild", "mixed"):
        return
    sites, _ = list_sites(result.program)
    assert len(sites) == 1, (kind, seed, module, result.declined)
    assert result.declined == (), (kind, seed)
    kinds = {str(node.target) for node in result.program.graph.nodes if node.op == "call_function"}
    assert not kinds & {"aten.batch_norm.default", "aten.add.Tensor", "aten.mul.Tensor", "aten.avg_pool2d.default"}
    assert fold_program(result.program).program is result.program, (kind, seed)


@pytest.mark.parametrize("kind", [*KINDS, "mixed", "wild"])
def test_onnx_graphs(kind: str) -> None:
    for seed in range(25):
        check_onnx(kind, seed)


@pytest.mark.parametrize("kind", [*KINDS, "mixed", "wild"])
def test_torch_programs(kind: str) -> None:
    for seed in range(100, 106):
        check_torch(kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "mixed", "wild"])
def test_two_thousand_onnx_graphs(kind: str) -> None:
    for seed in range(1000, 3000):
        check_onnx(kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "mixed", "wild"])
def test_two_thousand_torch_programs(kind: str) -> None:
    for seed in range(3000, 5000):
        check_torch(kind, seed)


# --- what is no single layer, and why ---


def sum_of(nodes: list[onnx.NodeProto], opset: int = 20, **arrays: np.ndarray) -> ir.Model:
    """A graph from x to y, both of two channels, with the weights K of a 3x3 and P of a 1x1 convolution."""
    stored = {"K": np.ones((2, 2, 3, 3)), "P": np.ones((2, 2, 1, 1)), **arrays}
    kind = onnx.TensorProto.DOUBLE
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, kind, (1, 2, 8, 8)) for name in ("x", "z")],
        [helper.make_tensor_value_info("y", kind, None)], [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def node(op: str, inputs: str, out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [out], name=out, **attributes)


SQUARE = node("Conv", "x K", "a", pads=[1] * 4)
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
LEFT_ALONE = {
    "border of a pooling": (
        [SQUARE, node("AveragePool", "x", "p", kernel_shape=[3, 3], pads=[1] * 4), node("Add", "a p", "y")],
        {}, "the average pooling divides by fewer numbers at the border",
    ),
    "stride": (
        [node("Conv", "x K", "a", pads=[1] * 4, strides=[8, 8]), node("Conv", "x E", "b"), node("Add", "a b", "y")],
        {"E": np.ones((2, 2, 8, 8))}, "what is added to it has another stride",
    ),
    "other centres": (
        [SQUARE, node("Conv", "x P", "b", pads=[0, 0, 1, 1]), node("Conv", "b E", "c"), node("Add", "a c", "y")],
        {"E": np.ones((2, 2, 2, 2))}, None,  # the taps of the one lie elsewhere, and it is one kernel all the same
    ),
    "bias in front of zeros": (
        [SQUARE, node("Conv", "x P q", "b"), node("Conv", "b K", "c", pads=[1] * 4), node("Add", "a c", "y")],
        {"q": np.ones(2)}, "the first has a bias, and the second pads with zeros what the bias is added to",
    ),
    "reflected border": (
        [node("Pad", "x pads", "b", mode="reflect"), node("Conv", "b K", "c"), SQUARE, node("Add", "a c", "y")],
        {"pads": PADS}, "the padding between is of mode reflect, and a convolution pads with zeros",
    ),
    "border of ones": (
        [node("Pad", "x pads one", "b"), node("Conv", "b K", "c"), SQUARE, node("Add", "a c", "y")],
        {"pads": PADS, "one": np.array(1.0)}, "the padding between is not of zeros",
    ),
    "another term": (
        [SQUARE, node("Conv", "x P", "b"), node("Add", "a b", "c"), node("AveragePool", "x", "p", kernel_shape=[3, 3],
         pads=[1] * 4), node("Add", "p c", "y")],
        {}, "the average pooling divides by fewer numbers at the border",
    ),
    "used twice": (
        [SQUARE, node("Conv", "x P", "b"), node("Add", "a b", "c"), node("Relu", "b", "r"), node("Add", "c r", "y")],
        {}, "what is between is used elsewhere",
    ),
    "scale that is computed": (
        [SQUARE, node("Conv", "x P", "b"), node("ReduceMean", "z", "m"), node("Mul", "b m", "c"),
         node("Add", "a c", "y")],
        {}, "what it, or a layer beside it, is multiplied with is not constant",
    ),
    "every other location, rounded up": (
        [node("Conv", "x K", "a", pads=[1] * 4, strides=[2, 2]),
         node("MaxPool", "x", "b", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1), node("Add", "a b", "y")],
        {}, "the pooling rounds the size of its output up",
    ),
    "every other location": (
        [node("Conv", "x K", "a", pads=[1] * 4, strides=[2, 2]),
         node("MaxPool", "x", "b", kernel_shape=[1, 1], strides=[2, 2]), node("Add", "a b", "y")],
        {}, None,
    ),
    "weight that is computed": (
        [SQUARE, node("ReduceMean", "z", "m"), node("Mul", "m P", "w"), node("Conv", "x w", "b"),
         node("Add", "a b", "y")],
        {}, "of a layer beside it, its weight is not constant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_sum_that_is_no_layer_is_left_with_its_reason(name: str) -> None:
    nodes, arrays, reason = LEFT_ALONE[name]
    model = sum_of(nodes, **arrays)
    result = fold_onnx(model)
    assert {skipped.reason for skipped in result.declined} == ({reason} if reason else set())
    assert bool(result.folded) is (reason is None or name == "another term")
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((1, 2, 8, 8)) for name in ("x", "z")}
    before, after = (OnnxReference(ir.to_proto(m)).run(inputs)["y"] for m in (model, result.model))
    assert close(after, before)


def test_a_norm_that_names_no_epsilon_adds_that_of_a_single_float() -> None:
    """Attributes are single floats, the default too: 1e-5 is none. The variance is small, so that it shows."""
    norm = node("BatchNormalization", "x g b m v", "n")
    gamma, shift, mean, variance = (np.array(pair) for pair in ([1.5, 2.0], [0.5, 1.0], [0.25, 0.5], [1e-9, 2e-6]))
    model = sum_of([SQUARE, norm, node("Add", "a n", "y")], g=gamma, b=shift, m=mean, v=variance)
    (layer,) = (read_layer(each) for each in fold_onnx(model).model.graph)
    scale = gamma / np.sqrt(variance + 9.999999747378752e-06)
    right = np.ones((2, 2, 3, 3))
    right[[0, 1], [0, 1], 1, 1] += scale
    np.testing.assert_allclose(layer.stage.weight, right, rtol=1e-13)
    np.testing.assert_allclose(layer.stage.bias, shift - mean * scale, rtol=1e-13)
    assert np.abs(gamma / np.sqrt(variance + 1e-5) / scale - 1).min() > 1e-9


@pytest.mark.parametrize(("value", "folds"), [(0.0, True), (0.5, False)])
def test_a_padding_of_an_old_file(value: float, folds: bool) -> None:
    """Before opset 11, what and how much is padded are attributes."""
    pad = node("Pad", "x", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=value)
    model = sum_of([SQUARE, pad, node("Conv", "p K", "b"), node("Add", "a b", "y")], opset=9)
    result = fold_onnx(model)
    assert (ops_of(result.model) == ["Conv"]) is folds
    assert [s.reason for s in result.declined] == ([] if folds else ["the padding between is not of zeros"])
    inputs = {name: np.random.default_rng(0).standard_normal((1, 2, 8, 8)) for name in ("x", "z")}
    before, after = (OnnxReference(ir.to_proto(m)).run(inputs)["y"] for m in (model, result.model))
    assert close(after, before)


class InPlace(nn.Module):
    """A sum that is written into one of its terms; the input is read again behind it."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.conv, self.into = nn.Conv2d(2, 2, 3, padding=1), into

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        y = self.conv(x)
        if self.into == "input":
            x += y
            return x * torch.sigmoid(x)
        y += x
        return y * torch.sigmoid(x)


@pytest.mark.parametrize(("into", "folds"), [("input", False), ("branch", True)])
def test_a_sum_that_is_written_into_its_input_stays(into: str, folds: bool) -> None:
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    program = torch.export.export(InPlace(into).double().eval(), (x,))
    result = fold_program(program)
    assert bool(result.folded) is folds
    assert folds or [skipped.reason for skipped in result.declined] == ["it is added in place to its own input"]
    (before,), (after,) = (evaluate(p, (x,)) for p in (program, result.program))
    assert close(to_numpy(after), to_numpy(before))


class BiasPadded(nn.Module):
    """DBB's branch of a 1x1 convolution, a norm whose border is filled with its own bias, and an average pooling."""

    def __init__(self, *, filled_with: float = 1.0, sides: int = 4, read_before: bool = False) -> None:
        super().__init__()
        self.square, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1, bias=False)
        self.norm, self.pool, self.last = nn.BatchNorm2d(4), nn.AvgPool2d(3, 1), nn.BatchNorm2d(4)
        for index, norm in enumerate((self.norm, self.last)):
            for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
                values.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(index))
        self.filled_with, self.sides, self.read_before = filled_with, sides, read_before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        y = functional.pad(norm(self.conv(x)), [1] * 4)
        early = y.sum() if self.read_before else 0.0
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        value = ((norm.bias.detach() - norm.running_mean * scale) * self.filled_with).view(1, -1, 1, 1)
        y[:, :, 0:1, :] = value
        y[:, :, -1:, :] = value
        y[:, :, :, 0:1] = value
        if self.sides == 4:
            y[:, :, :, -1:] = value
        return torch.relu(self.square(x) + self.last(self.pool(y))) + early


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"filled_with": 1.01}, "its border is filled with other than its bias"),
        ({"sides": 3}, "what is written into the padding between is not one number per channel, all around"),
        ({"read_before": True}, "what is written into the padding between is not one number per channel, all around"),
    ],
)
def test_a_border_that_is_filled_with_the_bias(options: dict[str, Any], reason: str | None, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 7, 6, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            BiasPadded(**options).to(dtype).eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    result = fold_program(program)
    calls = [str(n.target) for n in result.program.graph.nodes if n.op == "call_function"]
    assert (calls.count("aten.conv2d.default") == 1 and "aten.copy_.default" not in calls) is (reason is None)
    assert [skipped.reason for skipped in result.declined] == ([reason] if reason else [])
    before, after = (to_numpy(evaluate(p, (x,))[0]) for p in (program, result.program))
    assert np.abs(after - before).max() <= (1e-6 if dtype is torch.float32 else 1e-13) * np.abs(before).max()


# --- what a sum costs ---


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_sum_that_costs_more_is_left_if_asked(tmp_path: Path, ending: str) -> None:
    """Depthwise 5x5 beside 1x1, which together are a dense 5x5; and LoRA beside a layer, which is nothing but it."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.mix = nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 4, 1)
            self.base, self.down, self.up = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 3), nn.Conv2d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.large(x) + self.mix(x))
            return self.base(x) + 2.0 * self.up(self.down(x))

    program = torch.export.export(Both().eval(), (torch.randn(1, 4, 9, 9),))
    if ending == ".onnx":
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "in.onnx")
    else:
        save_program(program, tmp_path / "in.pt2")
    command = ["fold", str(tmp_path / f"in{ending}"), "-o", str(tmp_path / f"out{ending}"), "--if-cheaper", "--explain"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "are one layer, 184 -> 144 multiply-accumulates at each output location" in text
    assert "its layers have 116 multiply-accumulates at each output location, and one layer would have 400" in text
    assert len(fold(tmp_path / f"in{ending}", tmp_path / f"all{ending}").folded) == 2


# --- the verdict ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_proves_a_folded_file_and_sees_one_wrong_weight(tmp_path: Path, kind: str) -> None:
    draw = Draw(7)
    module, x = draw.module(kind).float(), draw.input().float()
    onnx.save(onnx_model(module, x), tmp_path / "in.onnx")
    result = fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.verdict is Status.PASS
    assert {edge.edge: edge.status for edge in result.verification.edges}["weights"] is Status.PASS
    model = onnx.load(tmp_path / "out.onnx")
    (weight,) = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[3] += 1e-4 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = verify(tmp_path / "wrong.onnx", against=tmp_path / "in.onnx")
    assert {edge.edge: edge.status for edge in found.edges}["weights"] is Status.FAIL
    assert found.verdict is Status.FAIL
