"""Put a stage into an ONNX graph, in the place of the nodes that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.conv import stored_weight
from spdexport.forms.deferred import Deferred, changed
from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import CONVOLUTIONS, conv_attributes, read_layer
from spdexport.rewrite.onnx_scopes import home, scope_of
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.conv import Array
    from spdexport.forms import Stage
    from spdexport.forms.deferred import Numbers


def place_stage(
    graph: ir.Graph,
    stage: Stage,
    *,
    data: ir.Value,
    template: ir.Node,
    last: ir.Node,
    replaced: Sequence[ir.Node],
    dtype: np.dtype[np.generic],
    layer: str,
    bias_value: ir.Value | None,
) -> None:
    """Put one layer where ``replaced`` computed ``last.outputs[0]`` from ``data``.

    ``last`` becomes the layer, so that it keeps its name, place, output and metadata. Nodes and initializers that only
    ``replaced`` used are removed. The weight is stored in the graph that stores those of ``replaced``.

    Args:
        graph: The main graph, whose names are all taken; it is changed, or one of its bodies that ``last`` is in.
        stage: The layer, without a mask. Where its weight is deferred, so is the tensor in the graph.
        data: The layer's input.
        template: The replaced node whose operator the layer takes, and whose attributes where they say the same.
        last: The replaced node whose output the layer computes.
        replaced: All the nodes that the layer stands for, in the graph's order.
        dtype: The dtype of weight and bias, to which both are rounded.
        layer: The layer's name; the weight is named after it.
        bias_value: The value that holds the bias now, which gives the bias its name, or None.
    """
    weight = _stored(stage, dtype, flat=template.op_type == "MatMul")
    scope = scope_of(last)
    store = _Store(graph=home((value for node in replaced for value in node.inputs[1:]), scope), model=graph)
    bias = None if stage.bias is None else stage.bias.astype(dtype)
    op_type = template.op_type
    attributes = _attributes(template, stage)
    operands = [value for node in replaced for value in node.inputs if value is not None]
    product: ir.Node | None = None
    if op_type == "MatMul" and bias is not None:
        product = template if template is not last else _insert_before(scope, last)

    for node in replaced:
        node.resize_inputs(0)
    scope.remove((node for node in replaced if node not in (last, product)), safe=True)
    remove_unused(operands, keep=bias_value)

    weight_value = store.add(f"{layer}.weight", weight, dtype)
    bias_operand = None if bias is None else _bias_operand(store, bias, bias_value, f"{layer}.bias")

    if product is not None:
        become(product, "MatMul", [data, weight_value], ())
        become(last, "Add", [product.outputs[0], bias_operand], ())
    else:
        inputs = [data, weight_value]
        become(last, op_type, inputs if bias_operand is None else [*inputs, bias_operand], attributes)
    if bias_value is not None:
        remove_unused([bias_value])
    remove_unreached([value for value in operands if value is not data])


def remove_unreached(values: Iterable[ir.Value | None]) -> None:
    """Remove the nodes that compute values which nothing uses any more, and what only they used."""
    pending = list(values)
    while pending:
        value = pending.pop()
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is None:
            continue
        if not any(output.uses() or output.is_graph_output() for output in producer.outputs):
            operands = [operand for operand in producer.inputs if operand is not None]
            producer.graph.remove(producer, safe=True)
            pending += operands
            remove_unused([operand for operand in operands if operand.producer() is None])


def _insert_before(graph: ir.Graph, last: ir.Node) -> ir.Node:
    """A new node in front of ``last`` whose output has the shape and type of ``last``'s."""
    product = ir.Node("", "MatMul", inputs=[], num_outputs=1)
    graph.insert_before(last, product)
    product.outputs[0].shape, product.outputs[0].type = last.outputs[0].shape, last.outputs[0].type
    product.metadata_props.update(last.metadata_props)
    return product


def become(node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr]) -> None:
    """Turn a node into another operator; its name, place, output and metadata stay."""
    node.op_type = op_type
    node.resize_outputs(1)
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    attributes = tuple(attributes)
    node.attributes.clear()
    for attribute in attributes:
        node.attributes.add(attribute)


