"""Stages, chains and forms.

A stage is one convolution (or linear layer), then perhaps a mask over its output channels, then perhaps a bias:
``y = mask * (weight conv x) + bias``. A chain applies its stages one after another. A form is the sum of its chains,
all of them on the same input.

A mask may be a ``VariableMask``, which is known only at run time; such stages are placed, and never composed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.forms.deferred import Deferred
from spdexport.forms.run_time import VariableMask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, ConvSpec, FloatArray
    from spdexport.forms.deferred import Numbers
    from spdexport.forms.run_time import LiveInput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One convolution of a chain.

    Attributes:
        spec: The geometry.
        weight: Shape ``spec.weight_shape``; ``numpy.asarray`` has the numbers, which may be computed for it.
        mask: Factors on the output channels, shape (out_channels,), or what gives them at run time; or None.
        bias: Added after the mask, shape (out_channels,), or None.
        name: The last part of the parameter's name in the graph, such as ``V``; the layer's name stands before it.
    """

    spec: ConvSpec
    weight: Numbers
    mask: Array | VariableMask | None = None
    bias: Array | None = None
    name: str = "weight"

    def __post_init__(self) -> None:
        if self.weight.shape != self.spec.weight_shape:
            raise ValueError(f"weight {self.weight.shape} does not fit {self.spec}")
        for values in (self.mask, self.bias):
            if (
                values is not None
                and not isinstance(values, VariableMask)
                and values.shape != (self.spec.out_channels,)
            ):
                raise ValueError(f"mask and bias need shape ({self.spec.out_channels},), not {values.shape}")

    def evaluated(self) -> Stage:
        """Return the stage with its weight as an array, for those who need it more than once."""
        return replace(self, weight=np.asarray(self.weight))


Chain = tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Form:
    """What stands in the graph for one layer: the sum of one or more chains.

    Attributes:
        name: That of its ``FormKind``.
        chains: At least one, each with at least one stage. A bias of the layer is on the last stage of the first.
        routing: The input that says per sample or location whether the form is used or, where it is 0, the layer as it
            was; None where the form always is.
    """

    name: str
    chains: tuple[Chain, ...]
    routing: LiveInput | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages of all chains, in the order in which they run."""
        return tuple(stage for chain in self.chains for stage in chain)


def chain_form(
    name: str, specs: Sequence[ConvSpec], weights: Sequence[Numbers], names: Sequence[str], bias: Array | None
) -> Form:
    """Return the form of one chain, with the bias on its last stage.

    Args:
        name: That of its ``FormKind``.
        specs: The geometry of each stage.
        weights: Theirs.
        names: Theirs; there may be more of them.
        bias: Shape (out_channels,), or None.
    """
    last = len(specs) - 1
    parts = enumerate(zip(specs, weights, names[: last + 1], strict=True))
    return Form(
        name=name,
        chains=(
            tuple(
                Stage(spec=spec, weight=weight, bias=bias if index == last else None, name=part)
                for index, (spec, weight, part) in parts
            ),
        ),
    )


class CannotComposeError(ValueError):
    """Two stages in a row, or the sum of two, are not the same function as any single one; the message says why."""


def constant_mask(stage: Stage) -> FloatArray | None:
    """Return a stage's mask in float64, shape (out_channels,), or None.

    Raises:
        CannotComposeError: It is known only at run time.
    """
    if isinstance(stage.mask, VariableMask):
        raise CannotComposeError(f"its mask is {stage.mask.told()}")
    return None if stage.mask is None else f64(stage.mask)


def absorbed(stage: Stage) -> tuple[Deferred, FloatArray | None]:
    """Return a stage's weight with the mask in it, and its bias, in float64.

    Raises:
        CannotComposeError: The mask is known only at run time.
    """
    mask = constant_mask(stage)

    def weight() -> FloatArray:
        return scaled(f64(stage.weight), mask)

    return Deferred(stage.spec.weight_shape, weight), None if stage.bias is None else f64(stage.bias)


def scaled(weight: FloatArray, mask: FloatArray | None) -> FloatArray:
    """Return a weight with a mask over its output channels in it."""
    return weight if mask is None else weight * mask.reshape(-1, *(1,) * (weight.ndim - 1))


def f64(values: Numbers) -> FloatArray:
    """Return the values in float64."""
    return np.asarray(values, dtype=np.float64)
