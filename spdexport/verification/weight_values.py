"""Two weights of one place, and what their difference may be: composed ones agree to rounding, others bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.factors import unit_rounding
from spdexport.verification.compare import FACTOR

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray

ROUNDINGS = 2
"""Roundings of the whole sum of |V| |U| that count as the floor of a composed weight; ``FACTOR`` of them are allowed.

Those that may lie between a composed weight and the plain export's are V, U, the mask in U, the scale of a batch norm
in U, and the composed weight itself; the effective weight and the same scale in it: seven, doubled where two layers
without anything between them compose into one.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first difference of two graphs.

    Attributes:
        layer: The module path or weight's name.
        what: What differs.
        structural: Whether operators or connections differ, rather than values.
        ratio: For values, the largest error over the floor.
        max_abs: For values, the largest error.
    """

    layer: str
    what: str
    structural: bool
    ratio: float = float("inf")
    max_abs: float | None = None


def compare_values(
    name: str, layer: str, mine: Array, theirs: Array, size: ir.Value | None, other_size: ir.Value | None
) -> tuple[Mismatch | None, float, FloatArray]:
    """Compare two constants of one shape and dtype.

    Args:
        name: The tensor's, for the message.
        layer: The layer's.
        mine: What the file has.
        theirs: What is right.
        size: The same place in the graph of the file's magnitudes (``magnitudes``, folded alike).
        other_size: In that of what is right.

    Returns:
        What is wrong, or None; the largest error over its floor; and all errors, signed, in float64. An error is
        infinite where one of the two is not finite and the other is something else.
    """
    if mine.tobytes() == theirs.tobytes():
        return None, 0.0, np.zeros(mine.shape)
    bound = None if mine.dtype.kind in "biu" else _bound(mine, size, other_size)
    odd = np.zeros(mine.shape, bool) if mine.dtype.kind in "biu" else ~(_finite(mine) & _finite(theirs))
    same = (mine == theirs) | ((mine != mine) & (theirs != theirs))  # NaN is what differs from itself
    signed = np.where(odd, 0, mine).astype(np.float64) - np.where(odd, 0, theirs).astype(np.float64)
    signed = np.where(odd & ~same, np.inf, signed)
    error = np.abs(signed)
    if bound is None or mine.dtype.kind in "biu":
        wrong = int((mine != theirs).sum())
        what = f"{name} differs in {wrong} of {mine.size} entries, and nothing should have changed it"
        largest = None if mine.dtype.kind in "biu" else float(np.where(odd, 0, error).max(initial=0.0))
        return Mismatch(layer=layer, what=what, structural=False, max_abs=largest), float("inf"), signed
    if (odd & ~same).any():
        place = tuple(np.argwhere(odd & ~same)[0])
        what = f"{_element(name, place)} is {mine[place]} where {theirs[place]} is right"
        return Mismatch(layer=layer, what=what, structural=False), float("inf"), signed
    ratios = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    ratio = float(ratios.max(initial=0.0))
    if ratio <= FACTOR:
        return None, ratio, signed
    place = np.unravel_index(int(np.argmax(ratios)), error.shape)
    # A composed weight has a name that no tensor of the file has.
    subject = _element(name, place)
    if _composed(size):
        subject = f"what the factors of {layer} compose to, at [{_index(place)}],"
    what = (
        f"{subject} is {mine[place]:.9g} where {theirs[place]:.9g} is right: {ratio:.3g} times what rounding explains"
    )
    return Mismatch(layer=layer, what=what, structural=False, ratio=ratio, max_abs=float(error.max())), ratio, signed


def _finite(values: Array) -> Array:
    return np.isfinite(values.astype(np.float64))


def _element(name: str, place: tuple[np.intp, ...]) -> str:
    return f"{name}[{_index(place)}]"


def _index(place: tuple[np.intp, ...]) -> str:
    return ", ".join(map(str, place))


def _bound(mine: Array, size: ir.Value | None, other_size: ir.Value | None) -> Array | None:
    """The floor of a composed weight's error, at each entry; None for a weight that was not composed."""
    if not (_composed(size) or _composed(other_size)):
        return None
    magnitude, other = constant_of(size), constant_of(other_size)
    assert magnitude is not None, "the graph of magnitudes has the same structure"
    assert other is not None, "the graph of magnitudes has the same structure"
    total = np.maximum(magnitude.astype(np.float64), other.astype(np.float64))
    # Factors and their products are made in float64, whose own rounding counts for models in float64 alone.
    reference = 16 * unit_rounding(np.dtype(np.float64)) * float(total.max(initial=0.0))
    return np.asarray(ROUNDINGS * unit_rounding(mine.dtype) * total + reference)


def _composed(value: ir.Value | None) -> bool:
    """Whether a value of the graph of magnitudes was made by folding, and is no plain |weight| of the file."""
    return value is not None and not isinstance(value.const_value, _Magnitude)


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer; None for other values."""
    return None if value is None or value.producer() is not None else value.const_value


def constant_of(value: ir.Value | None) -> Array | None:
    """What an initializer holds; that of a folded layer is composed for it."""
    tensor = stored(value)
    return None if tensor is None else tensor.numpy()


class _Magnitude(ir.LazyTensor):
    """|weight| of a float weight that is stored, evaluated only where it is read."""


def magnitudes(model: ir.Model) -> ir.Model:
    """The model with the magnitude of every float weight."""
    model = model.clone()
    # A batch norm subtracts its mean.
    means = {node.inputs[3] for node in model.graph if node.op_type == "BatchNormalization"}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            sign = -1 if value in means else 1
            value.const_value = _Magnitude(
                lambda tensor=tensor, sign=sign: ir.tensor(sign * np.abs(tensor.numpy()), dtype=tensor.dtype),  # type: ignore[misc]
                dtype=tensor.dtype,
                shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
                name=tensor.name,
            )
    return model
