"""Fold the factorized layers of a torch program back into one layer each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from spdexport.conv import stored_weight
from spdexport.rewrite.constants import is_in_place
from spdexport.rewrite.fold_result import chosen, declined_of, folded_chain, name_of, unfit
from spdexport.rewrite.search import Search
from spdexport.rewrite.stages import CHANGED
from spdexport.rewrite.torch_builder import convolution, has_padding
from spdexport.rewrite.torch_edit import ProgramEdit
from spdexport.rewrite.torch_graph import PRODUCTS
from spdexport.rewrite.torch_reader import TorchReader
from spdexport.rewrite.torch_regroup import may_regroup, regrouped

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch.export import ExportedProgram
    from torch.fx import Node

    from spdexport.conv import ConvSpec, Skipped
    from spdexport.rewrite.fold_result import FoldedChain
    from spdexport.rewrite.match import Match
    from spdexport.rewrite.sums import Key, Regrouping

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramFold:
    """A folded program, and what was done to it.

    Attributes:
        program: The new program. It shares the tensors of all layers that were left alone with the one it was made of.
        folded: The layers that were folded, in the graph's order.
        declined: Chains that were looked at and are not one layer, each with its reason.
    """

    program: ExportedProgram
    folded: tuple[FoldedChain, ...]
    declined: tuple[Skipped, ...]


def fold_program(program: ExportedProgram, *, if_cheaper: bool = False) -> ProgramFold:
    """Turn every factorized layer of a program's main graph into one layer.

    The result computes the same function to rounding, whatever that does to its cost unless ``if_cheaper``. Parameters
    are named ``<layer>.weight``; a bias keeps its name. Nested graphs are left alone.

    Args:
        program: The program; it is not changed.
        if_cheaper: Whether to leave a chain that has fewer multiply-accumulates than its fold, with that reason.
    """
    refused: set[Key] = set()
    told: tuple[Skipped, ...] = ()
    while True:
        made: dict[str, Key] = {}
        ordered, search = _searched(program, refused, made)
        result, left = _placed(ordered, search, made, if_cheaper=if_cheaper)
        if not left:
            result = replace(result, declined=tuple(dict.fromkeys((*told, *result.declined))))
            return result if result.folded else replace(result, program=program)
        # A sum is in another order only where that makes a layer of a part of it; why it makes none is still told.
        refused |= left
        names = {name for name, key in made.items() if key in left}
        told += declined_of(search, [node for node in ordered.graph.nodes if node.name in names])


def _searched(
    program: ExportedProgram, refused: Collection[Key], made: dict[str, Key]
) -> tuple[ExportedProgram, Search[Node, Node]]:
    """Search a program, sums regrouped until no more of their terms can be added up first.

    Args:
        program: The program; it is not changed.
        refused: Sums to leave as they are.
        made: Receives the names of the nodes that add such terms up.
    """
    while True:
        search: Search[Node, Node] = Search(graph=TorchReader(program))
        for node in program.graph.nodes:
            search.visit(node)
        # The last one in the graph has the terms of those that lead to it.
        taken: list[Regrouping[Node, Node]] = []
        for found in reversed(search.regroupings):
            apart = all(found.adds.isdisjoint(other.adds) for other in taken)
            if not may_regroup(program, found):
                search.decline_order(found, CHANGED)
            elif apart and found.key not in refused:
                taken.append(found)
        if not taken:
            return program, search
        program, names = regrouped(program, taken)
        made.update(zip(names, (found.key for found in taken), strict=True))


def _placed(
    program: ExportedProgram, search: Search[Node, Node], made: Mapping[str, Key], *, if_cheaper: bool
) -> tuple[ProgramFold, set[Key]]:
    """The program with the folds in their places; also the sums that were regrouped for none."""
    reader = search.graph
    assert isinstance(reader, TorchReader)
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    edit = ProgramEdit(program)
    in_place = [node for node in order if is_in_place(node)]
    folded, inside = [], []
    for match in chosen(search, if_cheaper=if_cheaper):
        fold = replace(match, stage=match.stage.evaluated())
        nodes = sorted(fold.nodes, key=order.__getitem__)
        dtype = _weight_dtype(fold, reader)
        first, last = order[nodes[0]], order[nodes[-1]]
        problem = unfit(fold.stage, dtype) or _unknown(fold.stage.spec)
        if any(first < order[node] < last and node not in fold.nodes for node in in_place):
            # The folded layer reads its input where the last of them ran, by when the input may have changed.
            problem = "an operator between the layers changes a tensor in place"
        if problem is not None:
            search.decline(fold, nodes[0], problem)
            continue
        inside.append(fold.nodes)
        name = name_of(fold, reader)
        folded.append(folded_chain(fold, reader, name, [node.name for node in nodes]))
        _place(edit, fold, nodes, reader=reader, layer=name, dtype=dtype)
    left = {key for name, key in made.items() if not any(name == node.name for nodes in inside for node in nodes)}
    result = ProgramFold(
        program=edit.finish() if folded and not left else program,
        folded=tuple(folded),
        declined=search.declined_outside(inside),
    )
    return result, left


def _unknown(spec: ConvSpec) -> str | None:
    """Why torch has no operator for a geometry; convolutions that pad unequally get a padding of their own."""
    if not spec.transposed:
        return None
    if any(before != after for before, after in spec.padding):
        return "torch has no transposed convolution that crops one end more than the other"
    sizes = zip(spec.output_padding, spec.stride, spec.dilation, strict=True)
    if any(extra and extra >= max(stride, dilation) for extra, stride, dilation in sizes):
        return "torch has no transposed convolution with so much output padding"
    return None


def _weight_dtype(fold: Match[Node, Node], reader: TorchReader) -> np.dtype[np.generic]:
    weight = reader.array(fold.layers[0].weight)
    assert weight is not None  # it was read as a layer because it is constant
    return weight.dtype


def _place(
    edit: ProgramEdit,
    fold: Match[Node, Node],
    nodes: Sequence[Node],
    *,
    reader: TorchReader,
    layer: str,
    dtype: np.dtype[np.generic],
) -> None:
    """Let the fold's last node become the layer, so that it keeps its name, place, users and metadata."""
    assert fold.template is not None and fold.last is not None, "a fold has a layer"  # noqa: PT018
    last, template = edit.node(fold.last.name), edit.node(fold.template.name)
    weights = [edit.node(stage.weight.name) for stage in fold.layers if stage.weight is not None]
    position = {node: index for index, node in enumerate(edit.graph.nodes) if node.op == "placeholder"}
    anchor = min(weights, key=lambda node: position.get(node, len(position)))
    # A layer that is called "weight" is a bare parameter of the model itself.
    weight_name = layer if layer == "weight" else f"{layer}.weight"
    stored = stored_weight(np.asarray(fold.stage.weight), fold.stage.spec).astype(dtype)
    weight = edit.store(weight_name, stored, InputKind.PARAMETER, anchor)
    bias = _bias(edit, fold, reader, layer, dtype, anchor)

    data = edit.node(fold.data.name)
    target, rest, options = template.target, template.args[3:], template.kwargs
    options = {key: value for key, value in options.items() if key not in ("input", "weight", "bias")}
    before = last.all_input_nodes
    if target in PRODUCTS:
        target, rest, options = aten.linear.default, (), {}
    elif reader.spec(fold.template).moves != fold.stage.spec.moves:
        spec, options = fold.stage.spec, {}
        if not has_padding(spec):
            pads = [pad for before_after in reversed(spec.padding) for pad in before_after]
            spec = replace(spec, padding=((0, 0),) * spec.axes)
            with edit.graph.inserting_before(last):
                data = edit.call(aten.constant_pad_nd.default, (data, pads, 0.0), last, "padded")
        target, rest = convolution(spec)
    last.target = target
    last.args = (data, weight, bias, *rest)
    if bias is None and not rest:
        last.args = last.args[:2]
    last.kwargs = options
    for node in [*(edit.node(old.name) for old in reversed(nodes) if old is not fold.last), *before]:
        edit.drop_unused(node)


def _bias(
    edit: ProgramEdit,
    fold: Match[Node, Node],
    reader: TorchReader,
    layer: str,
    dtype: np.dtype[np.generic],
    anchor: Node,
) -> Node | None:
    """The node of the layer's bias: the old one where it already holds these numbers, else a new one of its name."""
    if fold.stage.bias is None:
        return None
    values, held = fold.stage.bias.astype(dtype), reader.array(fold.bias)
    if fold.bias is not None and held is not None and held.dtype == dtype and np.array_equal(held, values):
        return edit.node(fold.bias.name)
    is_stored = fold.bias is not None and fold.bias.op == "placeholder"
    name = reader.target(fold.bias) if is_stored else "bias" if layer == "weight" else f"{layer}.bias"
    return edit.store(name, values, InputKind.PARAMETER, anchor)
