"""The CP form: a 1x1 convolution, the kernel on each channel by itself, a 1x1 convolution.

Within each group, with R channels between the stages::

    W[o, i, tap] = sum over r < R of  last[o, r] core[r, tap] first[r, i]

The core is depthwise and has the layer's stride, padding and dilation, and may be transposed; both others only mix
channels, so that the form is exact for every geometry (``canonical.py`` has the decomposition).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.canonical import canonical, canonical_rank
from spdexport.conv import ConvSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.canonical import Canonical
    from spdexport.conv import Array, FloatArray

NAMES = ("first", "core", "last")

TRIALS = 4
"""Ranks below the one of orthogonal terms that are fitted, to find a smaller one that is near enough."""


def without_cp(spec: ConvSpec) -> str | None:
    """Return why a layer of this geometry has no CP form of its own, in a clause; None where it has one."""
    if not spec.axes:
        return "a linear layer has no kernel between its channels"
    if all(size == 1 for size in spec.kernel):
        return "its kernel is a single tap"
    if spec.in_channels == spec.groups:
        return "each of its groups reads a single channel"
    return None


def cp_specs(spec: ConvSpec, rank: int) -> tuple[ConvSpec, ConvSpec, ConvSpec]:
    """Return the geometries of the stages, with ``rank`` channels between them in each group."""
    groups, between = spec.groups, spec.groups * rank
    first = ConvSpec.pointwise(spec.in_channels, between, axes=spec.axes, groups=groups)
    core = replace(spec, in_channels=between, out_channels=between, groups=between)
    return first, core, ConvSpec.pointwise(between, spec.out_channels, axes=spec.axes, groups=groups)


def largest_cp(spec: ConvSpec) -> tuple[int]:
    """Return the rank that holds any weight of this geometry."""
    return (min(spec.in_channels // spec.groups, spec.group_out) * spec.patch // (spec.in_channels // spec.groups),)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CPWeight:
    """A weight on its way to the CP form; as ``families.Decomposed``.

    Attributes:
        spec: The layer's geometry.
        found: The weight, and sums of products near to it.
        exact: The number of products that hold it, as far as was found.
    """

    spec: ConvSpec
    found: Canonical
    exact: tuple[int]

    @property
    def full(self) -> tuple[int]:
        """As many products as hold any weight."""
        return (self.found.most,)

    def at(self, rank: int) -> tuple[int]:
        """Return that rank, or the exact one."""
        return (min(rank, *self.exact),)

    def lost(self, ranks: tuple[int, ...]) -> FloatArray:
        """Return the error of the sum that was found."""
        return self.found.lost(ranks[0])

    def within(self, allowed: FloatArray) -> Iterable[tuple[int]]:
        """Return the smallest rank that was found, a few being tried where one can be cheaper than the layer itself.

        The error of the orthogonal terms is an upper bound of it, and what any sum of so many products loses a lower.
        """
        sure = (self.found.tails <= allowed[:, None]).all(axis=0)
        high = min(int(np.argmax(sure)) + 1, self.exact[0]) if sure.any() else self.exact[0]
        low = int((self.found.floors > allowed[:, None]).any(axis=0).sum())
        _, out, into, taps = self.found.weight.shape
        cheaper = out * into * taps // (out + into + taps)
        if cheaper < high:
            if cheaper <= low or (self.found.lost(cheaper) > allowed).any():
                return [(high,)]
            high = cheaper
        for _ in range(TRIALS):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            low, high = (low, middle) if (self.found.lost(middle) <= allowed).all() else (middle, high)
        return [(high,)]

    def weights(self, ranks: tuple[int, ...]) -> Sequence[FloatArray]:
        """First, core and last."""
        terms = self.found.terms(ranks[0])
        factors = np.swapaxes(terms.inner, 1, 2), np.swapaxes(terms.taps, 1, 2), terms.outer
        shapes = (own.weight_shape for own in cp_specs(self.spec, terms.outer.shape[-1]))
        return [np.ascontiguousarray(weight.reshape(shape)) for weight, shape in zip(factors, shapes, strict=True)]


def decomposed_cp(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> CPWeight:
    """Return the weight, and how many products hold it."""
    found = canonical(weight, spec)
    return CPWeight(spec=spec, found=found, exact=(canonical_rank(found, dtype),))
