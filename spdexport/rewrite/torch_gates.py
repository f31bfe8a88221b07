"""Causal-importance functions as nodes of a torch graph: one grouped operation for each of their affine maps.

The formulas are those of ``spdexport.gates``. A map for each component is a pointwise convolution with one group for
each, whatever the layer; a function of the layer's input vector begins with a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from spdexport.errors import UsageError
from spdexport.gates import GateKind, Sigmoid
from spdexport.gates.sigmoids import LEAK, SWISH_BETA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array, ConvSpec
    from spdexport.gates import GateFunction, GateLayer
    from spdexport.rewrite.torch_edit import ProgramEdit

aten = torch.ops.aten
CONVOLUTION = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


class GateNodes:
    """Makes the importances of one layer.

    Args:
        edit: The program that they are put into.
        spec: The layer's geometry.
        like: The layer's node.
        store: Stores a part of the layer.
    """

    def __init__(
        self,
        edit: ProgramEdit,
        spec: ConvSpec,
        like: torch.fx.Node,
        store: Callable[[str, Array, InputKind], torch.fx.Node],
    ) -> None:
        self._edit, self._spec, self._like, self._store = edit, spec, like, store

    def importances(self, gate: GateFunction, activations: torch.fx.Node, data: torch.fx.Node) -> torch.fx.Node:
        """The importances, in the layout of the activations.

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
                where=f"--gates, node {self._like.name}",
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
        return squashed(self._call, value, gate.sigmoid)

    def _call(self, target: Any, *args: Any) -> torch.fx.Node:
        return self._edit.call(target, args, self._like, "gate")

    def _shared(self, layers: Sequence[GateLayer], value: torch.fx.Node) -> torch.fx.Node:
        for number, layer in enumerate(layers):
            value = value if number == 0 else self._call(aten.gelu.default, value)
            value = self._linear(number, layer.weight.T, layer, value)
        return value

    def _linear(self, number: int, weight: Array, layer: GateLayer, value: torch.fx.Node) -> torch.fx.Node:
        """A linear layer; ``weight`` is (outer, inner)."""
        return self._call(aten.linear.default, value, *self._parameters(number, weight, layer))

    def _grouped(self, layers: Sequence[GateLayer], value: torch.fx.Node, *, start: int) -> torch.fx.Node:
        """Maps for each component by itself, on (batch, C * inner, *locations), or with the components last."""
        rank = value.meta["val"].ndim
        axes = self._spec.axes or 1
        if not self._spec.axes:
            value = self._call(aten.unsqueeze.default, value, -1) if rank == 2 else self._turned(value)
        for number, layer in enumerate(layers, start):
            value = value if number == 0 else self._call(aten.gelu.default, value)
            components, inner, outer = layer.weight.shape
            weight = layer.weight.transpose(0, 2, 1).reshape(components * outer, inner, *(1,) * axes)
            parameters = self._parameters(number, weight, layer)
            geometry = ([1] * axes, [0] * axes, [1] * axes, components)
            value = self._call(CONVOLUTION[axes], value, *parameters, *geometry)
        if not self._spec.axes:
            value = self._call(aten.squeeze.dim, value, -1) if rank == 2 else self._turned(value)
        return value

    def _turned(self, value: torch.fx.Node) -> torch.fx.Node:
        """(batch, tokens, C) as (batch, C, tokens), and back."""
        if value.meta["val"].ndim != 3:
            raise UsageError(
                "The gate is of a linear layer with more than one axis between batch and components.",
                where=f"--gates, node {self._like.name}",
                hint="Leave the layer out with --exclude.",
            )
        return self._call(aten.permute.default, value, [0, 2, 1])

    def _parameters(self, number: int, weight: Array, layer: GateLayer) -> tuple[torch.fx.Node, torch.fx.Node]:
        kind = InputKind.PARAMETER
        weight, bias = np.ascontiguousarray(weight), np.ascontiguousarray(layer.bias.reshape(-1))
        return self._store(f"gate{number}.weight", weight, kind), self._store(f"gate{number}.bias", bias, kind)

    def thresholded(self, gate: torch.fx.Node, threshold: float) -> torch.fx.Node:
        """1 where the importance is greater than the threshold, 0 elsewhere, in the importance's dtype.

        The threshold is rounded to that dtype, as that of a fixed mask is.
        """
        dtype = gate.meta["val"].dtype
        rounded = float(torch.tensor(threshold, dtype=dtype))
        return self._call(aten.to.dtype, self._call(aten.gt.Scalar, gate, rounded), dtype)


def squashed(call: Callable[..., torch.fx.Node], x: torch.fx.Node, sigmoid: Sigmoid) -> torch.fx.Node:
    """The importances of what a function gives, of any shape; ``call`` makes a node of an operator and arguments."""

    def swish(z: torch.fx.Node) -> torch.fx.Node:
        return call(aten.mul.Tensor, z, call(aten.sigmoid.default, call(aten.mul.Tensor, z, SWISH_BETA)))

    match sigmoid:
        case Sigmoid.LEAKY_HARD | Sigmoid.HARD | Sigmoid.LOWER_LEAKY_HARD:
            return call(aten.clamp.default, x, 0, 1)
        case Sigmoid.NORMAL:
            return call(aten.sigmoid.default, x)
        case Sigmoid.UPPER_LEAKY_HARD:
            beyond = call(aten.mul.Tensor, call(aten.relu.default, call(aten.sub.Tensor, x, 1)), LEAK)
            return call(aten.add.Tensor, call(aten.clamp.default, x, 0, 1), beyond)
        case Sigmoid.PAPER:
            # Below 0 the clamp does nothing, and above it the leaky part.
            return call(aten.leaky_relu.default, call(aten.clamp.default, x, None, 1), LEAK)
        case Sigmoid.SWISH_HARD:
            # With z sigmoid(-z) = z - z sigmoid(z), SPD's formula is the difference of two swishes.
            return call(aten.sub.Tensor, swish(x), swish(call(aten.sub.Tensor, x, 1)))
