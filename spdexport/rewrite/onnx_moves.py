"""What operators of ONNX that move numbers do, run on numbers, and sums of sizes, which tell them where to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spdexport.rewrite.onnx_constants import axes_of, constant
from spdexport.rewrite.onnx_graph import is_operator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from spdexport.conv import Array

_LARGEST = 2**24
"""Numbers that an array may have here."""


class NotMovedError(Exception):
    """A value is not made by moving numbers, or would be too large."""


@dataclass(slots=True, kw_only=True, eq=False)
class Moves:
    """Runs nodes on numbers.

    Attributes:
        sizes: What stands for the sizes of axes that the file leaves open, by their names.
        shapes: The shapes of values whose numbers are not to be looked at.
        known: What was computed.
    """

    sizes: Mapping[str | None, int]
    shapes: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    known: dict[ir.Value, Array] = field(default_factory=dict)

    def through(self, numbers: Array, value: ir.Value, steps: Sequence[ir.Node]) -> Array:
        """Return what becomes of a value's numbers in nodes behind each other; further operands depend on no number.

        Raises:
            NotMovedError: One of the nodes, or of those that its operands come from, is of another kind.
        """
        self.shapes[value] = numbers.shape
        for step in steps:
            _check_size(numbers.shape)
            match step.op_type:
                case "Transpose":
                    numbers = np.transpose(numbers, step.attributes.get_ints("perm"))
                case "ScatterND" if step.attributes.get_string("reduction", "none") == "none":
                    indices, updates = (self._value(operand) for operand in step.inputs[1:3])
                    numbers = _scattered(numbers, indices, updates)
                case "Identity":
                    pass
                case _:
                    raise NotMovedError
            self.shapes[step.outputs[0]] = numbers.shape
        return numbers

    def _value(self, value: ir.Value | None) -> Array:
        """The numbers of an operand.

        Raises:
            NotMovedError: It is computed by an operator of another kind, or from numbers that are not to be looked at.
        """
        held = constant(value)
        if held is not None:
            return held
        if value is None or value in self.shapes or value.producer() is None:
            raise NotMovedError
        if value not in self.known:
            node = value.producer()
            assert node is not None, "it was asked before"
            self.known[value] = self._shape(node) if is_operator(node, "Shape") else self._moved(node)
        return self.known[value]

    def _shape(self, node: ir.Node) -> Array:
        (data,) = node.inputs
        if data in self.shapes:
            shape = self.shapes[data]
        elif data is not None and data.shape is not None:
            sizes = [size if isinstance(size, int) else self.sizes.get(size.value) for size in data.shape]
            shape = tuple(-1 if size is None else size for size in sizes)
        else:
            raise NotMovedError
        start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
        part = shape[start : None if end is None else end.as_int()]
        if -1 in part:
            raise NotMovedError
        return np.array(part, dtype=np.int64)

    def _moved(self, node: ir.Node) -> Array:
        if node.domain not in ("", "ai.onnx"):
            raise NotMovedError
        data, *rest = ([self._value(value) for value in node.inputs if value is not None]) or [np.zeros(0)]
        result: Array
        try:
            match node.op_type:
                case "Identity":
                    result = data
                case "Add" | "Sub" if data.dtype.kind == "i" and rest[0].dtype.kind == "i":
                    result = data + rest[0] if node.op_type == "Add" else data - rest[0]
                case "Reshape":
                    result = data.reshape(_sizes(node, data, rest[0]))
                case "Gather":
                    result = np.take(data, rest[0], axis=node.attributes.get_int("axis", 0))
                case "Range":
                    _check_size((max(0, math.ceil((rest[0].item() - data.item()) / rest[1].item())),))
                    result = np.arange(data.item(), rest[0].item(), rest[1].item(), dtype=data.dtype)
                case "Slice" if len(rest) in (2, 3, 4) and None not in node.inputs:
                    result = data[_slices(data.ndim, *rest)]
                case "Unsqueeze" | "Squeeze":
                    axes = axes_of(node)
                    result = np.expand_dims(data, axes or ()) if node.op_type == "Unsqueeze" else np.squeeze(data, axes)
                case "Concat":
                    result = np.concatenate([data, *rest], axis=node.attributes["axis"].as_int())
                case "Transpose":
                    result = np.transpose(data, node.attributes.get_ints("perm"))
                case "Expand":
                    shape = np.broadcast_shapes(data.shape, tuple(int(size) for size in rest[0]))
                    _check_size(shape)
                    result = np.broadcast_to(data, shape)
                case _:
                    raise NotMovedError
        except (ValueError, IndexError, KeyError, ZeroDivisionError, TypeError) as error:
            raise NotMovedError from error
        _check_size(result.shape)
        return result


def _sizes(node: ir.Node, data: Array, asked: Array) -> list[int]:
    """The sizes that a Reshape gives, 0 standing for what is there."""
    sizes = [int(size) for size in asked]
    if node.attributes.get_int("allowzero", 0):
        return sizes
    return [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]


def _slices(
    rank: int, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> tuple[slice, ...]:
    which = range(len(starts)) if axes is None else [int(axis) % rank for axis in axes]
    by = [1] * len(starts) if steps is None else [int(step) for step in steps]
    if min(by, default=1) < 1:
        raise NotMovedError
    found = [slice(None)] * rank
    for axis, start, end, step in zip(which, starts, ends, by, strict=True):
        found[axis] = slice(int(start), int(end), step)
    return tuple(found)


def _scattered(data: Array, indices: Array, updates: Array) -> Array:
    """``ScatterND``: the slices that the last axis of the indices names are replaced."""
    if indices.ndim == 0 or indices.shape[-1] > data.ndim:
        raise NotMovedError
    depth = indices.shape[-1]
    places = np.where(indices < 0, indices + np.array(data.shape[:depth]), indices).reshape(-1, depth)
    if len(np.unique(places, axis=0)) < len(places):
        raise NotMovedError  # which of them is written last, the operator leaves open
    result = np.array(data)
    try:
        result[tuple(places.T)] = updates.reshape(len(places), *data.shape[depth:])
    except (ValueError, IndexError) as error:
        raise NotMovedError from error
    return result


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > _LARGEST:
        raise NotMovedError
