"""Layers of an ONNX graph that are one layer together, recognized by structure alone.

The algebra: a layer is an affine map of its input, so a layer behind a pointwise layer, with scales and shifts of the
channels between, is one affine map again, and so is the sum of two of them on the same input::

    fold ::= layer [Mul | Add | BatchNormalization by constants per channel]* pointwise layer
           | fold + layer | fold + fold      on the same input, of the same geometry
           | fold, BatchNormalization        which the exporter would have folded into the dense layer
           | MatMul fold + bias

``layer`` may itself be a fold, so a chain of any length becomes one layer, and its weight is rounded once. Every value
inside a fold is used inside it only, and is no output of the graph. A layer alone is not a fold. Names and metadata
are never looked at to recognize something, only to call it something.

For the normal form in which two files are compared, ``Search(lone=True)`` takes layers alone for folds in the second
and third line: otherwise a sum of two dense layers would stay where the sum of the same two, factorized, goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING

from spdexport.conv import Skipped
from spdexport.forms import Form, compose, fold_form
from spdexport.forms.base import CannotComposeError
from spdexport.rewrite.onnx_constants import constant, per_channel
from spdexport.rewrite.onnx_graph import ReadStage, Unreadable, is_operator, rank_of, read_affine, read_layer
from spdexport.rewrite.onnx_names import layer_name, node_name

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from spdexport.forms import Stage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """Nodes that compute an affine map of one value: a layer, or layers that fold into one.

    Attributes:
        data: The value they map.
        stage: The map, in float64 where several layers are in it.
        nodes: All of them, in no order.
        layers: The layers among them, in the order of the chain, deltas before it: U is the last.
        template: The layer whose operator the folded layer takes: of convolutions the first, which has the geometry;
            of linear layers the last, which has the output.
        last: The node whose output is the map's value.
        bias: The value that gives a bias its name, or None.
        normed: Whether a batch norm is in it.
    """

    data: ir.Value
    stage: Stage
    nodes: frozenset[ir.Node]
    layers: tuple[ReadStage, ...]
    template: ir.Node
    last: ir.Node
    bias: ir.Value | None
    normed: bool = False

    @property
    def is_fold(self) -> bool:
        """Whether a layer and something else are in it."""
        return len(self.layers) > 1 or self.normed

    @property
    def weight_dtype(self) -> np.dtype[np.generic]:
        """The dtype that all weights in the file have; that of ``stage`` is wider."""
        weight = constant(self.layers[0].weight)
        assert weight is not None  # it was read as a layer because it is constant
        return weight.dtype


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Declined:
    """A pair of nodes that is not one layer; ``first`` comes before ``second`` in the graph."""

    first: ir.Node
    second: ir.Node
    skipped: Skipped


@dataclass(slots=True, kw_only=True)
class Search:
    """The matches found so far, by the value they compute; nodes must be visited in the graph's order.

    Attributes:
        lone: Whether a layer alone is enough for a sum or a batch norm to be folded.
    """

    lone: bool = False
    matches: dict[ir.Value, Match] = field(default_factory=dict)
    absorbed: set[ir.Value] = field(default_factory=set)
    unreadable: dict[ir.Value, Unreadable] = field(default_factory=dict)
    declined: list[Declined] = field(default_factory=list)

    def folds(self) -> list[Match]:
        """The matches that are folds and not part of a larger match."""
        return [match for value, match in self.matches.items() if match.is_fold and value not in self.absorbed]

    def visit(self, node: ir.Node) -> None:
        """Find the match that ends with this node, if there is one."""
        if is_operator(node, "Conv", "Gemm", "MatMul"):
            match = self._layer(node)
        elif is_operator(node, "Add"):
            match = self._matmul_with_bias(node) or self._sum(node)
        elif is_operator(node, "BatchNormalization"):
            match = self._batch_norm_behind(node)
        else:
            return
        if match is not None:
            self.matches[node.outputs[0]] = match

    def decline(self, match: Match, first: ir.Node, reason: str) -> None:
        """Note that the layers from ``first`` to the end of the match are not one layer."""
        skipped = Skipped(name=layer_name(match.layers, match.bias), kind=match.stage.spec.kind, reason=reason)
        self.declined.append(Declined(first=first, second=match.last, skipped=skipped))

    def _layer(self, node: ir.Node) -> Match | None:
        layer = read_layer(node)
        if isinstance(layer, Unreadable):
            self._decline_unreadable(node, layer)
            self.unreadable[node.outputs[0]] = layer
            return None
        if layer is None:
            return None
        single = Match(
            data=layer.data,
            stage=layer.stage,
            nodes=frozenset((node,)),
            layers=(layer,),
            template=node,
            last=node,
            bias=layer.bias,
        )
        return self._behind_another(single)

    def _decline_unreadable(self, node: ir.Node, why: Unreadable) -> None:
        """A layer that cannot be read is worth a word only where it directly follows a layer."""
        earlier = self.matches.get(node.inputs[0]) if node.inputs[0] is not None else None
        if earlier is not None:
            skipped = Skipped(name=node_name(node), kind=node.op_type, reason=why.reason)
            self.declined.append(Declined(first=earlier.last, second=node, skipped=skipped))

    def _behind_another(self, match: Match) -> Match:
        """The match composed with the one in front of it, scales and shifts between them included, if there is one."""
        value, nodes, between = match.data, set(match.nodes), []
        spec, problem = match.stage.spec, None
        while value not in self.matches:
            node = value.producer()
            link = None if node is None else read_affine(node, spec.in_channels, spec.axes)
            problem = problem or _shared(value, nodes)
            if node is None:
                return match
            if value in self.unreadable:
                self.decline(match, node, f"of the layer in front, {self.unreadable[value].reason}")
                return match
            if isinstance(link, ReadStage):
                between.append(link)
                value = link.data
            elif isinstance(link, Unreadable) or is_operator(node, "Mul"):
                # A mask that is no number per channel. The pair is still named, if a layer is in front of the mask.
                reason = link.reason if isinstance(link, Unreadable) else "the mask between is not constant"
                problem = problem or reason
                layers = [v for v in node.inputs if v is not None and v in self.matches and not _shared(v, {node})]
                if not layers:
                    return match
                value = layers[0]
            else:
                return match
            nodes.add(node)
        earlier = self.matches[value]
        if earlier.stage.spec.axes != spec.axes:
            return match  # a matrix product over the last axis of a feature map
        problem = problem or _shared(value, nodes)
        if problem is None:
            try:
                stage = reduce(compose, [earlier.stage, *(link.stage for link in reversed(between)), match.stage])
            except CannotComposeError as error:
                problem = str(error)
            else:
                self.absorbed.add(value)
                return replace(
                    match,
                    data=earlier.data,
                    stage=stage,
                    nodes=earlier.nodes | nodes,
                    layers=(*earlier.layers, *match.layers),
                    template=earlier.template if spec.axes else match.template,
                    bias=_first([match.bias, *(link.bias for link in between), earlier.bias]),
                )
        self.decline(match, earlier.last, problem)
        return match

    def _matmul_with_bias(self, node: ir.Node) -> Match | None:
        """A MatMul and the Add of its bias, which are one linear layer."""
        for value, addend in (tuple(node.inputs), tuple(reversed(node.inputs))):
            match, values = self.matches.get(value) if value is not None else None, constant(addend)
            if value is None or match is None or values is None:
                continue
            if match.template.op_type != "MatMul" or match.stage.bias is not None or _shared(value, {node}):
                continue
            bias = per_channel(values, match.stage.spec.out_channels, axes=0, rank=rank_of(value, 0))
            if bias is None:
                continue
            self.absorbed.add(value)
            stage = replace(match.stage, bias=bias)
            return replace(match, stage=stage, nodes=match.nodes | {node}, last=node, bias=addend)
        return None

    def _sum(self, node: ir.Node) -> Match | None:
        """The sum of two matches on the same input, one of them at least a fold, unless lone layers are enough."""
        left, right = node.inputs
        if left is None or right is None or left is right or left not in self.matches or right not in self.matches:
            return None
        a, b = self.matches[left], self.matches[right]
        if a.data is not b.data or not (a.is_fold or b.is_fold or self.lone):
            return None
        chain, other = (a, b) if a.is_fold else (b, a)
        problem = _shared(left, {node}) or _shared(right, {node})
        if problem is None and chain.stage.spec != other.stage.spec:
            problem = "what is added to it has another geometry"
        if problem is not None:
            skipped = Skipped(name=layer_name(chain.layers, chain.bias), kind=chain.stage.spec.kind, reason=problem)
            self.declined.append(Declined(first=other.last, second=node, skipped=skipped))
            return None
        self.absorbed |= {left, right}
        return self._behind_another(
            replace(
                chain,
                stage=fold_form(Form(name="sum", chains=((chain.stage,), (other.stage,)))),
                nodes=chain.nodes | other.nodes | {node},
                layers=(*other.layers, *chain.layers),
                last=node,
                bias=_first([chain.bias, other.bias]),
            )
        )

    def _batch_norm_behind(self, node: ir.Node) -> Match | None:
        """A fold and the batch norm behind it.

        Exporters fold batch norm into the layer before it, but not where a sum is between; the batch norm would then
        stay in the folded file, and is not in the plain export of the dense layer.
        """
        value = node.inputs[0]
        match = self.matches.get(value) if value is not None else None
        if value is None or match is None or not (match.is_fold or self.lone) or _shared(value, {node}):
            return None
        norm = read_affine(node, match.stage.spec.out_channels, match.stage.spec.axes)
        if not isinstance(norm, ReadStage):
            return None
        self.absorbed.add(value)
        stage = compose(match.stage, norm.stage)
        return replace(match, stage=stage, nodes=match.nodes | {node}, last=node, normed=True)


def _shared(value: ir.Value, nodes: set[ir.Node]) -> str | None:
    """Why a value cannot disappear inside ``nodes``, or None if it can."""
    if value.is_graph_output():
        return "what is between is an output of the graph"
    if any(use.node not in nodes for use in value.uses()):
        return "what is between is used elsewhere"
    return None


def _first(values: list[ir.Value | None]) -> ir.Value | None:
    return next((value for value in values if value is not None), None)
