"""Eight bits taken back: the float graph that a quantized file stands for, with the pairs of its steps taken out.

What is left is compared with the float model node by node. Each pair of QuantizeLinear and DequantizeLinear stands for
the value that goes into it, and each quantized weight for the float weight whose name it has. Relu and Clip that a pair
does the work of come back: where the least and the greatest integer stand for no less and no more than they let
through, they change nothing in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_constants import constant
from spdexport.verification.layers import layer_of
from spdexport.verification.weight_values import Mismatch

if TYPE_CHECKING:
    from spdexport.conv import Array

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CLIPS = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """How a value between operators is quantized.

    Attributes:
        scale: The step.
        zero: The integer that stands for 0.
    """

    scale: float
    zero: Array

    def integer(self, value: float) -> float:
        """Return the integer that a number would have if there were no least and greatest one."""
        return float(np.rint(value / self.scale)) + float(self.zero)

    def does(self, low: float, high: float) -> bool:
        """Return whether quantizing lets nothing below ``low`` and above ``high`` through."""
        limits = np.iinfo(self.zero.dtype)
        return self.integer(low) <= limits.min and self.integer(high) >= limits.max


def taken_back(file: ir.Model, plain: ir.Model) -> ir.Model | Mismatch:
    """Return the float model that a quantized file stands for, with the float weights in the place of integers.

    Args:
        file: The file.
        plain: The float model, which tells weights, and which Relu and Clip there were.

    Returns:
        The model, or what of the file is no pair of steps, or has no partner in the float model.
    """
    model = file.clone()
    graph, pairs = model.graph, dict[str, Steps]()
    for node in [node for node in graph if node.op_type == DEQUANTIZE]:
        stored = node.inputs[0]
        assert stored is not None, "a file that was checked has all inputs"
        fault = _weight(graph, plain, node) if stored.is_initializer() else _pair(graph, node, pairs)
        if fault is not None:
            return Mismatch(layer=_near(node), what=fault, structural=True)
    for node in [node for node in graph if node.op_type == QUANTIZE]:
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            what = f"{QUANTIZE} of {_named(node.inputs[0])} has no {DEQUANTIZE} behind it"
            return Mismatch(layer=_near(node), what=what, structural=True)
        graph.remove(node, safe=True)
    missing = _clips(graph, plain, pairs)
    if missing is not None:
        return missing
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]
    return model


def partner(name: str, plain: ir.Model) -> ir.Value | None:
    """Return the float weight that a quantized one was made of.

    The quantizer numbers those that several layers share.
    """
    base = name.removesuffix("_quantized")
    weights = plain.graph.initializers
    return weights.get(base) or weights.get(base.rstrip("0123456789"))


def _weight(graph: ir.Graph, plain: ir.Model, node: ir.Node) -> str | None:
    """Put the float weight in the place of a quantized one; what is wrong, if something is."""
    stored = node.inputs[0]
    right = None if stored is None else partner(stored.name or "", plain)
    if right is None or right.const_value is None:
        return f"{_named(stored)} is the quantized form of no weight that the float model has"
    name = right.name or ""
    if name not in graph.initializers:
        made = ir.Value(
            name=name, type=ir.TensorType(right.const_value.dtype), shape=right.shape, const_value=right.const_value
        )
        graph.initializers[name] = made
    graph_value = graph.initializers[name]
    node.outputs[0].replace_all_uses_with(graph_value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return None


def _pair(graph: ir.Graph, node: ir.Node, pairs: dict[str, Steps]) -> str | None:
    """Take out the end of a pair; what is wrong, if something is."""
    stored, made = node.inputs[0], node.outputs[0]
    begin = None if stored is None else stored.producer()
    if begin is None or begin.op_type != QUANTIZE:
        return f"{DEQUANTIZE} reads {_named(stored)}, which no {QUANTIZE} gives"
    mine, its = ([constant(n.inputs[i]) if len(n.inputs) > i else None for i in (1, 2)] for n in (node, begin))
    if not all(map(_same, mine, its)):
        return f"{QUANTIZE} and {DEQUANTIZE} of {_named(begin.inputs[0])} have other steps or zero points"
    scale, zero = mine
    assert scale is not None, "it was compared"
    assert zero is not None, "it was compared"
    value = begin.inputs[0]
    assert value is not None, "a file that was checked has all inputs"
    if scale.size != 1 or zero.size != 1:
        return f"{_named(value)} has several steps, and one is right"
    is_output = made.is_graph_output()
    made.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        value.name, value.type, value.shape = made.name, made.type, made.shape
    pairs[value.name or ""] = Steps(scale=float(scale.reshape(())), zero=zero.reshape(()))
    return None


def _same(a: Array | None, b: Array | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _clips(graph: ir.Graph, plain: ir.Model, pairs: dict[str, Steps]) -> Mismatch | None:
    """Put back each Relu and Clip that the steps of a value do the work of."""
    made = {value.name: value for node in graph for value in node.outputs}
    for node in plain.graph:
        value = made.get(node.outputs[0].name)
        before = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.op_type not in CLIPS or value is None or before in made or before is None:
            continue
        producer = value.producer()
        assert producer is not None, "it is some node's"
        name, limits = value.name or "", _limits(node)
        if limits is None or name not in pairs or not pairs[name].does(*limits):
            what = f"{node.op_type} of {before} is missing, and the steps of {name} do not what it does"
            return Mismatch(layer=layer_of(node), what=what, structural=True)
        others = [None if v is None else graph.initializers.get(v.name or "") for v in node.inputs[1:]]
        for index, held in enumerate(node.inputs[1:]):
            if held is not None and others[index] is None:
                kept = ir.Value(name=held.name, type=held.type, shape=held.shape, const_value=held.const_value)
                graph.initializers[held.name or ""] = others[index] = kept
        back = ir.Node(
            node.domain,
            node.op_type,
            [value, *others],
            list(node.attributes.values()),
            name=node.name,
            metadata_props=dict(node.metadata_props),
            num_outputs=1,
        )
        value.name = before
        back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = name, value.type, value.shape
        uses = [(use.node, use.idx) for use in value.uses() if use.node is not back]
        graph.insert_after(producer, back)
        for reader, index in uses:
            reader.replace_input_with(index, back.outputs[0])
        made[before] = value
    return None


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip lets through; None where that is not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [float("-inf"), float("inf")]
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        held = constant(value)
        if value is not None and held is None:
            return None
        if held is not None:
            ends[index - 1] = float(held.reshape(()))
    return ends[0], ends[1]


def _named(value: ir.Value | None) -> str:
    return "nothing" if value is None else value.name or "a value without a name"


def _near(node: ir.Node) -> str:
    """The layer beside a step, for steps belong to none."""
    for value in node.outputs:
        for use in value.uses():
            if use.node.op_type not in (QUANTIZE, DEQUANTIZE):
                return layer_of(use.node)
    begin = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return layer_of(node) if begin is None else layer_of(begin)
