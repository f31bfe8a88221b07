"""A copy of an ONNX model's graph while nodes and weights are put into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.errors import UsageError
from spdexport.rewrite.onnx_constants import source_of
from spdexport.rewrite.onnx_names import node_name
from spdexport.rewrite.onnx_place import remove_unused
from spdexport.rewrite.onnx_scopes import bodies, node_keys, outermost, read_by, scope_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spdexport.conv import Array

RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
"""Operators that draw random numbers; a Dropout does where it is told that it trains."""

UNKNOWN = "?"
"""The size of an axis that is not known."""

TRAINING = 3
"""The operands of a Dropout that is told so."""


class OnnxEdit:
    """A model while forms are put into it: what ``builder.Edit`` asks for, and what the operators need beside.

    Args:
        model: The model, which is changed.
        sizes: Those of its values by name, as far as they are known.

    Attributes:
        graph: Its main graph, which new inputs and outputs are of.
        opset: Its opset.
    """

    def __init__(self, model: ir.Model, sizes: Mapping[str, tuple[Any, ...]]) -> None:
        self.graph = model.graph
        self._sizes = dict(sizes)
        self._keys = node_keys(model.graph)
        self._inputs: dict[str, ir.Value] = {}
        self._outputs: dict[str, tuple[ir.Value, tuple[Any, ...]]] = {}
        self.opset = model.opset_imports.get("", 1)
        self._names: set[str] = set()
        self._taken: set[str] = set()
        for graph in model.graphs():
            self._taken.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self._names.add(node.name or "")
                self._taken.update(value.name or "" for value in node.outputs)
        self._stored: dict[str, list[ir.Value]] = {}
        self._outermost = outermost(model.graph)

    def unique(self, name: str) -> str:
        """Return the name, or where a value has it, one with a number."""
        return _free(name, self._taken)

    def unique_node(self, name: str) -> str:
        """Return the same among nodes, which may share their names with values."""
        return _free(name, self._names)

    def store(self, name: str, array: Array, graph: ir.Graph | None = None) -> ir.Value:
        """Return the initializer that holds an array: a second call of one layer gets the one that the first has.

        It is stored in the main graph, or in the one that is given, which is the same for all calls of a layer.
        """
        for value in self._stored.get(name, []):
            held = value.const_value
            if held is not None and held.numpy().dtype == array.dtype and np.array_equal(held.numpy(), array):
                return value
        unique = self.unique(name)
        value = ir.Value(
            name=unique,
            const_value=ir.tensor(np.asarray(array, order="C"), name=unique),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        (self.graph if graph is None else graph).register_initializer(value)
        self._stored.setdefault(name, []).append(value)
        return value

    def release(self, values: Iterable[ir.Value | None]) -> None:
        """Remove what nothing uses any more, and free its names."""
        stored = [value for value in values if value is not None]
        graphs = {value.graph for value in map(source_of, stored) if value is not None and value.is_initializer()}
        before = [(graph, set(graph.initializers)) for graph in graphs if isinstance(graph, ir.Graph)]
        remove_unused(stored)
        for graph, names in before:
            self._taken -= names - set(graph.initializers)

    def node(self, key: str) -> ir.Node:
        """Return the node of a layer by the key that its site has."""
        return self._keys[key]

    def nodes(self) -> list[ir.Node]:
        """Return the nodes of the main graph in their order."""
        return list(self.graph)

    def sources(self, node: ir.Node) -> list[ir.Node]:
        """Return the nodes that a node, or a graph inside it, reads of."""
        producers = (value.producer() for value in read_by(node))
        return list(dict.fromkeys(p for p in producers if p is not None and p.graph is self.graph))

    def outermost(self, node: ir.Node) -> ir.Node:
        """Return the node of the main graph that a node is, or that it is in a body of."""
        return self._outermost[node]

    def input_of(self, node: ir.Node) -> ir.Value:
        """Return what the node of a layer reads beside its weights."""
        data = node.inputs[0]
        assert data is not None, "a layer has an input"
        return data

    def is_computed(self, node: ir.Node) -> bool:
        """Return whether a node computes something: every one does but constants."""
        return node.op_type != "Constant"

    def unrepeatable(self, node: ir.Node) -> str | None:
        """Return why a node cannot run twice; None where it can."""
        if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.inputs) >= TRAINING):
            return f"{node.op_type} twice, which draws random numbers"
        if bodies(node):
            return f"{node.op_type} twice, which holds graphs of its own"
        return None

    def node_name(self, node: ir.Node) -> str:
        """Return what a node is called."""
        return node_name(node)

    def copy(self, node: ir.Node, copies: Mapping[ir.Node, ir.Node], before: ir.Node, suffix: str = "dense") -> ir.Node:
        """Insert a second node that does the same on other values: those of the copies that its sources have."""
        inputs = [None if value is None else self.copied(value, copies) for value in node.inputs]
        new = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=self.unique_node(f"{node_name(node)}.{suffix}"),
        )
        new.metadata_props.update(node.metadata_props)
        for mine, own in zip(new.outputs, node.outputs, strict=True):
            mine.type, mine.shape = own.type, own.shape
            mine.name = self.unique(f"{own.name}.{suffix}") if own.name else ""
            if own.name in self._sizes and mine.name:
                self._sizes[mine.name] = self._sizes[own.name]
        scope_of(before).insert_before(before, new)
        return new

    def move(self, node: ir.Node, before: ir.Node) -> None:
        """Put a node in front of another one."""
        scope_of(before).insert_before(before, node)

    def copied(self, value: ir.Value, copies: Mapping[ir.Node, ir.Node]) -> ir.Value:
        """Return the same value of a node's copy; the value itself where its node has none."""
        producer = value.producer()
        copy = None if producer is None else copies.get(producer)
        return value if copy is None else copy.outputs[value.index() or 0]

    def sizes(self, value: ir.Value, layer: str) -> tuple[Any, ...]:
        """Return the sizes of a value.

        Raises:
            UsageError: They are not known.
        """
        found = self._sizes.get(value.name or "")
        if found is None:
            raise UsageError(
                "The file does not tell the sizes of what the layer computes, which a mask at run time needs.",
                where=f"--runtime-masks, --gates or --activation-outputs, layer {layer}",
                hint="Give --input-shape, or leave the layer out with --exclude.",
            )
        return found

    @property
    def batch(self) -> Any:
        """The first size of the first input that has axes; None where none has."""
        own = (v for v in self.graph.inputs if v not in self._inputs.values() and not v.is_initializer())
        return next((found[0] for v in own if (found := self._sizes.get(v.name or ""))), None)

    def is_plain(self, size: Any) -> bool:
        """Return whether a size is a number or an axis of an input, rather than computed from one."""
        return isinstance(size, int) or size in {
            s for v in self.graph.inputs for s in self._sizes.get(v.name or "", ())
        }

    def add_input(self, keyword: str, shape: tuple[Any, ...], kind: ir.TypeProtocol) -> ir.Value:
        """Return a new input of the graph, behind all that it has; the same keyword gives the same one.

        Raises:
            ValueError: The graph has a value of that name, or the same keyword was asked for with another shape.
        """
        known = self._inputs.get(keyword)
        if known is None:
            if keyword in self._taken:
                raise ValueError(f"the model has a value called {keyword}")
            dims = ir.Shape([size if isinstance(size, int) else ir.SymbolicDim(size) for size in shape])
            known = ir.Value(name=self.unique(keyword), shape=dims, type=kind)
            self.graph.inputs.append(known)
            self._inputs[keyword] = known
            self._sizes[keyword] = shape
        elif self._sizes[keyword] != shape:
            before, now = (", ".join(map(str, sizes)) for sizes in (self._sizes[keyword], shape))
            raise ValueError(f"one call needs ({before}), and another ({now})")
        return known

    def add_output(self, name: str, value: ir.Value, sizes: tuple[Any, ...]) -> None:
        """Give a value of these sizes out beside the graph's own outputs."""
        self._outputs[name] = value, sizes

    def finish(self) -> None:
        """Give the further outputs their names."""
        for name, (value, sizes) in self._outputs.items():
            value.name = self.unique(name)
            value.shape = ir.Shape([s if isinstance(s, int) else ir.SymbolicDim(s) for s in sizes])
            self.graph.outputs.append(value)


def _free(name: str, taken: set[str]) -> str:
    """The first of ``name``, ``name_2``, ... that is not taken; it is from now on."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
