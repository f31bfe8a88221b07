"""The Tucker-2 form: a 1x1 convolution, the layer's own kernel between fewer channels, a 1x1 convolution.

Within each group, with r channels behind the first and t behind the core::

    W[o, i, tap] = sum over a < r, b < t of  last[o, b] core[b, a, tap] first[a, i]

The core has the layer's stride, padding and dilation, and may be transposed; both others only mix channels, so that the
form is exact for every geometry. Without the last stage the core has the layer's own outputs; the output side alone is
V and U.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.forms.base import Form, chain_form
from spdexport.forms.kinds import FormKind
from spdexport.multilinear import numerical_ranks, tucker, tucker_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spdexport.conv import Array, FloatArray
    from spdexport.multilinear import Tucker


NAMES = ("first", "core", "last")


def without_tucker(spec: ConvSpec) -> str | None:
    """Return why a layer of this geometry has no Tucker-2 form of its own, in a clause; None where it has one."""
    if not spec.axes:
        return "a linear layer has no kernel between its channels"
    if all(size == 1 for size in spec.kernel):
        return "its kernel is a single tap"
    if spec.in_channels == spec.groups:
        return "each of its groups reads a single channel"
    return None


def tucker_specs(spec: ConvSpec, inner: int, outer: int | None = None) -> tuple[ConvSpec, ...]:
    """Return the geometries of the stages.

    Args:
        spec: The layer's geometry.
        inner: Channels of each group in front of the core.
        outer: Those behind it; None for the layer's own, without a last stage.
    """
    groups = spec.groups
    into, out = groups * inner, spec.out_channels if outer is None else groups * outer
    first = ConvSpec.pointwise(spec.in_channels, into, axes=spec.axes, groups=groups)
    core = replace(spec, in_channels=into, out_channels=out)
    if outer is None:
        return first, core
    return first, core, ConvSpec.pointwise(out, spec.out_channels, axes=spec.axes, groups=groups)


def largest_tucker(spec: ConvSpec) -> tuple[int, int]:
    """Return the layer's own channels on either side."""
    return spec.in_channels // spec.groups, spec.group_out


def tucker_form(spec: ConvSpec, first: Array, core: Array, last: Array | None, bias: Array | None) -> Form:
    """Return the form of three stages, or two.

    Args:
        spec: The layer's geometry, which ``without_tucker`` finds nothing against.
        first: Shape (groups * r, in / groups, 1, ...).
        core: Shape (groups * t, r, *kernel); (out, r, *kernel) without a last stage.
        last: Shape (out, t, 1, ...), or None.
        bias: Shape (out_channels,), or None.
    """
    groups, weights = spec.groups, (first, core) if last is None else (first, core, last)
    specs = tucker_specs(spec, first.shape[0] // groups, None if last is None else core.shape[0] // groups)
    return chain_form(FormKind.TUCKER, specs, weights, NAMES, bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuckerWeight:
    """A weight on its way to the Tucker-2 form; as ``families.Decomposed``.

    Attributes:
        spec: The layer's geometry.
        found: The weight in the bases of its channels.
        exact: The numerical ranks of its inputs and outputs; of the inputs alone, where its outputs have none to spare.
    """

    spec: ConvSpec
    found: Tucker
    exact: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        """As many channels as the layer has inputs: a last stage then has nothing to do."""
        return (self.found.inner.shape[-1],)

    def at(self, rank: int) -> tuple[int, ...]:
        """Return that rank on both sides, or the exact ones."""
        inner, *outer = self.exact
        size = min(rank, *(outer or (self.spec.group_out,)))
        return (min(rank, inner), size) if size < self.spec.group_out else (min(rank, inner),)

    def lost(self, ranks: tuple[int, ...]) -> FloatArray:
        """Return what the bases that are cut off come to, before they are improved."""
        inner, *outer = ranks
        return self.found.lost(inner, *(outer or (self.spec.group_out,)))

    def within(self, allowed: FloatArray) -> Iterable[tuple[int, ...]]:
        """Return for each number of inner channels the least of outer ones; all of them mean no last stage."""
        outer = self.spec.group_out
        most = self.exact[1] if len(self.exact) > 1 else outer
        for inner in range(1, self.exact[0] + 1):
            enough = [self._suffices(allowed, inner, size) for size in (most, outer)]
            if enough[0]:
                yield inner, _least(most, partial(self._suffices, allowed, inner))
            if enough[1] or inner == self.exact[0]:
                yield (inner,)

    def _suffices(self, allowed: FloatArray, inner: int, outer: int) -> bool:
        exact = inner >= self.exact[0] and outer >= (*self.exact, self.spec.group_out)[1]
        return exact or bool((self.found.lost(inner, outer) <= allowed).all())

    def weights(self, ranks: tuple[int, ...]) -> Sequence[FloatArray]:
        """First, core and, of two ranks, last."""
        inner, *outer = ranks
        return tucker_stages(self.spec, self.found, inner, outer[0] if outer else None)


def decomposed_tucker(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> TuckerWeight:
    """Return the weight in the bases of its channels."""
    found = tucker(weight, spec)
    inner, outer = numerical_ranks(found, dtype)
    return TuckerWeight(spec=spec, found=found, exact=(inner, outer) if outer < spec.group_out else (inner,))


def _least(most: int, suffices: Callable[[int], bool]) -> int:
    """The smallest number from 1 to ``most`` that suffices, where ``most`` does and more never harms."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def tucker_stages(spec: ConvSpec, found: Tucker, inner: int, outer: int | None) -> Sequence[FloatArray]:
    """Return the weights of first, core and last in float64, of these ranks; None for ``outer`` leaves the last out."""
    first, core, last = tucker_factors(found, inner, spec.group_out if outer is None else outer)
    if outer is None:
        core = np.einsum("gob,gbat->goat", last, core)
    shapes = (own.weight_shape for own in tucker_specs(spec, inner, outer))
    return [
        np.ascontiguousarray(weight.reshape(shape)) for weight, shape in zip((first, core, last), shapes, strict=False)
    ]
