"""The inputs that a model has beside its own: two Unsqueeze nodes as one, and the symbols of defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from spdexport.forms import Role, RuntimeInput
from spdexport.rewrite.onnx_ports import merge_unsqueezes, name_inputs


def unsqueezes(shape: list[Any], *axes: list[int], tap: bool = False) -> ir.Model:
    """One Unsqueeze behind another; with ``tap`` the value between is an output too."""
    names = ["mask_a", *(f"v{number}" for number in range(len(axes)))]
    nodes = [
        helper.make_node("Unsqueeze", [names[i], f"axes{i}"], [names[i + 1]], name=f"n{i}") for i in range(len(axes))
    ]
    held = [helper.make_tensor(f"axes{i}", TensorProto.INT64, [len(a)], a) for i, a in enumerate(axes)]
    value = helper.make_tensor_value_info("mask_a", TensorProto.FLOAT, shape)
    outputs = [names[-1], *([names[1]] if tap else [])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [value], ports, held)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


@st.composite
def axes_of(draw: st.DrawFn, rank: int, count: int) -> list[int]:
    total = rank + count
    found = draw(st.lists(st.integers(0, total - 1), min_size=count, max_size=count, unique=True))
    return [axis - total if draw(st.booleans()) else axis for axis in found]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
def test_two_are_one(data: st.DataObject, rank: int, inner: int, outer: int) -> None:
    shape = list(range(2, 2 + rank))
    model = unsqueezes(shape, data.draw(axes_of(rank, inner)), data.draw(axes_of(rank + inner, outer)))
    x = {"mask_a": np.random.default_rng(0).random(shape).astype(np.float32)}
    (before,) = ReferenceEvaluator(ir.to_proto(model)).run(None, x)
    merge_unsqueezes(model)
    assert [node.op_type for node in model.graph] == ["Unsqueeze"]
    (after,) = ReferenceEvaluator(ir.to_proto(model)).run(None, x)
    np.testing.assert_array_equal(after, before)


def test_a_value_that_is_used_between_stays() -> None:
    model = unsqueezes([2, 3], [-1], [-1], tap=True)
    merge_unsqueezes(model)
    assert len(list(model.graph)) == 2


def test_a_default_has_a_batch_symbol_of_its_own_as_far_as_it_goes() -> None:
    wanted = RuntimeInput(role=Role.MASK, layer="a", per_location=False, channels=3)
    for required in (False, True):
        model = unsqueezes(["batch", 3], [-1], [-1])
        name_inputs(model, [wanted], required=required)
        proto = ir.to_proto(model)
        (mask,) = proto.graph.input
        symbol = "batch" if required else "batch_or_1_mask_a"
        assert (mask.name, mask.type.tensor_type.shape.dim[0].dim_param) == ("mask/a", symbol)
        defaults = {t.name: list(t.dims) for t in proto.graph.initializer}
        assert defaults.get("mask/a") == (None if required else [1, 3])
