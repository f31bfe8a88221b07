"""Verification of a file in fewer bits: the float model against its source, and the file against the float model.

The float model is made anew, as a conversion without the last step makes it, and every edge of it is checked. Of the
file, the weights edge tells that it is that model in fewer bits (``lowered_weights``), and the sessions are compared
with what the file itself says in float64. What fewer bits change is measured on the same inputs, together with what the
forms change: the source against the file, both in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.files.onnx_reading import reload_onnx
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.model_files import INLINE_UP_TO
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.file_alone import FileVerifier
from spdexport.verification.file_layers import Evaluated
from spdexport.verification.lowered_weights import compare_lowered
from spdexport.verification.result import SEVERITY, EdgeResult, Status, Verification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spdexport.loading.model import ExampleInputs
    from spdexport.precision import Precision
    from spdexport.verification.check import Check
    from spdexport.verification.ports import FileCase
    from spdexport.verification.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredSubject:
    """Everything that takes part in a verification.

    Attributes:
        file: The file to check.
        name: The name that it has or is to have.
        plain: The float model that it was made of, as it would be written.
        precision: How its numbers are stored.
        dense: The source's own graph.
        verify_plain: Checks a file of ``plain`` against the source.
        inputs: The user's example inputs, or None.
        own_inputs: Whether these are the user's own values.
    """

    file: Path
    name: str
    plain: ir.Model
    precision: Precision
    dense: ir.Model
    verify_plain: Callable[[Path, Check], Verification]
    inputs: ExampleInputs | None
    own_inputs: bool


def verify_lowered(subject: LoweredSubject, check: Check) -> Verification:
    """Check every edge.

    Args:
        subject: What is checked.
        check: How.

    Raises:
        ExampleInputError: The inputs do not fit the file, or none can be generated for it.
    """
    with scratch_folder() as folder:
        plain = _written(subject.plain, folder / "float32.onnx")
        # Devices are of no interest to a model that is only on the way.
        found = subject.verify_plain(plain, replace(check, providers=()))
        check.progress(f"comparing the {subject.precision.storage} file with the float32 model")
        run = _LoweredVerifier(subject, _written(subject.dense, folder / "dense.onnx"), check)
        own = run.verification()
        return _joined(found, own, subject.precision.storage.value, run.changes)


class _LoweredVerifier(FileVerifier):
    """The state of the second part: the file by itself."""

    def __init__(self, subject: LoweredSubject, dense: Path, check: Check) -> None:
        super().__init__(subject.file, subject.name, subject.file, subject.inputs, subject.own_inputs, check)
        self._subject = subject
        self._dense = Evaluated(dense, reload_onnx(dense))
        self.changes: list[Change] = []
        labels = None if subject.inputs is None else subject.inputs.labels
        self._labels = None if labels is None else labels.numpy()

    def compare(self, case: FileCase, trial: Trial) -> None:
        """Measure what fewer bits and the forms change, on the user's inputs, or one kind of generated ones."""
        if not case.own and self.changes:
            return
        try:
            dense = self._dense.run(case.inputs)
        except ReferenceUnavailable as error:
            self._notes.append(f"what is changed on purpose is not known on {case.name}: {error}")
            return
        self.changes.append(Change.between(dense, trial.reference, labels=self._labels if case.own else None))

    def _weights(self) -> EdgeResult:
        self._check.progress("comparing weights")
        return compare_lowered(self._model, self._subject.plain, self._subject.precision)


def _joined(found: Verification, own: Verification, storage: str, changes: list[Change]) -> Verification:
    """One result of both parts: of each edge the worse one, and what it is of."""
    mine = {edge.edge: edge for edge in own.edges}
    plain = {edge.edge: edge for edge in found.edges}
    weights = _worse(plain["weights"], mine["weights"], storage)
    export = _worse(plain["export"], mine["export"], storage)
    sessions = [
        export if edge is mine["export"] else edge
        for edge in own.edges
        if edge.edge in ("export", "optimize", "device")
    ]
    return replace(
        found,
        edges=(plain["capture"], weights, plain["rewrite"], *sessions),
        approximation=approximation(changes) or found.approximation,
        inputs=own.inputs,
        notes=(
            *dict.fromkeys((*found.notes, *own.notes)),
            f"numbers are stored as {storage}: what that changes is measured, and in the approximation",
        ),
        artifacts={**found.artifacts, **own.artifacts},
        worst=own.worst,
    )


def _worse(plain: EdgeResult, mine: EdgeResult, storage: str) -> EdgeResult:
    """The worse of what was found of the float32 model and of the file; of two that pass, both reasons."""
    if SEVERITY.index(plain.status) > SEVERITY.index(mine.status):
        return replace(plain, reason=f"of the float32 model: {plain.reason}")
    if mine.status is Status.PASS and plain.status is Status.PASS:
        ratios = [edge.noise_ratio for edge in (plain, mine) if edge.noise_ratio is not None]
        reason = f"{plain.reason}; of the {storage} file: {mine.reason}"
        return replace(mine, reason=reason, noise_ratio=max(ratios, default=None))
    return mine


def _written(model: ir.Model, path: Path) -> Path:
    """A model on disk, with its weights beside it, so that they are read one at a time."""
    with writing_scratch(path):
        ir.save(model, path, external_data=f"{path.stem}.data", size_threshold_bytes=INLINE_UP_TO)
    return path
