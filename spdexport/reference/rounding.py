"""How far from the exact result an operator of a runtime may be: error models, as functions of float64 arrays.

Each gives the errors of one simulated rounding, to be added to an exact output. The kinds of error:

products
    ``u (|W| |x| + |b|)`` (Higham, Accuracy and Stability of Numerical Algorithms, 3.5).
sums
    A runtime that adds n terms one after another errs by up to ``n u sum |terms|`` (Higham, 4.2). Random terms come to
    sqrt(n); equal ones, which are all rounded alike, to ``n u / 4 sum |terms|``. Which it is depends on the terms: so
    they are added one after another in float32, scaled by a random number so that each run rounds otherwise. ONNX
    Runtime's GlobalAveragePool adds in 4 lanes (up to n / 16 on equal terms), its AveragePool, ReduceL2 and CumSum in
    one (n / 4); torch adds in more, by parts.
elementwise functions
    As far as ONNX Runtime's kernels on the CPU were measured to be off, absolutely near saturation.
all else
    ``u |y|``, and 0 where the result is a number of the type already, which no correctly rounded operator misses.

Inside of an operator, types shorter than float32 are computed in float32 and the result is rounded, as runtimes do.
`noise` draws the random part, and `rounding_onnx` and `rounding_torch` say which model is whose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.reference.noise import FLOAT32, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array
    from spdexport.reference.noise import Draw

SHORT = 8
"""Sums of up to that many products are as far off as any."""

GUESSES = 4
"""Times that one sum is added up, in other units each time."""

WHOLE = 2.0**24
"""Up to here, float32 has all whole numbers."""


def product(y: Array, magnitude: Array, terms: int, draw: Draw, *, growth: float = 0.0) -> Array:
    """Errors of a product.

    Args:
        y: The exact product plus bias.
        magnitude: ``|W| |x| + |b|``.
        terms: The number of products in each sum. Where they all have one sign, their partial sums grow, and their
            random errors come to more than u times the sum; for others this is less than the first.
        draw: Of the node.
        growth: As ``growth_of`` gives it, where it was looked at.
    """
    factor = max(0.125 * terms**0.5, growth)
    size = np.maximum(magnitude, np.abs(y) * factor) if factor > 1 else magnitude
    errors: Array = draw.signs(np.real(y)) * (draw.unit_rounding * size)
    return errors


def growth_of(operands: Sequence[Array], draw: Draw) -> float:
    """Return how many unit roundings the longest sum of a product of two computed operands is off.

    Weights differ from one another; values that a model computes may all be equal, and are then rounded alike.

    Args:
        operands: What is multiplied for one result: arrays that broadcast.
        draw: Of the node.
    """
    terms = np.asarray(operands[0] * operands[1]).reshape(1, -1)
    total = float(np.abs(terms).sum())
    if not 0 < total < np.inf:
        return 0.0
    errors = [float(np.abs(added_up(terms, draw, salt=salt)).max()) for salt in range(GUESSES)]
    return max(errors) / (total * draw.inner)


def added_up(terms: Array, draw: Draw, *, every: bool = False, salt: int = 0) -> Array:
    """Errors of sums over the last axis, of a runtime that adds one term after another.

    Args:
        terms: (..., n).
        draw: Of the node.
        every: Whether each partial sum is wanted, (..., n), instead of the last, (...).
        salt: Different for the several sums of one operator.

    Returns:
        Zeros where the sums are exact: of fewer than 2 terms, or of whole numbers that float32 has.
    """
    shape = terms.shape if every else terms.shape[:-1]
    if terms.shape[-1] < 2 or not terms.size:
        return np.zeros(shape)
    largest = float(np.abs(terms).max())
    if largest == 0 or not np.isfinite(largest) or _exact(terms, largest):
        return np.zeros(shape)
    scale = (1 + draw.fraction(salt)) / largest
    low = (terms * scale).astype(np.float32)
    partial = np.cumsum(low, axis=-1)
    if every:
        errors = partial - np.cumsum(low, axis=-1, dtype=np.float64)
    else:
        errors = partial[..., -1] - low.sum(axis=-1, dtype=np.float64)
    sums: Array = errors * (draw.inner / FLOAT32 / scale)
    return sums


def _exact(terms: Array, largest: float) -> bool:
    """Whether all partial sums are whole numbers that float32 has."""
    if largest * terms.shape[-1] > WHOLE:
        return False
    first = terms.reshape(-1)[:64]
    return bool((first == np.rint(first)).all() and (terms == np.rint(terms)).all())


def reduction(kind: str, x: Array, y: Array, axes: tuple[int, ...], draw: Draw) -> Array:
    """Errors of a reduction by sums: ``sum``, ``mean``, ``l1``, ``l2``, ``sum_square``, ``log_sum``, ``log_sum_exp``.

    Args:
        kind: What it computes.
        x: What it reads.
        y: What it gives, of whatever shape for ``axes``.
        axes: The axes of x that are gone or 1 in y.
        draw: Of the node.
    """
    if kind in ("mean", "sum", "log_sum"):
        terms = x
    elif kind == "l1":
        terms = np.abs(x)
    elif kind in ("l2", "sum_square"):
        terms = x * x
    else:
        terms = np.exp(x - x.max(axis=axes, keepdims=True, initial=-np.inf))
    rows, count = _rows(terms, axes)
    errors = added_up(rows, draw).reshape(y.shape)
    if kind == "mean":
        errors = errors / count
    elif kind == "l2":
        errors = errors / np.maximum(2 * y, SMALLEST)
    elif kind == "log_sum":
        errors = errors / np.maximum(np.abs(rows.sum(-1)), SMALLEST).reshape(y.shape)
    elif kind == "log_sum_exp":
        errors = errors / np.maximum(rows.sum(-1), 1.0).reshape(y.shape)
        errors = errors + draw.unit_rounding * draw.signs(y, 1)  # of the logarithm, near 0
    return errors + draw.relative(y)


def _rows(x: Array, axes: tuple[int, ...]) -> tuple[Array, int]:
    """The values as rows over some axes, (rows, n), and n."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    return np.transpose(x, [*kept, *axes]).reshape(-1, max(count, 1)), count


