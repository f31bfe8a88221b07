"""Numbers for the operands of nodes, drawn at random, and what no such numbers move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.rewrite.onnx_scopes import bodies
from spdexport.verification.computed import is_stored
from spdexport.verification.one_node import OneNode, widened

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from spdexport.conv import Array, FloatArray

HUGE = 1e150
"""Times the smallest weight that float32 knows, 1e-45, it is still huge."""

EXACT = 1e-9
"""The error of float64 sums, relative to the largest number; no channel that is alive does less, for it holds 1e150."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constants:
    """Which entries of a value are the same whatever the inputs are, and what they are."""

    known: Array
    numbers: FloatArray

    def put(self, values: Array) -> Array:
        """Put the constants into an array."""
        return np.where(self.known, self.numbers, values)


class Draws:
    """The nodes of a graph, and of one like it, on random operands.

    Args:
        opsets: The versions of operators of both.
        values: Values of the graph by name, on some inputs: they tell shapes, and what integers are.

    Attributes:
        constants: By the name of a value, the entries of it that are constant, as far as ``find_constants`` was asked.
    """

    def __init__(self, opsets: Mapping[str, int], values: Mapping[str, Array]) -> None:
        self._opsets, self._values = opsets, values
        self.constants: dict[str, Constants] = {}
        self._compiled: dict[tuple[ir.Node, tuple[np.dtype[Any] | None, ...]], OneNode] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of a value on those inputs."""
        found = self._values.get(value.name or "")
        if found is None:
            raise ReferenceUnavailable("the graph", value.name or "", "no input was found that it can be evaluated on")
        return found.shape

    def run(self, node: ir.Node, operands: Mapping[int, Array]) -> list[Array]:
        """Return what a node of either graph gives, their operators being of the same versions."""
        kinds: list[np.dtype[Any] | None] = []
        for index, value in enumerate(node.inputs):
            held = operands.get(index)
            stored = value.const_value if value is not None and is_stored(value) else None
            if held is None:
                kinds.append(None)
            elif stored is not None:
                kinds.append(stored.dtype.numpy())
            else:
                kinds.append(np.dtype(np.float32) if held.dtype.kind == "f" else held.dtype)
        key = (node, tuple(kinds))
        if key not in self._compiled:
            # The trials of a node come one after the other.
            self._compiled = dict(list(self._compiled.items())[-3:])
            self._compiled[key] = OneNode(node, kinds, self._opsets)
        return self._compiled[key].run(operands)

    def drawn(self, value: ir.Value, rng: np.random.Generator, *, sign: float = 1.0, scale: float = 1.0) -> Array:
        """Return numbers for a value: its constants; what it held on some input, where it is of no floats."""
        shape = self.shape(value)
        if self._values[value.name or ""].dtype.kind != "f":
            return self._values[value.name or ""]
        numbers = sign * scale * rng.standard_normal(shape)
        held = self.constants.get(value.name or "")
        return numbers if held is None else held.put(numbers)

    def find_constants(self, node: ir.Node) -> None:
        """Find which entries of a node's results no operand moves, be it of any sign and size."""
        if bodies(node) or node.domain not in ("", "ai.onnx"):
            return
        given = [v for v in node.inputs if v is not None and not is_stored(v)]
        held = [self.constants[v.name or ""] for v in given if (v.name or "") in self.constants]
        if not given or not (held or _may_hide(node)):
            return
        largest = max((largest_of(np.where(h.known, h.numbers, 0)) for h in held), default=0.0)
        try:
            rng_draws = [(draw // 2, (-1.0) ** draw, scale) for scale in (1.0, HUGE) for draw in range(2)]
            drawn = []
            for seed, sign, scale in rng_draws:
                rng = np.random.default_rng(seed)
                operands = {
                    i: numbers_of(v) if is_stored(v) else self.drawn(v, rng, sign=sign, scale=scale)
                    for i, v in enumerate(node.inputs)
                    if v is not None
                }
                drawn.append(self.run(node, operands))
        except ReferenceUnavailable:
            return
        for value, *results in zip(node.outputs, *drawn, strict=False):
            first = results[0]
            if not value.name or first.dtype.kind != "f" or any(r.shape != first.shape for r in results):
                continue
            with np.errstate(all="ignore"):
                allowed = EXACT * np.abs(first) + 1e-14 * largest
                known = np.isfinite(first) & np.logical_and.reduce([np.abs(r - first) <= allowed for r in results])
            if known.any():
                self.constants[value.name] = Constants(known=known, numbers=np.where(known, first, 0.0))


def numbers_of(value: ir.Value | None) -> Array:
    """Return what a stored value holds, floats in float64."""
    assert value is not None, "the operand is there"
    assert value.const_value is not None, "and stored"
    return widened(value.const_value.numpy(), value.const_value.dtype)


def _may_hide(node: ir.Node) -> bool:
    """Whether a node has zeros among its weights, which alone make constants of what is none."""
    for value in node.inputs:
        tensor = value.const_value if value is not None and is_stored(value) else None
        if tensor is None or not tensor.dtype.is_floating_point() or not tensor.size:
            continue
        zero = tensor.numpy() == 0
        if zero.ndim < 2 or node.op_type not in PRODUCTS:
            if zero.any():
                return True
        elif any(zero.all(axis=tuple(a for a in range(zero.ndim) if a != axis)).any() for axis in range(2)):
            return True
    return False


def largest_of(values: Array) -> float:
    """Return the largest magnitude that is finite."""
    finite = np.abs(values[np.isfinite(values)]) if values.size else values
    return float(finite.max(initial=0.0))


def are_close(a: Array, b: Array, allowed: Array | float) -> bool:
    """Return whether two arrays agree; what is not finite must be the same."""
    with np.errstate(all="ignore"):
        near = np.abs(a - b) <= allowed
    return bool((near | (a == b) | ((a != a) & (b != b))).all())


def same_default(value: ir.Value, other: ir.Value) -> bool:
    """Return whether two values have the same bytes as what they hold, or both hold nothing."""
    mine, theirs = value.const_value, other.const_value
    if mine is None or theirs is None:
        return mine is theirs
    return mine is theirs or (mine.dtype == theirs.dtype and mine.numpy().tobytes() == theirs.numpy().tobytes())


def same_tensor(value: ir.Value, other: ir.Value | None) -> bool:
    """Return whether two values are constants with the same shape and bytes."""
    if other is None or not (is_stored(value) and is_stored(other)):
        return False
    mine, theirs = value.const_value, other.const_value
    assert mine is not None, "it is stored"
    assert theirs is not None, "it is stored"
    return mine is theirs or (list(mine.shape) == list(theirs.shape) and same_default(value, other))
