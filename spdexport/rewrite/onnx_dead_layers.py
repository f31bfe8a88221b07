"""The channels of values in an ONNX graph: which are one number everywhere, and what layers make of them.

``Layer`` and ``Channelwise`` say how the channels of a node's result depend on those of its operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spdexport.conv import canonical_weight
from spdexport.rewrite.onnx_constants import constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, FloatArray

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Track:
    """The channels of a value.

    Attributes:
        axis: Theirs, counted from the front.
        constant: Which of them are one number, in all samples and at all locations, shape (channels,).
        number: That number, float64, shape (channels,); 0 for the others.
    """

    axis: int
    constant: BoolArray
    number: FloatArray

    @property
    def size(self) -> int:
        """How many there are."""
        return self.constant.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A node that mixes channels.

    Attributes:
        node: The node.
        data: What it reads.
        out: What it gives.
        groups: Of channels, each mixed by itself.
        uses: Whether the weight from an input channel of its group to an output channel is not zero everywhere under
            the kernel, shape (out, in / groups).
        uneven: Whether a constant at the input makes something else than a constant of the output: at the borders,
            where zeros are padded, or under the strides of a transposed convolution; or there is nowhere to put it.
    """

    node: ir.Node
    data: ir.Value
    out: ir.Value
    groups: int
    uses: BoolArray
    uneven: bool

    def folds(self, data: Track) -> BoolArray:
        """Return the input channels that are constants which the bias can hold, shape (in,)."""
        return np.asarray(data.constant & ((data.number == 0) | (not self.uneven)))

    def shift(self, numbers: FloatArray) -> FloatArray:
        """Return what input channels that hold these numbers everywhere, (in,), add to each output channel, (out,)."""
        weight, numbers = matrix(self.node), numbers.reshape(self.groups, -1)
        there = np.flatnonzero(numbers.any(axis=0))
        if not there.size:
            return np.zeros(len(weight))
        rows = weight[:, there].astype(np.float64).sum(axis=2).reshape(self.groups, -1, there.size)
        return np.asarray(scale_of(self.node) * np.einsum("goi,gi->go", rows, numbers[:, there]).reshape(-1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channelwise:
    """A node whose result has, in each channel, what it makes of single channels of its operands.

    Attributes:
        node: The node.
        out: What it gives.
        operands: Each tracked operand with the channel of it that is in each channel of the result, -1 for none.
        parameters: Inputs that hold a number for each channel of the result, with the axis of these.
    """

    node: ir.Node
    out: ir.Value
    operands: tuple[tuple[ir.Value, IntArray], ...]
    parameters: tuple[tuple[int, int], ...] = ()


Rule: TypeAlias = "Layer | Channelwise"


Found: TypeAlias = "tuple[Rule, Track] | None"

LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def weights(value: ir.Value | None) -> Array | None:
    """Return a constant of floats that is stored as such: integers that are scaled would not stay integers."""
    source = value
    while source is not None and (node := source.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return None
        source = node.inputs[0] if node.inputs else None
    array = constant(value)
    return None if array is None or array.dtype.kind in "iubOSU" else array


def matrix(node: ir.Node) -> Array:
    """Return the weight of a layer, shape (out, in / groups, taps under the kernel)."""
    weight = weights(node.inputs[1])
    assert weight is not None, "a layer has a constant weight"
    match node.op_type:
        case "Conv":
            return weight.reshape(*weight.shape[:2], -1)
        case "ConvTranspose":
            weight = canonical_weight(weight, node.attributes.get_int("group", 1))
            return weight.reshape(*weight.shape[:2], -1)
        case "Gemm" if node.attributes.get_int("transB", 0):
            return weight[..., None]
    return weight.T[..., None]


def scale_of(node: ir.Node) -> float:
    """Return what the weight of a layer is multiplied by: the alpha of a Gemm."""
    return node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0


def bias_of(node: ir.Node, channels: int) -> FloatArray | None:
    """Return what a layer adds, float64, shape (channels,); None where that is not one constant for each channel."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    bias = weights(value)
    if bias is None or bias.size not in (1, channels) or (bias.ndim and bias.shape[-1] != bias.size):
        return None
    factor = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(np.broadcast_to(bias.reshape(-1).astype(np.float64) * factor, (channels,)))


def layer_rule(node: ir.Node, track: Track | None, rank: int | None) -> Found:
    """Return a layer with its tracked result; None where it is none, or is not understood in all its parts.

    Args:
        node: Of one of ``LAYER_OPERATORS``.
        track: That of the data, if they have one.
        rank: The number of axes of the data, if that is known.
    """
    data = node.inputs[0]
    if data is None or constant(data) is not None or len(node.outputs) != 1:
        return None
    weight = weights(node.inputs[1])
    if weight is None or weight.ndim < 2 or (node.op_type in ("MatMul", "Gemm") and weight.ndim != 2):
        return None
    axis = 1
    if node.op_type == "MatMul":
        if rank is None or rank < 2:
            return None
        axis = rank - 1
    elif node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) != 0 or not node.attributes.get_float("beta", 1.0)
    ):
        return None
    uses = np.asarray(matrix(node).astype(bool).any(axis=2))
    bias = bias_of(node, len(uses))
    groups = node.attributes.get_int("group", 1) if node.op_type in ("Conv", "ConvTranspose") else 1
    if bias is None or (track is not None and (track.axis != axis or track.size != uses.shape[1] * groups)):
        return None
    layer = Layer(
        node=node, data=data, out=node.outputs[0], groups=groups, uses=uses, uneven=_is_uneven(node, weight.shape[2:])
    )
    return layer, _made(layer, track, bias, axis)


def _made(layer: Layer, data: Track | None, bias: FloatArray, axis: int) -> Track:
    """The channels of a layer's result: constant where all that they read is."""
    if data is None:
        fixed = np.asarray(~layer.uses.any(axis=1))
        return tracked(layer.out, axis, fixed, bias)
    folds = layer.folds(data)
    inner = folds.reshape(layer.groups, 1, -1)
    fixed = ~(layer.uses.reshape(layer.groups, -1, inner.shape[2]) & ~inner).any(axis=2).reshape(-1)
    return tracked(layer.out, axis, fixed, bias + layer.shift(np.where(folds, data.number, 0.0)))


def _is_uneven(node: ir.Node, kernel: Sequence[int]) -> bool:
    attributes = node.attributes
    if node.op_type == "MatMul":  # its constants are added behind it, which an output of the graph has no place for
        return node.outputs[0].is_graph_output()
    if node.op_type == "Gemm":
        return False
    padded = is_padded(node)
    if node.op_type == "Conv":
        return padded
    plain = all(k == 1 for k in kernel) and all(s == 1 for s in attributes.get_ints("strides", ()))
    return padded or not plain or any(attributes.get_ints("output_padding", ())) or "output_shape" in attributes


def tracked(value: ir.Value, axis: int, fixed: BoolArray, number: FloatArray) -> Track:
    """Return a track whose constants are finite in the value's own dtype too."""
    dtype = float_type(value)
    with np.errstate(all="ignore"):
        finite = np.isfinite(number.astype(dtype).astype(np.float64))
    fixed = fixed & finite
    return Track(axis=axis, constant=fixed, number=np.where(fixed, number, 0.0))


def float_type(value: ir.Value) -> np.dtype[Any]:
    """Return the dtype of a tracked value; where the file does not tell, that of what it is computed from.

    Operators with a rule keep the float type of their data and weights, but for Cast.
    """
    while not (value.dtype is not None and value.dtype.is_floating_point()):
        node = value.producer()
        if node is None:
            break
        if node.op_type == "Cast":
            return np.dtype(ir.DataType(node.attributes["to"].as_int()).numpy())
        operands = [operand for operand in node.inputs if operand is not None]
        stored = [weights(operand) for operand in operands]
        known = next((array for array in stored if array is not None), None)
        if known is not None:
            return known.dtype
        data = [operand for operand in operands if constant(operand) is None]
        if not data:
            break
        value = data[0]
    return np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())


def is_padded(node: ir.Node) -> bool:
    """Return whether a convolution or pooling may read beyond the border."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", ()))
