"""Verification of an ONNX file without the model it was made from.

The reference is the file's own float64 evaluation, or that of another file. What ONNX Runtime makes of the file in its
own dtypes is what is judged, so it has no part in the tolerance: that is measured from simulated rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.content import content_hash
from spdexport.factors import unit_rounding
from spdexport.files.hashing import sha256_file
from spdexport.installed import versions
from spdexport.model_files import read_metadata
from spdexport.reference.onnx_reference import NoiseSpec, ReferenceUnavailable
from spdexport.runtime import Provider, RuntimeFailure, SessionSettings
from spdexport.verification.compare import Comparison, Tolerance
from spdexport.verification.edge import Edge, not_run
from spdexport.verification.file_inputs import (
    FileCase,
    file_cases,
    given_tensors,
    guesses,
    input_ports,
    output_ports,
)
from spdexport.verification.inner import Evaluated, first_divergent, layer_ratios
from spdexport.verification.layers import judged
from spdexport.verification.result import EdgeResult, Status, Verification
from spdexport.verification.sessions import SessionEdges
from spdexport.verification.tapping import TAPPING_HIDES
from spdexport.verification.trial import Trial, make_trial, rounded
from spdexport.verification.vacuous import Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs
    from spdexport.verification.file_inputs import GivenArrays

MACS_BUDGET = 1e10
"""Multiply-accumulates of one pass over all generated cases; after the first two, those that exceed it are left out."""

NO_SOURCE = "there is no source to compare with; verify --against SOURCE has this edge"

Progress = Callable[[str], None]


def verify_files(
    file: Path,
    *,
    name: str,
    reference: Path | None,
    providers: Sequence[Provider],
    inputs: ExampleInputs | GivenArrays | None,
    own_inputs: bool = True,
    seed: int,
    thorough: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Check that ONNX Runtime computes what a file says, or what another file says.

    Args:
        file: The ONNX file.
        name: What it is called in the result.
        reference: The file whose float64 evaluation is right; None for ``file`` itself.
        providers: Providers beside the CPU on which the device edge runs.
        inputs: The user's inputs; None to generate all.
        own_inputs: Whether these values are the user's, and not only their shapes.
        seed: Of generated inputs and simulated rounding.
        thorough: Whether to compare every layer's output too, and to leave out no input for time.
        atol: As ``Verification.atol``.
        rtol: As ``Verification.rtol``.
        progress: Told what is being done.

    Raises:
        ExampleInputError: The inputs do not fit the file, or none can be generated for it.
        UsageError: A tolerance is negative or not finite.
    """
    run = FileRun(file, name, reference or file, providers, seed, thorough, Tolerance.of(atol, rtol), progress)
    return run.verification(inputs, own_inputs)


