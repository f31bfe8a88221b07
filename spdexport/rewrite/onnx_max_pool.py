"""A zero padding in front of a MaxPool, written so that ONNX Runtime leaves it there.

ONNX Runtime (1.31 and before) takes a ``Pad`` with zeros into the ``MaxPool`` behind it, which pads with minus
infinity: another function wherever activations are negative. Its fusion leaves a ``Pad`` alone that names its axes,
which since opset 18 it may, so all of them are named.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator

NAMES_AXES = 18
"""The first opset whose Pad has an input for axes."""


def keep_zero_padding(model: ir.Model) -> None:
    """Name the axes of every ``Pad`` that only a ``MaxPool`` reads; the function stays what it is."""
    if model.graph.opset_imports.get("", 0) < NAMES_AXES:
        return
    for node in list(model.graph.all_nodes()):
        uses = node.outputs[0].uses()
        if not is_operator(node, "Pad") or not uses or not all(is_operator(use.node, "MaxPool") for use in uses):
            continue
        pads = constant(node.inputs[1])
        if node.attributes.get_string("mode", "constant") != "constant" or pads is None or len(node.inputs) > 3:
            continue
        assert isinstance(node.graph, ir.Graph), "it was found in a graph"
        name, count = f"{node.outputs[0].name}.axes", pads.size // 2
        tensor = ir.tensor(np.arange(count, dtype=np.int64), name=name)
        axes = ir.Value(name=name, const_value=tensor, shape=ir.Shape((count,)), type=ir.TensorType(tensor.dtype))
        node.graph.register_initializer(axes)
        node.resize_inputs(4)
        node.replace_input_with(3, axes)
