"""The weights edge: a file against the plain export of the model with effective weights, for all inputs at once.

The file's factors are composed back (by structure, in float64), and what results must be the same graph as the plain
export: the same operators in the same order with the same attributes and connections. Weights that no form touched
must be equal bit for bit; composed ones must agree to the rounding of their parts. No input is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.content import graph_hash
from spdexport.names import count, shape_of
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_names import node_name
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.weight_errors import WeightError, WeightErrors, error_of
from spdexport.verification.weight_values import Mismatch, compare_values, constant_of, magnitudes, stored

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.rewrite.onnx_fold import FoldResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightsFound:
    """What comparing the weights finds.

    Attributes:
        edge: The edge's result.
        layers: The errors of each layer that was compared.
    """

    edge: EdgeResult
    layers: WeightErrors


def compare_weights(file: ir.Model, plain: ir.Model) -> WeightsFound:
    """Compare a file with the plain export of the dense model that has the plan's effective weights.

    Args:
        file: The file, as it was read back.
        plain: What ``export_onnx`` makes of the effective program.
    """
    torn = _torn(file)
    if torn is not None:
        edge = EdgeResult(edge="weights", status=Status.FAIL, first_divergence=torn.layer, reason=torn.what)
        return WeightsFound(edge=edge, layers=WeightErrors())
    # Folding composes a weight each time it is read, so that never more than those of one layer are there at once.
    # Whether the exporter folds a batch norm, and whether a sum is one of factorized layers, may differ between the
    # two: both are brought to the normal form in which lone layers fold as well.
    folded, magnitude = fold_onnx(file, lone=True), fold_onnx(magnitudes(file), lone=True)
    wanted, wanted_magnitude = fold_onnx(plain, lone=True), fold_onnx(magnitudes(plain), lone=True)
    found = WeightErrors()
    for source, result in ((plain, wanted), (file, folded)):
        layers = {node_name(node): layer_of(node) for node in source.graph}
        for chain in result.folded:
            found.compose(chain.name, {layers[name] for name in chain.nodes if name in layers})
    mismatch = _compare_opsets(file, plain) or _compare_graphs(
        folded.model.graph, wanted.model.graph, magnitude.model.graph, wanted_magnitude.model.graph, found
    )
    return WeightsFound(edge=_edge(mismatch, folded, found), layers=found)


def _torn(file: ir.Model) -> Mismatch | None:
    """A node that reads what nothing computes: such a graph cannot even be copied."""
    for node in file.graph:
        for value in node.inputs:
            known = value is None or value.is_graph_input() or value.is_initializer() or value.producer() is not None
            if not known and value is not None:
                what = f"{node.op_type} reads {value.name}, which nothing computes"
                return Mismatch(layer=layer_at(node) or layer_of(node), what=what, structural=True)
    return None


def weights_edge(file: ir.Model, plain: ir.Model) -> EdgeResult:
    """The edge alone of ``compare_weights``."""
    return compare_weights(file, plain).edge


def _edge(mismatch: Mismatch | None, folded: FoldResult, found: WeightErrors) -> EdgeResult:
    if mismatch is None:
        number = len(folded.folded)
        whose = "its effective weight" if number == 1 else "their effective weights"
        return EdgeResult(
            edge="weights",
            status=Status.PASS,
            noise_ratio=found.ratio,
            max_abs=found.error,
            reason=f"{count(number, 'layer')} composed back to {whose}; all else is equal bit for bit",
        )
    reason = mismatch.what
    if mismatch.structural and folded.declined:
        first = folded.declined[0]
        reason += f" ({first.name} was not composed back: {first.reason})"
    return EdgeResult(
        edge="weights",
        status=Status.FAIL,
        noise_ratio=mismatch.ratio,
        max_abs=mismatch.max_abs,
        first_divergence=mismatch.layer,
        reason=reason,
    )


def _compare_graphs(
    file: ir.Graph, plain: ir.Graph, file_size: ir.Graph, plain_size: ir.Graph, found: WeightErrors
) -> Mismatch | None:
    """The first difference; after one of values or attributes the rest is compared too, for what is told by layer."""
    ports = _compare_ports(file, plain)
    if ports is not None and len(file.inputs) != len(plain.inputs):
        return ports
    nodes, others = list(file), list(plain)
    if [n.op_type for n in nodes] != [n.op_type for n in others]:
        return ports or _first_operator(nodes, others)
    same: dict[ir.Value | None, ir.Value | None] = {None: None}
    same.update(zip(file.inputs, plain.inputs, strict=True))
    first = ports
    for node, other, size, other_size in zip(nodes, others, file_size, plain_size, strict=True):
        mismatch = _compare_nodes(node, other, same)
        if mismatch is None:
            mismatch = _compare_constants(node, other, size, other_size, found)
        else:
            found.add({mismatch.layer}, WeightError(ratio=float("inf"), norm=float("inf")))
        first = first or mismatch
        same.update(zip(node.outputs, other.outputs, strict=False))
    for value, target in zip(file.outputs, plain.outputs, strict=False):
        mine, theirs = constant_of(value), constant_of(target)
        if mine is not None and theirs is not None and mine.dtype == theirs.dtype and np.array_equal(mine, theirs):
            continue
        if same.get(value) is not target:
            what = f"output {value.name} is {_origin(value)} where {_origin(target)} is right"
            first = first or Mismatch(layer=value.name or "", what=what, structural=True)
    return first


def _compare_opsets(file: ir.Model, plain: ir.Model) -> Mismatch | None:
    """The same operators mean other things in other opsets."""
    used = {node.domain for node in plain.graph} | {node.domain for node in file.graph}
    for domain in sorted(used):
        mine, theirs = file.opset_imports.get(domain), plain.opset_imports.get(domain)
        if mine != theirs:
            what = f"the file is of opset {mine} where {theirs} is right"
            return Mismatch(layer="opset", what=what, structural=True)
    return None


def _compare_ports(file: ir.Graph, plain: ir.Graph) -> Mismatch | None:
    for kind, values, wanted in (("input", file.inputs, plain.inputs), ("output", file.outputs, plain.outputs)):
        got, expected = [_port(v) for v in values], [_port(v) for v in wanted]
        if got != expected:
            what = f"the file's {kind}s are {', '.join(got)} where {', '.join(expected)} is right"
            return Mismatch(layer=kind, what=what, structural=True)
    return None


def _port(value: ir.Value) -> str:
    shape = "?" if value.shape is None else shape_of(value.shape)
    return f"{value.name} ({value.dtype} of shape {shape})"


def _described(values: Array) -> str:
    return f"{values.dtype} of shape {shape_of(values.shape)}"


def _origin(value: ir.Value | None) -> str:
    """Where a value comes from, in words."""
    if value is None:
        return "nothing"
    node = value.producer()
    if node is None:
        return f"{'the input' if value.is_graph_input() else 'the constant'} {value.name}"
    return f"the output of {layer_at(node) or layer_of(node)} ({node.op_type})"


def _first_operator(nodes: list[ir.Node], others: list[ir.Node]) -> Mismatch:
    for node, other in zip(nodes, others, strict=False):
        if node.op_type != other.op_type:
            # What should not be there has no name of the model's; the layer that it is in front of has.
            layer = layer_at(node) or layer_at(other) or layer_of(node)
            what = f"the file has {node.op_type} where {other.op_type} is right"
            return Mismatch(layer=layer, what=what, structural=True)
    longer, more = (nodes, "has") if len(nodes) > len(others) else (others, "lacks")
    extra = longer[min(len(nodes), len(others))]
    layer = layer_at(extra) or layer_of(extra)
    return Mismatch(layer=layer, what=f"the file {more} a further {extra.op_type}", structural=True)


def _compare_nodes(node: ir.Node, other: ir.Node, same: dict[ir.Value | None, ir.Value | None]) -> Mismatch | None:
    def fault(what: str) -> Mismatch:
        return Mismatch(layer=layer_of(node), what=f"{node.op_type} {what}", structural=True)

    if node.domain != other.domain or len(node.outputs) != len(other.outputs):
        mine, theirs = (f"{n.domain or 'ai.onnx'} with {count(len(n.outputs), 'output')}" for n in (node, other))
        return fault(f"is of {mine} where {theirs} is right")
    if len(node.inputs) != len(other.inputs):
        return fault(f"has {len(node.inputs)} inputs where {len(other.inputs)} is right")
    for index, (value, target) in enumerate(zip(node.inputs, other.inputs, strict=True)):
        if stored(value) is None and same.get(value, value) is not target:
            return fault(f"reads {_origin(value)} at input {index} where {_origin(target)} is right")
    names = {*node.attributes, *other.attributes}
    for name in sorted(names):
        mine, theirs = (str(_attribute(n, name)) for n in (node, other))
        if mine != theirs:
            return fault(f"has {name} = {mine} where {theirs} is right")
    return None


def _attribute(node: ir.Node, name: str) -> object:
    attribute = node.attributes.get(name)
    if attribute is None:
        # An attribute that is written out with its default means the same as one that is left out.
        return _default(node, name)
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return value.numpy().tobytes()
    if isinstance(value, ir.Graph):
        return f"a graph of SHA-256 {graph_hash(value)[:16]}"
    if isinstance(value, float):
        # A file keeps float32; an export in memory has what the exporter was given.
        return float(np.float32(value))
    if isinstance(value, tuple | list):
        return [float(np.float32(v)) if isinstance(v, float) else v for v in value]
    return value


def _default(node: ir.Node, name: str) -> object:
    version = (node.graph.opset_imports if node.graph is not None else {}).get(node.domain)
    schema = None
    if version is not None and onnx.defs.has(node.op_type, node.domain):
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    if schema is None or name not in schema.attributes:
        return "nothing"
    value = onnx.helper.get_attribute_value(schema.attributes[name].default_value)
    return value.decode() if isinstance(value, bytes) else "nothing" if value is None else value


def _compare_constants(
    node: ir.Node, other: ir.Node, size: ir.Node, other_size: ir.Node, found: WeightErrors
) -> Mismatch | None:
    """The first difference of the constants that two nodes of the same kind read."""
    first: Mismatch | None = None
    for index, (value, target) in enumerate(zip(node.inputs, other.inputs, strict=True)):
        if stored(value) is None and stored(target) is None:
            continue
        mine, theirs = constant_of(value), constant_of(target)
        name = value.name if value is not None and value.name else layer_of(node)
        layer = name.rpartition(".")[0] or layer_of(node)
        mismatch: Mismatch | None
        added = WeightError(ratio=float("inf"), norm=float("inf"))
        if mine is None or theirs is None:
            what = f"input {index} of {node.op_type} is constant in one only"
            mismatch = Mismatch(layer=layer, what=what, structural=True)
        elif mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            what = f"{name} is {_described(mine)} where {_described(theirs)} is right"
            mismatch = Mismatch(layer=layer, what=what, structural=True)
        else:
            mismatch, ratio, error = compare_values(
                name, layer, mine, theirs, size.inputs[index], other_size.inputs[index]
            )
            added = error_of(node.op_type, index, error, ratio, _integer(node, "group"))
            if mismatch is None:
                found.ratio = max(found.ratio, ratio)
                found.error = max(found.error, float(np.abs(error).max(initial=0.0)))
        found.add({layer, name, layer_of(other)}, added)
        first = first or mismatch
    return first


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 1 if attribute is None else attribute.as_int()
