"""Cut channels out of an ONNX graph: the weights, biases and parameters of every node that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_dead_layers import Layer, bias_of, float_type, weights
from spdexport.rewrite.onnx_graph import is_operator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spdexport.conv import Array, FloatArray
    from spdexport.rewrite.onnx_dead_layers import BoolArray, Channelwise, IntArray
    from spdexport.rewrite.onnx_dead_rules import Tracks

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min")
"""Operators an operand of which may be a stored constant in the place of a computed one."""


class Cut:
    """A model while channels are cut out of it.

    Args:
        model: The model, which is changed; weights are replaced, never written to.
        shapes: As ``Tracks.shapes``; they are kept right.

    Attributes:
        channels: By the name of each value that has fewer channels: their axis, and the old numbers of those left.
        shifted: The names of values that lack constants which are added further on.
        instead: Sums with zeros that are gone, with the names of the values that stand for them.
    """

    def __init__(self, model: ir.Model, shapes: dict[str, tuple[int | str, ...]]) -> None:
        self.model = model
        self.graph = model.graph
        self.shapes = shapes
        self.channels: dict[str, tuple[int, IntArray]] = {}
        self.shifted: set[str] = set()
        self.instead: dict[str, str] = {}
        self._wanted: dict[ir.Value, str] = {}
        self._cuts: dict[tuple[ir.Value, str], ir.Value] = {}
        self._used = [value for value in self.graph.initializers.values() if value.uses()]

    def replace_constants(self, tracks: Tracks) -> bool:
        """Put stored constants in the place of operands that are computed and constant in all channels.

        Only where another operand has the result's size already. Adding zeros goes altogether.

        Returns:
            Whether there were any.
        """
        found = False
        for rule in list(tracks.rules):
            node = rule.node
            if not is_operator(node, *ARITHMETIC) or len(node.inputs) != 2:
                continue
            for index, value in enumerate(node.inputs):
                other = node.inputs[1 - index]
                track = tracks.known.get(value) if value is not None else None
                if value is None or other is None or track is None or not track.constant.all():
                    continue
                shape = tracks.shape(node.outputs[0])
                if constant(other) is not None or shape is None or tracks.shape(other) != shape:
                    continue
                if _adds_zeros(node, index, track.number) and not node.outputs[0].is_graph_output():
                    _use_instead(node.outputs[0], other)
                    self.instead[node.outputs[0].name or ""] = other.name or ""
                else:
                    rank = len(tracks.shapes[value.name or ""])
                    array = track.number.reshape(-1, *[1] * (rank - 1 - track.axis))
                    node.replace_input_with(
                        index, self._store(value, array.astype(float_type(value)), None, suffix=".constant")
                    )
                found = True
                break
        if found:
            self._sweep()
        return found

    def apply(self, tracks: Tracks, kept: Mapping[ir.Value, BoolArray]) -> None:
        """Cut everything but the channels kept, and put what constants add into the biases.

        Args:
            tracks: What is known of the graph.
            kept: Of each tracked value.
        """
        index = {value: np.flatnonzero(keep) for value, keep in kept.items()}
        shifts: list[tuple[ir.Value, FloatArray]] = []
        for rule in tracks.rules:
            if isinstance(rule, Layer):
                shift = self._cut_layer(rule, tracks, kept, index)
                if shift is not None and shift.any():
                    shifts.append((rule.out, shift))
            else:
                self._cut_channelwise(rule, kept, index)
        for value, keep in kept.items():
            if not keep.all():
                self._shrink(value, tracks.known[value].axis, index[value])
        for value, shift in shifts:
            self._add_behind(value, shift)
        self._sweep()

    def finish(self) -> None:
        """Give the new weights their names: those of the ones they replace, where these are gone."""
        self._release(self._used)
        taken = {v.name for graph in self.model.graphs() for v in (*graph.inputs, *graph.initializers.values())}
        taken |= {v.name for graph in self.model.graphs() for node in graph for v in node.outputs}
        for value, wanted in self._wanted.items():
            if not value.uses():
                continue
            name, number = wanted, 1
            while name in taken:
                number += 1
                name = f"{wanted}_{number}"
            taken.add(name)
            value.name = name
            if value.const_value is not None:
                value.const_value.name = name
            self.graph.register_initializer(value)

    def _cut_layer(
        self, layer: Layer, tracks: Tracks, kept: Mapping[ir.Value, BoolArray], index: Mapping[ir.Value, IntArray]
    ) -> FloatArray | None:
        """Cut a layer; what the constants at its input add is in its bias, or, where it has none, returned."""
        node, rows = layer.node, index[layer.out]
        known = tracks.known.get(layer.data)
        dead = np.flatnonzero(~kept[layer.data]) if known is not None else np.zeros(0, int)
        shift = np.zeros(len(layer.uses))
        if known is not None and layer.groups == 1:
            # What is no constant here counts as zero, and is read by no row that stays.
            shift = layer.shift(np.where(kept[layer.data], 0.0, known.number))
        if len(rows) == len(layer.uses) and not dead.size:
            return None
        columns = index.get(layer.data)
        old = node.inputs[1]
        weight = weights(old)
        assert old is not None, "a layer has a weight"
        assert weight is not None, "which is constant"
        node.replace_input_with(1, self._cut_weight(layer, old, weight, rows, columns))
        if layer.groups > 1:
            per_group = len(layer.uses) // layer.groups
            node.attributes["group"] = ir.AttrInt64("group", len(rows) // per_group)
        if node.op_type == "MatMul":
            return np.asarray(shift[rows])
        self._cut_bias(layer, rows, shift)
        return None

    def _cut_weight(
        self, layer: Layer, old: ir.Value, weight: Array, rows: IntArray, columns: IntArray | None
    ) -> ir.Value:
        into, out = {"Conv": (1, 0), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1)}[layer.node.op_type]
        if layer.node.op_type == "Gemm" and layer.node.attributes.get_int("transB", 0) != 0:
            into, out = out, into
        if layer.groups > 1:
            # The axis that counts within a group stays as it is.
            rows, columns = (rows, None) if layer.node.op_type == "Conv" else (None, columns)  # type: ignore[assignment]
        cut = weight
        for axis, kept in ((out, rows), (into, columns)):
            if kept is not None and len(kept) != cut.shape[axis]:
                cut = np.take(cut, kept, axis=axis)
        return self._store(old, cut, (rows, columns))

    def _cut_bias(self, layer: Layer, rows: IntArray, shift: FloatArray) -> None:
        node = layer.node
        old = node.inputs[2] if len(node.inputs) > 2 else None
        whole, adds = len(rows) == len(layer.uses), bool(shift[rows].any())
        if (whole or old is None) and not adds:
            return
        stored = weights(old)
        if not adds and stored is not None:
            if stored.size > 1 and old is not None:
                self._replace(node, 2, self._store(old, np.take(stored, rows, axis=-1), (rows, None)))
            return
        bias = bias_of(node, len(layer.uses))
        assert bias is not None, "the layer has a rule"
        factor = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        weight = weights(node.inputs[1])
        assert weight is not None, "a layer has a constant weight"
        value = ((bias + shift)[rows] / factor).astype(weight.dtype)
        source, suffix = (old, "") if old is not None else (node.inputs[1], ".bias")
        assert source is not None, "a layer has a weight"
        self._replace(node, 2, self._store(source, value, None, suffix=suffix))

    def _cut_channelwise(
        self, rule: Channelwise, kept: Mapping[ir.Value, BoolArray], index: Mapping[ir.Value, IntArray]
    ) -> None:
        if kept[rule.out].all():
            return
        node = rule.node
        for place, axis in rule.parameters:
            old = node.inputs[place]
            array = weights(old)
            assert old is not None, "the parameter is there"
            assert array is not None, "and constant"
            node.replace_input_with(
                place, self._store(old, np.take(array, index[rule.out], axis=axis), (index[rule.out], None, axis))
            )
        if node.op_type == "Reshape":
            # The sizes that it is given are not right any more.
            node.op_type = "Flatten"
            node.resize_inputs(1)
            node.attributes.clear()
            node.attributes.add(ir.AttrInt64("axis", 1))

    def _shrink(self, value: ir.Value, axis: int, kept: IntArray) -> None:
        """Note which channels a value has now, and how many."""
        name = value.name or ""
        before = self.channels.get(name)
        self.channels[name] = (axis, kept if before is None else before[1][kept])
        if value.shape is not None:
            value.shape = ir.Shape([len(kept) if a == axis else d for a, d in enumerate(value.shape)])
        if name in self.shapes:
            self.shapes[name] = tuple(len(kept) if a == axis else d for a, d in enumerate(self.shapes[name]))

    def _add_behind(self, value: ir.Value, shift: FloatArray) -> None:
        """Add a number to each channel of a matrix product: in the bias behind it, if there is one."""
        while True:
            self.shifted.add(value.name or "")
            uses = list(value.uses())
            use = uses[0] if len(uses) == 1 and not value.is_graph_output() else None
            if use is None or use.node.graph is not self.graph:
                break
            node = use.node
            weight = weights(node.inputs[1]) if is_operator(node, "MatMul") and use.idx == 0 else None
            if weight is not None and weight.ndim == 2 and not node.outputs[0].is_graph_output():
                value, shift = node.outputs[0], shift @ weight.astype(np.float64)
                continue
            old = node.inputs[1 - use.idx] if is_operator(node, "Add") else None
            bias = weights(old)
            if old is None or bias is None or bias.size not in (1, shift.size) or bias.shape[-1:] != (bias.size,):
                break
            added = (bias.reshape(-1).astype(np.float64) + shift).astype(bias.dtype)
            node.replace_input_with(1 - use.idx, self._store(old, added, None))
            return
        self._insert_add(value, shift)

    def _insert_add(self, value: ir.Value, shift: FloatArray) -> None:
        """An Add behind a value; all that read the value read the sum."""
        stored = self._store(value, shift.astype(float_type(value)), None, suffix=".shift")
        producer = value.producer()
        assert producer is not None, "a product is computed"
        node = ir.node("Add", [value, stored], name=f"{producer.name or value.name}.shift")
        result = node.outputs[0]
        result.name, result.shape, result.type = f"{value.name}.shifted", value.shape, value.type
        self.graph.insert_after(producer, node)
        self.shapes[result.name or ""] = self.shapes[value.name or ""]
        for use in list(value.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, result)

    def _store(self, old: ir.Value, array: Array, how: tuple[object, ...] | None, *, suffix: str = "") -> ir.Value:
        """A new initializer in the place of another one; its name is given at the end, when it is known which are free.

        Args:
            old: The one that it is made of.
            array: What it holds.
            how: How it was cut: nodes that share a weight and are cut alike share the new one. None not to share.
            suffix: Of its name, where it is another thing than the old one.
        """
        told = repr([k.tolist() if isinstance(k, np.ndarray) else k for k in how or ()])
        if how is not None and (old, told) in self._cuts:
            return self._cuts[old, told]
        array = np.asarray(array, order="C")  # a number stays one, without axes
        value = ir.Value(
            const_value=ir.tensor(array),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        name = self._wanted.get(old, old.name or "constant")
        self._wanted[value] = name.removesuffix(".weight") + suffix if suffix else name
        if how is not None:
            self._cuts[old, told] = value
        return value

    @staticmethod
    def _replace(node: ir.Node, index: int, value: ir.Value) -> None:
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def _sweep(self) -> None:
        """Remove nodes and weights that nothing uses any more."""
        for node in reversed(list(self.graph)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                operands = [v for v in node.inputs if v is not None and v.is_initializer()]
                self.graph.remove(node, safe=True)
                self._release(operands)

    def _release(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            name = value.name
            if not value.uses() and not value.is_graph_input() and not value.is_graph_output() and name is not None:
                self.graph.initializers.pop(name, None)


def _adds_zeros(node: ir.Node, index: int, numbers: FloatArray) -> bool:
    """Whether an operand that holds these numbers changes nothing."""
    return not numbers.any() and (node.op_type == "Add" or (node.op_type == "Sub" and index == 1))


def _use_instead(value: ir.Value, other: ir.Value) -> None:
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, other)
