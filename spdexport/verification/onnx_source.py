"""Verification against an ONNX file as the source: the model that was meant is itself an ONNX model.

The reference is the factorized model that the plan makes of the source, in float64. There is nothing to trace, so the
first edge tells that what was read of the source is what ONNX Runtime makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from spdexport.arrays import to_torch
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import reload_onnx
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.model_files import INLINE_UP_TO
from spdexport.ort.sessions import RuntimeFailure, Session, SessionSettings, open_session
from spdexport.reference.noise import Noise
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.rewrite.onnx_scopes import scopes
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.decisions_followed import Following
from spdexport.verification.decisions_programs import followed_program
from spdexport.verification.edge import Edge
from spdexport.verification.file_alone import FileVerifier
from spdexport.verification.file_layers import Evaluated
from spdexport.verification.layer_errors import Patches, layer_results, read_in_model
from spdexport.verification.layers import layer_of
from spdexport.verification.masked_models import MaskedFile
from spdexport.verification.masks import mask_fault
from spdexport.verification.removed import compare_trimmed
from spdexport.verification.result import EdgeResult, Meant, Status, Verification
from spdexport.verification.run_time_masks import factors_fault
from spdexport.verification.tapping import diverges
from spdexport.verification.trial import Trial, rounded
from spdexport.verification.weight_errors import WeightErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs
    from spdexport.planning import Plan
    from spdexport.rewrite.onnx_trim import Trimmed
    from spdexport.verification.check import Check
    from spdexport.verification.ports import FileCase

AS_IT_IS = SessionSettings(optimized=False, spinning=False)
"""Of the session that runs the source."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileSubject:
    """Everything that takes part in a verification.

    Attributes:
        file: The file to check.
        name: The name that it has or is to have.
        source: The source, as the user gave it.
        own: The source as it was read, with its own weights; None where that is just what its file holds.
        effective: The same with the plan's effective weights; None where no weight changes.
        intended: The model in the plan's forms, which the file is to compute.
        plain: Gives the effective model with the layers that have factors written as folding gives them back.
        plan: The decisions.
        inputs: The user's example inputs, or None.
        own_inputs: Whether these are the user's own values.
        trimmed: What was removed from the intended model and padded in it; None where it stands as it is.
        sizes: Those of the source's values by name, where masks are known only at run time; else None.
        requires_masks: Whether such a mask has no default.
    """

    file: Path
    name: str
    source: Path
    own: ir.Model | None
    effective: ir.Model | None
    intended: ir.Model
    plain: Callable[[], ir.Model]
    plan: Plan
    inputs: ExampleInputs | None
    own_inputs: bool
    trimmed: Trimmed | None = None
    sizes: Mapping[str, tuple[Any, ...]] | None = None
    requires_masks: bool = False


def verify_against_file(subject: FileSubject, check: Check) -> Verification:
    """Check every edge.

    Args:
        subject: What is checked.
        check: How.

    Raises:
        ExampleInputError: The inputs do not fit the file, or none can be generated for it.
    """
    with scratch_folder() as folder:
        return _OnnxVerifier(subject, folder, check).verification()


