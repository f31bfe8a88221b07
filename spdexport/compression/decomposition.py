"""A layer's weight in two stages, of all ranks at once: V,U, spatial and Tucker-2 are one formula.

The first stage reads the channels and some of the taps, i, and has r outputs z; the second reads z at the other taps,
j. Of a group's weight W, with its columns sorted to (i, j)::

    V,U       i = channels and all taps              j = nothing
    spatial   i = channels and the first axis' taps  j = taps of the other axes
    Tucker-2  i = channels                           j = all taps

Which r combinations of i are read is decided by the matrix M of W, (i) x (out, j), where inputs at different j count as
uncorrelated: N = sum over j of S[(i, j), (i', j)] is their common second moment (``metric.py`` has S), and

    R = the first eigenvectors of M' N M,    V = R' M'.

For V,U that is the best there is: R are the principal components of the responses (Zhang et al. 2015, arXiv 1505.06798;
SVD-LLM and BALF whiten for the same result). The second stage is then a least squares fit, with every correlation in
it: with z = T x, G = T S T', B = W S T',

    H = B G^-1,    tr((W - H T) S (W - H T)') = tr(W S W') - tr(B G^-1 B').

With G = L L', Z = L^-1 B', what the first r features explain is the sum of squares of the first r j rows of Z: one
factorization has the errors of all ranks. For Tucker-2 with a last stage, y is held in the first principal components Q
of the outputs: the same sum over the first columns of Z Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spdexport.forms import FormKind
from spdexport.forms.families import FAMILIES

if TYPE_CHECKING:
    from spdexport.compression.metric import Metric
    from spdexport.conv import Array, ConvSpec, FloatArray
    from spdexport.forms import Form
    from spdexport.forms.families import Ranks

EXACT = 1e-12
"""A relative error, in squares, that is none: a weight in float32 that was a product has 1e-14 of rounding."""

_TINY = 1e-14
"""A share of the largest eigenvalue under which none can be told from rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splitting:
    """How the columns of a weight are sorted into those of the first stage and of the second.

    Attributes:
        shape: i and j.
        order: Column of the layer's weight at each place of (i, j), i first.
    """

    shape: tuple[int, int]
    order: Array

    @classmethod
    def of(cls, kind: FormKind, spec: ConvSpec) -> Splitting:
        """Return the splitting of a kind: RECOMPRESSED, SPATIAL or TUCKER."""
        channels = spec.in_channels // spec.groups
        columns = np.arange(spec.patch).reshape(channels, *spec.kernel)
        axes: tuple[int, ...] = tuple(range(spec.axes))
        if kind is FormKind.SPATIAL:
            axes = (next(axis for axis, size in enumerate(spec.kernel) if size > 1),)
        elif kind is FormKind.TUCKER:
            axes = ()
        i = channels * math.prod(spec.kernel[axis] for axis in axes)
        others = [1 + axis for axis in range(spec.axes) if axis not in axes]
        order = columns.transpose(0, *(1 + axis for axis in axes), *others).ravel()
        return cls(shape=(i, spec.patch // i), order=order)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """A weight in two stages, for every rank up to a largest.

    Attributes:
        spec: The layer's geometry.
        kind: RECOMPRESSED, SPATIAL or TUCKER.
        splitting: What the stages read.
        weight: W, shape (groups, out / groups, patch).
        metric: S.
        first: V of the largest rank, each row of variance 1, or 0; shape (groups, r, i).
        explained: Z, shape (groups, r, j, out / groups).
        size: tr(W S W'), all groups together.
    """

    spec: ConvSpec
    kind: FormKind
    splitting: Splitting
    weight: FloatArray
    metric: Metric
    first: FloatArray
    explained: FloatArray
    size: float

    @cached_property
    def components(self) -> FloatArray:
        """Q: principal components of the outputs as columns, the largest first; shape (groups, out / groups, same)."""
        return _eigenvectors(self.metric.outputs(self.weight))[1]

    @cached_property
    def errors(self) -> FloatArray:
        """The relative error of each rank r, without a last stage: entry r - 1 of shape (largest,)."""
        kept = (self.explained**2).sum(axis=(0, 2, 3)).cumsum()
        return share(self.size - kept, self.size)

    @cached_property
    def outer_errors(self) -> FloatArray:
        """The relative error of each pair of ranks r and p, with a last stage: entry (r - 1, p - 1)."""
        turned = (self.explained @ self.components[:, None]) ** 2
        return share(self.size - turned.sum(axis=(0, 2)).cumsum(axis=0).cumsum(axis=1), self.size)

    @cached_property
    def exact(self) -> int | None:
        """The smallest rank without an error, or None."""
        return next((int(r) + 1 for r in np.flatnonzero(self.errors <= EXACT)), None)

    def form(self, ranks: Ranks, bias: Array | None, dtype: np.dtype[np.generic]) -> Form:
        """Return the form of these ranks, (r,) or (r, p), fitted, and rounded to ``dtype``.

        Args:
            ranks: r, and for Tucker-2 with a last stage p.
            bias: The layer's, shape (out_channels,), or None. To the form's comes what the error does to the mean.
            dtype: That of the weights in the graph.
        """
        spec, rank = self.spec, ranks[0]
        V = self.first[:, :rank]
        H = least_squares(*self.metric.features(self.weight, V, self.splitting.shape, self.splitting.order))
        outer = self.components[..., : ranks[1]] if len(ranks) > 1 else None
        if outer is not None:
            H = _t(outer) @ H
        whole = H if outer is None else outer @ H
        shape = (len(V), *self.splitting.shape)
        z = V @ self.metric.mean[:, self.splitting.order].reshape(shape)
        shift = self.weight @ self.metric.mean[..., None] - whole @ z.reshape(len(V), -1, 1)
        moved = shift.ravel() + (0 if bias is None else np.asarray(bias, dtype=np.float64))
        weights = [V, H] if outer is None else [V, H, outer]
        family = FAMILIES[self.kind]
        shaped = [
            weight.reshape(stage.weight_shape).astype(dtype)
            for weight, stage in zip(weights, family.specs(spec, ranks), strict=True)
        ]
        return family.form(spec, shaped, moved.astype(dtype))


def decompose(weight: FloatArray, spec: ConvSpec, metric: Metric, kind: FormKind, most: int) -> Decomposition:
    """Return a weight in two stages, for ranks up to ``most`` or the largest that the weight has.

    Args:
        weight: Shape (groups, out / groups, patch).
        spec: The geometry.
        metric: S of the layer's input.
        kind: RECOMPRESSED, SPATIAL or TUCKER.
        most: The largest rank that is wanted.
    """
    splitting = Splitting.of(kind, spec)
    i, j = splitting.shape
    limit = min(most, i, weight.shape[1] * j)
    if metric.rows is not None:
        limit = max(min(limit, metric.rows // (2 * j)), 1)
    first = _first_stage(weight, metric, splitting, limit)
    G, B = metric.features(weight, first, splitting.shape, splitting.order)
    Z = np.linalg.solve(np.linalg.cholesky(definite(G)), _t(B))
    return Decomposition(
        spec=spec,
        kind=kind,
        splitting=splitting,
        weight=weight,
        metric=metric,
        first=first,
        explained=Z.reshape(len(Z), -1, j, weight.shape[1]),
        size=metric.size(weight),
    )


def _first_stage(weight: FloatArray, metric: Metric, splitting: Splitting, limit: int) -> FloatArray:
    """V, each row scaled to variance 1 at the mean of j; rows that read nothing are zero, and come last."""
    (i, j), groups = splitting.shape, len(weight)
    N = metric.marginal(splitting.shape, splitting.order)
    # (groups, i, out * j).
    M = np.moveaxis(weight[..., splitting.order].reshape(groups, -1, i, j), 1, 2).reshape(groups, i, -1)
    if M.shape[2] <= i:
        values, R = _eigenvectors(_t(M) @ N @ M, limit)
        V = _t(R) @ _t(M)
    else:
        # The same from the smaller side: with N = L L' and P the eigenvectors of L' M M' L, R' M' is P' L' M M'.
        L = np.asarray(np.linalg.cholesky(definite(N)), dtype=np.float64)
        square = M @ _t(M)
        values, P = _eigenvectors(_t(L) @ square @ L, limit)
        V = _t(P) @ _t(L) @ square
    V = V * (values > _TINY * values[:, :1])[..., None]
    variance = np.maximum(((V @ N) * V).sum(axis=-1), 0) / j
    return np.asarray(V * np.where(variance > 0, variance, np.inf)[..., None] ** -0.5)


def least_squares(G: FloatArray, B: FloatArray) -> FloatArray:
    """Return H = B G^-1, of shapes (groups, r, r) and (groups, out, r)."""
    return np.asarray(np.linalg.solve(definite(G), _t(B)), dtype=np.float64).swapaxes(1, 2)


def definite(G: FloatArray) -> FloatArray:
    """Return second moments that can be inverted: what never varies is given a variance, and is fitted with 0."""
    diagonal = np.arange(G.shape[-1])
    variances = G[:, diagonal, diagonal]
    largest = variances.max(axis=-1, keepdims=True)
    floor = np.where(largest > 0, _TINY * largest, 1.0)
    G = G.copy()
    G[:, diagonal, diagonal] = np.where(variances > floor, variances * (1 + _TINY), np.where(largest > 0, largest, 1.0))
    return G


def _eigenvectors(square: FloatArray, limit: int | None = None) -> tuple[FloatArray, FloatArray]:
    """The largest eigenvalues, descending, and their eigenvectors as columns."""
    values, vectors = (np.asarray(found, dtype=np.float64) for found in np.linalg.eigh(square))
    return values[:, ::-1][:, :limit], vectors[..., ::-1][..., :limit]


def share(left: FloatArray, size: float) -> FloatArray:
    """Return what is left of a size, in parts of it; 0 of a size of 0."""
    return np.clip(left / size, 0.0, 1.0) if size > 0 else np.zeros_like(left)


def _t(values: FloatArray) -> FloatArray:
    return np.swapaxes(values, -1, -2)
