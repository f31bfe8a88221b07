"""A torch graph as the recognition of layers asks about it."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch.fx import Node

from spdexport.arrays import to_numpy
from spdexport.conv import canonical_weight
from spdexport.forms import Stage
from spdexport.names import layer_of_parameter
from spdexport.rewrite.constants import ASSERTIONS, Constants, is_in_place
from spdexport.rewrite.stages import (
    OTHER_CHANNELS,
    RETYPED,
    Addend,
    ReadStage,
    Unreadable,
    affine_stage,
    arithmetic_stage,
    negative_stage,
    norm_stage,
    not_per_channel,
    per_channel,
)
from spdexport.rewrite.torch_graph import (
    PRODUCTS,
    arguments,
    conv_spec,
    inner_sizes,
    is_geometry_computed,
    is_transposed,
    module_path,
    operands,
    spatial_axes,
)
from spdexport.rewrite.torch_links import HANDING_ON, PADDINGS, passed, read_changed, read_filling, read_pad, read_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSpec
    from spdexport.rewrite.match import Match
    from spdexport.rewrite.stages import Filling, OddBorder

aten = torch.ops.aten

# An operator that changes its first operand is the same as one that does not, where nothing else uses that operand;
# and whatever is inside a fold is used nowhere else.
PRODUCT = (aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor)
SUM = {aten.add.Tensor: 1.0, aten.add_.Tensor: 1.0, aten.sub.Tensor: -1.0, aten.sub_.Tensor: -1.0}
"""Operators that add two tensors, and the sign of the second."""
REVERSED = (aten.rsub.Scalar, aten.rsub.Tensor)
"""Operators that take the first operand from the second."""
NEGATIONS = (aten.neg.default, aten.neg_.default)
ARITHMETIC = {
    aten.mul.Tensor: "Mul",
    aten.mul_.Tensor: "Mul",
    aten.div.Tensor: "Div",
    aten.div_.Tensor: "Div",
    aten.add.Tensor: "Add",
    aten.add_.Tensor: "Add",
    aten.sub.Tensor: "Sub",
    aten.sub_.Tensor: "Sub",
    aten.mul.Scalar: "Mul",
    aten.div.Scalar: "Div",
    aten.add.Scalar: "Add",
    aten.sub.Scalar: "Sub",
    aten.rsub.Scalar: "Sub",
    aten.rsub.Tensor: "Sub",
}
"""Arithmetic, by what ONNX calls it."""

TorchStage: TypeAlias = ReadStage[Node, Node]


class TorchReader:
    """Reads nodes of an ExportedProgram; a node is also the value that it computes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._constants = Constants(program)

    def layer(self, node: Node) -> TorchStage | Unreadable | None:
        """Return a convolution, linear layer or matrix product."""
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
        if args.get("alpha", 1) != 1 or args.get("beta", 1) != 1:
            return Unreadable(reason="its product or its bias is scaled")
        bias = None if given.bias is None else self.array(given.bias)
        if given.bias is not None and bias is None:
            return Unreadable(reason="its bias is not constant")
        if is_geometry_computed(node):
            return Unreadable(reason="its geometry depends on the input")
        transposed = is_transposed(node)
        if transposed:
            weight = canonical_weight(weight, args["groups"])
        if weight.ndim != axes + 2 or (bias is not None and bias.shape != weight.shape[:1]):
            return Unreadable(reason="its weight or its bias has an unusual shape")
        try:
            stage = Stage(spec=conv_spec(axes, weight.shape, args, transposed=transposed), weight=weight, bias=bias)
        except ValueError as error:
            return Unreadable(reason=f"its arguments do not fit its weight: {error}")
        return ReadStage(node=node, data=given.data, stage=stage, weight=given.weight, bias=given.bias)

    def spec(self, node: Node) -> ConvSpec:
        """Return the geometry of a layer that was read before."""
        layer = self.layer(node)
        assert isinstance(layer, ReadStage)
        return layer.stage.spec

    def affine(self, node: Node, channels: int, axes: int) -> TorchStage | Unreadable | None:
        """Arithmetic with a constant, a padding, or batch norm in inference, which may give its result in a tuple."""
        if node.op != "call_function":
            return None
        if node.target is operator.getitem and is_norm(node.args[0]) and node.args[1] == 0:
            return ReadStage(node=node, data=cast("Node", node.args[0]), stage=affine_stage(channels, axes))
        if is_norm(node):
            return self._norm(node, channels, axes)
        if node.target in PADDINGS:
            return read_pad(node, channels, axes)
        if node.target in HANDING_ON:
            return read_changed(node)
        if node.target in NEGATIONS:
            data = cast("Node", node.args[0])
            return ReadStage(node=node, data=data, stage=negative_stage(channels, axes))
        if node.target not in ARITHMETIC:
            return None
        args, is_product = arguments(node), self.is_product(node)
        left, right = args["self"], args["other"]
        if node.target in REVERSED:
            left, right = right, left
        if args.get("alpha", 1) != 1:
            return None
        values = self.array(right)
        data, constant = left, right
        if values is None:
            values, data, constant = self.array(left), right, left
        if values is None or not isinstance(data, Node) or self.array(data) is not None:
            return None
        name = ARITHMETIC[node.target]
        if name == "Div" and (data is right or not values.all()):
            return None
        before, after = data.meta["val"], node.meta["val"]
        if before.dtype != after.dtype:
            return Unreadable(reason=RETYPED)
        numbers = per_channel(values, channels, axes=axes, rank=before.ndim)
        if numbers is None:
            return not_per_channel(product=is_product)
        stage = arithmetic_stage(name, numbers, axes, constant_first=data is right)
        bias = constant if isinstance(constant, Node) and name == "Add" else None
        return ReadStage(node=node, data=data, stage=stage, bias=bias)

    def _norm(self, node: Node, channels: int, axes: int) -> TorchStage | Unreadable:
        args = arguments(node)
        data = args["input"]
        if args.get("training"):
            return Unreadable(reason="the batch norm between is in training mode", is_norm=True)
        if axes == 0 and data.meta["val"].ndim != 2:
            return Unreadable(
                reason="the batch norm between does not act on the channels of the linear layer", is_norm=True
            )
        given = [args[name] for name in ("weight", "bias", "running_mean", "running_var")]
        arrays = [None if value is None else self.array(value) for value in given]
        if any(value is not None and array is None for value, array in zip(given, arrays, strict=True)):
            return Unreadable(reason="the batch norm between is not constant", is_norm=True)
        if any(array is not None and array.shape != (channels,) for array in arrays):
            return Unreadable(reason=OTHER_CHANNELS, is_norm=True)
        stage = norm_stage(channels, axes, arrays, args["eps"])
        return ReadStage(node=node, data=data, stage=stage, is_norm=True)

    def addends(self, node: Node) -> Sequence[Addend[Node]] | None:
        """Return the operands of an addition or subtraction of two tensors of one dtype, ``alpha`` times the second."""
        if node.op != "call_function" or node.target not in SUM:
            return None
        args = arguments(node)
        left, right, alpha = args["self"], args["other"], args["alpha"]
        if not isinstance(alpha, int | float) or not isinstance(left, Node) or not isinstance(right, Node):
            return None
        if left.meta["val"].dtype != right.meta["val"].dtype or any(map(self._constants.is_constant, (left, right))):
            return None
        return Addend(left, 1.0), Addend(right, SUM[node.target] * alpha)

    def behind(self, node: Node, match: Match[Node, Node]) -> TorchStage | None:  # noqa: ARG002 - the protocol's
        """Nothing: the normal form in which two files are compared is one of ONNX graphs."""
        return None

    def passed(self, node: Node) -> Node | None:
        """Return what a dropout, a view or a copy hands on."""
        value = passed(node)
        return None if value is None or self._constants.is_constant(value) else value

    def pool(self, node: Node, channels: int, axes: int) -> TorchStage | Unreadable | None:
        """Average pooling."""
        return read_pool(node, channels, axes)

    def filled(self, node: Node) -> Filling[Node, Node] | OddBorder[Node] | None:
        """Return a padding with zeros into whose border something is written in place."""
        return read_filling(node, self.array)

    def writes(self, node: Node) -> bool:
        """Return whether it changes its first operand in place."""
        return is_in_place(node)

    def locations(self, value: Node, axes: int) -> int | None:
        """Return it as the traced input has it."""
        return math.prod(inner_sizes(value, axes)) if isinstance(value.meta.get("val"), torch.Tensor) else None

    def is_product(self, node: Node) -> bool:
        """Return whether it is a multiplication or division."""
        return node.op == "call_function" and node.target in PRODUCT

    def operands(self, node: Node) -> Sequence[Node]:
        """Return the nodes among its arguments, a layer's data first."""
        if node.op == "call_function" and spatial_axes(node) is not None:
            return [value for value in operands(node) if isinstance(value, Node)]
        return node.all_input_nodes

    def result(self, node: Node) -> Node:
        """Return the node itself."""
        return node

    def producer(self, value: Node) -> Node | None:
        """Return the node itself, if it computes something."""
        return value if value.op == "call_function" else None

    def users(self, value: Node) -> Sequence[Node]:
        """Return the nodes that use it; those that only look at its type do not."""
        return [user for user in value.users if user.target not in ASSERTIONS]

    def is_output(self, value: Node) -> bool:
        """Return whether the program gives it out, or writes it into a buffer or an input."""
        return any(user.op == "output" for user in value.users)

    def kind(self, node: Node) -> str:
        """Return the operator, such as ``conv2d``."""
        return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")

    def node_name(self, node: Node) -> str:
        """Return the node's name."""
        return node.name

    def layer_name(self, layers: Sequence[TorchStage], bias: Node | None) -> str:
        """Return the parent of the last weight that has one: ``conv1`` for ``conv1.U``; else of the bias.

        Else the module.
        """
        last, *others = (layer.weight for layer in reversed(layers))
        for node in (last, bias, *others):
            name = self.target(node)
            if "." in name:
                return layer_of_parameter(name)
        return module_path(layers[-1].node) or layers[-1].node.name

    def target(self, node: Node | None) -> str:
        """Return the name of the parameter or buffer that a constant is, or is made of; empty where there is none."""
        while node is not None and node.op != "placeholder":
            node = next(iter(node.all_input_nodes), None)
        return "" if node is None else self._constants.target(node) or ""

    def array(self, value: Any) -> Array | None:
        """Return what an argument holds if it is the same for every input, else None; never write to it."""
        if isinstance(value, bool | int | float):
            return np.asarray(value)
        if not isinstance(value, Node) or not self._constants.is_constant(value):
            return None
        tensor = self._constants.value(value)
        return to_numpy(tensor) if isinstance(tensor, torch.Tensor) else None


def is_norm(node: Any) -> bool:
    """Return whether a node is batch norm; of an operator that trains too, ``training`` tells."""
    norms = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    return isinstance(node, Node) and node.op == "call_function" and node.target in norms
