"""Nodes of an ONNX graph as stages, with weights in the canonical layout.

What is read here and what becomes of it is decided elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from spdexport.conv import ConvSpec, canonical_weight
from spdexport.forms import Stage
from spdexport.forms.deferred import changed
from spdexport.rewrite.onnx_constants import constant, dtype_of, numbers
from spdexport.rewrite.stages import (
    OTHER_CHANNELS,
    ReadStage,
    Unreadable,
    arithmetic_stage,
    norm_stage,
    not_per_channel,
    per_channel,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array
    from spdexport.forms.deferred import Numbers


OnnxStage: TypeAlias = "ReadStage[ir.Node, ir.Value]"

CONVOLUTIONS = ("Conv", "ConvTranspose")
"""Operators whose weight has spatial axes."""


def is_operator(node: ir.Node | None, *op_types: str) -> bool:
    """Return whether the node is one of these operators of the ONNX standard."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def read_layer(node: ir.Node) -> OnnxStage | Unreadable | None:
    """Return a Conv, ConvTranspose, Gemm or MatMul with a constant weight as a stage.

    Returns:
        None for other operators, and for a MatMul or Gemm of two computed values, which is no layer.
    """
    if not is_operator(node, *CONVOLUTIONS, "Gemm", "MatMul"):
        return None
    data, weight_value = node.inputs[:2]
    if data is None or constant(data) is not None:
        return None
    weight = numbers(weight_value)
    if weight is None:
        return Unreadable(reason="its weight is not constant") if node.op_type in CONVOLUTIONS else None
    # Integers have no rounding to be exact to, and numpy knows the small floats only by ml_dtypes, of kind V.
    dtype = dtype_of(weight_value)
    if dtype.kind in "iub":
        return Unreadable(reason=f"its weight has the integer type {dtype}")
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(bias_value)
    if bias_value is not None and bias is None:
        return Unreadable(reason="its bias is not constant")

    match node.op_type:
        case "Conv":
            stage = _conv_stage(node, weight, bias)
        case "ConvTranspose":
            stage = _transposed_stage(node, weight, bias)
        case "Gemm":
            stage = _gemm_stage(node, weight, bias)
        case _:
            if len(weight.shape) != 2:
                return None
            stage = _linear_stage(_transpose(weight), None)
    if isinstance(stage, Unreadable):
        return stage
    return ReadStage(node=node, data=data, stage=stage, weight=weight_value, bias=bias_value)


def _conv_stage(node: ir.Node, weight: Numbers, bias: Array | None) -> Stage | Unreadable:
    kernel = weight.shape[2:]
    axes = len(kernel)
    attributes = node.attributes
    stride = tuple(attributes.get_ints("strides", (1,) * axes))
    dilation = tuple(attributes.get_ints("dilations", (1,) * axes))
    groups = attributes.get_int("group", 1)
    if tuple(attributes.get_ints("kernel_shape", kernel)) != kernel:
        return Unreadable(reason="its kernel_shape is not that of its weight")
    padding = _padding(node, kernel, stride, dilation)
    if isinstance(padding, Unreadable):
        return padding
    try:
        spec = ConvSpec(
            in_channels=weight.shape[1] * groups,
            out_channels=weight.shape[0],
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        return Stage(spec=spec, weight=weight, bias=bias)
    except ValueError as error:
        return Unreadable(reason=f"its attributes do not fit its weight: {error}")


def _transposed_stage(node: ir.Node, weight: Numbers, bias: Array | None) -> Stage | Unreadable:
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    attributes = node.attributes
    groups = attributes.get_int("group", 1)
    if tuple(attributes.get_ints("kernel_shape", kernel)) != kernel:
        return Unreadable(reason="its kernel_shape is not that of its weight")
    if "output_shape" in attributes:
        return Unreadable(reason="its output_shape decides about the padding, which depends on the input's size")
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return Unreadable(reason=f"its padding is {auto_pad}, about which runtimes of transposed convolutions disagree")
    pads = attributes.get_ints("pads", (0,) * 2 * len(kernel)) if auto_pad == "NOTSET" else (0,) * 2 * len(kernel)
    if weight.shape[0] % groups:
        return Unreadable(reason=f"its attributes do not fit its weight: {groups} groups")
    try:
        spec = ConvSpec(
            in_channels=weight.shape[0],
            out_channels=weight.shape[1] * groups,
            kernel=kernel,
            stride=tuple(attributes.get_ints("strides", ones)),
            padding=tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=False)),
            dilation=tuple(attributes.get_ints("dilations", ones)),
            groups=groups,
            transposed=True,
            output_padding=tuple(attributes.get_ints("output_padding", (0,) * len(kernel))),
        )
        canonical = changed(weight, spec.weight_shape, lambda stored: canonical_weight(stored, groups))
        return Stage(spec=spec, weight=canonical, bias=bias)
    except ValueError as error:
        return Unreadable(reason=f"its attributes do not fit its weight: {error}")


def conv_attributes(spec: ConvSpec) -> tuple[ir.Attr, ...]:
    """Return the attributes of a Conv or ConvTranspose of this geometry, each written out."""
    before, after = ([padding[side] for padding in spec.padding] for side in (0, 1))
    lists: dict[str, Sequence[int]] = {
        "dilations": spec.dilation,
        "kernel_shape": spec.kernel,
        "pads": [*before, *after],
        "strides": spec.stride,
    }
    if spec.transposed:
        lists["output_padding"] = spec.output_padding
    return (ir.AttrInt64("group", spec.groups), *(ir.AttrInt64s(name, values) for name, values in lists.items()))


