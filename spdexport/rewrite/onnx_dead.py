"""Remove dead channels from an ONNX graph, with what only fed them, where the result is the same for all inputs.

A channel is dead where nothing reads it (the weights behind it are zero), or where it is one constant that the biases
behind it can hold. Both follow from the weights alone::

    constant(z, o)  if all weights of row o are zero, or on channels that are constants the bias can hold
    kept(x, i)      if a layer that reads x has a weight on i, in a row that is kept, and i is no such constant;
                    or an output, a subgraph, or an operator without a rule reads x;
                    and in operators on single channels, if the channel is kept at any other operand or in the result

``kept`` is the least solution, so that what only feeds a removed channel is removed with it. It is exact for all inputs
on which the original has finite values: zero times infinity, which is NaN, is the one thing that becomes zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx_ir.passes.common import ShapeInferencePass

from spdexport.quiet import quiet
from spdexport.rewrite.onnx_dead_cut import Cut
from spdexport.rewrite.onnx_dead_layers import Layer, Track, matrix, weights
from spdexport.rewrite.onnx_dead_rules import Tracks
from spdexport.rewrite.onnx_graph import read_layer
from spdexport.rewrite.onnx_names import layer_name, node_name
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.rewrite.onnx_dead_layers import BoolArray, IntArray, Rule


Channels: TypeAlias = "Mapping[str, tuple[int, IntArray]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedChannels:
    """What was removed from one layer of the graph: V and U of a layer are two.

    Attributes:
        name: That of its weight without ``.weight``, such as ``conv1.U``; else the node's.
        layer: The layer of the model that it belongs to.
        operator: ``Conv``, ``Gemm``, ...
        inputs: The input channels removed, by their old numbers.
        inputs_before: How many there were.
        outputs: The output channels removed.
        outputs_before: How many there were.
        gone: Whether the whole node was removed.
        params_before: Numbers that it stored, weight and bias.
        params_after: Numbers that it stores now.
        weight_before: Numbers in its weight, which are its multiply-accumulates each time the kernel is applied.
        weight_after: The same now.
    """

    name: str
    layer: str
    operator: str
    inputs: tuple[int, ...]
    inputs_before: int
    outputs: tuple[int, ...]
    outputs_before: int
    gone: bool
    params_before: int
    params_after: int
    weight_before: int
    weight_after: int

    @property
    def changed(self) -> bool:
        """Whether anything was removed."""
        return self.gone or bool(self.inputs or self.outputs)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is left of a value.

    Attributes:
        axis: Of its channels.
        channels: The old numbers of those that it still has; None for all.
        shifted: Whether their values are others than before, because constants that were in them are added further on.
    """

    axis: int
    channels: tuple[int, ...] | None
    shifted: bool = False

    def of(self, before: Array) -> Array | None:
        """Return what is left of such a value as it was before; None where that does not tell what it is now."""
        if self.shifted:
            return None
        return before if self.channels is None else np.take(before, self.channels, axis=self.axis)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """A graph without its dead channels.

    Attributes:
        model: The model; the one given, where nothing was removed.
        layers: Every layer of the graph that was given, in its order, with what was removed from it.
        nodes: The names of removed nodes that are no layers.
        kept: What is left of each value that is not what it was, by name.
        instead: Sums with zeros that are gone, by name, with the names of the values that stand for them.
    """

    model: ir.Model
    layers: tuple[RemovedChannels, ...]
    nodes: tuple[str, ...]
    kept: Mapping[str, Kept]
    instead: Mapping[str, str]

    @property
    def removed(self) -> tuple[RemovedChannels, ...]:
        """The layers from which something was removed."""
        return tuple(layer for layer in self.layers if layer.changed)


def remove_dead(model: ir.Model) -> Removal:
    """Return a model without the channels that are dead, and without the layers that only fed them.

    Inputs and outputs of the graph stay what they are, every layer that is left has a channel, and what subgraphs and
    operators without a rule read stays whole.

    Args:
        model: The model; it is not changed, and shares the weights that are not cut with the result.
    """
    before = _layers(model)
    cut = Cut(model.clone(), known_shapes(model))
    changed = False
    while True:
        tracks = Tracks(shapes=cut.shapes)
        for node in cut.graph:
            tracks.visit(node)
        if not cut.replace_constants(tracks):
            kept = _kept(cut.graph, tracks)
            if all(keep.all() for keep in kept.values()):
                break
            cut.apply(tracks, kept)
        changed = True
    if not changed:
        layers = tuple(_record(layer, layer.node, {}) for layer in before.values())
        return Removal(model=model, layers=layers, nodes=(), kept={}, instead={})
    cut.finish()
    after = {node.outputs[0].name or "": node for node in cut.graph}
    gone = [node for node in model.graph if not {v.name for v in node.outputs} & after.keys()]
    return Removal(
        model=cut.model,
        layers=tuple(_record(layer, after.get(name), cut.channels) for name, layer in before.items()),
        nodes=tuple(f"{node.op_type} {node_name(node)}" for node in gone if node.outputs[0].name not in before),
        kept={name: _left(name, cut) for name in (*cut.channels, *sorted(cut.shifted - cut.channels.keys()))},
        instead=cut.instead,
    )


