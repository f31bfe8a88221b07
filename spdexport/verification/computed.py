"""What a graph computes from its weights alone: evaluated in float64, with what rounding may make of it.

Exporters fold such nodes (the norm of a weight, its standardization, a dequantization) only up to a size, and differ in
which they fold. So that two graphs can be compared, each such node gives way to a stored constant, on both sides. Its
floor is measured: every operator's result is evaluated again with simulated rounding of the dtype it has in the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.factors import unit_rounding
from spdexport.reference.onnx_reference import RANDOM
from spdexport.reference.rounding_onnx import EXACT, SHAPES
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator
from spdexport.rewrite.onnx_scopes import GRAPHS
from spdexport.rewrite.onnx_sites import LAYERS
from spdexport.verification.one_node import OneNode, widened

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from spdexport.conv import Array, FloatArray

DRAWS = 6
"""Evaluations with simulated rounding, of which the root of the mean square is the floor."""

ELEMENTS = 2**28
"""The size up to which a constant is computed; a larger one stays where it is."""

ONCE = frozenset(("Cast", "CastLike", "DequantizeLinear"))
"""Operators that round once, the same way everywhere: their results are rounded here and need no floor."""

NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization")
"""Operators whose result is as large as their input, and has sums over parts of it."""

WEIGHTED = (*LAYERS, "BatchNormalization")
"""Operators that have weights."""

_READABLE = {"value", "value_float", "value_floats", "value_int", "value_ints"}


class ComputedTensor(ir.Tensor):  # type: ignore[type-arg]
    """A constant that the graph computes.

    Attributes:
        floor: What rounding may do to each entry, absolute; None where it does nothing.
        parameters: The names of the weights that it is computed from.
    """

    __slots__ = ("floor", "parameters")

    def __init__(self, values: Array, name: str, floor: FloatArray | None, parameters: tuple[str, ...]) -> None:
        super().__init__(values, dtype=ir.DataType.from_numpy(values.dtype), name=name)
        self.floor, self.parameters = floor, parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """A constant: its numbers, with simulated rounding too, the dtype it has in the file, and where it comes from."""

    exact: Array
    noisy: tuple[Array, ...]
    dtype: np.dtype[Any]
    parameters: tuple[str, ...]


def with_computed(model: ir.Model) -> ir.Model:
    """Return the model with a stored constant in the place of each value that it computes from weights alone.

    Nodes that the reference cannot evaluate, whose result is random, or that have graphs of their own stay. Constants
    keep the dtype that they have in the file; float64 is what they are computed in.

    Args:
        model: The model; it is not changed.
    """
    model = model.clone()
    for graph in model.graphs():
        if any(_reads_constants(node, {}) for node in graph):
            _replace(graph, model)
    return model


def with_computed_weights(model: ir.Model) -> ir.Model | None:
    """Return the model with a stored constant in the place of each weight that it computes from weights alone.

    None where there is none.

    A LoHa beside a layer is one, whose factors are multiplied in the graph. Weights that can be read as they are stay,
    and so does all that is no weight of a convolution, a product or a batch norm.

    Args:
        model: The model; it is not changed.
    """
    model, constants = model.clone(), set[ir.Value]()
    for node in model.graph:
        if _reads_constants(node, constants):
            constants.update(node.outputs)
    layers = (node for node in model.graph if is_operator(node, *WEIGHTED) and not constants.issuperset(node.outputs))
    weights = {value for node in layers for value in node.inputs if value in constants and constant(value) is None}
    needed, pending = set[ir.Value](), list(weights)
    while pending:
        value = pending.pop()
        maker = None if value in needed else value.producer()
        needed.add(value)
        pending += (
            [] if maker is None else [given for given in maker.inputs if given is not None and given in constants]
        )
    if not weights:
        return None
    _replace(model.graph, model, needed=needed, stored=weights)
    return model


def _replace(
    graph: ir.Graph,
    model: ir.Model,
    *,
    needed: Collection[ir.Value] | None = None,
    stored: Collection[ir.Value] | None = None,
) -> None:
    """Evaluate the nodes that give needed values, and store what others read, or what is to be stored, without floors.

    All of them with their floors where nothing is named.
    """
    known: dict[ir.Value, _Known] = {}
    replaced = []
    for node in list(graph):
        if (needed is not None and not any(value in needed for value in node.outputs)) or not _reads_constants(
            node, known
        ):
            continue
        results = _evaluated(node, known, model, floors=needed is None)
        if results is None:
            continue
        known.update(zip(node.outputs, results, strict=False))
        replaced.append(node)
    gone = set(replaced)
    for node in replaced:
        for index, value in enumerate(node.outputs):
            if value not in known or (stored is not None and value not in stored):
                continue
            if value.is_graph_output() or any(use.node not in gone for use in value.uses()):
                _store(graph, node, index, known[value])
    for node in reversed(replaced):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _store(graph: ir.Graph, node: ir.Node, index: int, known: _Known) -> None:
    """Put an initializer in the place of a node's result."""
    old = node.outputs[index]
    name = old.name or f"{node.name}.{index}"
    values = _rounded(known.exact, known.dtype)
    tensor = ComputedTensor(values, name, _floor(known), known.parameters)
    new = ir.Value(name=name, const_value=tensor, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype))
    old.name = f"{name}.computed"
    graph.register_initializer(new)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(values.astype(dtype), order="C")  # a number stays one, without axes


