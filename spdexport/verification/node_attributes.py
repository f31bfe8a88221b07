"""What the attributes of a node say, written out or left to the operator's default: for comparing two nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.rewrite.onnx_scopes import GRAPHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def attribute_names(node: ir.Node, other: ir.Node) -> list[str]:
    """Return the names of the attributes, bodies apart, that one of two nodes writes out."""
    return sorted(
        {name for n in (node, other) for name, attribute in n.attributes.items() if attribute.type not in GRAPHS}
    )


def described(node: ir.Node, name: str, opsets: Mapping[str, int]) -> str:
    """Return what an attribute says, in words that are the same if and only if it says the same.

    Args:
        node: The node.
        name: The attribute's; where the node does not write it out, its default counts.
        opsets: The versions of the operators, by domain.
    """
    attribute = node.attributes.get(name)
    if attribute is None:
        return _default(node, name, opsets)
    if attribute.is_ref():
        return f"the attribute {attribute.ref_attr_name} of the function"
    value = attribute.value
    match attribute.type:
        case ir.AttributeType.FLOAT:
            return _number(value)
        case ir.AttributeType.FLOATS:
            return f"[{', '.join(map(_number, value))}]"
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return str(list(value))
        case ir.AttributeType.TENSOR:
            return _tensor(value)
        case ir.AttributeType.TENSORS:
            return f"[{', '.join(map(_tensor, value))}]"
        case ir.AttributeType.INT | ir.AttributeType.STRING:
            return str(value)
        case _:
            # Types and sparse tensors: what a file has for them.
            return str(ir.to_proto(attribute))


def _number(value: float) -> str:
    # A file keeps float32; an export in memory has what the exporter was given.
    return str(float(np.float32(value)))


def _tensor(tensor: ir.TensorProtocol) -> str:
    array = tensor.numpy()
    held = array.tolist() if array.size <= 8 or array.dtype == object else array.tobytes()
    return f"{held!r} ({tensor.dtype} of shape {list(array.shape)})"


_WINDOWS = ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv")
_EACH_AXIS = {"dilations": 1, "strides": 1, "output_padding": 0}


def _window_default(node: ir.Node, name: str) -> str | None:
    """What the standard says of windows in words alone: its schemas have no default for what depends on the axes."""
    place = 3 if node.op_type == "QLinearConv" else 1
    weight = node.inputs[place] if len(node.inputs) > place else None
    shape = None if weight is None or weight.shape is None else list(weight.shape)
    written = node.attributes.get("kernel_shape")
    if written is not None and not written.is_ref():
        kernel: list[object] = list(written.as_ints())
    elif shape is not None and "Conv" in node.op_type:
        kernel = list(shape[2:])
    else:
        return None
    if name == "kernel_shape":
        return str(kernel)
    if name == "pads":
        return str([0] * 2 * len(kernel))
    return str([_EACH_AXIS[name]] * len(kernel)) if name in _EACH_AXIS else None


def _default(node: ir.Node, name: str, opsets: Mapping[str, int]) -> str:
    if node.op_type in _WINDOWS and (found := _window_default(node, name)) is not None:
        return found
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, opsets.get("ai.onnx") if domain == "" else None)
    if version is None or not onnx.defs.has(node.op_type, domain):
        return "nothing"
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:  # younger than the opset
        return "nothing"
    if name not in schema.attributes:
        return "nothing"
    proto = schema.attributes[name].default_value
    if proto.type == onnx.AttributeProto.UNDEFINED:
        return "nothing"
    proto.name = name
    made = ir.Node("", "default", [], [ir.serde.deserialize_attribute(proto)])
    return described(made, name, {})


def versions(nodes: Iterator[ir.Node], opsets: Mapping[str, int]) -> dict[str, int | None]:
    """Return the version of every domain that nodes are of."""
    domains = {"" if node.domain == "ai.onnx" else node.domain for node in nodes}
    return {d: opsets.get(d, opsets.get("ai.onnx") if d == "" else None) for d in sorted(domains)}
