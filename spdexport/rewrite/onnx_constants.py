"""Constants of an ONNX graph: which values are constant, what they hold, and whether that is one number per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.forms.deferred import Deferred

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.forms.deferred import Numbers

_READABLE_CONSTANTS = {"value", "value_float", "value_floats", "value_int", "value_ints"}
"""The attributes of a Constant node that hold a dense tensor of numbers."""


def constant(value: ir.Value | None) -> Array | None:
    """Return what a value holds if it is the same for every input, else None.

    Constant are initializers that no caller can override, Constant nodes, and Identity, Cast, DequantizeLinear,
    Reshape, Squeeze, Transpose and Unsqueeze of these.

    Returns:
        The array in the value's own dtype, a view where that can be had: never write to it.
    """
    if value is None or value.is_graph_input():  # an initializer that is an input too is only a default
        return None
    node = value.producer()
    if node is None:
        return None if value.const_value is None else value.const_value.numpy()
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        if not node.attributes.keys() <= _READABLE_CONSTANTS:
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    if node.op_type not in ("Identity", "Cast", "DequantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
        return None
    array = constant(node.inputs[0])
    return None if array is None else _evaluated(node, array)


def numbers(value: ir.Value | None) -> Numbers | None:
    """Return what ``constant`` does; what an initializer computes when read is computed when asked for."""
    tensor = _lazy(value)
    return constant(value) if tensor is None else Deferred(tuple(tensor.shape.numpy()), tensor.numpy)


def dtype_of(value: ir.Value | None) -> np.dtype[Any]:
    """Return the dtype of what ``constant`` gives of a value that is constant.

    Computed numbers are not computed for it.
    """
    tensor = _lazy(value)
    if tensor is not None:
        return np.dtype(tensor.dtype.numpy())
    array = constant(value)
    assert array is not None, "the caller knows it to be constant"
    return array.dtype


def _lazy(value: ir.Value | None) -> ir.LazyTensor | None:
    """The tensor of an initializer that no caller can override, where it computes its numbers."""
    if value is None or value.is_graph_input() or value.producer() is not None:
        return None
    return value.const_value if isinstance(value.const_value, ir.LazyTensor) else None


def _evaluated(node: ir.Node, array: Array) -> Array | None:
    """The result of one of the operators that ``constant`` looks through, on a constant operand."""
    attributes = node.attributes
    match node.op_type:
        case "Identity":
            return array
        case "Cast":
            target = ir.DataType(attributes["to"].as_int())
            return array.astype(target.numpy()) if target.is_floating_point() else None
        case "DequantizeLinear":
            return _dequantized(node, array)
        case "Transpose":
            return np.transpose(array, attributes.get_ints("perm"))
        case "Reshape":
            shape = constant(node.inputs[1])
            if shape is None:
                return None
            sizes = [int(size) for size in shape]
            if not attributes.get_int("allowzero", 0):
                sizes = [array.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
            return array.reshape(sizes)
        case _:  # Squeeze and Unsqueeze
            axes = axes_of(node)
            if axes is None:
                return None
            return np.expand_dims(array, axes) if node.op_type == "Unsqueeze" else np.squeeze(array, axes)


def _dequantized(node: ir.Node, array: Array) -> Array | None:
    """``(x - zero_point) * scale``, with one scale or one for each index of an axis; None where there are blocks."""
    scale = constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = constant(given)
    blocks = node.attributes.get_int("block_size", 0)
    if scale is None or blocks or (given is not None and zero_point is None):
        return None
    shape = [1] * array.ndim
    if scale.size != 1:
        shape[node.attributes.get_int("axis", 1)] = scale.size
    # In a type that holds every difference of the stored one, and is exact in the float types that scales have.
    wide = np.dtype(np.int64) if array.dtype.kind in "iu" else np.dtype(np.float32)
    difference: Array = array.astype(wide)
    if zero_point is not None:
        difference = difference - zero_point.astype(wide).reshape(shape if zero_point.size != 1 else [1] * array.ndim)
    dequantized: Array = difference.astype(scale.dtype) * scale.reshape(shape)
    return dequantized


def source_of(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer, or the output of a Constant node, that a constant is made of."""
    while value is not None and (node := value.producer()) is not None and node.op_type != "Constant":
        value = node.inputs[0] if node.inputs else None
    return value


def axes_of(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of an operator, its second input or, before, an attribute.

    None where not given or not constant.
    """
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant(node.inputs[1])
        return None if axes is None else tuple(int(axis) for axis in axes.reshape(-1))
    return tuple(node.attributes.get_ints("axes", ())) or None
