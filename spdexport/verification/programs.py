"""Verification of a torch program against the one it was made from, both in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from spdexport.arrays import to_numpy
from spdexport.errors import first_line
from spdexport.factors import unit_rounding
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.torch_graph import list_sites
from spdexport.verification.check import Check
from spdexport.verification.edge import Edge
from spdexport.verification.frame import NOT_TAKEN, NotTakenError, Verifier
from spdexport.verification.inputs import Case, cases, feeds
from spdexport.verification.locate import first_divergent_layer
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.loading import ExampleInputs
    from spdexport.reference.noise import Noise
    from spdexport.verification.check import Progress
    from spdexport.verification.result import Verification
    from spdexport.verification.trial import Trial


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
    run = _ProgramVerifier(before, after, example, Check(seed=seed, progress=progress))
    run.run()
    run.judge_still()
    return run.result(edges=(run.rewrite.result(),), artifacts=artifacts)


class _ProgramVerifier(Verifier[Case]):
    """The state of one verification."""

    def __init__(
        self, before: ExportedProgram, after: ExportedProgram, example: ExampleInputs | None, check: Check
    ) -> None:
        self._before, self._after, self._example = before, after, example
        sites, _ = list_sites(before)
        self._macs = sum(site.weight.size * site.applications for site in sites)
        self.rewrite = Edge("rewrite")
        u = max((unit_rounding(site.weight.dtype) for site in sites), default=2.0**-24)
        super().__init__(check, None, u, (self.rewrite,))

    @property
    def macs_per_sample(self) -> float:
        """Of the original."""
        return self._macs

    def cases(self) -> Iterator[Case]:
        """Return the inputs that the program brought, and generated ones."""
        return cases(self._before, self._example, own=self._example is not None, seed=self._check.seed)

    def feeds(self, case: Case) -> Mapping[str, Array]:
        """Return the inputs by the program's names."""
        return feeds(self._before, case.inputs)

    def reference(self, case: Case) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return what the original gives, in float64 and in its own dtypes."""
        try:
            return _outputs(self._before, case), _outputs(self._before, case, float64=False)
        except NOT_TAKEN as error:
            raise NotTakenError(first_line(error)) from error

    def perturbed(self, case: Case, noise: Noise) -> Mapping[str, Array]:
        """Return what the original gives, with simulated rounding."""
        return _outputs(self._before, case, noise=noise)

    def compare(self, case: Case, trial: Trial) -> None:
        """Compare the rewritten program with the original."""
        found = trial.compare_exact(_outputs(self._after, case), trial.reference)
        if found.status is Status.FAIL and self.rewrite.first is None:
            self.rewrite.first = first_divergent_layer(self._after, self._before, case, unit_rounding=self._u)
        self.rewrite.add(case.name, found)


def _outputs(
    program: ExportedProgram, case: Case, *, float64: bool = True, noise: Noise | None = None
) -> dict[str, Array]:
    """A program's tensor outputs, by number."""
    flat = evaluate(program, case.inputs.args, case.inputs.kwargs, float64=float64, noise=noise)
    return {f"output {i}": to_numpy(v) for i, v in enumerate(flat) if isinstance(v, torch.Tensor)}
