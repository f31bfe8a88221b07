"""Verification: every edge from the module to the device, on every case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from spdexport.arrays import to_numpy
from spdexport.capture import eval_mode
from spdexport.factors import unit_rounding
from spdexport.files.hashing import sha256_file
from spdexport.names import layer_of_call
from spdexport.runtime import (
    Provider,
    RuntimeFailure,
    Session,
    SessionSettings,
    open_session,
    provider_status,
    versions,
)
from spdexport.verify.compare import Comparison
from spdexport.verify.inputs import Case, cases, feeds
from spdexport.verify.locate import first_divergent_layer, first_divergent_value
from spdexport.verify.result import SEVERITY, Approximation, EdgeResult, Status, Verification
from spdexport.verify.trial import Trial, outputs, run_trial
from spdexport.verify.weights import weights_edge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.loading import ExampleInputs
    from spdexport.plan import Plan

MACS_BUDGET = 2e10
"""Multiply-accumulates of one pass over all generated cases; after the first two, those that exceed it are left out."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """Everything that takes part in a verification.

    Attributes:
        file: The ONNX file.
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

    file: Path
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


@dataclass(slots=True)
class _Edge:
    """An edge while its cases run."""

    edge: str
    provider: str | None = None
    compared: list[tuple[Case, Comparison]] = field(default_factory=list)
    given: tuple[Status, str] | None = None
    first: str | None = None
    remark: str = ""

    def settle(self, status: Status, reason: str) -> None:
        """Fix the result without, or in spite of, comparisons."""
        self.given = (status, reason)

    def result(self) -> EdgeResult:
        """The worst case as the edge's result."""
        if self.given is not None:
            status, reason = self.given
            return EdgeResult(edge=self.edge, provider=self.provider, status=status, reason=reason)
        if not self.compared:
            return EdgeResult(
                edge=self.edge, provider=self.provider, status=Status.INCONCLUSIVE, reason="no input could be compared"
            )
        case, found = max(self.compared, key=lambda c: (SEVERITY.index(c[1].status), c[1].noise_ratio))
        reason = f"{found.reason}, on input {case.name}" if found.reason else f"{len(self.compared)} inputs compared"
        return EdgeResult(
            edge=self.edge,
            provider=self.provider,
            status=found.status,
            noise_ratio=max(c.noise_ratio for _, c in self.compared),
            max_abs=max(c.max_abs for _, c in self.compared),
            first_divergence=self.first,
            reason="; ".join(filter(None, (reason, self.remark))),
        )


def verify_subject(
    subject: Subject, *, providers: Sequence[Provider], seed: int, progress: Progress = lambda _: None
) -> Verification:
    """Check every edge.

    Args:
        subject: What is checked.
        providers: Providers beside the CPU on which the device edge runs.
        seed: Of generated inputs and simulated rounding.
        progress: Told what is being done.
    """
    return _Run(subject, providers, seed, progress).verification()


