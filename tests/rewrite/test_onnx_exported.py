"""What is done to every exported graph: two Unsqueeze nodes as one, zeros in front of pooling kept."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_models import unsqueezes

from spdexport.rewrite.onnx_exported import merge_unsqueezes


@st.composite
def axes_of(draw: st.DrawFn, rank: int, count: int) -> list[int]:
    total = rank + count
    found = draw(st.lists(st.integers(0, total - 1), min_size=count, max_size=count, unique=True))
    return [axis - total if draw(st.booleans()) else axis for axis in found]


@settings(max_examples=100)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
def test_two_are_one(data: st.DataObject, rank: int, inner: int, outer: int) -> None:
    shape = list(range(2, 2 + rank))
    model = unsqueezes(shape, data.draw(axes_of(rank, inner)), data.draw(axes_of(rank + inner, outer)))
    x = {"mask_a": np.random.default_rng(0).random(shape).astype(np.float32)}
    (before,) = ReferenceEvaluator(ir.to_proto(model)).run(None, x)
    merge_unsqueezes(model)
    assert [node.op_type for node in model.graph] == ["Unsqueeze"]
    # The axes of both are stored as one.
    assert all(value.uses() for value in model.graph.initializers.values())
    (after,) = ReferenceEvaluator(ir.to_proto(model)).run(None, x)
    np.testing.assert_array_equal(after, before)


def test_a_value_that_is_used_between_stays() -> None:
    model = unsqueezes([2, 3], [-1], [-1], tap=True)
    merge_unsqueezes(model)
    assert len(list(model.graph)) == 2
