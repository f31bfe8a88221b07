"""The CP decomposition: a weight as a sum of products of an output, an input and a tap vector each.

In float64, for each group of a layer by itself, with output channels o, input channels i and the taps of the kernel t
as the three modes (Hitchcock 1927; of a convolution, Lebedev et al. 2015, arXiv 1412.6553)::

    W[o, i, t] = sum over r of  outer[o, r] inner[i, r] taps[t, r]

Any weight is such a sum of orthogonal terms: with Q the left singular vectors of the taps' unfolding, each slice
``sum over t of W[:, :, t] Q[t, k]`` has a singular value decomposition, and its terms times ``Q[:, k]`` add up to W.
What dropping the smallest of them loses is known at once. Alternating least squares (ALS) goes on from there to the
fewer terms, not orthogonal, that are as near; and from the terms that two mixtures of slices have in common, which are
those of a weight that is a sum of no more products than its two longer modes have entries (Leurgans et al. 1993, SIAM
J. Matrix Anal. Appl. 14, 1064).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spdexport.factors import unit_rounding

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSpec, FloatArray

SWEEPS = 20
"""Of ALS, at most; a sweep that gains less than ``_GAIN`` of the error is the last."""

WORK = 4e9
"""Multiply-accumulates that a fit of one rank may take: large weights get fewer sweeps."""

CANCELLING = 10.0
"""How many times the weight's own size the terms of a sum may have together. Past it they cancel each other, and what
is left of their rounding would be more than what the fit gains."""

_GAIN = 5e-3
_CLOSE = 1e-8
_RIDGE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """A sum of products, for each group.

    Attributes:
        outer: Shape (groups, out / groups, R).
        inner: Shape (groups, in / groups, R), columns of norm 1.
        taps: Shape (groups, taps, R), columns of norm 1.
    """

    outer: FloatArray
    inner: FloatArray
    taps: FloatArray

    def folded(self) -> FloatArray:
        """Return the weight: (groups, out / groups, in / groups, taps)."""
        inputs = self.inner[:, :, None] * self.taps[:, None]
        groups, into, taps, rank = inputs.shape
        flat = self.outer @ np.swapaxes(inputs.reshape(groups, into * taps, rank), 1, 2)
        return np.asarray(flat.reshape(groups, -1, into, taps))

    def replaced(self, other: Terms, where: Array) -> Terms:
        """Return this sum with the other's terms in the groups that ``where`` tells, shape (groups,)."""
        pairs = ((self.outer, other.outer), (self.inner, other.inner), (self.taps, other.taps))
        outer, inner, taps = (np.where(where[:, None, None], theirs, own) for own, theirs in pairs)
        return Terms(outer=outer, inner=inner, taps=taps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """A weight, and the sums of products that are near to it.

    Attributes:
        weight: Of each group: (groups, out / groups, in / groups, taps).
        work: Multiply-accumulates that a fit of one rank may take.
        fits: What was fitted already, by the number of terms.
    """

    weight: FloatArray
    work: float = WORK
    fits: dict[int, tuple[Terms, FloatArray]] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The number of terms that hold any weight of this shape."""
        _, out, into, taps = self.weight.shape
        return int(min(out, into) * taps)

    @cached_property
    def norms(self) -> FloatArray:
        """The Frobenius norm of each group: (groups,)."""
        return np.asarray(np.sqrt((self.weight**2).sum(axis=(1, 2, 3))))

    @cached_property
    def orthogonal(self) -> tuple[Terms, FloatArray]:
        """All orthogonal terms, the largest first, and the size of each: (groups, most)."""
        groups, _, _, taps = self.weight.shape
        Q = basis(np.moveaxis(self.weight, 3, 1))
        U, sigma, Vt = np.linalg.svd(np.einsum("goit,gtk->gkoi", self.weight, Q), full_matrices=False)
        each = sigma.shape[-1]
        order = np.argsort(-sigma.reshape(groups, -1), axis=1, kind="stable")
        sizes = np.take_along_axis(sigma.reshape(groups, -1), order, axis=1)

        def sorted_columns(columns: FloatArray) -> FloatArray:
            flat = np.moveaxis(columns, 1, 2).reshape(groups, columns.shape[2], -1)
            return np.take_along_axis(flat, order[:, None, :], axis=2)

        repeated = np.repeat(Q[:, :, :, None], each, axis=3).reshape(groups, taps, -1)
        terms = Terms(
            outer=sorted_columns(U) * sizes[:, None],
            inner=sorted_columns(np.swapaxes(Vt, 2, 3)),
            taps=np.take_along_axis(repeated, order[:, None, :], axis=2),
        )
        return terms, sizes

    @cached_property
    def tails(self) -> FloatArray:
        """What keeping the first R orthogonal terms loses, relative: ``tails[g, R - 1]``."""
        energies = self.orthogonal[1] ** 2
        behind = energies[:, ::-1].cumsum(axis=1)[:, ::-1] - energies
        total = np.where(self.norms > 0, self.norms, 1.0)
        return np.asarray(np.sqrt(np.maximum(behind, 0.0)) / total[:, None])

    @cached_property
    def floors(self) -> FloatArray:
        """What any sum of R products loses at least, relative: ``floors[g, R - 1]``.

        It is of rank R in each of its three unfoldings.
        """
        total = np.where(self.norms > 0, self.norms, 1.0)
        lowest = np.zeros((len(self.weight), self.most))
        for axis in (1, 2, 3):
            rows = np.moveaxis(self.weight, axis, 1).reshape(len(self.weight), self.weight.shape[axis], -1)
            energies = np.linalg.svd(rows, compute_uv=False)[:, ::-1] ** 2
            behind = np.sqrt(energies.cumsum(axis=1)[:, ::-1][:, 1:]) / total[:, None]
            lowest[:, : behind.shape[1]] = np.maximum(lowest[:, : behind.shape[1]], behind[:, : self.most])
        return lowest

    def terms(self, rank: int) -> Terms:
        """Return the sum of ``rank`` products that was found, at most ``most``."""
        return self._fit(rank)[0]

    def lost(self, rank: int) -> FloatArray:
        """Return the relative Frobenius error of that sum, of each group: (groups,)."""
        return self._fit(rank)[1]

    def _fit(self, rank: int) -> tuple[Terms, FloatArray]:
        rank = min(rank, self.most)
        if rank not in self.fits:
            self.fits[rank] = self._fitted(rank)
        return self.fits[rank]

    def _fitted(self, rank: int) -> tuple[Terms, FloatArray]:
        """The orthogonal terms, or what ALS makes of them where that is nearer and its terms do not cancel."""
        all_of, _ = self.orthogonal
        first = Terms(outer=all_of.outer[..., :rank], inner=all_of.inner[..., :rank], taps=all_of.taps[..., :rank])
        before = self.tails[:, rank - 1]
        if not before.any():
            return first, before
        sweeps = int(min(SWEEPS, self.work / (2 * self.weight.size * rank)))
        starts = [first]
        if rank <= sorted(self.weight.shape[1:])[1]:
            starts.append(common_terms(self.weight, rank))
        best, error = first, before
        for start in starts:
            found = fitted(self.weight, start, sweeps=sweeps)
            off = np.sqrt(((found.folded() - self.weight) ** 2).sum(axis=(1, 2, 3)))
            after = off / np.where(self.norms > 0, self.norms, 1.0)
            sizes = np.sqrt((found.outer**2).sum(axis=(1, 2)))
            better = (after < error) & (sizes <= CANCELLING * self.norms)
            best, error = best.replaced(found, better), np.where(better, after, error)
        return best, error


def canonical(weight: Array, spec: ConvSpec) -> Canonical:
    """Return each group's weight, ready to be written as a sum of products.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The geometry.
    """
    W = np.asarray(weight, dtype=np.float64)
    return Canonical(weight=W.reshape(spec.groups, spec.group_out, spec.in_channels // spec.groups, -1))


def canonical_rank(found: Canonical, dtype: np.dtype[np.generic]) -> int:
    """Return a number of terms that hold the weight as far as rounding to ``dtype`` leaves it to be told.

    It is the least that is possible, where ALS finds such a sum, and the number of orthogonal terms else.
    """
    noise = max(unit_rounding(dtype), np.finfo(np.float64).eps * found.most)
    enough = int((found.tails > noise).any(axis=0).sum()) + 1
    least = int((found.floors > noise).any(axis=0).sum()) + 1
    if least < enough and (found.lost(least) <= noise).all():
        return least
    return min(enough, found.most)


def common_terms(weight: FloatArray, rank: int) -> Terms:
    """Return the terms that two mixtures of the slices along the shortest mode have in common, cut to ``rank``.

    Args:
        weight: Shape (groups, out / groups, in / groups, taps).
        rank: At most the length of the second longest mode.
    """
    order = sorted((1, 2, 3), key=lambda axis: -weight.shape[axis])
    W = weight.transpose(0, *order)
    A, B = basis(W)[..., :rank], basis(np.swapaxes(W, 1, 2))[..., :rank]
    core = np.einsum("gabc,gar,gbs->grsc", W, A, B, optimize=True)
    mixtures = np.random.default_rng(0).standard_normal((2, W.shape[3]))
    one, two = (core @ mixture for mixture in mixtures)
    factors: list[list[FloatArray]] = [[], [], []]
    for group in range(len(W)):
        values, vectors = np.linalg.eig(one[group] @ np.linalg.pinv(two[group]))
        # A pair of complex ones spans what its real and its imaginary part do.
        longest = A[group] @ np.where(values.imag < 0, vectors.imag, vectors.real)
        rest = np.linalg.pinv(longest) @ W[group].reshape(len(W[group]), -1)
        U, sigma, Vt = np.linalg.svd(rest.reshape(rank, *W.shape[2:]), full_matrices=False)
        for known, factor in zip(factors, (longest, (U[:, :, 0] * sigma[:, :1]).T, Vt[:, 0].T), strict=True):
            known.append(factor)
    back = dict(zip(order, map(np.stack, factors), strict=True))
    return _scaled(back[1], back[2], back[3])


def _scaled(outer: FloatArray, inner: FloatArray, taps: FloatArray) -> Terms:
    """Terms whose size is in ``outer``."""
    sizes = np.linalg.norm(inner, axis=1, keepdims=True) * np.linalg.norm(taps, axis=1, keepdims=True)
    return Terms(outer=outer * sizes, inner=_unit(inner), taps=_unit(taps))


def fitted(weight: FloatArray, start: Terms, *, sweeps: int) -> Terms:
    """Return the sum that alternating least squares comes to.

    Each factor in turn is the best for the other two. With K the products of those, ``W K (K' K)^-1``, and K' K the
    elementwise product of their Gram matrices.

    Args:
        weight: Shape (groups, out / groups, in / groups, taps).
        start: Where it begins.
        sweeps: Over all three factors, at most.
    """
    outer, inner, taps = start.outer, start.inner, start.taps
    groups, out, into, length = weight.shape
    outputs_last = np.ascontiguousarray(np.moveaxis(weight, 1, 3)).reshape(groups, -1, out)
    inputs_last = np.ascontiguousarray(np.moveaxis(weight, 2, 3)).reshape(groups, -1, into)
    size, last = float((weight**2).sum()), np.inf
    for _ in range(sweeps):
        half = (outputs_last @ outer).reshape(groups, into, length, -1)
        inner = _unit(_solved((half * taps[:, None]).sum(axis=2), gram(taps) * gram(outer)))
        taps = _unit(_solved((half * inner[:, :, None]).sum(axis=1), gram(outer) * gram(inner)))
        product = ((inputs_last @ inner).reshape(groups, out, length, -1) * taps[:, None]).sum(axis=2)
        square = gram(taps) * gram(inner)
        outer = _solved(product, square)
        start = Terms(outer=outer, inner=inner, taps=taps)
        error = size - 2 * float((outer * product).sum()) + float((gram(outer) * square).sum())
        if error < _CLOSE * size:  # the difference has lost its digits
            error = float(((weight - start.folded()) ** 2).sum())
        if not error <= last * (1 - _GAIN) ** 2:
            break
        last = error
    return start


def basis(tensor: FloatArray) -> FloatArray:
    """Return orthonormal columns that span axis 1 of each group, those that hold most of it first."""
    rows = tensor.reshape(*tensor.shape[:2], -1)
    # A copy, for torch takes no array that runs backwards.
    return np.linalg.eigh(rows @ np.swapaxes(rows, 1, 2))[1][..., ::-1].copy()


def gram(factor: FloatArray) -> FloatArray:
    """Return the inner products of the columns of each group's factor."""
    return np.asarray(np.swapaxes(factor, 1, 2) @ factor)


def _solved(product: FloatArray, square: FloatArray) -> FloatArray:
    """``product square^-1``; the little that is added to the diagonal keeps terms that are alike from growing."""
    rank = square.shape[-1]
    ridge = _RIDGE * np.trace(square, axis1=1, axis2=2)[:, None, None] / rank + np.finfo(np.float64).tiny
    return np.swapaxes(np.linalg.solve(square + ridge * np.eye(rank), np.swapaxes(product, 1, 2)), 1, 2)


def _unit(factor: FloatArray) -> FloatArray:
    norms = np.linalg.norm(factor, axis=1, keepdims=True)
    return np.asarray(factor / np.where(norms > 0, norms, 1.0))
