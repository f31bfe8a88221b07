"""Low rank: the singular values of a layer's weight, its numerical rank, and factors of that rank or a smaller one.

All in float64, for each group of a layer by itself. As a matrix, a group's weight is (patch, out / groups), the layout
of V U. In formulas u is the unit rounding of the layer's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.factors import Factors, unit_rounding

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import Array, ConvSpec, FloatArray

TAIL = 4
"""Roundings of |V| |U| that what is cut off may come to at an entry of the weight. A verified file may be off by
sixteen, of which the roundings of V, of U, of a batch norm's scale in U and of the composed weight take some."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orthogonal:
    """A weight as V U with the singular values in descending order; one of V and U has orthonormal vectors.

    Attributes:
        V: Shape (groups, patch, n), n = min(patch, out / groups).
        U: Shape (groups, n, out / groups); ``V @ U`` is the weight to float64 rounding. Orthonormal where the matrix is
            tall, and V is orthonormal where it is wide.
        sigma: The singular values, shape (groups, n).
    """

    V: FloatArray
    U: FloatArray
    sigma: FloatArray

    def factors(self, rank: int, dtype: np.dtype[np.generic]) -> Factors:
        """Return the first ``rank`` components, with the root of the singular value in V and U, in ``dtype``."""
        V, U, sigma = self.V[..., :rank], self.U[:, :rank], self.sigma[:, :rank]
        root = np.sqrt(np.where(sigma > 0, sigma, 1.0))
        left, right = (1 / root, root) if _tall(self.V, self.U) else (root, 1 / root)
        V, U = V * left[:, None, :], U * right[..., None]
        if len(V) == 1:
            V, U = V[0], U[0]
        return Factors(V=_as_filters(V, dtype), U=_as_filters(U, dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """How many components hold a weight, and what decided it.

    Attributes:
        rank: The number, of the group that needs most.
        full: The largest that the geometry allows.
        next: The largest singular value that is cut off, over the largest of its group; None where none is cut off.
        rounding: Its bound, the 2-norm of what rounding may add to the group's weight, over the same one.
    """

    rank: int
    full: int
    next: float | None
    rounding: float

    def told(self) -> str:
        """Return it in a clause."""
        if self.next is None:
            return f"rank {self.rank} of {self.full}"
        return (
            f"rank {self.rank} of {self.full}; next singular value {self.next:.0e} of the largest, "
            f"rounding {self.rounding:.0e}"
        )


def matrices(weight: Array, spec: ConvSpec) -> FloatArray:
    """Return the weight of each group as a matrix, float64: shape (groups, patch, out / groups)."""
    rows = np.asarray(weight, dtype=np.float64).reshape(spec.groups, spec.group_out, spec.patch)
    return np.swapaxes(rows, -1, -2)


def singular_values(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> FloatArray:
    """Return the singular values of each group's matrix, descending: shape (groups, min(patch, out / groups)), float64.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The geometry.
        dtype: Against whose rounding they are to be held: for all but float64 they come from the eigenvalues of the
            smaller Gram matrix, exact to 1e-8 of the largest one and ten times as fast.
    """
    A = matrices(weight, spec)
    if not _coarse(dtype):
        return np.asarray(np.linalg.svd(A, compute_uv=False))
    At = np.swapaxes(A, -1, -2)
    gram = At @ A if _tall(A, A) else A @ At
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[..., ::-1])


def orthogonal(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic]) -> Orthogonal:
    """Return the singular value decomposition of each group's matrix.

    For all dtypes but float64 computed from the eigenvectors Q of the smaller Gram matrix: with W^T = A (patch x out),
    Q of A^T A gives A = (A Q) Q^T to float64 rounding whatever the conditioning, because Q is square and orthonormal;
    the singular values are the column norms of A Q. That is five times as fast as a bidiagonal SVD, and only singular
    values under 1e-8 of the largest, below the rounding of float32 weights, are less than fully separated.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The geometry.
        dtype: As in ``singular_values``.
    """
    A = matrices(weight, spec)
    if not _coarse(dtype):
        left, sigma, right = np.linalg.svd(A, full_matrices=False)
        if _tall(A, A):
            return Orthogonal(V=left * sigma[:, None, :], U=right, sigma=sigma)
        return Orthogonal(V=left, U=right * sigma[..., None], sigma=sigma)
    At = np.swapaxes(A, -1, -2)
    if _tall(A, A):
        Q = np.linalg.eigh(At @ A)[1][..., ::-1]
        V, U = A @ Q, np.swapaxes(Q, -1, -2)
        sigma = np.linalg.norm(V, axis=-2)
    else:
        Q = np.linalg.eigh(A @ At)[1][..., ::-1]
        V, U = Q, np.swapaxes(Q, -1, -2) @ A
        sigma = np.linalg.norm(U, axis=-1)
    order = np.argsort(-sigma, axis=-1, kind="stable")
    return Orthogonal(
        V=np.take_along_axis(V, order[..., None, :], axis=-1),
        U=np.take_along_axis(U, order[..., None], axis=-2),
        sigma=np.take_along_axis(sigma, order, axis=-1),
    )


def svd_factors(weight: Array, spec: ConvSpec) -> Factors:
    """Return the exact SVD of the flattened weight, of each group where there are several.

    Returns min(patch, out / groups) components in descending order, sqrt(singular value) in both V and U, rounded to
    the weight's dtype; components whose singular value is zero to float64 rounding are left out.
    """
    found = orthogonal(weight, spec, weight.dtype)
    tiny = np.finfo(np.float64).eps * max(spec.patch, spec.group_out) * found.sigma.max(axis=-1, keepdims=True)
    sigma = np.where(found.sigma > tiny, found.sigma, 0.0)
    keep = max(int((sigma > 0).sum(axis=-1).max()), 1)
    return Orthogonal(V=found.V, U=found.U, sigma=sigma).factors(keep, weight.dtype)


def numerical_rank(
    weight: Array,
    spec: ConvSpec,
    dtype: np.dtype[np.generic],
    *,
    factors: Factors | None = None,
    sigma: FloatArray | None = None,
) -> Rank:
    """Return the rank of a weight, as far as the rounding of what it comes from leaves one to be told.

    Rounding moves each entry by at most E = u |W|, and with W a product of rounded V and U by 2 u |V| |m| |U| more. A
    matrix with such entries has a 2-norm of at most ||E||_F: by Weyl's inequality a singular value up to that may be
    rounding alone, and carries no information.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The geometry.
        dtype: The dtype that the layer is stored in.
        factors: Whose product the weight is; None for a weight that stands for itself.
        sigma: The weight's singular values, where they are known already.
    """
    sigma = singular_values(weight, spec, dtype) if sigma is None else sigma
    # ||W||_F is the 2-norm of the singular values.
    noise = np.linalg.norm(sigma, axis=-1)
    if factors is not None:
        V, U = (np.abs(np.asarray(x, dtype=np.float64)) for x in (factors.V, factors.U))
        size = (V * np.abs(factors.effective_mask)[..., None, :]) @ U
        noise = noise + 2 * np.linalg.norm(size.reshape(spec.groups, -1), axis=-1)
    # The singular values themselves are exact to a few roundings of the largest.
    computed = np.finfo(np.float64).eps * max(spec.patch, spec.group_out) * sigma[:, 0]
    noise = np.maximum(unit_rounding(dtype) * noise, computed)
    return _rank(int((sigma > noise[:, None]).sum(axis=-1).max()), sigma, noise)


def _rank(rank: int, sigma: FloatArray, noise: FloatArray) -> Rank:
    return Rank(
        rank=rank,
        full=sigma.shape[-1],
        next=_next(rank, sigma),
        rounding=float((noise / _largest(sigma)).max()),
    )


def _next(rank: int, sigma: FloatArray) -> float | None:
    """The largest singular value behind the first ``rank``, over the largest of its group."""
    return float((sigma[:, rank] / _largest(sigma)).max()) if rank < sigma.shape[-1] else None


def _largest(sigma: FloatArray) -> FloatArray:
    return np.where(sigma[:, 0] > 0, sigma[:, 0], 1.0)


def recompressed(
    weight: Array,
    spec: ConvSpec,
    dtype: np.dtype[np.generic],
    rank: Rank,
    *,
    pays: Callable[[int], bool] = lambda _: True,
) -> tuple[Rank, Factors] | None:
    """Factors of a weight's numerical rank, which are the weight to rounding at each of its entries.

    What is cut off is small as a matrix; a filter that is far smaller than all others would be small as well. Where it
    comes to more than ``TAIL`` roundings of |V| |U| at any entry, components are added until it does not.

    Args:
        weight: Shape ``spec.weight_shape``, float64.
        spec: The geometry.
        dtype: The dtype that the layer is stored in.
        rank: Its ``numerical_rank``.
        pays: Whether factors of a rank are worth having.

    Returns:
        The rank that it takes and the factors; None where that one does not pay.
    """
    found = orthogonal(weight, spec, dtype)
    V, U, sigma = found.V, found.U, found.sigma
    unit, size = unit_rounding(dtype), max(rank.rank, 1)
    computed = 16 * np.finfo(np.float64).eps * np.abs(np.asarray(weight)).max(initial=0.0)
    tail = V[..., size:] @ U[:, size:]
    magnitude = np.abs(V[..., :size]) @ np.abs(U[:, :size])
    while (np.abs(tail) > TAIL * unit * magnitude + computed).any():
        if not pays(size + 1):
            return None
        step = V[..., size, None] * U[:, None, size]
        tail, magnitude, size = tail - step, magnitude + np.abs(step), size + 1
    if size > max(rank.rank, 1):
        rank = replace(rank, rank=size, next=_next(size, sigma))
    return (rank, found.factors(size, dtype)) if pays(size) else None


def truncated(weight: Array, spec: ConvSpec, dtype: np.dtype[np.generic], rank: int) -> Factors:
    """Return the best factors of a rank, in the Frobenius norm, rounded to ``dtype``; of that rank in each group."""
    return orthogonal(weight, spec, dtype).factors(max(rank, 1), dtype)


def rank_for_energy(sigma: FloatArray, energy: float) -> int:
    """Return the smallest rank at which the squared singular values kept are ``energy`` of all, in each group.

    Args:
        sigma: Descending, shape (groups, n).
        energy: From 0 to 1.
    """
    total = np.cumsum(sigma**2, axis=-1)
    # The sum of all may be off by its own rounding, which must not ask for one component more than there is.
    enough = total >= energy * total[:, -1:] * (1 - 4 * np.finfo(np.float64).eps)
    return int(np.argmax(enough, axis=-1).max()) + 1


def rank_for_error(sigma: FloatArray, error: float) -> int:
    """Return the smallest rank that is off by at most ``error`` in the relative Frobenius norm, in each group.

    Args:
        sigma: Descending, shape (groups, n).
        error: Of each group's norm.
    """
    return rank_for_errors(sigma, np.full(len(sigma), error))


def rank_for_errors(sigma: FloatArray, errors: FloatArray) -> int:
    """Return the smallest rank whose truncation is off by at most ``errors[g]`` of the norm of each group g.

    Args:
        sigma: Descending, shape (groups, n).
        errors: Of each group's norm, shape (groups,).
    """
    errors = errors * (1 + 4 * np.finfo(np.float64).eps)
    ranks = range(1, sigma.shape[-1] + 1)
    return next(rank for rank in ranks if (truncation_errors(sigma, rank) <= errors).all())


def truncation_errors(sigma: FloatArray, rank: int) -> FloatArray:
    """Return the relative Frobenius error of keeping ``rank`` components, of each group: shape (groups,)."""
    total = np.linalg.norm(sigma, axis=-1)
    return np.asarray(np.linalg.norm(sigma[:, rank:], axis=-1) / np.where(total > 0, total, 1.0))


def truncation_error(sigma: FloatArray, rank: int) -> float:
    """Return the relative Frobenius error of the whole weight where each group keeps ``rank`` components."""
    total = float(np.linalg.norm(sigma))
    return float(np.linalg.norm(sigma[:, rank:])) / total if total else 0.0


def _coarse(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype's rounding is coarse enough for singular values from a squared matrix."""
    return unit_rounding(dtype) > float(np.sqrt(np.finfo(np.float64).eps))


def _tall(V: FloatArray, U: FloatArray) -> bool:
    """Whether the matrix V U has at least as many rows as columns."""
    return bool(V.shape[-2] >= U.shape[-1])


def _as_filters(matrix: FloatArray, dtype: np.dtype[np.generic]) -> Array:
    """The matrix in a layout of which ``v_filters`` and ``u_filters`` are views: a program needs no second copy."""
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(matrix, -1, -2), dtype=dtype), -1, -2)
