"""The edges that ONNX Runtime takes part in: export, optimize, and device for each provider that was asked for.

Each session runs twice on the first case, and again on every failure: what two runs of one session disagree on says
nothing about the file, unless both are wrong.

A device edge has two results. The first is the check: float32 means float32 (on CUDA with TF32 off and the algorithm
pinned). The second has the provider's own settings, which a deployment has. Where only the second is off, and by no
more than the rounding of the provider's coarser number format explains, that format is named and the model is not
blamed. A provider without settings of its own for a check has the second result alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from spdexport.errors import ExampleInputError, SourceError
from spdexport.files.onnx_reading import reload_proto
from spdexport.ort.providers import CPU, Provider, Purpose
from spdexport.ort.sessions import RuntimeFailure, Session, SessionSettings, open_session, provider_status
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.bounded import Bounded
from spdexport.verification.compare import FACTOR, Comparison, failed
from spdexport.verification.decisions_followed import Followed
from spdexport.verification.edge import Edge
from spdexport.verification.result import SEVERITY, EdgeResult, Status, WorstCase

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.verification.trial import Trial

MATRIX_OPERATORS = frozenset(("Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
"""What a provider must run itself for its edge to say anything; ONNX Runtime's fused forms included."""

BIASES, FUSION = "WeightBiasQuantization", "QDQSelectorActionTransformer"
WHOLE_NUMBERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((BIASES,), f"{BIASES}, which rounds float biases of quantized layers to whole numbers"),
    ((BIASES, FUSION), f"{FUSION}, which computes quantized operators in whole numbers and by formulas of their own"),
)
"""Optimizations of ONNX Runtime that are no more exact than a quantized file's own steps, and what they do."""

Locate = Callable[[SessionSettings], tuple[str | None, str]]
"""Finds the first layer that diverges under some settings: the layer or None, and a remark."""

Follow = Callable[[SessionSettings, "Mapping[str, Array]", Comparison], Followed]
"""Looks at the decisions of a session where they matter: from its outputs and what was found of them."""


@dataclass(slots=True)
class _Running:
    """An edge with its session; ``session`` is None where it could not be opened or was not asked for.

    ``check`` is the edge of the same provider with its settings for a check, for the edge with its own ones.
    """

    edge: Edge
    settings: SessionSettings
    session: Session | None = None
    check: Edge | None = None


