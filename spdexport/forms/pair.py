"""V and U made anew from a weight, as one kind of chain among the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spdexport.conv import ConvSpec
from spdexport.factors import Factors, u_filters, v_filters
from spdexport.forms.base import Form, chain_form
from spdexport.forms.kinds import FormKind
from spdexport.lowrank import Orthogonal, numerical_rank, orthogonal, rank_for_errors, truncation_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from spdexport.conv import Array, FloatArray


NAMES = ("V", "U")


def without_pair(spec: ConvSpec) -> str | None:
    """Return None: every layer has V and U."""
    del spec
    return None


def pair_specs(spec: ConvSpec, components: int) -> tuple[ConvSpec, ConvSpec]:
    """Return the geometries of V, which has the layer's own, and of U, which mixes the components of each group."""
    channels = spec.groups * components
    v = replace(spec, out_channels=channels)
    return v, ConvSpec.pointwise(channels, spec.out_channels, axes=spec.axes, groups=spec.groups)


def largest_pair(spec: ConvSpec) -> tuple[int]:
    """Return the rank that any weight of this geometry has at most."""
    return (min(spec.patch, spec.group_out),)


def pair_form(spec: ConvSpec, factors: Factors, bias: Array | None) -> Form:
    """Return the form of V and U that were made anew; without a mask."""
    weights = v_filters(factors, spec), u_filters(factors, spec)
    return chain_form(FormKind.RECOMPRESSED, pair_specs(spec, factors.components), weights, NAMES, bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairWeight:
    """A weight on its way to V and U; as ``families.Decomposed``.

    Attributes:
        spec: The layer's geometry.
        found: Its singular values and vectors.
        exact: Its numerical rank.
    """

    spec: ConvSpec
    found: Orthogonal
    exact: tuple[int]

    @property
    def full(self) -> tuple[int]:
        """The rank that holds any weight."""
        return (self.found.sigma.shape[-1],)

    def at(self, rank: int) -> tuple[int]:
        """Return that rank, or the exact one."""
        return (min(rank, *self.exact),)

    def lost(self, ranks: tuple[int, ...]) -> FloatArray:
        """Return what the singular values cut off come to."""
        return truncation_errors(self.found.sigma, ranks[0])

    def within(self, allowed: FloatArray) -> Iterable[tuple[int]]:
        """Yield the one smallest rank."""
        yield (min(rank_for_errors(self.found.sigma, allowed), *self.exact),)

    def factors(self, ranks: tuple[int, ...]) -> Factors:
        """V and U of a rank, in float64."""
        return self.found.factors(ranks[0], self.found.V.dtype)

    def weights(self, ranks: tuple[int, ...]) -> Sequence[FloatArray]:
        """V and U as filters."""
        made = self.factors(ranks)
        return v_filters(made, self.spec), u_filters(made, self.spec)


def decomposed_pair(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> PairWeight:
    """Return the singular value decomposition of each group's matrix."""
    found = orthogonal(weight, spec, dtype)
    rank = numerical_rank(weight, spec, dtype, sigma=found.sigma).rank
    return PairWeight(spec=spec, found=found, exact=(max(rank, 1),))
