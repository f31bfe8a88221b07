"""What is done to every graph that torch's exporter gives, so that two of them differ in their layers alone.

The function stays what it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from spdexport.rewrite.onnx_constants import axes_of, constant
from spdexport.rewrite.onnx_graph import is_operator
from spdexport.rewrite.onnx_place import remove_unused

NAMES_AXES = 18
"""The first opset whose Pad has an input for axes."""


def tidy(model: ir.Model) -> None:
    """Change a graph that was just exported, in place."""
    merge_unsqueezes(model)
    keep_zero_padding(model)


def drop_zero_biases(model: ir.Model) -> None:
    """Take away the zeros that the exporter computes as the bias of a convolution without one.

    Its optimizer does that as well, but only after it has folded batch norm; the layers are to be read before.
    """
    found = False
    for node in model.graph.all_nodes():
        if is_operator(node, "Conv") and len(node.inputs) > 2 and _is_expanded_zero(node.inputs[2]):
            node.resize_inputs(2)
            found = True
    if found:
        common.RemoveUnusedNodesPass()(model)


def _is_expanded_zero(value: ir.Value | None) -> bool:
    """Whether a value is a zero that was brought to some shape."""
    node = None if value is None else value.producer()
    if node is None or not is_operator(node, "Expand"):
        return False
    source = node.inputs[0]
    cast = None if source is None else source.producer()
    if cast is not None and is_operator(cast, "CastLike"):
        source = cast.inputs[0]
    zero = constant(source)
    return zero is not None and not zero.any()


def keep_zero_padding(model: ir.Model) -> None:
    """Name the axes of every ``Pad`` that only a ``MaxPool`` reads, so that ONNX Runtime leaves it there.

    ONNX Runtime (1.31 and before) takes a ``Pad`` with zeros into the ``MaxPool`` behind it, which pads with minus
    infinity: another function wherever activations are negative. Its fusion leaves a ``Pad`` alone that names its axes.
    """
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


def merge_unsqueezes(model: ir.Model) -> None:
    """Make one node of two Unsqueeze nodes in a row, where nothing else uses the value between them."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Unsqueeze" else None
        first = None if source is None else source.producer()
        if first is None or source is None or first.op_type != "Unsqueeze" or len(source.uses()) != 1:
            continue
        inner, outer, data = axes_of(first), axes_of(node), first.inputs[0]
        if source.is_graph_output() or data is None or data.shape is None or inner is None or outer is None:
            continue
        rank = len(data.shape) + len(inner) + len(outer)
        added = {axis % rank for axis in outer}
        # The axes that the first one added are counted among those that the second one left.
        places = [axis for axis in range(rank) if axis not in added]
        axes = sorted(added | {places[axis % len(places)] for axis in inner})
        name = f"{node.name}_axes"
        held = ir.Value(name=name, const_value=ir.tensor(np.array(axes, np.int64), name=name))
        model.graph.register_initializer(held)
        before = [value for value in (*first.inputs[1:], *node.inputs[1:]) if value is not None]
        node.replace_input_with(0, data)
        node.replace_input_with(1, held)
        model.graph.remove(first, safe=True)
        remove_unused(before)
