"""What graphs take and give, compared; and words for values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.names import count, shape_of
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.weight_values import Mismatch

if TYPE_CHECKING:
    from spdexport.conv import Array


def compare_ports(file: ir.Graph, plain: ir.Graph, *, named: bool) -> Mismatch | None:
    """Return the first difference of the inputs and outputs of two models: names, types, shapes, defaults.

    Args:
        file: The file's graph.
        plain: The one that is right.
        named: Whether sizes count, by the names of axes too.
    """
    for kind, values, wanted in (("input", file.inputs, plain.inputs), ("output", file.outputs, plain.outputs)):
        got, expected = [_port(v, sized=named) for v in values], [_port(v, sized=named) for v in wanted]
        if got != expected:
            what = f"the file's {kind}s are {', '.join(got)} where {', '.join(expected)} is right"
            return Mismatch(layer=kind, what=what, structural=True)
    for value, target in zip(file.inputs, plain.inputs, strict=True):
        mine, theirs = value.const_value, target.const_value
        name = value.name or ""
        if (mine is None) != (theirs is None):
            what = f"the input {name} has {'no' if mine is None else 'a'} default, and should have "
            return Mismatch(layer=name, what=what + ("none" if theirs is None else "one"), structural=True)
        if mine is not None and theirs is not None:
            held, right = mine.numpy(), theirs.numpy()
            if not alike(held, right) or held.tobytes() != right.tobytes():
                what = f"the default of the input {name} is not the one that is right"
                return Mismatch(layer=name, what=what, structural=False)
    return None


def compare_body_ports(file: ir.Graph, plain: ir.Graph, index: int) -> Mismatch | None:
    """Return the first difference of what two bodies take and give; types count where both have one."""
    if len(file.inputs) != len(plain.inputs):
        what = f"body {index} takes {count(len(file.inputs), 'value')} where {len(plain.inputs)} is right"
        return Mismatch(layer="", what=what, structural=True)
    for mine, right in (*zip(file.inputs, plain.inputs, strict=True), *zip(file.outputs, plain.outputs, strict=False)):
        if mine.type is not None and right.type is not None and mine.type != right.type:
            what = f"{mine.name} is {mine.type} where {right.type} is right"
            return Mismatch(layer="", what=what, structural=True)
    return None


def _port(value: ir.Value, *, sized: bool) -> str:
    shape = "?" if value.shape is None else shape_of(value.shape)
    kind = value.type if not isinstance(value.type, ir.TensorType) else value.dtype
    return f"{value.name} ({kind} of shape {shape})" if sized else f"{value.name} ({kind})"


def alike(mine: Array, theirs: Array) -> bool:
    """Return whether two arrays have one shape and dtype."""
    return mine.shape == theirs.shape and mine.dtype == theirs.dtype


def type_of(values: Array) -> str:
    """Return dtype and shape in words."""
    return f"{values.dtype} of shape {shape_of(values.shape)}"


def short(text: str) -> str:
    """Return a text, or the beginning of a long one."""
    return text if len(text) <= 120 else f"{text[:100]}..."


def origin(value: ir.Value | None) -> str:
    """Return where a value comes from, in words."""
    if value is None:
        return "nothing"
    node = value.producer()
    if node is None:
        return f"{'the input' if value.is_graph_input() else 'the constant'} {value.name}"
    return f"the output of {layer_at(node) or layer_of(node)} ({node.op_type})"
