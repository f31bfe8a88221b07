"""An ONNX graph as the recognition of layers asks about it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_filling import read_filling
from spdexport.rewrite.onnx_graph import is_operator, rank_of, read_affine, read_layer
from spdexport.rewrite.onnx_links import passed, read_link, read_pool
from spdexport.rewrite.onnx_names import layer_name, node_name
from spdexport.rewrite.stages import Addend, Filling, ReadStage, affine_stage, per_channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from spdexport.rewrite.match import Match
    from spdexport.rewrite.onnx_graph import OnnxStage
    from spdexport.rewrite.stages import OddBorder, Unreadable


class OnnxReader:
    """Reads nodes of one graph of a model.

    Args:
        graph: The graph, the main one or a body. What is computed around a body is a given value there.
        sizes: Whether everything counts with its magnitude: what is subtracted is added.
    """

    def __init__(self, graph: ir.Graph, *, sizes: bool = False) -> None:
        self._graph, self._sizes = graph, sizes

    def layer(self, node: ir.Node) -> OnnxStage | Unreadable | None:
        """Return a Conv, ConvTranspose, Gemm or MatMul."""
        return read_layer(node)

    def affine(self, node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
        """Arithmetic with a constant, a sign, a padding with zeros, or an inference BatchNormalization."""
        link = read_link(node, channels, axes)
        if not self._sizes or not isinstance(link, ReadStage) or link.stage.mask is None:
            return link
        return replace(link, stage=replace(link.stage, mask=np.abs(np.asarray(link.stage.mask))))

    def pool(self, node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
        """Return an AveragePool."""
        return read_pool(node, channels, axes)

    def passed(self, node: ir.Node) -> ir.Value | None:
        """Return what an Identity, a Dropout at inference, or a Reshape to the shape that was there hands on."""
        return passed(node)

    def filled(self, node: ir.Node) -> Filling[ir.Node, ir.Value] | OddBorder[ir.Value] | None:
        """Return the last of the nodes that scatter something into the border of a padding with zeros."""
        filling = read_filling(node)
        nodes = filling.nodes if isinstance(filling, Filling) else ()
        return filling if all(one.graph is self._graph for one in nodes) else None

    def writes(self, node: ir.Node) -> bool:  # noqa: ARG002 - the protocol's
        """Return none: nothing does, in ONNX."""
        return False

    def behind(self, node: ir.Node, match: Match[ir.Node, ir.Value]) -> OnnxStage | None:
        """Return the Add of a MatMul's bias, and a batch norm.

        Exporters fold batch norm into the layer before it, but not where a sum is between: the batch norm would then
        stay in the normal form, and is not in the plain export of the dense layer.
        """
        spec = match.stage.spec
        if is_operator(node, "BatchNormalization"):
            norm = read_affine(node, spec.out_channels, spec.axes)
            return norm if isinstance(norm, ReadStage) else None
        is_product = match.template is not None and match.template.op_type == "MatMul"
        if is_operator(node, "Add") and is_product and match.stage.bias is None:
            return _bias_of_matmul(node, match)
        return None

    def addends(self, node: ir.Node) -> Sequence[Addend[ir.Value]] | None:
        """Return the operands of an Add, a Sub, a Sum or a Mean, none of them constant."""
        if not is_operator(node, "Add", "Sub", "Sum", "Mean") or len(node.inputs) < 2:
            return None
        if any(value is None or constant(value) is not None for value in node.inputs):
            return None
        sign = -1.0 if node.op_type == "Sub" and not self._sizes else 1.0
        first, *rest = (value for value in node.inputs if value is not None)
        if node.op_type == "Mean":
            return tuple(Addend(value, 1 / len(node.inputs)) for value in (first, *rest))
        return Addend(first, 1.0), *(Addend(value, sign) for value in rest)

    def locations(self, value: ir.Value, axes: int) -> int | None:
        """Read it from the shape that the file has for the value."""
        sizes = () if value.shape is None else value.shape[len(value.shape) - axes :]
        known = [size for size in sizes if isinstance(size, int)]
        return math.prod(known) if len(known) == axes else None

    def is_product(self, node: ir.Node) -> bool:
        """Return whether it is a Mul, or a Div."""
        return is_operator(node, "Mul", "Div")

    def operands(self, node: ir.Node) -> Sequence[ir.Value]:
        """Return the inputs that are there."""
        return [value for value in node.inputs if value is not None]

    def result(self, node: ir.Node) -> ir.Value:
        """Return the first output; the further ones of a batch norm are unused at inference."""
        return node.outputs[0]

    def producer(self, value: ir.Value) -> ir.Node | None:
        """Return the node of the graph that computes the value."""
        node = value.producer()
        return node if node is not None and node.graph is self._graph else None

    def users(self, value: ir.Value) -> Sequence[ir.Node]:
        """Return the nodes that use the value, those in subgraphs included."""
        return [use.node for use in value.uses()]

    def is_output(self, value: ir.Value) -> bool:
        """Return whether it is an output of a graph."""
        return value.is_graph_output()

    def kind(self, node: ir.Node) -> str:
        """Return the operator's type."""
        return node.op_type

    def node_name(self, node: ir.Node) -> str:
        """Return the node's name, or that of its output."""
        return node_name(node)

    def layer_name(self, layers: Sequence[OnnxStage], bias: ir.Value | None) -> str:
        """Return what the names of weights, of the bias, or the exporter's notes tell."""
        return layer_name(tuple(layers), bias)


def _bias_of_matmul(node: ir.Node, match: Match[ir.Node, ir.Value]) -> OnnxStage | None:
    assert match.last is not None, "the input itself is not among the matches"
    value = match.last.outputs[0]
    addend = next((v for v in node.inputs if v is not value), None)
    values = constant(addend)
    if addend is None or values is None:
        return None
    channels = match.stage.spec.out_channels
    bias = per_channel(values, channels, axes=0, rank=rank_of(value, 0))
    if bias is None:
        return None
    return ReadStage(node=node, data=value, stage=affine_stage(channels, 0, bias=bias), bias=addend)
