"""The frame of every verification: cases come, each gets what is right and a tolerance, and edges take comparisons in.

A kind of subject is a ``Verifier`` that says what is its own:

``cases``
    Where inputs are drawn: ``inputs.cases`` for programs, ``file_inputs.file_cases`` for files. What a file takes
    beside the model's own inputs, such as masks, is drawn there, as part of the case.
``reference``
    What is right: the float64 evaluation of the intended program (``torch_source.py``), of the file itself or another
    one (``file_alone.py``), of the model that the plan makes of an ONNX source (``onnx_source.py``), or of the program
    before it was rewritten (``programs.py``); and the same as an honest evaluation in the model's own dtypes gives it.
``perturbed``
    The reference with simulated rounding, which sets the tolerance.
``compare``
    The edges beside those of ONNX Runtime: a new one is an ``Edge`` among ``edges`` to which this adds.

Which case is left out or shows nothing, what the sessions find, the layers of a thorough check, and how all of it
becomes a ``Verification`` is here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from spdexport.ort.installed import versions
from spdexport.ort.sessions import RuntimeFailure, SessionSettings
from spdexport.reference.noise import Magnitudes, Noise
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.compare import FACTOR, Comparison
from spdexport.verification.decisions import Steadiness
from spdexport.verification.decisions_followed import Followed, Following
from spdexport.verification.result import Status, Verification
from spdexport.verification.trial import Trial, make_trial
from spdexport.verification.vacuous import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.planning import Plan
    from spdexport.verification.check import Check
    from spdexport.verification.edge import Edge
    from spdexport.verification.result import Approximation, EdgeResult, LayerResult
    from spdexport.verification.sessions import SessionEdges


class AnyCase(Protocol):
    """What the frame knows of a case."""

    @property
    def name(self) -> str:
        """In words, such as ``normal, batch 2``."""

    @property
    def own(self) -> bool:
        """Whether the inputs are the user's rather than generated."""

    @property
    def batch(self) -> int:
        """The number of samples."""


C = TypeVar("C", bound=AnyCase)


NOT_TAKEN = (IndexError, RuntimeError, TypeError, ValueError)
"""What torch raises where a program does not take an input: one of another size, an index outside of a table."""


class NotTakenError(Exception):
    """The model does not take the inputs of a case; its text says what it says of them."""


