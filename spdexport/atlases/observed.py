"""Factorized layers of an ONNX graph: what their V and U are, and how they are watched and masked from outside."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.ablation.masked_runs import MASK
from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import CONVOLUTIONS, is_operator, read_layer
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.conv import Array

ACTIVATION, IMPORTANCE = "activation/", "ci/"
"""What the names of outputs begin with that are activations of V, and causal importances."""

_FORWARD = ("Mul", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Cast", "Identity")
_BACK = ("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity")
_FLATTENING = ("Reshape", "Flatten", "Dropout", "Identity")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factorized:
    """A layer with components.

    Attributes:
        name: Its name.
        weights: V, what each component reads: shape (C, channels, *kernel); of a linear layer (C, inputs), or of what
            it reads before that is flattened, (C, channels, height, width).
        writes: U, transposed: shape (outputs, C).
        is_flattened: Whether ``weights`` have the shape of what is flattened in front of the layer.
        has_importances: Whether the file gives the layer's causal importances out.
    """

    name: str
    weights: Array
    writes: Array
    is_flattened: bool
    has_importances: bool


def masked_layers(model: ir.Model) -> tuple[str, ...]:
    """Return the layers that take a run-time mask and give their activations out."""
    outputs = {value.name for value in model.graph.outputs}
    named = [
        (value.name or "").removeprefix(MASK) for value in model.graph.inputs if (value.name or "").startswith(MASK)
    ]
    return tuple(layer for layer in named if ACTIVATION + layer in outputs)


def with_masks(model: ir.Model) -> ir.Model:
    """Return a copy whose factorized layers all take a run-time mask, and give the activations of V out.

    Layers are known by their run-time masks, and by initializers ``<layer>.V`` and ``<layer>.U``; those whose V is used
    more than once have no single activation and are left as they are.
    """
    model = model.clone()
    graph = model.graph
    outputs = {value.name for value in graph.outputs}
    for value in list(graph.inputs):
        layer = (value.name or "").removeprefix(MASK)
        if layer != value.name and ACTIVATION + layer not in outputs:
            last = _last_stage(value)
            first = None if last is None else _first_stage(last.inputs[0])
            if first is not None:
                _give_out(graph, layer, first)
    inputs = {value.name for value in graph.inputs}
    for name in [name[:-2] for name in graph.initializers if name.endswith(".V")]:
        if f"{name}.U" not in graph.initializers or MASK + name in inputs:
            continue
        uses = graph.initializers[f"{name}.V"].uses()
        if len(uses) == 1 and (first := next(iter(uses)).node).graph is graph:
            _mask(graph, name, first)
            _give_out(graph, name, first)
    return model


def read_factorized(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> tuple[Factorized, ...]:
    """Return the layers of a file that ``masked_layers`` names, with their V and U.

    Args:
        model: The file.
        sizes: Of the graph's values by name, with a batch of 1, as far as they are known.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    found = []
    for layer in masked_layers(model):
        first, last = _first_stage(outputs[ACTIVATION + layer]), _last_stage(inputs[MASK + layer])
        if first is None or last is None:
            continue
        weights, shape = _read_by(first), None
        if weights.ndim == 2:
            shape = _flattened(first.inputs[0], sizes, weights.shape[1])
        found.append(
            Factorized(
                name=layer,
                weights=weights if shape is None else weights.reshape(len(weights), *shape),
                writes=_written_by(last, len(weights)),
                is_flattened=shape is not None,
                has_importances=IMPORTANCE + layer in outputs,
            )
        )
    return tuple(found)


def _stage(node: ir.Node | None) -> ReadStage[ir.Node, ir.Value] | None:
    read = None if node is None else read_layer(node)
    return read if isinstance(read, ReadStage) else None


def _is_first(node: ir.Node | None) -> bool:
    """Whether a node may be V: a layer, or a lookup in a table of weights."""
    if node is None:
        return False
    return _stage(node) is not None or (is_operator(node, "Gather") and constant(node.inputs[0]) is not None)


def _first_stage(value: ir.Value | None) -> ir.Node | None:
    """Return the V that a value comes from, through masks that are multiplied to it; None where there is none."""
    node = None if value is None else value.producer()
    if node is None or _is_first(node):
        return node
    if is_operator(node, *_BACK):
        return _first_stage(node.inputs[0])
    if is_operator(node, "Mul"):
        found = [_first_stage(operand) for operand in node.inputs if operand is not None]
        return next((one for one in found if one is not None), None)
    return None


