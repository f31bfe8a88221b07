"""One case run through the programs: the float64 reference, and the size of error that rounding explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from spdexport.arrays import to_numpy
from spdexport.reference.torch_reference import Noise, evaluate
from spdexport.verify.compare import Comparison, compare_all, floor_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.verify.inputs import Case

NOISE_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """What every edge is compared with, on one case.

    Attributes:
        case: The inputs.
        names: Of the outputs, in order.
        reference: The intended program's outputs: floats in float64, integers in their own dtype.
        own: The same program in its own dtypes, as torch computes it.
        floors: The size of error that rounding explains, for each float output.
        stable: Whether simulated rounding leaves an integer output alone.
    """

    case: Case
    names: tuple[str, ...]
    reference: Mapping[str, Array]
    own: Mapping[str, Array]
    floors: Mapping[str, float]
    stable: Mapping[str, bool]

    def compare(self, values: Mapping[str, Array]) -> Comparison:
        """The worst of these outputs against the reference."""
        return compare_all(self.names, values, self.reference, self.floors, self.stable)

    @property
    def has_nan(self) -> bool:
        """Whether the reference itself is not a number somewhere."""
        return any(np.isnan(r).any() for r in self.reference.values() if r.dtype.kind in "fc")

    @property
    def overflows(self) -> bool:
        """Whether the model's own dtype cannot hold what float64 can."""
        return any(
            bool((np.isfinite(self.reference[n]) & ~np.isfinite(self.own[n].astype(np.float64))).any())
            for n in self.names
            if self.reference[n].dtype.kind == "f"
        )


def run_trial(program: ExportedProgram, names: Sequence[str], case: Case, *, seed: int, unit_rounding: float) -> Trial:
    """Evaluate the intended program in float64, in its own dtypes, and with simulated rounding.

    Args:
        program: The program that the file is to compute.
        names: Names for its tensor outputs.
        case: The inputs.
        seed: Of the simulated rounding.
        unit_rounding: Of the model's dtype.
    """
    reference = outputs(program, names, case)
    own = outputs(program, names, case, float64=False)
    noisy = [
        outputs(program, names, case, noise=Noise(seed=seed * 1000 + run, unit_rounding=unit_rounding))
        for run in range(NOISE_RUNS)
    ]
    floors, stable = {}, {}
    for name in names:
        if reference[name].dtype.kind in "fc":
            finite = np.isfinite(reference[name])
            floors[name] = floor_of(
                np.where(finite, reference[name], 0),
                np.where(finite, own[name], 0).astype(own[name].dtype),
                [np.where(finite, n[name], 0) for n in noisy],
            )
            stable[name] = True
        else:
            floors[name] = 0.0
            stable[name] = all((n[name] == reference[name]).all() for n in (own, *noisy))
    return Trial(case=case, names=tuple(names), reference=reference, own=own, floors=floors, stable=stable)


def outputs(
    program: ExportedProgram, names: Sequence[str], case: Case, *, float64: bool = True, noise: Noise | None = None
) -> dict[str, Array]:
    """A program's tensor outputs by name."""
    flat = evaluate(program, case.inputs.args, case.inputs.kwargs, float64=float64, noise=noise)
    return named(names, flat)


def named(names: Sequence[str], values: Sequence[object]) -> dict[str, Array]:
    """Tensors of a flat output by name; what is no tensor (None, numbers) has no place in an ONNX file."""
    tensors = [to_numpy(v) for v in values if isinstance(v, torch.Tensor)]
    return dict(zip(names, tensors, strict=True))
