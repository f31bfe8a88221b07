"""The part of the dense model that exact gates read, beside the masked one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from spdexport.errors import UsageError
from spdexport.rewrite.builder import NodeT, ValueT

if TYPE_CHECKING:
    from collections.abc import Collection

    from spdexport.rewrite.builder import Edit


class DensePass(Generic[ValueT, NodeT]):
    """A copy of what masks change, in front of it, for gates to read.

    What no mask reaches is shared by both, and what no gate needs is not copied.

    Args:
        edit: The graph, before any form was placed.
        changed: Nodes whose function the forms change.
        gated: Nodes of layers with gates.
        first: Whether all of it is to stand in front of the first node that is changed, for a gate that reads the whole
            pass before it gives any mask.

    Attributes:
        anchor: The first node that is changed; None where none is.

    Raises:
        UsageError: The graph changes values in place, draws random numbers or branches, so that a part of it cannot
            run twice.
    """

    def __init__(
        self,
        edit: Edit[ValueT, NodeT],
        changed: Collection[str],
        gated: Collection[str],
        *,
        first: bool,
    ) -> None:
        self._edit = edit
        self._copies: dict[NodeT, NodeT] = {}
        nodes = edit.nodes()
        needed = _ancestors(edit, [edit.node(name) for name in gated])
        sites = {edit.node(name) for name in changed}
        self.anchor = next((node for node in nodes if node in sites), None)
        behind = False
        for node in nodes:
            behind |= node is self.anchor
            reached = node in sites or any(source in self._copies for source in edit.sources(node))
            if not edit.is_computed(node) or node not in needed:
                continue
            if not reached:
                if first and behind and self.anchor is not None:
                    self._check(node)
                    edit.move(node, self.anchor)
                continue
            self._check(node)
            before = self.anchor if first and self.anchor is not None else node
            self._copies[node] = edit.copy(node, self._copies, before)

    def of(self, value: ValueT) -> ValueT:
        """Return the value as the dense model has it."""
        return self._edit.copied(value, self._copies)

    def _check(self, node: NodeT) -> None:
        if (why := self._edit.unrepeatable(node)) is not None:
            raise UsageError(
                f"The dense pass would run {why}.",
                where=f"--gates exact, node {self._edit.node_name(node)}",
                hint="Give --gates local, or take the operation out of the model.",
            )


def _ancestors(edit: Edit[ValueT, NodeT], nodes: list[NodeT]) -> set[NodeT]:
    """All that the inputs of the nodes are computed from."""
    found: set[NodeT] = set()
    pending = [source for node in nodes for source in edit.sources(node)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += edit.sources(node)
    return found
