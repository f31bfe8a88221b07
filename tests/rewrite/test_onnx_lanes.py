"""Whole lanes between V and U: the same function, and only where nothing else sees the channels."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from spdexport.conv import ConvSpec
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.rewrite.match import in_chains
from spdexport.rewrite.onnx_lanes import pad_lanes

RNG = np.random.default_rng(0)
SHAPES = {"v": (6, 3, 3, 3), "v.bias": (6,), "u": (5, 6, 1, 1), "u.bias": (5,)}


def model(*, v=None, u=None, shapes=None, outputs=("y",), extra=()):
    """x -> Conv v -> h -> Conv u -> y."""
    tensors = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in {**SHAPES, **(shapes or {})}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v", "v.bias"], ["h"], **{"pads": [1, 1, 1, 1], **(v or {})}),
        helper.make_node("Conv", ["h", "u", "u.bias"], ["y"], **(u or {})),
        *extra,
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    outs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], outs, tensors)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def run(made):
    session = open_session(ir.to_proto(made).SerializeToString(), SessionSettings())
    return session.run({"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)})


def channels(made):
    return made.graph.initializers["v"].const_value.shape[0]


@pytest.mark.parametrize("lane", [4, 8, 16])
def test_the_function_stays(lane):
    before = model()
    after, padded = pad_lanes(before, lane)
    assert padded == {"h": channels(after)}
    assert channels(after) == -(-6 // lane) * lane
    assert channels(before) == 6
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    for name, value in run(before).items():
        np.testing.assert_allclose(run(after)[name], value, rtol=0, atol=1e-5)


def test_what_is_padded_is_zero():
    after = pad_lanes(model(), 16)[0].graph.initializers
    for name, axis in (("v", 0), ("v.bias", 0), ("u", 1)):
        array = after[name].const_value.numpy()
        assert not np.take(array, range(6, 16), axis=axis).any()
        assert np.take(array, range(6), axis=axis).any()
    assert list(after["u.bias"].const_value.shape) == [5]


relu = helper.make_node("Relu", ["h"], ["z"])
ALONE = {
    "whole lanes already": ({"shapes": {"v": (16, 3, 3, 3), "v.bias": (16,), "u": (5, 16, 1, 1)}}, 16),
    "lanes of one channel": ({}, 1),
    "an output between": ({"outputs": ("y", "h")}, 16),
    "another reader": ({"outputs": ("y", "z"), "extra": (relu,)}, 16),
    "groups": ({"shapes": {"u": (4, 3, 1, 1), "u.bias": (4,)}, "u": {"group": 2}}, 16),
    "a kernel behind": ({"shapes": {"u": (5, 6, 3, 3)}, "u": {"pads": [1, 1, 1, 1]}}, 16),
    "a stride behind": ({"u": {"strides": [2, 2]}}, 16),
    "one axis": ({"shapes": {"v": (6, 3, 3), "u": (5, 6, 1)}, "v": {"pads": [1, 1]}}, 16),
}


@pytest.mark.parametrize("name", ALONE)
def test_others_are_left_alone(name):
    options, lane = ALONE[name]
    before = model(**options)
    assert pad_lanes(before, lane)[0] is before


def test_a_weight_that_is_shared_is_left_alone():
    again = helper.make_node("Conv", ["x", "v", "v.bias"], ["z"], pads=[1, 1, 1, 1])
    before = model(outputs=("y", "z"), extra=(again,))
    assert pad_lanes(before, 16)[0] is before


def spec(into, out, kernel, padding=0):
    return ConvSpec(
        in_channels=into, out_channels=out, kernel=kernel, stride=(1, 1), padding=((padding,) * 2,) * 2, dilation=(1, 1)
    )


def test_a_second_kernel_is_padded_where_it_is_of_one_form_with_the_first():
    before = model(shapes={"u": (5, 6, 3, 3)})
    assert pad_lanes(before, 16)[0] is before
    chain = (spec(3, 6, (3, 3), 1), spec(6, 5, (3, 3)))
    after, padded = pad_lanes(before, 16, in_chains([chain]))
    assert padded == {"h": 16}
    for name, value in run(before).items():
        np.testing.assert_allclose(run(after)[name], value, rtol=0, atol=1e-5)


def test_what_is_in_front_of_a_chain_is_not_padded():
    """A 1x1 layer that a chain begins with is composed with the chain, and not with what is in front of it."""
    last = helper.make_node("Conv", ["y", "w"], ["z"])
    before = model(shapes={"w": (4, 5, 3, 3)}, outputs=("z",), extra=(last,))
    assert pad_lanes(before, 16)[1] == {"h": 16}
    chain = (spec(6, 5, (1, 1)), spec(5, 4, (3, 3)))
    assert pad_lanes(before, 16, in_chains([chain]))[1] == {"y": 16}
