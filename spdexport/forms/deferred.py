"""Weights that are computed when they are asked for, so that folding a whole model never holds all its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import Array


class Numbers(Protocol):
    """What has a shape, and can be had as an array: an array itself, or ``Deferred``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""

    @property
    def size(self) -> int:
        """How many numbers there are."""

    def __array__(self) -> np.ndarray[Any, Any]:
        """The numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Deferred:
    """Numbers that are computed each time they are asked for, by ``numpy.asarray``, and kept by whoever asks.

    Attributes:
        shape: The size of each axis.
        make: Computes them; the result has that shape.
    """

    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Compute the numbers, in numpy's protocol: they are a new array, or a view that is never written to."""
        made = self.make()
        if made.shape != self.shape:
            raise ValueError(f"numbers of shape {made.shape} were announced as {self.shape}")
        return np.array(made, dtype=dtype, copy=copy)


def changed(numbers: Numbers, shape: tuple[int, ...], change: Callable[[Array], Array]) -> Numbers:
    """``change(numbers)``, of this shape: of an array at once, as views cost nothing, else when it is asked for."""
    if isinstance(numbers, Deferred):
        return Deferred(shape, lambda: change(np.asarray(numbers)))
    return change(np.asarray(numbers))
