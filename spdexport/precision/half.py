"""Half precision: weights and all that is between operators become float16, inputs and outputs stay as they are.

Which operators take float16 is read from their schemas; those that do not, and those of domains that onnx does not
know, compute in float32 between two casts. Weights are rounded to the nearest number of float16, ties to even.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from spdexport.precision.unstorable import Unstorable, in_memory
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.precision.kinds import Precision

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT

LARGEST = float(np.finfo(np.float16).max)

_DTYPES = ("dtype", "to", "output_dtype")
"""Attributes that name the dtype of a node's output."""


def halved(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a model in half precision.

    Args:
        model: A model in float32.
        precision: With the nodes that stay in float32.

    Raises:
        Unstorable: A weight is beyond what float16 holds, or the model is of other dtypes.
    """
    made = ir.from_proto(in_memory(model, "the conversion to half precision"))
    with quiet():
        ShapeInferencePass(check_type=False, strict_mode=False)(made)
    return _Halving(made, frozenset(precision.left)).run()


class _Halving:
    """The state of one conversion.

    Args:
        model: The model, which is changed.
        left: Names of nodes that stay in float32.
    """

    def __init__(self, model: ir.Model, left: frozenset[str]) -> None:
        self._model, self._graph, self._left = model, model.graph, left
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._halves: set[ir.Value] = set()
        """Values that are float16 now."""
        self._opset = model.opset_imports.get("", 1)

    def run(self) -> ir.Model:
        """Convert it."""
        graph = self._graph
        initial = {value for value in graph.initializers.values() if value.const_value is not None}
        if not any(v.const_value is not None and v.const_value.dtype == SINGLE for v in initial):
            raise Unstorable("it has no weights in float32")
        outputs = [(index, value) for index, value in enumerate(graph.outputs) if value.dtype == SINGLE]
        for value in initial:
            self._store(value)
        for node in list(graph):
            self._convert(node)
        for index, value in outputs:
            if value in self._halves:
                self._give_back(index, value)
        return self._model

    def _store(self, value: ir.Value) -> None:
        """Store a weight in float16 where all that read it take that."""
        tensor, uses = value.const_value, tuple(value.uses())
        if tensor is None or tensor.dtype != SINGLE or value.is_graph_input() or value.is_graph_output():
            return
        if uses and all(self._wanted(use.node, use.idx) is HALF for use in uses):
            value.const_value = ir.Tensor(_half(tensor.numpy(), value.name or ""), name=value.name)
            value.dtype = HALF
            self._halves.add(value)

    def _wanted(self, node: ir.Node, index: int) -> ir.DataType:
        """The dtype in which a node is to read an input; at -1, in which it is to give its outputs."""
        can = self._takes(node)
        return HALF if node.name not in self._left and can(index) and can(-1) else SINGLE

    def _convert(self, node: ir.Node) -> None:
        """Let a node compute in float16 where it can."""
        for index, value in enumerate(node.inputs):
            if value is None or (value.dtype != SINGLE and value not in self._halves):
                continue
            wanted = self._wanted(node, index)
            if (value in self._halves) != (wanted is HALF):
                node.replace_input_with(index, self._as(value, wanted, node))
        is_half = self._wanted(node, -1) is HALF
        for name in _DTYPES:
            attribute = node.attributes.get(name)
            is_single = attribute is not None and attribute.type == ir.AttributeType.INT
            if is_half and is_single and attribute is not None and attribute.as_int() == SINGLE.value:
                node.attributes[name] = ir.AttrInt64(name, HALF.value)
        for name, attribute in list(node.attributes.items()):
            if is_half and node.op_type in ("Constant", "ConstantOfShape"):
                node.attributes[name] = _half_attribute(attribute)
        made = [v for v in node.outputs if v.dtype == SINGLE]
        if is_half:
            for value in made:
                value.dtype = HALF
                self._halves.add(value)

    def _takes(self, node: ir.Node) -> Callable[[int], bool]:
        """Whether a node takes float16 at an input, or at -1: whether it gives float16."""
        if node.domain not in ("", "ai.onnx"):
            return lambda _: False
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        except onnx.defs.SchemaError:
            return lambda _: False
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

        def can(index: int) -> bool:
            if index < 0:
                return all(_holds(allowed, formal.type_str) for formal in schema.outputs)
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            return _holds(allowed, formal.type_str)

        return can

    def _as(self, value: ir.Value, wanted: ir.DataType, node: ir.Node) -> ir.Value:
        """A value in another of the two dtypes: a weight anew, anything else through a cast in front of a node."""
        if (value, wanted) in self._casts:
            return self._casts[value, wanted]
        if value.is_initializer() and not value.is_graph_input():
            made = self._weight(value)
        else:
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", wanted.value)], num_outputs=1)
            made = cast.outputs[0]
            made.name, made.dtype, made.shape = f"{value.name}_as_{wanted.name.lower()}", wanted, value.shape
            self._graph.insert_before(node, cast)
        if wanted is HALF:
            self._halves.add(made)
        self._casts[value, wanted] = made
        return made

    def _weight(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None, "an initializer has a value"
        name = f"{value.name}_float16"
        tensor = ir.Tensor(_half(value.const_value.numpy(), value.name or ""), name=name)
        made = ir.Value(name=name, type=ir.TensorType(HALF), shape=value.shape, const_value=tensor)
        self._graph.initializers[name] = made
        return made

    def _give_back(self, index: int, value: ir.Value) -> None:
        """Cast an output of the model back to float32, under the name that it has."""
        name = value.name
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", SINGLE.value)], num_outputs=1)
        made = cast.outputs[0]
        value.name = f"{name}_as_float16"
        made.name, made.dtype, made.shape = name, SINGLE, value.shape
        self._graph.append(cast)
        self._graph.outputs[index] = made


def _holds(allowed: dict[str, set[str]], type_str: str) -> bool:
    """Whether a formal parameter may be float16, or is never a float."""
    types = allowed.get(type_str, {type_str})
    return "tensor(float16)" in types or "tensor(float)" not in types


def _half(array: np.ndarray, name: str) -> np.ndarray:
    largest = float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0.0))
    with np.errstate(over="ignore"):
        made = array.astype(np.float16)
    if largest > LARGEST or (np.isinf(made) & np.isfinite(array)).any():
        raise Unstorable(f"its weight {name} has {largest:.4g}, and float16 ends at {LARGEST:.0f}")
    return made


def _half_attribute(attribute: ir.Attr) -> ir.Attr:
    match attribute.type:
        case ir.AttributeType.TENSOR if attribute.as_tensor().dtype == SINGLE:
            array = _half(attribute.as_tensor().numpy(), attribute.name)
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS if attribute.name.startswith("value_float"):
            array = _half(np.asarray(attribute.value, np.float32), attribute.name)
        case _:
            return attribute
    return ir.AttrTensor("value", ir.Tensor(array))
