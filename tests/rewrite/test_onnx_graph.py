"""Reading nodes as stages, constants, names, and placing stages."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from spdexport.conv import ConvSpec
from spdexport.forms import Stage
from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import read_affine, read_layer
from spdexport.rewrite.onnx_names import layer_name
from spdexport.rewrite.onnx_place import place_stage
from spdexport.rewrite.stages import ReadStage, Unreadable, per_channel

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def initializer(array: np.ndarray, name: str = "w") -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
    ir.Graph([], [], nodes=[], initializers=[value])
    return value


def node(op_type: str, *inputs: ir.Value | np.ndarray | None, **attributes: Any) -> ir.Node:
    values = [initializer(v, f"c{i}") if isinstance(v, np.ndarray) else v for i, v in enumerate(inputs)]
    return ir.node(op_type, values, attributes)


def value(*shape: int) -> ir.Value:
    return ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def read(op_type: str, *inputs: ir.Value | np.ndarray | None, **attributes: Any) -> Stage:
    layer = read_layer(node(op_type, *inputs, **attributes))
    assert isinstance(layer, ReadStage)
    return layer.stage


def reason(op_type: str, *inputs: ir.Value | np.ndarray | None, **attributes: Any) -> str:
    layer = read_layer(node(op_type, *inputs, **attributes))
    assert isinstance(layer, Unreadable)
    return layer.reason


# --- layers ---


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_without_attributes_has_their_defaults(axes: int) -> None:
    stage = read("Conv", value(2, 3, *(9,) * axes), weight(4, 3, *(3,) * axes))
    assert stage.spec == ConvSpec(
        in_channels=3,
        out_channels=4,
        kernel=(3,) * axes,
        stride=(1,) * axes,
        padding=((0, 0),) * axes,
        dilation=(1,) * axes,
    )


def test_a_convolution_with_all_attributes() -> None:
    W, b = weight(4, 3, 2, 5), weight(4)
    geometry = {"strides": [2, 3], "pads": [0, 1, 2, 3], "dilations": [1, 2], "kernel_shape": [2, 5]}
    stage = read("Conv", value(2, 6, 9, 9), W, b, group=2, **geometry)
    assert stage.spec == ConvSpec(
        in_channels=6,
        out_channels=4,
        kernel=(2, 5),
        stride=(2, 3),
        padding=((0, 2), (1, 3)),
        dilation=(1, 2),
        groups=2,
    )
    assert stage.weight.tolist() == W.tolist()
    assert stage.bias is not None
    assert stage.bias.tolist() == b.tolist()


@pytest.mark.parametrize(
    ("auto_pad", "padding"), [("VALID", (0, 0)), ("SAME_UPPER", (1, 2)), ("SAME_LOWER", (2, 1)), ("NOTSET", (0, 0))]
)
def test_auto_pad(auto_pad: str, padding: tuple[int, int]) -> None:
    stage = read("Conv", value(2, 3, 9), weight(4, 3, 4), auto_pad=auto_pad)
    assert stage.spec.padding == (padding,)


def test_what_is_no_readable_convolution() -> None:
    x, W = value(2, 3, 9), weight(4, 3, 3)
    assert reason("Conv", x, W, kernel_shape=[5]) == "its kernel_shape is not that of its weight"
    assert reason("Conv", x, value(4, 3, 3)) == "its weight is not constant"
    assert reason("Conv", x, W, value(4)) == "its bias is not constant"
    assert reason("Conv", x, W.astype(np.int8)) == "its weight has the integer type int8"
    assert reason("Conv", x, W, strides=[1, 1]).startswith("its attributes do not fit its weight: stride, padding")
    assert reason("Conv", x, W, group=3).startswith("its attributes do not fit its weight: groups must divide")
    automatic = reason("ConvTranspose", value(2, 4, 9), weight(4, 3, 3), auto_pad="SAME_UPPER")
    assert automatic == "its padding is SAME_UPPER, about which runtimes of transposed convolutions disagree"


def test_gemm_and_matmul_give_the_weight_of_a_linear_layer() -> None:
    W, b = weight(3, 4), weight(4)
    for stage in (
        read("Gemm", value(2, 3), W, b),
        read("Gemm", value(2, 3), np.ascontiguousarray(W.T), b, transB=1),
        read("Gemm", value(2, 3), W * 2, b * 4, alpha=0.5, beta=0.25),
        read("MatMul", value(2, 7, 3), W),
    ):
        assert stage.spec == ConvSpec(in_channels=3, out_channels=4)
        np.testing.assert_array_equal(stage.weight, W.T)
        assert stage.bias is None or stage.bias.tolist() == b.tolist()


def test_gemm_adds_a_single_number_to_all_channels() -> None:
    stage = read("Gemm", value(2, 3), weight(3, 4), np.float32([[2]]))
    assert stage.bias is not None
    assert stage.bias.tolist() == [2, 2, 2, 2]


def test_what_is_no_layer() -> None:
    assert read_layer(node("Relu", value(2, 3))) is None
    assert read_layer(node("MatMul", value(2, 3), value(3, 4))) is None
    assert read_layer(node("MatMul", weight(2, 3), value(3, 4))) is None
    assert read_layer(node("MatMul", weight(2, 3), weight(3, 4))) is None
    assert read_layer(node("MatMul", value(2, 2, 3), weight(2, 3, 4))) is None
    assert read_layer(ir.node("Conv", [value(2, 3, 9), initializer(weight(4, 3, 3))], domain="mine")) is None


def test_bfloat16_weights_are_read() -> None:
    assert read("MatMul", value(2, 3), weight(3, 4).astype(ml_dtypes.bfloat16)).weight.dtype == ml_dtypes.bfloat16


# --- scales and shifts ---


def test_batch_norm_is_a_scale_and_a_shift() -> None:
    gamma, beta, mean, var = weight(4), weight(4), weight(4), np.abs(weight(4))
    norm = read_affine(node("BatchNormalization", value(2, 4, 9), gamma, beta, mean, var, epsilon=0.5), 4, 1)
    assert isinstance(norm, ReadStage)
    x = weight(4)
    assert norm.stage.mask is not None
    assert norm.stage.bias is not None
    expected = (x - mean) / np.sqrt(var + 0.5) * gamma + beta
    np.testing.assert_allclose(norm.stage.mask * x + norm.stage.bias, expected, rtol=1e-5)


def test_batch_norm_that_trains_or_is_computed_is_refused() -> None:
    parts = [weight(4) for _ in range(4)]
    training = read_affine(node("BatchNormalization", value(2, 4, 9), *parts, training_mode=1), 4, 1)
    computed = read_affine(node("BatchNormalization", value(2, 4, 9), *parts[:3], value(4)), 4, 1)
    assert training == Unreadable(reason="the batch norm between is in training mode", is_norm=True)
    zeros = read_affine(node("Div", value(2, 3, 4), np.float32([[1], [0], [2]])), 3, 1)
    assert zeros == Unreadable(reason="what comes between is divided by zero")
    assert computed == Unreadable(reason="the batch norm between is not constant", is_norm=True)


def test_a_sum_of_computed_values_is_no_shift() -> None:
    assert read_affine(node("Add", value(2, 4, 9), value(2, 4, 9)), 4, 1) is None


@pytest.mark.parametrize(
    ("shape", "axes", "rank", "fits"),
    [
        ((4,), 0, 2, True),
        ((1, 4), 0, 2, True),
        ((1, 4), 0, 1, False),  # the result would have two axes
        ((4, 1), 0, 2, False),
        ((4, 1, 1), 2, 4, True),
        ((1, 4, 1, 1), 2, 4, True),
        ((4,), 2, 4, False),
        ((4, 4), 2, 4, False),
        ((4, 1, 4), 2, 4, False),
        ((1, 1, 1, 1, 1), 2, 4, False),
    ],
)
def test_per_channel(shape: tuple[int, ...], axes: int, rank: int, fits: bool) -> None:
    values = weight(*shape)
    found = per_channel(values, 4, axes=axes, rank=rank)
    assert (found is not None) == fits
    assert found is None or found.tolist() == values.ravel().tolist()


# --- constants ---


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes", "expected"),
    [
        ("Identity", [], {}, (2, 6)),
        ("Cast", [], {"to": int(ir.DataType.FLOAT16)}, (2, 6)),
        ("Transpose", [], {}, (6, 2)),
        ("Transpose", [], {"perm": [0, 1]}, (2, 6)),
        ("Reshape", [np.array([0, 3, -1])], {}, (2, 3, 2)),
        ("Unsqueeze", [np.array([0, -1])], {}, (1, 2, 6, 1)),
        ("Unsqueeze", [], {"axes": [1]}, (2, 1, 6)),
    ],
)
def test_constants_behind_nodes(op_type: str, operands: list[Any], attributes: dict[str, Any], expected: Any) -> None:
    found = constant(node(op_type, weight(2, 6), *operands, **attributes).outputs[0])
    assert found is not None
    assert found.shape == expected


def test_squeeze_without_axes_is_not_followed() -> None:
    assert constant(node("Squeeze", weight(1, 6)).outputs[0]) is None
    squeezed = constant(node("Squeeze", weight(1, 6), np.array([0])).outputs[0])
    assert squeezed is not None
    assert squeezed.shape == (6,)


def test_what_is_not_constant() -> None:
    assert constant(None) is None
    assert constant(value(2)) is None
    assert constant(node("Relu", weight(2)).outputs[0]) is None
    assert constant(node("Cast", weight(2), to=int(ir.DataType.INT8)).outputs[0]) is None
    assert constant(node("Reshape", weight(2), value(1)).outputs[0]) is None
    assert constant(ir.node("Constant", [], {"value_string": "a"}).outputs[0]) is None


def test_constant_nodes() -> None:
    assert constant(ir.node("Constant", [], {"value_floats": [1.0, 2.0]}).outputs[0]).tolist() == [1, 2]  # type: ignore[union-attr]


# --- names ---


@pytest.mark.parametrize(
    ("U", "bias", "expected"),
    [
        ("layer.1.conv.U", "layer.1.conv.bias", "layer.1.conv"),
        ("layer.1.conv.U.weight", None, "layer.1.conv"),
        ("features.1.weight", None, "features.1"),
        ("val_3", "fc.bias", "fc"),
        ("val_3", "fc.U.bias", "fc"),
        ("val_3", None, "module"),
        ("val_3", "bias", "module"),
    ],
)
def test_names_of_layers(U: str, bias: str | None, expected: str) -> None:
    layers = []
    for name in ("val_2", U):
        linear = ir.node("MatMul", [value(2, 3), initializer(weight(3, 3), name)], name="node")
        linear.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'module', 'module.U', 'linear']"
        layer = read_layer(linear)
        assert isinstance(layer, ReadStage)
        layers.append(layer)
    assert layer_name(tuple(layers), None if bias is None else initializer(weight(3), bias)) == expected


@pytest.mark.parametrize("scopes", ["[", "3", "['', 'linear']", "[]"])
def test_a_layer_without_any_name_is_called_after_its_node(scopes: str) -> None:
    linear = ir.node("MatMul", [value(2, 3), initializer(weight(3, 3), "val_3")], name="node")
    linear.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    layer = read_layer(linear)
    assert isinstance(layer, ReadStage)
    assert layer_name((layer,), None) == "node"


# --- placing ---


def test_placing_a_linear_layer_with_bias_on_one_matmul_makes_two_nodes() -> None:
    x = value(2, 7, 3)
    old = ir.node("MatMul", [x, ir.Value(name="w", const_value=ir.tensor(weight(3, 4), name="w"))], name="fc")
    w, y = old.inputs[1], old.outputs[0]
    assert w is not None
    y.name, y.shape, y.type = "y", ir.Shape((2, 7, 4)), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[old], initializers=[w])
    stage = Stage(spec=ConvSpec(in_channels=3, out_channels=4), weight=weight(4, 3), bias=weight(4))
    place_stage(
        graph,
        stage,
        data=x,
        template=old,
        last=old,
        replaced=[old],
        dtype=np.dtype(np.float32),
        layer="fc",
        bias_value=None,
    )
    product, add = graph
    assert [product.op_type, add.op_type] == ["MatMul", "Add"]
    assert (add.name, add.outputs[0]) == ("fc", y)
    assert product.outputs[0].shape == y.shape
    assert list(graph.initializers) == ["fc.weight", "fc.bias"]
    np.testing.assert_array_equal(graph.initializers["fc.weight"].const_value.numpy(), stage.weight.T)  # type: ignore[union-attr]
