"""Layers that are one layer together, recognized by structure alone, in graphs of any kind.

The algebra: a layer is an affine map of its input, so a layer behind a pointwise layer, with scales and shifts of the
channels between, is one affine map again, and so is the sum of two of them on the same input::

    fold ::= layer [scale | shift of the channels by constants]* layer      if the two compose (``forms.compose``)
           | fold + layer | fold + fold      on the same input, with outputs of one size
           | fold, scale and shift           where the graph says that these belong to the layer

``layer`` may itself be a fold, so a chain of any length becomes one layer, and its weight is rounded once. Every value
inside a fold is used inside it only, and is no output of the graph. A layer alone is not a fold. Names and metadata
are never looked at to recognize something, only to call it something.

For the normal form in which two files are compared, ``Search(lone=True)`` takes layers alone for folds in the second
line: otherwise a sum of two dense layers would stay where the sum of the same two, factorized, goes. Beyond that it
only does what undoes a factorization, a pointwise layer behind another and sums of one geometry, so that what it does
never depends on the number of components. Where layers take forms of other stages, such as k x 1 and 1 x k, or 1 x 1,
k x k and 1 x 1, ``Search(beyond=in_chains(...))`` has their geometries: rows of layers with just these are composed as
well, in both files alike, and all other consecutive convolutions stay what the model has.

What a node is, a ``GraphReader`` tells; there is one for ONNX and one for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias

from spdexport.conv import Skipped
from spdexport.forms import Form, compose, fold_form
from spdexport.forms.base import CannotComposeError
from spdexport.forms.compose import appends_pointwise
from spdexport.rewrite.stages import NodeT, ReadStage, Unreadable, ValueT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from spdexport.conv import ConvSpec
    from spdexport.forms import Stage

Chain: TypeAlias = "tuple[ConvSpec, ...]"
"""The geometries of layers in a row."""


def in_chains(chains: Iterable[Chain], *, channels: bool = True) -> Callable[[Chain], bool]:
    """Return what tells whether a row of layers is part of one of these chains, for the normal form.

    Args:
        chains: The stages of the forms that layers take, as the plan has them.
        channels: Whether the numbers of channels have to be those of the chain: not where some were removed or added.
    """

    def facts(row: Chain) -> tuple[object, ...]:
        return row if channels else tuple(spec.moves for spec in row)

    known = tuple(facts(chain) for chain in chains)

    def is_part(row: Chain) -> bool:
        own = facts(row)
        return any(own == chain[i : i + len(own)] for chain in known for i in range(len(chain) - len(own) + 1))

    return is_part


def any_chain(row: Chain) -> bool:
    """Return that a row of layers is to be composed where its algebra allows that."""
    return bool(row)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match(Generic[NodeT, ValueT]):
    """Nodes that compute an affine map of one value: a layer, or layers that fold into one.

    Attributes:
        data: The value they map.
        stage: The map, in float64 where several layers are in it.
        nodes: All of them, in no order.
        parts: The two matches that it was made of, or the one before a scale or shift was added; empty for a layer.
        layers: The layers among them, in the order of the chain, deltas before it: U is the last.
        template: The layer whose operator the folded layer takes: of convolutions the first of the right kind, which
            often has the geometry, too; of linear layers the last, which has the output.
        last: The node whose output is the map's value.
        bias: The value that gives a bias its name, or None.
        normed: Whether a batch norm is in it.
    """

    data: ValueT
    stage: Stage
    nodes: frozenset[NodeT]
    layers: tuple[ReadStage[NodeT, ValueT], ...]
    template: NodeT
    last: NodeT
    bias: ValueT | None
    normed: bool = False
    parts: tuple[Match[NodeT, ValueT], ...] = ()

    @property
    def is_fold(self) -> bool:
        """Whether a layer and something else are in it."""
        return len(self.layers) > 1 or self.normed


class GraphReader(Protocol[NodeT, ValueT]):
    """What the recognition asks of a graph."""

    def layer(self, node: NodeT) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """The node as a layer with a constant weight; None for what is no layer at all."""

    def affine(self, node: NodeT, channels: int, axes: int) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """The node as a scale or shift of ``channels`` channels before ``axes`` spatial axes; None for others."""

    def behind(self, node: NodeT, match: Match[NodeT, ValueT]) -> ReadStage[NodeT, ValueT] | None:
        """A node that uses a match's value as the last part of the same layer: a bias of its own, a batch norm."""

    def addends(self, node: NodeT) -> tuple[ValueT, ValueT] | None:
        """The two values that the node adds; None for other operators."""

    def locations(self, value: ValueT, axes: int) -> int | None:
        """Locations of one sample of a value with ``axes`` spatial axes; None where the graph does not tell."""

    def is_product(self, node: NodeT) -> bool:
        """Whether the node multiplies its operands elementwise."""

    def operands(self, node: NodeT) -> Sequence[ValueT]:
        """The values that the node uses, a layer's data first."""

    def result(self, node: NodeT) -> ValueT:
        """The value that the node computes."""

    def producer(self, value: ValueT) -> NodeT | None:
        """The node that computes the value; None for inputs and stored values."""

    def users(self, value: ValueT) -> Iterable[NodeT]:
        """The nodes that use the value."""

    def is_output(self, value: ValueT) -> bool:
        """Whether the graph gives the value out."""

    def kind(self, node: NodeT) -> str:
        """The operator's name, for reports."""

    def node_name(self, node: NodeT) -> str:
        """The node's name, for reports."""

    def layer_name(self, layers: Sequence[ReadStage[NodeT, ValueT]], bias: ValueT | None) -> str:
        """What to call the layer that some layers stand for; U is the last of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Declined(Generic[NodeT]):
    """A pair of nodes that is not one layer; ``first`` comes before ``second`` in the graph."""

    first: NodeT
    second: NodeT
    skipped: Skipped


@dataclass(slots=True, kw_only=True)
class Search(Generic[NodeT, ValueT]):
    """The matches found so far, by the value they compute; nodes must be visited in the graph's order.

    Attributes:
        graph: Tells what nodes are.
        lone: Whether a layer alone is enough for a sum to be folded.
        beyond: Of the normal form, which rows of layers are composed beside those with a pointwise second one; None
            for no others.
    """

    graph: GraphReader[NodeT, ValueT]
    lone: bool = False
    beyond: Callable[[Chain], bool] | None = None
    matches: dict[ValueT, Match[NodeT, ValueT]] = field(default_factory=dict)
    absorbed: set[ValueT] = field(default_factory=set)
    unreadable: dict[ValueT, Unreadable] = field(default_factory=dict)
    declined: list[Declined[NodeT]] = field(default_factory=list)

    def folds(self) -> list[Match[NodeT, ValueT]]:
        """The matches that are folds and not part of a larger match."""
        return [match for value, match in self.matches.items() if match.is_fold and value not in self.absorbed]

    def declined_outside(self, folded: Collection[Collection[NodeT]]) -> tuple[Skipped, ...]:
        """The pairs that are in none of the folds: one may be declined at first and folded after all in a sum."""
        return tuple(
            d.skipped for d in self.declined if not any(d.first in nodes and d.second in nodes for nodes in folded)
        )

    def visit(self, node: NodeT) -> None:
        """Find the match that ends with this node, if there is one."""
        layer = self.graph.layer(node)
        if isinstance(layer, Unreadable):
            self._decline_unreadable(node, layer)
            self.unreadable[self.graph.result(node)] = layer
            return
        match = self._extended(node) or self._sum(node) if layer is None else self._layer(layer)
        if match is not None:
            self.matches[self.graph.result(node)] = match

    def decline(self, match: Match[NodeT, ValueT], first: NodeT, reason: str) -> None:
        """Note that the layers from ``first`` to the end of the match are not one layer."""
        name = self.graph.layer_name(match.layers, match.bias)
        skipped = Skipped(name=name, kind=match.stage.spec.kind, reason=reason)
        self.declined.append(Declined(first=first, second=match.last, skipped=skipped))

    def _layer(self, layer: ReadStage[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        single = Match(
            data=layer.data,
            stage=layer.stage,
            nodes=frozenset((layer.node,)),
            layers=(layer,),
            template=layer.node,
            last=layer.node,
            bias=layer.bias,
        )
        return self._behind_another(single)

    def _decline_unreadable(self, node: NodeT, why: Unreadable) -> None:
        """A layer that cannot be read is worth a word only where it directly follows a layer."""
        earlier = self.matches.get(self.graph.operands(node)[0])
        if earlier is not None:
            skipped = Skipped(name=self.graph.node_name(node), kind=self.graph.kind(node), reason=why.reason)
            self.declined.append(Declined(first=earlier.last, second=node, skipped=skipped))

    def _behind_another(self, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """The match composed with the one in front of it, scales and shifts between them included, if there is one."""
        value, nodes, between = match.data, set(match.nodes), []
        spec, problem = match.stage.spec, None
        while value not in self.matches:
            node = self.graph.producer(value)
            if node is None:
                return match
            link = self.graph.affine(node, spec.in_channels, spec.axes)
            problem = problem or self._shared(value, nodes)
            if value in self.unreadable:
                self.decline(match, node, f"of the layer in front, {self.unreadable[value].reason}")
                return match
            if isinstance(link, ReadStage):
                between.append(link)
                value = link.data
            elif isinstance(link, Unreadable) or self.graph.is_product(node):
                # A mask that is no number per channel. The pair is still named, if a layer is in front of the mask.
                reason = link.reason if isinstance(link, Unreadable) else "the mask between is not constant"
                problem = problem or reason
                layers = [v for v in self.graph.operands(node) if v in self.matches and not self._shared(v, {node})]
                if not layers:
                    return match
                value = layers[0]
            else:
                return match
            nodes.add(node)
        earlier = self._begun(value, match)
        if earlier.stage.spec.axes != spec.axes:
            return match  # a matrix product over the last axis of a feature map
        problem = problem or self._shared(value, nodes)
        if problem is None:
            try:
                stage = self._composed(earlier, [link.stage for link in reversed(between)], match)
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
                    template=_template(stage, earlier, match),
                    parts=(earlier, match),
                    bias=_first([match.bias, *(link.bias for link in between), earlier.bias]),
                )
        self.decline(match, earlier.last, problem)
        return match

    def _begun(self, value: ValueT, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """The match in front of another one, parted again where only its last layer begins a chain with that one.

        A 1x1 layer that a chain begins with was composed with the layer in front of it, which is not of the chain.
        """
        earlier = self.matches[value]
        if self.beyond is None or len(earlier.parts) != 2 or len(match.layers) != 1:
            return earlier
        before, last = earlier.parts
        whole, own = (tuple(layer.stage.spec for layer in (*m.layers, *match.layers)) for m in (earlier, last))
        if before.data is last.data or self.beyond(whole) or not self.beyond(own):
            return earlier
        self.absorbed.discard(self.graph.result(before.last))
        self.matches[value] = last
        return last

    def _composed(self, first: Match[NodeT, ValueT], between: list[Stage], second: Match[NodeT, ValueT]) -> Stage:
        if self.lone and not appends_pointwise(first.stage.spec, second.stage.spec):
            row = tuple(layer.stage.spec for layer in (*first.layers, *second.layers))
            if self.beyond is None or not self.beyond(row):
                raise CannotComposeError("the second does more than mix the channels of the first within its groups")
        return reduce(compose, [first.stage, *between, second.stage])

    def _extended(self, node: NodeT) -> Match[NodeT, ValueT] | None:
        """A match and what the graph has behind it as part of the same layer."""
        for value in self.graph.operands(node):
            match = self.matches.get(value)
            link = None if match is None else self.graph.behind(node, match)
            if match is None or link is None or self._shared(value, {node}):
                continue
            self.absorbed.add(value)
            stage = compose(match.stage, link.stage)
            return replace(
                match,
                stage=stage,
                nodes=match.nodes | {node},
                last=node,
                bias=_first([link.bias, match.bias]),
                normed=match.normed or link.stage.mask is not None,
                parts=(match,),
            )
        return None

    def _sum(self, node: NodeT) -> Match[NodeT, ValueT] | None:
        """The sum of two matches on the same input, one of them at least a fold, unless lone layers are enough."""
        left, right = self.graph.addends(node) or (None, None)
        if left is None or right is None or left is right or left not in self.matches or right not in self.matches:
            return None
        a, b = self.matches[left], self.matches[right]
        if a.data is not b.data or not (a.is_fold or b.is_fold or self.lone):
            return None
        chain, other = (a, b) if a.is_fold else (b, a)
        problem = self._shared(left, {node}) or self._shared(right, {node})
        if problem is None and self.lone and chain.stage.spec != other.stage.spec:
            problem = "what is added to it has another geometry"
        if problem is None:
            try:
                stage = fold_form(Form(name="sum", chains=((chain.stage,), (other.stage,))))
            except CannotComposeError as error:
                problem = str(error)
        if problem is not None:
            name = self.graph.layer_name(chain.layers, chain.bias)
            skipped = Skipped(name=name, kind=chain.stage.spec.kind, reason=problem)
            self.declined.append(Declined(first=other.last, second=node, skipped=skipped))
            return None
        self.absorbed |= {left, right}
        return self._behind_another(
            replace(
                chain,
                stage=stage,
                nodes=chain.nodes | other.nodes | {node},
                layers=(*other.layers, *chain.layers),
                template=_template(stage, chain, other) if stage.spec.axes else chain.template,
                parts=(chain, other),
                last=node,
                bias=_first([chain.bias, other.bias]),
            )
        )

    def _shared(self, value: ValueT, nodes: set[NodeT]) -> str | None:
        """Why a value cannot disappear inside ``nodes``, or None if it can."""
        if self.graph.is_output(value):
            return "what is between is an output of the graph"
        if any(user not in nodes for user in self.graph.users(value)):
            return "what is between is used elsewhere"
        return None


def _template(stage: Stage, *matches: Match[NodeT, ValueT]) -> NodeT:
    """The node whose operator computes the stage: a convolution and a transposed one compose to either."""
    if not stage.spec.axes:
        return matches[-1].template
    alike = [match for match in matches if match.stage.spec.transposed == stage.spec.transposed]
    return (alike or list(matches))[0].template


def _first(values: list[ValueT | None]) -> ValueT | None:
    return next((value for value in values if value is not None), None)
