"""Two models compared node by node: operators, connections, attributes, constants, bodies, functions, ports, opsets.

Nothing is found by its name but ports, which callers use by name. A node has a partner by where its values go, counted
from the outputs; the order in which a file lists nodes does not matter. Bodies of If, Loop and Scan are compared with
what they take from the graphs around them, and local functions by what they hold, whatever they are called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from spdexport.names import count
from spdexport.rewrite.onnx_scopes import bodies
from spdexport.verification.graph_order import in_order
from spdexport.verification.graph_ports import alike, compare_body_ports, compare_ports, origin, short, type_of
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.node_attributes import attribute_names, described, versions
from spdexport.verification.weight_errors import WeightError, error_of
from spdexport.verification.weight_values import Mismatch, compare_values, constant_of, parameters_of, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spdexport.verification.weight_errors import WeightErrors

Scope: TypeAlias = "ir.Graph | ir.Function"

_WHOLLY = WeightError(ratio=float("inf"), norm=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One of two models.

    Attributes:
        model: The model.
        sizes: The same graph with the magnitudes of its weights.
    """

    model: ir.Model
    sizes: ir.Model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Level:
    """One graph of both models.

    Attributes:
        file: The file's.
        plain: The one that is right.
        size: The file's, of magnitudes.
        plain_size: The right one's.
        opsets: The versions of operators.
        where: In words where this is; empty for the main graph.
    """

    file: Scope
    plain: Scope
    size: Scope
    plain_size: Scope
    opsets: Mapping[str, int]
    where: str = ""