def _attributes(template: ir.Node, stage: Stage) -> tuple[ir.Attr, ...]:
    """The attributes of the new layer: the template's own where those are right, ``auto_pad`` for instance."""
    own = tuple(template.attributes.values())
    if template.op_type == "Gemm":
        return _gemm_attributes(own)
    if template.op_type not in CONVOLUTIONS:
        return own
    old = read_layer(template)
    if isinstance(old, ReadStage) and old.stage.spec.moves == stage.spec.moves:
        return own
    return conv_attributes(stage.spec)


def _gemm_attributes(attributes: Iterable[ir.Attr]) -> tuple[ir.Attr, ...]:
    """The attributes of a Gemm that has its factors in the weight, which is stored as (out, in)."""
    plain: dict[str, ir.Attr] = {"transB": ir.AttrInt64("transB", 1)}
    for attribute in attributes:  # written only where the exporter wrote them
        match attribute.name:
            case "alpha" | "beta":
                plain[attribute.name] = ir.AttrFloat32(attribute.name, 1.0)
            case "transA":
                plain["transA"] = ir.AttrInt64("transA", 0)
    return tuple(plain.values())


def _bias_operand(store: _Store, bias: Array, old: ir.Value | None, name: str) -> ir.Value:
    """The old value where it already holds these numbers, else a new initializer of the old one's name."""
    held = constant(old)
    if old is not None and held is not None and held.dtype == bias.dtype and np.array_equal(held, bias):
        return old
    if old is not None and old.is_initializer() and old.name:
        name = old.name
        remove_unused([old])  # so that the name is free, unless another layer uses it
    return store.add(name, bias, bias.dtype)


def _stored(stage: Stage, dtype: np.dtype[np.generic], *, flat: bool) -> Numbers:
    """A stage's weight as the operator stores it, rounded to ``dtype``; ``flat`` for MatMul, which transposes it."""
    spec = stage.spec

    def stored(weight: Array) -> Array:
        with np.errstate(over="ignore"):  # whoever places a stage has asked whether it fits, or compares infinities
            rounded = stored_weight(weight, spec).astype(dtype)
        return np.ascontiguousarray(rounded.T if flat else rounded)

    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    shape = (spec.in_channels, outer) if spec.transposed else (spec.out_channels, inner)
    return changed(stage.weight, shape[::-1] if flat else (*shape, *spec.kernel), stored)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Store:
    """Where new initializers go.

    Attributes:
        graph: The graph that stores them.
        model: The main graph, whose names are taken, with those of all bodies.
    """

    graph: ir.Graph
    model: ir.Graph

    def add(self, name: str, numbers: Numbers, dtype: np.dtype[np.generic]) -> ir.Value:
        """Return a new initializer, its name extended by a number where it is taken; deferred numbers stay so."""
        taken = {value.name for node in self.model.all_nodes() for value in node.outputs}
        for graph in (self.model, *self.model.subgraphs()):
            taken.update(graph.initializers)
            taken.update(value.name for value in graph.inputs)
        unique, number = name, 1
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        kind, shape = ir.DataType.from_numpy(dtype), ir.Shape(numbers.shape)
        tensor: ir.TensorProtocol
        if isinstance(numbers, Deferred):
            tensor = ir.LazyTensor(
                lambda: ir.tensor(np.asarray(numbers), dtype=kind), dtype=kind, shape=shape, name=unique
            )
        else:
            tensor = ir.tensor(np.ascontiguousarray(numbers), name=unique)
        value = ir.Value(name=unique, const_value=tensor, shape=shape, type=ir.TensorType(kind))
        self.graph.register_initializer(value)
        return value


def remove_unused(values: Iterable[ir.Value], *, keep: ir.Value | None = None) -> None:
    """Remove those of ``values`` that nothing uses any more, with the constant nodes behind them."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if value is keep or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            if value.is_initializer() and isinstance(value.graph, ir.Graph) and value.name is not None:
                del value.graph.initializers[value.name]
        elif producer.graph is not None and constant(value) is not None:
            pending += [operand for operand in producer.inputs if operand is not None]
            producer.graph.remove(producer, safe=True)