class _Run:
    """The state of one verification: edges collect comparisons while the cases go by."""

    def __init__(self, subject: Subject, providers: Sequence[Provider], seed: int, progress: Progress) -> None:
        self._subject, self._seed, self._progress = subject, seed, progress
        self._u = max((unit_rounding(d.site.weight.dtype) for d in subject.plan.decisions), default=2.0**-24)
        self._capture = _Edge("capture")
        self._rewrite = _Edge("rewrite")
        self._sessions: list[tuple[_Edge, SessionSettings, Session | None]] = []
        self._notes: list[str] = []
        self._inputs: list[str] = []
        self._seen: dict[str, list[Array]] = {}
        self._changes: list[tuple[float, float, float, float, float]] = []
        self._open("export", SessionSettings(optimized=False))
        self._open("optimize", SessionSettings(optimized=True))
        for provider in providers:
            self._open_device(provider)
        if not providers:
            device = _Edge("device")
            device.settle(Status.NOT_RUN, "no provider beside the CPU was asked for")
            self._sessions.append((device, SessionSettings(), None))

    def _open(self, edge: str, settings: SessionSettings) -> Session | None:
        state = _Edge(edge, settings.provider.value)
        session = None
        try:
            session = open_session(self._subject.file, settings)
        except RuntimeFailure as error:
            state.settle(Status.FAIL, f"ONNX Runtime does not load the file: {error}")
        self._sessions.append((state, settings, session))
        return session

    def _open_device(self, provider: Provider) -> None:
        missing = provider_status(provider)
        if missing is not None:
            state = _Edge("device", provider.value)
            state.settle(Status.INCONCLUSIVE, missing)
            self._sessions.append((state, SessionSettings(provider=provider), None))
            return
        session = self._open("device", SessionSettings(provider=provider, optimized=True, tf32=False))
        if session is None:
            return
        elsewhere = [
            f"{node.name} ({node.op_type})"
            for node in session.placed_nodes()
            if node.provider != provider.ort_name and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        ]
        if elsewhere:
            shown = ", ".join(elsewhere[:5]) + (f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else "")
            self._sessions[-1][0].settle(Status.INCONCLUSIVE, f"{provider.value} did not run {shown}")

    def verification(self) -> Verification:
        """Run all cases over all edges."""
        subject = self._subject
        self._progress("comparing weights")
        edges = [self._weights()]
        names = _output_names(subject)
        budget = MACS_BUDGET
        for index, case in enumerate(cases(subject.intended, subject.example, own=subject.own_inputs, seed=self._seed)):
            cost = subject.plan.macs_after * _batch(case)
            if not case.own and index > 1 and cost > budget:
                self._notes.append(f"left out for time: {case.name}")
                continue
            budget -= cost
            self._progress(f"comparing outputs: {case.name}")
            self._case(case, names)
        self._finish_capture()
        self._vacuous()
        return Verification(
            edges=(
                self._capture.result(),
                *edges,
                self._rewrite.result(),
                *(state.result() for state, _, _ in self._sessions),
            ),
            approximation=self._approximation(),
            inputs=tuple(self._inputs),
            notes=tuple(self._notes),
            seed=self._seed,
            versions=versions(),
            artifacts={subject.name: sha256_file(subject.file)},
        )

    def _weights(self) -> EdgeResult:
        return weights_edge(ir.load(self._subject.file), self._subject.plain())

    def _case(self, case: Case, names: Sequence[str]) -> None:
        subject = self._subject
        trial = run_trial(subject.intended, names, case, seed=self._seed, unit_rounding=self._u)
        if not case.own and (trial.has_nan or trial.overflows):
            self._notes.append(f"discarded, since the model itself overflows on it: {case.name}")
            return
        self._inputs.append(case.name)
        if trial.has_nan:
            nothing = Comparison(
                status=Status.INCONCLUSIVE, noise_ratio=0, max_abs=0, reason="the reference itself is NaN"
            )
            for edge in (self._rewrite, *(state for state, _, session in self._sessions if session)):
                edge.compared.append((case, nothing))
            return
        for name in names:
            self._seen.setdefault(name, []).append(trial.reference[name])
        effective = outputs(subject.effective, names, case)
        self._compare_rewrite(trial, effective)
        self._compare_capture(trial, effective)
        if subject.plan.approximates:
            self._changes.append(_change(outputs(subject.program, names, case), trial.reference, names))
        for state, settings, session in self._sessions:
            if session is not None and state.given is None:
                self._compare_session(trial, state, settings, session)

    def _compare_rewrite(self, trial: Trial, effective: Mapping[str, Array]) -> None:
        found = trial.compare(effective)
        if found.status is Status.FAIL and self._rewrite.first is None:
            self._rewrite.first = first_divergent_layer(
                self._subject.effective, self._subject.intended, trial.case, unit_rounding=self._u
            )
        self._rewrite.compared.append((trial.case, found))

    def _compare_capture(self, trial: Trial, effective: Mapping[str, Array]) -> None:
        module = self._subject.module
        if module is None:
            return
        replaced = _effective_parameters(module, self._subject.plan)
        if replaced is None:
            # Weights that are computed cannot be exchanged in the module: it is compared as it is.
            effective = outputs(self._subject.program, trial.names, trial.case)
            replaced = {}
            self._capture.remark = "with the source's own weights, since some are computed"
        with eval_mode(module), torch.no_grad():
            arguments = tuple(t.clone() for t in trial.case.inputs.args)
            keywords = {k: v.clone() for k, v in trial.case.inputs.kwargs.items()}
            if replaced:
                result = torch.func.functional_call(module, replaced, arguments, keywords)
            else:
                result = module(*arguments, **keywords)
        leaves = torch.utils._pytree.tree_leaves(result)
        values = [to_numpy(v) for v in leaves if isinstance(v, torch.Tensor)]
        if len(values) != len(trial.names):
            reason = f"the module gives {len(values)} tensors and the program {len(trial.names)}"
            found = Comparison(status=Status.FAIL, noise_ratio=np.inf, max_abs=np.inf, reason=reason)
        else:
            against = Trial(
                case=trial.case,
                names=trial.names,
                reference=effective,
                own=trial.own,
                floors=trial.floors,
                stable=trial.stable,
            )
            found = against.compare(dict(zip(trial.names, values, strict=True)))
        self._capture.compared.append((trial.case, found))

    def _compare_session(self, trial: Trial, state: _Edge, settings: SessionSettings, session: Session) -> None:
        given = {name: to_numpy(t) for name, t in feeds(self._subject.intended, trial.case.inputs).items()}
        try:
            values = session.run(given)
        except RuntimeFailure as error:
            reason = f"ONNX Runtime cannot run the file: {error}"
            found = Comparison(status=Status.FAIL, noise_ratio=np.inf, max_abs=np.inf, reason=reason)
            state.compared.append((trial.case, found))
            return
        found = _check_ports(trial, values) or trial.compare(values)
        if found.status is Status.FAIL and state.first is None and not state.remark:
            self._progress("finding the first layer that diverges")
            state.first, state.remark = first_divergent_value(
                self._subject.file, self._subject.lowered(), trial.case, given, settings, unit_rounding=self._u
            )
        state.compared.append((trial.case, found))

    def _finish_capture(self) -> None:
        if self._subject.module is None:
            self._capture.settle(Status.NOT_RUN, "the source is a program already, without the module it came from")

    def _vacuous(self) -> None:
        """Say so where outputs do not react to the inputs: then the comparison shows nothing."""
        still = [name for name, values in self._seen.items() if _constant(values)]
        if still and len(still) == len(self._seen):
            for state in (self._rewrite, *(s for s, _, session in self._sessions if session)):
                if state.result().status is Status.PASS:
                    state.settle(Status.INCONCLUSIVE, "no output reacts to the inputs, so the comparison shows nothing")
        elif still:
            self._notes.append(f"outputs that do not react to the inputs: {', '.join(still)}")

    def _approximation(self) -> Approximation | None:
        if not self._changes:
            return None
        largest, error, norm, agreeing, samples = (sum(c) for c in zip(*self._changes, strict=True))
        return Approximation(
            max_abs=max(c[0] for c in self._changes) if largest else 0.0,
            relative_l2=float(np.sqrt(error / norm)) if norm else 0.0,
            top1_agreement=agreeing / samples if samples else None,
        )