class Comparison:
    """A comparison of two models.

    Args:
        file: The file.
        plain: What is right.
        found: Takes the errors of weights by layer.
        made_from: As for ``compare_weights``.
    """

    def __init__(self, file: Side, plain: Side, found: WeightErrors, *, made_from: bool = True) -> None:
        self._file, self._plain, self._found, self._made_from = file, plain, found, made_from
        self._same: dict[ir.Value | None, ir.Value | None] = {None: None}
        self._functions: dict[tuple[ir.OperatorIdentifier, ir.OperatorIdentifier], Mismatch | None] = {}

    def compare(self) -> Mismatch | None:
        """Return the first difference; after one of values or attributes the rest is compared too.

        What is told by layer needs the rest.
        """
        file, plain = self._file.model, self._plain.model
        mine, theirs = _versions(file), _versions(plain)
        for domain in sorted(mine.keys() | theirs.keys()):
            if mine.get(domain) != theirs.get(domain) and domain in mine and domain in theirs:
                return _opset(domain, mine[domain], theirs[domain], "the file")
        ports = compare_ports(file.graph, plain.graph, named=self._made_from)
        if ports is not None and len(file.graph.inputs) != len(plain.graph.inputs):
            return ports
        level = _Level(
            file=file.graph,
            plain=plain.graph,
            size=self._file.sizes.graph,
            plain_size=self._plain.sizes.graph,
            opsets=plain.opset_imports,
        )
        # Ports with other names or types are still compared further, for what is told by layer.
        inner = self._compare_level(level, is_main=True)
        return ports or inner

    def _compare_level(self, level: _Level, *, is_main: bool = False) -> Mismatch | None:
        self._same.update(zip(level.file.inputs, level.plain.inputs, strict=False))
        order, other_order = in_order(level.file), in_order(level.plain)
        listed, right = list(level.file), list(level.plain)
        nodes, others = [listed[i] for i in order], [right[i] for i in other_order]
        if not self._are_like(nodes, others):
            if not self._are_like(listed, right):
                return _at(self._first_operator(nodes, others), level)
            # The same operators, connected otherwise: as they are listed, the difference is told where it is.
            order = other_order = list(range(len(listed)))
            nodes, others = listed, right
        sizes, other_sizes = list(level.size), list(level.plain_size)
        first: Mismatch | None = None
        for node, other, index, other_index in zip(nodes, others, order, other_order, strict=True):
            mismatch = self._compare_nodes(node, other, level.opsets)
            size, other_size = sizes[index], other_sizes[other_index]
            if mismatch is None:
                mismatch = self._compare_constants(node, other, size, other_size)
                # The bodies are compared in any case, for what is told by layer.
                inner = self._compare_bodies(node, other, size, other_size, level)
                mismatch = mismatch or inner or self._compare_functions(node, other)
            else:
                self._found.add({mismatch.layer}, _WHOLLY)
            first = first or (None if mismatch is None else _at(mismatch, level))
            self._same.update(zip(node.outputs, other.outputs, strict=False))
        return first or self._compare_outputs(level, is_main=is_main)

    def _compare_outputs(self, level: _Level, *, is_main: bool) -> Mismatch | None:
        if len(level.file.outputs) != len(level.plain.outputs):
            if is_main:
                return None  # told of the ports
            what = f"a body gives {count(len(level.file.outputs), 'value')} where {len(level.plain.outputs)} is right"
            return _at(Mismatch(layer=level.where, what=what, structural=True), level)
        ends = zip(level.file.outputs, level.plain.outputs, level.size.outputs, level.plain_size.outputs, strict=True)
        for value, target, size, other_size in ends:
            name = value.name or ""
            mine, theirs = constant_of(value), constant_of(target)
            if mine is None and theirs is None and self._partner(value) is target:
                continue
            if mine is not None and theirs is not None and alike(mine, theirs):
                mismatch, ratio, _ = compare_values(name, name, mine, theirs, size, other_size, exact=self._made_from)
                if mismatch is None:
                    self._found.ratio = max(self._found.ratio, ratio)
                    continue
                return _at(mismatch, level)
            what = f"output {name} is {origin(value)} where {origin(target)} is right"
            return _at(Mismatch(layer=name, what=what, structural=True), level)
        return None

    def _partner(self, value: ir.Value | None) -> ir.Value | None:
        return self._same.get(value, value)

    @staticmethod
    def _kind(node: ir.Node, side: Side) -> str:
        """The operator; all local functions are of one kind, and compared by what they hold."""
        return "a local function" if node.op_identifier() in side.model.functions else node.op_type

    def _are_like(self, nodes: list[ir.Node], others: list[ir.Node]) -> bool:
        return [self._kind(n, self._file) for n in nodes] == [self._kind(n, self._plain) for n in others]

    def _first_operator(self, nodes: list[ir.Node], others: list[ir.Node]) -> Mismatch:
        for node, other in zip(nodes, others, strict=False):
            if self._kind(node, self._file) != self._kind(other, self._plain):
                # What should not be there has no name of the model's; the layer that it is in front of has.
                layer = layer_at(node) or layer_at(other) or layer_of(node)
                what = f"the file has {node.op_type} where {other.op_type} is right"
                return Mismatch(layer=layer, what=what, structural=True, unlike=True)
        longer, more = (nodes, "has") if len(nodes) > len(others) else (others, "lacks")
        extra = longer[min(len(nodes), len(others))]
        layer = layer_at(extra) or layer_of(extra)
        return Mismatch(layer=layer, what=f"the file {more} a further {extra.op_type}", structural=True, unlike=True)

    def _compare_nodes(self, node: ir.Node, other: ir.Node, opsets: Mapping[str, int]) -> Mismatch | None:
        def fault(what: str) -> Mismatch:
            return Mismatch(layer=layer_of(node), what=f"{node.op_type} {what}", structural=True)

        is_call = self._kind(node, self._file) != node.op_type
        domains = {"" if n.domain == "ai.onnx" else n.domain for n in (node, other)}
        if (len(domains) > 1 and not is_call) or len(node.outputs) != len(other.outputs):
            mine, theirs = (f"{n.domain or 'ai.onnx'} with {count(len(n.outputs), 'output')}" for n in (node, other))
            return fault(f"is of {mine} where {theirs} is right")
        inputs, wanted = _given(node), _given(other)
        if len(inputs) != len(wanted):
            return fault(f"has {count(len(inputs), 'input')} where {len(wanted)} is right")
        for index, (value, target) in enumerate(zip(inputs, wanted, strict=True)):
            if (stored(value) is None or stored(target) is None) and self._partner(value) is not target:
                return fault(f"reads {origin(value)} at input {index} where {origin(target)} is right")
        for name in attribute_names(node, other):
            mine, theirs = (described(n, name, opsets) for n in (node, other))
            if mine != theirs:
                return fault(f"has {name} = {short(mine)} where {short(theirs)} is right")
        if {k: len(v) for k, v in bodies(node).items()} != {k: len(v) for k, v in bodies(other).items()}:
            return fault("has other bodies than are right")
        return None

    def _compare_constants(self, node: ir.Node, other: ir.Node, size: ir.Node, other_size: ir.Node) -> Mismatch | None:
        """The first difference of the constants that two nodes of the same kind read."""
        first: Mismatch | None = None
        for index, (value, target) in enumerate(zip(_given(node), _given(other), strict=True)):
            if stored(value) is None:
                continue
            mine, theirs = constant_of(value), constant_of(target)
            name = value.name if value is not None and value.name else layer_of(node)
            layer = _layer_of_constant(value, target) or layer_of(node)
            mismatch: Mismatch | None
            added = _WHOLLY
            assert mine is not None, "the nodes read constants at the same places"
            assert theirs is not None, "the nodes read constants at the same places"
            if not alike(mine, theirs):
                what = f"{name} is {type_of(mine)} where {type_of(theirs)} is right"
                mismatch = Mismatch(layer=layer, what=what, structural=True, unlike=True)
            else:
                mismatch, ratio, error = compare_values(
                    name, layer, mine, theirs, size.inputs[index], other_size.inputs[index], exact=self._made_from
                )
                added = error_of(node.op_type, index, error, ratio, _integer(node, "group"))
                if mismatch is None:
                    self._found.ratio = max(self._found.ratio, ratio)
                    self._found.error = max(self._found.error, float(np.abs(error).max(initial=0.0)))
                else:
                    mismatch = _sourced(mismatch, parameters_of(value) or parameters_of(target))
            self._found.add({layer, name, layer_of(other)}, added)
            first = first or mismatch
        return first

    def _compare_bodies(
        self, node: ir.Node, other: ir.Node, size: ir.Node, other_size: ir.Node, level: _Level
    ) -> Mismatch | None:
        first: Mismatch | None = None
        inner = [bodies(n) for n in (node, other, size, other_size)]
        for name in inner[0]:
            for index, (file, plain, mine, theirs) in enumerate(zip(*(b[name] for b in inner), strict=True)):
                where = f"{name.removesuffix('_branch')} {'branch' if name.endswith('_branch') else ''}".strip()
                where = f"the {where} of {node.op_type} {node.name or node.outputs[0].name}"
                below = replace(
                    level,
                    file=file,
                    plain=plain,
                    size=mine,
                    plain_size=theirs,
                    where=f"{where}, {level.where}" if level.where else where,
                )
                mismatch = compare_body_ports(file, plain, index) or self._compare_level(below)
                first = first or mismatch
        return first

    def _compare_functions(self, node: ir.Node, other: ir.Node) -> Mismatch | None:
        """What the local functions that two nodes call hold; each pair of them once."""
        function = self._file.model.functions.get(node.op_identifier())
        right = self._plain.model.functions.get(other.op_identifier())
        if function is None or right is None:
            return None
        key = (node.op_identifier(), other.op_identifier())
        if key not in self._functions:
            self._functions[key] = None  # a function that calls itself is none, but is no reason to go on for ever
            self._functions[key] = self._compare_pair(function, right)
        return self._functions[key]

    def _compare_pair(self, function: ir.Function, right: ir.Function) -> Mismatch | None:
        where = f"the function {function.name}"
        mine, theirs = (versions(iter(f.all_nodes()), f.opset_imports) for f in (function, right))
        for domain in sorted(mine.keys() & theirs.keys()):
            if mine[domain] != theirs[domain]:
                return _opset(domain, mine[domain], theirs[domain], where)
        for what in ("inputs", "outputs"):
            if len(getattr(function, what)) != len(getattr(right, what)):
                has, wants = (count(len(getattr(each, what)), what.removesuffix("s")) for each in (function, right))
                reason = f"{where} has {has}, and {wants} is right"
                return Mismatch(layer=function.name, what=reason, structural=True)
        taken, wanted = (
            {n: None if a.value is None else described(_holder(a), n, {}) for n, a in f.attributes.items()}
            for f in (function, right)
        )
        if taken != wanted:
            what = f"{where} has other attributes, or other defaults of them, than are right"
            return Mismatch(layer=function.name, what=what, structural=True)
        level = _Level(
            file=function,
            plain=right,
            # A function holds no weights but its own constants, which nothing composes.
            size=function,
            plain_size=right,
            opsets=right.opset_imports,
            where=where,
        )
        return self._compare_level(level)


