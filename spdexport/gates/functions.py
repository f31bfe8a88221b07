"""Causal-importance functions as SPD trains them, one for each layer, and their float64 evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from spdexport.gates.sigmoids import Sigmoid, squash
from spdexport.names import count

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray


class GateKind(StrEnum):
    """What a function computes from, as a run's ``ci_fn_type`` calls it.

    ``mlp`` and ``linear`` see each component's own activation, a number; ``vector_mlp`` sees the layer's input vector,
    by itself for each component; ``shared_mlp`` sees the input vector with one network for all components.
    """

    MLP = "mlp"
    LINEAR = "linear"
    VECTOR_MLP = "vector_mlp"
    SHARED_MLP = "shared_mlp"

    @property
    def reads_input(self) -> bool:
        """Whether it reads the layer's input rather than the activations of V."""
        return self in (GateKind.VECTOR_MLP, GateKind.SHARED_MLP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateLayer:
    """One affine map of a function; an exact GELU stands between two of them.

    Attributes:
        weight: Shape (C, inner, outer), a map for each component; (inner, outer) in a shared function.
        bias: Shape (C, outer); (outer,) in a shared function.
    """

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateFunction:
    """The causal-importance function of one layer.

    Attributes:
        kind: What it computes from.
        layers: The affine maps. Of all kinds but ``shared_mlp`` the last one's outer size is 1; the first one's inner
            size is 1 for ``mlp`` and ``linear``, and the layer's input size for the others. The last map of
            ``shared_mlp`` has C outputs.
        sigmoid: What makes importances of what they give.
    """

    kind: GateKind
    layers: tuple[GateLayer, ...]
    sigmoid: Sigmoid

    def __post_init__(self) -> None:
        """Check that the maps fit one another.

        Raises:
            ValueError: They do not.
        """
        axes = 2 if self.kind is GateKind.SHARED_MLP else 3
        size: int | None = 1 if self.kind in (GateKind.MLP, GateKind.LINEAR) else None
        for number, layer in enumerate(self.layers):
            shape = layer.weight.shape
            if len(shape) != axes or layer.bias.shape != (*shape[: axes - 2], shape[-1]):
                raise ValueError(f"map {number} has a weight {shape} and a bias {layer.bias.shape}")
            if size is not None and shape[-2] != size:
                raise ValueError(f"map {number} takes {count(shape[-2], 'value')} and is given {size}")
            if axes == 3 and shape[0] != self.layers[0].weight.shape[0]:
                raise ValueError(f"map {number} is of {shape[0]} components, not {self.layers[0].weight.shape[0]}")
            size = shape[-1]
        if not self.layers or (axes == 3 and size != 1):
            raise ValueError(f"the function gives {size} values for each component, not one")

    @property
    def components(self) -> int:
        """C."""
        return int(self.layers[-1].weight.shape[-1 if self.kind is GateKind.SHARED_MLP else 0])

    @property
    def macs(self) -> int:
        """Multiply-accumulates at one location."""
        return sum(layer.weight.size for layer in self.layers)

    @property
    def parameters(self) -> int:
        """The numbers that a model stores for it."""
        return sum(layer.weight.size + layer.bias.size for layer in self.layers)


def evaluate(gate: GateFunction, activations: FloatArray, inputs: FloatArray | None = None) -> FloatArray:
    """Return the importances, in float64.

    Args:
        gate: The function.
        activations: Of V: shape (..., C).
        inputs: Of the layer, shape (..., d_in); needed by kinds that read it.

    Returns:
        Shape (..., C).

    Raises:
        ValueError: The function reads the layer's input, and there is none.
    """
    if gate.kind.reads_input and inputs is None:
        raise ValueError(f"a function of kind {gate.kind} reads the layer's input")
    if gate.kind is GateKind.SHARED_MLP:
        value = np.asarray(inputs, np.float64)
        for number, layer in enumerate(gate.layers):
            value = value if number == 0 else gelu(value)
            value = value @ layer.weight.astype(np.float64) + layer.bias.astype(np.float64)
        return squash(value, gate.sigmoid)
    if gate.kind.reads_input:
        value = np.asarray(inputs, np.float64)[..., None, :]
    else:
        value = np.asarray(activations, np.float64)[..., None]
    for number, layer in enumerate(gate.layers):
        value = value if number == 0 else gelu(value)
        weight = layer.weight.astype(np.float64)
        # (..., C, 1, inner) @ (C, inner, outer): every component has its own map.
        value = (value[..., None, :] @ weight)[..., 0, :] + layer.bias.astype(np.float64)
    return squash(value[..., 0], gate.sigmoid)


def gelu(x: FloatArray) -> FloatArray:
    """Return the exact GELU: x Phi(x), with the normal distribution function Phi."""
    import torch  # the kinds of functions are known without it

    error: FloatArray = torch.erf(torch.from_numpy(np.ascontiguousarray(x)) / 2**0.5).numpy()
    return np.asarray(0.5 * x * (1 + error))
