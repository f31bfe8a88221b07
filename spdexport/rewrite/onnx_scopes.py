"""A graph with the graphs inside of it: the bodies of If, Loop and Scan, which see all that is around them.

This is the one place that knows of scopes. A node is changed in the graph that it is in (``node.graph``), a constant
belongs to the graph that stores it, and whoever looks for layers walks all scopes; nothing else tells the main graph
and a body apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.rewrite.onnx_constants import source_of
from spdexport.rewrite.onnx_names import node_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
"""Types of attributes that hold bodies."""

_SHORT = {"then_branch": "then", "else_branch": "else"}


def bodies(node: ir.Node) -> dict[str, list[ir.Graph]]:
    """Return the graphs of a node by the names of the attributes that hold them."""
    found: dict[str, list[ir.Graph]] = {}
    for name, attribute in node.attributes.items():
        if attribute.type in GRAPHS and not attribute.is_ref():
            value = attribute.value
            found[name] = list(value) if isinstance(value, tuple | list) else [value]
    return found


def read_by(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, those that its bodies take from around them, and make, too."""
    found = [value for value in node.inputs if value is not None]
    for graphs in bodies(node).values():
        for graph in graphs:
            for inner in graph:
                found += read_by(inner)
            found += list(graph.outputs)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """One graph of a model.

    Attributes:
        graph: The graph.
        place: Where it is, without spaces: ``choice.then`` in the node ``choice``, ``again.body/choice.then`` in a node
            of a body; empty for the main graph. No other graph of the model has the same.
        owner: The node that it is a body of; None for the main graph.
    """

    graph: ir.Graph
    place: str = ""
    owner: ir.Node | None = None


def scopes(graph: ir.Graph) -> Iterator[Scope]:
    """Yield a graph and all bodies inside of it, each behind the one around it.

    A graph may be changed when it comes: the bodies of what it holds then follow.
    """
    yield from _scopes(Scope(graph=graph), {""})


def _scopes(scope: Scope, taken: set[str]) -> Iterator[Scope]:
    yield scope
    for node in scope.graph:
        for inner in _inside(node, scope, taken):
            yield from _scopes(inner, taken)


def _inside(node: ir.Node, scope: Scope, taken: set[str]) -> Iterator[Scope]:
    """The bodies of a node of a scope, with places that nothing else has."""
    for name, graphs in bodies(node).items():
        for number, graph in enumerate(graphs):
            short = _SHORT.get(name, name) + (str(number) if len(graphs) > 1 else "")
            own = "_".join(node_name(node).split())
            around = f"{scope.place}/" if scope.place else ""
            place, count = f"{around}{own}.{short}", 1
            while place in taken:
                count += 1
                place = f"{around}{own}#{count}.{short}"
            taken.add(place)
            yield Scope(graph=graph, place=place, owner=node)


def all_nodes(graph: ir.Graph) -> Iterator[tuple[Scope, ir.Node]]:
    """Yield the nodes of a graph, each followed by those of its bodies, with the scope that each is in."""
    yield from _all_nodes(Scope(graph=graph), {""})


def _all_nodes(scope: Scope, taken: set[str]) -> Iterator[tuple[Scope, ir.Node]]:
    for node in scope.graph:
        yield scope, node
        for inner in _inside(node, scope, taken):
            yield from _all_nodes(inner, taken)


def keyed_nodes(graph: ir.Graph) -> Iterator[tuple[str, Scope, ir.Node]]:
    """Yield all nodes with their names made unique, those in bodies with their place in front, and their scopes.

    Every copy of a graph has the same keys.
    """
    taken: set[str] = set()
    for scope, node in all_nodes(graph):
        name = f"{scope.place}/{node_name(node)}" if scope.place else node_name(node)
        key, number = name, 1
        while key in taken:
            number += 1
            key = f"{name}#{number}"
        taken.add(key)
        yield key, scope, node


def node_keys(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return all nodes by their keys."""
    return {key: node for key, _, node in keyed_nodes(graph)}


def outermost(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Return for each node inside of a graph the node of the graph itself that it is, or that it is in a body of."""
    found: dict[ir.Node, ir.Node] = {}
    last = None
    for scope, node in all_nodes(graph):
        last = node if not scope.place else last
        assert last is not None, "a body comes behind its node"
        found[node] = last
    return found


def given_to(value: ir.Value, scope: Scope) -> ir.Value | None:
    """Return what the node around a body gives for one of the body's inputs at first; None for all other values.

    A Loop counts and carries the rest from one step to the next, and so does a Scan, beside what it takes apart.
    """
    if scope.owner is None or value not in scope.graph.inputs or scope.owner.op_type not in ("Loop", "Scan"):
        return None
    place = list(scope.graph.inputs).index(value)
    return scope.owner.inputs[place] if place < len(scope.owner.inputs) else None


def takes_apart(value: ir.Value, scope: Scope) -> bool:
    """Return whether an input of a body is a part of a longer value, another one at each step of a Scan."""
    if scope.owner is None or scope.owner.op_type != "Scan" or value not in scope.graph.inputs:
        return False
    inputs = list(scope.graph.inputs)
    return inputs.index(value) >= len(inputs) - scope.owner.attributes.get_int("num_scan_inputs", 0)


def home(constants: Iterable[ir.Value | None], scope: ir.Graph) -> ir.Graph:
    """Return the graph that stores some constants, to store there what takes their place.

    Where they are stored in several, or nowhere, it is the scope that reads them, which sees them all.
    """
    sources = (source_of(value) for value in constants)
    stored = (s for s in sources if s is not None and (s.is_initializer() or s.producer() is not None))
    graph, *others = {value.graph for value in stored} or {scope}
    return graph if isinstance(graph, ir.Graph) and not others else scope


def scope_of(node: ir.Node) -> ir.Graph:
    """Return the graph that a node is in."""
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a layer is in a graph"
    return graph


def initializer_named(model: ir.Model, name: str) -> ir.Value | None:
    """Return the initializer of a name, of the main graph or of a body."""
    found = (graph.initializers.get(name) for graph in model.graphs())
    return next((value for value in found if value is not None), None)
