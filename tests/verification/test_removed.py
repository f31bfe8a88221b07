"""Every removal is proved from the weights, and one that is wrong is not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from dead_networks import networks
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_models import model

from spdexport.reference.onnx_reference import OnnxReference
from spdexport.rewrite.onnx_dead import remove_dead
from spdexport.verification.removed import alive


@settings(max_examples=100)
@given(networks())
def test_every_removal_is_proved(proto: onnx.ModelProto) -> None:
    whole = ir.from_proto(proto)
    fault = alive(whole, remove_dead(whole))
    assert fault is None, fault


@settings(max_examples=150)
@given(networks(), st.data())
def test_what_is_proved_computes_the_same(proto: onnx.ModelProto, data: st.DataObject) -> None:
    removal = remove_dead(ir.from_proto(proto))
    # A weight that was zero is woken: the removal is then wrong, unless nothing reads what it makes.
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    zeros = [t for t in other.graph.initializer if t.data_type == onnx.TensorProto.FLOAT
             and not numpy_helper.to_array(t).all()]  # fmt: skip
    if not zeros:
        return
    tensor = data.draw(st.sampled_from(zeros))
    array = numpy_helper.to_array(tensor).copy()
    dead = np.argwhere(array == 0)
    array[tuple(dead[data.draw(st.integers(0, len(dead) - 1))])] = 3.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if alive(ir.from_proto(other), removal) is not None:
        return
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    right = OnnxReference(other).run({"x": x})
    found = OnnxReference(ir.to_proto(removal.model)).run({"x": x})
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * max(np.abs(value).max(), 1))


def chain(v: np.ndarray, u: np.ndarray) -> ir.Model:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "second.weight"], ["y"]),
    ]
    weights = {"first.weight": v.astype(np.float32), "second.weight": u.astype(np.float32)}
    shapes = {"x": ["N", 2, 4, 4]}, {"y": ["N", 2, 4, 4]}
    return ir.from_proto(model(nodes, inputs=shapes[0], outputs=shapes[1], weights=weights))


def test_a_removed_channel_that_is_alive_is_named() -> None:
    first, second = np.ones((3, 2, 1, 1)), np.ones((2, 3, 1, 1))
    second[:, 1] = 0
    removal = remove_dead(chain(first, second))
    assert [(r.name, r.inputs, r.outputs) for r in removal.removed] == [("first", (), (1,)), ("second", (1,), ())]
    second[1, 1] = 1e-30
    fault = alive(chain(first, second), removal)
    assert fault is not None
    assert fault.first_divergence == "second"
    assert fault.reason == "the removed input channel 1 is alive: weights on it are not zero, and it is no constant"


def test_weights_of_other_channels_are_named() -> None:
    first, second = np.arange(6.0).reshape(3, 2, 1, 1) + 1, np.ones((2, 3, 1, 1))
    second[:, 1] = 0
    removal = remove_dead(chain(first, second))
    fault = alive(chain(first[[1, 0, 2]], second), removal)
    assert fault is not None
    assert fault.first_divergence == "first"
    assert fault.reason == "the weights that are left are not those of the channels that are left"
