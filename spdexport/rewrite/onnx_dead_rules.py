"""Which channels of a graph are the same number everywhere, and which nodes hand channels on one by one.

A value is tracked where a layer (Conv, ConvTranspose, Gemm, MatMul with constant weights) made its channels, as long as
operators follow that treat each channel by itself. An operator without a rule here, or with something about it that is
not certain, is opaque: it reads its operands whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_constants import axes_of, constant
from spdexport.rewrite.onnx_dead_functions import FUNCTIONS, evaluated
from spdexport.rewrite.onnx_dead_layers import (
    LAYER_OPERATORS,
    Channelwise,
    is_padded,
    layer_rule,
    tracked,
    weights,
)
from spdexport.rewrite.onnx_graph import is_operator
from spdexport.rewrite.stages import norm_factor

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import FloatArray
    from spdexport.rewrite.onnx_dead_layers import Found, IntArray, Rule, Track


@dataclass(slots=True, kw_only=True)
class Tracks:
    """What is known of the values of a graph; nodes must be visited in the graph's order.

    Attributes:
        shapes: Sizes of values by name, as far as they are known; a number, or the name of an axis.
        known: The tracked values.
        rules: The nodes that have one, in order.
        opaque: The others.
    """

    shapes: dict[str, tuple[int | str, ...]]
    known: dict[ir.Value, Track] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    opaque: list[ir.Node] = field(default_factory=list)

    def visit(self, node: ir.Node) -> None:
        """Take in a node."""
        found = self._layer(node) if is_operator(node, *LAYER_OPERATORS) else None
        if found is None and (rule := _RULES.get(node.op_type)) is not None and node.domain in ("", "ai.onnx"):
            lone = all(not extra.uses() and not extra.is_graph_output() for extra in node.outputs[1:])
            found = rule(node, self) if lone and any(v in self.known for v in node.inputs if v is not None) else None
        if found is None:
            self.opaque.append(node)
            return
        rule_found, track = found
        self.rules.append(rule_found)
        self.known[rule_found.out] = track

    def _layer(self, node: ir.Node) -> Found:
        shape = self.shape(node.inputs[0])
        return layer_rule(node, self.track(node), None if shape is None else len(shape))

    def track(self, node: ir.Node) -> Track | None:
        """Return that of the first operand."""
        data = node.inputs[0] if node.inputs else None
        return None if data is None else self.known.get(data)

    def shape(self, value: ir.Value | None) -> tuple[int | str, ...] | None:
        """Return the sizes of a value; None where its rank is not known."""
        return None if value is None else self.shapes.get(value.name or "")


def _same(node: ir.Node, track: Track, *, axis: int | None = None, only_zero: bool = False) -> Found:
    """A node that hands each channel on, and a constant as the same constant."""
    data, out = node.inputs[0], node.outputs[0]
    assert data is not None, "it is tracked"
    fixed = track.constant & (track.number == 0) if only_zero else track.constant
    made = tracked(out, track.axis if axis is None else axis, fixed, track.number)
    return Channelwise(node=node, out=out, operands=((data, np.arange(track.size)),)), made


def _elementwise(node: ir.Node, tracks: Tracks) -> Found:
    """Operators on numbers, all of whose operands are tracked along one axis, or constant."""
    if node.op_type == "Cast" and not ir.DataType(node.attributes["to"].as_int()).is_floating_point():
        return None
    given = list(node.inputs[:1] if node.op_type == "Dropout" else node.inputs)
    if node.op_type == "Dropout" and len(node.inputs) > 2 and (training := constant(node.inputs[2])) is not None:
        if training.any():
            return None
    elif node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    ranks = [len(shape) for v in given if v is not None and (shape := tracks.shape(v)) is not None]
    places, sizes = set(), set()
    for value in given:
        if value is not None and (track := tracks.known.get(value)) is not None:
            shape = tracks.shape(value)
            if shape is None:
                return None
            places.add(track.axis - len(shape))
            sizes.add(track.size)
    if len(places) != 1 or len(sizes) != 1:
        return None
    place, size = places.pop(), sizes.pop()
    operands: list[tuple[ir.Value, IntArray]] = []
    parameters: list[tuple[int, int]] = []
    numbers: list[FloatArray | None] = []
    fixed, nothing = np.ones(size, bool), np.zeros(size, bool)
    for index, value in enumerate(given):
        if value is None:
            numbers.append(None)
        elif (track := tracks.known.get(value)) is not None:
            operands.append((value, np.arange(size)))
            numbers.append(track.number)
            fixed &= track.constant
            nothing |= track.constant & (track.number == 0)
        else:
            array = weights(value)
            if array is None:
                return None
            ranks.append(array.ndim)
            along = array.shape[place] if array.ndim >= -place else 1
            if along not in (1, size):
                return None
            if along == size and size > 1:
                parameters.append((index, array.ndim + place))
            rows = np.moveaxis(array, place, 0).reshape(along, -1) if array.ndim >= -place else array.reshape(1, -1)
            alike = np.broadcast_to((rows == rows[:, :1]).all(axis=1), (size,))
            fixed &= alike
            nothing |= np.broadcast_to((rows == 0).all(axis=1), (size,))
            numbers.append(np.broadcast_to(rows[:, 0].astype(np.float64), (size,)))
    number = evaluated(node, numbers)
    if number is None:
        fixed, number = np.zeros(size, bool), np.zeros(size)
    if node.op_type == "Mul":  # zero times whatever is finite
        fixed, number = fixed | nothing, np.where(nothing, 0.0, number)
    rule = Channelwise(node=node, out=node.outputs[0], operands=tuple(operands), parameters=tuple(parameters))
    return rule, tracked(node.outputs[0], max(ranks) + place, fixed, np.broadcast_to(number, (size,)))


def _batch_norm(node: ir.Node, tracks: Tracks) -> Found:
    track = tracks.track(node)
    if track is None or track.axis != 1 or node.attributes.get_int("training_mode", 0) != 0:
        return None
    found = [weights(value) for value in node.inputs[1:5]]
    if any(array is None or array.shape != (track.size,) for array in found):
        return None
    scale, shift, mean, variance = (np.asarray(array).astype(np.float64) for array in found)
    with np.errstate(all="ignore"):
        factor = norm_factor(scale, variance, node.attributes.get_float("epsilon", 1e-5))
        number = (track.number - mean) * factor + shift
    made = tracked(node.outputs[0], 1, track.constant | (factor == 0), np.where(factor == 0, shift, number))
    data = node.inputs[0]
    assert data is not None, "it is tracked"
    parameters = tuple((index, 0) for index in range(1, 5))
    operands = ((data, np.arange(track.size)),)
    return Channelwise(node=node, out=node.outputs[0], operands=operands, parameters=parameters), made


def _window(node: ir.Node, tracks: Tracks) -> Found:
    """Pooling: a maximum or mean of constants is the constant, unless zeros of the padding are in the mean."""
    track = tracks.track(node)
    if track is None or track.axis != 1:
        return None
    attributes = node.attributes
    if node.op_type.startswith("Global"):
        return _same(node, track)
    zeros = is_padded(node)
    # With ceil_mode a window may lie beyond the border, about which runtimes disagree.
    odd = attributes.get_int("ceil_mode", 0) != 0
    counted = node.op_type == "AveragePool" and attributes.get_int("count_include_pad", 0) != 0
    return _same(node, track, only_zero=odd or (zeros and counted))


def _reduction(node: ir.Node, tracks: Tracks) -> Found:
    track, shape = tracks.track(node), tracks.shape(node.inputs[0])
    axes = axes_of(node)
    if track is None or shape is None or not axes:
        return None
    reduced = {axis % len(shape) for axis in axes}
    if track.axis in reduced:
        return None
    before = 0 if node.attributes.get_int("keepdims", 1) else sum(axis < track.axis for axis in reduced)
    return _same(node, track, axis=track.axis - before, only_zero=node.op_type == "ReduceSum")


def _flattening(node: ir.Node, tracks: Tracks) -> Found:
    """Flatten, and a Reshape that does the same: all locations of a channel come one after the other."""
    track, shape, made = tracks.track(node), tracks.shape(node.inputs[0]), tracks.shape(node.outputs[0])
    if track is None or shape is None or track.axis != 1:
        return None
    if node.op_type == "Flatten":
        if node.attributes.get_int("axis", 1) != 1:
            return None
    elif made is None or len(made) != 2:
        return None
    inner = [size for size in shape[2:] if isinstance(size, int)]
    locations = math.prod(inner)
    if len(inner) != len(shape) - 2 or (made is not None and made[1:] != (track.size * locations,)):
        return None
    index = np.repeat(np.arange(track.size), locations)
    data = node.inputs[0]
    assert data is not None, "it is tracked"
    rule = Channelwise(node=node, out=node.outputs[0], operands=((data, index),))
    return rule, tracked(node.outputs[0], 1, track.constant[index], track.number[index])


def _other_axes(node: ir.Node, tracks: Tracks) -> Found:
    """Axes that come, go, or change places around that of the channels."""
    track, shape = tracks.track(node), tracks.shape(node.inputs[0])
    if track is None or shape is None:
        return None
    rank = len(shape)
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
        return _same(node, track, axis=list(order).index(track.axis))
    axes = axes_of(node)
    if axes is None:
        return None
    if node.op_type == "Squeeze":
        gone = {axis % rank for axis in axes}
        return None if track.axis in gone else _same(node, track, axis=track.axis - sum(a < track.axis for a in gone))
    new = {axis % (rank + len(axes)) for axis in axes}
    places = [place for place in range(rank + len(axes)) if place not in new]
    return _same(node, track, axis=places[track.axis])


def _concat(node: ir.Node, tracks: Tracks) -> Found:
    """Channels one after the other; or, along another axis, each channel with that of the other operands."""
    found = [tracks.known.get(value) if value is not None else None for value in node.inputs]
    shape = tracks.shape(node.inputs[0])
    known = [track for track in found if track is not None]
    if shape is None or len(known) != len(found) or len({track.axis for track in known}) != 1:
        return None
    values = [value for value in node.inputs if value is not None]
    out, axis = node.outputs[0], known[0].axis
    if node.attributes["axis"].as_int() % len(shape) == axis:
        ends = np.cumsum([0, *(track.size for track in known)])
        operands = []
        for value, track, start in zip(values, known, ends, strict=False):
            index = np.full(ends[-1], -1)
            index[start : start + track.size] = np.arange(track.size)
            operands.append((value, index))
        fixed, number = (np.concatenate([getattr(t, name) for t in known]) for name in ("constant", "number"))
        return Channelwise(node=node, out=out, operands=tuple(operands)), tracked(out, axis, fixed, number)
    if len({track.size for track in known}) != 1:
        return None
    fixed = np.all([t.constant for t in known], axis=0) & np.all([t.number == known[0].number for t in known], axis=0)
    operands = [(value, np.arange(known[0].size)) for value in values]
    return Channelwise(node=node, out=out, operands=tuple(operands)), tracked(out, axis, fixed, known[0].number)


_RULES: dict[str, Callable[[ir.Node, Tracks], Found]] = {
    **dict.fromkeys(FUNCTIONS, _elementwise),
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _window),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"), _reduction),
    **dict.fromkeys(("Flatten", "Reshape"), _flattening),
    **dict.fromkeys(("Transpose", "Squeeze", "Unsqueeze"), _other_axes),
    "Concat": _concat,
}
"""Operators that hand channels on, in the ONNX standard."""
