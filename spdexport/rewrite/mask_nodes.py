"""Masks that are known only at run time, in a graph: inputs, gates and constants that stages are multiplied with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic

from spdexport.errors import MaskError, UsageError
from spdexport.forms import GateMode
from spdexport.names import shape_of
from spdexport.rewrite.builder import NodeT, OperationT, ValueT, locations
from spdexport.rewrite.global_gate_nodes import GLOBAL, GlobalGateNodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import ConvSpec
    from spdexport.forms import LiveInput, VariableMask
    from spdexport.gates import GlobalShare
    from spdexport.rewrite.builder import Edit, InFrontOf, LayerNodes
    from spdexport.rewrite.dense_pass import DensePass

_OPTIONS: Mapping[str, str] = {
    "mask": "--runtime-masks",
    "delta_mask": "--runtime-delta-masks",
    "routing": "--runtime-routing",
}


class MaskNodes(Generic[ValueT, OperationT, NodeT]):
    """Makes the values that stages are multiplied with.

    Args:
        edit: The graph that they are put into.
        dense: The dense pass, where some gate is exact.
        in_front_of: Gives operators in front of a node.
        share: Of any layer with a gate, where one function gives the importances of all layers.
    """

    def __init__(
        self,
        edit: Edit[ValueT, NodeT],
        dense: DensePass[ValueT, NodeT] | None,
        in_front_of: InFrontOf[NodeT, ValueT, OperationT],
        share: GlobalShare | None = None,
    ) -> None:
        self._edit, self._dense = edit, dense
        # Before any form is placed: the first input that masks add would count as the graph's own.
        self._batch = edit.batch
        self._global: GlobalGateNodes[ValueT, OperationT] | None = None
        if share is not None:
            assert dense is not None, "layers with gates read the dense pass"
            assert dense.anchor is not None, "layers with gates are changed"
            nodes = in_front_of(dense.anchor, GLOBAL, share.inputs[0].site.weight.dtype)
            data = {one.layer: edit.input_of(edit.node(one.site.node)) for one in share.inputs}
            self._global = GlobalGateNodes(nodes, share, data, dense.of)

    def shared(self, share: GlobalShare) -> ValueT:
        """Return the importances that the function of all layers gives for one of them."""
        assert self._global is not None, "made where there is such a function"
        return self._global.of(share.layer)

    def read_by_gate(self, mask: VariableMask, data: ValueT) -> ValueT:
        """Return the value of a layer's input that its gate reads."""
        if mask.mode is GateMode.LOCAL:
            return data
        assert self._dense is not None, "exact gates come with a dense pass"
        return self._dense.of(data)

    def product(
        self,
        mask: VariableMask,
        gate: ValueT | None,
        spec: ConvSpec,
        nodes: LayerNodes[ValueT, OperationT],
    ) -> ValueT | None:
        """Return the whole mask of a stage, to be multiplied with its output; None where it is all ones.

        Args:
            mask: What it is.
            gate: The importances in the layout of the stage's output, or None.
            spec: The stage's geometry.
            nodes: Of the layer.
        """
        factors = [] if gate is None else [gate]
        if mask.input is not None:
            factors.append(self.given(mask.input, spec, nodes))
        if mask.located is not None:
            sizes = locations(nodes.output_sizes, spec)
            # A size that is a symbol would compare with its traced value, and leave a guard.
            if not all(isinstance(size, int) for size in sizes) or tuple(sizes) != mask.located.shape[:-1]:
                raise _misfit(mask, sizes)
            array = mask.located if not spec.axes else mask.located.transpose(-1, *range(spec.axes))
            factors.append(nodes.store("mask", array, is_parameter=False))
        if not factors:
            return None
        product, *others = factors
        for factor in others:
            product = nodes.insert(nodes.mul(product, factor), "mask")
        return product

    def given(self, wanted: LiveInput, spec: ConvSpec, nodes: LayerNodes[ValueT, OperationT]) -> ValueT:
        """Return an input of the graph with its axes as the layer's output has them.

        Raises:
            UsageError: The layer runs on another batch than the model, or its locations are not known.
        """
        where = f"{_OPTIONS[str(wanted.role)]}, layer {wanted.layer}"
        sizes = nodes.output_sizes
        inner = locations(sizes, spec)
        if str(sizes[0]) != str(self._batch):
            own, whole = str(sizes[0]), str(self._batch)
            if not whole.isdigit():  # a symbol, such as s99
                own, whole = re.sub(rf"\b{whole}\b", "batch", own), "batch"
            raise UsageError(
                f"The layer runs on a batch of {own}, and the model on one of {whole}: no mask for each sample can be "
                "told.",
                where=where,
                hint="Leave the layer out of the run-time masks.",
            )
        if wanted.per_location and not all(self._edit.is_plain(size) for size in inner):
            raise UsageError(
                f"The layer's output has locations {shape_of(inner)}, whose number is computed from the input's size.",
                where=f"--runtime-masks-per-location, layer {wanted.layer}",
                hint="Convert with a fixed input size, or with masks for each sample.",
            )
        shape = (sizes[0], *(inner if wanted.per_location else ()), *((wanted.channels,) * bool(wanted.channels)))
        try:
            value = nodes.add_input(wanted.keyword, shape)
        except ValueError as error:
            raise UsageError(
                f"The input {wanted.name} cannot be made: {error}.", where=where, hint="Leave the layer out."
            ) from error
        return _arranged(value, len(shape), wanted, spec, nodes)

    def show(self, name: str, value: ValueT, spec: ConvSpec, nodes: LayerNodes[ValueT, OperationT]) -> None:
        """Give a value of a stage out, with the components last."""
        if spec.axes:
            order = [0, *range(2, len(nodes.output_sizes)), 1]
            value = nodes.insert(nodes.permute(value, order), name.partition("/")[0])
        sizes = nodes.output_sizes
        self._edit.add_output(name, value, (sizes[0], *locations(sizes, spec), spec.out_channels))


def _arranged(
    value: ValueT, rank: int, wanted: LiveInput, spec: ConvSpec, nodes: LayerNodes[ValueT, OperationT]
) -> ValueT:
    """An input of so many axes with its axes in the places of those of the layer's output."""
    part = str(wanted.role)
    if wanted.per_location:
        if spec.axes and wanted.channels:
            return nodes.insert(nodes.permute(value, [0, rank - 1, *range(1, rank - 1)]), part)
        if not wanted.channels:
            return nodes.insert(nodes.unsqueeze(value, 1 if spec.axes else -1), part)
        return value
    for _ in range(len(nodes.output_sizes) - rank):
        # Behind the channels where there are spatial axes; between batch and channels in a sequence.
        value = nodes.insert(nodes.unsqueeze(value, -1 if spec.axes or not wanted.channels else 1), part)
    return value


def _misfit(mask: VariableMask, sizes: tuple[Any, ...]) -> MaskError:
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