class Verifier(ABC, Generic[C]):
    """The state of one verification: edges collect comparisons while the cases go by.

    Args:
        check: How to check.
        sessions: The edges of ONNX Runtime; None where there is no file to run.
        unit_rounding: Of the model's dtype.
        edges: The edges beside those of the sessions.
    """

    MACS_BUDGET: ClassVar[float] = 2e10
    """Multiply-accumulates of one pass over all generated cases; after the first two, what exceeds it is left out."""

    def __init__(
        self, check: Check, sessions: SessionEdges | None, unit_rounding: float, edges: Sequence[Edge] = ()
    ) -> None:
        self._check, self._sessions, self._u, self._edges = check, sessions, unit_rounding, tuple(edges)
        self._notes: list[str] = []
        self._compared: list[str] = []
        self._seen = Outputs()
        self._ratios: dict[str, float] = {}
        self._steady = Steadiness()
        self._following: Following | None = None

    @property
    @abstractmethod
    def macs_per_sample(self) -> float:
        """Multiply-accumulates of the model on one sample, as far as they are known yet."""

    @abstractmethod
    def cases(self) -> Iterable[C]:
        """Return the inputs, the user's own first."""

    @abstractmethod
    def feeds(self, case: C) -> Mapping[str, Array]:
        """Return the inputs of a case by name, as a file takes them."""

    @abstractmethod
    def reference(self, case: C) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return the outputs that are right, by name: floats in float64.

        And the same in the dtypes that the model has them.

        Raises:
            NotTakenError: The model does not take these inputs.
        """

    @abstractmethod
    def perturbed(self, case: C, noise: Noise) -> Mapping[str, Array]:
        """Return the outputs that are right, with simulated rounding."""

    @abstractmethod
    def compare(self, case: C, trial: Trial) -> None:
        """Add what a case shows to the edges beside those of the sessions."""

    def locate(self, case: C, settings: SessionSettings) -> tuple[str | None, str]:
        """Return the first layer that diverges in a session with these settings, or None, and a remark.

        Raises:
            RuntimeFailure: ONNX Runtime does not run the file with its layers tapped.
        """
        raise NotImplementedError("a runner with sessions finds layers in them")

    def layer_ratios(self, case: C) -> Mapping[str, float]:
        """Return the noise ratio of each layer's output, in the order of computation.

        Raises:
            RuntimeFailure: ONNX Runtime does not run the file with its layers tapped.
        """
        raise NotImplementedError("a runner with sessions compares layers in them")

    def chosen(self, case: C, names: Collection[str]) -> Mapping[str, Array]:  # noqa: ARG002 - some runners know none
        """Return what the right model has in float64 for some values of the file, by name, as far as it has them."""
        return {}

    def unusable(self, case: C, trial: Trial) -> str | None:
        """Return why nothing can be compared with this reference; None where something can."""
        if not any(value.size for value in trial.reference.values()):
            return "the outputs are empty"
        if trial.has_nan:
            sick = [name for name, value in self.feeds(case).items() if _has_nan(value)]
            where = f"the input {', '.join(sick)}" if sick else "no input"
            return f"the reference itself is NaN ({where} has NaN)"
        if trial.overflows:
            return "the model overflows its own dtype"
        if trial.unsettled:
            return f"rounding decides whether {', '.join(trial.unsettled)} is finite"
        return None

    @property
    def open(self) -> list[Edge]:
        """The edges whose result still depends on comparisons."""
        found = [edge for edge in self._edges if edge.given is None]
        return found if self._sessions is None else found + self._sessions.open

    def run(self) -> None:
        """Run all cases over all edges."""
        budget = self.MACS_BUDGET
        for index, case in enumerate(self.cases()):
            cost = self.macs_per_sample * case.batch
            if not (case.own or self._check.thorough) and index > 1 and cost > budget:
                self._notes.append(f"left out for time: {case.name}")
                continue
            self._check.progress(f"comparing outputs: {case.name}")
            try:
                self._case(case)
            except ReferenceUnavailable as error:
                # One more sample may be too much where one is not.
                if case.own or not error.is_beyond or not self._compared:
                    raise
                self._notes.append(f"left out: {case.name}, since {error}")
            budget -= self.macs_per_sample * case.batch

    def trial(self, case: C) -> Trial:
        """Return what is right on a case, and the tolerance."""
        exact, own = self.reference(case)
        return self.measured(case.name, exact, own, lambda noise: self.perturbed(case, noise))

    def measured(
        self,
        name: str,
        exact: Mapping[str, Array],
        own: Mapping[str, Array],
        rounding: Callable[[Noise], Mapping[str, Array]],
    ) -> Trial:
        """Return the tolerance of outputs, from the same with simulated rounding."""
        shared = Magnitudes()
        return make_trial(
            name,
            exact,
            own,
            lambda seed, u: rounding(Noise(seed=seed, unit_rounding=u, magnitudes=shared)),
            seed=self._check.seed,
            unit_rounding=self._u,
            tolerance=self._check.tolerance,
        )

    def result(
        self,
        *,
        edges: Sequence[EdgeResult],
        artifacts: Mapping[str, str],
        layers: Sequence[LayerResult] = (),
        approximation: Approximation | None = None,
        plan: Plan | None = None,
    ) -> Verification:
        """Return all that was found, with the results of the edges."""
        tolerance = self._check.tolerance
        return Verification(
            edges=tuple(edges),
            approximation=approximation,
            inputs=tuple(self._compared),
            notes=tuple(self._notes),
            seed=self._check.seed,
            versions=versions(),
            artifacts=artifacts,
            plan=plan,
            layers=tuple(layers),
            worst=None if self._sessions is None else self._sessions.worst,
            atol=None if tolerance is None else tolerance.atol,
            rtol=None if tolerance is None else tolerance.rtol,
        )

    def judge_still(self) -> None:
        """Take back passes on outputs that do not react to the inputs."""
        self._notes += self._seen.judge(self.open)

    def _case(self, case: C) -> None:
        try:
            trial = self.trial(case)
        except NotTakenError as error:
            self._shows_nothing(case, f"the model does not take it ({error})")
            return
        what = self.unusable(case, trial)
        if what is not None:
            self._shows_nothing(case, what)
            return
        self._compared.append(case.name)
        self._seen.add(trial.reference)
        self.compare(case, trial)
        if self._sessions is None:
            return
        inputs = self.feeds(case)

        def follow(settings: SessionSettings, values: Mapping[str, Array], found: Comparison) -> Followed:
            return self._followed(case, trial, inputs, settings, values, found)

        self._sessions.compare(trial, inputs, lambda settings: self._located(case, settings), follow)
        if self._check.thorough:
            self._compare_layers(case)

    def _followed(
        self,
        case: C,
        trial: Trial,
        inputs: Mapping[str, Array],
        settings: SessionSettings,
        values: Mapping[str, Array],
        found: Comparison,
    ) -> Followed:
        """What was found, given the session's decisions where these may matter: elsewhere nobody looks at them."""
        may_matter = found.status is not Status.PASS or self._steady.changed
        if self._following is None or not may_matter or not found.is_value:
            return Followed(found=found)
        self._check.progress(f"following decisions: {case.name}")
        return self._following.judge(trial, inputs, settings, values, found, lambda names: self.chosen(case, names))

    def _shows_nothing(self, case: C, why: str) -> None:
        """A generated input may be one that shows nothing; with the user's own, that is the result."""
        if not case.own:
            self._notes.append(f"left out, since {why}: {case.name}")
            return
        self._compared.append(case.name)
        for edge in self.open:
            edge.add(case.name, Comparison(status=Status.INCONCLUSIVE, noise_ratio=0, max_abs=0, reason=why))

    def _located(self, case: C, settings: SessionSettings) -> tuple[str | None, str]:
        self._check.progress("finding the first layer that diverges")
        try:
            return self.locate(case, settings)
        except RuntimeFailure as failure:
            return None, f"the layers could not be tapped: {failure}"

    def _compare_layers(self, case: C) -> None:
        self._check.progress(f"comparing layers: {case.name}")
        try:
            found = self.layer_ratios(case)
            if self._following is not None and not all(ratio <= FACTOR for ratio in found.values()):
                # A layer behind a decision may be right given another one.
                given = self._following.layer_ratios(self.feeds(case), SessionSettings(spinning=False))
                found = {layer: given.get(layer, ratio) for layer, ratio in found.items()}
        except RuntimeFailure as failure:
            note = f"the layers could not be tapped: {failure}"
            self._notes += [] if note in self._notes else [note]
            return
        for layer, ratio in found.items():
            self._ratios[layer] = max(self._ratios.get(layer, 0.0), ratio)
        if self._sessions is not None and self._check.tolerance is None:
            self._sessions.add_layers(case.name, found)


def _has_nan(values: Array) -> bool:
    return values.dtype.kind not in "biu" and bool(np.isnan(values).any())
