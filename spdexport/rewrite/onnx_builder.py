"""The operators that forms, masks and gates are made of, in an ONNX graph.

Those that only masks at run time and gates need are written as from opset 13 on, where axes are operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.conv import stored_weight
from spdexport.names import layer_of_call
from spdexport.rewrite.onnx_graph import conv_attributes, is_operator
from spdexport.rewrite.onnx_names import node_name
from spdexport.rewrite.onnx_place import become
from spdexport.rewrite.onnx_scopes import home, scope_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, ConvSite
    from spdexport.forms import Stage
    from spdexport.rewrite.onnx_edit import OnnxEdit

OPTIONAL_BIAS = 11
"""The opset from which a Gemm may have two inputs only."""

REDUCED_BY_OPERANDS = 18
"""The opset from which ReduceMean has its axes as an operand."""

BOOLEAN = ("Equal", "Greater")
"""Operators whose result has another type than their operands."""

Operation = tuple[str, "list[ir.Value]", "tuple[ir.Attr, ...]"]
"""An operator, its inputs and its attributes."""


class OnnxNodes:
    """As ``builder.Nodes`` has it.

    Args:
        edit: The model.
        like: The node in front of which all is inserted, whose metadata and type new nodes get.
        prefix: What numbers are stored under.
        dtype: Of what is stored.
    """

    def __init__(self, edit: OnnxEdit, like: ir.Node, prefix: str, dtype: np.dtype[Any]) -> None:
        self._edit, self._like, self._prefix, self._dtype = edit, like, prefix, dtype
        self._home: ir.Graph | None = None
        self._type = ir.TensorType(ir.DataType.from_numpy(dtype))

    def insert(self, operation: Operation, part: str) -> ir.Value:  # noqa: D102
        op_type, inputs, attributes = operation
        name = f"{node_name(self._like)}.{part}"
        node = ir.Node("", op_type, inputs, attributes, num_outputs=1, name=self._edit.unique_node(name))
        node.metadata_props.update(self._like.metadata_props)
        scope_of(self._like).insert_before(self._like, node)
        value, model = node.outputs[0], self._like.outputs[0]
        value.name = self._edit.unique(f"{model.name or name}.{part}")
        value.type = ir.TensorType(ir.DataType.BOOL) if op_type in BOOLEAN else model.type or self._type
        return value

    def store(self, part: str, values: Array, *, is_parameter: bool = True) -> ir.Value:  # noqa: ARG002, D102
        return self._edit.store(f"{self._prefix}.{part}", values.astype(self._dtype, copy=False), self._home)

    def sizes(self, value: ir.Value) -> tuple[Any, ...]:  # noqa: D102
        return self._edit.sizes(value, self._prefix)

    def _operand(self, value: ir.Value | float) -> ir.Value:
        if isinstance(value, ir.Value):
            return value
        return self.store("number", np.asarray(value, dtype=np.float64))

    def _integers(self, *values: int) -> ir.Value:
        return self._edit.store(f"{self._prefix}.axes", np.asarray(values, dtype=np.int64), self._home)

    def add(self, a: ir.Value, b: ir.Value | float) -> Operation:  # noqa: D102
        return "Add", [a, self._operand(b)], ()

    def sub(self, a: ir.Value, b: ir.Value | float) -> Operation:  # noqa: D102
        return "Sub", [a, self._operand(b)], ()

    def mul(self, a: ir.Value, b: ir.Value | float) -> Operation:  # noqa: D102
        return "Mul", [a, self._operand(b)], ()

    def above(self, x: ir.Value, threshold: float) -> Operation:  # noqa: D102
        greater = self.insert(("Greater", [x, self._operand(threshold)], ()), "above")
        return "Cast", [greater], (ir.AttrInt64("to", int(ir.DataType.from_numpy(self._dtype))),)

    def chosen(self, choice: ir.Value, a: ir.Value, b: ir.Value) -> Operation:  # noqa: D102
        return "Where", [self.insert(("Equal", [choice, self._operand(0.0)], ()), "chosen"), b, a], ()

    def clamp(self, x: ir.Value, low: float | None, high: float | None) -> Operation:  # noqa: D102
        bounds = [None if bound is None else self._operand(float(bound)) for bound in (low, high)]
        return "Clip", [x, *bounds], ()  # type: ignore[list-item]  # an operand that is left out

    def relu(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Relu", [x], ()

    def leaky_relu(self, x: ir.Value, slope: float) -> Operation:  # noqa: D102
        return "LeakyRelu", [x], (ir.AttrFloat32("alpha", slope),)

    def gelu(self, x: ir.Value) -> Operation:  # noqa: D102
        scaled = self.insert(self.mul(x, 0.5**0.5), "gelu")
        grown = self.insert(self.add(self.insert(("Erf", [scaled], ()), "gelu"), 1.0), "gelu")
        return self.mul(self.insert(self.mul(x, 0.5), "gelu"), grown)

    def sigmoid(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Sigmoid", [x], ()

    def neg(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Neg", [x], ()

    def cos(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Cos", [x], ()

    def sin(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Sin", [x], ()

    def rsqrt(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Reciprocal", [self.insert(("Sqrt", [x], ()), "sqrt")], ()

    def softmax(self, x: ir.Value) -> Operation:  # noqa: D102
        return "Softmax", [x], (ir.AttrInt64("axis", -1),)

    def mean(self, x: ir.Value) -> Operation:  # noqa: D102
        kept = ir.AttrInt64("keepdims", 1)
        if self._edit.opset >= REDUCED_BY_OPERANDS:
            return "ReduceMean", [x, self._integers(-1)], (kept,)
        return "ReduceMean", [x], (ir.AttrInt64s("axes", [-1]), kept)

    def counted(self, x: ir.Value) -> Operation:  # noqa: D102
        # Zeros of its shape would be NaN where x is not finite, and so would all that follows.
        shape = self.insert(("Shape", [x], ()), "shape")
        shape.type = ir.TensorType(ir.DataType.INT64)
        one = ir.AttrTensor("value", ir.tensor(np.ones(1, dtype=self._dtype)))
        ones = self.insert(("ConstantOfShape", [shape], (one,)), "ones")
        axis = self._edit.store(f"{self._prefix}.axis", np.asarray(1, dtype=np.int64), self._home)
        return "CumSum", [ones, axis], ()

    def matmul(self, a: ir.Value, b: ir.Value) -> Operation:  # noqa: D102
        return "MatMul", [a, b], ()

    def linear(  # noqa: D102
        self, x: ir.Value, weight: Array, bias: Array | None, *, parts: tuple[str, str]
    ) -> Operation:
        product: Operation = ("MatMul", [x, self.store(parts[0], np.ascontiguousarray(weight.T))], ())
        return product if bias is None else self.add(self.insert(product, "product"), self.store(parts[1], bias))

    def grouped(  # noqa: D102
        self, x: ir.Value, weight: Array, bias: Array, *, groups: int, axes: int, parts: tuple[str, str]
    ) -> Operation:
        attributes = (ir.AttrInt64("group", groups), ir.AttrInt64s("kernel_shape", [1] * axes))
        return "Conv", [x, self.store(parts[0], weight), self.store(parts[1], bias)], attributes

    def lookup(self, table: ir.Value, index: ir.Value) -> Operation:  # noqa: D102
        return "Gather", [table, index], ()

    def concat(self, values: Sequence[ir.Value]) -> Operation:  # noqa: D102
        return "Concat", list(values), (ir.AttrInt64("axis", -1),)

    def slice(self, x: ir.Value, axis: int, begin: int, end: int) -> Operation:  # noqa: D102
        return "Slice", [x, *(self._integers(number) for number in (begin, end, axis))], ()

    def permute(self, x: ir.Value, order: Sequence[int]) -> Operation:  # noqa: D102
        return "Transpose", [x], (ir.AttrInt64s("perm", list(order)),)

    def unsqueeze(self, x: ir.Value, axis: int) -> Operation:  # noqa: D102
        return "Unsqueeze", [x, self._integers(axis)], ()

    def squeeze(self, x: ir.Value, axis: int) -> Operation:  # noqa: D102
        return "Squeeze", [x, self._integers(axis)], ()

    def heads(self, x: ir.Value, heads: int, size: int) -> Operation:  # noqa: D102
        return "Reshape", [x, self._integers(0, 0, heads, size)], ()

    def joined(self, x: ir.Value, size: int) -> Operation:  # noqa: D102
        return "Reshape", [x, self._integers(0, 0, size)], ()


class OnnxLayerNodes(OnnxNodes):
    """As ``builder.LayerNodes`` has it.

    Args:
        edit: The model.
        site: The layer.
        keeps_original: Whether the layer stays beside its form.
    """

    def __init__(self, edit: OnnxEdit, site: ConvSite, *, keeps_original: bool) -> None:
        self._site, self._node = site, edit.node(site.node)
        super().__init__(edit, self._node, layer_of_call(site.name), site.weight.dtype)
        self.name = node_name(self._node)
        self.data = edit.input_of(self._node)
        self._attributes, self._operator = tuple(self._node.attributes.values()), self._node.op_type
        self._home = home(self._node.inputs[1:2], scope_of(self._node))
        self._bias = self._own_bias()
        self._old = [value for value in self._node.inputs if value is not None]
        self._original = edit.copy(self._node, {}, self._node, "original").outputs[0] if keeps_original else None
        # The bias stays in use meanwhile, so that its initializer is kept and keeps its name.
        kept = (self.data, self._bias)
        self._node.resize_inputs(0)
        edit.release(value for value in self._old if value not in kept)

    def _own_bias(self) -> ir.Value | None:
        """The value that the layer adds, where the numbers that the site has are just its numbers."""
        node = self._node
        value = node.inputs[2] if len(node.inputs) > 2 else None
        scaled = is_operator(node, "Gemm") and node.attributes.get_float("beta", 1.0) != 1.0
        return None if scaled else value

    @property
    def output_sizes(self) -> tuple[Any, ...]:
        """Of the layer's output."""
        return self.sizes(self._node.outputs[0])

    def stage(self, data: ir.Value, stage: Stage, *, first: bool) -> Operation:  # noqa: ARG002 - no lookups here
        """Make a stage, with the layer's own operator, and its attributes where it has its geometry."""
        weight = np.asarray(stage.weight).astype(self._dtype, copy=False)
        bias: list[ir.Value] = []
        if stage.bias is not None:
            own = self._bias if stage.bias is self._site.bias else None
            bias = [own or self.store("bias", stage.bias)]
        if stage.spec.axes:
            operator = "ConvTranspose" if stage.spec.transposed else "Conv"
            # The layer's own attributes, as they are written: `auto_pad` for instance.
            same = stage.spec.moves == self._site.spec.moves
            attributes = self._attributes if same else conv_attributes(stage.spec)
            return operator, [data, self.store(stage.name, stored_weight(weight, stage.spec)), *bias], attributes
        if self._operator == "Gemm" and (bias or self._edit.opset >= OPTIONAL_BIAS):
            return "Gemm", [data, self.store(stage.name, weight), *bias], (ir.AttrInt64("transB", 1),)
        assert not bias, "a MatMul adds nothing"
        return "MatMul", [data, self.store(stage.name, weight.T)], ()

    def channel_mask(self, mask: Array, axes: int) -> ir.Value:  # noqa: D102
        return self.store("mask", mask.reshape(-1, *(1,) * axes), is_parameter=False)

    def original(self) -> ir.Value:  # noqa: D102
        assert self._original is not None, "asked for where the form has a routing"
        return self._original

    def add_input(self, keyword: str, shape: tuple[Any, ...]) -> ir.Value:  # noqa: D102
        model = self._node.outputs[0]
        return self._edit.add_input(keyword, shape, model.type or self._type)

    def become(self, operation: Operation) -> None:  # noqa: D102
        become(self._node, *operation)
        self._edit.release(self._old)
