"""Causal-importance functions as nodes of a graph: one grouped operation for each of their affine maps.

The formulas are those of ``spdexport.gates``. A map for each component is a pointwise convolution with one group for
each, whatever the layer; a function of the layer's input vector begins with a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

import numpy as np

from spdexport.errors import UsageError
from spdexport.gates import GateKind, Sigmoid
from spdexport.gates.sigmoids import LEAK, SWISH_BETA
from spdexport.rewrite.builder import OperationT, ValueT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, ConvSpec
    from spdexport.gates import GateFunction, GateLayer
    from spdexport.rewrite.builder import LayerNodes, Nodes

_PART = "gate"


class GateNodes(Generic[ValueT, OperationT]):
    """Makes the importances of one layer.

    Args:
        nodes: Of the layer.
        spec: The layer's geometry.
    """

    def __init__(self, nodes: LayerNodes[ValueT, OperationT], spec: ConvSpec) -> None:
        self._nodes, self._spec, self._rank = nodes, spec, len(nodes.output_sizes)

    def importances(self, gate: GateFunction, activations: ValueT, data: ValueT) -> ValueT:
        """Return the importances, in the layout of the activations.

        Args:
            gate: The function.
            activations: Of V: (batch, C, *locations), or (batch, *locations, C) of a linear layer.
            data: The layer's input.

        Raises:
            UsageError: The function reads a convolution's input, for which SPD has no such function.
        """
        if gate.kind.reads_input and self._spec.axes:
            raise UsageError(
                f"The gate is of kind {gate.kind}, which SPD has for linear layers alone.",
                where=f"--gates, node {self._nodes.name}",
                hint="Leave the layer out with --exclude.",
            )
        if gate.kind is GateKind.SHARED_MLP:
            value = self._shared(gate.layers, data)
        elif gate.kind is GateKind.VECTOR_MLP:
            first, *others = gate.layers
            value = self._linear(0, first.weight.transpose(0, 2, 1).reshape(-1, first.weight.shape[1]), first, data)
            value = self._grouped(others, value, start=1) if others else value
        else:
            value = self._grouped(gate.layers, activations, start=0)
        return squashed(self._nodes, value, gate.sigmoid, _PART)

    def thresholded(self, importances: ValueT, threshold: float) -> ValueT:
        """Return 1 where the importance is greater than the threshold, 0 elsewhere, in the importance's dtype."""
        return self._insert(self._nodes.above(importances, threshold))

    def _insert(self, operation: OperationT) -> ValueT:
        return self._nodes.insert(operation, _PART)

    def _shared(self, layers: Sequence[GateLayer], value: ValueT) -> ValueT:
        for number, layer in enumerate(layers):
            value = value if number == 0 else self._insert(self._nodes.gelu(value))
            value = self._linear(number, layer.weight.T, layer, value)
        return value

    def _linear(self, number: int, weight: Array, layer: GateLayer, value: ValueT) -> ValueT:
        """A linear layer; ``weight`` is (outer, inner)."""
        return self._insert(self._nodes.linear(value, *_parameters(weight, layer), parts=_parts(number)))

    def _grouped(self, layers: Sequence[GateLayer], value: ValueT, *, start: int) -> ValueT:
        """Maps for each component by itself, on (batch, C * inner, *locations), or with the components last."""
        axes = self._spec.axes or 1
        if not self._spec.axes:
            value = self._insert(self._nodes.unsqueeze(value, -1)) if self._rank == 2 else self._turned(value)
        for number, layer in enumerate(layers, start):
            value = value if number == 0 else self._insert(self._nodes.gelu(value))
            components, inner, outer = layer.weight.shape
            weight = layer.weight.transpose(0, 2, 1).reshape(components * outer, inner, *(1,) * axes)
            parameters = _parameters(weight, layer)
            value = self._insert(
                self._nodes.grouped(value, *parameters, groups=components, axes=axes, parts=_parts(number))
            )
        if not self._spec.axes:
            value = self._insert(self._nodes.squeeze(value, -1)) if self._rank == 2 else self._turned(value)
        return value

    def _turned(self, value: ValueT) -> ValueT:
        """(batch, tokens, C) as (batch, C, tokens), and back."""
        if self._rank != 3:
            raise UsageError(
                "The gate is of a linear layer with more than one axis between batch and components.",
                where=f"--gates, node {self._nodes.name}",
                hint="Leave the layer out with --exclude.",
            )
        return self._insert(self._nodes.permute(value, [0, 2, 1]))


def _parameters(weight: Array, layer: GateLayer) -> tuple[Array, Array]:
    return np.ascontiguousarray(weight), np.ascontiguousarray(layer.bias.reshape(-1))


def _parts(number: int) -> tuple[str, str]:
    return f"gate{number}.weight", f"gate{number}.bias"


def squashed(nodes: Nodes[ValueT, OperationT], x: ValueT, sigmoid: Sigmoid, part: str) -> ValueT:
    """Return the importances of what a function gives, of any shape; nodes are named by ``part``."""

    def insert(operation: OperationT) -> ValueT:
        return nodes.insert(operation, part)

    def swish(z: ValueT) -> ValueT:
        return insert(nodes.mul(z, insert(nodes.sigmoid(insert(nodes.mul(z, SWISH_BETA))))))

    match sigmoid:
        case Sigmoid.LEAKY_HARD | Sigmoid.HARD | Sigmoid.LOWER_LEAKY_HARD:
            return insert(nodes.clamp(x, 0, 1))
        case Sigmoid.NORMAL:
            return insert(nodes.sigmoid(x))
        case Sigmoid.UPPER_LEAKY_HARD:
            beyond = insert(nodes.mul(insert(nodes.relu(insert(nodes.sub(x, 1)))), LEAK))
            return insert(nodes.add(insert(nodes.clamp(x, 0, 1)), beyond))
        case Sigmoid.PAPER:
            # Below 0 the clamp does nothing, and above it the leaky part.
            return insert(nodes.leaky_relu(insert(nodes.clamp(x, None, 1)), LEAK))
        case Sigmoid.SWISH_HARD:
            # With z sigmoid(-z) = z - z sigmoid(z), SPD's formula is the difference of two swishes.
            return insert(nodes.sub(swish(x), swish(insert(nodes.sub(x, 1)))))
