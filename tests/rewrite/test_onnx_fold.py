"""Folding against the plain export of the dense module, and what must not be folded."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from spdexport.rewrite.onnx_fold import FoldResult, fold_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

# --- modules: each layer in two versions, V, [mask], U, [delta] or dense with the effective weight ---


class Layer(nn.Module):
    """A convolution or linear layer, ``dense`` or factorized, made of the same numbers either way."""

    def __init__(
        self, kind: str, in_: int, out: int, *kernel: Any, mask: bool = False, delta: str = "", bias: bool = True,
        groups: int = 1, dense: bool, seed: int, **geometry: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        conv = getattr(nn, kind)
        linear = kind == "Linear"
        shared = {} if linear else {"groups": groups, **geometry}
        self.sides, C = delta, 3 * groups
        self.U = conv(C, out, bias=bias) if linear else conv(C, out, 1, bias=bias, groups=groups)
        self.V = conv(in_, C, *kernel, bias=False, **shared)
        self.delta = conv(in_, out, *kernel, bias=False, **shared) if delta else None
        for parameter in self.parameters():
            parameter.data.uniform_(-0.5, 0.5, generator=g)
        column = (-1,) if linear else (-1, *(1,) * (self.V.weight.ndim - 2))
        self.shape = column
        self.register_buffer("mask", torch.rand(C, generator=g) if mask else None)
        self.weight = None
        if dense:
            V = self.V.weight.double() * (self.mask if mask else torch.ones(C)).view(
                -1, *(1,) * (self.V.weight.ndim - 1)
            )
            U = self.U.weight.double().reshape(groups, out // groups, C // groups)
            W = (U @ V.reshape(groups, C // groups, -1)).reshape(out, *V.shape[1:])
            W = W if self.delta is None else W + self.delta.weight
            plain = conv(in_, out, *kernel, bias=bias, **shared)
            plain.weight = nn.Parameter(W.detach().float())
            if bias:
                plain.bias = self.U.bias
            self.weight = plain
            del self.U, self.V, self.delta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            return self.weight(x)
        y = self.V(x)
        if self.mask is not None:
            y = y * self.mask.reshape(self.shape)
        y = self.U(y)
        if self.sides == "right":
            y = y + self.delta(x)
        elif self.sides == "left":
            y = torch.add(self.delta(x), y)
        return y


def norm(channels: int, *, seed: int) -> nn.Module:
    bn = nn.BatchNorm2d(channels)
    g = torch.Generator().manual_seed(seed)
    for values, low in ((bn.running_mean, -0.5), (bn.running_var, 0.5), (bn.weight.data, 0.5), (bn.bias.data, -0.5)):
        values.uniform_(low, low + 1, generator=g)
    return bn


class Convs(nn.Module):
    def __init__(self, dense: bool) -> None:
        super().__init__()

        def conv(*args: Any, seed: int, **options: Any) -> Layer:
            return Layer("Conv2d", *args, dense=dense, seed=seed, **options)

        self.first = conv(3, 8, 3, seed=1, stride=2, padding=1, mask=True, delta="right")
        self.plain = conv(8, 8, 3, seed=2, padding=1, bias=False)
        self.normed = conv(8, 8, 3, seed=3, padding=1, bias=False, mask=True)
        self.bn1 = norm(8, seed=31)
        self.delta_normed = conv(8, 8, 1, seed=4, bias=False, delta="left")
        self.bn2 = norm(8, seed=32)
        self.even = conv(8, 8, (2, 3), seed=5, padding="same", dilation=(1, 2), delta="right")
        self.grouped = conv(8, 6, 3, seed=6, groups=2, mask=True, delta="right")
        self.last = conv(6, 4, 3, seed=7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.plain(x))
        x = torch.relu(self.bn1(self.normed(x)))
        x = torch.relu(torch.relu(self.bn2(self.delta_normed(x))) + x)
        x = torch.relu(self.even(x))
        x = torch.relu(self.grouped(x))
        return self.last(x)


class OtherAxes(nn.Module):
    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.line = Layer("Conv1d", 3, 4, 3, padding=1, mask=True, delta="right", dense=dense, seed=11)
        self.space = Layer("Conv3d", 2, 4, (1, 2, 3), mask=True, bias=False, dense=dense, seed=12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.line(x))
        return self.space(x.reshape(-1, 2, 1, 2, 4))


class Linears(nn.Module):
    """For inputs of two axes (Gemm) and of three (MatMul, Add)."""

    def __init__(self, dense: bool) -> None:
        super().__init__()

        def linear(*args: Any, seed: int, **options: Any) -> Layer:
            return Layer("Linear", *args, dense=dense, seed=seed, **options)

        self.plain = linear(5, 6, seed=21)
        self.unbiased = linear(6, 6, seed=22, bias=False, mask=True)
        self.both = linear(6, 6, seed=23, mask=True, delta="right")
        self.left = linear(6, 6, seed=24, bias=False, delta="left")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.plain(x))
        x = torch.relu(self.unbiased(x))
        x = torch.relu(self.both(x)) + x
        return self.left(x)


CASES: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...], int]] = {
    "conv2d": (Convs, (2, 3, 12, 12), 7),
    "other axes": (OtherAxes, (2, 3, 4), 2),
    "gemm": (Linears, (2, 5), 4),
    "matmul": (Linears, (2, 3, 5), 4),
}


def export(module: nn.Module, x: torch.Tensor) -> ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        onnx_program = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False)
    assert onnx_program is not None
    return onnx_program.model


class Exported:
    def __init__(self, name: str) -> None:
        make, self.shape, self.layers = CASES[name]
        torch.manual_seed(0)
        x = torch.rand(self.shape)
        self.factorized = export(make(False), x)
        self.dense = export(make(True), x)
        self.before = serialized(self.factorized)
        self.result = fold_onnx(self.factorized)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Exported:
    return Exported(request.param)


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def run(model: ir.Model, *inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(serialized(model), providers=["CPUExecutionProvider"])
    feed = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)[0]


def constants(node: ir.Node) -> list[np.ndarray]:
    return [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]


def attributes(node: ir.Node) -> dict[str, Any]:
    # The exporter leaves out beta where it folds batch norm into a Gemm; 1 is its default.
    ignored = {"beta"} if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) == 1.0 else set()
    return {
        name: a.value
        for name, a in node.attributes.items()
        if a.type != ir.AttributeType.TENSOR and name not in ignored
    }


# --- the folded file against the plain export ---


@pytest.mark.sampled(2)
def test_the_graph_is_that_of_the_plain_export(case: Exported) -> None:
    folded, dense = list(case.result.model.graph), list(case.dense.graph)
    assert [node.op_type for node in folded] == [node.op_type for node in dense]
    assert [attributes(node) for node in folded] == [attributes(node) for node in dense]
    assert len(case.result.model.graph.initializers) == len(case.dense.graph.initializers)


def test_weights_are_those_of_the_plain_export(case: Exported) -> None:
    for ours, theirs in zip(case.result.model.graph, case.dense.graph, strict=True):
        for a, b in zip(constants(ours), constants(theirs), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


def test_onnxruntime_computes_the_same(case: Exported) -> None:
    onnx.checker.check_model(serialized(case.result.model), full_check=True)
    x = np.random.default_rng(0).standard_normal((5, *case.shape[1:]), dtype=np.float32)
    before, after = run(case.factorized, x), run(case.result.model, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * np.abs(before).max())


def test_every_layer_is_reported_under_its_name(case: Exported) -> None:
    module = next(make for make, shape, _ in CASES.values() if shape == case.shape)(False)
    names = [name for name, layer in module.named_modules() if isinstance(layer, Layer)]
    assert [chain.name for chain in case.result.folded] == names
    assert len(names) == case.layers
    assert case.result.declined == ()
    for name in names:
        assert f"{name}.weight" in case.result.model.graph.initializers


def test_values_keep_shapes_and_types(case: Exported) -> None:
    for node in case.result.model.graph:
        for value in node.outputs:
            assert value.shape is not None
            assert value.dtype is not None


def test_the_argument_is_not_changed(case: Exported) -> None:
    assert serialized(case.factorized) == case.before


def test_folding_again_changes_nothing(case: Exported) -> None:
    again = fold_onnx(case.result.model)
    assert again.folded == ()
    assert serialized(again.model) == serialized(case.result.model)


def test_a_dense_model_has_nothing_to_fold(case: Exported) -> None:
    result = fold_onnx(case.dense)
    assert result.folded == result.declined == ()
    assert serialized(result.model) == serialized(case.dense)


# --- small graphs, by hand ---

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def graph(
    nodes: list[tuple[Any, ...]], constants: dict[str, np.ndarray], x: tuple[Any, ...] = (2, 3, 6, 6), **more: Any
) -> ir.Model:
    """A model from (op, inputs, output, attributes) rows; its output is ``y`` and those of ``outputs``."""
    rows = [
        helper.make_node(op, inputs.split(), [out], name=f"n_{out}", **(rest[0] if rest else {}))
        for op, inputs, out, *rest in nodes
    ]
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(constants.values())).dtype)
    inputs = {"x": x, **more.get("inputs", {})}
    proto = helper.make_model(
        helper.make_graph(
            rows,
            "g",
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, dtype, None) for name in ("y", *more.get("outputs", ()))],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


CONV = {"V": weight(4, 3, 3, 3), "U": weight(5, 4, 1, 1)}
LINEAR = {"V": weight(3, 4), "U": weight(4, 5)}
V_U = [("Conv", "x V", "v"), ("Conv", "v U", "y")]


def check_folds(model: ir.Model, *expected_ops: str, tolerance: float = 2e-6) -> FoldResult:
    result = fold_onnx(model)
    assert [node.op_type for node in result.model.graph] == list(expected_ops)
    onnx.checker.check_model(serialized(result.model), full_check=True)
    inputs = [
        RNG.standard_normal([int(d) for d in value.shape]).astype(value.dtype.numpy())
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    ]
    before, after = run(model, *inputs), run(result.model, *inputs)
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance * np.abs(before).max())
    used = Counter(value.name for node in result.model.graph for value in node.inputs if value is not None)
    assert set(result.model.graph.initializers) <= set(used)
    return result


def check_declines(model: ir.Model, reason: str) -> None:
    result = fold_onnx(model)
    assert result.folded == ()
    assert [skipped.reason for skipped in result.declined] == [reason]
    assert serialized(result.model) == serialized(model)


def test_the_report_of_a_chain() -> None:
    (chain,) = check_folds(graph(V_U, CONV), "Conv").folded
    assert chain.nodes == ("n_v", "n_y")
    assert chain.name == "n_y"
    assert chain.spec.describe() == "3>5 3x3"
    assert (chain.macs_before, chain.macs_after) == (4 * 27 + 5 * 4, 5 * 27)


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (), (1,), (1, 1, 1, 1)])
@pytest.mark.parametrize("operands", ["v m", "m v"])
def test_masks_that_are_one_number_per_channel(shape: tuple[int, ...], operands: str) -> None:
    nodes = [("Conv", "x V", "v"), ("Mul", operands, "w"), ("Conv", "w U", "y")]
    check_folds(graph(nodes, {**CONV, "m": weight(*shape).reshape(shape)}), "Conv")


@pytest.mark.parametrize(
    ("shape", "V"),
    [((4, 4, 4), "V"), ((4,), "V"), ((2, 4, 1, 1), "V"), ((1, 1, 4), "V"), ((1, 1, 4, 1, 1), "V")],
)
def test_masks_that_vary_otherwise_are_declined(shape: tuple[int, ...], V: str) -> None:
    nodes = [("Conv", "x V", "v"), ("Mul", "v m", "w"), ("Squeeze", "w a", "s"), ("Conv", "s U", "y")]
    arrays = {**CONV, "m": weight(*shape)}
    if len(shape) < 5:
        nodes = [nodes[0], nodes[1], ("Conv", "w U", "y")]
        check_declines(
            graph(nodes, arrays), "what comes between is multiplied by a constant that is not one number per channel"
        )
    else:
        assert fold_onnx(graph(nodes, {**arrays, "a": np.array([0])})).folded == ()


def test_a_mask_given_at_run_time_is_declined() -> None:
    nodes = [("Conv", "x V", "v"), ("Mul", "v m", "w"), ("Conv", "w U", "y")]
    check_declines(graph(nodes, CONV, inputs={"m": (2, 4, 1, 1)}), "the mask between is not constant")


def test_a_mask_that_is_an_input_with_a_default_is_declined() -> None:
    nodes = [("Conv", "x V", "v"), ("Mul", "v m", "w"), ("Conv", "w U", "y")]
    model = graph(nodes, {**CONV, "m": weight(1, 4, 1, 1)}, inputs={"m": (1, 4, 1, 1)})
    check_declines(model, "the mask between is not constant")


def test_a_gate_of_the_layer_itself_is_no_mask() -> None:
    nodes = [("Conv", "x V", "v"), ("Sigmoid", "v", "s"), ("Mul", "v s", "w"), ("Conv", "w U", "y")]
    result = fold_onnx(graph(nodes, CONV))
    assert result.folded == result.declined == ()


def test_an_intermediate_that_is_an_output_is_declined() -> None:
    check_declines(graph(V_U, CONV, outputs=("v",)), "what is between is an output of the graph")


def test_an_intermediate_that_is_used_twice_is_declined() -> None:
    nodes = [*V_U, ("Relu", "v", "r")]
    check_declines(graph(nodes, CONV, outputs=("r",)), "what is between is used elsewhere")


def test_an_intermediate_that_a_subgraph_uses_is_declined() -> None:
    model = graph([*V_U[:1], ("Identity", "v", "other"), ("Conv", "v U", "y")], CONV)
    proto = ir.to_proto(model)
    branch = helper.make_graph(
        [helper.make_node("Relu", ["v"], ["r"])], "branch", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    condition = helper.make_node("If", ["c"], ["other"], name="if", then_branch=branch, else_branch=branch)
    proto.graph.node[1].CopyFrom(condition)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    proto.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    check_declines(ir.from_proto(proto), "what is between is used elsewhere")


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((5, 4, 3, 3), {"pads": [0, 1, 0, 1]}, "the second pads along axis 1, where the first would go on"),
        ((5, 4, 1, 1), {"pads": [0, 0, 1, 1]}, "the second pads along axis 0, where the first would go on"),
        ((4, 5, 2, 2), {"strides": [2, 2]}, "strides keep the two from being one kind"),
    ],
)
def test_a_second_convolution_that_is_no_one_with_the_first_is_declined(
    shape: tuple[int, ...], options: dict[str, Any], reason: str
) -> None:
    op_type = "ConvTranspose" if "strides" in options else "Conv"
    nodes = [("Conv", "x V", "v", {"strides": [2, 2]}), (op_type, "v U", "y", options)]
    model = graph(nodes, {**CONV, "U": weight(*shape)})
    (declined,) = fold_onnx(model).declined
    assert reason in declined.reason
    assert serialized(fold_onnx(model).model) == serialized(model)


def test_a_bias_in_front_of_a_padded_convolution_is_declined_and_one_in_front_of_another_folds() -> None:
    arrays = {"P": weight(4, 3, 1, 1), "p": weight(4), "K": weight(5, 4, 3, 3), "b": weight(5)}
    padded = [("Conv", "x P p", "v"), ("Conv", "v K b", "y", {"pads": [1] * 4})]
    check_declines(
        graph(padded, arrays), "the first has a bias, and the second pads with zeros what the bias is added to"
    )
    check_folds(graph([padded[0], ("Conv", "v K b", "y")], arrays), "Conv")
    check_folds(graph([("Conv", "x P", "v"), padded[1]], {k: v for k, v in arrays.items() if k != "p"}), "Conv")


# --- chains of other forms ---


def test_a_spatial_pair() -> None:
    nodes = [
        ("Conv", "x A", "v", {"pads": [1, 0, 1, 0], "strides": [2, 1]}),
        ("Conv", "v B b", "y", {"pads": [0, 2, 0, 2], "dilations": [1, 2], "strides": [1, 3]}),
    ]
    arrays = {"A": weight(4, 3, 3, 1), "B": weight(5, 4, 1, 3), "b": weight(5)}
    (chain,) = check_folds(graph(nodes, arrays), "Conv").folded
    assert chain.spec.describe() == "3>5 3x3 s2x3 p1x2 d1x2"
    # The first runs at 3 x 6 locations, the second at 3 x 2.
    assert (chain.macs_before, chain.macs_after) == (4 * 9 * 3 + 5 * 12, 5 * 27)


def test_tucker_2_with_biases_where_they_are_exact() -> None:
    nodes = [("Conv", "x A", "v"), ("Conv", "v K k", "w", {"pads": [1] * 4, "group": 2}), ("Conv", "w B b", "y")]
    arrays = {"A": weight(4, 3, 1, 1), "K": weight(6, 2, 3, 3), "k": weight(6), "B": weight(5, 6, 1, 1), "b": weight(5)}
    (chain,) = check_folds(graph(nodes, arrays), "Conv").folded
    assert chain.spec.describe() == "3>5 3x3 p1"


def test_cp_with_depthwise_stages_and_batch_norm_between() -> None:
    nodes = [
        ("Conv", "x A", "t"),
        ("Conv", "t H", "u", {"group": 4, "pads": [1, 0, 1, 0]}),
        ("Conv", "u W", "v", {"group": 4, "pads": [0, 1, 0, 1]}),
        ("BatchNormalization", "v g g m g", "w"),
        ("Sub", "w s", "z"),
        ("Div", "z d", "q"),
        ("Conv", "q B", "y"),
    ]
    arrays = {
        "A": weight(4, 3, 1, 1), "H": weight(4, 1, 3, 1), "W": weight(4, 1, 1, 3), "B": weight(5, 4, 1, 1),
        "g": np.abs(weight(4)) + 1, "m": weight(4), "s": weight(4, 1, 1), "d": np.abs(weight(1)) + 1,
    }  # fmt: skip
    (chain,) = check_folds(graph(nodes, arrays), "Conv").folded
    assert chain.spec.describe() == "3>5 3x3 p1"
    assert (chain.macs_before, chain.macs_after) == (12 + 12 + 12 + 20, 135)


def test_a_sum_of_a_chain_and_a_smaller_kernel() -> None:
    nodes = [("Conv", "x V", "v", {"pads": [1] * 4}), ("Conv", "v U", "u"), ("Conv", "x S", "s"), ("Add", "u s", "y")]
    (chain,) = check_folds(graph(nodes, {**CONV, "S": weight(5, 3, 1, 1)}), "Conv").folded
    assert chain.spec.describe() == "3>5 3x3 p1"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_in_any_place(groups: int) -> None:
    options = {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [1, 2], "group": groups}
    after = [("ConvTranspose", "x T a", "v", options), ("Conv", "v U b", "y", {"group": groups})]
    arrays = {"T": weight(4, 6 // groups, 3, 2), "a": weight(6), "U": weight(4, 6 // groups, 1, 1), "b": weight(4)}
    result = check_folds(graph(after, arrays, x=(2, 4, 5, 4)), "ConvTranspose")
    assert result.folded[0].spec.kind == "conv_transpose2d"
    before = [("Conv", "x P", "v", {"group": groups}), ("ConvTranspose", "v T a", "y", options)]
    arrays = {"P": weight(4, 4 // groups, 1, 1), "T": arrays["T"], "a": arrays["a"]}
    check_folds(graph(before, arrays, x=(2, 4, 5, 4)), "ConvTranspose")
    pair = [
        ("ConvTranspose", "x A", "v", {"strides": [2, 1]}),
        ("ConvTranspose", "v B", "y", {"strides": [1, 2], "pads": [0, 1, 0, 1], "output_padding": [0, 1]}),
    ]
    check_folds(graph(pair, {"A": weight(3, 4, 3, 1), "B": weight(4, 5, 1, 3)}), "ConvTranspose")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_shape": [12, 12], "strides": [2, 2]}, "its output_shape decides about the padding"),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, "its padding is SAME_UPPER"),
    ],
)
def test_a_transposed_convolution_whose_padding_is_not_known_is_declined(options: dict[str, Any], reason: str) -> None:
    nodes = [("ConvTranspose", "x T", "v", options), ("Conv", "v U", "y")]
    model = graph(nodes, {"T": weight(3, 4, 3, 3), "U": weight(5, 4, 1, 1)})
    (declined,) = fold_onnx(model).declined
    assert reason in declined.reason


# --- what a fold costs ---


def test_only_what_gets_cheaper_is_folded_if_asked() -> None:
    low_rank = [("Conv", "x V", "v"), ("Conv", "v U", "y")]
    arrays = {"V": weight(1, 3, 3, 3), "U": weight(5, 1, 1, 1)}
    result = fold_onnx(graph(low_rank, arrays), if_cheaper=True)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Conv"]
    (declined,) = result.declined
    assert declined.reason == (
        "its layers have 32 multiply-accumulates at each output location, and one layer would have 135"
    )
    assert len(fold_onnx(graph(V_U, CONV), if_cheaper=True).folded) == 0
    assert len(fold_onnx(graph(V_U, {**CONV, "V": weight(4, 3, 1, 1)}), if_cheaper=True).folded) == 1


def test_of_a_chain_that_does_not_get_cheaper_the_parts_that_do_are_folded() -> None:
    """What comes before is dear, and so would be one layer for that and what follows."""
    nodes = [*V_U[:1], ("Conv", "v U", "u"), ("Conv", "u D", "w", {"group": 5}), ("Conv", "w E", "y")]
    arrays = {"V": weight(6, 3, 1, 1), "U": weight(5, 6, 1, 1), "D": weight(5, 1, 3, 3), "E": weight(20, 5, 1, 1)}
    result = fold_onnx(graph(nodes, arrays), if_cheaper=True)
    assert [chain.nodes for chain in result.folded] == [("n_v", "n_u", "n_w")]
    assert [node.op_type for node in result.model.graph] == ["Conv"] * 2
    assert len(fold_onnx(graph(nodes, arrays)).folded[0].nodes) == 4


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), ("batch", 3, "height", "width")])
def test_locations_count_where_the_graph_tells_them(shape: tuple[Any, ...]) -> None:
    """A kernel as large as its input, behind a layer that runs at all 49 locations, or at as many as the output."""
    nodes = [("Conv", "x P", "v"), ("Conv", "v K", "y")]
    arrays = {"P": weight(4, 3, 1, 1), "K": weight(5, 4, 7, 7)}
    (chain,) = fold_onnx(graph(nodes, arrays, x=shape)).folded
    assert chain.macs_before == (49 * 12 if shape[0] == 2 else 12) + 5 * 4 * 49


@pytest.mark.parametrize("options", [{"strides": [2, 2]}, {"dilations": [1, 2]}])
def test_padding_that_is_not_known_is_declined(options: dict[str, Any]) -> None:
    nodes = [("Conv", "x V", "v", {"auto_pad": "SAME_UPPER", **options}), V_U[1]]
    check_declines(graph(nodes, CONV), "of the layer in front, its padding is SAME_UPPER with a stride or dilation")


@pytest.mark.parametrize(
    ("auto_pad", "pads"), [("VALID", [0, 0, 0, 0]), ("SAME_UPPER", [0, 1, 1, 1]), ("SAME_LOWER", [1, 1, 0, 1])]
)
def test_padding_by_name_beside_a_delta_with_numbers(auto_pad: str, pads: list[int]) -> None:
    nodes = [
        ("Conv", "x V", "v", {"auto_pad": auto_pad}),
        ("Conv", "v U", "u"),
        ("Conv", "x D", "d", {"pads": pads}),
        ("Add", "u d", "y"),
    ]
    check_folds(graph(nodes, {"V": weight(4, 3, 2, 3), "U": CONV["U"], "D": weight(5, 3, 2, 3)}), "Conv")


def test_what_is_between_may_have_biases_and_batch_norm() -> None:
    arrays = {**CONV, "a": weight(4), "b": weight(5), "shift": weight(4, 1, 1)}
    arrays |= {"gamma": weight(4), "beta": weight(4), "mean": weight(4), "var": np.abs(weight(4)) + 0.5}
    nodes = [
        ("Conv", "x V a", "v", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "v gamma beta mean var", "w"),
        ("Add", "shift w", "z"),
        ("Conv", "z U b", "y"),
    ]
    result = check_folds(graph(nodes, arrays), "Conv")
    assert "b" in result.model.graph.initializers


def test_a_chain_of_three_becomes_one() -> None:
    nodes = [
        *V_U[:1],
        ("Conv", "v U", "u"),
        ("Relu", "u", "r"),
        ("Conv", "r A", "s"),
        ("Conv", "s B", "t"),
        ("Conv", "t A", "y"),
    ]
    result = check_folds(
        graph(nodes, {**CONV, "A": weight(4, 5, 1, 1), "B": weight(5, 4, 1, 1)}), "Conv", "Relu", "Conv"
    )
    assert result.folded[1].nodes == ("n_s", "n_t", "n_y")


def test_a_weight_that_another_layer_uses_stays() -> None:
    nodes = [
        ("Conv", "x V", "v"),
        ("Conv", "v U b", "u"),
        ("Conv", "x W b", "w"),
        ("Relu", "w", "r"),
        ("Add", "u r", "y"),
    ]
    arrays = {**CONV, "W": weight(5, 3, 3, 3), "b": weight(5)}
    result = check_folds(graph(nodes, arrays), "Conv", "Conv", "Relu", "Add")
    assert result.model.graph.initializers["b"].const_value.numpy().tolist() == arrays["b"].tolist()


def test_weights_of_other_layers_are_shared_not_copied() -> None:
    model = graph(
        [*V_U[:1], ("Conv", "v U", "u"), ("Relu", "u", "r"), ("Conv", "r W", "y")], {**CONV, "W": weight(2, 5, 3, 3)}
    )
    result = fold_onnx(model)
    assert result.model.graph.initializers["W"].const_value is model.graph.initializers["W"].const_value


def test_a_name_that_is_taken_is_extended() -> None:
    nodes = [("Conv", "x c.V", "v"), ("Conv", "v c.U", "c.weight"), ("Relu", "c.weight", "y")]
    result = check_folds(graph(nodes, {"c.V": CONV["V"], "c.U": CONV["U"]}), "Conv", "Relu")
    assert list(result.model.graph.initializers) == ["c.weight_1"]


def test_a_layer_that_overflows_its_type_is_declined() -> None:
    big = {name: np.full_like(array, 3e4).astype(np.float16) for name, array in CONV.items()}
    check_declines(graph(V_U, big), "the folded weight does not fit the type float16")


# --- sums ---


def test_a_residual_of_another_geometry_is_left_alone() -> None:
    nodes = [*V_U[:1], ("Conv", "v U", "u"), ("Conv", "x S", "s", {"strides": [5, 5]}), ("Add", "u s", "y")]
    result = check_folds(graph(nodes, {**CONV, "S": weight(5, 3, 6, 6)}), "Conv", "Conv", "Add")
    assert [skipped.reason for skipped in result.declined] == ["what is added to it has another stride"]


def test_a_sum_with_another_input_is_left_alone() -> None:
    nodes = [*V_U[:1], ("Conv", "v U", "u"), ("Relu", "x", "r"), ("Conv", "r D", "d"), ("Add", "u d", "y")]
    result = check_folds(graph(nodes, {**CONV, "D": weight(5, 3, 3, 3)}), "Conv", "Relu", "Conv", "Add")
    assert result.declined == ()


def test_a_delta_that_is_used_elsewhere_is_left_alone() -> None:
    nodes = [*V_U[:1], ("Conv", "v U", "u"), ("Conv", "x D", "d"), ("Add", "u d", "y"), ("Relu", "d", "r")]
    result = fold_onnx(graph(nodes, {**CONV, "D": weight(5, 3, 3, 3)}, outputs=("r",)))
    assert [node.op_type for node in result.model.graph] == ["Conv", "Conv", "Add", "Relu"]
    assert [skipped.reason for skipped in result.declined] == ["what is between is used elsewhere"]


def test_two_dense_layers_side_by_side_are_one() -> None:
    nodes = [("Conv", "x A", "a"), ("Conv", "x B", "b"), ("Add", "a b", "y")]
    (chain,) = check_folds(graph(nodes, {"A": weight(5, 3, 3, 3), "B": weight(5, 3, 3, 3)}), "Conv").folded
    assert (chain.macs_before, chain.macs_after) == (270, 135)


def test_a_layer_in_front_of_a_sum_is_folded_too() -> None:
    nodes = [
        ("Conv", "x P p", "z"),
        ("Conv", "z V", "v"),
        ("Conv", "v U b", "u"),
        ("Conv", "z D", "d"),
        ("Add", "d u", "y"),
    ]
    arrays = {"P": weight(3, 3, 3, 3), "p": weight(3), "V": weight(4, 3, 1, 1), "U": CONV["U"], "b": weight(5)}
    result = check_folds(graph(nodes, {**arrays, "D": weight(5, 3, 1, 1)}), "Conv")
    assert result.declined == ()


def test_a_bias_on_the_delta_is_kept() -> None:
    nodes = [*V_U[:1], ("Conv", "v U", "u"), ("Conv", "x D b", "d"), ("Add", "d u", "y")]
    result = check_folds(graph(nodes, {**CONV, "D": weight(5, 3, 3, 3), "b": weight(5)}), "Conv")
    assert "b" in result.model.graph.initializers


# --- linear layers ---


def test_gemm_factors_go_into_the_weight() -> None:
    nodes = [
        ("Gemm", "x V", "v", {"alpha": 0.5}),
        ("Gemm", "v U c", "y", {"alpha": 2.0, "beta": 3.0, "transB": 1}),
    ]
    arrays = {"V": weight(3, 4), "U": weight(5, 4), "c": weight(1, 5)}
    result = check_folds(graph(nodes, arrays, x=(2, 3)), "Gemm")
    node = next(iter(result.model.graph))
    assert {name: a.value for name, a in node.attributes.items()} == {"alpha": 1.0, "beta": 1.0, "transB": 1}


def test_a_gemm_that_transposes_its_input_is_declined() -> None:
    nodes = [("Gemm", "x V", "v"), ("Gemm", "v U", "y", {"transA": 1})]
    model = graph(nodes, {"V": weight(3, 4), "U": weight(2, 5)}, x=(2, 3))
    check_declines(model, "it transposes its input")


def test_a_gemm_that_adds_something_else_is_declined() -> None:
    nodes = [("Gemm", "x V", "v"), ("Gemm", "v U c", "y")]
    model = graph(nodes, {**LINEAR, "c": weight(2, 5)}, x=(2, 3))
    check_declines(model, "what it adds is not one number per channel")


@pytest.mark.parametrize("x", [(2, 3), (2, 7, 3), (2, 2, 7, 3)])
def test_matmul_with_a_bias_in_front(x: tuple[int, ...]) -> None:
    nodes = [("MatMul", "x V", "v"), ("Add", "a v", "w"), ("Mul", "w m", "z"), ("MatMul", "z U", "y")]
    check_folds(graph(nodes, {**LINEAR, "a": weight(4), "m": weight(4)}, x=x), "MatMul", "Add")


def test_a_bias_added_after_the_delta() -> None:
    nodes = [
        ("MatMul", "x V", "v"),
        ("MatMul", "v U", "u"),
        ("MatMul", "x D", "d"),
        ("Add", "u d", "s"),
        ("Add", "s b", "y"),
    ]
    result = check_folds(graph(nodes, {**LINEAR, "D": weight(3, 5), "b": weight(5)}, x=(2, 7, 3)), "MatMul", "Add")
    assert [node.outputs[0].name for node in result.model.graph] == ["u", "y"]


def test_a_mask_over_tokens_is_declined() -> None:
    nodes = [("MatMul", "x V", "v"), ("Mul", "v m", "w"), ("MatMul", "w U", "y")]
    model = graph(nodes, {**LINEAR, "m": weight(4, 1)}, x=(2, 4, 3))
    check_declines(model, "what comes between is multiplied by a constant that is not one number per channel")


def test_batch_norm_over_tokens_is_declined() -> None:
    nodes = [("MatMul", "x V", "v"), ("BatchNormalization", "v g g g g", "w"), ("MatMul", "w U", "y")]
    model = graph(nodes, {**LINEAR, "g": np.ones(4, np.float32)}, x=(2, 4, 3))
    check_declines(model, "the batch norm between does not act on the channels of the linear layer")


def test_a_product_of_computed_values_is_no_layer() -> None:
    nodes = [("MatMul", "x V", "v"), ("Transpose", "x", "t", {"perm": [1, 0]}), ("MatMul", "v t", "y")]
    result = fold_onnx(graph(nodes, {"V": weight(3, 3)}, x=(3, 3)))
    assert result.folded == result.declined == ()


def test_a_product_over_the_last_axis_of_a_feature_map_is_no_second_layer() -> None:
    nodes = [("Conv", "x V", "v"), ("MatMul", "v U", "y")]
    result = fold_onnx(graph(nodes, {"V": weight(4, 3, 3), "U": weight(4, 5)}, x=(2, 3, 6)))
    assert [result.folded, *(skipped.reason for skipped in result.declined)] == [(), "the two map other axes"]


# --- constants that are not plain initializers ---


def test_weights_behind_constant_nodes() -> None:
    nodes = [
        ("Transpose", "Vt", "Vf", {"perm": [1, 0]}),
        ("Cast", "Vf", "V", {"to": TensorProto.FLOAT}),
        ("MatMul", "x V", "v"),
        ("Constant", "", "m", {"value": numpy_helper.from_array(weight(2, 2))}),
        ("Reshape", "m s", "m4"),
        ("Mul", "v m4", "w"),
        ("Identity", "U", "Ui"),
        ("MatMul", "w Ui", "y"),
    ]
    arrays = {"Vt": weight(4, 3), "U": weight(4, 5), "s": np.array([-1])}
    check_folds(graph(nodes, arrays, x=(2, 7, 3)), "MatMul")


def test_a_double_precision_file_keeps_its_type() -> None:
    doubles = {name: array.astype(np.float64) for name, array in LINEAR.items()}
    result = fold_onnx(graph([("MatMul", "x V", "v"), ("MatMul", "v U", "y")], doubles, x=(2, 3)))
    (value,) = result.model.graph.initializers.values()
    np.testing.assert_array_equal(value.const_value.numpy(), doubles["V"] @ doubles["U"])