def _left(name: str, cut: Cut) -> Kept:
    axis, channels = cut.channels.get(name, (0, None))
    numbers = None if channels is None else tuple(map(int, channels))
    return Kept(axis=axis, channels=numbers, shifted=name in cut.shifted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Before:
    """A layer as it was."""

    node: ir.Node
    layer: Layer
    params: int
    weight: int


def _layers(model: ir.Model) -> dict[str, _Before]:
    """The layers of a graph by the names of their results."""
    tracks, found = Tracks(shapes=known_shapes(model)), {}
    for node in model.graph:
        tracks.visit(node)
    for rule in tracks.rules:
        if isinstance(rule, Layer):
            size, params = _sizes(rule.node)
            found[rule.out.name or ""] = _Before(node=rule.node, layer=rule, params=params, weight=size)
    return found


def _sizes(node: ir.Node) -> tuple[int, int]:
    """Numbers in the weight of a layer, and with its bias."""
    size = matrix(node).size
    bias = weights(node.inputs[2]) if len(node.inputs) > 2 else None
    return size, size + (0 if bias is None else bias.size)


def _record(before: _Before, after: ir.Node | None, channels: Channels) -> RemovedChannels:
    node, layer = before.node, before.layer
    inputs, outputs = layer.uses.shape[1] * layer.groups, layer.uses.shape[0]
    read = read_layer(node)
    weight = node.inputs[1]
    stored = (weight.name if weight is not None else None) or ""
    size, params = (0, 0) if after is None else _sizes(after)
    return RemovedChannels(
        name=stored.removesuffix(".weight") if "." in stored else node_name(node),
        layer=layer_name((read,), read.bias) if isinstance(read, ReadStage) else node_name(node),
        operator=node.op_type,
        inputs=_missing(layer.data, inputs, channels),
        inputs_before=inputs,
        outputs=_missing(layer.out, outputs, channels),
        outputs_before=outputs,
        gone=after is None,
        params_before=before.params,
        params_after=params,
        weight_before=before.weight,
        weight_after=size,
    )


def _missing(value: ir.Value, before: int, channels: Channels) -> tuple[int, ...]:
    found = channels.get(value.name or "")
    return () if found is None else tuple(map(int, np.setdiff1d(np.arange(before), found[1])))


def known_shapes(model: ir.Model) -> dict[str, tuple[int | str, ...]]:
    """Return the sizes of all values, as far as the model tells or lets them be inferred."""
    values = [v for node in model.graph for v in node.outputs]
    if any(v.shape is None for v in values):
        model = model.clone()
        with quiet():
            ShapeInferencePass(check_type=False, strict_mode=False)(model)
        values = [v for node in model.graph for v in node.outputs]
    found: dict[str, tuple[int | str, ...]] = {}
    for value in (*model.graph.inputs, *values):
        if value.name is None or value.shape is None:
            continue
        # A size that is not known is like no other.
        found[value.name] = tuple(
            d if isinstance(d, int) else d.value or f"?{value.name}.{axis}" for axis, d in enumerate(value.shape)
        )
    return found


def _kept(graph: ir.Graph, tracks: Tracks) -> dict[ir.Value, BoolArray]:
    """The least set of channels that has to stay, of each tracked value."""
    kept = {value: np.zeros(track.size, bool) for value, track in tracks.known.items()}
    opaque = {value for node in tracks.opaque for value in node.inputs}
    for value, keep in kept.items():
        inside = any(use.node.graph is not graph for use in value.uses())
        if value.is_graph_output() or value in opaque or inside:
            keep[:] = True
    _spread(tracks, kept)
    while empty := [value for value, keep in kept.items() if not keep.any()]:
        # A layer without channels is none: the first one stays, and what it needs.
        kept[empty[-1]][0] = True
        _spread(tracks, kept)
    return kept


def _spread(tracks: Tracks, kept: dict[ir.Value, BoolArray]) -> None:
    """Keep what the channels that are kept need, until nothing is added."""
    total = -1
    while (now := sum(int(keep.sum()) for keep in kept.values())) != total:
        total = now
        for rule in reversed(tracks.rules):
            _spread_one(rule, tracks.known, kept)


def _spread_one(rule: Rule, known: Mapping[ir.Value, Track], kept: dict[ir.Value, BoolArray]) -> None:
    out = kept[rule.out]
    if not isinstance(rule, Layer):
        for value, index in rule.operands:
            there = index >= 0
            out[there] |= kept[value][index[there]]
        for value, index in rule.operands:
            there = index >= 0
            np.logical_or.at(kept[value], index[there], out[there])
    elif rule.data not in kept:
        if rule.groups > 1:
            out[:] = True  # whose inputs stay, all of them
    elif rule.groups == 1:
        kept[rule.data] |= np.asarray(rule.uses[out]).any(axis=0) & ~rule.folds(known[rule.data])
    else:
        data = kept[rule.data].reshape(rule.groups, -1)  # views: a group stays whole, or goes
        rows = out.reshape(rule.groups, -1)
        stay = np.logical_or(data.any(axis=1), rows.any(axis=1)).reshape(-1, 1)
        data |= stay
        rows |= stay
