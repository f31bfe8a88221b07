"""Comparing tensors with a float64 reference under a tolerance that the model itself sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import ml_dtypes
import numpy as np

from spdexport.errors import UsageError
from spdexport.factors import unit_rounding
from spdexport.names import shape_of
from spdexport.verification.result import SEVERITY, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array

FACTOR = 8.0
"""An error above this many floors fails. Correct files stay below 2; benchmarks/results/noise.md has the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """A tolerance that the user set in the place of the model's own: an error up to ``atol + rtol * |right|`` passes.

    It is about the size of finite errors alone: NaN, infinities, shapes, dtypes, integers and names are judged without.
    """

    atol: float
    rtol: float

    @classmethod
    def of(cls, atol: float | None, rtol: float | None) -> Self | None:
        """Return the tolerance; None where the user set neither. One that is not set is 0 beside the other.

        Raises:
            UsageError: A number is negative or not finite.
        """
        for name, value in (("atol", atol), ("rtol", rtol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(
                    f"The tolerance is {value:g}, which no error can be compared with.",
                    where=f"--{name}",
                    hint="Give a finite number of at least 0, or leave it out for the model's own tolerance.",
                )
        return None if atol is None and rtol is None else cls(atol=atol or 0.0, rtol=rtol or 0.0)

    def __str__(self) -> str:
        return f"--atol {self.atol:g} --rtol {self.rtol:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One tensor against its reference.

    Attributes:
        status: ``pass``, ``fail`` or ``inconclusive``.
        noise_ratio: Largest error over the floor; infinite where the two cannot be compared.
        max_abs: Largest error.
        reason: What differs, and where.
        is_value: Whether values differ, which some layer is to blame for; not where an output is missing, renamed or of
            another dtype.
    """

    status: Status
    noise_ratio: float
    max_abs: float
    reason: str = ""
    is_value: bool = True


def floor_of(reference: Array, own_dtype: Array, perturbed: Sequence[Array]) -> float:
    """Return the size of error that rounding explains, for one tensor on one input.

    The largest of: the error of the model's own dtype in torch, and the effect of simulated rounding at every operator;
    plus one unit in the last place of the largest value, and not less than what flushing small numbers to zero does.

    Args:
        reference: float64 or complex128.
        own_dtype: The same tensor in the model's dtype, as torch computes it or as float64 rounds to it.
        perturbed: The same in float64 with simulated rounding.
    """
    scale = float(np.abs(reference).max(initial=0.0))
    u = unit_rounding(own_dtype.dtype)
    ulp = 2 * u * 2.0 ** np.floor(np.log2(scale)) if 0 < scale < np.inf else float(np.finfo(np.float64).tiny)
    if 0 < scale < np.inf:
        ulp = max(ulp, _flushed(own_dtype.dtype))
    errors = [np.abs(t.astype(reference.dtype) - reference).max(initial=0.0) for t in (own_dtype, *perturbed)]
    return float(max(errors)) + float(ulp)


def compare(
    name: str,
    value: Array,
    reference: Array,
    floor: float,
    *,
    stable: bool = True,
    tolerance: Tolerance | None = None,
) -> Comparison:
    """Compare one tensor with its reference.

    Args:
        name: For the reason.
        value: What was computed.
        reference: In float64, or of the tensor's own integer or bool dtype.
        floor: The size of error that rounding explains.
        stable: For integer tensors, whether simulated rounding leaves them alone; if not, a difference proves nothing.
        tolerance: The user's, in the place of ``FACTOR`` floors.
    """
    if value.shape != reference.shape:
        return failed(f"{name} has shape {shape_of(value.shape)} where {shape_of(reference.shape)} is right")
    if reference.dtype.kind not in "fc":
        wrong = int((value != reference).sum())
        if not wrong:
            return Comparison(status=Status.PASS, noise_ratio=0.0, max_abs=0.0)
        if stable:
            return failed(f"{name} differs in {wrong} of {value.size} integer entries")
        return Comparison(
            status=Status.INCONCLUSIVE,
            noise_ratio=0.0,
            max_abs=0.0,
            reason=f"{name} differs in {wrong} integer entries, and so does the model itself under rounding",
        )
    got = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
    finite = np.isfinite(reference)
    odd = ~finite | ~np.isfinite(got)
    if odd.any():
        same = (np.isnan(got) & np.isnan(reference)) | (got == reference)
        wrong_kind = odd & ~same
        if wrong_kind.any():
            index = _index(wrong_kind)
            return failed(f"{name}[{index}] is {_at(got, index)} where {_at(reference, index)} is right")
    error = np.where(finite & np.isfinite(got), np.abs(np.where(odd, 0, got) - np.where(odd, 0, reference)), 0.0)
    worst = float(error.max(initial=0.0))
    ratio = worst / floor if worst else 0.0
    place = int(error.argmax()) if error.size else 0
    if tolerance is None:
        passes = ratio <= FACTOR
    else:
        excess = error - (tolerance.atol + tolerance.rtol * np.abs(np.where(odd, 0, reference)))
        passes = not (excess > 0).any()
        place = place if passes else int(excess.argmax())
    if passes:
        own = tolerance is None or ratio <= FACTOR
        told = "" if own else f"{name} is within the user's {tolerance}, and {ratio:.3g} times what rounding explains"
        return Comparison(status=Status.PASS, noise_ratio=ratio, max_abs=worst, reason=told)
    index = ", ".join(map(str, np.unravel_index(place, error.shape)))
    off = float(error.flat[place])
    limit = "" if tolerance is None else f", more than the user's {tolerance}"
    return Comparison(
        status=Status.FAIL,
        noise_ratio=ratio,
        max_abs=worst,
        reason=(
            f"{name}[{index}] is {_at(got, index):.9g} where {_at(reference, index):.9g} is right: "
            f"off by {off:.3g}, {off / floor:.3g} times what rounding explains{limit}"
        ),
    )


def _flushed(dtype: np.dtype[np.generic]) -> float:
    """The size below which a runtime may take numbers of a dtype for zero, or cannot tell them apart."""
    limits = ml_dtypes.finfo(dtype)
    # float16 is computed in float32, and rounded to its own subnormal numbers.
    return float(limits.smallest_subnormal if dtype == np.float16 else limits.tiny)


def worst(results: Sequence[Comparison]) -> Comparison:
    """Return the comparison with the worst status, among those the one with the largest ratio."""
    nothing = failed("the model has no outputs")
    return max(results, key=lambda c: (SEVERITY.index(c.status), c.noise_ratio), default=nothing)


def failed(reason: str) -> Comparison:
    """Return a failure where there is no value to measure."""
    return Comparison(status=Status.FAIL, noise_ratio=float("inf"), max_abs=float("inf"), reason=reason)


def _index(where: Array) -> str:
    return ", ".join(map(str, np.argwhere(where)[0]))


def _at(values: Array, index: str) -> complex | float:
    place = tuple(int(i) for i in index.split(", ") if i)
    item: complex | float = values[place].item()
    return item