def _given(node: ir.Node) -> list[ir.Value | None]:
    """The inputs without those that are left out at the end: to leave one out, and not to mention it, is the same."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _at(mismatch: Mismatch, level: _Level) -> Mismatch:
    """The mismatch with where it is, which for the innermost graph is said once."""
    if not level.where or mismatch.placed:
        return mismatch
    layer = mismatch.layer or level.where
    return replace(mismatch, layer=layer, what=f"in {level.where}: {mismatch.what}", placed=True)


def _sourced(mismatch: Mismatch, parameters: tuple[str, ...]) -> Mismatch:
    """The mismatch with the names of the weights that a constant is computed from."""
    if not parameters:
        return mismatch
    more = f" and {len(parameters) - 3} more" if len(parameters) > 3 else ""
    return replace(mismatch, what=f"{mismatch.what} (computed from {', '.join(parameters[:3])}{more})")


def _layer_of_constant(value: ir.Value | None, target: ir.Value | None) -> str:
    """The layer that a stored constant belongs to, by its name or those of the weights that it is computed from."""
    for constant in (value, target):
        names = [] if constant is None else [constant.name or "", *parameters_of(constant)]
        for name in names:
            parent = name.rpartition(".")[0]
            if parent:
                return parent.partition(".parametrizations.")[0]
    return ""


def _versions(model: ir.Model) -> dict[str, int | None]:
    nodes: Iterable[ir.Node] = ir.traversal.RecursiveGraphIterator(model.graph)
    calls = {f.domain for f in model.functions.values()}
    return {d: v for d, v in versions(iter(nodes), model.opset_imports).items() if d not in calls}


def _opset(domain: str, mine: int | None, theirs: int | None, where: str) -> Mismatch:
    of = f" of {domain}" if domain else ""
    return Mismatch(layer="opset", what=f"{where} is of opset {mine}{of} where {theirs} is right", structural=True)


def _holder(attribute: ir.Attr) -> ir.Node:
    return ir.Node("", "holder", [], [attribute])


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 1 if attribute is None or attribute.is_ref() else attribute.as_int()
