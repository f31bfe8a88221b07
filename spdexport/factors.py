"""The components of a layer and their maths, in numpy and float64.

Every formula of the decomposition is in this module, once. Rewriters, planner, folding and verification call it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSpec, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """V, U and an optional mask of one layer.

    The invariant, with d = 1 where the weight delta is kept and 0 where it is dropped::

        W_effective = (V diag(m) U)^T reshaped to (out, in / groups, *kernel)  +  d * delta
        delta       = W - (V U)^T reshaped, with the V and U that were there before any edit

    Attributes:
        V: Shape (patch, C), patch = in / groups * prod(kernel) in the order (in, *kernel): column c is the patch that
            component c detects. For groups > 1, shape (groups, patch, C).
        U: Shape (C, out): row c is what component c writes. For groups > 1, shape (groups, C, out / groups).
        mask: Shape (C,), or (groups, C); None means all ones.
        located: A further mask for each output location, shape (*locations, groups * C), which no effective weight
            holds; None for none.
        trained: V and U as they were before the user edited them, of their shapes; None where they were not.

    Where groups keep different numbers of components, each is padded with zero components to the largest.
    """

    V: Array
    U: Array
    mask: Array | None = None
    located: Array | None = None
    trained: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        if self.V.ndim != self.U.ndim or self.V.ndim not in (2, 3):
            raise ValueError(f"V and U must both have 2 axes, or 3 with groups: {self.V.shape} and {self.U.shape}")
        if self.V.shape[-1] != self.U.shape[-2] or self.V.shape[:-2] != self.U.shape[:-2]:
            raise ValueError(f"V {self.V.shape} and U {self.U.shape} do not agree on the components")
        if self.mask is not None and self.mask.shape != (*self.V.shape[:-2], self.V.shape[-1]):
            raise ValueError(f"mask {self.mask.shape} does not fit V {self.V.shape}")

    @property
    def components(self) -> int:
        """C: the number of components, of one group where there are several."""
        return int(self.V.shape[-1])

    @property
    def live(self) -> int:
        """Components whose mask is not zero; the largest number of any group."""
        return self.components if self.mask is None else int((self.mask != 0).sum(axis=-1).max())

    @property
    def is_edited(self) -> bool:
        """Whether the user changed what components read or write."""
        return self.trained is not None

    @property
    def as_trained(self) -> Factors:
        """The same without mask and edits: what the weight delta is told by."""
        V, U = self.trained or (self.V, self.U)
        return replace(self, V=V, U=U, mask=None, trained=None)

    @property
    def effective_mask(self) -> FloatArray:
        """The mask in float64, ones where there is none: (C,) or (groups, C)."""
        if self.mask is None:
            return np.ones((*self.V.shape[:-2], self.V.shape[-1]))
        return np.asarray(self.mask, dtype=np.float64)


def expected_shapes(spec: ConvSpec, components: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes that V and U must have for a layer with this geometry."""
    groups = (spec.groups,) if spec.groups > 1 else ()
    return (*groups, spec.patch, components), (*groups, components, spec.group_out)


def masked_weight(factors: Factors, spec: ConvSpec) -> FloatArray:
    """(V diag(m) U)^T reshaped: shape ``spec.weight_shape``, float64."""
    V, U = (np.asarray(x, dtype=np.float64) for x in (factors.V, factors.U))
    if factors.mask is not None:
        V = V * factors.effective_mask[..., None, :]
    # The transposed product has the order of the weight already.
    product: FloatArray = np.swapaxes(U, -1, -2) @ np.swapaxes(V, -1, -2)
    return product.reshape(spec.weight_shape)


def delta(weight: Array, factors: Factors, spec: ConvSpec) -> FloatArray:
    """Return the weight minus the product of V and U without mask and edits: shape ``spec.weight_shape``, float64."""
    result: FloatArray = np.asarray(weight, dtype=np.float64) - masked_weight(factors.as_trained, spec)
    return result


def delta_ratio(weight: Array, factors: Factors, spec: ConvSpec, *, known: FloatArray | None = None) -> float:
    """Return the Frobenius norm of the delta, or of ``known``, over that of the weight.

    0 for a zero weight without delta.
    """
    d = float(np.linalg.norm(delta(weight, factors, spec) if known is None else known))
    w = float(np.linalg.norm(np.asarray(weight, dtype=np.float64)))
    if w == 0.0:
        return 0.0 if d == 0.0 else float("inf")
    return d / w


