"""Masks that are known only at run time, in a torch graph: inputs, gates, and the dense pass that exact gates read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind

from spdexport.errors import MaskError, UsageError
from spdexport.forms import GateMode
from spdexport.names import shape_of
from spdexport.rewrite.torch_global_gates import GlobalGateNodes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from spdexport.conv import ConvSpec
    from spdexport.forms import LiveInput, VariableMask
    from spdexport.gates import GlobalShare
    from spdexport.rewrite.torch_edit import ProgramEdit

aten = torch.ops.aten


class DensePass:
    """The part of the dense model that gates read, beside the masked one: a copy of what masks change, in front of it.

    What no mask reaches is shared by both, and what no gate needs is not copied.

    Args:
        edit: The program, before any form was placed.
        changed: Nodes whose function the forms change.
        gated: Nodes of layers with gates.
        first: Whether all of it is to stand in front of the first node that is changed, for a gate that reads the whole
            pass before it gives any mask.

    Attributes:
        anchor: The first node that is changed; None where none is.

    Raises:
        UsageError: The graph changes values in place or draws random numbers, so that a part of it cannot run twice.
    """

    def __init__(self, edit: ProgramEdit, changed: Collection[str], gated: Collection[str], *, first: bool) -> None:
        self._copies: dict[torch.fx.Node, torch.fx.Node] = {}
        nodes = list(edit.graph.nodes)
        needed = _ancestors([edit.node(name) for name in gated])
        sites = {edit.node(name) for name in changed}
        self.anchor = next((node for node in nodes if node in sites), None)
        behind = False
        for node in nodes:
            behind |= node is self.anchor
            reached = node in sites or any(source in self._copies for source in node.all_input_nodes)
            if node.op != "call_function" or node not in needed:
                continue
            if not reached:
                if first and behind and self.anchor is not None:
                    _check_pure(node)
                    self.anchor.prepend(node)
                continue
            _check_pure(node)
            with edit.graph.inserting_before(self.anchor if first and self.anchor is not None else node):
                self._copies[node] = edit.copy(node, self._copies, "dense")

    def of(self, value: torch.fx.Node) -> torch.fx.Node:
        """The value as the dense model has it."""
        return self._copies.get(value, value)


def _ancestors(nodes: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """All that the inputs of the nodes are computed from."""
    found: set[torch.fx.Node] = set()
    pending = [source for node in nodes for source in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _check_pure(node: torch.fx.Node) -> None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return
    if target._schema.is_mutable:
        raise UsageError(
            f"The dense pass would run {target} twice, which changes a value in place.",
            where=f"--gates exact, node {node.name}",
            hint="Give --gates local, or take the operation in place out of the model.",
        )


class MaskNodes:
    """Makes the values that stages are multiplied with.

    Args:
        edit: The program that they are put into.
        dense: The dense pass, where some gate is exact.
        share: Of any layer with a gate, where one function gives the importances of all layers.
    """

    def __init__(self, edit: ProgramEdit, dense: DensePass | None, share: GlobalShare | None = None) -> None:
        self._edit, self._dense = edit, dense
        self._batch = edit.batch
        self._global: GlobalGateNodes | None = None
        if share is not None:
            assert dense is not None, "layers with gates read the dense pass"
            assert dense.anchor is not None, "layers with gates are changed"
            self._global = GlobalGateNodes(edit, share, dense.of, dense.anchor)

    def shared(self, share: GlobalShare) -> torch.fx.Node:
        """The importances that the function of all layers gives for one of them."""
        assert self._global is not None, "made where there is such a function"
        return self._global.of(share.layer)

    def read_by_gate(self, mask: VariableMask, data: torch.fx.Node) -> torch.fx.Node:
        """The value of a layer's input that its gate reads."""
        if mask.mode is GateMode.LOCAL:
            return data
        assert self._dense is not None, "exact gates come with a dense pass"
        return self._dense.of(data)

    def product(
        self,
        mask: VariableMask,
        value: torch.fx.Node,
        gate: torch.fx.Node | None,
        spec: ConvSpec,
        like: torch.fx.Node,
        store: Callable[[str, Any, InputKind], torch.fx.Node],
    ) -> torch.fx.Node | None:
        """The whole mask of a stage, to be multiplied with its output; None where it is all ones.

        Args:
            mask: What it is.
            value: The stage's output: (batch, channels, *locations), or (batch, *locations, channels) without spatial
                axes.
            gate: The importances in the value's layout, or None.
            spec: The stage's geometry.
            like: The node of the layer.
            store: Stores a part of the layer.
        """
        factors = [] if gate is None else [gate]
        if mask.input is not None:
            factors.append(self.given(mask.input, value, spec, like))
        if mask.located is not None:
            sizes = _locations(value, spec)
            # A size that is a symbol would compare with its traced value, and leave a guard.
            if not all(isinstance(size, int) for size in sizes) or tuple(sizes) != mask.located.shape[:-1]:
                raise _misfit(mask, sizes)
            array = mask.located if not spec.axes else mask.located.transpose(-1, *range(spec.axes))
            factors.append(store("mask", array, InputKind.BUFFER))
        if not factors:
            return None
        product, *others = factors
        for factor in others:
            product = self._edit.call(aten.mul.Tensor, (product, factor), like, "mask")
        return product

    def given(self, wanted: LiveInput, value: torch.fx.Node, spec: ConvSpec, like: torch.fx.Node) -> torch.fx.Node:
        """An input of the program, with its axes as ``value`` has them."""
        where = f"{_OPTIONS[str(wanted.role)]}, layer {wanted.layer}"
        fake = value.meta["val"]
        sizes = _locations(value, spec)
        if str(fake.shape[0]) != str(self._batch):
            own, whole = str(fake.shape[0]), str(self._batch)
            if not whole.isdigit():  # a symbol of torch's, such as s99
                own, whole = re.sub(rf"\b{whole}\b", "batch", own), "batch"
            raise UsageError(
                f"The layer runs on a batch of {own}, and the model on one of {whole}: no mask for each sample can be "
                "told.",
                where=where,
                hint="Leave the layer out of the run-time masks.",
            )
        if wanted.per_location and not all(_is_plain(size) for size in sizes):
            raise UsageError(
                f"The layer's output has locations {shape_of(sizes)}, whose number is computed from the input's size.",
                where=f"--runtime-masks-per-location, layer {wanted.layer}",
                hint="Convert with a fixed input size, or with masks for each sample.",
            )
        shape = (fake.shape[0], *(sizes if wanted.per_location else ()), *((wanted.channels,) * bool(wanted.channels)))
        try:
            node = self._edit.add_input(wanted.keyword, shape, fake.dtype)
        except ValueError as error:
            raise UsageError(
                f"The input {wanted.name} cannot be made: {error}.", where=where, hint="Leave the layer out."
            ) from error
        return self._arranged(node, wanted, spec, fake.ndim, like)

    def _arranged(
        self, node: torch.fx.Node, wanted: LiveInput, spec: ConvSpec, rank: int, like: torch.fx.Node
    ) -> torch.fx.Node:
        """An input with its axes in the places of a value's of that rank."""
        suffix = str(wanted.role)
        if wanted.per_location:
            if spec.axes and wanted.channels:
                return self.channels_first(node, like, suffix)
            if not wanted.channels:
                axis = 1 if spec.axes else -1
                return self._edit.call(aten.unsqueeze.default, (node, axis), like, suffix)
            return node
        for _ in range(rank - node.meta["val"].ndim):
            # Behind the channels where there are spatial axes; between batch and channels in a sequence.
            axis = -1 if spec.axes or not wanted.channels else 1
            node = self._edit.call(aten.unsqueeze.default, (node, axis), like, suffix)
        return node

    def channels_first(self, node: torch.fx.Node, like: torch.fx.Node, suffix: str) -> torch.fx.Node:
        """(batch, *locations, C) as (batch, C, *locations)."""
        rank = node.meta["val"].ndim
        return self._edit.call(aten.permute.default, (node, [0, rank - 1, *range(1, rank - 1)]), like, suffix)

    def show(self, name: str, node: torch.fx.Node, spec: ConvSpec, like: torch.fx.Node) -> None:
        """Give a value of a stage out, with the components last."""
        rank = node.meta["val"].ndim
        if spec.axes:
            order = [0, *range(2, rank), 1]
            node = self._edit.call(aten.permute.default, (node, order), like, name.partition("/")[0])
        self._edit.add_output(name, node)


_OPTIONS: Mapping[str, str] = {
    "mask": "--runtime-masks",
    "delta_mask": "--runtime-delta-masks",
    "routing": "--runtime-routing",
}


def _locations(value: torch.fx.Node, spec: ConvSpec) -> list[Any]:
    shape = list(value.meta["val"].shape)
    return shape[2:] if spec.axes else shape[1:-1]


def _is_plain(size: Any) -> bool:
    return not isinstance(size, torch.SymInt) or bool(size.node.expr.is_Symbol)


def _misfit(mask: VariableMask, sizes: list[Any]) -> MaskError:
    assert mask.located is not None, "only such a mask has locations"
    given = shape_of(mask.located.shape[:-1])
    if not all(isinstance(size, int) for size in sizes):
        return MaskError(
            f"The mask of {mask.layer} is for {given} locations, and the layer's output changes its size with the "
            "input.",
            where=f"masks, layer {mask.layer}",
            hint="Convert with a fixed input size (without --dynamic), or give one value for each component.",
        )
    return MaskError(
        f"The mask of {mask.layer} is for {given} locations, and the layer's output has {shape_of(sizes)}.",
        where=f"masks, layer {mask.layer}",
        hint="Give a mask that was made for inputs of this size.",
    )
