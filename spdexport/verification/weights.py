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
from spdexport.factors import unit_rounding
from spdexport.names import count, shape_of
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_names import node_name
from spdexport.verification.compare import FACTOR
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.weight_errors import WeightError, WeightErrors, error_of

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray
    from spdexport.rewrite.onnx_fold import FoldResult

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
    # Whether the exporter folds a batch norm, and whether a sum is one of factorized layers, may differ between the
    # two: both are brought to the normal form in which lone layers fold as well.
    folded, magnitude = fold_onnx(file, lone=True), fold_onnx(_absolute(file), lone=True)
    wanted, wanted_magnitude = fold_onnx(plain, lone=True), fold_onnx(_absolute(plain), lone=True)
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
        mine, theirs = _constant(value), _constant(target)
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
        if _constant(value) is None and same.get(value, value) is not target:
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
        mine, theirs = _constant(value), _constant(target)
        if mine is None and theirs is None:
            continue
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
            mismatch, ratio, error = _compare_values(
                name, layer, mine, theirs, size.inputs[index], other_size.inputs[index]
            )
            added = error_of(node.op_type, index, error, ratio, _integer(node, "group"))
            if mismatch is None:
                found.ratio = max(found.ratio, ratio)
                found.error = max(found.error, float(np.abs(error).max(initial=0.0)))
        found.add({layer, name, layer_of(other)}, added)
        first = first or mismatch
    return first


def _compare_values(
    name: str, layer: str, mine: Array, theirs: Array, size: ir.Value | None, other_size: ir.Value | None
) -> tuple[Mismatch | None, float, FloatArray]:
    """Two constants of one shape and dtype: what is wrong, the largest error over its floor, and all errors, signed.

    An error is infinite where one of the two is not finite and the other is something else.
    """
    if mine.tobytes() == theirs.tobytes():
        return None, 0.0, np.zeros(mine.shape)
    bound = _bound(mine, size, other_size)
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


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 1 if attribute is None else attribute.as_int()


def _element(name: str, place: tuple[np.intp, ...]) -> str:
    return f"{name}[{_index(place)}]"


def _index(place: tuple[np.intp, ...]) -> str:
    return ", ".join(map(str, place))


def _bound(mine: Array, size: ir.Value | None, other_size: ir.Value | None) -> Array | None:
    """The floor of a composed weight's error, at each entry; None for a weight that was not composed."""
    magnitude, other = _constant(size), _constant(other_size)
    assert magnitude is not None, "the graph of magnitudes has the same structure"
    assert other is not None, "the graph of magnitudes has the same structure"
    if not (_composed(size) or _composed(other_size)):
        return None
    total = np.maximum(magnitude.astype(np.float64), other.astype(np.float64))
    # Factors and their products are made in float64, whose own rounding counts for models in float64 alone.
    reference = 16 * unit_rounding(np.dtype(np.float64)) * float(total.max(initial=0.0))
    return np.asarray(ROUNDINGS * unit_rounding(mine.dtype) * total + reference)


def _composed(value: ir.Value | None) -> bool:
    """Whether a value of the graph of magnitudes was made by folding, and is no plain |weight| of the file."""
    return value is not None and not isinstance(value.const_value, ir.LazyTensor)


def _constant(value: ir.Value | None) -> Array | None:
    if value is None:
        return None
    if value.const_value is not None and value.producer() is None:
        return value.const_value.numpy()
    return None


def _absolute(model: ir.Model) -> ir.Model:
    """The model with the magnitude of every float weight, evaluated only where it is read."""
    model = model.clone()
    # A batch norm subtracts its mean.
    means = {node.inputs[3] for node in model.graph if node.op_type == "BatchNormalization"}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            sign = -1 if value in means else 1
            value.const_value = ir.LazyTensor(
                lambda tensor=tensor, sign=sign: ir.tensor(sign * np.abs(tensor.numpy()), dtype=tensor.dtype),  # type: ignore[misc]
                dtype=tensor.dtype,
                shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
                name=tensor.name,
            )
    return model
