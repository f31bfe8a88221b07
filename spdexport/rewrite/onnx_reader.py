"""An ONNX graph as the recognition of layers asks about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator, rank_of, read_affine, read_layer
from spdexport.rewrite.onnx_names import layer_name, node_name
from spdexport.rewrite.stages import ReadStage, affine_stage, per_channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from spdexport.rewrite.match import Match
    from spdexport.rewrite.onnx_graph import OnnxStage
    from spdexport.rewrite.stages import Unreadable


class OnnxReader:
    """Reads nodes of a model's main graph."""

    def __init__(self, *, lone: bool = False) -> None:
        """With ``lone``, a batch norm behind a layer alone belongs to it too."""
        self._lone = lone

    def layer(self, node: ir.Node) -> OnnxStage | Unreadable | None:
        """A Conv, ConvTranspose, Gemm or MatMul."""
        return read_layer(node)

    def affine(self, node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
        """Arithmetic with a constant, or an inference BatchNormalization."""
        return read_affine(node, channels, axes)

    def behind(self, node: ir.Node, match: Match[ir.Node, ir.Value]) -> OnnxStage | None:
        """The Add of a MatMul's bias, and the batch norm behind a fold; with ``lone``, that behind a single layer too.

        Exporters fold batch norm into the layer before it, but not where a sum is between; the batch norm would then
        stay in the folded file, and is not in the plain export of the dense layer.
        """
        spec = match.stage.spec
        if is_operator(node, "BatchNormalization"):
            if not (match.is_fold or self._lone) or node.inputs[0] is not match.last.outputs[0]:
                return None
            norm = read_affine(node, spec.out_channels, spec.axes)
            return norm if isinstance(norm, ReadStage) else None
        if is_operator(node, "Add") and match.template.op_type == "MatMul" and match.stage.bias is None:
            return _bias_of_matmul(node, match)
        return None

    def addends(self, node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
        """The operands of an Add."""
        if not is_operator(node, "Add"):
            return None
        left, right = node.inputs
        return None if left is None or right is None else (left, right)

    def locations(self, value: ir.Value, axes: int) -> int | None:
        """From the shape that the file has for the value."""
        sizes = () if value.shape is None else value.shape[len(value.shape) - axes :]
        known = [size for size in sizes if isinstance(size, int)]
        return math.prod(known) if len(known) == axes else None

    def is_product(self, node: ir.Node) -> bool:
        """Whether it is a Mul, or a Div."""
        return is_operator(node, "Mul", "Div")

    def operands(self, node: ir.Node) -> Sequence[ir.Value]:
        """The inputs that are there."""
        return [value for value in node.inputs if value is not None]

    def result(self, node: ir.Node) -> ir.Value:
        """The first output; the further ones of a batch norm are unused at inference."""
        return node.outputs[0]

    def producer(self, value: ir.Value) -> ir.Node | None:
        """The node that computes the value."""
        return value.producer()

    def users(self, value: ir.Value) -> Sequence[ir.Node]:
        """The nodes that use the value, those in subgraphs included."""
        return [use.node for use in value.uses()]

    def is_output(self, value: ir.Value) -> bool:
        """Whether it is an output of a graph."""
        return value.is_graph_output()

    def kind(self, node: ir.Node) -> str:
        """The operator's type."""
        return node.op_type

    def node_name(self, node: ir.Node) -> str:
        """The node's name, or that of its output."""
        return node_name(node)

    def layer_name(self, layers: Sequence[OnnxStage], bias: ir.Value | None) -> str:
        """By the names of weights, of the bias, or the exporter's notes."""
        return layer_name(tuple(layers), bias)


def _bias_of_matmul(node: ir.Node, match: Match[ir.Node, ir.Value]) -> OnnxStage | None:
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
