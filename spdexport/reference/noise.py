"""Simulated rounding: who draws the errors of a node, and where they are added.

Signs are a function of the value that is rounded, as in real rounding: equal values err alike, and do not average out.
They depend on the seed, on the node's name and on how often it ran before, so that the order of evaluation does not
matter. `rounding` has the sizes of the errors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from spdexport.conv import Array

FLOAT32 = 2.0**-24
"""The unit rounding of float32."""

SHORT = 2.0**-12
"""From this unit rounding on, a type is taken to be computed in float32 inside of an operator."""

SMALLEST = 2.0**-126
"""The smallest normal float32: what is below may be flushed to zero."""


class Magnitudes:
    """The sizes of products, |W| |x|, which the runs with noise of one case share: they differ by rounding alone.

    Args:
        budget: Bytes to keep; what is beyond is computed again in each run.
    """

    def __init__(self, budget: int = 2**27) -> None:
        self._room = budget
        self._kept: dict[tuple[str, int], Array] = {}

    def of(self, node: tuple[str, int], compute: Callable[[], Array]) -> Array:
        """Return the size of a node's product, by the node's name and how often it ran before."""
        if node in self._kept:
            return self._kept[node]
        size = compute()
        with np.errstate(all="ignore"):
            low = size.astype(np.float32)
        if low.nbytes <= self._room and np.isfinite(low).all() and low.min(initial=1.0) > SMALLEST:
            self._room -= low.nbytes
            self._kept[node] = low
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Simulated rounding: every operator that rounds gets an error by its own model.

    Attributes:
        seed: Not negative. The errors of a node depend on it, on the node's name and on how often it ran before.
        unit_rounding: u, such as 2**-24 for float32.
        magnitudes: What the runs of one case share; None for a run by itself.
    """

    seed: int
    unit_rounding: float
    magnitudes: Magnitudes | None = field(default=None, compare=False, repr=False)

    def draw(self, node: str, times: int) -> Draw:
        """Return the errors of one call of a node, whatever ran before it."""
        digest = hashlib.sha256(f"{self.seed} {times} {node}".encode()).digest()
        return Draw(unit_rounding=self.unit_rounding, key=int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The random part of the errors of one call of one node.

    Attributes:
        unit_rounding: u of the results.
        key: 64 random bits.
    """

    unit_rounding: float
    key: int

    @property
    def inner(self) -> float:
        """The unit rounding of what is computed inside of an operator."""
        return self.unit_rounding if self.unit_rounding < SHORT else FLOAT32

    def signs(self, values: Array, salt: int = 0) -> Array:
        """1 or -1 in float32 for each value, the same for equal values; of real ones."""
        with np.errstate(all="ignore"):
            bits = values.astype(np.float32).view(np.uint32)
        # A multiplication by a random odd number spreads each bit upwards, the shift brings high ones down.
        bits *= np.uint32(((self.key >> 8) ^ (salt * 0x9E3779B1)) & 0xFFFFFFFF | 1)
        bits ^= bits >> np.uint32(15)
        bits *= np.uint32((self.key >> 32) & 0xFFFFFFFF | 1)
        bits &= np.uint32(0x80000000)
        bits |= np.uint32(0x3F800000)
        return bits.view(np.float32)

    def fraction(self, salt: int = 0) -> float:
        """Return a number from 0 to 1."""
        return ((self.key + salt * 0x9E3779B97F4A7C15) * 0xD1342543DE82EF95 >> 11 & 0xFFFFF) / 2**20

    def relative(self, values: Array) -> Array:
        """Errors of a correctly rounded operator: u |y|, none where y has no more bits than numbers of the type."""
        if values.dtype.kind == "c":
            parts = np.ascontiguousarray(values).view(np.float64)
            return self.relative(parts).astype(np.float64).view(np.complex128)
        with np.errstate(all="ignore"):
            low = values.astype(np.float32)
            errors: Array = self.signs(low) * low * np.float32(self.unit_rounding)
        spare = int(53 + np.log2(self.unit_rounding))
        exact = (values.view(np.uint64) << np.uint64(64 - spare)) == 0 if spare > 0 else np.zeros(values.shape, bool)
        return np.where(exact, np.float32(0), errors) if exact.any() else errors

    def flushed(self, values: Array) -> Array:
        """Errors of numbers that are below the smallest normal one: they may be taken for zero."""
        small: Array = np.where(np.abs(values) < SMALLEST, values, 0.0)
        return small if self.signs(np.zeros(1))[0] < 0 else -small

    def perturbed(self, values: Array | None, factor: float = 1.0, salt: int = 1) -> Array | None:
        """Return an operand with relative errors of some unit roundings; integers and what is not there as they are."""
        if values is None or values.dtype != np.float64:
            return values
        return values * (1 + factor * self.inner * self.signs(values, salt).astype(np.float64))


def rounds(value: object) -> bool:
    """Return whether a result can have errors: an array of floats with values."""
    return isinstance(value, np.ndarray) and value.dtype in (np.float64, np.complex128) and value.size > 0


def with_errors(y: Array, errors: Array) -> Array:
    """Return a result with its errors; infinities and NaN, and errors that are, come to none."""
    with np.errstate(all="ignore"):
        if not np.isfinite(errors.sum()):
            errors = np.where(np.isfinite(errors), errors, 0.0)
        return np.asarray(y + errors)


def undisturbed(
    nodes: Sequence[tuple[Sequence[str], Sequence[str], bool, bool]], data: Collection[str]
) -> frozenset[int]:
    """Return the nodes whose results are of no input and decide: sizes that are computed in floats, and thresholds.

    An error there would not be one of rounding, but another shape.

    Args:
        nodes: For each in order: what it reads, what it gives, whether its result is one of shapes whatever it reads,
            and whether it makes a decision of what it reads (a rounding to whole numbers, a comparison).
        data: The names of what depends on the inputs.
    """
    moving = set(data)
    for reads, gives, is_shape, _ in nodes:
        if not is_shape and not moving.isdisjoint(reads):
            moving.update(gives)
    deciding: set[str] = set()
    found = []
    for index, (reads, gives, _, decides) in reversed(list(enumerate(nodes))):
        still = moving.isdisjoint(gives)
        if still and not deciding.isdisjoint(gives):
            found.append(index)
        if decides or index in found[-1:]:
            deciding.update(name for name in reads if name and name not in moving)
    return frozenset(found)
