"""Another order for the additions of an ONNX graph, so that terms that are one layer are added up first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.rewrite.onnx_place import become, remove_unreached
from spdexport.rewrite.onnx_scopes import scope_of

if TYPE_CHECKING:
    from spdexport.rewrite.sums import Regrouping


def regroup(found: Regrouping[ir.Node, ir.Value]) -> ir.Node:
    """Add up the terms that are one map first, in nodes in front of the one that gives the sum, which stays.

    Args:
        found: The sum, whose graph is changed.

    Returns:
        The node that adds up the last of those terms.
    """
    order = found.ordered()
    assert order is not None, "a sum that cannot be put in order is declined by the search"
    last = found.last
    like = order.inner[0].value
    first, *rest = order.inner
    total, inner = first.value, last
    for term in rest:
        inner = _added(last, total, term.value, term.factor, like)
        total = inner.outputs[0]
    terms = [(total, order.sign), *order.others]
    if order.sign == -1:
        terms[0], terms[1] = terms[1], terms[0]
    (total, _), *outer = terms
    for value, factor in outer[:-1]:
        total = _added(last, total, value, factor, None).outputs[0]
    operands = list(last.inputs)
    value, factor = outer[-1]
    become(last, _operator(factor), [total, value], ())
    remove_unreached(operands)
    return inner


def _operator(factor: float) -> str:
    return "Add" if factor == 1 else "Sub"


def _added(last: ir.Node, left: ir.Value, right: ir.Value, factor: float, like: ir.Value | None) -> ir.Node:
    """A new node in front of ``last`` that adds two values, or subtracts the second."""
    node = ir.Node("", _operator(factor), inputs=[left, right], num_outputs=1)
    scope_of(last).insert_before(last, node)
    node.outputs[0].type = last.outputs[0].type
    node.outputs[0].shape = None if like is None else like.shape
    node.metadata_props.update(last.metadata_props)
    return node
