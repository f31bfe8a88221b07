"""Put forms in the places of layers, in a graph of either kind.

The last operation of a form takes over the node of the layer that it replaces, with its name and users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from spdexport.forms import VariableMask
from spdexport.gates import GlobalShare
from spdexport.names import layer_of_call
from spdexport.rewrite.builder import NodeT, OperationT, ValueT
from spdexport.rewrite.dense_pass import DensePass
from spdexport.rewrite.gate_nodes import GateNodes
from spdexport.rewrite.mask_nodes import MaskNodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spdexport.conv import ConvSite
    from spdexport.forms import Chain, Form, Stage
    from spdexport.rewrite.builder import Edit, InFrontOf, LayerNodes
    from spdexport.rewrite.dense_pass import GateReads


def place(
    edit: Edit[ValueT, NodeT],
    forms: Iterable[tuple[ConvSite, Form]],
    nodes_of: Callable[[ConvSite, Form], LayerNodes[ValueT, OperationT]],
    in_front_of: InFrontOf[NodeT, ValueT, OperationT],
    reads: GateReads,
) -> None:
    """Put each form in the place of its site.

    Args:
        edit: The copy of the graph that is changed.
        forms: Sites, each with the form it takes. Taken one at a time.
        nodes_of: Gives the operators in front of a site that is to take a form.
        in_front_of: Gives those in front of any node.
        reads: What exact gates read of the dense model.

    Raises:
        UsageError: An input or a dense pass that a variable mask needs cannot be made.
        MaskError: A mask for each location does not fit the layer's output.
    """
    dense = DensePass(edit, reads) if reads.gated else None
    masks = MaskNodes(edit, dense, in_front_of, reads.share)
    for site, form in forms:
        _Placement(site, nodes_of(site, form), masks).place(form)


class _Placement(Generic[ValueT, OperationT, NodeT]):
    """One site of a graph that is edited, while a form takes its place."""

    def __init__(
        self,
        site: ConvSite,
        nodes: LayerNodes[ValueT, OperationT],
        masks: MaskNodes[ValueT, OperationT, NodeT],
    ) -> None:
        self._site, self._nodes, self._masks = site, nodes, masks
        self._layer = layer_of_call(site.name)

    def place(self, form: Form) -> None:
        """Build the form in front of the site's node, and let that node become the form's last operation."""
        nodes = self._nodes
        terms = [(self._chain(chain), chain[-1].name) for chain in form.chains]
        last = terms[0][0]
        if len(terms) > 1:
            total, *others = (nodes.insert(*term) for term in terms)
            for value in others[:-1]:
                total = nodes.insert(nodes.add(total, value), "sum")
            last = nodes.add(total, others[-1])
        if form.routing is not None:
            total = nodes.insert(last, "sum")
            original = nodes.original()
            routing = self._masks.given(form.routing, self._site.spec, nodes)
            last = nodes.chosen(routing, total, original)
        nodes.become(last)

    def _chain(self, chain: Chain) -> OperationT:
        """Build all of a chain but its last operation, which is returned."""
        nodes = self._nodes
        x, name = nodes.data, ""
        pending: OperationT | None = None
        for number, stage in enumerate(chain):
            if pending is not None:
                x = nodes.insert(pending, name)
            pending, name = nodes.stage(x, stage, first=number == 0), stage.name
            if isinstance(stage.mask, VariableMask):
                x = nodes.insert(pending, name)
                product = self._variable(stage, stage.mask, x)
                pending, name = None if product is None else nodes.mul(x, product), f"{name}_masked"
            elif stage.mask is not None:
                x = nodes.insert(pending, name)
                pending, name = nodes.mul(x, nodes.channel_mask(stage.mask, stage.spec.axes)), "mask"
        assert pending is not None, "a chain ends with a stage or a mask"
        return pending

    def _variable(self, stage: Stage, mask: VariableMask, x: ValueT) -> ValueT | None:
        """The value that a stage's output ``x`` is multiplied with."""
        nodes = self._nodes
        gate: ValueT | None = None
        activation = x
        if mask.gate is not None:
            data = self._masks.read_by_gate(mask, nodes.data)
            is_shared = isinstance(mask.gate, GlobalShare)
            if data is not nodes.data and (mask.shows_activation or not is_shared):
                activation = nodes.insert(nodes.stage(data, stage, first=True), f"{stage.name}_dense")
            gates = GateNodes(nodes, self._site.spec)
            if isinstance(mask.gate, GlobalShare):
                gate = self._masks.shared(mask.gate)
            else:
                gate = gates.importances(mask.gate, activation, data)
            if mask.shows_importance:
                self._masks.show(f"ci/{self._layer}", gate, stage.spec, nodes)
            if mask.threshold is not None:
                gate = gates.thresholded(gate, mask.threshold)
        if mask.shows_activation:
            self._masks.show(f"activation/{self._layer}", activation, stage.spec, nodes)
        return self._masks.product(mask, gate, stage.spec, nodes)
