"""What one node of a graph computes, as a stage. The readers of ONNX and of torch graphs both give these."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.forms import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, FloatArray

NodeT = TypeVar("NodeT")
ValueT = TypeVar("ValueT")


RESHAPED = "what is between changes its shape"
RETYPED = "the type changes between the layers"
CHANGED = "an operator between them changes a tensor in place"
OTHER_CHANNELS = "the batch norm between is of another number of channels"
POOLED = "an average pooling is between, and stays one, which is cheaper"
ODD_BORDER = "what is written into the padding between is not one number per channel, all around"


class Addend(NamedTuple, Generic[ValueT]):
    """A value of a sum, and the number that it is multiplied with: -1 for what is subtracted."""

    value: ValueT
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A node of a kind that can be a stage, but this one is none.

    Attributes:
        reason: One clause.
        is_norm: Whether it is a batch norm.
    """

    reason: str
    is_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OddBorder(Unreadable, Generic[ValueT]):
    """A padding into whose border something else is written than one number for each channel.

    Attributes:
        data: The padding's input.
    """

    data: ValueT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadStage(Generic[NodeT, ValueT]):
    """A node as a stage.

    Attributes:
        node: The node.
        data: Its input that is not constant.
        stage: What it does to that input.
        weight: The value that holds the weight; None for nodes that only scale and shift channels.
        bias: The value that holds the bias, or None.
        is_norm: Whether it is a batch norm.
    """

    node: NodeT
    data: ValueT
    stage: Stage
    weight: ValueT | None = None
    bias: ValueT | None = None
    is_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filling(Generic[NodeT, ValueT]):
    """A padding whose border holds one number for each channel.

    Attributes:
        node: The padding with zeros.
        last: The node that gives the filled value: the padding itself where it is written to in place.
        data: The padding's input.
        stage: What it does but for the numbers.
        values: They, shape (channels,).
        writers: The nodes that put them there.
    """

    node: NodeT
    last: NodeT
    data: ValueT
    stage: Stage
    values: Array
    writers: frozenset[NodeT]

    @property
    def nodes(self) -> frozenset[NodeT]:
        """The padding and the writers."""
        return frozenset((self.node, self.last, *self.writers))


def affine_stage(channels: int, axes: int, *, mask: Array | None = None, bias: Array | None = None) -> Stage:
    """Return the stage ``y = mask * x + bias``: a depthwise pointwise convolution with weight one."""
    spec = ConvSpec.pointwise(channels, channels, axes=axes, groups=channels)
    return Stage(spec=spec, weight=np.ones(spec.weight_shape), mask=mask, bias=bias)


def negative_stage(channels: int, axes: int) -> Stage:
    """Return the stage ``y = -x``."""
    return affine_stage(channels, axes, mask=np.full(channels, -1.0))


def padding_stage(channels: int, padding: Sequence[tuple[int, int]]) -> Stage:
    """Return the stage that only puts zeros around its input.

    Kernel 1, so many locations before and after each axis.
    """
    spec = ConvSpec.pointwise(channels, channels, axes=len(padding), groups=channels)
    return Stage(spec=replace(spec, padding=tuple(padding)), weight=np.ones(spec.weight_shape))


def pool_stage(
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    divisor: int | None = None,
) -> Stage:
    """Average pooling that counts the zeros of its padding: each channel's own kernel, of equal numbers.

    Args:
        channels: Of its input.
        kernel: The size of a window along each axis.
        stride: The step along each axis.
        padding: Zeros before and after each axis.
        divisor: What a sum is divided by; None for the number of locations in a window.
    """
    spec = ConvSpec(
        in_channels=channels,
        out_channels=channels,
        kernel=tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=(1,) * len(kernel),
        groups=channels,
    )
    return Stage(spec=spec, weight=np.full(spec.weight_shape, 1.0 / (divisor or math.prod(kernel))))


def zero_padding(before: Sequence[int], after: Sequence[int], axes: int) -> tuple[tuple[int, int], ...] | Unreadable:
    """Return what a padding of all axes of a value, batch first, does to its spatial axes.

    Args:
        before: Zeros before each axis; negative numbers crop.
        after: Zeros behind each axis.
        axes: Spatial axes, the last ones.
    """
    pads = tuple(zip(before, after, strict=True))
    if any(count < 0 for pair in pads for count in pair):
        return Unreadable(reason="the padding between crops")
    if any(pair != (0, 0) for pair in pads[: len(pads) - axes]):
        return Unreadable(reason="the padding between adds samples or channels")
    return pads[len(pads) - axes :]


def arithmetic_stage(operator: str, numbers: Array, axes: int, *, constant_first: bool) -> Stage:
    """``x * c``, ``x / c``, ``x + c``, ``x - c`` or ``c - x``, with one number c for each channel.

    Args:
        operator: ``Mul``, ``Div``, ``Add`` or ``Sub``.
        numbers: c, shape (channels,).
        axes: Spatial axes of x.
        constant_first: Whether c is the left operand.
    """
    channels, exact = len(numbers), np.asarray(numbers, dtype=np.float64)
    match operator:
        case "Mul":
            return affine_stage(channels, axes, mask=exact)
        case "Div":
            return affine_stage(channels, axes, mask=1 / exact)
        case "Sub" if constant_first:
            return affine_stage(channels, axes, mask=np.full(channels, -1.0), bias=exact)
        case "Sub":
            return affine_stage(channels, axes, bias=-exact)
        case _:
            return affine_stage(channels, axes, bias=exact)


def norm_stage(channels: int, axes: int, statistics: Sequence[Array | None], epsilon: float) -> Stage:
    """Batch norm in inference.

    Args:
        channels: Of its input.
        axes: Spatial axes.
        statistics: Scale, shift, mean and variance, each of shape (channels,); None for a scale of 1 or a shift of 0.
        epsilon: Added to the variance.
    """
    gamma, beta, mean, variance = (
        np.full(channels, default) if array is None else np.asarray(array, dtype=np.float64)
        for array, default in zip(statistics, (1.0, 0.0, 0.0, 1.0), strict=True)
    )
    scale = norm_factor(gamma, variance, epsilon)
    return affine_stage(channels, axes, mask=scale, bias=beta - mean * scale)


def norm_factor(gamma: FloatArray, variance: FloatArray, epsilon: float) -> FloatArray:
    """Return what batch norm multiplies each channel by in inference, in float64: ``gamma / sqrt(variance + epsilon)``.

    Args:
        gamma: The scale, of shape (channels,).
        variance: Of the same shape.
        epsilon: Added to the variance.
    """
    return np.asarray(gamma / np.sqrt(variance + epsilon))


def not_per_channel(*, product: bool) -> Unreadable:
    """Return what there is to say of a Mul or Add whose constant is not one number for each channel."""
    verb = "multiplied by" if product else "increased by"
    return Unreadable(reason=f"what comes between is {verb} a constant that is not one number per channel")


def per_channel(values: Array, channels: int, *, axes: int, rank: int) -> Array | None:
    """Return the operand of a Mul or Add as one number for each channel, else None.

    Args:
        values: The constant operand.
        channels: Channels of the other operand.
        axes: Its spatial axes, all behind the channel axis; 0 for a linear layer, whose channels are the last axis.
        rank: Its number of axes.

    Returns:
        Shape (channels,). None where the numbers differ between locations or samples, or where broadcasting would give
        the result another shape than the other operand has.
    """
    if values.ndim > rank:
        return None
    if values.size == 1:
        return np.broadcast_to(values.reshape(1), (channels,))
    if values.ndim <= axes or values.shape[-1 - axes] != channels or values.size != channels:
        return None
    return values.reshape(channels)
