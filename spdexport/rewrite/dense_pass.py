"""The part of the dense model that exact gates read, beside the masked one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from spdexport.errors import UsageError
from spdexport.rewrite.builder import NodeT, ValueT

if TYPE_CHECKING:
    from collections.abc import Collection

    from spdexport.gates import GlobalShare
    from spdexport.rewrite.builder import Edit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateReads:
    """What exact gates read of the dense model.

    Attributes:
        changed: The nodes of sites whose function the forms change; asked for where layers have exact gates.
        gated: The nodes of sites whose inputs are read.
        share: Of any site with a gate, where one function gives the importances of all sites.
    """

    changed: Collection[str] = ()
    gated: Collection[str] = ()
    share: GlobalShare | None = None


NOTHING_READ = GateReads()
"""Of a model without exact gates."""


class DensePass(Generic[ValueT, NodeT]):
    """A copy of what masks change, in front of it, for gates to read.

    What no mask reaches is shared by both, and what no gate needs is not copied.

    Args:
        edit: The graph, before any form was placed.
        reads: What is read of it. Where one function of all layers does, all of the pass stands in front of the first
            node that is changed, for it reads the whole pass before it gives any mask.

    Attributes:
        anchor: The first node that is changed; None where none is.

    Raises:
        UsageError: The graph changes values in place, draws random numbers or branches, so that a part of it cannot
            run twice.
    """

    def __init__(self, edit: Edit[ValueT, NodeT], reads: GateReads) -> None:
        self._edit = edit
        self._copies: dict[NodeT, NodeT] = {}
        nodes = edit.nodes()
        needed = _ancestors(edit, [edit.node(name) for name in reads.gated])
        sites = {edit.outermost(edit.node(name)) for name in reads.changed}
        self.anchor = next((node for node in nodes if node in sites), None)
        first, behind = reads.share is not None, False
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
