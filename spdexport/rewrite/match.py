"""Layers that are one layer together, recognized by structure alone, in graphs of any kind.

The algebra: a layer is an affine map of its input, and so are a scale or a shift of the channels by constants, a batch
norm in inference, and a padding with zeros (``link``). Maps in a row that compose (``forms.compose``) are one map
again, and so is the sum of maps of the same input::

    map  ::= layer | link | map map
           | a map + b map [+ ...]      on the same input, with outputs of one size; a and b are numbers
    term ::= map | the input itself | term, average pooling, term

The maps of a sum may be any term, the input itself too. A pooling is a convolution only where it is added to one;
alone it stays a pooling, which is cheaper. A map is a fold where it has two layers or more, or a layer and a batch
norm, or is a sum with a layer in it: a layer alone is not, whatever scales it. Every value inside a fold is used inside
it only, and is no output of the graph. Nodes that hand a value on unchanged are looked through. Names and metadata are
never looked at to recognize something, only to call it something.

What a node is, a ``GraphReader`` tells; there is one for ONNX and one for torch. ``search`` finds the folds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias

import numpy as np

from spdexport.factors import unit_rounding
from spdexport.forms import Stage, compose
from spdexport.forms.base import CannotComposeError, absorbed
from spdexport.rewrite.stages import NodeT, ReadStage, Unreadable, ValueT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spdexport.conv import ConvSpec, Skipped
    from spdexport.rewrite.stages import Addend, Filling, OddBorder

_ROUNDINGS = 32
"""Roundings by which a border may differ from the bias that it is filled with."""

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
    """Nodes that compute an affine map of one value: a layer, links, or what folds into one layer.

    Attributes:
        data: The value they map.
        stage: The map, in float64 where several layers are in it.
        nodes: All of them, in no order.
        parts: The matches that it was made of; empty for a layer.
        layers: The layers among them, in the order of the chain, deltas before it: U is the last.
        pools: The average poolings among them, which cost as convolutions do.
        template: The layer whose operator the folded layer takes: of convolutions the first of the right kind, which
            often has the geometry, too; of linear layers the last, which has the output. None without layers.
        last: The node whose output is the map's value; None for the input itself.
        bias: The value that gives a bias its name, or None.
        normed: Whether a batch norm is in it.
        summed: Whether it is a sum.
    """

    data: ValueT
    stage: Stage
    nodes: frozenset[NodeT] = frozenset()
    layers: tuple[ReadStage[NodeT, ValueT], ...] = ()
    pools: tuple[ReadStage[NodeT, ValueT], ...] = ()
    template: NodeT | None = None
    last: NodeT | None = None
    bias: ValueT | None = None
    normed: bool = False
    summed: bool = False
    parts: tuple[Match[NodeT, ValueT], ...] = ()

    @property
    def is_fold(self) -> bool:
        """Whether a layer and something else that has weights or is added are in it."""
        return bool(self.layers) and (len(self.layers) > 1 or self.normed or self.summed)

    def behind(self, earlier: Match[NodeT, ValueT], stage: Stage) -> Match[NodeT, ValueT]:
        """Return the map that is this one of what an earlier one gives, which computes ``stage``."""
        return replace(
            self,
            data=earlier.data,
            stage=stage,
            nodes=earlier.nodes | self.nodes,
            layers=(*earlier.layers, *self.layers),
            pools=(*earlier.pools, *self.pools),
            template=template_of(stage, (earlier, self)),
            last=self.last or earlier.last,
            parts=tuple(part for part in (earlier, self) if part.layers),
            bias=first_known((self.bias, earlier.bias)),
            normed=self.normed or earlier.normed,
            summed=self.summed or earlier.summed,
        )


def filled(match: Match[NodeT, ValueT], filling: Filling[NodeT, ValueT]) -> Match[NodeT, ValueT] | None:
    """Return a match and the padding behind it with its own bias; None where the border holds something else.

    The bias then is the same everywhere, and the rest of the match meets zeros.
    """
    spec = match.stage.spec
    weight, bias = absorbed(match.stage)
    values = np.asarray(filling.values, dtype=np.float64)
    if filling.stage.spec.axes != spec.axes or len(values) != spec.out_channels:
        return None
    held = np.zeros(len(values)) if bias is None else bias
    size = max(float(np.abs(held).max(initial=0)), float(np.abs(values).max(initial=0)))
    # The graph computes what it fills with, in its own dtype, from what the bias is computed from here.
    if np.abs(held - values).max(initial=0) > _ROUNDINGS * unit_rounding(filling.values.dtype) * size:
        return None
    try:
        stage = compose(Stage(spec=spec, weight=weight), filling.stage)
    except CannotComposeError:
        return None
    padding = Match(data=filling.data, stage=filling.stage, nodes=filling.nodes, last=filling.last)
    return padding.behind(match, replace(stage, bias=bias))


def template_of(stage: Stage, matches: Sequence[Match[NodeT, ValueT]]) -> NodeT | None:
    """Return the node whose operator computes the stage: a convolution and a transposed one compose to either."""
    layers = [match for match in matches if match.template is not None]
    if not layers:
        return None
    if not stage.spec.axes:
        return layers[-1].template
    alike = [match for match in layers if match.stage.spec.transposed == stage.spec.transposed]
    return (alike or layers)[0].template


def first_known(values: Iterable[ValueT | None]) -> ValueT | None:
    """Return the first value that is not None, if there is one."""
    return next((value for value in values if value is not None), None)


class GraphReader(Protocol[NodeT, ValueT]):
    """What the recognition asks of a graph."""

    def layer(self, node: NodeT) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """Return the node as a layer with a constant weight; None for what is no layer at all."""

    def affine(self, node: NodeT, channels: int, axes: int) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """Return the node as a link of ``channels`` channels before ``axes`` spatial axes; None for others."""

    def pool(self, node: NodeT, channels: int, axes: int) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """Return the node as an average pooling; None for others."""

    def filled(self, node: NodeT) -> Filling[NodeT, ValueT] | OddBorder[ValueT] | None:
        """Return the node as the end of a padding with one number for each channel; None for others."""

    def passed(self, node: NodeT) -> ValueT | None:
        """Return the value that the node hands on unchanged; None for a node that may change something."""

    def writes(self, node: NodeT) -> bool:
        """Return whether the node changes its first operand in place."""

    def behind(self, node: NodeT, match: Match[NodeT, ValueT]) -> ReadStage[NodeT, ValueT] | None:
        """Return, for the normal form, a node that uses a match's value as the last part of the same layer."""

    def addends(self, node: NodeT) -> Sequence[Addend[ValueT]] | None:
        """Return the values that the node adds, with the number that each is multiplied with.

        None for other operators.
        """

    def locations(self, value: ValueT, axes: int) -> int | None:
        """Locations of one sample of a value with ``axes`` spatial axes; None where the graph does not tell."""

    def is_product(self, node: NodeT) -> bool:
        """Return whether the node multiplies its operands elementwise."""

    def operands(self, node: NodeT) -> Sequence[ValueT]:
        """Return the values that the node uses, a layer's data first."""

    def result(self, node: NodeT) -> ValueT:
        """Return the value that the node computes."""

    def producer(self, value: ValueT) -> NodeT | None:
        """Return the node that computes the value; None for inputs and stored values."""

    def users(self, value: ValueT) -> Iterable[NodeT]:
        """Return the nodes that use the value."""

    def is_output(self, value: ValueT) -> bool:
        """Return whether the graph gives the value out."""

    def kind(self, node: NodeT) -> str:
        """Return the operator's name, for reports."""

    def node_name(self, node: NodeT) -> str:
        """Return the node's name, for reports."""

    def layer_name(self, layers: Sequence[ReadStage[NodeT, ValueT]], bias: ValueT | None) -> str:
        """Return what to call the layer that some layers stand for; U is the last of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Declined(Generic[NodeT]):
    """A pair of nodes that looks like one layer and is not; ``first`` comes before ``second`` in the graph.

    ``nodes`` are those of the match that one of them belongs to.
    """

    first: NodeT
    second: NodeT
    skipped: Skipped
    nodes: frozenset[NodeT] = frozenset()