def _last_stage(mask: ir.Value) -> ir.Node | None:
    """Return the U behind a run-time mask, the nearest layer that the masked activations go to; None for none."""
    waiting = deque(use.node for use in mask.uses())
    while waiting:
        node = waiting.popleft()
        if _stage(node) is not None:
            return node
        if is_operator(node, *_FORWARD):
            waiting.extend(use.node for value in node.outputs for use in value.uses())
    return None


def _read_by(node: ir.Node) -> Array:
    """Return V as rows: (C, channels, *kernel), or (C, inputs)."""
    stage = _stage(node)
    if stage is None:  # a table, a row of which is what a token makes of all components
        table = constant(node.inputs[0])
        assert table is not None, "a lookup has a table"
        return np.ascontiguousarray(table.T)
    return np.asarray(stage.stage.weight)


def _written_by(node: ir.Node, components: int) -> Array:
    """Return U as (outputs, C); with groups, a component writes to the outputs of its own group alone."""
    stage = _stage(node)
    assert stage is not None, "it was found as a layer"
    weight = np.asarray(stage.stage.weight)
    weight = weight.reshape(len(weight), -1)
    groups = components // weight.shape[1]
    if groups == 1:
        return weight
    whole = np.zeros((len(weight), components), weight.dtype)
    rows = len(weight) // groups
    for group in range(groups):
        columns = slice(group * weight.shape[1], (group + 1) * weight.shape[1])
        whole[group * rows : (group + 1) * rows, columns] = weight[group * rows : (group + 1) * rows]
    return whole


def _flattened(
    value: ir.Value | None, sizes: Mapping[str, tuple[int, ...]], inputs: int
) -> tuple[int, int, int] | None:
    """Return channels, height and width of what is flattened into a value; None where that is nothing of the kind."""
    for one in _before(value):
        shape = sizes.get(one.name or "", ())
        if len(shape) == 4 and shape[1] * shape[2] * shape[3] == inputs and shape[2] * shape[3] > 1:
            return shape[1:]
    return None


def _before(value: ir.Value | None) -> Iterator[ir.Value]:
    while value is not None:
        yield value
        node = value.producer()
        value = node.inputs[0] if node is not None and is_operator(node, *_FLATTENING) else None


def _mask(graph: ir.Graph, layer: str, first: ir.Node) -> None:
    """Multiply what V gives with a new input, for everything that uses it."""
    value, weight = first.outputs[0], _read_by(first)
    axes = weight.ndim - 2 if is_operator(first, *CONVOLUTIONS) else 0
    inner = axes or max((len(value.shape) if value.shape is not None else 2) - 2, 0)
    batch = value.shape[0] if value.shape is not None else None
    mask = ir.Value(
        name=MASK + layer,
        shape=ir.Shape([batch if isinstance(batch, int) else f"batch_{MASK}{layer}", len(weight)]),
        type=ir.TensorType(value.dtype or ir.DataType.FLOAT),
    )
    graph.inputs.append(mask)
    spread = mask
    if inner:
        # Behind the components of a convolution, and in front of those of a linear layer over tokens.
        behind = [2 + i for i in range(inner)] if axes else [1 + i for i in range(inner)]
        spread = _node(graph, first, "Unsqueeze", [mask, _axes(graph, f"{MASK}{layer}.axes", behind)])
    masked = _node(graph, first, "Mul", [value, spread], behind=True)
    for use in list(value.uses()):
        if use.node is not masked.producer():
            use.node.replace_input_with(use.idx, masked)


def _give_out(graph: ir.Graph, layer: str, first: ir.Node) -> None:
    """Make an output of what V gives, with the components on the last axis."""
    value = first.outputs[0]
    if is_operator(first, *CONVOLUTIONS):
        axes = _read_by(first).ndim - 2
        order = ir.AttrInt64s("perm", [0, *range(2, 2 + axes), 1])
        given = _node(graph, first, "Transpose", [value], order, behind=True)
    else:
        given = _node(graph, first, "Identity", [value], behind=True)
    given.name = ACTIVATION + layer
    given.type = ir.TensorType(value.dtype or ir.DataType.FLOAT)
    graph.outputs.append(given)


def _axes(graph: ir.Graph, name: str, axes: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(axes, np.int64), name=name))
    value.shape, value.type = ir.Shape([len(axes)]), ir.TensorType(ir.DataType.INT64)
    graph.initializers[name] = value
    return value


def _node(
    graph: ir.Graph,
    beside: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    *attributes: ir.Attr,
    behind: bool = False,
) -> ir.Value:
    node = ir.Node("", op_type, inputs, attributes)
    if behind:
        graph.insert_after(beside, node)
    else:
        graph.insert_before(beside, node)
    node.outputs[0].name = f"{node.op_type}_of_{inputs[0].name}"
    return node.outputs[0]
