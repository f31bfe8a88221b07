"""Stages, chains and forms, and the composition of a chain back into one stage.

A stage is one convolution (or linear layer), then perhaps a mask over its output channels, then perhaps a bias:
``y = mask * (weight conv x) + bias``. A chain applies its stages one after another. A form is the sum of its chains,
all of them on the same input.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import ConvSpec

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One convolution of a chain.

    Attributes:
        spec: The geometry.
        weight: Shape ``spec.weight_shape``.
        mask: Factors on the output channels, shape (out_channels,), or None.
        bias: Added after the mask, shape (out_channels,), or None.
        name: The last part of the parameter's name in the graph, such as ``V``; the layer's name stands before it.
    """

    spec: ConvSpec
    weight: Array
    mask: Array | None = None
    bias: Array | None = None
    name: str = "weight"

    def __post_init__(self) -> None:
        if self.weight.shape != self.spec.weight_shape:
            raise ValueError(f"weight {self.weight.shape} does not fit {self.spec}")
        for values in (self.mask, self.bias):
            if values is not None and values.shape != (self.spec.out_channels,):
                raise ValueError(f"mask and bias need shape ({self.spec.out_channels},), not {values.shape}")


Chain = tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Form:
    """What stands in the graph for one layer: the sum of one or more chains.

    Attributes:
        name: ``dense``, ``factorized``, ...
        chains: At least one, each with at least one stage. A bias of the layer is on the last stage of the first.
    """

    name: str
    chains: tuple[Chain, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages of all chains, in the order in which they run."""
        return tuple(stage for chain in self.chains for stage in chain)


class CannotComposeError(ValueError):
    """Two stages are not the same function as any single one; the message says why."""


def compose(first: Stage, second: Stage) -> Stage:
    """The one stage that computes ``second(first(x))``, in float64.

    With A the first weight, its mask m and bias a, and B the second, a pointwise convolution with mask n and bias b::

        weight[o, i, ...] = n[o] * sum_c B[o, c] * m[c] * A[c, i, ...]
        bias[o]           = n[o] * sum_c B[o, c] * a[c] + b[o]

    Raises:
        CannotComposeError: The second stage reads more than one location, or mixes several groups of the first.
    """
    a, b = first.spec, second.spec
    if a.out_channels != b.in_channels:
        raise CannotComposeError(
            f"{a.out_channels} channels come out of the first and {b.in_channels} go into the second"
        )
    if a.axes != b.axes:
        raise CannotComposeError("the two have different numbers of spatial axes")
    if not b.is_pointwise:
        raise CannotComposeError("the second is not a 1x1 convolution with stride 1 and without padding")
    if a.groups != 1 and b.groups % a.groups:
        raise CannotComposeError(f"the second, with {b.groups} groups, mixes the {a.groups} groups of the first")

    A = _f64(first.weight) if first.mask is None else _f64(first.weight) * _column(first.mask, first.weight.ndim)
    B = _f64(second.weight).reshape(b.groups, b.out_channels // b.groups, b.in_channels // b.groups)
    product = B @ A.reshape(b.groups, b.in_channels // b.groups, -1)
    rows = product.reshape(b.out_channels, *a.weight_shape[1:])
    bias = None
    if first.bias is not None:
        bias = (B @ _f64(first.bias).reshape(b.groups, -1, 1)).reshape(b.out_channels)
    if second.mask is not None:
        rows = rows * _column(second.mask, rows.ndim)
        bias = None if bias is None else bias * second.mask
    if second.bias is not None:
        bias = _f64(second.bias) if bias is None else bias + second.bias

    groups = a.groups
    if a.groups == 1 and b.groups > 1:
        # Each group of the second reads its own slice of the first's outputs, and all of these read every input: the
        # result is ungrouped.
        groups = 1
    spec = ConvSpec(
        in_channels=a.in_channels,
        out_channels=b.out_channels,
        kernel=a.kernel,
        stride=a.stride,
        padding=a.padding,
        dilation=a.dilation,
        groups=groups,
    )
    return Stage(spec=spec, weight=rows, bias=bias)


def fold_form(form: Form) -> Stage:
    """The one dense stage that computes the whole form, in float64.

    Raises:
        CannotComposeError: A chain does not compose, or the chains' results have different geometries.
    """
    stages = [reduce(compose, chain[1:], chain[0]) for chain in form.chains]
    first = stages[0]
    weight, bias = _absorbed(first)
    for stage in stages[1:]:
        if stage.spec != first.spec:
            raise CannotComposeError("the chains have different geometries")
        more, more_bias = _absorbed(stage)
        weight = weight + more
        if more_bias is not None:
            bias = more_bias if bias is None else bias + more_bias
    return Stage(spec=first.spec, weight=weight, bias=bias)


def _absorbed(stage: Stage) -> tuple[FloatArray, FloatArray | None]:
    weight = _f64(stage.weight)
    if stage.mask is not None:
        weight = weight * _column(stage.mask, weight.ndim)
    return weight, None if stage.bias is None else _f64(stage.bias)


def _f64(values: Array) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _column(values: Array, ndim: int) -> FloatArray:
    return _f64(values).reshape(-1, *(1,) * (ndim - 1))
