"""What an error of a layer's weight comes to at its output, on the data that moments were taken from.

With x a patch of mean mu and covariance Sigma, a weight that is off by D, and a bias that makes good what D does to the
mean (b - D mu), the output is off by tr(D Sigma D') in the mean of squares: the constant part of the input costs
nothing. To Sigma comes t I::

    S = Sigma + t I,    t = ridge * tr Sigma / patch

so that directions that the sample has not seen count a little. The least of tr(D S D') over any set of weights is the
ridge regression, on the same data, that is drawn to the layer's own weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from spdexport.compression.moments import Moments
    from spdexport.conv import FloatArray

RIDGE = 1e-3
"""The share of the mean variance that every direction of the input has at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """S of a layer: in full, or as a factor of Sigma beside t.

    Attributes:
        ridge: t for each group, shape (groups,).
        mean: mu, shape (groups, patch).
        full: S, shape (groups, patch, patch); None where the moments have a sketch.
        factor: F with F' F near to Sigma, shape (groups, rows, patch); None where S is known in full.
    """

    ridge: FloatArray
    mean: FloatArray
    full: FloatArray | None
    factor: FloatArray | None

    @classmethod
    def of(cls, moments: Moments, *, ridge: float = RIDGE) -> Self:
        """Return S of these moments."""
        mean = moments.mean
        patch = mean.shape[-1]
        if moments.second is not None:
            full = moments.covariance()
            diagonal = np.arange(patch)
            t = ridge * np.maximum(full[:, diagonal, diagonal], 0).mean(axis=-1)
            full[:, diagonal, diagonal] += t[:, None]
            return cls(ridge=t, mean=mean, full=full, factor=None)
        factor = moments.sketched()
        t = ridge * (factor**2).sum(axis=(1, 2)) / patch
        return cls(ridge=t, mean=mean, full=None, factor=factor)

    @property
    def rows(self) -> int | None:
        """How many rows S is known from, where it is known from a sketch: no more features than that can be fitted."""
        return None if self.factor is None else self.factor.shape[1]

    def outputs(self, left: FloatArray, right: FloatArray | None = None) -> FloatArray:
        """Return A S B' for A (groups, a, patch) and B (groups, b, patch), A itself if None."""
        right = left if right is None else right
        if self.full is not None:
            return np.asarray(left @ self.full @ _t(right))
        one, two = left @ _t(self._rows), right @ _t(self._rows)
        return np.asarray(one @ _t(two) + self.ridge[:, None, None] * (left @ _t(right)))

    def size(self, weight: FloatArray) -> float:
        """Return tr(D S D') for D of shape (groups, out / groups, patch), all groups together."""
        if self.full is not None:
            return float(((weight @ self.full) * weight).sum())
        projected = weight @ _t(self._rows)
        return float((projected**2).sum() + (self.ridge[:, None, None] * weight**2).sum())

    def marginal(self, shape: tuple[int, int], order: np.ndarray) -> FloatArray:
        """Return the sum over j of S[(i, j), (i', j)], of columns sorted to ``shape`` (i, j): (groups, i, i)."""
        i, j = shape
        if j == 1 and self.full is not None:
            return self.full[:, order][:, :, order]
        total = np.zeros((len(self.ridge), i, i))
        for tap in range(j):
            columns = order.reshape(shape)[:, tap]
            if self.full is not None:
                total += self.full[:, columns[:, None], columns]
            else:
                part = self._rows[:, :, columns]
                total += _t(part) @ part + self.ridge[:, None, None] * np.eye(i)
        return total

    def features(
        self, weight: FloatArray, first: FloatArray, shape: tuple[int, int], order: np.ndarray
    ) -> tuple[FloatArray, FloatArray]:
        """Return G = T S T' and B = W S T' of the features z = T x, T being ``first`` at each j of ``shape`` (i, j).

        Args:
            weight: W, shape (groups, out, patch), its columns in the layer's own order.
            first: V, shape (groups, r, i).
            shape: i and j.
            order: The layer's columns in the order (i, j).

        Returns:
            Shapes (groups, r * j, r * j) and (groups, out, r * j).
        """
        (i, j), groups, r = shape, len(first), first.shape[1]
        if self.full is not None:
            # One side after the other; T is far too sparse to be written out.
            half = np.empty((groups, i * j, r, j))
            for tap in range(j):
                columns = order.reshape(shape)[:, tap]
                half[..., tap] = self.full[:, order][:, :, columns] @ _t(first)
            G = np.empty((groups, r, j, r * j))
            flat = half.reshape(groups, i, j, r * j)
            for tap in range(j):
                G[:, :, tap] = first @ flat[:, :, tap]
            return G.reshape(groups, r * j, r * j), weight[..., order] @ half.reshape(groups, i * j, r * j)
        rows = self._rows[..., order].reshape(groups, -1, i, j)
        z = np.einsum("gri,gnij->gnrj", first, rows, optimize=True).reshape(groups, -1, r * j)
        near = np.einsum("grs,jk->grjsk", first @ _t(first), np.eye(j)).reshape(groups, r * j, r * j)
        own = np.einsum("goij,gri->gorj", weight[..., order].reshape(groups, -1, i, j), first, optimize=True)
        t = self.ridge[:, None, None]
        return _t(z) @ z + t * near, weight @ _t(self._rows) @ z + t * own.reshape(groups, -1, r * j)

    @property
    def _rows(self) -> FloatArray:
        assert self.factor is not None, "either is there"
        return self.factor


def _t(values: FloatArray) -> FloatArray:
    return np.swapaxes(values, -1, -2)
