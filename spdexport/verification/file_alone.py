"""Verification of an ONNX file without the model it was made from.

The reference is the file's own float64 evaluation, or that of another file. What ONNX Runtime makes of the file in its
own dtypes is what is judged, so it has no part in the tolerance: that is measured from simulated rounding alone.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from spdexport.content import content_hash
from spdexport.errors import ExampleInputError
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import reload_onnx
from spdexport.model_files import read_metadata, recorded_ranges
from spdexport.names import some
from spdexport.ort.sessions import RuntimeFailure, SessionSettings, open_session
from spdexport.ranges import outside
from spdexport.ranges import told as told_ranges
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.compare import failed
from spdexport.verification.decisions_followed import Following
from spdexport.verification.edge import not_run
from spdexport.verification.file_inputs import (
    FOLLOWS_BATCH,
    file_cases,
    given_tensors,
    guesses,
    limits_of,
    told,
    varies_in_batch,
)
from spdexport.verification.file_layers import Evaluated, first_divergent, hidden_layers, layer_ratios, unreached
from spdexport.verification.frame import Verifier
from spdexport.verification.layers import judged
from spdexport.verification.ports import FileCase, input_ports, output_ports
from spdexport.verification.precision import file_unit_rounding
from spdexport.verification.result import EdgeResult, Meant, Status, Verification
from spdexport.verification.sessions import SessionEdges
from spdexport.verification.tapping import as_it_is, tapping_hides
from spdexport.verification.trial import rounded
from spdexport.verification.vacuous import EmptyMaps, shows_nothing
from spdexport.verification.weights import compare_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs
    from spdexport.ranges import Ranges
    from spdexport.reference.noise import Noise
    from spdexport.verification.check import Check
    from spdexport.verification.edge import Edge
    from spdexport.verification.file_inputs import GivenArrays
    from spdexport.verification.tapping import Meant as MeantValue
    from spdexport.verification.trial import Trial

NO_SOURCE = "there is no source to compare with; verify --against SOURCE has this edge"


def verify_files(
    file: Path,
    check: Check,
    *,
    name: str,
    reference: Path | None,
    inputs: ExampleInputs | GivenArrays | None,
    own_inputs: bool = True,
) -> Verification:
    """Check that ONNX Runtime computes what a file says, or what another file says.

    Args:
        file: The ONNX file.
        check: How.
        name: What it is called in the result.
        reference: The file whose float64 evaluation is right; None for ``file`` itself.
        inputs: The user's inputs; None to generate all.
        own_inputs: Whether these values are the user's, and not only their shapes.

    Raises:
        ExampleInputError: The inputs do not fit the file, or none can be generated for it.
    """
    return FileVerifier(file, name, reference or file, inputs, own_inputs, check).verification()


class FileVerifier(Verifier[FileCase]):
    """The state of one verification of a file.

    Args:
        file: The ONNX file.
        name: What it is called in the result.
        reference: The file whose float64 evaluation is right.
        inputs: The user's inputs; None to generate all.
        own_inputs: Whether these values are the user's, and not only their shapes.
        check: How to check.
        edges: The edges beside those of the sessions.
        beside: The inputs that are drawn with the cases, beside the model's own.

    Raises:
        ExampleInputError: The inputs do not fit the file.
    """

    MACS_BUDGET = 1e10

    def __init__(
        self,
        file: Path,
        name: str,
        reference: Path,
        inputs: ExampleInputs | GivenArrays | None,
        own_inputs: bool,
        check: Check,
        edges: Sequence[Edge] = (),
        beside: Collection[str] = (),
    ) -> None:
        self._file, self._name, self._reference = file, name, reference
        self._model = reload_onnx(file)
        self._right = self._model if reference == file else reload_onnx(reference)
        taken = {port.name: port for port in input_ports(self._model)}
        # Of two files, each may fix axes that the other leaves open.
        ports = [port for port in input_ports(self._right) if port.name not in beside]
        self._inputs = tuple(port.narrowed(taken.get(port.name, port)) for port in ports)
        self._outputs = output_ports(self._right)
        u = file_unit_rounding(self._right)
        super().__init__(check, SessionEdges(file, check.providers, is_evaluated=reference == file), u, edges)
        self._evaluated = Evaluated(reference, self._right)
        self._following = Following(file, unit_rounding=u, seed=check.seed, is_right=reference == file)
        self._given = None if inputs is None else given_tensors(self._inputs, inputs)
        ranges = recorded_ranges(self._model, file)
        self._limits = limits_of(self._inputs, ranges)
        self._notes += told_ranges(ranges)
        _check_sizes(self._given or {}, ranges)
        self._meant: MeantValue = as_it_is
        self._hidden_in: FileCase | None = None
        self._own_inputs, self._origin = own_inputs, "" if inputs is None else inputs.origin

    def verification(self) -> Verification:
        """Run all cases over all edges."""
        self._run_all()
        artifacts = {self._name: sha256_file(self._file)}
        if self._reference != self._file:
            artifacts[self._reference.name] = sha256_file(self._reference)
        found = self.result(
            edges=(
                not_run("capture", NO_SOURCE),
                self._weights(),
                not_run("rewrite", NO_SOURCE),
                *self._session_edges.results(),
            ),
            artifacts=artifacts,
            layers=[judged(layer, None, ratio, None) for layer, ratio in self._ratios.items()],
        )
        return replace(found, meant=Meant.ITSELF if self._reference == self._file else Meant.OTHER)

    def _run_all(self) -> None:
        """Run all cases, unless the ports conflict already; a file that cannot be evaluated is inconclusive."""
        mismatch = self._mismatch()
        try:
            if mismatch is not None:
                self._settle(Status.FAIL, mismatch)
            elif self.open:
                self.run()
        except ReferenceUnavailable as error:
            if self._hidden_in is None:
                self._settle(Status.INCONCLUSIVE, str(error))
        self._tell_hidden()
        self.judge_still()
        places = unreached(self._right, self._evaluated.reached) if self._compared else []
        if places:
            self._notes.append(
                f"no input takes {some(places)}: what ONNX Runtime makes of these layers was not compared"
            )

    def _tell_hidden(self) -> None:
        """Name what no reference is known for: the layers before and beside it are compared, and nothing passes."""
        case, hidden = self._hidden_in, self._evaluated.hidden
        if case is None or not self.open:
            return
        with contextlib.suppress(RuntimeFailure, ReferenceUnavailable):
            self._session_edges.add_layers(case.name, self.layer_ratios(case))
        missing = list(dict.fromkeys(str(error) for error in hidden.values()))
        outputs = [port.name for port in self._outputs if port.name in hidden]
        layers = hidden_layers(self._right, hidden)
        behind = [f"the outputs {some(outputs)}"] * bool(outputs) + [f"the layers {some(layers)}"] * bool(layers)
        rest = "all else was compared" if len(outputs) < len(self._outputs) else "of the rest, the layers were compared"
        reason = f"{'; '.join(missing)}; this hides {' and '.join(behind) or 'no output'}, and {rest}"
        for edge in self.open:
            edge.add(case.name, replace(failed(reason), status=Status.INCONCLUSIVE, noise_ratio=0.0, max_abs=0.0))

    def _settle(self, status: Status, reason: str) -> None:
        """Fix the result of every edge that is open."""
        for edge in self.open:
            edge.settle(status, reason)

    @property
    def _session_edges(self) -> SessionEdges:
        assert self._sessions is not None, "a file has sessions"
        return self._sessions

    @property
    def macs_per_sample(self) -> float:
        """As far as the last evaluation told."""
        return self._evaluated.macs_per_sample

    def cases(self) -> Iterator[FileCase]:
        """Yield the user's own inputs, and those that fit what the file declares."""
        found: tuple[dict[str, int], int | None] | None = None
        try:
            found = self._sizes(self._given)
        except ReferenceUnavailable as error:
            if self._given is None or error.is_missing or error.is_beyond:
                raise
            self._refuse_given(self._given, error)
            if not self._own_inputs:
                raise
            self._notes.append(f"no inputs were generated, since {error}")
        if self._given is not None and self._own_inputs:
            yield FileCase(name=f"given by {self._origin or 'the caller'}", inputs=self._given, own=True)
        if found is not None:
            sizes, batch = found
            yield from file_cases(
                self._inputs, sizes, self._given, seed=self._check.seed, limits=self._limits, batch=batch
            )

    def tried(self, inputs: Mapping[str, Array], watch: Callable[[str, Array], None]) -> Mapping[str, Array]:
        """Return what the reference file makes of inputs whose sizes may not fit."""
        return self._evaluated.run(inputs, watch=watch)

    def feeds(self, case: FileCase) -> Mapping[str, Array]:
        """Return the case's inputs as they are."""
        return case.inputs

    def reference(self, case: FileCase) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return what the reference file says, and the same rounded.

        ONNX Runtime, which would tell more, is judged itself.
        """
        self._steady.begin(is_exact=True)
        exact = self._evaluated.run(case.inputs, decide=self._steady.decide)
        if self._evaluated.hidden:
            self._hidden_in = self._hidden_in or case
            self._session_edges.hidden = self._evaluated.hidden
            if not exact:
                raise next(iter(self._evaluated.hidden.values()))
        dtypes = {port.name: port.dtype for port in self._outputs}
        return exact, {name: rounded(value, dtypes[name]) for name, value in exact.items()}

    def perturbed(self, case: FileCase, noise: Noise) -> Mapping[str, Array]:
        """Return what the reference file says, with simulated rounding."""
        self._steady.begin(is_exact=False)
        return self._evaluated.run(case.inputs, noise, decide=self._steady.decide)

    def chosen(self, case: FileCase, names: Collection[str]) -> Mapping[str, Array]:
        """Return those that have the same names in the reference."""
        found: dict[str, Array] = {}

        def watch(name: str, value: Array) -> None:
            seen = self._meant(name, value) if name in names else None
            if seen is not None:
                found[name] = seen

        self._evaluated.run(case.inputs, watch=watch)
        return found

    def unusable(self, case: FileCase, trial: Trial) -> str | None:
        """Return why also where an inner value is too large for the dtype that the file has it in."""
        why = super().unusable(case, trial)
        return "the model overflows its own dtype" if why is None and self._evaluated.overflows else why

    def compare(self, case: FileCase, trial: Trial) -> None:
        """Compare nothing beside the sessions."""

    def locate(self, case: FileCase, settings: SessionSettings) -> tuple[str | None, str]:
        """Return the first layer whose values in the file are not those of the reference."""
        layer = first_divergent(*self._judged(case), settings, unit_rounding=self._u, meant=self._meant)
        return layer, "" if layer else tapping_hides(settings)

    def layer_ratios(self, case: FileCase) -> Mapping[str, float]:
        """Return those of all layers whose values have the same names in the file and in the reference."""
        return layer_ratios(*self._judged(case), unit_rounding=self._u, meant=self._meant)

    def _judged(self, case: FileCase) -> tuple[Path, ir.Model, Evaluated, Mapping[str, Array]]:
        return self._file, self._right, self._evaluated, case.inputs

    def _weights(self) -> EdgeResult:
        """Whether the file has the other's graph and weights; alone, whether it is still what the conversion wrote.

        Of a file alone, the hash that it carries tells.
        """
        self._check.progress("comparing weights")
        if self._reference != self._file:
            return compare_files(self._model, self._right)
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
            ("input", input_ports(self._model), input_ports(self._right)),
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

    def _sizes(self, given: Mapping[str, Array] | None) -> tuple[dict[str, int], int | None]:
        """Sizes for the dynamic axes, with which the file can be evaluated, and its batch where not every one can be.

        Raises:
            ReferenceUnavailable: It cannot be evaluated with any.
        """
        first: ReferenceUnavailable | None = None
        hollow: tuple[int | None, int, dict[str, int]] | None = None
        batches: list[int | None] = [None]
        own = 1 if given is None else FileCase(name="", inputs=given, own=True).batch
        if varies_in_batch(self._inputs):
            batches.append(own)
        for batch, (guess, sizes) in itertools.product(batches, guesses(self._inputs, given, self._limits)):
            if guess is None and len(batches) == 1:
                return sizes, None
            # With the batch of the example, every size is right that it has.
            other = own + 1 if batch is None and given is not None and not self._limits else batch
            try:
                cases = file_cases(self._inputs, sizes, given, seed=self._check.seed, batch=other)
                maps = EmptyMaps()
                outputs = self.tried(next(cases).inputs, maps.watch)
            except ReferenceUnavailable as error:
                first = first or error
                if error.is_beyond:
                    # Other sizes would cost as much again.
                    break
                continue
            if guess is not None and (maps.found or shows_nothing(outputs)):
                # A pooled map may be empty where an image is too small, and its mean is no number.
                hollow = hollow or (batch, guess, sizes)
                continue
            return self._told_sizes(batch, guess, sizes, first)
        if hollow is not None:
            return self._told_sizes(*hollow, first)
        assert first is not None, "some size was tried"
        raise first

    def _told_sizes(
        self, batch: int | None, guess: int | None, sizes: dict[str, int], first: ReferenceUnavailable | None
    ) -> tuple[dict[str, int], int | None]:
        """Sizes that were found, with notes of what was guessed."""
        if batch is not None:
            self._notes.append(f"the batch is {batch}, since with others {first}")
        if guess is not None:
            self._notes.append(f"{told(guess, sizes)}: verify --inputs FILE tells other sizes")
        elif followers := {key: size for key, size in sizes.items() if size == FOLLOWS_BATCH}:
            self._notes.append(told(0, followers))
        return sizes, batch

    def _refuse_given(self, given: Mapping[str, Array], error: ReferenceUnavailable) -> None:
        """Tell that a file does not take the sizes that the user gave, where ONNX Runtime does not take them either.

        Raises:
            ExampleInputError: It does not.
        """
        try:
            open_session(self._file, SessionSettings(spinning=False)).run(given)
        except RuntimeFailure:
            shapes = ", ".join(f"{name} ({', '.join(map(str, value.shape))})" for name, value in given.items())
            takes = ", ".join(port.describe() for port in self._inputs)
            raise ExampleInputError(
                f"The file does not run on inputs of {shapes}: {error.op} ({error.node}) fails, {error.reason}.",
                where=self._origin or "the inputs",
                hint=f"The file takes {takes}: give sizes that fit its layers too.",
            ) from error


def _check_sizes(given: Mapping[str, Array], ranges: Ranges) -> None:
    """Refuse inputs where the model does not hold for their sizes."""
    for name, value in given.items():
        if (what := outside(ranges, name, value.shape)) is not None:
            raise ExampleInputError(
                f"The input {what}.",
                where="--inputs or --input-shape",
                hint="Give inputs in that range, or convert the model with example inputs of such sizes.",
            )
