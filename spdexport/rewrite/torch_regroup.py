"""Another order for the additions of a program, so that terms that are one layer are added up first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from spdexport.rewrite.constants import is_in_place
from spdexport.rewrite.torch_edit import ProgramEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram
    from torch.fx import Node

    from spdexport.rewrite.sums import Regrouping

aten = torch.ops.aten


def may_regroup(program: ExportedProgram, found: Regrouping[Node, Node]) -> bool:
    """Return whether the terms of a sum hold the same numbers where it ends as where they are added now.

    An operator that changes a tensor in place may stand between; the additions themselves may be such operators, for
    what they change is used by them alone.
    """
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    first, last = min(order[add] for add in found.adds), order[found.last]
    between = (node for node, index in order.items() if first < index < last and node not in found.adds)
    return not any(map(is_in_place, between))


def regrouped(program: ExportedProgram, sums: Sequence[Regrouping[Node, Node]]) -> tuple[ExportedProgram, list[str]]:
    """Return a program in which the terms that are one map are added up first, and the names of the nodes that do it.

    Args:
        program: The program; it is not changed.
        sums: Sums that share no addition, each of which may be regrouped.
    """
    edit, names = ProgramEdit(program), []
    for found in sums:
        order = found.ordered()
        assert order is not None, "a sum that cannot be put in order is declined by the search"
        last = edit.node(found.last.name)
        before = last.all_input_nodes
        with edit.graph.inserting_before(last):
            first, *rest = order.inner
            total = edit.node(first.value.name)
            for term in rest:
                total = edit.call(*_addition(total, edit.node(term.value.name), term.factor), last, "together")
            names.append(total.name)
            terms = [(total, order.sign), *((edit.node(term.value.name), term.factor) for term in order.others)]
            if order.sign == -1:
                terms[0], terms[1] = terms[1], terms[0]
            (total, _), *outer = terms
            for value, factor in outer[:-1]:
                total = edit.call(*_addition(total, value, factor), last, "sum")
        value, factor = outer[-1]
        last.target, last.args = _addition(total, value, factor)
        last.kwargs = {}
        for node in before:
            edit.drop_unused(node)
    return edit.finish(), names


def _addition(left: Node, right: Node, factor: float) -> tuple[torch._ops.OpOverload, tuple[Node, Node]]:
    return (aten.add.Tensor if factor == 1 else aten.sub.Tensor), (left, right)
