"""Verification against a source: every edge from the module to the device, on every case."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch.export.graph_signature import OutputKind, TensorArgument

from spdexport.arrays import to_numpy
from spdexport.factors import unit_rounding
from spdexport.files.hashing import sha256_file
from spdexport.installed import versions
from spdexport.names import layer_of_call
from spdexport.reference.torch_reference import Noise, evaluate
from spdexport.runtime import RuntimeFailure
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.compare import Comparison, Tolerance, failed
from spdexport.verification.edge import Edge, not_run
from spdexport.verification.inputs import Case, cases, feeds
from spdexport.verification.locate import first_divergent_layer, first_divergent_value, layer_ratios
from spdexport.verification.masks import mask_fault
from spdexport.verification.module_calls import call_module, first_divergent_module
from spdexport.verification.per_layer import Patches, layer_results, read_in_program
from spdexport.verification.result import EdgeResult, Status, Verification
from spdexport.verification.sessions import SessionEdges
from spdexport.verification.trial import Trial, make_trial
from spdexport.verification.vacuous import Outputs
from spdexport.verification.weight_errors import WeightErrors
from spdexport.verification.weights import compare_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.loading import ExampleInputs
    from spdexport.planning import Plan
    from spdexport.runtime import Provider, SessionSettings

MACS_BUDGET = 2e10
"""Multiply-accumulates of one pass over all generated cases; after the first two, those that exceed it are left out."""

NO_FILE = "no ONNX file was written"

Progress = Callable[[str], None]


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


def verify_subject(
    subject: Subject,
    *,
    providers: Sequence[Provider],
    seed: int,
    thorough: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Check every edge.

    Args:
        subject: What is checked.
        providers: Providers beside the CPU on which the device edge runs.
        seed: Of generated inputs and simulated rounding.
        thorough: Whether to compare every layer's output too, and to leave out no input for time.
        atol: As ``Verification.atol``; it is about outputs, and the weights are judged without.
        rtol: As ``Verification.rtol``.
        progress: Told what is being done.

    Raises:
        UsageError: A tolerance is negative or not finite.
    """
    return _Run(subject, providers, seed, thorough, Tolerance.of(atol, rtol), progress).verification()


