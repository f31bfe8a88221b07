"""What an ONNX model has to be before anything looks at it, beyond what onnx.checker asks for.

Names and metadata that are text; tensors whose data are as long as their dimensions say, wherever they are stored;
functions that end; windows of convolutions and poolings that exist; and no more of anything than the limits allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import onnx
import onnx_ir as ir

from spdexport.errors import SourceError
from spdexport.files.limits import check_limit
from spdexport.files.onnx_external import check_external
from spdexport.files.onnx_sizes import check_value
from spdexport.files.onnx_windows import check_window
from spdexport.names import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MAKE_AGAIN = "Copy or export the file again; what is invalid before cannot be proved equal after."

DEEPEST = 100
"""Functions that call each other in a row, as many as onnx.checker allows."""

_FIELDS = {
    "float_data": ("FLOAT", "COMPLEX64"),
    "double_data": ("DOUBLE", "COMPLEX128"),
    "int64_data": ("INT64",),
    "uint64_data": ("UINT64", "UINT32"),
    "string_data": ("STRING",),
}
"""Where the numbers of a type are that are not raw; those of all others are in ``int32_data``."""

_OWN_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms")
"""Domains, and what is below them, whose operators ONNX Runtime brings itself."""

_TensorProto = onnx.TensorProto
_AttributeProto = onnx.AttributeProto


def check_structure(model: onnx.ModelProto, path: Path) -> None:
    """Check a model as it was parsed.

    Raises:
        SourceError: It is damaged, or beyond a limit.
    """
    _Structure(model, path).check()


@dataclass(slots=True)
class _Structure:
    """The walk through one model; ``nodes`` and ``tensors`` count what was seen."""

    model: onnx.ModelProto
    path: Path
    nodes: int = 0
    tensors: int = 0
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto] = field(default_factory=dict)
    expanded: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def check(self) -> None:
        model = self.model
        self._texts("the metadata", (text for entry in model.metadata_props for text in (entry.key, entry.value)))
        self._opsets("the model", model.opset_import)
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        if len(self.functions) < len(model.functions):
            self._refuse("Two functions have the same name.", "the functions")
        for function in model.functions:
            self._texts(
                f"function {function.name}", (function.name, function.domain, *function.input, *function.output)
            )
            self._opsets(f"function {function.name}", function.opset_import)
        total = self._count(model.graph.node, ())
        for function in model.functions:
            self._called((function.domain, function.name, function.overload), ())
        self._limit("nodes", total, f"The graph has {total} nodes, those of the functions that it calls included")
        self._graph(model.graph, {}, "the graph")
        for function in model.functions:
            self._walk(function.node, {}, is_function=True)
        self._limit("nodes", self.nodes, f"The graph and the functions have {self.nodes} nodes")
        self._limit("tensors", self.tensors, f"The file holds {self.tensors} tensors")

    # --- How much there is ---

    def _count(self, nodes: Iterable[onnx.NodeProto], calls: tuple[tuple[str, str, str], ...]) -> int:
        """The nodes there are once every call of a function is replaced by its body."""
        total = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type, node.overload)
            if key in self.functions:
                total += self._called(key, calls)
            for graph in _graphs(node):
                total += self._count(graph.node, calls)
        return total

    def _called(self, key: tuple[str, str, str], calls: tuple[tuple[str, str, str], ...]) -> int:
        if key in self.expanded:
            return self.expanded[key]
        name = f"function {key[1]}"
        if key in calls:
            self._refuse(f"The function {key[1]} calls itself, at last.", name)
        if len(calls) >= DEEPEST:
            self._refuse(f"More than {DEEPEST} functions call each other in a row.", name)
        self.expanded[key] = self._count(self.functions[key].node, (*calls, key))
        return self.expanded[key]

    # --- Graphs and nodes ---

    def _graph(
        self, graph: onnx.GraphProto, outer: Mapping[str, tuple[int, ...]], where: str, *, is_function: bool = False
    ) -> None:
        """``outer`` has the dimensions of the constants around the graph, by name."""
        ports = (*graph.input, *graph.output, *graph.value_info)
        self._texts(where, (graph.name, *(value.name for value in ports)))
        self.tensors += len(graph.initializer) + len(graph.sparse_initializer)
        # Before any of them is looked at, so that a file of millions is refused at once.
        self._limit("tensors", self.tensors, f"The file holds {self.tensors} tensors or more")
        constants = dict(outer)
        for tensor in graph.initializer:
            self._tensor(tensor, f"initializer {tensor.name!r}")
            constants[tensor.name] = tuple(tensor.dims)
        for sparse in graph.sparse_initializer:
            self._sparse(sparse, f"sparse initializer {sparse.values.name!r}")
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._walk(graph.node, constants, types=types, is_function=is_function)

    def _walk(
        self,
        nodes: Sequence[onnx.NodeProto],
        constants: dict[str, tuple[int, ...]],
        *,
        types: Mapping[str, int] | None = None,
        is_function: bool = False,
    ) -> None:
        self.nodes += len(nodes)
        self._limit("nodes", self.nodes, f"The graph has {self.nodes} nodes or more")
        types = dict(types or {})
        for index, node in enumerate(nodes):
            name = f"node {_told(node, index)}"
            self._texts(name, (node.name, node.op_type, node.domain, *node.input, *node.output))
            for attribute in node.attribute:
                self._attribute(attribute, constants, f"{name}, attribute {attribute.name!r}", is_function=is_function)
                if node.op_type == "Constant" and attribute.type == _AttributeProto.TENSOR and node.output:
                    constants[node.output[0]] = tuple(attribute.t.dims)
                    types[node.output[0]] = attribute.t.data_type
            self._call(node, name)
            self._bodies(node, name)
            if node.domain in ("", "ai.onnx") and (what := check_window(node, constants, types)) is not None:
                self._refuse(what, name)

    def _attribute(
        self, attribute: onnx.AttributeProto, constants: Mapping[str, tuple[int, ...]], where: str, *, is_function: bool
    ) -> None:
        self._texts(where, (attribute.name, attribute.ref_attr_name))
        if attribute.ref_attr_name and not is_function:
            self._refuse("The attribute is that of a function, and stands outside of one.", where)
        for tensor in (attribute.t, *attribute.tensors) if attribute.type in (4, 9) else ():
            self.tensors += 1
            self._tensor(tensor, where)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors) if attribute.type in (11, 12) else ():
            self.tensors += 1
            self._sparse(sparse, where)
        for graph in inner_graphs(attribute):
            self._graph(graph, constants, where, is_function=is_function)

    def _call(self, node: onnx.NodeProto, where: str) -> None:
        """Check the call of a function, if a node is one."""
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            if len(node.input) > len(function.input) or len(node.output) > len(function.output):
                self._refuse(f"The function {node.op_type} has fewer arguments or results than its call.", where)
            return
        is_own = node.domain and not node.domain.startswith(_OWN_DOMAINS)
        if is_own and any(domain == node.domain for domain, _, _ in self.functions):
            self._refuse(f"There is no function {node.op_type} among those of {node.domain} in the file.", where)

    def _bodies(self, node: onnx.NodeProto, where: str) -> None:
        """Check that the graphs of an If or a Loop give as many values as it has."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("If", "Loop"):
            return
        further = 1 if node.op_type == "Loop" else 0
        for graph in _graphs(node):
            if len(graph.output) != len(node.output) + further:
                given, wanted = count(len(graph.output), "value"), len(node.output) + further
                self._refuse(f"Its graph gives {given}, and {wanted} are needed.", where)
            if node.op_type == "Loop" and len(graph.input) != max(len(node.input), 2):
                self._refuse(
                    f"Its graph takes {count(len(graph.input), 'value')}, and gets {max(len(node.input), 2)}.", where
                )

    # --- Tensors ---

    def _tensor(self, tensor: onnx.TensorProto, where: str) -> None:
        self._texts(where, (tensor.name,))
        try:
            kind = ir.DataType(tensor.data_type)
        except ValueError:
            self._refuse(f"The type of the tensor, {tensor.data_type}, is none that ONNX has.", where)
        if kind is ir.DataType.UNDEFINED:
            self._refuse("The tensor has no type.", where)
        if any(dim < 0 for dim in tensor.dims):
            self._refuse(f"The tensor has the dimensions {_shape(tensor.dims)}.", where)
        number = math.prod(tensor.dims)
        if tensor.data_location == _TensorProto.EXTERNAL:
            if kind is ir.DataType.STRING:
                self._refuse("A tensor of strings cannot be in another file.", where)
            check_external(tensor, _bytes(kind, number), self.path, where)
            return
        if tensor.HasField("raw_data"):
            held, needed, unit = len(tensor.raw_data), -1, "bytes"
            if kind is not ir.DataType.STRING:
                needed = _bytes(kind, number)
        else:
            name = next((f for f, names in _FIELDS.items() if kind.name in names), "int32_data")
            held, needed, unit = len(getattr(tensor, name)), number, f"numbers of {name}"
            if kind.name.startswith("COMPLEX"):
                needed *= 2
            elif name == "int32_data" and kind.bitwidth < 8:
                needed = _bytes(kind, number)
        if held != needed:
            self._refuse(
                f"The tensor of {_shape(tensor.dims)} needs {max(needed, 0)} {unit} of {kind.name} and has {held}.",
                where,
            )

    def _sparse(self, sparse: onnx.SparseTensorProto, where: str) -> None:
        for tensor in (sparse.values, sparse.indices):
            self._tensor(tensor, where)
        if any(dim < 0 for dim in sparse.dims):
            self._refuse(f"The sparse tensor has the dimensions {_shape(sparse.dims)}.", where)
        # Whoever reads it makes a dense one of it.
        check_value(sparse.values.name, sparse.dims, sparse.values.data_type, where=f"{self.path}, {where}")

    # --- What is said ---

    def _texts(self, where: str, texts: Iterable[str]) -> None:
        """Refuse what is not UTF-8, which protobuf gives as bytes."""
        for text in texts:
            if not isinstance(text, str):
                self._refuse(f"{bytes(text[:40])!r} is no text in UTF-8.", where)

    def _opsets(self, where: str, imports: Sequence[onnx.OperatorSetIdProto]) -> None:
        versions: dict[str, int] = {}
        for entry in imports:
            self._texts(where, (entry.domain,))
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if versions.setdefault(domain, entry.version) != entry.version:
                self._refuse(f"The operators of {domain or 'ONNX'} are imported in two versions.", where)

    def _limit(self, name: str, number: int, what: str) -> None:
        check_limit(name, number, what, where=str(self.path), error=SourceError)

    def _refuse(self, what: str, where: str) -> NoReturn:
        raise SourceError(what, where=f"{self.path}, {where}", hint=MAKE_AGAIN)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node has as attributes."""
    return [graph for attribute in node.attribute for graph in inner_graphs(attribute)]


def inner_graphs(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    """Return the graphs that an attribute holds."""
    if attribute.type == _AttributeProto.GRAPH:
        return (attribute.g,)
    return attribute.graphs if attribute.type == _AttributeProto.GRAPHS else ()


def stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Return the initializers of a graph, the tensors inside of its nodes, and those of the graphs inside of it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.type in (4, 9) else ()
        for inner in _graphs(node):
            yield from stored_tensors(inner)


def _told(node: onnx.NodeProto, index: int) -> str:
    return f"{node.name or next(iter(node.output), '') or f'number {index}'} ({node.op_type})"


def _bytes(kind: ir.DataType, number: int) -> int:
    return -(-number * kind.bitwidth // 8)


def _shape(dims: Iterable[int]) -> str:
    return "x".join(map(str, dims)) or "no axes"
