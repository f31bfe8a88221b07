"""What stands between and beside the layers of an ONNX graph and is one convolution with them: scales, paddings, pools.

Nodes that hand a value on as it is are read here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator, rank_of, read_affine
from spdexport.rewrite.stages import (
    RESHAPED,
    RETYPED,
    ReadStage,
    Unreadable,
    negative_stage,
    padding_stage,
    pool_stage,
    zero_padding,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from spdexport.rewrite.onnx_graph import OnnxStage

RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand")
"""Operators that hand on what they are given where that already has the shape of their result."""


def passed(node: ir.Node) -> ir.Value | None:
    """Return the value that a node hands on unchanged; None for a node that may change something."""
    if not node.inputs or not is_operator(node, "Identity", "Dropout", "Cast", *RESHAPING):
        return None
    data, result = node.inputs[0], node.outputs[0]
    if data is None or constant(data) is not None:
        return None
    match node.op_type:
        case "Identity":
            same = True
        case "Dropout":
            same = not _trains(node) and not any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:])
        case "Cast":
            same = data.dtype is not None and data.dtype == node.attributes.get_int("to", -1)
        case _:
            same = _same_shape(data, result)
    return data if same else None


def _trains(node: ir.Node) -> bool:
    """Whether a Dropout may drop something: its third input says so, and it is left out at inference."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = constant(node.inputs[2])
    return training is None or bool(training.any())


def _same_shape(data: ir.Value, result: ir.Value) -> bool:
    """Whether two values have the same axes for every input, as far as the file tells; axes without a name tell not."""
    if data.shape is None or result.shape is None or len(data.shape) != len(result.shape):
        return False
    for mine, theirs in zip(data.shape, result.shape, strict=True):
        if isinstance(mine, int) or isinstance(theirs, int):
            if mine != theirs:
                return False
        elif mine.value is None or mine.value != theirs.value:
            return False
    return True


def read_link(node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
    """Arithmetic with a constant, batch norm, a sign, or a padding with zeros, as a stage.

    Args:
        node: Any node but those that hand a value on unchanged.
        channels: Channels of its output.
        axes: Spatial axes of its output; 0 where the layers around it are linear.

    Returns:
        None for other operators; ``Unreadable`` for one of these that is no affine map of the channels, and for a
        change of the shape or of the type.
    """
    if is_operator(node, "Neg") and node.inputs[0] is not None:
        return ReadStage(node=node, data=node.inputs[0], stage=negative_stage(channels, axes))
    if is_operator(node, "Pad"):
        return read_pad(node, channels, axes)
    if is_operator(node, "Cast", *RESHAPING):
        return Unreadable(reason=RETYPED if node.op_type == "Cast" else RESHAPED)
    return read_affine(node, channels, axes)


def read_pad(node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
    """Return a Pad as a stage; ``Unreadable`` where it is not one of the spatial axes with zeros."""
    data = node.inputs[0]
    if data is None:
        return None
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        return Unreadable(reason=f"the padding between is of mode {mode}, and a convolution pads with zeros")
    filled = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    unknown = len(node.inputs) > 2 and node.inputs[2] is not None and filled is None
    older: float = node.attributes.get_float("value", 0.0)
    if unknown or (filled is not None and filled.any()) or older != 0:
        return Unreadable(reason="the padding between is not of zeros")
    # Before opset 11, they are an attribute.
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("pads")
    if pads is None:
        return Unreadable(reason="the padding between is computed")
    rank = rank_of(data, axes)
    which = [*range(rank)]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        given = constant(node.inputs[3])
        if given is None:
            return Unreadable(reason="the padding between is computed")
        which = [int(axis) % rank for axis in given]
    if len(pads) != 2 * len(which):
        return Unreadable(reason="the padding between has another number of axes")
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(which):
        before[axis], after[axis] = int(pads[index]), int(pads[index + len(which)])
    padding = zero_padding(before, after, axes)
    if isinstance(padding, Unreadable):
        return padding
    return ReadStage(node=node, data=data, stage=padding_stage(channels, padding))


def read_pool(node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
    """Average pooling as a stage; ``Unreadable`` where its borders are not those of a convolution.

    The largest of one number is that number: such a MaxPool takes every other location, as a shortcut may.
    """
    if not is_operator(node, "AveragePool", "MaxPool") or node.inputs[0] is None:
        return None
    attributes = node.attributes
    kernel = tuple(attributes.get_ints("kernel_shape", ()))
    if node.op_type == "MaxPool" and (set(kernel) != {1} or any(attributes.get_ints("pads", ())) or node.outputs[1:]):
        return None
    if len(kernel) != axes:
        return Unreadable(reason="the pooling has other axes")
    if any(step != 1 for step in attributes.get_ints("dilations", (1,) * axes)):
        return Unreadable(reason="the pooling is dilated")
    if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return Unreadable(reason="the padding of the pooling depends on the input's size")
    if attributes.get_int("ceil_mode", 0):
        return Unreadable(reason="the pooling rounds the size of its output up")
    pads: Sequence[int] = attributes.get_ints("pads", (0,) * 2 * axes)
    if attributes.get_string("auto_pad", "NOTSET") == "VALID":
        pads = (0,) * 2 * axes
    if any(pads) and not attributes.get_int("count_include_pad", 0):
        return Unreadable(reason="the average pooling divides by fewer numbers at the border")
    stride = attributes.get_ints("strides", (1,) * axes)
    stage = pool_stage(channels, kernel, stride, tuple(zip(pads[:axes], pads[axes:], strict=True)))
    return ReadStage(node=node, data=node.inputs[0], stage=stage)
