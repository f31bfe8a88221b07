"""A torch graph as the recognition of layers asks about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.fx import Node

from spdexport.arrays import to_numpy
from spdexport.forms import Stage
from spdexport.names import layer_of_parameter
from spdexport.rewrite.constants import Constants
from spdexport.rewrite.stages import ReadStage, Unreadable, affine_stage, not_per_channel, per_channel
from spdexport.rewrite.torch_graph import PRODUCTS, arguments, conv_spec, module_path, operands, spatial_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.rewrite.match import Match

aten = torch.ops.aten

# An operator that changes its first operand is the same as one that does not, where nothing else uses that operand;
# and whatever is inside a fold is used nowhere else.
PRODUCT = (aten.mul.Tensor, aten.mul_.Tensor)
SUM = (aten.add.Tensor, aten.add_.Tensor)

TorchStage: TypeAlias = ReadStage[Node, Node]


class TorchReader:
    """Reads nodes of an ExportedProgram; a node is also the value that it computes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._constants = Constants(program)
        self._changed = _changed_in_place(program.graph)

    def layer(self, node: Node) -> TorchStage | Unreadable | None:
        """A convolution, linear layer or matrix product."""
        axes = spatial_axes(node) if node.op == "call_function" else None
        if axes is None:
            return None
        args, given = arguments(node), operands(node)
        if not isinstance(given.data, Node) or self.array(given.data) is not None:
            return None
        weight = self.array(given.weight)
        if node.target in PRODUCTS:
            if weight is None:
                return None
            weight = weight.T
        if weight is None:
            return Unreadable(reason="its weight is not constant")
        if weight.dtype.kind in "iubc":  # ml_dtypes' floats are of kind V
            return Unreadable(reason=f"its weight has the type {weight.dtype}")
        if args.get("transposed"):
            return Unreadable(reason="it is a transposed convolution")
        if args.get("alpha", 1) != 1 or args.get("beta", 1) != 1:
            return Unreadable(reason="its product or its bias is scaled")
        bias = None if given.bias is None else self.array(given.bias)
        if given.bias is not None and bias is None:
            return Unreadable(reason="its bias is not constant")
        if weight.ndim != axes + 2 or (bias is not None and bias.shape != weight.shape[:1]):
            return Unreadable(reason="its weight or its bias has an unusual shape")
        stage = Stage(spec=conv_spec(axes, weight.shape, args), weight=weight, bias=bias)
        return ReadStage(node=node, data=given.data, stage=stage, weight=given.weight, bias=given.bias)

    def affine(self, node: Node, channels: int, axes: int) -> TorchStage | Unreadable | None:
        """A product with, or a sum with, a constant."""
        if node.op != "call_function" or node.target not in (*PRODUCT, *SUM):
            return None
        args, is_product = arguments(node), self.is_product(node)
        left, right = args["self"], args["other"]
        if args.get("alpha", 1) != 1:
            return None
        values = self.array(right)
        data, constant = left, right
        if values is None:
            values, data, constant = self.array(left), right, left
        if values is None or not isinstance(data, Node) or self.array(data) is not None:
            return None
        before, after = data.meta["val"], node.meta["val"]
        if before.dtype != after.dtype:
            return Unreadable(reason="the type changes between the layers")
        numbers = per_channel(values, channels, axes=axes, rank=before.ndim)
        if numbers is None:
            return not_per_channel(product=is_product)
        if is_product:
            return ReadStage(node=node, data=data, stage=affine_stage(channels, axes, mask=numbers))
        bias = constant if isinstance(constant, Node) else None
        return ReadStage(node=node, data=data, stage=affine_stage(channels, axes, bias=numbers), bias=bias)

    def behind(self, node: Node, match: Match[Node, Node]) -> TorchStage | None:  # noqa: ARG002 - the protocol's
        """Nothing: in a torch graph a bias is an argument of the layer, and batch norm a layer of its own."""
        return None

    def addends(self, node: Node) -> tuple[Node, Node] | None:
        """The operands of an addition of two tensors."""
        if node.op != "call_function" or node.target not in SUM:
            return None
        args = arguments(node)
        left, right = args["self"], args["other"]
        if args["alpha"] != 1 or not isinstance(left, Node) or not isinstance(right, Node):
            return None
        return left, right

    def is_product(self, node: Node) -> bool:
        """Whether it is a multiplication."""
        return node.op == "call_function" and node.target in PRODUCT

    def operands(self, node: Node) -> Sequence[Node]:
        """The nodes among its arguments, a layer's data first."""
        if node.op == "call_function" and spatial_axes(node) is not None:
            return [value for value in operands(node) if isinstance(value, Node)]
        return node.all_input_nodes

    def result(self, node: Node) -> Node:
        """The node itself."""
        return node

    def producer(self, value: Node) -> Node | None:
        """The node itself, if it computes something."""
        return value if value.op == "call_function" else None

    def users(self, value: Node) -> Sequence[Node]:
        """The nodes that use it."""
        return list(value.users)

    def is_output(self, value: Node) -> bool:
        """Whether the program gives it out, or writes it into a buffer or an input."""
        return any(user.op == "output" for user in value.users)

    def kind(self, node: Node) -> str:
        """The operator, such as ``conv2d``."""
        return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")

    def node_name(self, node: Node) -> str:
        """The node's name."""
        return node.name

    def layer_name(self, layers: Sequence[TorchStage], bias: Node | None) -> str:
        """The parent of the last weight that has one: ``conv1`` for ``conv1.U``; else of the bias; else the module."""
        last, *others = (layer.weight for layer in reversed(layers))
        for node in (last, bias, *others):
            name = self.target(node)
            if "." in name:
                return layer_of_parameter(name)
        return module_path(layers[-1].node) or layers[-1].node.name

    def target(self, node: Node | None) -> str:
        """The name of the parameter or buffer that a constant is, or is made of; empty where there is none."""
        while node is not None and node.op != "placeholder":
            node = next(iter(node.all_input_nodes), None)
        return "" if node is None else self._constants.target(node) or ""

    def array(self, value: Any) -> Array | None:
        """What an argument holds if it is the same for every input, else None; never write to it."""
        if isinstance(value, bool | int | float):
            return np.asarray(value)
        if not isinstance(value, Node) or not self._constants.is_constant(value) or self._is_changed(value):
            return None
        tensor = self._constants.value(value)
        return to_numpy(tensor) if isinstance(tensor, torch.Tensor) else None

    def _is_changed(self, node: Node) -> bool:
        return node in self._changed or any(self._is_changed(source) for source in node.all_input_nodes)


def is_in_place(node: Node) -> bool:
    """Whether an operator changes the numbers of one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return (
        node.op == "call_function" and getattr(schema, "is_mutable", False) and node.target is not aten.detach_.default
    )


def _changed_in_place(graph: torch.fx.Graph) -> set[Node]:
    """All nodes whose memory some operator of the graph writes to, views of it included.

    A program of torch.export may still hold such operators, and its signature does not tell of them.
    """
    changed: set[Node] = set()
    pending = []
    for node in graph.nodes:
        if is_in_place(node):
            args = arguments(node)
            written = [a.name for a in node.target._schema.arguments if a.alias_info and a.alias_info.is_write]
            pending += [args[name] for name in written]
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in changed:
            continue
        changed.add(node)
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        if any(value.alias_info is not None for value in returns):
            pending += node.all_input_nodes
    return changed
