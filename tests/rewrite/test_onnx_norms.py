"""Batch norm folded into the convolution in front of it."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import spdexport
from spdexport.rewrite.onnx_norms import fold_norms


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def model(*, bias=True, groups=1, shared=False, training=0, output=False):
    """Conv, BatchNormalization, Relu, Conv with 4 channels."""
    random = np.random.default_rng(0)
    held = [
        tensor("a.weight", random.standard_normal((4, 4 // groups, 3, 3))),
        tensor("b.weight", random.standard_normal((5, 4, 1, 1))),
        *(tensor(f"n.{name}", random.uniform(0.5, 2, 4)) for name in ("scale", "shift", "mean", "var")),
    ]
    held += [tensor("a.bias", random.standard_normal(4))] if bias else []
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", *(["a.bias"] if bias else [])], ["a"], pads=[1] * 4, group=groups),
        helper.make_node(
            "BatchNormalization", ["a", "n.scale", "n.shift", "n.mean", "n.var"], ["n"], training_mode=training
        ),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "b.weight"], ["y"]),
    ]
    outputs = ["y", *(["a"] if output else [])]
    if shared:
        nodes.append(helper.make_node("Conv", ["x", "a.weight"], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info(name, 1, [None] * 4) for name in outputs],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_folded_model_computes_the_same(bias, groups):
    proto = model(bias=bias, groups=groups)
    folded = ir.to_proto(fold_norms(ir.from_proto(proto)))
    onnx.checker.check_model(folded)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu", "Conv"]
    assert [node.output[0] for node in folded.graph.node] == ["n", "r", "y"]
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(folded, x), run(proto, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [{"shared": True}, {"output": True}])
def test_what_others_read_too_is_left_alone(given):
    source = ir.from_proto(model(**given))
    assert fold_norms(source) is source


def test_compress_weighs_the_folded_layer_and_writes_the_sources_own(tmp_path):
    """A layer of exact rank 1 before its batch norm is found, and the file still has the batch norm."""
    random = np.random.default_rng(0)
    proto = model()
    low = (random.standard_normal((4, 1)) @ random.standard_normal((1, 36))).reshape(4, 4, 3, 3)
    weights = {t.name: t for t in proto.graph.initializer}
    weights["a.weight"].CopyFrom(tensor("a.weight", low))
    onnx.save(proto, tmp_path / "s.onnx")
    x = random.standard_normal((80, 4, 6, 6)).astype(np.float32)
    found = spdexport.compress(
        tmp_path / "s.onnx", tmp_path / "o.onnx", data=x, max_relative_l2=1e-3, lane_width=1, quantize="none"
    )
    assert {layer.name: layer.ranks for layer in found.search.layers}["a"] == (1,)
    assert found.verdict == "pass"
    assert any(node.op_type == "BatchNormalization" for node in onnx.load(tmp_path / "o.onnx").graph.node)
    eight = spdexport.compress(
        tmp_path / "s.onnx", tmp_path / "q.onnx", data=x, max_relative_l2=0.2, lane_width=1, quantize="int8"
    )
    assert eight.verdict == "pass"
    assert eight.search.storage == "int8"
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(tmp_path / "q.onnx").graph.node)
