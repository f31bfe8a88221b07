"""Dead channels are removed where the result is the same for every input, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from dead_networks import in_float64, networks
from hypothesis import given, settings
from onnx import helper
from onnx_models import model

from spdexport.reference.onnx_reference import OnnxReference
from spdexport.rewrite.onnx_dead import Removal, remove_dead


def removed(proto: onnx.ModelProto) -> tuple[Removal, onnx.ModelProto]:
    before = proto.SerializeToString(deterministic=True)
    removal = remove_dead(ir.from_proto(proto))
    assert proto.SerializeToString(deterministic=True) == before
    after = ir.to_proto(removal.model)
    onnx.checker.check_model(after, full_check=True)
    return removal, after


def samples(*shape: int) -> dict[str, Any]:
    """Negative, zero, tiny, large and ordinary inputs."""
    x = np.random.default_rng(1).standard_normal(shape)
    kinds = {
        "normal": x,
        "negative": -np.abs(x),
        "zero": x * 0,
        "tiny": x * 1e-20,
        "large": x * 1e12,
        "ones": x * 0 + 1,
    }
    return {name: value.astype(np.float32) for name, value in kinds.items()}


def same(before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, Any], *, tolerance: float) -> None:
    """Constants are rounded to the model's type where they are put into a bias, and nothing else is."""
    for x in inputs.values():
        feeds = {before.graph.input[0].name: x}
        right, found = OnnxReference(before).run(feeds), OnnxReference(after).run(feeds)
        for name, value in right.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * max(np.abs(value).max(), 1))


def on_runtime(before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, Any]) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(p.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for p in (before, after)
    ]
    for x in inputs.values():
        right, found = (s.run(None, {"x": x})[0] for s in sessions)
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 * max(np.abs(right).max(), 1))


@settings(max_examples=60)
@given(networks())
def test_nothing_changes_but_the_size(proto: onnx.ModelProto) -> None:
    removal, after = removed(proto)
    inputs = samples(2, 3, 6, 6)
    wide = in_float64(proto)
    same(wide, removed(wide)[1], {name: x.astype(np.float64) for name, x in inputs.items()}, tolerance=1e-9)
    on_runtime(proto, after, inputs)
    assert {v.name for v in after.graph.output} == {v.name for v in proto.graph.output}
    # Again, there is nothing left to remove, and the graph itself is given back.
    again = remove_dead(removal.model)
    assert again.removed == ()
    assert again.model is removal.model


@settings(max_examples=30)
@given(networks())
def test_what_is_kept_is_what_it_was(proto: onnx.ModelProto) -> None:
    proto = in_float64(proto)
    removal, after = removed(proto)
    names = [v.name for n in removal.model.graph for v in n.outputs]
    before_values: dict[str, Any] = {}
    after_values: dict[str, Any] = {}
    feeds = {"x": samples(2, 3, 6, 6)["normal"].astype(np.float64)}
    OnnxReference(proto).run(feeds, watch=before_values.__setitem__)
    OnnxReference(after).run(feeds, watch=after_values.__setitem__)
    for name in names:
        kept, right = removal.kept.get(name), before_values.get(name)
        if right is not None and kept is not None:
            right = kept.of(right)
        if right is not None:
            np.testing.assert_allclose(after_values[name], right, rtol=0, atol=1e-9 * max(np.abs(right).max(), 1))


def test_constants_that_are_nodes_tell_the_type_of_values_that_the_file_does_not_type() -> None:
    w = np.ones((4, 3, 1, 1), np.float32)
    w[1] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node(
            "Constant", [], ["two"], value=onnx.numpy_helper.from_array(np.full((), 2, np.float32), "two")
        ),
        helper.make_node("Mul", ["two", "c"], ["m"]),
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    weights = {"w": w, "v": np.ones((2, 4, 1, 1), np.float32)}
    proto = model(nodes, inputs={"x": [1, 3, 4, 4]}, outputs={"y": [1, 2, 4, 4]}, weights=weights)
    removal, after = removed(proto)
    assert removal.removed
    same(proto, after, samples(1, 3, 4, 4), tolerance=1e-6)
