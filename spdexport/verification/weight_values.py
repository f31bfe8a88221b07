"""Two weights of one place, and what their difference may be: composed ones agree to rounding, others bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.factors import unit_rounding
from spdexport.verification.compare import FACTOR
from spdexport.verification.computed import ComputedTensor, is_stored

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
        unlike: Whether the two have other operators, so that no node has a partner.
        placed: Whether the text says in which body or function it is.
    """

    layer: str
    what: str
    structural: bool
    ratio: float = float("inf")
    max_abs: float | None = None
    unlike: bool = False
    placed: bool = False


def compare_values(
    name: str,
    layer: str,
    mine: Array,
    theirs: Array,
    size: ir.Value | None,
    other_size: ir.Value | None,
    *,
    exact: bool = True,
) -> tuple[Mismatch | None, float, FloatArray]:
    """Compare two constants of one shape and dtype.

    Args:
        name: The tensor's, for the message.
        layer: The layer's.
        mine: What the file has.
        theirs: What is right.
        size: The same place in the graph of the file's magnitudes (``magnitudes``, folded alike).
        other_size: In that of what is right.
        exact: Whether a constant that was neither composed nor computed is to be equal bit for bit.

    Returns:
        What is wrong, or None; the largest error over its floor; and all errors, signed, in float64. An error is
        infinite where one of the two is not finite and the other is something else.
    """
    if not _is_float(mine.dtype):
        return _compare_exactly(name, layer, mine, theirs)
    if mine.tobytes() == theirs.tobytes():
        return None, 0.0, np.zeros(mine.shape)
    bound = _bound(mine, size, other_size, exact=exact)
    odd = ~(_finite(mine) & _finite(theirs))
    same = (mine == theirs) | ((mine != mine) & (theirs != theirs))  # NaN is what differs from itself
    signed = np.where(odd, 0, mine).astype(np.float64) - np.where(odd, 0, theirs).astype(np.float64)
    signed = np.where(odd & ~same, np.inf, signed)
    error = np.abs(signed)
    if bound is None:
        wrong = int((~same | (np.signbit(mine) != np.signbit(theirs))).sum())
        what = f"{name} differs in {wrong} of {mine.size} entries, and nothing should have changed it"
        largest = float(np.where(odd, 0, error).max(initial=0.0))
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
    if size is not None and isinstance(size.const_value, _Allowed):
        subject = f"what the file computes as {name}, at [{_index(place)}],"
    elif _composed(size):
        subject = f"what the factors of {layer} compose to, at [{_index(place)}],"
    what = (
        f"{subject} is {mine[place]:.9g} where {theirs[place]:.9g} is right: {ratio:.3g} times what rounding explains"
    )
    return Mismatch(layer=layer, what=what, structural=False, ratio=ratio, max_abs=float(error.max())), ratio, signed


def _compare_exactly(name: str, layer: str, mine: Array, theirs: Array) -> tuple[Mismatch | None, float, FloatArray]:
    """The same of integers, texts and the like, which have no rounding."""
    differs = mine != theirs
    wrong = int(differs.sum())
    if not wrong:
        return None, 0.0, np.zeros(mine.shape)
    what = f"{name} differs in {wrong} of {mine.size} entries, and nothing should have changed it"
    signed = np.where(differs, np.inf, 0.0)
    return Mismatch(layer=layer, what=what, structural=False), float("inf"), signed


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fV" and ir.DataType.from_numpy(dtype).is_floating_point()


def _finite(values: Array) -> Array:
    return np.isfinite(values.astype(np.float64))


def _element(name: str, place: tuple[np.intp, ...]) -> str:
    return f"{name}[{_index(place)}]"


def _index(place: tuple[np.intp, ...]) -> str:
    return ", ".join(map(str, place))


def _bound(mine: Array, size: ir.Value | None, other_size: ir.Value | None, *, exact: bool) -> Array | None:
    """The floor of a composed weight's error, at each entry; None for a weight that is to be equal bit for bit."""
    if exact and not (_composed(size) or _composed(other_size)):
        return None
    magnitude, other = constant_of(size), constant_of(other_size)
    assert magnitude is not None, "the graph of magnitudes has the same structure"
    assert other is not None, "the graph of magnitudes has the same structure"
    total = np.maximum(np.abs(magnitude.astype(np.float64)), np.abs(other.astype(np.float64)))
    # Factors and their products are made in float64. Its own rounding counts where a weight spans more than float32
    # has digits: decompositions are exact to the norm of the whole matrix, not to each entry.
    folded = any(_composed(v) and v is not None and not isinstance(v.const_value, _Allowed) for v in (size, other_size))
    reference = 16 * unit_rounding(np.dtype(np.float64)) * (_norm(total) if folded else 0.0)
    return np.asarray(ROUNDINGS * unit_rounding(mine.dtype) * total + reference)


