"""Put forms in the places of convolutions: a new ExportedProgram from an old one.

The last operation of a form takes over the node of the convolution it replaces, with its name and users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from spdexport.conv import stored_weight
from spdexport.forms import VariableMask
from spdexport.gates import GlobalShare
from spdexport.names import layer_of_call
from spdexport.rewrite.torch_edit import ProgramEdit
from spdexport.rewrite.torch_gates import GateNodes
from spdexport.rewrite.torch_graph import LOOKUP, operands
from spdexport.rewrite.torch_masks import DensePass, MaskNodes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import Chain, Form, Stage

aten = torch.ops.aten
CONVOLUTION = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def place_forms(
    program: ExportedProgram,
    forms: Iterable[tuple[ConvSite, Form]],
    *,
    changed: Collection[str] = (),
    gated: Collection[str] = (),
    share: GlobalShare | None = None,
) -> ExportedProgram:
    """A new program in which each site has taken its form; the argument is not changed.

    Parameters are named after the layer: ``<layer>.V``, ``<layer>.U``, ``<layer>.mask``, ``<layer>.delta``. Tensors of
    untouched layers are shared with the argument, not copied. Forms are taken one at a time, so an iterator that makes
    them as it goes keeps one layer's arrays in memory beside the program's.

    Args:
        program: The traced program.
        forms: Sites of this very program, each with the form it takes; stage weights in the site's dtype.
        changed: The nodes of sites whose function the forms change; asked for where layers have exact gates.
        gated: The nodes of sites whose inputs exact gates read.
        share: Of any site with a gate, where one function gives the importances of all sites.

    Raises:
        UsageError: An input or a dense pass that a variable mask needs cannot be made.
        MaskError: A mask for each location does not fit the layer's output.
    """
    edit = ProgramEdit(program)
    dense = DensePass(edit, changed, gated, first=share is not None) if gated else None
    masks = MaskNodes(edit, dense, share)
    for site, form in forms:
        _Placement(edit, site, masks).place(form)
    return edit.finish()


class _Placement:
    """One site of a program that is edited, while a form takes its place."""

    def __init__(self, edit: ProgramEdit, site: ConvSite, masks: MaskNodes) -> None:
        self._edit, self._site, self._masks = edit, site, masks
        self._layer = layer_of_call(site.name)
        self._node = edit.node(site.node)
        self._data, self._weight, self._bias = operands(self._node)

    def place(self, form: Form) -> None:
        """Build the form in front of the site's node, and let that node become the form's last operation."""
        node = self._node
        with self._edit.graph.inserting_before(node):
            terms = [self._chain_calls(chain) for chain in form.chains]
            if len(terms) == 1:
                target, args = terms[0]
            else:
                total, *others = (
                    self._edit.call(t, a, node, c[-1].name) for (t, a), c in zip(terms, form.chains, strict=True)
                )
                for value in others[:-1]:
                    total = self._edit.call(aten.add.Tensor, (total, value), node, "sum")
                target, args = aten.add.Tensor, (total, others[-1])
            if form.routing is not None:
                total = self._edit.call(target, args, node, "sum")
                original = self._edit.copy(node, {}, "original")
                routing = self._masks.given(form.routing, total, self._site.spec, node)
                chosen = self._edit.call(aten.ne.Scalar, (routing, 0), node, "chosen")
                target, args = aten.where.self, (chosen, total, original)
        node.target, node.args = target, args
        node.kwargs = {}
        self._edit.drop_unused(self._weight)

    def _chain_calls(self, chain: Chain) -> tuple[Any, tuple[Any, ...]]:
        """Build all of a chain but its last operation; gives that one as operator and arguments."""
        x, name = self._data, ""
        pending: tuple[Any, tuple[Any, ...]] | None = None
        for number, stage in enumerate(chain):
            if pending is not None:
                x = self._edit.call(*pending, self._node, name)
            pending, name = self._stage_call(x, stage, first=number == 0), stage.name
            if isinstance(stage.mask, VariableMask):
                x = self._edit.call(*pending, self._node, name)
                product = self._variable(stage, stage.mask, x)
                pending, name = None if product is None else (aten.mul.Tensor, (x, product)), f"{name}_masked"
            elif stage.mask is not None:
                x = self._edit.call(*pending, self._node, name)
                mask = stage.mask.reshape(-1, *(1,) * stage.spec.axes)
                pending, name = (aten.mul.Tensor, (x, self._store("mask", mask, InputKind.BUFFER))), "mask"
        assert pending is not None, "a chain ends with a stage or a mask"
        return pending

    def _variable(self, stage: Stage, mask: VariableMask, x: torch.fx.Node) -> torch.fx.Node | None:
        """The value that a stage's output ``x`` is multiplied with."""
        gate, activation = None, x
        if mask.gate is not None:
            data = self._masks.read_by_gate(mask, self._data)
            is_shared = isinstance(mask.gate, GlobalShare)
            if data is not self._data and (mask.shows_activation or not is_shared):
                activation = self._edit.call(
                    *self._stage_call(data, stage, first=True), self._node, f"{stage.name}_dense"
                )
            nodes = GateNodes(self._edit, self._site.spec, self._node, self._store)
            if isinstance(mask.gate, GlobalShare):
                gate = self._masks.shared(mask.gate)
            else:
                gate = nodes.importances(mask.gate, activation, data)
            if mask.shows_importance:
                self._masks.show(f"ci/{self._layer}", gate, stage.spec, self._node)
            if mask.threshold is not None:
                gate = nodes.thresholded(gate, mask.threshold)
        if mask.shows_activation:
            self._masks.show(f"activation/{self._layer}", activation, stage.spec, self._node)
        return self._masks.product(mask, x, gate, stage.spec, self._node, self._store)

    def _stage_call(self, x: Any, stage: Stage, *, first: bool) -> tuple[Any, tuple[Any, ...]]:
        """The operator and arguments of one stage, on the value ``x``; that of a ``first`` one is the layer's input."""
        if first and self._site.is_lookup:
            table = self._store(stage.name, np.ascontiguousarray(np.asarray(stage.weight).T), InputKind.PARAMETER)
            return LOOKUP, (table, x)
        weight = self._store(stage.name, stored_weight(np.asarray(stage.weight), stage.spec), InputKind.PARAMETER)
        added: Any = None
        if stage.bias is not None:
            # The layer's own bias stays the node that it was, computed or shared as it may be.
            own = stage.bias is self._site.bias
            added = self._bias if own else self._store("bias", stage.bias, InputKind.PARAMETER)
        if stage.spec.axes == 0:
            return aten.linear.default, (x, weight, added)
        if stage.spec.moves == self._site.spec.moves and not self._node.kwargs:
            # The site's own operator and arguments, `padding="same"` for instance, are what folding gives back.
            return self._node.target, (x, weight, added, *self._node.args[3:])
        target, rest = convolution(stage.spec)
        return target, (x, weight, added, *rest)

    def _store(self, part: str, values: Array, kind: InputKind) -> torch.fx.Node:
        """The parameter or buffer ``<layer>.<part>``; a further call of the same layer gets the one it has."""
        values = values.astype(self._site.weight.dtype, copy=False)
        return self._edit.store(f"{self._layer}.{part}", values, kind, self._weight)


def has_padding(spec: ConvSpec) -> bool:
    """Whether a convolution of torch pads like this: alike before and after each axis, or as ``same`` does."""
    return _is_same(spec) or all(before == after for before, after in spec.padding)


def convolution(spec: ConvSpec) -> tuple[Any, tuple[Any, ...]]:
    """The operator of a convolution with this geometry, and its arguments behind input, weight and bias.

    Raises:
        ValueError: It does not have ``has_padding``.
    """
    stride, dilation = list(spec.stride), list(spec.dilation)
    padding = [before for before, _ in spec.padding]
    if all(before == after for before, after in spec.padding):
        if spec.transposed:
            return TRANSPOSED[spec.axes], (stride, padding, list(spec.output_padding), spec.groups, dilation)
        return CONVOLUTION[spec.axes].default, (stride, padding, dilation, spec.groups)
    if _is_same(spec):
        return CONVOLUTION[spec.axes].padding, (stride, "same", dilation, spec.groups)
    raise ValueError(f"torch has no convolution that pads like {spec}")


def _is_same(spec: ConvSpec) -> bool:
    total = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    is_same = spec.padding == tuple((t // 2, t - t // 2) for t in total)
    return is_same and not spec.transposed and all(s == 1 for s in spec.stride)
