"""The precision that a file computes in: the coarsest of its float types that a node rounds to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.factors import unit_rounding
from spdexport.reference.noise import FLOAT32
from spdexport.reference.rounding_onnx import EXACT

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONVERSIONS = frozenset(("Cast", "CastLike", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"))
"""What weights of a shorter type pass on their way to where they are computed with; their rounding is their own."""


def file_unit_rounding(model: ir.Model) -> float:
    """Return u of the coarsest type that a file computes in, of 16 bits or more; that of float32 where none is told.

    A weight that is only stored in a shorter type, and cast before it is used, makes no result less exact.
    """
    kinds = {
        dtype
        for graph in model.graphs()
        for node in graph
        if node.op_type not in _CONVERSIONS and node.op_type not in EXACT
        for value in (*node.inputs, *node.outputs)
        for dtype in _types(value)
        if dtype.is_floating_point() and dtype.bitwidth >= 16
    }
    return max((unit_rounding(dtype.numpy()) for dtype in kinds), default=FLOAT32)


def _types(value: ir.Value | None) -> Iterator[ir.DataType]:
    """The type of a value, as far as the file tells it."""
    if value is None:
        return
    if value.dtype is not None:
        yield value.dtype
    elif value.const_value is not None:
        yield value.const_value.dtype
    elif (node := value.producer()) is not None and node.op_type == "Cast":
        yield ir.DataType(node.attributes.get_int("to", ir.DataType.UNDEFINED))
    elif node is not None and node.op_type == "DequantizeLinear":
        yield from _types(node.inputs[1])