class _Run:
    """The state of one verification: edges collect comparisons while the cases go by."""

    def __init__(
        self,
        subject: Subject,
        providers: Sequence[Provider],
        seed: int,
        thorough: bool,
        tolerance: Tolerance | None,
        progress: Progress,
    ) -> None:
        self._subject, self._seed, self._progress = subject, seed, progress
        self._thorough, self._tolerance = thorough, tolerance
        self._u = max((unit_rounding(d.site.weight.dtype) for d in subject.plan.decisions), default=2.0**-24)
        self._names = _output_names(subject)
        self._draws = _draws(subject.intended)
        self._capture, self._rewrite = Edge("capture"), Edge("rewrite")
        self._sessions = None if subject.file is None else SessionEdges(subject.file, providers)
        self._notes: list[str] = []
        self._compared: list[str] = []
        self._seen = Outputs()
        self._changes: list[Change] = []
        self._errors = WeightErrors()
        self._patches = Patches(read_in_program(subject.effective, subject.plan))
        self._ratios: dict[str, float] = {}

    def verification(self) -> Verification:
        """Run all cases over all edges."""
        subject = self._subject
        weights = self._weights()
        budget = MACS_BUDGET
        for index, case in enumerate(cases(subject.intended, subject.example, own=subject.own_inputs, seed=self._seed)):
            cost = subject.plan.macs_after * case.batch
            if not (case.own or self._thorough) and index > 1 and cost > budget:
                self._notes.append(f"left out for time: {case.name}")
                continue
            budget -= cost
            self._progress(f"comparing outputs: {case.name}")
            self._case(case)
        self._notes += self._seen.judge([self._rewrite, *self._open])
        capture = self._capture.result()
        if subject.module is None:
            capture = not_run("capture", "the source is a program already, without the module it came from")
        return Verification(
            edges=(capture, weights, self._rewrite.result(), *self._session_results()),
            approximation=approximation(self._changes),
            inputs=tuple(self._compared),
            notes=tuple(self._notes),
            seed=self._seed,
            versions=versions(),
            artifacts={} if subject.file is None else {subject.name: sha256_file(subject.file)},
            plan=subject.plan,
            layers=layer_results(subject.plan, self._errors.of, self._patches.of, self._ratios),
            worst=None if self._sessions is None else self._sessions.worst,
            atol=None if self._tolerance is None else self._tolerance.atol,
            rtol=None if self._tolerance is None else self._tolerance.rtol,
        )

    @property
    def _open(self) -> list[Edge]:
        """The edges of sessions whose result still depends on comparisons."""
        return [] if self._sessions is None else self._sessions.open

    def _weights(self) -> EdgeResult:
        if self._subject.file is None:
            return not_run("weights", NO_FILE)
        self._progress("comparing weights")
        file = ir.load(self._subject.file)
        found = compare_weights(file, self._subject.plain())
        self._errors = found.layers
        edge = mask_fault(file, self._subject.plan) or found.edge
        del file
        # Graphs refer to themselves in circles, and those that were compared hold several copies of the weights.
        gc.collect()
        return edge

    def _session_results(self) -> tuple[EdgeResult, ...]:
        if self._sessions is None:
            return tuple(not_run(edge, NO_FILE) for edge in ("export", "optimize", "device"))
        return self._sessions.results()

    def _case(self, case: Case) -> None:
        subject = self._subject
        try:
            trial = self._trial(case)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            # The user's own inputs were tried before the trace; a generated one may be outside of what the model takes.
            if case.own:
                raise
            self._notes.append(f"left out, since the model does not take it: {case.name} ({_first_line(error)})")
            return
        what = self._unusable(trial, case)
        if what is not None:
            if not case.own:
                self._notes.append(f"left out, since {what} there: {case.name}")
                return
            self._compared.append(case.name)
            for edge in (self._capture, self._rewrite, *self._open):
                edge.add(case.name, Comparison(status=Status.INCONCLUSIVE, noise_ratio=0, max_abs=0, reason=what))
            return
        self._compared.append(case.name)
        self._seen.add(trial.reference)
        self._patches.watch_inputs(feeds(subject.effective, case.inputs))
        effective = self._outputs(subject.effective, case, watch=self._patches.watch)
        self._compare_rewrite(trial, case, effective)
        if subject.module is not None:
            self._compare_capture(trial, case, effective)
        # Generated inputs say little about how good an approximation is: one ordinary kind of them is enough, and only
        # where the user gave none.
        if subject.plan.approximates and (case.own or not self._changes):
            labels = None if case.inputs.labels is None or not case.own else to_numpy(case.inputs.labels)
            dense = self._outputs(subject.program, case)
            self._changes.append(Change.between(dense, trial.reference, labels=labels))
        if self._sessions is not None:
            inputs = feeds(subject.intended, case.inputs)
            self._sessions.compare(trial, inputs, lambda settings: self._locate(case, inputs, settings))
            if self._thorough:
                self._compare_layers(case, inputs)

    def _unusable(self, trial: Trial, case: Case) -> str | None:
        """Why nothing can be compared with this reference; None where something can."""
        if trial.has_nan:
            return "the reference itself is NaN"
        if trial.overflows:
            return "the model overflows its own dtype"
        if not any(value.size for value in trial.reference.values()):
            return "the outputs are empty"
        if self._draws:
            again = self._outputs(self._subject.intended, case)
            if not all(np.array_equal(value, again[name]) for name, value in trial.reference.items()):
                return "the output is random"
        return None

    def _trial(self, case: Case) -> Trial:
        program = self._subject.intended

        def perturbed(seed: int, u: float) -> dict[str, Array]:
            return self._outputs(program, case, noise=Noise(seed=seed, unit_rounding=u))

        return make_trial(
            case.name,
            self._outputs(program, case),
            self._outputs(program, case, float64=False),
            perturbed,
            seed=self._seed,
            unit_rounding=self._u,
            tolerance=self._tolerance,
        )

    def _outputs(
        self,
        program: ExportedProgram,
        case: Case,
        *,
        float64: bool = True,
        noise: Noise | None = None,
        watch: Callable[[str, torch.Tensor], None] | None = None,
    ) -> dict[str, Array]:
        """A program's tensor outputs by name; what is no tensor (None, numbers) has no place in an ONNX file."""
        flat = evaluate(program, case.inputs.args, case.inputs.kwargs, float64=float64, noise=noise, watch=watch)
        tensors = [to_numpy(v) for v in flat if isinstance(v, torch.Tensor)]
        return dict(zip(self._names, tensors, strict=True))

    def _compare_rewrite(self, trial: Trial, case: Case, effective: Mapping[str, Array]) -> None:
        found = trial.compare_exact(effective, trial.reference)
        if found.status is Status.FAIL and self._rewrite.first is None:
            self._rewrite.first = first_divergent_layer(
                self._subject.intended, self._subject.effective, case, unit_rounding=self._u
            )
        self._rewrite.add(case.name, found)

    def _compare_capture(self, trial: Trial, case: Case, effective: Mapping[str, Array]) -> None:
        module = self._subject.module
        assert module is not None, "programs have no capture edge"
        replaced = _effective_parameters(module, self._subject.plan)
        if replaced is None:
            # Weights that are computed cannot be exchanged in the module: it is compared as it is.
            effective = self._outputs(self._subject.program, case)
            replaced = {}
            self._capture.remark = "with the source's own weights, since some are computed"
        try:
            result = call_module(module, replaced, case)
        # A module may raise anything; that it does where the program does not is the fault.
        except Exception as error:
            reason = f"the module fails where the program does not: {_first_line(error)}"
            self._capture.add(case.name, failed(reason))
            return
        leaves = torch.utils._pytree.tree_leaves(result)
        values = [to_numpy(v) for v in leaves if isinstance(v, torch.Tensor)]
        if len(values) != len(self._names):
            found = failed(f"the module gives {len(values)} tensors and the program {len(self._names)}")
        else:
            found = trial.compare(dict(zip(self._names, values, strict=True)), effective)
        if found.status is Status.FAIL and self._capture.first is None:
            program = self._subject.effective if replaced else self._subject.program
            self._capture.first = first_divergent_module(module, replaced, program, case, unit_rounding=self._u)
        self._capture.add(case.name, found)

    def _compare_layers(self, case: Case, inputs: Mapping[str, Array]) -> None:
        assert self._subject.file is not None, "sessions run on a file"
        self._progress(f"comparing layers: {case.name}")
        try:
            found = layer_ratios(
                self._subject.file,
                self._subject.lowered(),
                case,
                inputs,
                outputs=self._names,
                unit_rounding=self._u,
                plan=self._subject.plan,
            )
        except RuntimeFailure as error:
            note = f"the layers could not be tapped: {error}"
            self._notes += [] if note in self._notes else [note]
            return
        for layer, ratio in found.items():
            self._ratios[layer] = max(self._ratios.get(layer, 0.0), ratio)
        if self._sessions is not None and self._tolerance is None:
            self._sessions.add_layers(case.name, found)

    def _locate(self, case: Case, inputs: Mapping[str, Array], settings: SessionSettings) -> tuple[str | None, str]:
        assert self._subject.file is not None, "sessions run on a file"
        self._progress("finding the first layer that diverges")
        return first_divergent_value(
            self._subject.file,
            self._subject.lowered(),
            case,
            inputs,
            settings,
            outputs=self._names,
            unit_rounding=self._u,
        )


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


def _effective_parameters(module: torch.nn.Module, plan: Plan) -> dict[str, torch.Tensor] | None:
    """The effective weights by the module's own parameter names; None where a changed weight is no parameter.

    Found from the layers' names alone, not through the traced graph, so that a weight put into the wrong node shows.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    changed: dict[str, torch.Tensor] = {}
    for site, form in plan.dense_forms():
        name = f"{layer_of_call(site.name)}.weight"
        weight = parameters.get(name)
        if isinstance(module, torch.jit.ScriptModule) or weight is None or weight.shape != form.stages[0].weight.shape:
            return None
        changed[name] = torch.from_numpy(form.stages[0].weight)
    return changed


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
