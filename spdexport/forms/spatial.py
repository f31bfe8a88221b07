"""The spatial form: a kernel along one axis alone, then one along all others; k x 1 and 1 x k, for two axes.

As a matrix whose rows are (input channel, tap along the first axis) and whose columns are (output channel, taps along
the others), a group's weight of rank R is a sum of R products of kernels. So the spatial form of a layer is V and U of
the linear layer that has this matrix (``unfolded``), and all that ``lowrank.py`` knows of V and U holds of it.

Along each axis one of the two stages has the layer's own stride, padding and dilation, and the other does nothing: the
form is exact for every geometry, that of transposed convolutions too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.factors import v_filters
from spdexport.forms.base import Form, chain_form
from spdexport.forms.kinds import FormKind
from spdexport.forms.pair import PairWeight, decomposed_pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.conv import Array, FloatArray
    from spdexport.factors import Factors

Size = TypeVar("Size")


NAMES = ("first", "second")


def without_spatial(spec: ConvSpec) -> str | None:
    """Return why a layer of this geometry has no spatial form, in a clause; None where it has one."""
    wide = sum(size > 1 for size in spec.kernel)
    if wide > 1:
        return None
    if not spec.axes:
        return "a linear layer has no kernel to split"
    return "its kernel is wider than one along a single axis" if wide else "its kernel is a single tap"


def spatial_specs(spec: ConvSpec, rank: int) -> tuple[ConvSpec, ConvSpec]:
    """Return the geometries of both stages, with ``rank`` channels between them in each group."""
    axis = _axis(spec)
    rest = [other for other in range(spec.axes) if other != axis]
    between = spec.groups * rank
    first = _along(spec, (axis,), spec.in_channels, between)
    return first, _along(spec, rest, between, spec.out_channels)


def largest_spatial(spec: ConvSpec) -> tuple[int]:
    """Return the rank that any weight of this geometry has at most, unfolded."""
    inner, taps = spec.in_channels // spec.groups, spec.kernel[_axis(spec)]
    return (min(inner * taps, spec.group_out * math.prod(spec.kernel) // taps),)


def spatial_form(spec: ConvSpec, first: Array, second: Array, bias: Array | None) -> Form:
    """Return the form of two stages, the first along the first axis whose kernel is wider than one.

    Args:
        spec: The layer's geometry, which ``without_spatial`` finds nothing against.
        first: Shape (groups * R, in / groups, k, 1, ...).
        second: Shape (out, R, 1, k, ...).
        bias: Shape (out_channels,), or None.
    """
    specs = spatial_specs(spec, first.shape[0] // spec.groups)
    return chain_form(FormKind.SPATIAL, specs, (first, second), NAMES, bias)


def unfolded(weight: Array, spec: ConvSpec) -> tuple[Array, ConvSpec]:
    """Return the linear layer, of as many groups, whose V and U are the stages of a layer's spatial form.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The layer's geometry.

    Returns:
        Its weight, of shape (groups * (out / groups * taps of the others), in / groups * k), and its geometry.
    """
    axis = _axis(spec)
    inner = spec.in_channels // spec.groups
    blocks = weight.reshape(spec.groups, spec.group_out, inner, *spec.kernel)
    # (groups, out, in, ..., k, ...) to (groups, out, ..., in, k).
    last = np.moveaxis(np.moveaxis(blocks, 3 + axis, -1), 2, -2)
    taps = math.prod(spec.kernel) // spec.kernel[axis]
    linear = ConvSpec(
        in_channels=spec.in_channels * spec.kernel[axis], out_channels=spec.out_channels * taps, groups=spec.groups
    )
    return last.reshape(linear.weight_shape), linear


def spatial_stages(spec: ConvSpec, factors: Factors) -> tuple[Array, Array]:
    """Return the weights of both stages from V and U of the ``unfolded`` layer, of their dtype."""
    axis, rank = _axis(spec), factors.components
    _, linear = unfolded(np.broadcast_to(np.zeros(1), spec.weight_shape), spec)
    one, two = spatial_specs(spec, rank)
    first = v_filters(factors, linear).reshape(one.weight_shape)
    rest = [size for other, size in enumerate(spec.kernel) if other != axis]
    U = factors.U.reshape(spec.groups, rank, spec.group_out, *rest)
    second = np.ascontiguousarray(np.swapaxes(U, 1, 2)).reshape(two.weight_shape)
    return first, second


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpatialWeight:
    """A weight on its way to the spatial form; as ``families.Decomposed``.

    Attributes:
        spec: The layer's geometry.
        unfolded: The linear layer whose V and U are the stages.
    """

    spec: ConvSpec
    unfolded: PairWeight

    @property
    def exact(self) -> tuple[int]:
        """The numerical rank of the unfolded layer."""
        return self.unfolded.exact

    @property
    def full(self) -> tuple[int]:
        """Its largest rank."""
        return self.unfolded.full

    def at(self, rank: int) -> tuple[int]:
        """Return that rank, or the exact one."""
        return self.unfolded.at(rank)

    def lost(self, ranks: tuple[int, ...]) -> FloatArray:
        """Return its error, which is that of the layer's weight: both hold the same numbers."""
        return self.unfolded.lost(ranks)

    def within(self, allowed: FloatArray) -> Iterable[tuple[int]]:
        """Return its one smallest rank."""
        return self.unfolded.within(allowed)

    def weights(self, ranks: tuple[int, ...]) -> Sequence[FloatArray]:
        """Return its V and U as the kernels that they are."""
        return spatial_stages(self.spec, self.unfolded.factors(ranks))


def decomposed_spatial(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> SpatialWeight:
    """Return the singular value decomposition of the ``unfolded`` layer."""
    return SpatialWeight(spec=spec, unfolded=decomposed_pair(*unfolded(weight, spec), dtype))


def _axis(spec: ConvSpec) -> int:
    """The first axis along which the kernel is wider than one."""
    if (reason := without_spatial(spec)) is not None:
        raise ValueError(f"{spec.describe()} has no spatial form: {reason}")
    return next(axis for axis, size in enumerate(spec.kernel) if size > 1)


def _along(spec: ConvSpec, axes: Sequence[int], into: int, out: int) -> ConvSpec:
    """The layer's geometry on these axes, and nothing on the others."""
    plain = ConvSpec.pointwise(into, out, axes=spec.axes, groups=spec.groups)

    def on(own: tuple[Size, ...], others: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(a if axis in axes else b for axis, (a, b) in enumerate(zip(own, others, strict=True)))

    return replace(
        plain,
        kernel=on(spec.kernel, plain.kernel),
        stride=on(spec.stride, plain.stride),
        padding=on(spec.padding, plain.padding),
        # Of a kernel of one tap it says nothing, and stands as it was.
        dilation=tuple(
            d if axis in axes or k == 1 else 1
            for axis, (d, k) in enumerate(zip(spec.dilation, spec.kernel, strict=True))
        ),
        transposed=spec.transposed,
        output_padding=on(spec.output_padding, (0,) * len(spec.output_padding)),
    )
