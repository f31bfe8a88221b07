"""Tucker-2: orthonormal bases of the input and output channels of a weight, and what is left of it between them.

In float64, for each group of a layer by itself. ``lowrank.py`` has the matrices; here the weight stays a tensor of
output channels, input channels and taps. The bases come from the singular vectors of its two unfoldings (HOSVD); a few
sweeps that fix one and improve the other (HOOI) bring a truncated one to the best there is nearby.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.canonical import basis
from spdexport.factors import unit_rounding

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSpec, FloatArray

SWEEPS = 3
"""Of HOOI. From the HOSVD most of what it gains comes with the first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tucker:
    """A weight in the bases of its channels, the directions that hold most of it first.

    Attributes:
        weight: Of each group: (groups, out / groups, in / groups, taps).
        inner: Orthonormal columns: (groups, in / groups, in / groups).
        outer: The same of the outputs: (groups, out / groups, out / groups).
        sigma: The singular values of both unfoldings, inner and outer: (groups, in / groups), (groups, out / groups).
        losses: The relative Frobenius error of keeping the first t outer and r inner directions, without HOOI, of each
            group: ``losses[g, t - 1, r - 1]``.
    """

    weight: FloatArray
    inner: FloatArray
    outer: FloatArray
    sigma: tuple[FloatArray, FloatArray]
    losses: FloatArray

    def lost(self, inner: int, outer: int) -> FloatArray:
        """Return the relative Frobenius error of cutting these bases off, of each group: (groups,); without HOOI."""
        return self.losses[:, min(outer, self.losses.shape[1]) - 1, min(inner, self.losses.shape[2]) - 1]


def tucker(weight: Array, spec: ConvSpec) -> Tucker:
    """Return the HOSVD of each group's weight.

    Args:
        weight: Shape ``spec.weight_shape``.
        spec: The geometry.
    """
    W = np.asarray(weight, dtype=np.float64)
    W = W.reshape(spec.groups, spec.group_out, spec.in_channels // spec.groups, -1)
    outer, inner = basis(W), basis(np.swapaxes(W, 1, 2))
    energies = (_between(W, inner, outer) ** 2).sum(axis=-1)
    sigma = np.sqrt(energies.sum(axis=1)), np.sqrt(energies.sum(axis=2))
    return Tucker(weight=W, inner=inner, outer=outer, sigma=sigma, losses=_losses(energies))


def _losses(energies: FloatArray) -> FloatArray:
    """What is cut off is summed by itself, so that little of it is not lost beside much that is kept."""
    total = energies.sum(axis=(1, 2), keepdims=True)
    behind = energies[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] - energies  # of the same output, the further inputs
    below = energies.sum(axis=2)[:, ::-1].cumsum(axis=1)[:, ::-1] - energies.sum(axis=2)
    cut = behind.cumsum(axis=1) + below[..., None]
    return np.asarray(np.sqrt(np.maximum(cut, 0.0) / np.where(total > 0, total, 1.0)))


def numerical_ranks(found: Tucker, dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """Return the ranks of both unfoldings, inner and outer, as far as rounding to ``dtype`` leaves them to be told.

    As in ``lowrank.numerical_rank``, rounding moves each entry by at most u |W|, and a singular value up to the norm
    of that carries no information.
    """
    total = np.linalg.norm(found.sigma[0], axis=-1)
    size = max(found.weight.shape[1:3]) * found.weight.shape[3]
    noise = max(unit_rounding(dtype), np.finfo(np.float64).eps * size) * total
    ranks = [max(int((sigma > noise[:, None]).sum(axis=-1).max()), 1) for sigma in found.sigma]
    return ranks[0], ranks[1]


def tucker_factors(found: Tucker, inner: int, outer: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the best factors of these ranks that HOOI finds: ``W = last core first`` within each group.

    Returns:
        first (groups, inner, in / groups) and last (groups, out / groups, outer), of orthonormal rows and columns; core
        (groups, outer, inner, taps).
    """
    W, A, B = found.weight, found.inner[..., :inner], found.outer[..., :outer]
    if inner < found.inner.shape[-1] and outer < found.outer.shape[-1]:
        for _ in range(SWEEPS):
            B = basis(np.einsum("goit,gia->goat", W, A, optimize=True))[..., :outer]
            A = basis(np.einsum("goit,gob->gibt", W, B, optimize=True))[..., :inner]
    return np.swapaxes(A, 1, 2), _between(W, A, B), B


def tucker_error(found: Tucker, core: FloatArray) -> float:
    """Return the relative Frobenius error of a whole weight, of the core that bases of it have."""
    total = float((found.weight**2).sum())
    return float(np.sqrt(max(total - float((core**2).sum()), 0.0) / total)) if total else 0.0


def _between(W: FloatArray, inner: FloatArray, outer: FloatArray) -> FloatArray:
    """The weight in two bases: (groups, outer, inner, taps)."""
    return np.asarray(np.einsum("goit,gia,gob->gbat", W, inner, outer, optimize=True))
