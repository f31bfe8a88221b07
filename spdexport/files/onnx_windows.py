"""Whether the window of a convolution or pooling exists, which onnx.checker does not look at.

Strides and dilations are at least 1, as many as there are axes; groups divide the channels; a weight is of floats and
has the shape that the attributes tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from spdexport.names import count

if TYPE_CHECKING:
    from collections.abc import Mapping

CONVOLUTIONS = ("Conv", "ConvTranspose")
POOLINGS = ("AveragePool", "LpPool", "MaxPool")

_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)
_AUTO_PADS = (b"", b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID")


def check_window(
    node: onnx.NodeProto, constants: Mapping[str, tuple[int, ...]], types: Mapping[str, int]
) -> str | None:
    """Return why no runtime can run a node of the ONNX standard; None where nothing speaks against it.

    Args:
        node: Any node.
        constants: The dimensions of the constants that it may use, by name.
        types: Their types, as far as they are known.
    """
    if node.op_type in CONVOLUTIONS:
        weight = node.input[1] if len(node.input) > 1 else ""
        bias = node.input[2] if len(node.input) > 2 else ""
        if weight in types and types[weight] not in _FLOATS:
            return f"Its weight is of {onnx.TensorProto.DataType.Name(types[weight])}, and a convolution takes floats."
        return _convolution(node, constants.get(weight), constants.get(bias))
    if node.op_type in POOLINGS:
        ints = _ints(node)
        kernel = ints.get("kernel_shape", ())
        if any(size < 1 for size in kernel):
            return f"Its kernel_shape is {list(kernel)}."
        return _geometry(node, ints, len(kernel)) if kernel else None
    if node.op_type == "Gemm":
        ranks = [len(constants[name]) for name in node.input[:2] if name in constants]
        if any(rank != 2 for rank in ranks):
            return f"A matrix of the product has {next(r for r in ranks if r != 2)} axes."
    return None


def _convolution(node: onnx.NodeProto, weight: tuple[int, ...] | None, bias: tuple[int, ...] | None) -> str | None:
    ints = _ints(node)
    kernel = ints.get("kernel_shape", ())
    groups = next((a.i for a in node.attribute if a.name == "group" and not a.ref_attr_name), 1)
    if groups < 1:
        return f"Its group is {groups}."
    if weight is None:
        return _geometry(node, ints, len(kernel)) if kernel else None
    if len(weight) < 3:
        axes = "1 axis" if len(weight) == 1 else f"{len(weight)} axes"
        return f"Its weight has {axes}, and a convolution's has at least 3."
    if 0 in weight:
        return f"Its weight of {'x'.join(map(str, weight))} is empty."
    if kernel and kernel != weight[2:]:
        return f"Its kernel_shape is {list(kernel)}, and its weight's {list(weight[2:])}."
    if weight[0] % groups:
        return f"Its {weight[0]} channels are not divided by its {groups} groups."
    channels = weight[0] if node.op_type == "Conv" else weight[1] * groups
    if bias is not None and bias != (channels,):
        return f"Its bias has the dimensions {list(bias)}, and the layer {channels} channels."
    return _geometry(node, ints, len(weight) - 2)


def _geometry(node: onnx.NodeProto, ints: Mapping[str, tuple[int, ...]], axes: int) -> str | None:
    """What is wrong with strides, dilations, paddings; ``axes`` counts those that the window slides along."""
    automatic = next((a.s for a in node.attribute if a.name == "auto_pad" and not a.ref_attr_name), b"NOTSET")
    if automatic not in _AUTO_PADS:
        return f"Its auto_pad is {automatic[:40].decode(errors='replace')!r}, which ONNX does not know."
    lengths = {"strides": axes, "dilations": axes, "output_padding": axes, "pads": 2 * axes}
    for name, length in lengths.items():
        values = ints.get(name, ())
        # An empty list is the same as none.
        if values and len(values) != length and not (name == "pads" and automatic not in (b"", b"NOTSET")):
            return f"Its {name} have {count(len(values), 'number')}, and {length} are needed."
        if name in ("strides", "dilations") and any(not 1 <= value < 2**31 for value in values):
            return f"Its {name} are {list(values)}."
    return None


def _ints(node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
    return {a.name: tuple(a.ints) for a in node.attribute if a.type == onnx.AttributeProto.INTS and not a.ref_attr_name}
