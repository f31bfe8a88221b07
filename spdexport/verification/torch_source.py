"""Verification against a source: every edge from the module to the device, on every case."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export.graph_signature import OutputKind, TensorArgument

from spdexport.arrays import to_numpy
from spdexport.capture import call_module
from spdexport.capture.ranges import axis_ranges
from spdexport.errors import first_line
from spdexport.factors import unit_rounding
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import reload_onnx
from spdexport.names import count
from spdexport.reference.torch_reference import evaluate
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.compare import Comparison, failed
from spdexport.verification.decisions_followed import Following
from spdexport.verification.decisions_programs import followed_program, node_values, steadiness_of
from spdexport.verification.edge import Edge, not_run
from spdexport.verification.frame import NOT_TAKEN, NotTakenError, Verifier
from spdexport.verification.inputs import Case, cases, feeds
from spdexport.verification.layer_errors import Patches, layer_results, read_in_program
from spdexport.verification.locate import first_divergent_layer, first_divergent_value, layer_ratios
from spdexport.verification.masks import mask_fault, ranges_fault
from spdexport.verification.module_calls import effective_parameters, first_divergent_module
from spdexport.verification.removed import compare_trimmed
from spdexport.verification.result import EdgeResult, Status, Verification
from spdexport.verification.run_time_masks import factors_fault
from spdexport.verification.sessions import SessionEdges
from spdexport.verification.tapping import as_it_is
from spdexport.verification.weight_errors import WeightErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.loading import ExampleInputs
    from spdexport.ort.sessions import SessionSettings
    from spdexport.planning import Plan
    from spdexport.reference.decisions import Decide
    from spdexport.reference.noise import Noise
    from spdexport.rewrite.onnx_trim import Trimmed
    from spdexport.verification.check import Check
    from spdexport.verification.masked_models import MaskedProgram
    from spdexport.verification.tapping import Meant
    from spdexport.verification.trial import Trial

NO_FILE = "no ONNX file was written"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """Everything that takes part in a verification.

    Attributes:
        file: The ONNX file; None to check the intended program alone.
        name: The name that the file has or is to have.
        module: The module that was traced; None where the source was a program.
        program: The traced program, with the source's own weights.
        effective: The traced program with the plan's effective weights.
        intended: The program in the plan's forms, which the file is to compute.
        lowered: Gives the intended program after the exporter's lowering; called only on a failure.
        plain: Gives the plain ONNX export of the effective program.
        plan: The decisions.
        example: Example inputs.
        own_inputs: Whether these are the user's own values.
        masked: What is known only at run time; None where nothing is.
        trimmed: What was removed from the export and padded in it; None where it stands as it is.
    """

    file: Path | None
    name: str
    module: torch.nn.Module | None
    program: ExportedProgram
    effective: ExportedProgram
    intended: ExportedProgram
    lowered: Callable[[], ExportedProgram]
    plain: Callable[[], ir.Model]
    plan: Plan
    example: ExampleInputs | None
    own_inputs: bool
    masked: MaskedProgram | None = None
    trimmed: Trimmed | None = None


def verify_subject(subject: Subject, check: Check) -> Verification:
    """Check every edge.

    Args:
        subject: What is checked.
        check: How.
    """
    return _TorchVerifier(subject, check).verification()


class _TorchVerifier(Verifier[Case]):
    """The state of one verification."""

    def __init__(self, subject: Subject, check: Check) -> None:
        self._subject = subject
        self._capture, self._rewrite = Edge("capture"), Edge("rewrite")
        sessions = None if subject.file is None else SessionEdges(subject.file, check.providers)
        u = max((unit_rounding(d.site.weight.dtype) for d in subject.plan.decisions), default=2.0**-24)
        super().__init__(check, sessions, u, (self._capture, self._rewrite))
        self._names = _output_names(subject)
        self._own = self._names[: len(self._names) - len(subject.plan.runtime_outputs)]
        self._draws = _draws(subject.intended)
        if subject.file is not None:
            self._following = Following(subject.file, unit_rounding=u, seed=check.seed, is_right=False)
        self._changes: list[Change] = []
        self._errors = WeightErrors()
        self._patches = Patches(read_in_program(subject.effective, subject.plan))
        self._expected: Mapping[str, Array] | None = None

    def verification(self) -> Verification:
        """Run all cases over all edges."""
        subject = self._subject
        weights = self._weights()
        self.run()
        self.judge_still()
        capture = self._capture.result()
        if subject.module is None:
            capture = not_run("capture", "the source is a program already, without the module it came from")
        return self.result(
            edges=(capture, weights, self._rewrite.result(), *self._session_results()),
            approximation=approximation(self._changes),
            artifacts={} if subject.file is None else {subject.name: sha256_file(subject.file)},
            plan=subject.plan,
            layers=layer_results(subject.plan, self._errors.of, self._patches.of, self._ratios),
        )

    @property
    def macs_per_sample(self) -> float:
        """Of the model as it is planned."""
        return self._subject.plan.macs_after

    def _weights(self) -> EdgeResult:
        if self._subject.file is None:
            return not_run("weights", NO_FILE)
        self._check.progress("comparing weights")
        file = reload_onnx(self._subject.file)
        subject = self._subject
        known = subject.trimmed is not None and subject.example is not None and subject.masked is None
        example = feeds(subject.intended, subject.example) if known and subject.example is not None else None
        found = compare_trimmed(file, subject.trimmed, subject.plain(), example, chains=subject.plan.chains)
        self._errors = found.layers
        edge = ranges_fault(file, self._subject.file, axis_ranges(subject.program))
        edge = edge or mask_fault(file, self._subject.plan) or factors_fault(file, self._subject.plan) or found.edge
        del file
        # Graphs refer to themselves in circles, and those that were compared hold several copies of the weights.
        gc.collect()
        return edge

    def cases(self) -> Iterator[Case]:
        """Return the user's own inputs and generated ones, with the masks that the file takes."""
        subject = self._subject
        found = cases(subject.effective, subject.example, own=subject.own_inputs, seed=self._check.seed)
        return found if subject.masked is None else subject.masked.cases(found, self._check.seed)

    def feeds(self, case: Case) -> Mapping[str, Array]:
        """Return the inputs by the file's names."""
        masked = self._subject.masked
        return feeds(self._subject.intended, case.inputs) if masked is None else masked.feeds(case)

    def _session_results(self) -> tuple[EdgeResult, ...]:
        if self._sessions is None:
            return tuple(not_run(edge, NO_FILE) for edge in ("export", "optimize", "device"))
        return self._sessions.results()

    def reference(self, case: Case) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return what the intended program gives, in float64 and in its own dtypes."""
        self._steady.begin(is_exact=True)
        return self._evaluated(self._subject.intended, case, watch=steadiness_of(self._subject.intended, self._steady))

    def perturbed(self, case: Case, noise: Noise) -> Mapping[str, Array]:
        """Return what the intended program gives, with simulated rounding."""
        self._steady.begin(is_exact=False)
        return self._noisy(
            self._subject.intended, case, noise, watch=steadiness_of(self._subject.intended, self._steady)
        )

    def chosen(self, case: Case, names: Collection[str]) -> Mapping[str, Array]:
        """Return those that have the names of the lowered program's nodes."""
        lowered = self._subject.lowered()
        return node_values(lowered, case, names, self._names)

    def unusable(self, case: Case, trial: Trial) -> str | None:
        """Return why also where the outputs are random, or rounding decides about the masks."""
        why = super().unusable(case, trial)
        if why is None and self._draws:
            again = self._outputs(self._subject.intended, case)
            if not all(np.array_equal(value, again[name]) for name, value in trial.reference.items()):
                why = "the output is random"
        # What is right of a masked model tells whether it can be judged, and is needed again when it is.
        self._expected = None
        if why is None and self._subject.masked is not None:
            why, self._expected = self._subject.masked.right(case, self._u, self._names)
        return why

    def compare(self, case: Case, trial: Trial) -> None:
        """Compare the module, and the two programs in float64."""
        subject, plain = self._subject, case.unmasked
        self._patches.watch_inputs(feeds(subject.effective, plain.inputs))
        effective = self._outputs(subject.effective, plain, watch=self._patches.watch)
        self._compare_rewrite(trial, case, effective if self._expected is None else self._expected)
        if subject.module is not None:
            self._compare_capture(trial, plain, effective)
        # Generated inputs say little about how good an approximation is: one ordinary kind of them is enough, and only
        # where the user gave none.
        if subject.plan.approximates and (case.own or not self._changes):
            labels = None if case.inputs.labels is None or not case.own else to_numpy(case.inputs.labels)
            dense = self._outputs(subject.program, plain)
            masked = {name: trial.reference[name] for name in dense}
            self._changes.append(Change.between(dense, masked, labels=labels))

    def _trial_of(self, program: ExportedProgram, case: Case) -> Trial:
        """The tolerance of another program than the intended one."""
        exact, own = self._evaluated(program, case)
        return self.measured(case.name, exact, own, lambda noise: self._noisy(program, case, noise))

    def _evaluated(
        self, program: ExportedProgram, case: Case, watch: Callable[[str, torch.Tensor], None] | None = None
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        try:
            return self._outputs(program, case, watch=watch), self._outputs(program, case, float64=False)
        except NOT_TAKEN as error:
            raise NotTakenError(first_line(error)) from error

    def _noisy(
        self,
        program: ExportedProgram,
        case: Case,
        noise: Noise,
        watch: Callable[[str, torch.Tensor], None] | None = None,
    ) -> Mapping[str, Array]:
        return self._outputs(program, case, noise=noise, watch=watch)

    def _outputs(
        self,
        program: ExportedProgram,
        case: Case,
        *,
        float64: bool = True,
        noise: Noise | None = None,
        watch: Callable[[str, torch.Tensor], None] | None = None,
        decide: Decide | None = None,
    ) -> dict[str, Array]:
        """A program's tensor outputs by name; what is no tensor (None, numbers) has no place in an ONNX file."""
        args, kwargs = case.inputs.args, case.inputs.kwargs
        flat = evaluate(program, args, kwargs, float64=float64, noise=noise, watch=watch, decide=decide)
        tensors = [to_numpy(v) for v in flat if isinstance(v, torch.Tensor)]
        return dict(zip(self._names if program is self._subject.intended else self._own, tensors, strict=True))

    def _compare_rewrite(self, trial: Trial, case: Case, effective: Mapping[str, Array]) -> None:
        intended, masked = self._subject.intended, self._subject.masked
        found = trial.compare_exact(effective, trial.reference)
        if masked is None and self._may_decide(found):
            found = self._followed_program(
                self._rewrite,
                trial,
                (self._subject.effective, case),
                lambda decide: self._outputs(intended, case, decide=decide),
                lambda right: right.compare_exact(right.reference, trial.reference),
            )
        if found.status is Status.FAIL and self._rewrite.first is None:
            self._rewrite.first = (
                first_divergent_layer(intended, self._subject.effective, case, unit_rounding=self._u)
                if masked is None
                else masked.first_divergent(case, lambda watch: self._outputs(intended, case, watch=watch))
            )
        self._rewrite.add(case.name, found)

    def _compare_capture(self, trial: Trial, case: Case, effective: Mapping[str, Array]) -> None:
        module = self._subject.module
        assert module is not None, "programs have no capture edge"
        replaced = effective_parameters(module, self._subject.program, self._subject.plan)
        if replaced is None:
            # Such weights cannot be exchanged in the module: it is compared as it is, to the tolerance that it has.
            trial = self._trial_of(self._subject.program, case)
            effective, replaced = trial.reference, {}
            self._capture.remark = "with the source's own weights, since some are computed or shared"
        elif self._expected is not None:
            trial = self._trial_of(self._subject.effective, case)
        try:
            result = call_module(module, case.inputs, replaced)
        # A module may raise anything; that it does where the program does not is the fault.
        except Exception as error:
            reason = f"the module fails where the program does not: {first_line(error)}"
            self._capture.add(case.name, failed(reason))
            return
        leaves = torch.utils._pytree.tree_leaves(result)
        values = [to_numpy(v) for v in leaves if isinstance(v, torch.Tensor)]
        if len(values) != len(self._own):
            found = failed(f"the module gives {count(len(values), 'tensor')} and the program {len(self._own)}")
        else:
            outputs = dict(zip(self._own, values, strict=True))
            found = trial.compare(outputs, effective)
            if found.is_value and self._may_decide(found):
                program = self._subject.effective if replaced else self._subject.program
                found = self._followed_program(
                    self._capture,
                    trial,
                    (program, case),
                    lambda decide: self._outputs(program, case, float64=False, decide=decide),
                    lambda right: right.compare(outputs),
                )
        if found.status is Status.FAIL and self._capture.first is None:
            program = self._subject.effective if replaced else self._subject.program
            self._capture.first = first_divergent_module(module, replaced, program, case, unit_rounding=self._u)
        self._capture.add(case.name, found)

    def _may_decide(self, found: Comparison) -> bool:
        return found.status is not Status.PASS or bool(self._steady.changed)

    def _followed_program(
        self,
        edge: Edge,
        trial: Trial,
        right: tuple[ExportedProgram, Case],
        choose: Callable[[Decide], object],
        compare: Callable[[Trial], Comparison],
    ) -> Comparison:
        def evaluated(noise: Noise | None, decide: Decide) -> Mapping[str, Array]:
            return self._outputs(*right, noise=noise, decide=decide)

        self._check.progress(f"following decisions: {trial.name}")
        seed = self._check.seed
        return followed_program(edge, trial, evaluated, choose, compare, unit_rounding=self._u, seed=seed)

    def locate(self, case: Case, settings: SessionSettings) -> tuple[str | None, str]:
        """Return the first layer whose values in the file are not those of the intended program."""
        assert self._subject.file is not None, "sessions run on a file"
        return first_divergent_value(
            self._subject.file,
            self._subject.lowered(),
            case,
            self.feeds(case),
            settings,
            outputs=self._names,
            unit_rounding=self._u,
            meant=self._meant,
        )

    def layer_ratios(self, case: Case) -> Mapping[str, float]:
        """Return those of the layers whose output has a name in the file."""
        assert self._subject.file is not None, "sessions run on a file"
        return layer_ratios(
            self._subject.file,
            self._subject.lowered(),
            case,
            self.feeds(case),
            outputs=self._names,
            unit_rounding=self._u,
            plan=self._subject.plan,
            meant=self._meant,
        )

    @property
    def _meant(self) -> Meant:
        """What the file has for a value of the program: channels may be gone, or added."""
        trimmed = self._subject.trimmed
        return as_it_is if trimmed is None else trimmed.meant


def _draws(program: ExportedProgram) -> bool:
    """Whether an operator draws random numbers; dropout has that mark too, even where it does nothing."""
    nodes = [n for g in program.graph_module.modules() if isinstance(g, torch.fx.GraphModule) for n in g.graph.nodes]
    targets = [node.target for node in nodes]
    return any(isinstance(t, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in t.tags for t in targets)


def _output_names(subject: Subject) -> list[str]:
    """Names of the program's tensor outputs: those of the plain export, which names them by the model's structure."""
    if subject.file is not None:
        return [v.name or f"output_{i}" for i, v in enumerate(subject.plain().graph.outputs)]
    specs = subject.intended.graph_signature.output_specs
    tensors = [s for s in specs if s.kind is OutputKind.USER_OUTPUT and isinstance(s.arg, TensorArgument)]
    return [f"output_{i}" for i in range(len(tensors))]