class SessionEdges:
    """All sessions on one file, and what comparing their outputs finds.

    Args:
        file: The ONNX file.
        providers: Those of the device edge.
        is_evaluated: Whether the file itself is what the cases are evaluated with, so that its limits were seen to.

    Attributes:
        hidden: Outputs that no reference is known for, which are not compared.
    """

    def __init__(self, file: Path, providers: Sequence[Provider], *, is_evaluated: bool = False) -> None:
        self._file = file
        self._bounded = None if is_evaluated else Bounded(file)
        self._worst: WorstCase | None = None
        self.hidden: Collection[str] = ()
        self._running = [
            self._opened(Edge("export", CPU.name), SessionSettings(optimized=False, spinning=False)),
            self._opened(Edge("optimize", CPU.name), SessionSettings(optimized=True, spinning=False)),
        ]
        for provider in providers:
            self._open_device(provider)
        if not providers:
            device = Edge("device")
            device.settle(Status.NOT_RUN, "no provider beside the CPU was asked for")
            self._running.append(_Running(device, SessionSettings()))

    @property
    def open(self) -> list[Edge]:
        """The edges whose result still depends on comparisons."""
        return [r.edge for r in self._running if r.session is not None and r.edge.given is None]

    def results(self) -> tuple[EdgeResult, ...]:
        """Return the result of each edge."""
        return tuple(r.edge.result() for r in self._running)

    def settle(self, status: Status, reason: str) -> None:
        """Fix the result of every edge that is open."""
        for edge in self.open:
            edge.settle(status, reason)

    @property
    def worst(self) -> WorstCase | None:
        """The case on which a session was furthest from the reference; None before the first."""
        return self._worst

    def compare(self, trial: Trial, inputs: Mapping[str, Array], locate: Locate, follow: Follow | None = None) -> None:
        """Run every open session on one case and compare.

        Args:
            trial: The case's reference.
            inputs: By the file's names.
            locate: Called for the first failure of each edge.
            follow: Called for each session; None where no decision is to be looked at.
        """
        if self._bounded is not None and self.open:
            try:
                self._bounded.check(inputs)
            except SourceError as error:
                self.settle(Status.INCONCLUSIVE, error.what)
                return
        for running in self._running:
            if running.session is None or running.edge.given is not None:
                continue
            edge = running.edge
            try:
                values = self._ran(running.session, inputs)
            except RuntimeFailure as failure:
                found = _failure(failure, "cannot run the file", is_valid=self._is_valid(inputs))
                self._remember(edge, trial, inputs, {}, found)
                edge.add(trial.name, found)
                continue
            found = trial.compare(values)
            if follow is not None:
                found = _followed(edge, trial, follow(running.settings, values, found))
            if (found.status is Status.FAIL or not edge.compared) and running.settings.optimized:
                found = self._repeated(running.session, trial, inputs, values, found)
            if found.status is Status.FAIL and running.settings.purpose is Purpose.DEPLOYMENT:
                found = self._explained(running, trial, inputs, values, found)
            if found.status is Status.FAIL and edge.edge == "optimize" and found.is_value:
                found = self._explained_by_whole_numbers(running, trial, inputs, found, follow)
            if found.status is Status.FAIL and found.is_value and edge.first is None and not edge.remark:
                edge.first, edge.remark = locate(running.settings)
            self._remember(edge, trial, inputs, values, found)
            edge.add(trial.name, found)

    def add_layers(self, case: str, ratios: Mapping[str, float]) -> None:
        """Take in what the layers' outputs are off in the export edge's session, in the order of computation."""
        edge = self._running[0].edge
        off = {layer: ratio for layer, ratio in ratios.items() if not ratio <= FACTOR}
        if edge.given is not None or not off:
            return
        layer = next(iter(off))
        edge.first = edge.first or layer
        reason = f"the output of {layer} is off by {off[layer]:.3g} times what rounding explains in its worst channel"
        edge.add(case, replace(failed(reason), noise_ratio=off[layer], max_abs=0.0))

    def _remember(
        self, edge: Edge, trial: Trial, inputs: Mapping[str, Array], values: Mapping[str, Array], found: Comparison
    ) -> None:
        """Keep the arrays of the worst case; of equally bad ones the first."""
        rank = (SEVERITY.index(found.status), found.noise_ratio)
        if self._worst is not None and rank <= (SEVERITY.index(self._worst.status), self._worst.noise_ratio):
            return
        self._worst = WorstCase(
            edge=edge.edge,
            provider=edge.provider,
            case=trial.name,
            status=found.status,
            noise_ratio=found.noise_ratio,
            inputs=inputs,
            outputs=values,
            reference=trial.reference,
        )

    def _repeated(
        self,
        session: Session,
        trial: Trial,
        inputs: Mapping[str, Array],
        values: Mapping[str, Array],
        found: Comparison,
    ) -> Comparison:
        """What was found, unless a second run of the same session gives something else."""
        try:
            again = self._ran(session, inputs)
        except RuntimeFailure as failure:
            reason = f"nondeterministic: ONNX Runtime ran the file once and failed the second time: {failure}"
            return replace(found, status=Status.INCONCLUSIVE, reason=reason)
        spread = trial.spread(values, again)
        if spread.status is not Status.FAIL:
            return found
        what = f" by {spread.max_abs:.3g}, {spread.noise_ratio:.3g} times what rounding explains"
        reason = f"nondeterministic: two runs of one session on one input differ{what if spread.max_abs < inf else ''}"
        if found.status is Status.FAIL and trial.compare(again).status is Status.FAIL:
            return replace(found, reason=f"{found.reason}; {reason}")
        return replace(found, status=Status.INCONCLUSIVE, reason=reason)

    def _is_valid(self, inputs: Mapping[str, Array]) -> bool:
        """Whether the file means something on these inputs, whatever ONNX Runtime makes of it."""
        try:
            OnnxReference(reload_proto(self._file), self._file.parent, is_partial=True).run(inputs)
        except (ExampleInputError, ReferenceUnavailable):
            return False
        return True

    def _ran(self, session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: value for name, value in session.run(inputs).items() if name not in self.hidden}

    def _opened(self, edge: Edge, settings: SessionSettings, check: Edge | None = None) -> _Running:
        session = None
        try:
            session = open_session(self._file, settings)
        except RuntimeFailure as failure:
            found = _failure(failure, "does not load the file", is_valid=bool(_UNSUPPORTED.search(str(failure))))
            edge.settle(found.status, found.reason)
        return _Running(edge, settings, session, check)

    def _open_device(self, provider: Provider) -> None:
        missing = provider_status(provider)
        if missing is not None:
            device = Edge("device", provider.name)
            device.settle(Status.INCONCLUSIVE, missing)
            self._running.append(_Running(device, SessionSettings(provider=provider)))
            return
        settings = SessionSettings(provider=provider, optimized=True, spinning=False)
        check: Edge | None = None
        opened: list[_Running] = []
        if provider.check is not None:
            setting = "settings for a check" if provider.coarse is None else f"{provider.coarse.name} off"
            check = Edge("device", provider.name, setting=setting)
            opened.append(self._opened(check, settings))
        own = Edge("device", provider.name, setting="the provider's own settings")
        opened.append(self._opened(own, replace(settings, purpose=Purpose.DEPLOYMENT), check=check))
        for running in opened:
            self._check_placement(running)
        self._running += opened

    def _check_placement(self, running: _Running) -> None:
        """A provider that left convolutions to another one was not checked: inconclusive, with the nodes listed."""
        if running.session is None:
            return
        wanted, placed = running.settings.provider, running.session.placed_nodes()
        if placed is None:
            reason = "the installed ONNX Runtime does not say which provider ran which node: 1.24 and later do"
            running.edge.settle(Status.INCONCLUSIVE, reason)
            return
        elsewhere = [
            f"{node.name} ({node.op_type}) ran on {node.provider}"
            for node in placed
            if node.provider != wanted.ort_name and node.op_type in MATRIX_OPERATORS
        ]
        if elsewhere:
            shown = ", ".join(elsewhere[:5]) + (f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else "")
            running.edge.settle(Status.INCONCLUSIVE, f"{wanted.name} did not run all convolutions: {shown}")
        elif placed and all(node.provider != wanted.ort_name for node in placed):
            running.edge.settle(Status.INCONCLUSIVE, f"{wanted.name} ran none of the {len(placed)} nodes of the file")

    def _explained(
        self,
        running: _Running,
        trial: Trial,
        inputs: Mapping[str, Array],
        values: Mapping[str, Array],
        found: Comparison,
    ) -> Comparison:
        """A failure under the provider's own settings: kept, unless a coarse format or algorithm explains it."""
        coarse = running.settings.provider.coarse
        checked = None if running.check is None else dict(running.check.compared).get(trial.name)
        if coarse is None or (running.check is not None and (checked is None or checked.status is not Status.PASS)):
            return found
        if trial.rounded_to(coarse.unit_rounding).compare(values).status is not Status.PASS:
            return found
        name = coarse.name
        if running.check is None or coarse.options is None:
            reason = f"no more off than {name} explains: {coarse.advice}"
            return replace(found, status=Status.INCONCLUSIVE, reason=f"{found.reason}; {reason}")
        if self._fails_when_coarse(running.settings, trial, inputs):
            reason = f"this is {name}, not the model: {coarse.advice}"
            return replace(found, status=Status.PASS, reason=f"{found.reason}; {reason}")
        reason = (
            f"{name} off passes, and {name} alone does not explain it: the convolution algorithm that was chosen may"
        )
        return replace(found, status=Status.INCONCLUSIVE, reason=f"{found.reason}; {reason}")

    def _explained_by_whole_numbers(
        self,
        running: _Running,
        trial: Trial,
        inputs: Mapping[str, Array],
        found: Comparison,
        follow: Follow | None,
    ) -> Comparison:
        """A failure of an optimized session; none of the file's where some of `WHOLE_NUMBERS` alone make it.

        Further cases then run without these, so that they tell more.
        """
        if not _is_quantized(self._file):
            return found
        for without, what in WHOLE_NUMBERS:
            if set(without) <= set(running.settings.without):
                continue
            settings = replace(running.settings, without=without)
            try:
                session = open_session(self._file, settings)
                values = self._ran(session, inputs)
            except RuntimeFailure:
                return found
            other = trial.compare(values)
            if follow is not None:
                other = follow(settings, values, other).found
            if other.status is Status.PASS:
                running.session, running.settings = session, settings
                reason = f"{found.reason}; not so without ONNX Runtime's {what}"
                return replace(found, status=Status.INCONCLUSIVE, reason=reason)
        return found

    def _fails_when_coarse(self, settings: SessionSettings, trial: Trial, inputs: Mapping[str, Array]) -> bool:
        """Whether the provider's coarse format alone, with all else as in the check, shows the failure."""
        with contextlib.suppress(RuntimeFailure):
            session = open_session(self._file, replace(settings, purpose=Purpose.COARSE))
            return trial.compare(self._ran(session, inputs)).status is Status.FAIL
        return False


