"""Layers inside of model-local functions of an ONNX source: they are inlined, and decomposed like others."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from spdexport import Status, convert, inspect, verify

RANDOM = np.random.default_rng(0)


def block(path: Path, *, opset: int = 18, function_opset: int = 18) -> Path:
    """Two calls of a function of a convolution and a ReLU, which another function holds, and a linear layer."""
    inner = helper.make_function(
        "mine",
        "ConvRelu",
        ["p", "w", "b"],
        ["r"],
        [
            helper.make_node("Conv", ["p", "w", "b"], ["c"], name="conv", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
        ],
        [helper.make_opsetid("", function_opset)],
    )
    outer = helper.make_function(
        "mine",
        "Twice",
        ["p", "w1", "b1", "w2", "b2"],
        ["r"],
        [
            helper.make_node("ConvRelu", ["p", "w1", "b1"], ["q"], domain="mine"),
            helper.make_node("ConvRelu", ["q", "w2", "b2"], ["r"], domain="mine"),
        ],
        [helper.make_opsetid("", function_opset), helper.make_opsetid("mine", 1)],
    )
    weights = {
        "first.weight": RANDOM.standard_normal((8, 3, 3, 3)) / 5,
        "first.bias": RANDOM.standard_normal(8),
        "second.weight": RANDOM.standard_normal((6, 8, 3, 3)) / 8,
        "second.bias": RANDOM.standard_normal(6),
        "fc.weight": RANDOM.standard_normal((5, 6)),
    }
    nodes = [
        helper.make_node("Twice", ["x", *list(weights)[:4]], ["t"], domain="mine"),
        helper.make_node("GlobalAveragePool", ["t"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[inner, outer], ir_version=9), path)
    return path


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_layers_of_functions_are_decomposed(tmp_path: Path) -> None:
    source = block(tmp_path / "d.onnx")
    plan = inspect(source)
    assert [layer.name for layer in plan.plan.layers] == ["first", "second", "fc"]
    assert any("inlined, for the layers in them: ConvRelu, Twice" in note for note in plan.notes)
    result = convert(source, tmp_path / "m.onnx", form="factorized")
    assert result.verdict is Status.PASS
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"first.V", "first.U", "second.V", "second.U", "fc.V", "fc.U"} <= names
    x = RANDOM.standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", x), outputs(source, x), rtol=0, atol=1e-5)
    assert verify(tmp_path / "m.onnx", against=source).verdict is Status.PASS


def test_a_weight_that_is_off_behind_a_function_is_named(tmp_path: Path) -> None:
    source = block(tmp_path / "d.onnx")
    convert(source, tmp_path / "m.onnx", form="factorized", verify=False)
    model = onnx.load(tmp_path / "m.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.name == "second.U")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(values, "second.U"))
    onnx.save(model, tmp_path / "m.onnx")
    edges = {edge.edge: edge for edge in verify(tmp_path / "m.onnx", against=source).edges}
    assert (edges["weights"].status, edges["weights"].first_divergence) == (Status.FAIL, "second")


@pytest.mark.parametrize("function_opset", [17])
def test_a_function_of_another_opset_stays_as_it_is(function_opset: int, tmp_path: Path) -> None:
    source = block(tmp_path / "d.onnx", function_opset=function_opset)
    plan = inspect(source).plan
    assert [layer.name for layer in plan.layers] == ["fc"]
    assert [(s.name, s.reason) for s in plan.skipped] == [("ConvRelu.conv", "it is inside the function ConvRelu")]
