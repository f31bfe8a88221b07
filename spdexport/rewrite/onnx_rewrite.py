"""The ONNX side of the rewrite, second half: put forms in the places of layers.

The last operation of a form takes over the node of the layer that it replaces, with its name, output and metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.conv import stored_weight
from spdexport.forms import VariableMask
from spdexport.names import layer_of_call
from spdexport.rewrite.onnx_graph import conv_attributes, is_operator
from spdexport.rewrite.onnx_names import node_name
from spdexport.rewrite.onnx_place import become, remove_unused
from spdexport.rewrite.onnx_sites import node_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.conv import Array, ConvSite
    from spdexport.forms import Chain, Form, Stage

OPTIONAL_BIAS = 11
"""The opset from which a Gemm may have two inputs only."""


def place_onnx_forms(model: ir.Model, forms: Iterable[tuple[ConvSite, Form]]) -> ir.Model:
    """A new model in which each site has taken its form; the argument is not changed.

    Initializers are named after the layer: ``<layer>.V``, ``<layer>.U``, ``<layer>.mask``, ``<layer>.delta``. All else
    is what it was, and shared with the argument rather than copied. Weights that nothing uses any more are removed.

    Args:
        model: The model, whose sites `list_onnx_sites` listed.
        forms: Sites, each with the form it takes; stage weights in the site's dtype. Taken one at a time.
    """
    model = model.clone()
    edit = _Edit(model)
    for site, form in forms:
        _Placement(edit, site).place(form)
    return model


class _Edit:
    """A model while forms are put into it."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.nodes = node_keys(model.graph)
        self.opset = model.opset_imports.get("", 1)
        self._names: set[str] = set()
        self._taken: set[str] = set()
        for graph in model.graphs():
            self._taken.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self._names.add(node.name or "")
                self._taken.update(value.name or "" for value in node.outputs)
        self._stored: dict[str, list[ir.Value]] = {}

    def unique(self, name: str) -> str:
        """The name, or where a value has it, one with a number."""
        return _free(name, self._taken)

    def unique_node(self, name: str) -> str:
        """The same among nodes, which may share their names with values."""
        return _free(name, self._names)

    def store(self, name: str, array: Array) -> ir.Value:
        """The initializer that holds an array: a second call of one layer gets the one that the first has."""
        for value in self._stored.get(name, []):
            held = value.const_value
            if held is not None and held.numpy().dtype == array.dtype and np.array_equal(held.numpy(), array):
                return value
        unique = self.unique(name)
        value = ir.Value(
            name=unique,
            const_value=ir.tensor(np.ascontiguousarray(array), name=unique),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self.graph.register_initializer(value)
        self._stored.setdefault(name, []).append(value)
        return value

    def release(self, values: Iterable[ir.Value | None]) -> None:
        """Remove what nothing uses any more, and free its names."""
        before = set(self.graph.initializers)
        remove_unused(self.graph, (), [value for value in values if value is not None])
        self._taken -= before - set(self.graph.initializers)


def _free(name: str, taken: set[str]) -> str:
    """The first of ``name``, ``name_2``, ... that is not taken; it is from now on."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


class _Placement:
    """One site, while a form takes its place."""

    def __init__(self, edit: _Edit, site: ConvSite) -> None:
        self._edit, self._site = edit, site
        self._layer = layer_of_call(site.name)
        self._node = edit.nodes[site.node]
        data = self._node.inputs[0]
        assert data is not None, "a layer has an input"
        self._data = data
        self._attributes = tuple(self._node.attributes.values())
        self._operator = self._node.op_type
        self._bias = self._own_bias()

    def place(self, form: Form) -> None:
        """Build the form in front of the site's node, and let that node become the form's last operation."""
        node = self._node
        old = [value for value in node.inputs if value is not None]
        # The bias stays in use meanwhile, so that its initializer is kept and keeps its name.
        kept = [self._bias] if self._bias is not None else []
        node.resize_inputs(0)
        self._edit.release(value for value in old if value not in (self._data, *kept))
        terms = [self._chain(chain) for chain in form.chains]
        while len(terms) > 1:
            left, right = (self._insert(*term) for term in terms[:2])
            terms[:2] = [("Add", [left, right], (), "sum")]
        op_type, inputs, attributes, _ = terms[0]
        become(node, op_type, inputs, attributes)
        self._edit.release(old)

    def _own_bias(self) -> ir.Value | None:
        """The value that the layer adds, where the numbers that the site has are just its numbers."""
        node = self._node
        value = node.inputs[2] if len(node.inputs) > 2 else None
        scaled = is_operator(node, "Gemm") and node.attributes.get_float("beta", 1.0) != 1.0
        return None if scaled else value

    def _chain(self, chain: Chain) -> _Operation:
        """Build all of a chain but its last operation, which is returned."""
        data = self._data
        pending: _Operation | None = None
        for stage in chain:
            if pending is not None:
                data = self._insert(*pending)
            pending = self._stage(data, stage)
            assert not isinstance(stage.mask, VariableMask), "such masks are refused for ONNX sources"
            if stage.mask is not None:
                mask = stage.mask.astype(self._site.weight.dtype, copy=False).reshape(-1, *(1,) * stage.spec.axes)
                held = self._edit.store(f"{self._layer}.mask", mask)
                pending = ("Mul", [self._insert(*pending), held], (), "mask")
        assert pending is not None, "a chain has at least one stage"
        return pending

    def _stage(self, data: ir.Value, stage: Stage) -> _Operation:
        dtype = self._site.weight.dtype
        weight = np.asarray(stage.weight).astype(dtype, copy=False)
        bias: list[ir.Value] = []
        if stage.bias is not None:
            own = self._bias if stage.bias is self._site.bias else None
            bias = [own or self._edit.store(f"{self._layer}.bias", stage.bias.astype(dtype, copy=False))]
        name = f"{self._layer}.{stage.name}"
        if stage.spec.axes:
            operator = "ConvTranspose" if stage.spec.transposed else "Conv"
            held = self._edit.store(name, stored_weight(weight, stage.spec))
            return operator, [data, held, *bias], self._conv_attributes(stage), stage.name
        if self._operator == "Gemm" and (bias or self._edit.opset >= OPTIONAL_BIAS):
            transposed = (ir.AttrInt64("transB", 1),)
            return "Gemm", [data, self._edit.store(name, weight), *bias], transposed, stage.name
        assert not bias, "a MatMul adds nothing"
        return "MatMul", [data, self._edit.store(name, weight.T)], (), stage.name

    def _conv_attributes(self, stage: Stage) -> tuple[ir.Attr, ...]:
        """The layer's own attributes, as they are written, for a stage with its geometry: ``auto_pad`` for instance."""
        spec, site = stage.spec, self._site.spec
        if spec.moves == site.moves:
            return self._attributes
        return conv_attributes(spec)

    def _insert(self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr], part: str) -> ir.Value:
        """A new node in front of the site's."""
        name = f"{node_name(self._node)}.{part}"
        node = ir.Node("", op_type, inputs, attributes, num_outputs=1, name=self._edit.unique_node(name))
        node.metadata_props.update(self._node.metadata_props)
        self._edit.graph.insert_before(self._node, node)
        value, model = node.outputs[0], self._node.outputs[0]
        value.name = self._edit.unique(f"{model.name or name}.{part}")
        value.type = model.type
        return value


_Operation = tuple[str, "list[ir.Value]", "tuple[ir.Attr, ...]", str]
"""An operator, its inputs, its attributes, and the part of the form that it is."""
