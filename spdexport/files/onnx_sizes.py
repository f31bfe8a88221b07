"""How large the values of an ONNX graph become, told from sizes alone: nothing of the size in question is computed.

onnx's own inference of shapes is asked node by node, with the arrays that sizes are made of; those are small, and are
computed where they are constant. What a graph makes in this way out of a few bytes, such as a ConstantOfShape of a
terabyte, is refused before anything allocates it.
"""

from __future__ import annotations

import functools
import math
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from spdexport.errors import SourceError
from spdexport.files.limits import LIMITS, check_limit, limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

    from spdexport.conv import Array

GIB = 2**30

SMALL = 4096
"""Elements up to which an array may be one that sizes are made of."""

LONGEST_SHAPE = 2**20
"""Elements of a list of sizes, above which inferring shapes would itself exhaust the memory."""

ENDLESS = frozenset(("Loop", "Scan", "SequenceMap"))
"""Operators that run a graph many times; how often may depend on values."""

DRAWN = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value.

    Attributes:
        shape: Its sizes.
        dtype: onnx's number of its type.
        array: The value itself, where it is constant and small.
        of_sizes: Whether it is computed from the sizes of other values.
    """

    shape: tuple[int, ...]
    dtype: int
    array: Array | None = None
    of_sizes: bool = False

    def told(self) -> Array:
        """Return the sizes as an array, which is what the operator Shape gives."""
        return np.asarray(self.shape, dtype=np.int64)


class Sizes:
    """The sizes of the values of a model.

    Where nothing tells the size of an axis, it is 1, so that what is refused is too large on a single sample.

    Args:
        model: It is not changed. Functions that call each other in circles must have been ruled out.
        where: The file.
        inputs: The shapes of the main graph's inputs by name; what is missing is taken as the file declares it, an axis
            of no fixed size counting as 1.

    Attributes:
        are_all_known: Whether the sizes of all values are known, and no part of the model runs more than once.

    Raises:
        SourceError: A value is beyond the limit.
    """

    def __init__(self, model: onnx.ModelProto, where: str, inputs: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._where = where
        self.are_all_known = True
        opsets = _opsets(model.opset_import)
        known: ChainMap[str, Known] = ChainMap({})
        for value in model.graph.input:
            tensor = value.type.tensor_type
            if inputs is not None and value.name in inputs:
                known[value.name] = Known(tuple(inputs[value.name]), tensor.elem_type)
            elif tensor.HasField("shape"):
                known[value.name] = Known(tuple(max(d.dim_value, 0) or 1 for d in tensor.shape.dim), tensor.elem_type)
            if value.name in known:
                self._check(value.name, known[value.name])
        self._graph(model.graph, known, opsets)
        for function in model.functions:
            # What a function is called with differs from call to call.
            self._nodes(function.node, ChainMap({}), _opsets(function.opset_import))

    def _graph(self, graph: onnx.GraphProto, known: MutableMapping[str, Known], opsets: Mapping[str, int]) -> None:
        for tensor in graph.initializer:
            known[tensor.name] = _stored(tensor)
        self._nodes(graph.node, known, opsets)

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], known: MutableMapping[str, Known], opsets: Mapping[str, int]
    ) -> None:
        for node in nodes:
            if node.op_type in ENDLESS:
                self.are_all_known = False
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                    self._graph(graph, ChainMap({}, known), opsets)
            if node.op_type == "Scan":
                self._scan(node, known)
            found = dict(_inferred(node, known, opsets))
            for name, value in found.items():
                self._check(name, value, node)
            known.update(found)
            self.are_all_known &= all(name in found for name in node.output if name)

    def _scan(self, node: onnx.NodeProto, known: Mapping[str, Known]) -> None:
        """Check the trips of a Scan, which are as many as its input has rows."""
        number = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        axes = next((a.ints for a in node.attribute if a.name == "scan_input_axes"), (0,) * number)
        for name, axis in zip(node.input[len(node.input) - number :], axes, strict=False):
            shape = known[name].shape if name in known else ()
            if -len(shape) <= axis < len(shape):
                what = f"The Scan {node.name or next(iter(node.output), '')} makes {shape[axis]} trips"
                check_limit("trips", shape[axis], what, where=self._where, error=SourceError)

    def _check(self, name: str, value: Known, node: onnx.NodeProto | None = None) -> None:
        where = self._where if node is None else f"{self._where}, node {node.name or name} ({node.op_type})"
        check_value(name, value.shape, value.dtype, where=where)
        if value.of_sizes and math.prod(value.shape) > LONGEST_SHAPE:
            raise SourceError(
                f"The value {name} is a list of {math.prod(value.shape)} sizes.",
                where=where,
                hint="No model has values with that many axes: get the file from where it was made.",
            )


def check_value(name: str, shape: Sequence[int], dtype: int, *, where: str) -> None:
    """Refuse a value that is beyond the limit.

    Raises:
        SourceError: It is.
    """
    gib = -(-size_of(shape, dtype) // GIB)
    if gib > limit("value"):
        told = "x".join(map(str, shape))
        check_limit("value", gib, f"The value {name} of {told} takes {gib} GiB", where=where, error=SourceError)


def size_of(shape: Sequence[int], dtype: int) -> int:
    """Return the bytes of a tensor.

    One of strings, or of a type that is not known, counts one byte for each element.
    """
    number = math.prod(shape)
    try:
        return -(-number * ir.DataType(dtype).bitwidth // 8)
    except (TypeError, ValueError):
        return number


def too_large(node: onnx.NodeProto, version: int, arguments: Sequence[object]) -> str | None:
    """Return why a node is not to be run on these arguments: what it would give is beyond the limit.

    None where it may run.

    A float64 counts as a float32, for that is what it stands for where models are evaluated in float64.
    """
    known: dict[str, Known] = {}
    for name, value in zip(node.input, arguments, strict=False):
        if isinstance(value, np.ndarray | np.generic) and name:
            array = np.asarray(value)
            try:
                dtype = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
            except (KeyError, ValueError):
                return None
            known[name] = Known(array.shape, 1 if dtype == 11 else dtype, array if array.size <= SMALL else None)
    allowed = limit("value")
    for name, value in _inferred(node, known, {"": version}, is_run=True):
        gib = -(-size_of(value.shape, value.dtype) // GIB)
        if gib > allowed:
            return (
                f"{name or 'its output'} of {'x'.join(map(str, value.shape))} would take {gib} GiB, and the limit is "
                f"{allowed} {LIMITS['value'].unit}: --limit value={gib} raises it"
            )
    return None


def _stored(tensor: onnx.TensorProto) -> Known:
    shape = tuple(tensor.dims)
    array = None
    if math.prod(shape) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
        array = onnx.numpy_helper.to_array(tensor)
    return Known(shape, tensor.data_type, array)


def _inferred(
    node: onnx.NodeProto, known: Mapping[str, Known], opsets: Mapping[str, int], *, is_run: bool = False
) -> Iterator[tuple[str, Known]]:
    """The outputs of a node whose sizes are known; ``is_run`` says that the node is run anyway, and not here."""
    if node.domain not in _STANDARD or any(a.type in (5, 10) or a.ref_attr_name for a in node.attribute):
        return
    names = [name for name in node.input if name]
    if node.op_type == "Shape" and names and names[0] not in known:
        # Of a value about which nothing is known: as many axes as values have at most.
        yield node.output[0], Known((8,), onnx.TensorProto.INT64, of_sizes=True)
        return
    if node.op_type == "Einsum":
        yield from _einsum(node, known)
        return
    if any(name not in known for name in names):
        return
    version = next((opsets[domain] for domain in _STANDARD if domain in opsets), 0)
    schema = _schema(node.op_type, version)
    if schema is None:
        return
    arguments = [known[name] for name in names]
    types = {n: onnx.helper.make_tensor_type_proto(k.dtype, k.shape) for n, k in zip(names, arguments, strict=True)}
    data = {
        name: onnx.numpy_helper.from_array(value.array, name)
        for name, value in zip(names, arguments, strict=True)
        if value.array is not None and value.array.dtype.kind in "biuf"
    }
    try:
        outputs = onnx.shape_inference.infer_node_outputs(schema, node, types, data)
    # What does not go together is for the checker and for the runtimes to tell.
    except (
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, KeyError,
    ):  # fmt: skip
        return
    of_sizes = node.op_type == "Shape" or (
        bool(arguments)
        and all(k.of_sizes or k.array is not None for k in arguments)
        and any(k.of_sizes for k in arguments)
    )
    sized = {name: kind for name, kind in outputs.items() if name and kind.HasField("tensor_type")}
    shapes = {name: _shape(kind.tensor_type) for name, kind in sized.items()}
    if node.op_type == "Shape":
        first, last = (next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end"))
        yield node.output[0], _shape_of(arguments[0], first, last)
        return
    arrays = {} if is_run else _computed(node, version, arguments, [shapes.get(name) for name in node.output])
    for name, shape in shapes.items():
        if shape is not None:
            yield name, Known(shape, sized[name].tensor_type.elem_type, arrays.get(name), of_sizes)


def _shape_of(value: Known, first: int | None, last: int | None) -> Known:
    """What Shape gives of a value; ``first`` and ``last`` are its attributes start and end."""
    sizes = value.told()[first:last]
    return Known(sizes.shape, onnx.TensorProto.INT64, sizes, of_sizes=True)


def _shape(declared: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not declared.HasField("shape") or not all(d.HasField("dim_value") for d in declared.shape.dim):
        return None
    return tuple(d.dim_value for d in declared.shape.dim)


def _computed(
    node: onnx.NodeProto, version: int, arguments: Sequence[Known], shapes: Sequence[tuple[int, ...] | None]
) -> dict[str, Array]:
    """The outputs themselves, where they are small and constant."""
    if node.op_type in DRAWN or any(k.array is None for k in arguments):
        return {}
    if any(shape is None or math.prod(shape) > SMALL for shape in shapes):
        return {}
    names = [name for name in node.input if name]
    feeds = {name: known.array for name, known in zip(names, arguments, strict=True)}
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(node, opsets={"": version}).run(None, feeds)
    # onnx's operators raise whatever they come to; an output that cannot be told is an unknown one.
    except Exception:
        return {}
    return {
        n: np.asarray(v) for n, v in zip(node.output, values, strict=False) if isinstance(v, np.ndarray | np.generic)
    }


def _einsum(node: onnx.NodeProto, known: Mapping[str, Known]) -> Iterator[tuple[str, Known]]:
    """The product of all sizes that an equation names, of which onnx tells nothing; with ``...`` nothing is told."""
    equation = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "equation"), "")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    arguments = [known.get(name) for name in node.input]
    if "." in equation or not arrow or len(terms) != len(arguments) or not node.output:
        return
    sizes: dict[str, int] = {}
    for term, argument in zip(terms, arguments, strict=True):
        if argument is None or len(term) != len(argument.shape):
            return
        for letter, size in zip(term, argument.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if all(letter in sizes for letter in right) and arguments[0] is not None:
        yield node.output[0], Known(tuple(sizes[letter] for letter in right), arguments[0].dtype)


def _opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {entry.domain: entry.version for entry in imports}


@functools.cache
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
