"""The functions that bring the output of a causal-importance function near the interval from 0 to 1.

The formulas are those of SPD's forward pass. Its ``leaky_hard`` is two functions; the one that makes masks is here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import FloatArray

LEAK = 0.01
"""The slope of the leaky parts."""

SWISH_BETA = 10.0
"""How sharp the corners of ``swish_hard`` are."""


class Sigmoid(StrEnum):
    """The kinds, as ``sigmoid_type`` of a run calls them; ``paper`` is the only one of SPD's paper branch."""

    LEAKY_HARD = "leaky_hard"
    NORMAL = "normal"
    HARD = "hard"
    UPPER_LEAKY_HARD = "upper_leaky_hard"
    LOWER_LEAKY_HARD = "lower_leaky_hard"
    SWISH_HARD = "swish_hard"
    PAPER = "paper"


def squash(x: FloatArray, sigmoid: Sigmoid) -> FloatArray:
    """Return the importances, in float64, of any shape.

    Args:
        x: What the function gives.
        sigmoid: ``upper_leaky_hard`` may give more than 1, and ``paper`` less than 0.
    """
    match sigmoid:
        case Sigmoid.LEAKY_HARD | Sigmoid.HARD | Sigmoid.LOWER_LEAKY_HARD:
            return np.clip(x, 0.0, 1.0)
        case Sigmoid.NORMAL:
            return _logistic(x)
        case Sigmoid.UPPER_LEAKY_HARD:
            return np.where(x > 1, 1 + LEAK * (x - 1), np.clip(x, 0.0, 1.0))
        case Sigmoid.PAPER:
            return np.where(x > 0, np.minimum(x, 1.0), LEAK * x)
        case Sigmoid.SWISH_HARD:
            return _swish_hard(x)


def _swish_hard(x: FloatArray) -> FloatArray:
    """A hard sigmoid with rounded corners, made of x sigmoid(beta x)."""
    scale = shift = 0.5
    centred = x - shift

    def swish(z: FloatArray) -> FloatArray:
        return np.asarray(z * _logistic(SWISH_BETA * z))

    def mirrored(z: FloatArray) -> FloatArray:
        return np.asarray(z * _logistic(-SWISH_BETA * z))

    below = mirrored(centred - scale) - swish(centred)
    above = swish(centred + scale) - mirrored(centred)
    return np.asarray(shift + below + above)


def _logistic(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)) without an overflow."""
    decay = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay)))
