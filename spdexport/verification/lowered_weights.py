"""The weights edge of a file in fewer bits: its numbers against the float model that it was made of.

Three things are proved, for all inputs at once:

1. Every number that is stored in fewer bits is the grid point that is nearest to the float model's: an integer's value
   is no more than half a step of its channel away, a float16 no more than half of its spacing.
2. Steps and zero points are those that the recorded ranges and the float weights give, and everything else of the graph
   is, node by node and bit for bit, what the same lowering makes of the float model.
3. Of eight bits, the graph with all steps taken out is the float model node by node, which nothing of the quantizer's
   own takes part in.

What the bits that are missing change of the outputs is not proved but measured: it is the approximation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.names import count
from spdexport.precision import Storage, Unstorable, lowered
from spdexport.rewrite.onnx_norms import fold_norms
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.taken_back import DEQUANTIZE, QUANTIZE, partner, taken_back
from spdexport.verification.weight_values import Mismatch
from spdexport.verification.weights import compare_weights

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.precision import Precision

SLACK = 1e-4
"""Of half a step: the quantizer divides in float32, and a float weight that is made anew may differ by its rounding."""

ALIKE = 1e-6
"""The relative difference of two steps that rounding explains."""


def compare_lowered(file: ir.Model, plain: ir.Model, precision: Precision) -> EdgeResult:
    """Compare a file with the float model that it was made of.

    Args:
        file: The file, as it was read back.
        plain: The float model.
        precision: How its numbers are stored.
    """
    try:
        right = lowered(plain, precision)
    except Unstorable as error:
        return _failed(
            Mismatch(layer="", what=f"the float model cannot be stored as recorded: {error}", structural=True)
        )
    copy = file.clone()
    is_eight = precision.storage is Storage.INT8
    if is_eight:
        whole, plain = plain, fold_norms(plain)
        if plain is not whole and (folded := compare_weights(plain, whole).edge).status is Status.FAIL:
            return folded
    fault = _integers(copy, plain) if is_eight else _halves(copy, plain)
    fault = fault or _missing(copy, right) or _steps(copy, right)
    if fault is not None:
        return _failed(fault)
    number = _settled(copy, right)
    found = compare_weights(copy, right).edge
    if found.status is Status.FAIL:
        return found
    if is_eight:
        back = taken_back(copy, plain)
        if isinstance(back, Mismatch):
            return _failed(back)
        found = compare_weights(back, plain).edge
        if found.status is Status.FAIL:
            return found
        reason = (
            f"{count(number, 'tensor')} of integers {'is' if number == 1 else 'are'} the float weights to half a step, "
            "steps are those of the recorded ranges, and without them the graph is the float model's"
        )
    else:
        reason = f"{count(number, 'weight')} of float16 {'is' if number == 1 else 'are'} the float32 ones, rounded once"
    return EdgeResult(edge="weights", status=Status.PASS, reason=reason)


def _failed(fault: Mismatch) -> EdgeResult:
    return EdgeResult(
        edge="weights",
        status=Status.FAIL,
        noise_ratio=None if fault.structural else fault.ratio,
        max_abs=fault.max_abs,
        first_divergence=fault.layer or None,
        reason=fault.what,
    )


def _integers(file: ir.Model, plain: ir.Model) -> Mismatch | None:
    """The first integer weight that is no grid point of the float one."""
    for node in file.graph:
        stored = node.inputs[0] if node.op_type == DEQUANTIZE else None
        if stored is None or stored.const_value is None or stored.producer() is not None:
            continue
        right = partner(stored.name or "", plain)
        if right is None or right.const_value is None:
            continue  # told where the graphs are compared
        held = [
            value.const_value.numpy() for value in node.inputs if value is not None and value.const_value is not None
        ]
        weight, name = right.const_value.numpy(), right.name or ""
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        if len(held) != 3 or held[0].shape != weight.shape or not _fits(held, axis):
            what = f"{stored.name} has no shape, steps and zero points that fit {name}"
            return Mismatch(layer=layer_at(node) or name, what=what, structural=True)
        scale, zero = (_beside(array, weight.ndim, axis) for array in held[1:])
        steps = (held[0].astype(np.float64) - zero) * scale
        off = np.abs(steps - weight.astype(np.float64)) / np.maximum(np.abs(scale), np.finfo(np.float64).tiny)
        fault = _off(stored.name or "", name, off, held[0], node)
        if fault is not None:
            return fault
    return None


def _off(stored: str, name: str, off: Array, integers: Array, node: ir.Node) -> Mismatch | None:
    """The integer that is furthest from its float, in steps; None where none is more than half a step off."""
    worst = float(off.max(initial=0.0))
    if worst <= 0.5 * (1 + SLACK) + SLACK:
        return None
    place = np.unravel_index(int(np.argmax(off)), off.shape)
    where = ", ".join(map(str, place))
    what = f"{stored}[{where}] is {integers[place]}, {worst:.3g} steps from {name} of the float model"
    return Mismatch(layer=layer_at(node) or name, what=what, structural=False, ratio=2 * worst)


def _fits(held: list[Array], axis: int) -> bool:
    integers, scale, zero = held
    if integers.dtype.kind not in "iu" or scale.shape != zero.shape:
        return False
    if scale.size == 1:
        return True
    return scale.ndim == 1 and -integers.ndim <= axis < integers.ndim and scale.size == integers.shape[axis]


def _beside(numbers: Array, rank: int, axis: int) -> Array:
    """Steps or zero points of one axis, shaped to go beside a weight."""
    wide = numbers.astype(np.float64)
    if numbers.size == 1:
        return wide.reshape(())
    return wide.reshape(*(-1 if n == axis % rank else 1 for n in range(rank)))


def _halves(file: ir.Model, plain: ir.Model) -> Mismatch | None:
    """The first float16 weight that is not the float32 one, rounded."""
    for name, value in file.graph.initializers.items():
        right = plain.graph.initializers.get(name.removesuffix("_float16"))
        mine = None if value.const_value is None else value.const_value.numpy()
        if mine is None or mine.dtype != np.float16 or right is None or right.const_value is None:
            continue
        exact = right.const_value.numpy().astype(np.float64)
        if exact.shape != mine.shape:
            return Mismatch(layer=name, what=f"{name} has another shape than the float model's", structural=True)
        spacing = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
        off = np.abs(mine.astype(np.float64) - exact) / spacing
        odd = ~np.isfinite(mine) | ~np.isfinite(exact)
        off = np.where(odd, np.where(mine == exact, 0.0, np.inf), off)
        worst = float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))
        if worst > 0.5 * (1 + SLACK):
            place = np.unravel_index(int(np.argmax(off)), off.shape)
            where = ", ".join(map(str, place))
            what = f"{name}[{where}] is {mine[place]} where {exact[place]:.9g} is to be rounded to float16"
            return Mismatch(layer=name.rpartition(".")[0] or name, what=what, structural=False, ratio=2 * worst)
    return None


def _missing(file: ir.Model, right: ir.Model) -> Mismatch | None:
    """A step that is missing, or too many, told by the value that it is of."""
    mine, theirs = (
        {v.name: n for n in m.graph if n.op_type in (QUANTIZE, DEQUANTIZE) for v in n.outputs} for m in (file, right)
    )
    for name, node in theirs.items():
        if name not in mine:
            value = node.inputs[0]
            of = "nothing" if value is None else value.name
            return Mismatch(
                layer=layer_at(node) or layer_of(node), what=f"{node.op_type} of {of} is missing", structural=True
            )
    for name, node in mine.items():
        if name not in theirs:
            what = f"there is a further {node.op_type}, which gives {name}"
            return Mismatch(layer=layer_at(node) or layer_of(node), what=what, structural=True)
    return None


def _steps(file: ir.Model, right: ir.Model) -> Mismatch | None:
    """The first step or zero point that is not the one which ranges and float weights give."""
    for node in file.graph:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        for value, what in zip(node.inputs[1:3], ("step", "zero point"), strict=False):
            name = "" if value is None else value.name or ""
            wanted = right.graph.initializers.get(name)
            mine, theirs = (
                None if v is None or v.const_value is None else v.const_value.numpy() for v in (value, wanted)
            )
            if mine is None or theirs is None:
                continue  # told where the graphs are compared
            if mine.dtype != theirs.dtype or mine.shape != theirs.shape or not _alike(mine, theirs):
                of = node.inputs[0]
                told = f"the {what} of {'nothing' if of is None else of.name} is {_told(mine, theirs)} is right"
                return Mismatch(layer=layer_at(node) or layer_of(node), what=told, structural=True)
    return None


def _alike(mine: Array, theirs: Array) -> bool:
    if mine.dtype.kind == "f":
        return bool(np.allclose(mine, theirs, rtol=ALIKE, atol=0.0))
    return mine.tobytes() == theirs.tobytes()


def _told(mine: Array, theirs: Array) -> str:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return f"{mine.dtype} of shape {mine.shape} where {theirs.dtype} of shape {theirs.shape}"
    place = int(np.argmax(np.abs(mine.astype(np.float64) - theirs.astype(np.float64))))
    return f"{mine.reshape(-1)[place]:.9g} where {theirs.reshape(-1)[place]:.9g}"


def _settled(file: ir.Model, right: ir.Model) -> int:
    """Give a file the very integers, halves and steps of the right one, to which they were compared; return how many.

    A float weight that is made anew on another machine may be rounded to the next grid point where it lies between two.
    """
    wanted = right.graph.initializers
    integers = 0
    for name, value in file.graph.initializers.items():
        other = wanted.get(name)
        mine, theirs = (None if v is None else v.const_value for v in (value, other))
        if mine is None or theirs is None or mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            continue
        read = {(use.node.op_type, use.idx) for use in value.uses()}
        is_step = bool(read) and all(op in (QUANTIZE, DEQUANTIZE) and index in (1, 2) for op, index in read)
        is_stored = read == {(DEQUANTIZE, 0)} or mine.dtype == ir.DataType.FLOAT16
        if is_step or is_stored:
            value.const_value = theirs
            integers += is_stored
    return integers
