"""What folding tells of the layers that it made, for graphs of either kind, and what a fold is chosen by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import Skipped
from spdexport.names import call_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import ConvSpec
    from spdexport.forms import Stage
    from spdexport.rewrite.match import GraphReader, Match
    from spdexport.rewrite.search import Search
    from spdexport.rewrite.stages import NodeT, ValueT


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedChain:
    """Nodes of a graph that became one layer.

    Attributes:
        name: The layer's name; in a body of If, Loop or Scan, with its place.
        nodes: The names of the nodes that it replaces, in the graph's order.
        spec: The geometry of the layer.
        macs_before: Multiply-accumulates of the replaced layers for one output location, rounded to a whole number.
        macs_after: Those of the folded layer.
        inside: The place of the body; empty for the main graph.
    """

    name: str
    nodes: tuple[str, ...]
    spec: ConvSpec
    macs_before: int
    macs_after: int
    inside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Macs:
    """Multiply-accumulates for one output location.

    Attributes:
        before: Of the layers of a chain.
        after: Of the one layer that it folds into.
    """

    before: Fraction
    after: Fraction


def unfit(stage: Stage, dtype: np.dtype[np.generic]) -> str | None:
    """Return why a folded layer cannot be stored in ``dtype``: rounding to it must keep every finite number finite.

    Small floats overflow: a product that leaves their range is not what V and U compute.
    """
    with np.errstate(over="ignore"):  # it is what is asked here
        for values in (np.asarray(stage.weight), stage.bias):
            if values is not None and (np.isfinite(values) > np.isfinite(values.astype(dtype))).any():
                return f"the folded weight does not fit the type {dtype}"
    return None


def chosen(search: Search[NodeT, ValueT], *, if_cheaper: bool) -> list[Match[NodeT, ValueT]]:
    """Return the folds to make.

    All that were found, or, with ``if_cheaper``, those that do not cost more than their layers.

    Of a fold that costs more, the folds that it is made of are looked at. What is left is noted in ``search.declined``,
    with both numbers.
    """
    pending, found = list(reversed(search.folds())), []
    while pending:
        fold = pending.pop()
        macs = macs_of(fold, search.graph)
        if not if_cheaper or macs.after <= macs.before:
            found.append(fold)
            continue
        search.decline(
            fold,
            fold.layers[0].node,
            f"its layers have {round(macs.before)} multiply-accumulates at each output location, and one layer would "
            f"have {round(macs.after)}",
        )
        pending += reversed(search.folds_in(fold))
    return found


def declined_of(search: Search[NodeT, ValueT], nodes: Sequence[NodeT]) -> tuple[Skipped, ...]:
    """Return the folds with one of these nodes in them that were declined."""
    return tuple(known.skipped for known in search.declined if not known.nodes.isdisjoint(nodes))


def macs_of(fold: Match[NodeT, ValueT], graph: GraphReader[NodeT, ValueT]) -> Macs:
    """Return the cost of a fold's layers and average poolings, and of the layer that it becomes.

    Counted at the locations that the graph tells; where it does not tell all, by strides, as if there were no borders.
    """
    axes, work = fold.stage.spec.axes, (*fold.layers, *fold.pools)
    places = [(layer, layer.data if layer.stage.spec.transposed else graph.result(layer.node)) for layer in work]
    assert fold.last is not None, "a fold has a layer"
    ends = (fold.data, graph.result(fold.last))
    values = [*(value for _, value in places), *ends]
    known = [graph.locations(value, axes) for value in values] if axes else [1] * len(values)
    if all(known):
        counts = [Fraction(count) for count in known if count]
    else:
        counts = [_density(value, fold, graph) for value in values]
    entry, output = counts[-2:]
    before = sum(
        (layer.stage.weight.size * count for (layer, _), count in zip(places, counts, strict=False)), Fraction(0)
    )
    after = fold.stage.weight.size * (entry if fold.stage.spec.transposed else output)
    return Macs(before=before / output, after=after / output)


def _density(value: ValueT, fold: Match[NodeT, ValueT], graph: GraphReader[NodeT, ValueT]) -> Fraction:
    """Locations of a value inside a fold for one location of the fold's input, as the strides tell."""
    node = None if value is fold.data else graph.producer(value)
    if node is None:
        return Fraction(1)
    layer = next((layer for layer in (*fold.layers, *fold.pools) if layer.node is node), None)
    if layer is None:
        inner = (_density(v, fold, graph) for v in graph.operands(node) if v is fold.data or _is_inside(v, fold, graph))
        return max(inner, default=Fraction(1))
    step = Fraction(math.prod(layer.stage.spec.stride))
    return _density(layer.data, fold, graph) * (step if layer.stage.spec.transposed else 1 / step)


def _is_inside(value: ValueT, fold: Match[NodeT, ValueT], graph: GraphReader[NodeT, ValueT]) -> bool:
    producer = graph.producer(value)
    return producer is not None and producer in fold.nodes


def name_of(fold: Match[NodeT, ValueT], graph: GraphReader[NodeT, ValueT]) -> str:
    """Return what to call the layer that a fold becomes.

    A sum has the name of the module that all of its layers are in.
    """
    if fold.summed:
        names = [graph.layer_name((layer,), None).split(".") for layer in fold.layers]
        alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
        if common := ".".join(parts[0] for parts in alike):
            return common
    return graph.layer_name(fold.layers, fold.bias)


def folded_chain(
    fold: Match[NodeT, ValueT], graph: GraphReader[NodeT, ValueT], name: str, nodes: Sequence[str], inside: str = ""
) -> FoldedChain:
    """Return what is told of a fold that was made."""
    macs = macs_of(fold, graph)
    return FoldedChain(
        name=call_in(name, inside),
        nodes=tuple(nodes),
        spec=fold.stage.spec,
        macs_before=round(macs.before),
        macs_after=round(macs.after),
        inside=inside,
    )


def told(chain: FoldedChain | Skipped) -> str:
    """Return one line about a candidate: what became of it, and why."""
    if isinstance(chain, Skipped):
        return f"{chain.name} ({chain.kind}): not folded, {chain.reason}"
    return (
        f"{chain.name} ({chain.spec.kind} {chain.spec.describe()}): {', '.join(chain.nodes)} are one layer, "
        f"{chain.macs_before} -> {chain.macs_after} multiply-accumulates at each output location"
    )
