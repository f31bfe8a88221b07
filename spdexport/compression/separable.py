"""A layer's weight in the CP form, of all ranks at once: V and U whose V are products of channels and taps.

Each row of V is ``first[r, i] core[r, tap]``, and U is the last stage. Which rows are good is found where the metric is
nearly a product itself, S of A (channels) times S of T (taps), both marginals of S, as K-FAC has it (Martens and Grosse
2015, arXiv 1503.05671): with A = L L' and T = M M', the CP decomposition of ``W (L x M)`` in the plain sense
(``canonical.py``) gives them. U is then a least squares fit in S itself, with every correlation in it, as in
``decomposition.py``; rows that explain most come first, so that fewer of them are a form, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spdexport.canonical import Canonical
from spdexport.compression.decomposition import EXACT, decompose, definite, least_squares, share
from spdexport.forms import FormKind
from spdexport.forms.families import FAMILIES

if TYPE_CHECKING:
    from spdexport.compression.decomposition import Decomposition
    from spdexport.compression.metric import Metric
    from spdexport.conv import Array, ConvSpec, FloatArray
    from spdexport.forms import Form
    from spdexport.forms.families import Ranks

LEVELS = 4
"""Decompositions of a layer, each of half as many terms: the first terms of many are no good sum of few."""

WORK = 2e9
"""As ``canonical.WORK``, for a search has many layers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """A number of terms, those that explain most first.

    Attributes:
        first: Channels, shape (groups, R, in / groups).
        core: Taps, shape (groups, R, taps).
        explained: What each explains beside those in front of it, all groups together: (R,).
    """

    first: FloatArray
    core: FloatArray
    explained: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class SeparableDecomposition:
    """A weight in the CP form, for every rank up to a largest; as ``Decomposition``.

    Attributes:
        spec: The layer's geometry.
        weight: W, shape (groups, out / groups, patch).
        metric: S.
        levels: Of most terms first.
        size: tr(W S W'), all groups together.
    """

    spec: ConvSpec
    weight: FloatArray
    metric: Metric
    levels: tuple[Level, ...]
    size: float
    kind: FormKind = FormKind.CP

    @cached_property
    def errors(self) -> FloatArray:
        """The relative error of each rank r: entry r - 1 of shape (largest,)."""
        errors = np.ones(len(self.levels[0].explained))
        for level in self.levels:
            errors[: len(level.explained)] = share(self.size - level.explained.cumsum(), self.size)
        return errors

    @cached_property
    def exact(self) -> int | None:
        """The smallest rank without an error, or None."""
        return next((int(r) + 1 for r in np.flatnonzero(self.errors <= EXACT)), None)

    def form(self, ranks: Ranks, bias: Array | None, dtype: np.dtype[np.generic]) -> Form:
        """Return the form of a rank, fitted, and rounded to ``dtype``.

        Args:
            ranks: (r,).
            bias: The layer's, shape (out_channels,), or None. To the form's comes what the error does to the mean.
            dtype: That of the weights in the graph.
        """
        (rank,) = ranks
        level = next(level for level in reversed(self.levels) if len(level.explained) >= rank)
        V = rows_of(level.first[:, :rank], level.core[:, :rank])
        U = least_squares(self.metric.outputs(V), self.metric.outputs(self.weight, V))
        shift = ((self.weight - U @ V) @ self.metric.mean[..., None]).ravel()
        moved = shift + (0 if bias is None else np.asarray(bias, dtype=np.float64))
        family = FAMILIES[self.kind]
        weights = (level.first[:, :rank], level.core[:, :rank], U)
        shaped = [
            weight.reshape(stage.weight_shape).astype(dtype)
            for weight, stage in zip(weights, family.specs(self.spec, ranks), strict=True)
        ]
        return family.form(self.spec, shaped, moved.astype(dtype))


def decomposed(
    weight: FloatArray, spec: ConvSpec, metric: Metric, kind: FormKind, most: int
) -> Decomposition | SeparableDecomposition:
    """Return a weight in the stages of a kind of form, for ranks up to ``most`` or the largest that the weight has.

    Args:
        weight: Shape (groups, out / groups, patch).
        spec: The geometry.
        metric: S of the layer's input.
        kind: RECOMPRESSED, SPATIAL, TUCKER or CP.
        most: The largest rank that is wanted.
    """
    if kind is not FormKind.CP:
        return decompose(weight, spec, metric, kind, most)
    limit = min(most, *FAMILIES[kind].largest(spec), spec.patch)
    if metric.rows is not None:
        limit = max(min(limit, metric.rows // 2), 1)
    channels = spec.in_channels // spec.groups
    shape, columns = (channels, spec.patch // channels), np.arange(spec.patch)
    L = np.linalg.cholesky(definite(metric.marginal(shape, columns)))
    M = np.linalg.cholesky(definite(metric.marginal(shape[::-1], columns.reshape(shape).T.ravel())))
    white = np.einsum("goit,gij,gts->gojs", weight.reshape(*weight.shape[:2], *shape), L, M, optimize=True)
    found = Canonical(weight=white, work=WORK)
    levels = []
    for rank in (limit >> level for level in range(LEVELS) if limit >> level):
        terms = found.terms(rank)
        # W' = W'_white (L x M)^-1.
        first, core = (
            np.swapaxes(np.linalg.solve(np.swapaxes(root, 1, 2), factor), 1, 2)
            for root, factor in ((L, terms.inner), (M, terms.taps))
        )
        levels.append(_level(weight, metric, first, core))
    return SeparableDecomposition(
        spec=spec, weight=weight, metric=metric, levels=tuple(levels), size=metric.size(weight)
    )


def _level(weight: FloatArray, metric: Metric, first: FloatArray, core: FloatArray) -> Level:
    """These terms, in the order of what they explain."""
    V = rows_of(first, core)
    order, explained = _ordered(metric.outputs(V), metric.outputs(weight, V))
    first, core = (np.take_along_axis(factor, order[..., None], axis=1) for factor in (first, core))
    return Level(first=first, core=core, explained=explained)


def rows_of(first: FloatArray, core: FloatArray) -> FloatArray:
    """Return V, the products of both: (groups, R, patch)."""
    product = first[..., None] * core[:, :, None, :]
    return product.reshape(*product.shape[:2], -1)


def _ordered(G: FloatArray, B: FloatArray) -> tuple[Array, FloatArray]:
    """The order in which features explain most, each beside those in front of it, and how much all groups' do.

    Args:
        G: The second moments of the features, (groups, R, R).
        B: Those with the outputs, (groups, out, R).
    """
    G, B = definite(G), B.copy()
    groups, rank, _ = G.shape
    start = G[:, np.arange(rank), np.arange(rank)]
    order, explained = np.empty((groups, rank), dtype=np.int64), np.zeros(rank)
    taken = np.zeros((groups, rank), dtype=bool)
    rows = np.arange(groups)
    for place in range(rank):
        left = np.maximum(G[:, np.arange(rank), np.arange(rank)], 1e-12 * start)
        gains = np.where(taken, -1.0, (B**2).sum(axis=1) / left)
        best = gains.argmax(axis=1)
        order[:, place], explained[place] = best, np.maximum(gains[rows, best], 0).sum()
        taken[rows, best] = True
        # What the feature explains is taken off the others and off the outputs.
        column = G[rows, :, best] / np.sqrt(left[rows, best])[:, None]
        coefficient = B[rows, :, best] / np.sqrt(left[rows, best])[:, None]
        B -= coefficient[:, :, None] * column[:, None, :]
        G -= column[:, :, None] * column[:, None, :]
    return order, explained
