"""One case: the float64 reference of each output, and the size of error that rounding explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from spdexport.verification.compare import Comparison, Tolerance, compare, failed, floor_of, worst

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array

NOISE_RUNS = 3

REFERENCE_UNIT_ROUNDING = 2.0**-50
"""The finest rounding that can be told from that of the reference and of the factors, which are in float64."""

Perturb = Callable[[int, float], "Mapping[str, Array]"]
"""Gives all outputs in float64 with simulated rounding, from a seed and a unit rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """What every edge is compared with, on one case.

    Attributes:
        name: Of the case.
        reference: The outputs by name, in order: floats in float64, integers in their own dtype.
        own: The same in the dtypes that the model has them, as an honest evaluation in these dtypes gives them.
        floors: The size of error that rounding explains, for each float output.
        stable: Whether simulated rounding leaves an integer output alone.
        perturb: Gives outputs with simulated rounding.
        seed: Of the simulated rounding.
        tolerance: The user's; None for the model's own.
        unsettled: The float outputs of which simulated rounding makes infinities or NaN where there are none, as of the
            logarithm of a probability that may be rounded to 0.
    """

    name: str
    reference: Mapping[str, Array]
    own: Mapping[str, Array]
    floors: Mapping[str, float]
    stable: Mapping[str, bool]
    perturb: Perturb
    seed: int
    tolerance: Tolerance | None = None
    unsettled: tuple[str, ...] = ()

    def compare(self, values: Mapping[str, Array], reference: Mapping[str, Array] | None = None) -> Comparison:
        """Return the worst of some outputs against the reference, or against another one to the same tolerance.

        An output that is missing, there is no reference for, or that has another dtype fails.
        """
        wrong = [f"there is a further output {name}" for name in values if name not in self.reference]
        wrong += [f"{name} is missing" for name in self.reference if name not in values]
        wrong += [
            f"{name} is {values[name].dtype} where {own.dtype} is right"
            for name, own in self.own.items()
            if name in values and values[name].dtype != own.dtype
        ]
        if wrong:
            return replace(failed("; ".join(wrong)), is_value=False)
        return self.compare_exact(values, reference or self.reference)

    def compare_exact(self, values: Mapping[str, Array], reference: Mapping[str, Array]) -> Comparison:
        """Return the worst of outputs that are in float64, whatever the model's dtypes are, against a reference."""
        return worst(
            [
                compare(
                    name,
                    values[name],
                    exact,
                    self.floors[name],
                    stable=self.stable[name],
                    tolerance=self.tolerance,
                )
                for name, exact in reference.items()
            ]
        )

    def spread(self, first: Mapping[str, Array], second: Mapping[str, Array]) -> Comparison:
        """Return how far a second run is from a first one, by the same tolerance; an integer that differs counts."""
        found = []
        for name, value in first.items():
            exact = value.astype(np.float64) if value.dtype.kind not in "biufc" else value
            floor = self.floors.get(name, 0.0) or float(np.finfo(np.float64).tiny)
            found.append(compare(name, second[name], exact, floor, tolerance=self.tolerance))
        return worst(found)

    def rounded_to(self, unit_rounding: float) -> Trial:
        """Return the same trial with the model's tolerance at another unit rounding."""
        return make_trial(
            self.name, self.reference, self.own, self.perturb, seed=self.seed, unit_rounding=unit_rounding
        )

    @property
    def has_nan(self) -> bool:
        """Whether the reference itself is not a number somewhere."""
        return any(np.isnan(r).any() for r in self.reference.values() if r.dtype.kind in "fc")

    @property
    def overflows(self) -> bool:
        """Whether the model's own dtypes cannot hold what float64 can."""
        return any(
            bool((np.isfinite(exact) & ~np.isfinite(self.own[name].astype(exact.dtype))).any())
            for name, exact in self.reference.items()
            if exact.dtype.kind in "fc"
        )


def make_trial(
    name: str,
    reference: Mapping[str, Array],
    own: Mapping[str, Array],
    perturb: Perturb,
    *,
    seed: int,
    unit_rounding: float,
    tolerance: Tolerance | None = None,
) -> Trial:
    """Measure the tolerance of a case.

    Args:
        name: Of the case.
        reference: As ``Trial.reference``.
        own: As ``Trial.own``.
        perturb: Gives outputs with simulated rounding.
        seed: Of the simulated rounding.
        unit_rounding: Of the model's dtype.
        tolerance: As ``Trial.tolerance``.
    """
    u = max(unit_rounding, REFERENCE_UNIT_ROUNDING)
    noisy = [perturb(seed * 1000 + run, u) for run in range(NOISE_RUNS)]
    floors, stable, unsettled = {}, {}, []
    for output, exact in reference.items():
        perturbed = [n[output] for n in noisy]
        if exact.dtype.kind in "fc":
            floors[output] = masked_floor(exact, own[output], perturbed)
            stable[output] = True
            if any(p.shape == exact.shape and (np.isfinite(exact) & ~np.isfinite(p)).any() for p in perturbed):
                unsettled.append(output)
        else:
            floors[output] = 0.0
            stable[output] = all(np.array_equal(n, exact) for n in (own[output], *perturbed))
    return Trial(
        name=name,
        reference=reference,
        own=own,
        floors=floors,
        stable=stable,
        perturb=perturb,
        seed=seed,
        tolerance=tolerance,
        unsettled=tuple(unsettled),
    )


def masked_floor(exact: Array, own: Array, perturbed: Sequence[Array]) -> float:
    """``floor_of`` over the entries whose reference is finite, without what simulated rounding makes infinite."""
    finite = np.isfinite(exact)
    return floor_of(
        np.where(finite, exact, 0),
        np.where(finite, own, np.zeros((), own.dtype)).astype(own.dtype),
        [np.where(finite, np.where(np.isfinite(p), p, exact), 0) for p in perturbed if p.shape == exact.shape],
    )


def rounded(exact: Array, dtype: np.dtype[np.generic]) -> Array:
    """Return a float64 reference rounded to the dtype that the model has; integers and equal dtypes as they are."""
    if exact.dtype.kind not in "fc" or exact.dtype == dtype:
        return exact
    with np.errstate(over="ignore"):  # an overflow is told by Trial.overflows
        return exact.astype(dtype)


def largest_finite(dtype: np.dtype[np.generic]) -> float:
    """Return the largest finite number of a float dtype, ml_dtypes' included."""
    return float(ml_dtypes.finfo(dtype).max)