def _padding(
    node: ir.Node, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...] | Unreadable:
    """Zeros before and after each spatial axis, with ``auto_pad`` resolved where it does not depend on the input."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    axes = len(kernel)
    if auto_pad == "VALID":
        return ((0, 0),) * axes
    if auto_pad == "NOTSET":
        pads = node.attributes.get_ints("pads", (0,) * 2 * axes)
        return tuple(zip(pads[:axes], pads[axes:], strict=False))
    if any(s != 1 for s in (*stride, *dilation)):
        # With a stride it depends on the input's size; for dilations runtimes do not agree, ONNX Runtime refuses them.
        return Unreadable(reason=f"its padding is {auto_pad} with a stride or dilation")
    less_and_more = [((k - 1) // 2, k // 2) for k in kernel]
    return tuple((a, b) if auto_pad == "SAME_UPPER" else (b, a) for a, b in less_and_more)


def _gemm_stage(node: ir.Node, weight: Numbers, bias: Array | None) -> Stage | Unreadable:
    attributes = node.attributes
    if attributes.get_int("transA", 0):
        return Unreadable(reason="it transposes its input")
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    rows = weight if attributes.get_int("transB", 0) else _transpose(weight)
    if alpha != 1.0:
        rows = changed(rows, rows.shape, lambda values: np.asarray(values, dtype=np.float64) * alpha)
    if bias is not None:
        bias = per_channel(bias, rows.shape[0], axes=0, rank=2)
        if bias is None:
            return Unreadable(reason="what it adds is not one number per channel")
        if beta != 1.0:
            bias = np.asarray(bias, dtype=np.float64) * beta
    return _linear_stage(rows, bias)


def _transpose(matrix: Numbers) -> Numbers:
    return changed(matrix, matrix.shape[::-1], np.transpose)


def _linear_stage(rows: Numbers, bias: Array | None) -> Stage:
    """The stage of a linear layer whose weight is ``rows``, of shape (out, in)."""
    return Stage(spec=ConvSpec(in_channels=rows.shape[1], out_channels=rows.shape[0]), weight=rows, bias=bias)


def read_affine(node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
    """Arithmetic with a constant, or an inference BatchNormalization, as a stage that scales and shifts channels.

    Args:
        node: Any node.
        channels: Channels of its output.
        axes: Spatial axes of its output; 0 where the layers around it are linear.

    Returns:
        None for operators other than Mul, Div, Add and Sub, for a constant divided by something, and where both values
        are computed; ``Unreadable`` where the numbers are not one per channel.
    """
    if is_operator(node, "BatchNormalization"):
        return _read_batch_norm(node, channels, axes)
    if not is_operator(node, "Mul", "Div", "Add", "Sub") or None in node.inputs:
        return None
    left, right = node.inputs
    data, value = (left, right) if constant(left) is None else (right, left)
    values = constant(value)
    if values is None or data is None or constant(data) is not None or (node.op_type == "Div" and data is right):
        return None
    each = per_channel(values, channels, axes=axes, rank=rank_of(data, axes))
    if each is None:
        return not_per_channel(product=node.op_type in ("Mul", "Div"))
    if node.op_type == "Div" and not each.all():
        return Unreadable(reason="what comes between is divided by zero")
    stage = arithmetic_stage(node.op_type, each, axes, constant_first=data is right)
    return ReadStage(node=node, data=data, stage=stage, bias=value if node.op_type == "Add" else None)


_EPSILON = float(np.float32(1e-5))
"""What a batch norm that names none adds to the variance: attributes are single floats."""


def _read_batch_norm(node: ir.Node, channels: int, axes: int) -> OnnxStage | Unreadable | None:
    data = node.inputs[0]
    if data is None or len(node.inputs) < 5:
        return None
    if node.attributes.get_int("training_mode", 0) or any(extra.uses() for extra in node.outputs[1:]):
        return Unreadable(reason="the batch norm between is in training mode", is_norm=True)
    if axes == 0 and rank_of(data, axes) != 2:
        return Unreadable(
            reason="the batch norm between does not act on the channels of the linear layer", is_norm=True
        )
    statistics = [constant(value) for value in node.inputs[1:5]]
    if any(array is None for array in statistics):
        return Unreadable(reason="the batch norm between is not constant", is_norm=True)
    if any(array is not None and array.shape != (channels,) for array in statistics):
        return Unreadable(reason=OTHER_CHANNELS, is_norm=True)
    stage = norm_stage(channels, axes, statistics, node.attributes.get_float("epsilon", _EPSILON))
    return ReadStage(node=node, data=data, stage=stage, is_norm=True)


def rank_of(value: ir.Value, axes: int) -> int:
    """Return the number of axes of a layer's input or output; where the file does not tell, the least it can be."""
    if axes:
        return axes + 2
    if value.shape is not None:
        return len(value.shape)
    neighbours = [value.producer(), *(use.node for use in value.uses())]
    return 2 if any(is_operator(node, "Gemm") for node in neighbours) else 1
