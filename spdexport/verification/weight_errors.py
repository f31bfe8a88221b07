"""The errors of a file's weights, gathered by layer: the largest over its bound, and what they can do to the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import canonical_weight

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import Array, FloatArray

EXACT_NORM_UP_TO = 512
"""The smaller side of a matrix up to which its 2-norm is computed; above, a bound of it that costs no eigenvalues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightError:
    """What the file's weights of one layer are off.

    Attributes:
        ratio: The largest error over its floor; infinite where nothing should have changed the weight, or where the
            layer's operator itself differs.
        norm: The 2-norm of the weight's error as a matrix (out, in * k * k).
        bias_norm: The 2-norm of the bias's error.
    """

    ratio: float = 0.0
    norm: float = 0.0
    bias_norm: float = 0.0

    def with_(self, other: WeightError) -> WeightError:
        """Both, the worse of each."""
        return WeightError(
            ratio=max(self.ratio, other.ratio),
            norm=max(self.norm, other.norm),
            bias_norm=max(self.bias_norm, other.bias_norm),
        )


class WeightErrors:
    """The errors by layer, added one tensor at a time.

    Attributes:
        ratio: The largest of all composed weights that rounding explains.
        error: The largest absolute error of those.
    """

    def __init__(self) -> None:
        self.ratio = 0.0
        self.error = 0.0
        self._found: dict[str, WeightError] = {}
        self._members: dict[str, set[str]] = {}

    def add(self, names: Iterable[str], found: WeightError) -> None:
        """Take in what was found for a layer, under each of the names that it may be asked for by."""
        for name in names:
            self._found[name] = self._found.get(name, WeightError()).with_(found)

    def compose(self, layer: str, members: Iterable[str]) -> None:
        """Note that what is known as ``layer`` holds several layers of the model, in a row or summed."""
        for member in members:
            self._members.setdefault(member, set()).add(layer)

    def of(self, layer: str) -> WeightError | None:
        """Return what is known of a layer; None where it was not compared."""
        names = {layer, *self._members.get(layer, ())}
        known = [self._found[name] for name in names if name in self._found]
        result = None
        for found in known:
            result = found if result is None else result.with_(found)
        return result


def error_of(op_type: str, index: int, error: FloatArray, ratio: float, groups: int) -> WeightError:
    """Return what the error of one constant operand means for its layer.

    Args:
        op_type: The operator that reads it.
        index: Which input it is.
        error: In float64, of the operand's shape.
        ratio: Its largest entry over the floor.
        groups: Of a convolution.
    """
    is_weight = error.ndim >= 2 and op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and index < 2
    if not is_weight:
        return WeightError(ratio=ratio, bias_norm=float(np.linalg.norm(error)) if error.size else 0.0)
    if op_type in ("Gemm", "MatMul"):
        return WeightError(ratio=ratio, norm=max((spectral_norm(m) for m in _matrices(error)), default=0.0))
    # The matrix of a grouped convolution has its groups as blocks on the diagonal: the largest of their norms is its.
    weight = canonical_weight(error, groups) if op_type == "ConvTranspose" else error
    blocks = weight.reshape(groups, weight.shape[0] // groups, -1)
    return WeightError(ratio=ratio, norm=max((spectral_norm(m) for m in blocks), default=0.0))


def _matrices(values: Array) -> Array:
    return values.reshape(-1, *values.shape[-2:])


def spectral_norm(matrix: FloatArray) -> float:
    """Return the 2-norm of a matrix; for very large ones a bound of it. Not finite where the matrix is not."""
    if not matrix.size or not matrix.any():
        return 0.0
    if not np.isfinite(matrix).all():
        return float("inf")
    if min(matrix.shape) > EXACT_NORM_UP_TO:
        rows, columns = np.abs(matrix).sum(axis=1).max(), np.abs(matrix).sum(axis=0).max()
        return float(min(np.linalg.norm(matrix), np.sqrt(rows * columns)))
    # Scaled, for the squares of errors near 1e-170 would vanish.
    scale = np.abs(matrix).max()
    scaled = matrix / scale
    gram = scaled @ scaled.T if matrix.shape[0] <= matrix.shape[1] else scaled.T @ scaled
    return float(scale * np.sqrt(np.linalg.eigvalsh(gram)[-1]))
