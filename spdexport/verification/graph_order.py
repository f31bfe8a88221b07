"""The order of a graph's nodes that its connections give, in which two graphs are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.rewrite.onnx_scopes import read_by

if TYPE_CHECKING:
    import onnx_ir as ir


def in_order(scope: ir.Graph | ir.Function) -> list[int]:
    """Return the places of a graph's nodes in the order that its connections give, counted from its outputs.

    Two graphs of the same nodes and connections give partners the same place, however a file lists them. What no output
    needs comes last, as it is listed.
    """
    nodes = list(scope)
    place = {node: index for index, node in enumerate(nodes)}
    order: list[int] = []
    seen: set[ir.Node] = set()
    roots = [value.producer() for value in scope.outputs]
    for root in (*roots, *nodes):
        if root is None or root not in place or root in seen:
            continue
        seen.add(root)
        waiting = [(root, iter(read_by(root)))]
        while waiting:
            node, values = waiting[-1]
            for value in values:
                before = value.producer()
                if before is not None and before in place and before not in seen:
                    seen.add(before)
                    waiting.append((before, iter(read_by(before))))
                    break
            else:
                order.append(place[node])
                waiting.pop()
    return order


def taken_by_bodies(node: ir.Node) -> list[ir.Value]:
    """Return the values that the bodies of a node read, those of their own among them."""
    return read_by(node)[sum(value is not None for value in node.inputs) :]