class FileRun:
    """The state of one verification."""

    def __init__(
        self,
        file: Path,
        name: str,
        reference: Path,
        providers: Sequence[Provider],
        seed: int,
        thorough: bool,
        tolerance: Tolerance | None,
        progress: Progress,
    ) -> None:
        self._file, self._name, self._reference, self._seed, self._progress = file, name, reference, seed, progress
        self._thorough, self._tolerance = thorough, tolerance
        self._model = ir.load(file)
        self._right = self._model if reference == file else ir.load(reference)
        self._inputs, self._outputs = input_ports(self._right), output_ports(self._right)
        self._u = max((unit_rounding(t.dtype.numpy()) for t in _float_weights(self._right)), default=2.0**-24)
        self._sessions = SessionEdges(file, providers)
        self._evaluated = Evaluated(reference, self._right)
        self._notes: list[str] = []
        self._compared: list[str] = []
        self._seen = Outputs()
        self._ratios: dict[str, float] = {}

    def verification(self, inputs: ExampleInputs | GivenArrays | None, own: bool) -> Verification:
        """Run all cases over all edges."""
        given = None if inputs is None else given_tensors(self._inputs, inputs)
        mismatch = self._mismatch()
        try:
            if mismatch is not None:
                self._settle(Status.FAIL, mismatch)
            elif self._open:
                self._cases(given, own, "" if inputs is None else inputs.origin)
        except ReferenceUnavailable as error:
            self._settle(Status.INCONCLUSIVE, str(error))
        self._notes += self._seen.judge(self._open)
        artifacts = {self._name: sha256_file(self._file)}
        if self._reference != self._file:
            artifacts[self._reference.name] = sha256_file(self._reference)
        return Verification(
            edges=(
                not_run("capture", NO_SOURCE),
                self._weights(),
                not_run("rewrite", NO_SOURCE),
                *self._sessions.results(),
            ),
            approximation=None,
            inputs=tuple(self._compared),
            notes=tuple(self._notes),
            seed=self._seed,
            versions=versions(),
            artifacts=artifacts,
            layers=tuple(judged(layer, None, ratio, None) for layer, ratio in self._ratios.items()),
            worst=self._sessions.worst,
            atol=None if self._tolerance is None else self._tolerance.atol,
            rtol=None if self._tolerance is None else self._tolerance.rtol,
        )

    @property
    def _open(self) -> list[Edge]:
        """The edges whose result still depends on comparisons."""
        return self._sessions.open

    def _settle(self, status: Status, reason: str) -> None:
        """Fix the result of every edge that is open."""
        for edge in self._open:
            edge.settle(status, reason)

    def _compare(self, case: FileCase, trial: Trial) -> None:
        """What is compared beside the sessions: nothing here, the source where there is one."""

    def _weights(self) -> EdgeResult:
        """Whether the file is still what the conversion wrote, by the hash that it carries."""
        self._progress("comparing weights")
        recorded = read_metadata(self._model).get("content")
        if not isinstance(recorded, str):
            return not_run("weights", "the file carries no hash of its weights and graph from spdexport")
        if content_hash(self._model) == recorded:
            reason = "the weights and the graph are those that the conversion wrote, by their hash"
            return EdgeResult(edge="weights", status=Status.PASS, reason=reason)
        reason = "the weights or the graph changed since conversion: their hash is not the one that the file carries; "
        reason += "verify FILE --against SOURCE tells what changed"
        return EdgeResult(edge="weights", status=Status.FAIL, reason=reason)

    def _mismatch(self) -> str | None:
        """How the declared inputs and outputs of the two files conflict."""
        for kind, mine, right in (
            ("input", input_ports(self._model), self._inputs),
            ("output", output_ports(self._model), self._outputs),
        ):
            found, wanted = {p.name: p for p in mine}, {p.name: p for p in right}
            for name in {**wanted, **found}:
                if name not in found:
                    return f"the {kind} {wanted[name].describe()} is missing"
                if name not in wanted:
                    return f"there is a further {kind} {found[name].describe()}"
                if found[name].conflicts(wanted[name]):
                    return f"the {kind} is {found[name].describe()} where {wanted[name].describe()} is right"
        return None

    def _cases(self, given: Mapping[str, Array] | None, own: bool, origin: str) -> None:
        budget = MACS_BUDGET
        for index, case in enumerate(self._all_cases(given, own, origin)):
            cost = self._evaluated.macs_per_sample * case.batch
            if not (case.own or self._thorough) and index > 1 and cost > budget:
                self._notes.append(f"left out for time: {case.name}")
                continue
            self._progress(f"comparing outputs: {case.name}")
            self._case(case)
            budget -= self._evaluated.macs_per_sample * case.batch

    def _all_cases(self, given: Mapping[str, Array] | None, own: bool, origin: str) -> Iterator[FileCase]:
        if given is not None and own:
            yield FileCase(name=f"given by {origin or 'the caller'}", inputs=given, own=True)
        yield from file_cases(self._inputs, self._sizes(given), given, seed=self._seed)

    def _sizes(self, given: Mapping[str, Array] | None) -> dict[str, int]:
        """Sizes for the dynamic axes, with which the file can be evaluated."""
        first: ReferenceUnavailable | None = None
        for guess, sizes in guesses(self._inputs, given):
            if guess is None:
                return sizes
            try:
                self._evaluated.run(next(file_cases(self._inputs, sizes, given, seed=self._seed)).inputs)
            except ReferenceUnavailable as error:
                first = first or error
                continue
            self._notes.append(f"{guess} was taken as the size of {', '.join(sizes)}: --inputs tells other sizes")
            return sizes
        assert first is not None, "some size was tried"
        raise first

    def _case(self, case: FileCase) -> None:
        exact = self._evaluated.run(case.inputs)
        dtypes = {port.name: port.dtype for port in self._outputs}

        def perturbed(seed: int, u: float) -> Mapping[str, Array]:
            return self._evaluated.run(case.inputs, NoiseSpec(seed=seed, unit_rounding=u))

        overflows = self._evaluated.overflows
        trial = make_trial(
            case.name,
            exact,
            {name: rounded(value, dtypes[name]) for name, value in exact.items()},
            perturbed,
            seed=self._seed,
            unit_rounding=self._u,
            tolerance=self._tolerance,
        )
        empty = not any(value.size for value in exact.values())
        if empty or trial.has_nan or trial.overflows or overflows:
            what = "the reference itself is NaN" if trial.has_nan else "the model overflows its own dtype"
            what = "the outputs are empty" if empty else what
            if not case.own:
                self._notes.append(f"left out, since {what} there: {case.name}")
                return
            self._compared.append(case.name)
            for edge in self._open:
                edge.add(case.name, Comparison(status=Status.INCONCLUSIVE, noise_ratio=0, max_abs=0, reason=what))
            return
        self._compared.append(case.name)
        self._seen.add(trial.reference)
        self._compare(case, trial)
        self._sessions.compare(trial, case.inputs, lambda settings: self._locate(case, settings))
        if self._thorough:
            self._compare_layers(case)

    def _compare_layers(self, case: FileCase) -> None:
        self._progress(f"comparing layers: {case.name}")
        try:
            found = layer_ratios(self._file, self._right, self._evaluated, case.inputs, unit_rounding=self._u)
        except RuntimeFailure as error:
            note = f"the layers could not be tapped: {error}"
            self._notes += [] if note in self._notes else [note]
            return
        for layer, ratio in found.items():
            self._ratios[layer] = max(self._ratios.get(layer, 0.0), ratio)
        if self._tolerance is None:
            self._sessions.add_layers(case.name, found)

    def _locate(self, case: FileCase, settings: SessionSettings) -> tuple[str | None, str]:
        self._progress("finding the first layer that diverges")
        try:
            layer = first_divergent(
                self._file, self._right, self._evaluated, case.inputs, settings, unit_rounding=self._u
            )
        except RuntimeFailure as error:
            return None, f"the layers could not be tapped: {error}"
        return layer, "" if layer else TAPPING_HIDES


def _float_weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            yield value.const_value
