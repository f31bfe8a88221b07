"""Low rank: the singular values of a layer's weight, its numerical rank, and factors of that rank or a smaller one.

All in float64, for each group of a layer by itself. A weight as a matrix is (patch, out / groups), the layout of V U.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.factors import Factors, flat_weight, unit_rounding

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSpec, FloatArray

TAIL = 4
"""Roundings of |V| |U| that what is cut off may come to at an entry. A verified file may be off by sixteen: V, U, a batch
norm's scale in U and the composed weight take some of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orthogonal:
    """A weight as a product of orthogonal columns and orthonormal rows, or the other way round, in float64.

    Attributes:
        V: Shape (groups, patch, n), n = min(patch, out / groups).
        U: Shape (groups, n, out / groups); ``V @ U`` is the weight to float64 rounding.
        sigma: The singular values, descending, shape (groups, n).
    """

    V: FloatArray
    U: FloatArray
    sigma: FloatArray

    def factors(self, rank: int, spec: ConvSpec, dtype: np.dtype[np.generic]) -> Factors:
        """The first ``rank`` components, the root of each singular value in both V and U, rounded to ``dtype``."""
        kept = slice(0, max(rank, 1))
        sigma = self.sigma[:, kept]
        root = np.sqrt(np.where(sigma > 0, sigma, 1.0))
        # Whichever of the two is orthonormal takes the root, and the other gives it.
        left, right = (1 / root, root) if _is_tall(spec) else (root, 1 / root)
        V, U = self.V[:, :, kept] * left[:, None, :], self.U[:, kept] * right[..., None]
        if spec.groups == 1:
            V, U = V[0], U[0]
        return Factors(V=as_filters(V, dtype), U=as_filters(U, dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """How many components hold a weight, and what decided it.

    Attributes:
        rank: The number, of the group that needs most.
        full: The largest that the layer's geometry allows.
        next: The first singular value that is cut off, over the largest one; None where none is.
        rounding: The bound that rounding sets to it, over the largest one.
    """

    rank: int
    full: int
    next: float | None
    rounding: float

    def told(self) -> str:
        """In a clause of the plan."""
        if self.next is None:
            return f"rank {self.rank} of {self.full}"
        return (
            f"rank {self.rank} of {self.full}: the next singular value is {self.next:.1g} of the largest, "
            f"and rounding explains {self.rounding:.1g}"
        )


def _is_tall(spec: ConvSpec) -> bool:
    return spec.patch >= spec.group_out


def singular_values(weight: Array, spec: ConvSpec) -> FloatArray:
    """The singular values of each group's matrix, descending: shape (groups, min(patch, out / groups)).

    From the eigenvalues of the smaller Gram matrix, exact to 1e-8 of the largest one, which is enough to compare them
    with the rounding of float32; in float64 by a full decomposition.
    """
    A = _matrices(weight, spec)
    if weight.dtype == np.float64 and _fine(weight):
        return np.asarray(np.linalg.svd(A, compute_uv=False))
    At = np.swapaxes(A, -1, -2)
    gram = At @ A if _is_tall(spec) else A @ At
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[..., ::-1]
