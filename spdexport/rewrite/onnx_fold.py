"""Fold the factorized layers of an ONNX file back into one layer each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.forms.compose import appends_pointwise
from spdexport.names import call_in
from spdexport.rewrite.fold_result import chosen, declined_of, folded_chain, name_of, unfit
from spdexport.rewrite.onnx_constants import dtype_of
from spdexport.rewrite.onnx_graph import read_layer
from spdexport.rewrite.onnx_links import passed
from spdexport.rewrite.onnx_names import node_name
from spdexport.rewrite.onnx_place import place_stage
from spdexport.rewrite.onnx_reader import OnnxReader
from spdexport.rewrite.onnx_regroup import regroup
from spdexport.rewrite.onnx_scopes import scopes
from spdexport.rewrite.search import Search
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from spdexport.conv import Skipped
    from spdexport.rewrite.fold_result import FoldedChain
    from spdexport.rewrite.match import Chain
    from spdexport.rewrite.onnx_scopes import Scope
    from spdexport.rewrite.sums import Key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldResult:
    """A folded model, and what was done to it.

    Attributes:
        model: The new model. It shares the weights of all layers that were left alone with the model it was made of.
        folded: The layers that were folded, in the graph's order, those of each body behind those around it.
        declined: Chains that were looked at and are not one layer, each with its reason.
    """

    model: ir.Model
    folded: tuple[FoldedChain, ...]
    declined: tuple[Skipped, ...]


def fold_onnx(
    model: ir.Model,
    *,
    lone: bool = False,
    whole: bool = False,
    sizes: bool = False,
    beyond: Callable[[Chain], bool] | None = None,
    if_cheaper: bool = False,
) -> FoldResult:
    """Turn every factorized layer of the model into one layer, in the bodies of If, Loop and Scan too.

    The result computes the same function to rounding, whatever that does to its cost unless ``if_cheaper``. Functions
    are left alone, and so is a chain of which one part is in a body and another is around it.

    Args:
        model: The model; it is not changed.
        lone: Whether to fold sums of two dense layers, and batch norms behind one, too: the normal form in which two
            files are compared. Beyond these, only pointwise layers behind another are folded then, also where several
            of them are behind the same one. The weights of such a model are composed each time they are read, and may
            be infinite where they do not fit their type.
        whole: As ``Search.whole``.
        sizes: Whether the model is one of magnitudes, in which what is subtracted is added.
        beyond: As ``Search.beyond``.
        if_cheaper: Whether to leave a chain that has fewer multiply-accumulates than its fold, with that reason.
    """

    def empty(graph: ir.Graph) -> Search[ir.Node, ir.Value]:
        return Search(graph=OnnxReader(graph, sizes=sizes), lone=lone, whole=whole, beyond=beyond)

    refused: set[tuple[str, Key]] = set()
    told: list[Skipped] = []
    while True:
        copy = model.clone()
        folded: list[FoldedChain] = []
        declined: list[Skipped] = []
        lost: list[Skipped] = []
        left: set[tuple[str, Key]] = set()
        for scope in scopes(copy.graph):
            if lone:
                _without_passed(scope.graph)
                _separate(scope.graph)
            made: dict[ir.Node, Key] = {}
            search = _searched(scope.graph, empty, {key for place, key in refused if place == scope.place}, made)
            inside = _placed(copy.graph, scope, search, folded, if_cheaper=if_cheaper)
            declined += (replace(d, name=call_in(d.name, scope.place)) for d in search.declined_outside(inside))
            apart = [node for node in made if not any(node in nodes for nodes in inside)]
            left |= {(scope.place, made[node]) for node in apart}
            lost += (replace(d, name=call_in(d.name, scope.place)) for d in declined_of(search, apart))
        if not left:
            return FoldResult(model=copy, folded=tuple(folded), declined=tuple(dict.fromkeys((*told, *declined))))
        # A sum is in another order only where that makes a layer of a part of it; why it makes none is still told.
        refused |= left
        told += lost


def _searched(
    graph: ir.Graph,
    empty: Callable[[ir.Graph], Search[ir.Node, ir.Value]],
    refused: Collection[Key],
    made: dict[ir.Node, Key],
) -> Search[ir.Node, ir.Value]:
    """Search a graph, sums regrouped until no more of their terms can be added up first; ``made`` tells by what."""
    while True:
        search = empty(graph)
        for node in graph:
            search.visit(node)
        # The last one in the graph has the terms of those that lead to it.
        taken: set[ir.Node] = set()
        for found in reversed(search.regroupings):
            if taken.isdisjoint(found.adds) and found.key not in refused:
                made[regroup(found)] = found.key
                taken |= found.adds
        if not taken:
            return search


def _placed(
    model: ir.Graph,
    scope: Scope,
    search: Search[ir.Node, ir.Value],
    folded: list[FoldedChain],
    *,
    if_cheaper: bool,
) -> list[set[ir.Node]]:
    """Put the folds of a scope into their places, and return the nodes of each."""
    order = {node: index for index, node in enumerate(scope.graph)}
    inside = []
    for fold in chosen(search, if_cheaper=if_cheaper):
        nodes = sorted(fold.nodes, key=order.__getitem__)
        dtype = dtype_of(fold.layers[0].weight)
        stage = fold.stage if search.lone else fold.stage.evaluated()
        problem = None if search.lone else unfit(stage, dtype)
        if problem is not None:
            search.decline(fold, nodes[0], problem)
            continue
        inside.append(set(nodes))
        name = name_of(fold, search.graph)
        assert fold.template is not None and fold.last is not None, "a fold has a layer"  # noqa: PT018
        folded.append(folded_chain(fold, search.graph, name, [node_name(node) for node in nodes], scope.place))
        place_stage(
            model,
            stage,
            data=fold.data,
            template=fold.template,
            last=fold.last,
            replaced=nodes,
            dtype=dtype,
            layer=name,
            bias_value=fold.bias,
        )
    return inside


def _without_passed(graph: ir.Graph) -> None:
    """Remove the nodes that hand a value on unchanged, but for those that an output of the graph comes from.

    In front of a chain they would go with it, and stay in front of the dense layer in the other file.
    """
    for node in list(graph):
        source = passed(node)
        if source is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _separate(graph: ir.Graph) -> None:
    """Give each pointwise layer that is behind a layer one of its own, where nothing else uses what that computes.

    Exporters make one layer of two that are equal. Where V is the same for two layers, as it is for two of zeros, the
    file then has one V for both, and the dense model, whose layers are not the same, has nothing like it.
    """
    for node in reversed(list(graph)):
        uses = list(node.outputs[0].uses()) if node.outputs else []
        first = read_layer(node) if len(uses) > 1 and not node.outputs[0].is_graph_output() else None
        if not isinstance(first, ReadStage) or not all(use.node.graph is graph for use in uses):
            continue
        behind = [read_layer(use.node) if use.idx == 0 else None for use in uses]
        if not all(isinstance(r, ReadStage) and appends_pointwise(first.stage.spec, r.stage.spec) for r in behind):
            continue
        for use in uses[1:]:
            copy = ir.Node(node.domain, node.op_type, node.inputs, node.attributes.values(), name=node.name)
            copy.metadata_props.update(node.metadata_props)
            value, own = node.outputs[0], copy.outputs[0]
            own.name, own.shape, own.type = value.name, value.shape, value.type
            graph.insert_before(use.node, copy)
            use.node.replace_input_with(0, own)
