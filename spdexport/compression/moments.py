"""First and second moments of what a layer reads: sums over patches of its input, which add up over shards of data.

A row is what one output location of one sample reads: the patch x, in the order of the weight's columns (channel, then
kernel taps), and beside it perhaps the target y, what the dense network has at that place. Of all rows a random part
is taken, of float64 sums over them all else is worked out: Sigma = E x x' is what tr(dW Sigma dW') is measured with
(Zhang et al. 2015, arXiv 1505.06798), and G = E x x' with R = E y x' is what a refit solves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.conv import Array, ConvSpec, FloatArray

ROWS = 32_768
"""Rows that a layer's moments are taken from, in all.

A layer of ResNet-50 has up to 3 million of them for 256 images, of which neighbours say nearly the same. These are 7
for each column of the largest Sigma."""

FULL_PATCH = 4_608
"""The longest patch whose Sigma is held in full: 162 MiB in float64. Longer ones have a sketch in its place."""

SKETCH = 1_024
"""Rows of a sketch: it tells tr(dW Sigma dW') to 4% or better (one deviation, sqrt(2 / rows) where dW has rank 1)."""

_CHUNK = 1 << 23
"""Numbers that are worked on at a time: 64 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Sums over rows, each group of the layer by itself; the sums of two shards are the sum of both.

    Attributes:
        count: The number of rows.
        inputs: The sum of x, shape (groups, patch).
        second: The sum of x x', shape (groups, patch, patch); None for patches longer than ``FULL_PATCH``.
        sketch: The sum of e (x', 1), with e of independent signs over the root of their number, so that E[S' S] is the
            sum of x x'; shape (groups, ``SKETCH``, patch + 1). None where ``second`` is not.
        targets: The sum of y, shape (groups, out / groups); None without targets, as the two that follow.
        target_second: The sum of y y', shape (groups, out / groups, out / groups).
        cross: The sum of y x', shape (groups, out / groups, patch).
    """

    count: int
    inputs: FloatArray
    second: FloatArray | None
    sketch: FloatArray | None = None
    targets: FloatArray | None = None
    target_second: FloatArray | None = None
    cross: FloatArray | None = None

    @property
    def mean(self) -> FloatArray:
        """E x, shape (groups, patch)."""
        return self.inputs / max(self.count, 1)

    @property
    def target_mean(self) -> FloatArray:
        """E y, shape (groups, out / groups)."""
        return _needed(self.targets) / max(self.count, 1)

    def covariance(self) -> FloatArray:
        """E (x - E x) (x - E x)', shape (groups, patch, patch)."""
        return _centred(_needed(self.second), self.inputs, self.inputs, self.count)

    def cross_covariance(self) -> FloatArray:
        """E (y - E y) (x - E x)', shape (groups, out / groups, patch)."""
        return _centred(_needed(self.cross), _needed(self.targets), self.inputs, self.count)

    def target_covariance(self) -> FloatArray:
        """E (y - E y) (y - E y)', shape (groups, out / groups, out / groups)."""
        targets = _needed(self.targets)
        return _centred(_needed(self.target_second), targets, targets, self.count)

    def sketched(self) -> FloatArray:
        """Return F of shape (groups, rows, patch) for which F' F is near to the covariance of x."""
        sketch = _needed(self.sketch)
        return (sketch[..., :-1] - sketch[..., -1:] * self.mean[:, None]) / math.sqrt(max(self.count, 1))

    def merge(self, other: Self) -> Self:
        """Return the sums over the rows of both.

        Raises:
            ValueError: They are of layers of different geometry, or one has targets and the other has none.
        """
        sums: dict[str, FloatArray | None] = {}
        for name, own, its in ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)[1:]):
            if (own is None) != (its is None) or (own is not None and own.shape != its.shape):
                raise ValueError(f"moments of different layers do not merge: {name}")
            sums[name] = None if own is None else own + its
        return type(self)(count=self.count + other.count, **sums)  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Array]:
        """Return the sums as plain arrays, from which ``from_arrays`` makes the same moments."""
        found = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        return {"count": np.asarray(self.count, dtype=np.int64)} | {k: v for k, v in found.items() if v is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """Return the moments that ``arrays`` was called on.

        Raises:
            ValueError: Arrays are missing, are not float64, or do not fit each other.
        """
        known = {f.name for f in fields(cls)}
        values = {name: np.asarray(array) for name, array in arrays.items()}
        if not {"count", "inputs"} <= values.keys() <= known or ("second" in values) == ("sketch" in values):
            raise ValueError(f"these arrays are not moments: {', '.join(sorted(values))}")
        count = values.pop("count")
        if count.shape != () or count.dtype.kind != "i" or count < 0:
            raise ValueError("the number of rows is not a number of rows")
        if values["inputs"].ndim != 2 or any(v.dtype != np.float64 for v in values.values()):
            raise ValueError("the sums are not float64 or have other axes than sums of moments")
        groups, patch = values["inputs"].shape
        out = values["targets"].shape[-1] if "targets" in values else 0
        expected = {"inputs": (groups, patch), "second": (groups, patch, patch), "targets": (groups, out)}
        expected |= {"target_second": (groups, out, out), "cross": (groups, out, patch)}
        for name, array in values.items():
            fits = array.shape == expected[name] if name in expected else array.shape[::2] == (groups, patch + 1)
            if not fits:
                raise ValueError(f"the sums {name} have shape {array.shape}, which does not fit {(groups, patch)}")
        return cls(count=int(count), **{"second": None, **values})  # type: ignore[arg-type]


def moments_of(
    spec: ConvSpec,
    inputs: Array,
    targets: Array | None = None,
    *,
    rng: np.random.Generator,
    per_sample: int | None = None,
    full_patch: int = FULL_PATCH,
) -> Moments:
    """Return the moments of one batch.

    Args:
        spec: The layer's geometry.
        inputs: What the layer reads: (N, in_channels, *spatial), without spatial axes (..., in_channels).
        targets: What it is to come near to: (N, out_channels, *positions) or (..., out_channels).
        rng: Draws the locations, independently for each sample, and the signs of a sketch.
        per_sample: How many locations of each sample are taken; all if None (``locations_per_sample`` tells how many).
        full_patch: The longest patch that has a full Sigma.

    Raises:
        ValueError: The targets have other locations than the layer's output, or other channels.
    """
    whole = spec.patch <= full_patch
    g, patch, out = spec.groups, spec.patch, spec.group_out
    square = np.zeros((g, patch, patch) if whole else (g, SKETCH, patch + 1))
    inputs_sum, count = np.zeros((g, patch)), 0
    target_sum = target_square = cross = None
    if targets is not None:
        target_sum, target_square, cross = np.zeros((g, out)), np.zeros((g, out, out)), np.zeros((g, out, patch))
    for x, y in _rows(spec, inputs, targets, rng=rng, per_sample=per_sample):
        count += x.shape[1]
        inputs_sum += x.sum(axis=1)
        for group, rows in enumerate(x):
            if whole:
                square[group] += rows.T @ rows
            else:
                signs = rng.choice((-1.0, 1.0), (len(rows), SKETCH)) / math.sqrt(SKETCH)
                square[group, :, :patch] += signs.T @ rows
                square[group, :, patch] += signs.sum(axis=0)
        if y is not None and target_sum is not None and target_square is not None and cross is not None:
            target_sum += y.sum(axis=1)
            for group, (rows, answers) in enumerate(zip(x, y, strict=True)):
                target_square[group] += answers.T @ answers
                cross[group] += answers.T @ rows
    return Moments(
        count=count,
        inputs=inputs_sum,
        second=square if whole else None,
        sketch=None if whole else square,
        targets=target_sum,
        target_second=target_square,
        cross=cross,
    )


def locations_per_sample(samples: int, *, rows: int = ROWS) -> int:
    """Return how many locations of each sample to take, for ``rows`` in all or a few more."""
    return max(-(-rows // max(samples, 1)), 1)


def _rows(
    spec: ConvSpec,
    inputs: Array,
    targets: Array | None,
    *,
    rng: np.random.Generator,
    per_sample: int | None,
) -> Iterator[tuple[FloatArray, FloatArray | None]]:
    """Yield rows by the chunk: x of shape (groups, rows, patch), y of shape (groups, rows, out / groups) or None."""
    ends = _ends(spec, inputs)
    samples, *sizes = ends.shape if ends.ndim else (1,)
    expected = (samples, spec.out_channels, *sizes) if spec.axes else (*inputs.shape[:-1], spec.out_channels)
    if targets is not None and targets.shape != expected:
        raise ValueError(f"targets {targets.shape} are not the output {expected} of {spec.describe()}")
    places = math.prod(sizes)
    taken = min(per_sample or places, places)
    chosen = np.arange(samples * places)
    if taken < places:
        keys = rng.random((samples, places))
        within = np.argpartition(keys, taken - 1, axis=1)[:, :taken]
        chosen = (within + places * np.arange(samples)[:, None]).ravel()
    table, taps = _table(spec, inputs)
    starts = ends.ravel()[chosen]
    answers = None if targets is None else _channels_last(spec, targets)
    step = max(_CHUNK // max(spec.patch * spec.groups, 1), 1)
    for start in range(0, len(chosen), step):
        part = slice(start, start + step)
        x = table[starts[part, None] + taps].reshape(-1, len(taps), spec.groups, spec.in_channels // spec.groups)
        x = np.ascontiguousarray(x.transpose(2, 0, 3, 1), dtype=np.float64).reshape(spec.groups, len(x), spec.patch)
        y = None
        if answers is not None:
            y = answers[chosen[part]].reshape(len(x[0]), spec.groups, spec.group_out)
            y = np.ascontiguousarray(y.transpose(1, 0, 2), dtype=np.float64)
        yield x, y


def _channels_last(spec: ConvSpec, values: Array) -> Array:
    """(N, channels, *positions) or (..., channels) as (N * positions, channels)."""
    last = np.moveaxis(values, 1, -1) if spec.axes else values
    return np.ascontiguousarray(last).reshape(-1, values.shape[1 if spec.axes else -1])


def _frame(spec: ConvSpec, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """How far apart the input's locations are spaced, and the zeros (negative: the crop) before and after each axis.

    Of a transposed convolution, y[q] sums W[k] x[p] over s p + d k - a = q: it is the convolution, with the kernel
    reversed and stride 1, of x spaced out by s.
    """
    if not spec.transposed:
        return (1,) * len(sizes), spec.padding
    reach = (d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True))
    around = zip(reach, spec.padding, spec.output_padding, strict=True)
    return spec.stride, tuple((r - before, r - after + more) for r, (before, after), more in around)


def _framed(spec: ConvSpec, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the input, spaced and with its zeros around it."""
    spaces, around = _frame(spec, sizes)
    return tuple((n - 1) * s + 1 + sum(zeros) for n, s, zeros in zip(sizes, spaces, around, strict=True))


def _ends(spec: ConvSpec, inputs: Array) -> Array:
    """The row of ``_table`` in which each output location's patch begins: shape (N, *positions).

    A linear layer's are (N, positions) for all of its axes between the first and the last.
    """
    if not spec.axes:
        return np.arange(math.prod(inputs.shape[:-1])).reshape(len(inputs) if inputs.ndim > 1 else 1, -1)
    samples, sizes = len(inputs), _framed(spec, inputs.shape[2:])
    rows = np.arange(samples * math.prod(sizes)).reshape(samples, *sizes)
    spans = (d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True))
    steps = (1,) * spec.axes if spec.transposed else spec.stride
    within = (slice(0, n - span, s) for n, span, s in zip(sizes, spans, steps, strict=True))
    return rows[(slice(None), *within)]


def _table(spec: ConvSpec, inputs: Array) -> tuple[Array, Array]:
    """All locations of the input, spaced and with zeros around it, as rows of channels; and where a patch's taps are.

    Returns:
        Shape (N * locations, in_channels); and shape (prod(kernel),): the rows of the taps, from the patch's beginning.
    """
    if not spec.axes:
        return inputs.reshape(-1, inputs.shape[-1]), np.zeros(1, dtype=np.int64)
    spaces, around = _frame(spec, inputs.shape[2:])
    sizes = _framed(spec, inputs.shape[2:])
    framed = np.zeros((len(inputs), *sizes, inputs.shape[1]), dtype=inputs.dtype)
    source, target = [], []
    for n, size, space, (before, _) in zip(inputs.shape[2:], sizes, spaces, around, strict=True):
        kept = [p for p in range(n) if 0 <= p * space + before < size]
        first, last = (kept[0], kept[-1] + 1) if kept else (0, 0)
        source.append(slice(first, last))
        target.append(slice(first * space + before, (last - 1) * space + before + 1, space) if kept else slice(0, 0))
    framed[(slice(None), *target)] = np.moveaxis(inputs[(slice(None), slice(None), *source)], 1, -1)
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(spec.axes)]
    taps = np.zeros((), dtype=np.int64)
    for kernel, dilation, step in zip(spec.kernel, spec.dilation, steps, strict=True):
        offsets = dilation * step * np.arange(kernel)
        taps = taps[..., None] + (offsets[::-1] if spec.transposed else offsets)
    return framed.reshape(-1, inputs.shape[1]), taps.ravel()


def _centred(products: FloatArray, left: FloatArray, right: FloatArray, count: int) -> FloatArray:
    """E (a - E a) (b - E b)' from the sums of a b', a and b."""
    n = max(count, 1)
    return products / n - (left / n)[..., :, None] * (right / n)[..., None, :]


def _needed(values: FloatArray | None) -> FloatArray:
    """The sums, where they were taken."""
    if values is None:
        raise ValueError("these moments were taken without targets, or without a full Sigma")
    return values