def _followed(edge: Edge, trial: Trial, followed: Followed) -> Comparison:
    """What was found given the session's decisions; the edge is told what they were, and where a fault is."""
    if followed.told:
        edge.followed.append((trial.name, followed.told))
    if followed.found.status is Status.FAIL and edge.first is None and not edge.remark:
        edge.first, edge.remark = followed.layer, followed.remark
    return followed.found


_UNSUPPORTED = re.compile(
    r"Type 'tensor\(bfloat16\)'|No Op registered|not a registered function/op|Exception during initialization"
    r"|is under development|Unsupported model IR version"
)
"""What ONNX Runtime says of files that may be valid: of kernels, operators and versions that it does not have. A
convolution in bfloat16 is no valid node before opset 22, and from there on one without a kernel on the CPU."""


def _is_quantized(file: Path) -> bool:
    """Whether a file has layers that ONNX Runtime may compute in whole numbers."""
    return any(node.op_type == "DequantizeLinear" for node in reload_proto(file).graph.node)


def _failure(failure: RuntimeFailure, what: str, *, is_valid: bool) -> Comparison:
    """What ONNX Runtime's refusal means: of a file that is valid, it says nothing about what the file computes."""
    # The path in front is that of the check's own copy.
    message = re.sub(r"^Load model from \S+ failed:\s*", "", str(failure))
    found = failed(f"ONNX Runtime {what}: {message}")
    if is_valid or failure.code == "NOT_IMPLEMENTED":
        return replace(found, status=Status.INCONCLUSIVE, noise_ratio=0.0, max_abs=0.0)
    return found