def _floor(known: _Known) -> FloatArray | None:
    if not known.noisy:
        return None
    with np.errstate(all="ignore"):
        squares = sum(np.square(noisy - known.exact) for noisy in known.noisy)
        floor: FloatArray = np.sqrt(np.asarray(squares, dtype=np.float64) / len(known.noisy))
    return np.where(np.isfinite(floor), floor, 0.0)


def is_stored(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer that no caller can override."""
    return (
        value is not None and value.const_value is not None and value.producer() is None and not value.is_graph_input()
    )


def _reads_constants(node: ir.Node, known: Collection[ir.Value]) -> bool:
    """Whether a node is one that gives constants."""
    if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM:
        return False
    if node.op_type == "Constant":
        return node.attributes.keys() <= _READABLE and not any(a.is_ref() for a in node.attributes.values())
    if any(a.is_ref() or a.type in GRAPHS for a in node.attributes.values()):
        return False
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(value in known or is_stored(value) for value in given)


def _evaluated(node: ir.Node, known: dict[ir.Value, _Known], model: ir.Model, *, floors: bool) -> list[_Known] | None:
    """What a node gives; None where that cannot be evaluated."""
    operands = [None if value is None else known.get(value) or _read(value) for value in node.inputs]
    if any(o is not None and (o.exact.dtype.kind not in "biuf" or o.exact.size > ELEMENTS) for o in operands):
        return None
    feeds = {index: o for index, o in enumerate(operands) if o is not None}
    parameters = tuple(dict.fromkeys(name for o in feeds.values() for name in o.parameters))
    try:
        function = OneNode(node, [None if o is None else o.dtype for o in operands], model.opset_imports)
        exact = function.run({name: o.exact for name, o in feeds.items()})
    except ReferenceUnavailable:
        return None
    if any(not isinstance(v, np.ndarray) or v.dtype.kind not in "biuf" or v.size > ELEMENTS for v in exact):
        return None
    dtypes = [d if d is not None else v.dtype for d, v in zip(function.dtypes, exact, strict=True)]
    if node.op_type in ONCE:
        exact = [_rounded(v, d).astype(v.dtype) for v, d in zip(exact, dtypes, strict=True)]
    noisy = _drawn(node, function, feeds, exact, dtypes) if floors else []
    return [
        _Known(exact=value, noisy=tuple(draw[i] for draw in noisy), dtype=dtype, parameters=parameters)
        for i, (value, dtype) in enumerate(zip(exact, dtypes, strict=True))
    ]


def _read(value: ir.Value) -> _Known:
    tensor = value.const_value
    assert tensor is not None, "the value is stored"
    if tensor.dtype is ir.DataType.STRING:
        return _Known(exact=tensor.numpy(), noisy=(), dtype=np.dtype(object), parameters=(value.name or "",))
    array = tensor.numpy()
    wide = widened(array, tensor.dtype)
    # Weights that are quantized are of one byte; other integers are sizes and axes.
    is_weight = tensor.dtype.is_floating_point() or array.dtype.itemsize == 1
    return _Known(exact=wide, noisy=(), dtype=array.dtype, parameters=(value.name or "",) if is_weight else ())


def _drawn(
    node: ir.Node,
    function: OneNode,
    operands: dict[int, _Known],
    exact: Sequence[Array],
    dtypes: Sequence[np.dtype[Any]],
) -> list[list[Array]]:
    """The results with simulated rounding, of the operands and of the node's own; none where nothing is rounded."""
    floats = [i for i, value in enumerate(exact) if value.dtype.kind == "f"]
    own = bool(floats) and node.op_type not in EXACT | SHAPES | ONCE
    if not floats or not (own or any(o.noisy for o in operands.values())):
        return []
    u = max((unit_rounding(dtypes[i]) for i in floats), default=0.0)
    size = u * math.sqrt(_terms(node, [o.exact for o in operands.values()], exact[0]))
    found = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, *node.op_type.encode(), *exact[0].shape])

        def disturbed(values: Array, rng: np.random.Generator = rng) -> Array:
            return values * (1 + size * rng.standard_normal(values.shape)) if values.dtype.kind == "f" else values

        inputs = {name: o.noisy[draw] if o.noisy else o.exact for name, o in operands.items()}
        if own and size > u:
            inputs = {name: disturbed(values) for name, values in inputs.items()}
        try:
            results = function.run(inputs)
        except ReferenceUnavailable:  # it can be computed of the exact numbers alone
            results = list(exact)
        found.append([disturbed(v) if own else v for v in results])
    return found


def _terms(node: ir.Node, operands: Iterable[Array], result: Array) -> float:
    """How many numbers one number of the result is a sum of."""
    sizes = [operand.size for operand in operands] or [1]
    match node.op_type:
        case "MatMul" | "Gemm" | "Einsum":
            return max(1.0, math.sqrt(math.prod(sizes) / max(result.size, 1))) if len(sizes) > 1 else 1.0
        case op if op.startswith("Reduce") or op in ("CumSum", "GlobalAveragePool", "Sum", "Mean"):
            return max(1.0, max(sizes) / max(result.size, 1), result.size if op == "CumSum" else 1.0)
        case "Conv" | "ConvTranspose":
            return float(max(sizes[1:2] or sizes))
        case op if op in NORMS:
            return max(1.0, max(sizes) / max(min(size for size in sizes if size > 1) if max(sizes) > 1 else 1, 1))
        case "Softmax" | "LogSoftmax":
            return float(max(result.shape or (1,)))
        case _:
            return 1.0
