"""Verification of a torch program against the one it was made from, both in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from spdexport.arrays import to_numpy
from spdexport.factors import unit_rounding
from spdexport.installed import versions
from spdexport.reference.torch_reference import Noise, evaluate
from spdexport.rewrite.torch_graph import list_sites
from spdexport.verification.compare import Comparison
from spdexport.verification.edge import Edge
from spdexport.verification.inputs import Case, cases
from spdexport.verification.locate import first_divergent_layer
from spdexport.verification.result import Status, Verification
from spdexport.verification.run import MACS_BUDGET
from spdexport.verification.trial import make_trial
from spdexport.verification.vacuous import Outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.loading import ExampleInputs

Progress = Callable[[str], None]


def verify_programs(
    before: ExportedProgram,
    after: ExportedProgram,
    *,
    example: ExampleInputs | None,
    seed: int,
    artifacts: Mapping[str, str],
    progress: Progress = lambda _: None,
) -> Verification:
    """Check that a rewritten program computes what the original does: the single edge ``rewrite``.

    Args:
        before: The original, whose rounding sets the tolerance.
        after: The rewritten program, with the same inputs and outputs.
        example: Inputs that they take, which are a case themselves; None to generate all.
        seed: Of generated inputs and simulated rounding.
        artifacts: As ``Verification.artifacts``.
        progress: Told what is being done.
    """
    return _Run(before, after, seed, progress).verification(example, artifacts)


class _Run:
    """The state of one verification."""

    def __init__(self, before: ExportedProgram, after: ExportedProgram, seed: int, progress: Progress) -> None:
        self._before, self._after, self._seed, self._progress = before, after, seed, progress
        sites, _ = list_sites(before)
        self._macs = sum(site.weight.size * site.applications for site in sites)
        self._u = max((unit_rounding(site.weight.dtype) for site in sites), default=2.0**-24)
        self._edge = Edge("rewrite")
        self._notes: list[str] = []
        self._compared: list[str] = []
        self._seen, self._names = Outputs(), set[str]()

    def verification(self, example: ExampleInputs | None, artifacts: Mapping[str, str]) -> Verification:
        """Run all cases."""
        budget = MACS_BUDGET
        for index, case in enumerate(cases(self._before, example, own=example is not None, seed=self._seed)):
            cost = self._macs * case.batch
            if not case.own and index > 1 and cost > budget:
                self._notes.append(f"left out for time: {case.name}")
                continue
            budget -= cost
            self._progress(f"comparing outputs: {case.name}")
            self._case(case)
        self._vacuous()
        return Verification(
            edges=(self._edge.result(),),
            approximation=None,
            inputs=tuple(self._compared),
            notes=tuple(self._notes),
            seed=self._seed,
            versions=versions(),
            artifacts=artifacts,
        )

    def _case(self, case: Case) -> None:
        def perturbed(seed: int, u: float) -> dict[str, Array]:
            return _outputs(self._before, case, noise=Noise(seed=seed, unit_rounding=u))

        try:
            exact = _outputs(self._before, case)
            own = _outputs(self._before, case, float64=False)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            self._leave_out(case, f"the program does not take it ({_first_line(error)})")
            return
        trial = make_trial(case.name, exact, own, perturbed, seed=self._seed, unit_rounding=self._u)
        if trial.has_nan or trial.overflows:
            what = "the reference itself is NaN" if trial.has_nan else "the model overflows its own dtype"
            self._leave_out(case, what)
            return
        self._compared.append(case.name)
        self._seen.add(exact)
        self._names |= set(exact)
        found = trial.compare_exact(_outputs(self._after, case), exact)
        if found.status is Status.FAIL and self._edge.first is None:
            self._edge.first = first_divergent_layer(self._after, self._before, case, unit_rounding=self._u)
        self._edge.add(case.name, found)

    def _leave_out(self, case: Case, why: str) -> None:
        """A generated input may be one that shows nothing; with one that the program brought, that is the result."""
        if not case.own:
            self._notes.append(f"left out: {case.name}, since {why}")
            return
        self._compared.append(case.name)
        self._edge.add(case.name, Comparison(status=Status.INCONCLUSIVE, noise_ratio=0, max_abs=0, reason=why))

    def _vacuous(self) -> None:
        still = self._seen.still
        if not still:
            return
        if set(still) != self._names:
            self._notes.append(f"outputs that do not react to the inputs: {', '.join(still)}")
        elif self._edge.result().status is Status.PASS:
            self._edge.settle(Status.INCONCLUSIVE, "no output reacts to the inputs, so that they agree shows nothing")


def _outputs(
    program: ExportedProgram, case: Case, *, float64: bool = True, noise: Noise | None = None
) -> dict[str, Array]:
    """A program's tensor outputs, by number."""
    flat = evaluate(program, case.inputs.args, case.inputs.kwargs, float64=float64, noise=noise)
    return {f"output {i}": to_numpy(v) for i, v in enumerate(flat) if isinstance(v, torch.Tensor)}


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
