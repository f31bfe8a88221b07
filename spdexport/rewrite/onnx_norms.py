"""Batch norm that stands apart behind a convolution, folded into its weight and bias: exact but for one rounding.

Exporters leave it so where they are asked to keep a model as it was trained. A search weighs a layer by what comes of
it, and a quantizer takes a layer and its batch norm for two: both look at the folded graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator, read_affine
from spdexport.rewrite.stages import Unreadable

if TYPE_CHECKING:
    from spdexport.conv import Array


def fold_norms(model: ir.Model) -> ir.Model:
    """Return a copy with each batch norm folded into the convolution in front of it; the model itself if there is none.

    Names of weights and nodes stay what they are. What is left alone: a weight or an output that others read too, and
    statistics that are not constant.
    """
    if not any(_foldable(node) is not None for node in model.graph):
        return model
    copy = model.clone()
    for node in list(copy.graph):
        found = _foldable(node)
        if found is not None:
            _fold(copy.graph, node, *found)
    return copy


def _foldable(norm: ir.Node) -> tuple[ir.Node, Array, Array] | None:
    """The convolution in front of a batch norm, and what each channel is multiplied by and shifted by."""
    if not is_operator(norm, "BatchNormalization") or norm.inputs[0] is None:
        return None
    data = norm.inputs[0]
    layer = data.producer()
    if not is_operator(layer, "Conv") or layer is None or data.is_graph_output() or len(tuple(data.uses())) != 1:
        return None
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if weight is None or not _is_own(weight) or (bias is not None and not _is_own(bias)):
        return None
    held = constant(weight)
    if held is None or held.dtype not in (np.float32, np.float64):
        return None
    read = read_affine(norm, held.shape[0], held.ndim - 2)
    if read is None or isinstance(read, Unreadable) or read.stage.bias is None or read.stage.mask is None:
        return None
    return layer, np.asarray(read.stage.mask, np.float64), np.asarray(read.stage.bias, np.float64)


def _is_own(value: ir.Value) -> bool:
    """Whether a value is a stored weight that one node alone reads."""
    return value.is_initializer() and not value.is_graph_input() and len(tuple(value.uses())) == 1


def _fold(graph: ir.Graph, norm: ir.Node, layer: ir.Node, scale: Array, shift: Array) -> None:
    weight = layer.inputs[1]
    assert weight is not None, "a convolution has a weight"
    assert weight.const_value is not None, "it is stored"
    held = weight.const_value.numpy()
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    before = np.zeros(len(scale)) if bias is None or bias.const_value is None else bias.const_value.numpy()
    moved = (before.astype(np.float64) * scale + shift).astype(held.dtype)
    made = (held.astype(np.float64) * scale.reshape(-1, *(1,) * (held.ndim - 1))).astype(held.dtype)
    weight.const_value = ir.Tensor(made, name=weight.name)
    if bias is None:
        name = f"{weight.name}_bias"
        bias = ir.Value(name=name, type=ir.TensorType(weight.const_value.dtype), shape=ir.Shape(moved.shape))
        graph.initializers[name] = bias
        layer.resize_inputs(3)
        layer.replace_input_with(2, bias)
    bias.const_value = ir.Tensor(moved, name=bias.name)
    data, result = layer.outputs[0], norm.outputs[0]
    # What reads the batch norm's result knows it by that name.
    named, kind, shape = result.name, result.type, result.shape
    result.replace_all_uses_with(data, replace_graph_outputs=True)
    statistics = [value for value in norm.inputs[1:] if value is not None]
    graph.remove(norm, safe=True)
    data.name, data.type, data.shape = named, kind, shape
    for value in statistics:
        if value.is_initializer() and not value.uses() and not value.is_graph_input():
            del graph.initializers[value.name or ""]