class _OnnxVerifier(FileVerifier):
    """The state of one verification."""

    def __init__(
        self,
        subject: FileSubject,
        folder: Path,
        check: Check,
    ) -> None:
        intended = _written(subject.intended, folder / "intended.onnx")
        self._capture, self._rewrite = Edge("capture"), Edge("rewrite")
        super().__init__(
            subject.file,
            subject.name,
            intended,
            subject.inputs,
            subject.own_inputs,
            check,
            edges=(self._capture, self._rewrite),
            beside=frozenset(wanted.name for wanted in subject.plan.runtime_inputs),
        )
        self._subject = subject
        if subject.trimmed is not None:
            self._meant = subject.trimmed.meant
        own = subject.source if subject.own is None else _written(subject.own, folder / "source.onnx")
        self._own_model = reload_onnx(own)
        self._own = Evaluated(own, self._own_model)
        self._effective = self._own
        if subject.effective is not None:
            effective = _written(subject.effective, folder / "effective.onnx")
            self._effective = Evaluated(effective, reload_onnx(effective))
        self._masked: MaskedFile | None = None
        self._expected: Mapping[str, Array] | None = None
        if subject.sizes is not None:
            self._masked = MaskedFile(
                dense=self._own,
                effective=self._effective,
                model=self._own_model,
                sizes=subject.sizes,
                plan=subject.plan,
                required=subject.requires_masks,
            )
        self._source = self._opened()
        self._source_decisions = Following(subject.source, unit_rounding=self._u, seed=check.seed, is_right=True)
        self._changes: list[Change] = []
        labels = None if subject.inputs is None else subject.inputs.labels
        self._labels = None if labels is None else labels.numpy()
        self._errors = WeightErrors()
        self._patches = Patches(read_in_model(self._own_model, subject.plan))

    def verification(self) -> Verification:
        """Run all cases over all edges."""
        self._run_all()
        subject = self._subject
        # Before the layers, for which it tells the errors of their weights.
        weights = self._weights()
        found = self.result(
            edges=(
                self._capture.result(),
                weights,
                self._rewrite.result(),
                *map(self._fair, self._session_edges.results()),
            ),
            artifacts={
                f"source {subject.source.name}": sha256_file(subject.source),
                subject.name: sha256_file(subject.file),
            },
            layers=layer_results(subject.plan, self._errors.of, self._patches.of, self._ratios),
            approximation=approximation(self._changes),
            plan=subject.plan,
        )
        return replace(found, meant=Meant.SOURCE)

    def _fair(self, edge: EdgeResult) -> EdgeResult:
        """That ONNX Runtime does not run a file is no fault of the conversion where it does not run the source."""
        refused = any(f"ONNX Runtime {what} the file" in edge.reason for what in ("does not load", "cannot run"))
        if self._source is not None or edge.status is not Status.FAIL or not refused:
            return edge
        return replace(edge, status=Status.INCONCLUSIVE, reason=f"{edge.reason} (nor does it run the source)")

    def _opened(self) -> Session | None:
        """The source itself on ONNX Runtime."""
        try:
            return open_session(self._subject.source, AS_IT_IS)
        except RuntimeFailure as failure:
            self._capture.settle(Status.NOT_RUN, f"ONNX Runtime does not load the source itself: {failure}")
            return None

    def _weights(self) -> EdgeResult:
        self._check.progress("comparing weights")
        subject = self._subject
        found = compare_trimmed(self._model, subject.trimmed, subject.plain(), self._given, chains=subject.plan.chains)
        self._errors = found.layers
        plan = subject.plan
        fault = mask_fault(self._model, plan) or factors_fault(self._model, plan) or self._touched()
        return found.edge if found.edge.status is Status.FAIL or fault is None else fault

    def _touched(self) -> EdgeResult | None:
        """The weights edge as a failure, where a weight that is no layer's is not the source's, inside bodies too."""
        trimmed = self._subject.trimmed
        written = self._right if trimmed is None else trimmed.model
        found, own, planned = map(_stored, (self._model, self._own_model, written))
        for (place, name), mine in found.items():
            right, meant = own.get((place, name)), planned.get((place, name))
            if right is None or meant is None or not _equal(right, meant):
                continue
            if not _equal(mine, right):
                reason = f"{name} is not what it is in the source, and nothing should have changed it"
                return EdgeResult(edge="weights", status=Status.FAIL, first_divergence=name, reason=reason)
        return None

    def cases(self) -> Iterator[FileCase]:
        """Return the user's own inputs and generated ones, with the masks that the file takes."""
        found = super().cases()
        return found if self._masked is None else self._masked.cases(found, self._check.seed)

    def tried(self, inputs: Mapping[str, Array], watch: Callable[[str, Array], None]) -> Mapping[str, Array]:
        """Return the model without masks, which takes the same inputs beside them."""
        return super().tried(inputs, watch) if self._masked is None else self._own.run(inputs, watch=watch)

    def unusable(self, case: FileCase, trial: Trial) -> str | None:
        """Return why also where rounding decides about the masks."""
        why = super().unusable(case, trial)
        self._expected = None
        if why is None and self._masked is not None:
            why, self._expected = self._masked.right(case, self._u, list(trial.reference))
        return why

    def compare(self, case: FileCase, trial: Trial) -> None:
        """Compare the source on ONNX Runtime, and the two models in float64."""
        self._patches.watch_inputs(case.unmasked)
        effective = self._effective.run(case.unmasked, watch=self._watch)
        found = trial.compare_exact(effective if self._expected is None else self._expected, trial.reference)
        if self._masked is None and (found.status is not Status.PASS or self._steady.changed):
            found = followed_program(
                self._rewrite,
                trial,
                lambda noise, decide: self._effective.run(case.inputs, noise, decide=decide),
                lambda decide: self._evaluated.run(case.inputs, decide=decide),
                lambda right: right.compare_exact(right.reference, trial.reference),
                unit_rounding=self._u,
                seed=self._check.seed,
            )
        if found.status is Status.FAIL and self._rewrite.first is None:
            self._rewrite.first = self._first_divergent(case)
        self._rewrite.add(case.name, found)
        subject = self._subject
        changes_at_run_time = self._masked is not None and subject.plan.approximates
        if subject.effective is None and not changes_at_run_time:
            right = trial if self._masked is None else self._own_trial(case, trial, effective)
            self._compare_source(case, right, effective)
        elif case.own or not self._changes:
            # Generated inputs say little about how good an approximation is: one ordinary kind of them is enough.
            dense = self._own.run(case.unmasked)
            changed = {name: trial.reference[name] for name in dense}
            self._changes.append(Change.between(dense, changed, labels=self._labels if case.own else None))
            self._compare_source(case, self._own_trial(case, trial, dense), dense)

    def _watch(self, name: str, value: Array) -> None:
        if value.dtype.kind == "f":
            self._patches.watch(name, to_torch(value))

    def _own_trial(self, case: FileCase, trial: Trial, dense: Mapping[str, Array]) -> Trial:
        """The tolerance of the source with its own weights."""
        own = {name: rounded(value, trial.own[name].dtype) for name, value in dense.items()}
        return self.measured(case.name, dense, own, lambda noise: self._own.run(case.unmasked, noise))

    def _compare_source(self, case: FileCase, trial: Trial, right: Mapping[str, Array]) -> None:
        """What ONNX Runtime makes of the source itself."""
        if self._source is None or self._capture.given is not None:
            return
        try:
            values = self._source.run(case.unmasked)
        except RuntimeFailure as failure:
            self._capture.settle(Status.NOT_RUN, f"ONNX Runtime cannot run the source itself: {failure}")
            self._source = None
            return
        values = {name: value for name, value in values.items() if name not in self._evaluated.hidden}
        found = trial.compare(values, right)
        if found.is_value and (found.status is not Status.PASS or self._steady.changed):
            followed = self._source_decisions.judge(trial, case.unmasked, AS_IT_IS, values, found, lambda _: {})
            found = followed.found
            if followed.told:
                self._capture.followed.append((case.name, followed.told))
            self._capture.first = self._capture.first or followed.layer
        self._capture.add(case.name, found)

    def _first_divergent(self, case: FileCase) -> str | None:
        """The first layer at which the factorized model and the dense one differ in float64."""
        if self._masked is not None:
            masked = self._masked
            return masked.first_divergent(
                case, lambda watch: self._evaluated.run(case.inputs, watch=masked.watched(watch))
            )
        exact: dict[str, Array] = {}
        noisy: dict[str, Array] = {}
        values: dict[str, Array] = {}
        layers = {v.name: layer_of(node) for node in self._right.graph.all_nodes() for v in node.outputs if v.name}
        try:
            self._effective.run(case.inputs, watch=exact.__setitem__)
            noise = Noise(seed=0, unit_rounding=self._u)
            self._effective.run(case.inputs, noise, watch=noisy.__setitem__)
            self._evaluated.run(case.inputs, watch=values.__setitem__)
        except ReferenceUnavailable:
            return None
        # In the order in which they come: what a body computes is there before what its node gives.
        for name, value in values.items():
            if name in layers and name in exact and exact[name].dtype.kind == "f":
                own = rounded(exact[name], value.dtype)
                if diverges(name, value, exact[name], [own, noisy[name]]):
                    return layers[name]
        return None


def _stored(model: ir.Model) -> dict[tuple[str, str], ir.TensorProtocol]:
    """What each graph of a model stores, by the graph's place and the name there."""
    return {
        (scope.place, name): value.const_value
        for scope in scopes(model.graph)
        for name, value in scope.graph.initializers.items()
        if value.const_value is not None
    }


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def _written(model: ir.Model, path: Path) -> Path:
    """A model on disk, with its weights beside it, so that they are read one at a time."""
    with writing_scratch(path):
        ir.save(model, path, external_data=f"{path.stem}.data", size_threshold_bytes=INLINE_UP_TO)
    return path