def _norm(values: FloatArray) -> float:
    """The 2-norm of all entries together, scaled, for squares may leave the range."""
    largest = float(values.max(initial=0.0))
    if not 0 < largest < float("inf"):
        return largest
    return largest * float(np.linalg.norm(values / largest))


def _composed(value: ir.Value | None) -> bool:
    """Whether a value of the graph of magnitudes was made by folding, and is no plain |weight| of the file."""
    return value is not None and not isinstance(value.const_value, _Magnitude)


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer that no caller can override; None for other values."""
    return value.const_value if value is not None and is_stored(value) else None


def constant_of(value: ir.Value | None) -> Array | None:
    """Return what an initializer holds; that of a folded layer is composed for it."""
    tensor = stored(value)
    return None if tensor is None else tensor.numpy()


class _Magnitude(ir.LazyTensor):
    """|weight| of a float weight that is stored, evaluated only where it is read."""


class _Allowed(ir.LazyTensor):
    """The magnitude of a weight that the graph computes; what rounding does in that computation counts as size."""


def magnitudes(model: ir.Model) -> ir.Model:
    """Return the model with the magnitude of every float weight, negative where it is subtracted, so that sizes add up.

    Args:
        model: The model, its computed constants stored (``with_computed``); it is not changed.
    """
    model = model.clone()
    # All that is subtracted gets an initializer of its own first, made of the weight as it is stored: one weight may be
    # added, multiplied by and subtracted, even by one node (a batch norm whose parameters are all one initializer).
    subtracted: dict[tuple[int, ir.Value], ir.Value] = {}
    for graph in model.graphs():
        for node in list(graph):
            for index in _subtracted(node):
                value = node.inputs[index]
                if value is not None and is_stored(value):
                    key = (id(graph), value)
                    if key not in subtracted:
                        subtracted[key] = _register(graph, value, _sized(value, sign=-1))
                    node.replace_input_with(index, subtracted[key])
    done = set(subtracted.values())
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value not in done:
                value.const_value = _sized(value, sign=1)
    return model


def _subtracted(node: ir.Node) -> tuple[int, ...]:
    """The operands of a node that it subtracts."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    return {"BatchNormalization": (3,), "Sub": (1,)}.get(node.op_type, ())


def _register(graph: ir.Graph, old: ir.Value, tensor: ir.TensorProtocol | None) -> ir.Value:
    """Another initializer in the place of one, which may be used elsewhere too."""
    name = f"{old.name} subtracted"
    while name in graph.initializers:
        name += "'"
    value = ir.Value(name=name, const_value=tensor, shape=old.shape, type=old.type)
    graph.register_initializer(value)
    return value


def _sized(value: ir.Value, *, sign: int) -> ir.TensorProtocol | None:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return tensor
    kind = _Magnitude
    floor = tensor.floor if isinstance(tensor, ComputedTensor) else None
    if floor is not None:
        kind = _Allowed  # type: ignore[assignment]

    def size() -> ir.TensorProtocol:
        numbers = np.abs(tensor.numpy())
        if floor is not None:
            allowed = floor / unit_rounding(numbers.dtype)
            with np.errstate(over="ignore"):
                numbers = np.maximum(numbers.astype(np.float64), allowed).astype(numbers.dtype)
        return ir.tensor(sign * numbers, dtype=tensor.dtype)

    shape = ir.Shape(list(tensor.shape))  # type: ignore[arg-type]
    return kind(size, dtype=tensor.dtype, shape=shape, name=tensor.name)


def parameters_of(value: ir.Value | None) -> tuple[str, ...]:
    """Return the names of the weights that a stored constant was computed from.

    Empty for one that is as the file has it.
    """
    tensor = stored(value)
    return tensor.parameters if isinstance(tensor, ComputedTensor) else ()