def delta_is_rounding(weight: Array, factors: Factors, spec: ConvSpec, *, known: FloatArray | None = None) -> bool:
    """Return whether the delta, ``known`` perhaps, is no more than rounding V, U and W to their dtype explains.

    With u the unit rounding of the weight's dtype, rounding V and U moves an entry of V U by at most
    (2u + u²) (|V| |U|), and rounding W moves it by u |W|. Beside these stands the error of computing V and U in
    float64, up to 4 eps max(patch, out) ||W||, the same for all entries of a group: a filter that training left at
    1e-12 of the others has few digits, or none. A delta within the bound everywhere carries no information.
    """
    u = unit_rounding(weight.dtype)
    W = np.abs(np.asarray(weight, dtype=np.float64))
    trained = factors.as_trained
    magnitude = masked_weight(Factors(V=np.abs(trained.V), U=np.abs(trained.U)), spec)
    norms = np.linalg.norm(W.reshape(spec.groups, -1), axis=1).repeat(spec.group_out)
    computed = 4 * np.finfo(np.float64).eps * max(spec.patch, spec.group_out) * norms
    bound = (2 * u + u * u) * magnitude + u * W + computed.reshape(-1, *(1,) * (W.ndim - 1))
    found = delta(weight, factors, spec) if known is None else known
    return bool((np.abs(found) <= bound).all())


def effective_weight(weight: Array, factors: Factors, spec: ConvSpec, *, keep_delta: bool) -> FloatArray:
    """Return the dense weight that the masked layer stands for: shape ``spec.weight_shape``, float64.

    Args:
        weight: The target weight W, shape ``spec.weight_shape``.
        factors: V, U and mask.
        spec: The layer's geometry.
        keep_delta: Whether delta is added.
    """
    product = masked_weight(factors, spec)
    return product + delta(weight, factors, spec) if keep_delta else product


def unit_rounding(dtype: np.dtype[np.generic]) -> float:
    """u: half the distance from one to the next number of a float dtype, ml_dtypes' bfloat16 included."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps) / 2


def drop_dead(factors: Factors) -> Factors:
    """Remove the components that the mask sets to zero; V diag(m) U stays the same, entry for entry.

    At least one component remains, with zeros in V and U where none is live, since a convolution without channels is
    not useful in ONNX. Groups with fewer live components than others are padded with zero components.
    """
    if factors.mask is None:
        return factors
    size = max(factors.live, 1)
    if factors.mask.ndim == 1:
        V, U, mask = _take_live(factors.V, factors.U, factors.mask, size)
        return Factors(V=V, U=U, mask=mask)
    groups = [_take_live(V, U, m, size) for V, U, m in zip(factors.V, factors.U, factors.mask, strict=True)]
    V, U, mask = (np.stack(parts) for parts in zip(*groups, strict=True))
    return Factors(V=V, U=U, mask=mask)


def _take_live(V: Array, U: Array, mask: Array, size: int) -> tuple[Array, Array, Array]:
    """V, U and the mask of what it does not remove, padded with zeros to a number of components."""
    keep = np.flatnonzero(mask)
    pad = size - len(keep)
    return np.pad(V[:, keep], ((0, 0), (0, pad))), np.pad(U[keep], ((0, pad), (0, 0))), np.pad(mask[keep], (0, pad))


def absorb_mask(factors: Factors) -> Factors:
    """Multiply the mask into U, rounding once to U's dtype."""
    if factors.mask is None:
        return factors
    U = (np.asarray(factors.U, dtype=np.float64) * factors.effective_mask[..., None]).astype(factors.U.dtype)
    return Factors(V=factors.V, U=U)


def break_even(spec: ConvSpec, upsampling: float = 1.0) -> float:
    """Return the number of components at which V and U cost as many multiply-accumulates as the dense layer.

    patch * out / (patch + r * out), counted in one group: below it the factorized form is cheaper.

    Args:
        spec: The layer's geometry.
        upsampling: r, the output locations for each application of the kernel (``ConvSite.upsampling``): 1 but for a
            transposed convolution, whose V runs at the input's locations and U at the output's.
    """
    return spec.patch * spec.group_out / (spec.patch + upsampling * spec.group_out)


def v_filters(factors: Factors, spec: ConvSpec) -> Array:
    """V as the weight of a convolution with the layer's own geometry: (groups * C, in / groups, *kernel)."""
    rows = np.swapaxes(factors.V, -1, -2)
    return np.ascontiguousarray(rows).reshape(spec.groups * factors.components, *spec.weight_shape[1:])


def u_filters(factors: Factors, spec: ConvSpec) -> Array:
    """U as the weight of a pointwise convolution: (out, C, 1, ..., 1)."""
    rows = np.swapaxes(factors.U, -1, -2)
    return np.ascontiguousarray(rows).reshape(spec.out_channels, factors.components, *(1,) * spec.axes)