def running_sum(x: Array, y: Array, axis: int, draw: Draw, *, reverse: bool = False) -> Array:
    """Errors of a cumulative sum, that grow along the axis; where it is exclusive too."""
    terms = np.moveaxis(np.flip(x, axis) if reverse else x, axis, -1)
    errors = np.moveaxis(added_up(terms, draw, every=True), -1, axis)
    return (np.flip(errors, axis) if reverse else errors) + draw.relative(y)


def windows(x: Array, y: Array, average: Callable[[Array], Array], draw: Draw) -> Array:
    """Errors of an average over windows: ``average`` is the operator, which adds float32 one after another."""
    largest = float(np.abs(x).max(initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return draw.relative(y)
    scale = (1 + draw.fraction()) / largest
    low = (x * scale).astype(np.float32)
    errors = average(low).astype(np.float64) - average(low.astype(np.float64))
    return errors * (draw.inner / FLOAT32 / scale) + draw.relative(y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How far a kernel of an elementwise function is off, in unit roundings.

    Attributes:
        relative: Of the result.
        absolute: Whatever the result, as where a function is computed as a difference from 1.
        of_input: Of the input, as where such a difference is multiplied by it.
        positive: Whether the result is never below 0, however it is rounded.
    """

    relative: float = 1.0
    absolute: float = 0.0
    of_input: float = 0.0
    positive: bool = False


def elementwise(kernel: Kernel, x: Array, y: Array, draw: Draw) -> Array:
    """Errors of an elementwise function."""
    size = np.abs(y) * (draw.unit_rounding + draw.inner * (kernel.relative - 1))
    if kernel.absolute:
        size += kernel.absolute * draw.inner
    if kernel.of_input:
        size += np.abs(x) * (kernel.of_input * draw.inner)
    signs = draw.signs(y)
    errors: Array = size * signs
    return np.maximum(errors, -y) if kernel.positive else errors


def softmax(x: Array, y: Array, axis: int, draw: Draw) -> Array:
    """Errors of softmax: ``exp(x - max)`` has those of its argument, and the sum in the denominator is one of n."""
    rows = np.moveaxis(y, axis, -1)
    total = np.moveaxis(added_up(rows, draw)[..., None], -1, axis)
    below = x.max(axis=axis, keepdims=True) - x
    with np.errstate(invalid="ignore"):
        errors = draw.signs(y) * (y * (draw.unit_rounding + draw.inner * (2 + below))) - y * total
    errors = np.where(np.isfinite(errors), errors, 0.0)
    return np.asarray(np.maximum(errors + draw.flushed(y), -y))


def log_softmax(x: Array, y: Array, axis: int, draw: Draw) -> Array:
    """Errors of the logarithm of softmax: absolute, of the sizes of its terms."""
    rows = np.moveaxis(np.exp(y), axis, -1)
    total = np.moveaxis(added_up(rows, draw)[..., None], -1, axis)
    finite = np.where(np.isfinite(x), np.abs(x), 0.0)
    size = draw.unit_rounding * np.abs(y) + draw.inner * (1 + finite)
    errors = draw.signs(y) * size - total
    return np.where(np.isfinite(errors), errors, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """What a norm multiplies by and adds, in shapes that broadcast to its input; None for 1 and 0."""

    scale: Array | None
    bias: Array | None


def normalized(
    x: Array,
    y: Array,
    rows: Callable[[Array], Array],
    epsilon: float,
    affine: Affine,
    draw: Draw,
    *,
    one_pass: bool = False,
) -> Array:
    """Errors of ``(x - mean) / sqrt(var + epsilon) * scale + bias``, in which those of mean and variance go on.

    Args:
        x: The input.
        y: The output, of the same shape.
        rows: Gives an array of x's shape as (groups, n): what has one mean and variance.
        epsilon: Of the norm.
        affine: Scale and bias.
        draw: Of the node.
        one_pass: Whether the variance is the difference of ``mean(x**2)`` and ``mean(x)**2``, as in ONNX's definition
            of GroupNormalization, rather than the mean of ``(x - mean)**2``.
    """
    values = rows(x)
    count = max(values.shape[-1], 1)
    mean = values.mean(axis=-1, keepdims=True)
    centered = values - mean
    variance = (centered**2).mean(axis=-1, keepdims=True)
    of_mean = added_up(values, draw)[:, None] / count + draw.inner * np.abs(mean) * draw.signs(mean, 1)
    if one_pass:
        size = variance + 2 * mean**2
        of_variance = added_up(values**2, draw, salt=1)[:, None] / count + draw.inner * size * draw.signs(size, 2)
        of_variance -= 2 * mean * of_mean
    else:
        of_variance = added_up(centered**2, draw, salt=1)[:, None] / count
    # A variance may come out as 0 or less, and then anything comes of it: so far, and no further, is it followed.
    inverse = 1 / np.sqrt(variance + epsilon)
    wrong = 1 / np.sqrt(np.maximum(variance + of_variance, 0.0) + epsilon)
    size = draw.inner * inverse * (np.abs(values) + np.abs(mean)) * draw.signs(values)
    errors = np.empty(x.shape)
    rows(errors)[...] = centered * (wrong - inverse) - of_mean * inverse + size
    if affine.scale is not None:
        errors *= affine.scale
    return errors + draw.relative(y)


def batch_norm(x: Array, y: Array, mean: Array, factor: Array, bias: Array, draw: Draw) -> Array:
    """Errors of ``(x - mean) factor + bias``, of which runtimes make ``x factor + (bias - mean factor)``."""
    size = (np.abs(x) + np.abs(mean)) * np.abs(factor)
    size += np.abs(bias)
    size *= draw.unit_rounding
    size *= draw.signs(y)
    return size


def scaled_by_norm(x: Array, y: Array, axes: tuple[int, ...], draw: Draw) -> Array:
    """Errors of x over a root of a sum of squares: those of the sum go on to all that it divides, by half."""
    squares = x * x
    rows, _ = _rows(squares, axes)
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    relative = (added_up(rows, draw) / np.maximum(rows.sum(-1), SMALLEST)).reshape(shape)
    return np.asarray(2 * draw.relative(y) - y * relative / 2)


def summation(equation: str) -> tuple[list[str], str]:
    """Return the labels of the inputs and of the output of an Einstein summation."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    return inputs.split(","), output if arrow else "".join(sorted(c for c in inputs if inputs.count(c) == 1))


def contracted(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Return the number of products in each sum of an Einstein summation."""
    inputs, output = summation(equation)
    sizes: dict[str, int] = {}
    for labels, shape in zip(inputs, shapes, strict=False):
        left, _, right = labels.partition("...")
        sizes |= dict(zip(left, shape, strict=False))
        sizes |= dict(zip(reversed(right), reversed(shape), strict=False))
    return math.prod(size for label, size in sizes.items() if label not in output)


def summation_growth(equation: str, values: Sequence[Array], y: Array, draw: Draw) -> float:
    """``growth_of`` the largest result of an Einstein summation of two operands; 0 of others."""
    inputs, output = summation(equation)
    plain = len(values) == len(inputs) == 2 and "." not in equation and all(len(set(i)) == len(i) for i in inputs)
    if not plain or not y.size:
        return 0.0
    place = dict(zip(output, np.unravel_index(int(np.abs(y).argmax()), y.shape), strict=True))
    parts = [v[tuple(place.get(c, slice(None)) for c in labels)] for v, labels in zip(values, inputs, strict=True)]
    left = ["".join(c for c in labels if c not in place) for labels in inputs]
    summed = "".join(dict.fromkeys("".join(left)))
    return growth_of([np.einsum(f"{left[0]},{left[1]}->{summed}", *parts), np.ones(())], draw)


def matmul_growth(a: Array, b: Array, y: Array, draw: Draw) -> float:
    """``growth_of`` the largest result of a matrix product of two stacks; 0 of vectors and short sums."""
    if min(a.ndim, b.ndim) < 2 or a.shape[-1] <= SHORT or not y.size:
        return 0.0
    *batch, row, column = map(int, np.unravel_index(int(np.abs(y).argmax()), y.shape))
    rows, columns = (np.broadcast_to(v, (*y.shape[:-2], *v.shape[-2:])) for v in (a, b))
    return growth_of([rows[tuple(batch)][row], columns[tuple(batch)][:, column]], draw)


def interpolated(x: Array, y: Array, axes: int, draw: Draw, *, cubic: bool = False) -> Array:
    """Errors of interpolation over the last axes: coordinates are rounded, of the size that these axes have.

    Args:
        x: The values between which is interpolated.
        y: The output.
        axes: How many of the last axes of x.
        draw: Of the node.
        cubic: Whether the weights are cubic polynomials, which do not add up to 1 exactly.
    """
    steps = [np.abs(np.diff(x, axis=-1 - n)).max(initial=0.0) * x.shape[-1 - n] for n in range(axes)]
    size = draw.unit_rounding * np.abs(y) * (6 if cubic else 1) + draw.inner * float(max(steps, default=0.0))
    errors: Array = draw.signs(y) * size
    return errors


def fourier(x: Array, y: Array, axis: int, draw: Draw) -> Array:
    """Errors of a Fourier transform: u log2(n) times the 2-norm of what is transformed (Higham, 24.1).

    Of sizes that are no power of 2, ONNX Runtime multiplies by chirps, whose angles go up to pi n: off by that many u.
    """
    norm = np.sqrt((np.abs(x) ** 2).sum(axis=axis, keepdims=True))
    count = max(x.shape[axis], 2)
    steps = 4.0 * count if count & (count - 1) else np.log2(count)
    size = float(norm.max(initial=0.0)) * draw.unit_rounding * steps
    if y.dtype.kind == "c":
        parts = np.ascontiguousarray(y).view(np.float64)
        return np.asarray(size * draw.signs(parts).astype(np.float64)).view(np.complex128)
    return np.asarray(size * draw.signs(y).astype(np.float64))


def spread(x: Array, y: Array, axes: tuple[int, ...], draw: Draw, *, root: bool) -> Array:
    """Errors of a variance, or with ``root`` of a standard deviation."""
    rows, count = _rows(x, axes)
    centered = rows - rows.mean(axis=-1, keepdims=True)
    errors = added_up(centered**2, draw).reshape(y.shape) / max(count, 1)
    return (errors / np.maximum(2 * y, SMALLEST) if root else errors) + draw.relative(y)