def _output_names(subject: Subject) -> list[str]:
    """Names of the program's tensor outputs: those of the plain export, which names them by the model's structure."""
    return [v.name or f"output_{i}" for i, v in enumerate(subject.plain().graph.outputs)]


def _check_ports(trial: Trial, values: Mapping[str, Array]) -> Comparison | None:
    """Extra outputs and other dtypes fail; missing ones and other shapes are found by the comparison itself."""
    extra = [name for name in values if name not in trial.names]
    wrong = [
        f"{name} is {values[name].dtype} where {trial.own[name].dtype} is right"
        for name in trial.names
        if name in values and values[name].dtype != trial.own[name].dtype
    ]
    if not extra and not wrong:
        return None
    reason = "; ".join([*(f"the file has a further output {name}" for name in extra), *wrong])
    return Comparison(status=Status.FAIL, noise_ratio=np.inf, max_abs=np.inf, reason=reason)


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


def _batch(case: Case) -> int:
    first = next((t for t in (*case.inputs.args, *case.inputs.kwargs.values()) if t.ndim), None)
    return 1 if first is None else int(first.shape[0])


def _constant(values: Sequence[Array]) -> bool:
    """Whether an output is the same for all inputs and samples that were seen."""
    rows = [row for value in values for row in (value if value.ndim else value.reshape(1))]
    return len(rows) > 1 and all(row.shape == rows[0].shape and np.array_equal(row, rows[0]) for row in rows[1:])


def _change(
    dense: Mapping[str, Array], masked: Mapping[str, Array], names: Sequence[str]
) -> tuple[float, float, float, float, float]:
    """Largest difference, its squared norm, that of the dense outputs, samples with the same top class, samples."""
    largest = error = norm = 0.0
    for name in names:
        if dense[name].dtype.kind != "f":
            continue
        difference = dense[name] - masked[name]
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
        error += float((difference**2).sum())
        norm += float((dense[name] ** 2).sum())
    first = names[0]
    if dense[first].ndim != 2 or dense[first].dtype.kind != "f":
        return largest, error, norm, 0.0, 0.0
    same = dense[first].argmax(axis=1) == masked[first].argmax(axis=1)
    return largest, error, norm, float(same.sum()), float(same.size)
