"""The choices of the sessions on one file: taken from the sessions, judged, and what comes after them compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import inliner

from spdexport.files.onnx_reading import reload_onnx, reload_proto
from spdexport.ort.sessions import RuntimeFailure
from spdexport.reference.decisions_quantized import SMALL_ELEMENTS
from spdexport.reference.decisions_table import RULES, has_rule
from spdexport.reference.noise import Noise
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.compare import FACTOR, Comparison, failed
from spdexport.verification.decisions import Given, Steadiness, follow, forcing
from spdexport.verification.file_layers import Evaluated, first_divergent, layer_ratios
from spdexport.verification.layers import layer_at
from spdexport.verification.result import Status
from spdexport.verification.tapping import tapping_hides, with_choices
from spdexport.verification.trial import NOISE_RUNS

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.ort.sessions import SessionSettings
    from spdexport.reference.decisions import Decide, Decision
    from spdexport.verification.trial import Trial

Chosen = Callable[[Collection[str]], Mapping[str, "Array"]]
"""Gives what the right model has in float64 for some values of the file, by name, as far as it has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What was found once the choices of a session were looked at.

    Attributes:
        found: The comparison in the place of the one without them.
        told: What was followed, in words.
        layer: The layer that is at fault; None where that was not looked for.
        remark: What is to be said beside it.
    """

    found: Comparison
    told: str = ""
    layer: str | None = None
    remark: str = ""


class Following:
    """Follows the choices of the sessions on one file.

    Args:
        file: The file.
        unit_rounding: Of its dtype.
        seed: Of the simulated rounding.
        is_right: Whether the file's own float64 evaluation is what is right; else it is compared with that first.
    """

    def __init__(self, file: Path, *, unit_rounding: float, seed: int, is_right: bool) -> None:
        self._file, self._u, self._seed, self._is_right = file, unit_rounding, seed, is_right
        self._model: onnx.ModelProto | None = None
        self._reference: OnnxReference | None = None
        self._names: list[str] = []
        self._inputs: Mapping[str, Array] = {}
        self._agrees: Followed | None = None
        self._known: list[tuple[dict[str, Array], Given]] = []

    def judge(
        self,
        trial: Trial,
        inputs: Mapping[str, Array],
        settings: SessionSettings,
        values: Mapping[str, Array],
        found: Comparison,
        chosen: Chosen,
    ) -> Followed:
        """Return what is found of a session's outputs given its own choices.

        Args:
            trial: The case, without its choices.
            inputs: By the file's names.
            settings: Of the session.
            values: Its outputs.
            found: What was found of them without a look at the choices.
            chosen: Of the right model, on these inputs.
        """
        try:
            self._open(inputs)
            if not self._names:
                return Followed(found=self._undecided(found))
            assert self._model is not None, "it is open"
            if not self._is_right:
                self._agrees = self._agrees or self._compared(trial, chosen)
                if self._agrees.found.status is Status.FAIL:
                    return self._agrees
            tapped = with_choices(self._model, self._file, self._names, inputs, settings)
            given = self._given({name: tapped[name] for name in self._names})
        except ReferenceUnavailable as error:
            return Followed(found=_with(found, f"the decisions could not be followed: {error}"))
        except RuntimeFailure as error:
            return Followed(found=_with(found, f"the decisions could not be tapped: {error}"))
        if given.wrong is not None:
            reason = f"a wrong decision: {given.wrong.words}"
            layers = {v.name: layer_at(node) for node in reload_onnx(self._file).graph for v in node.outputs}
            return Followed(found=failed(reason), layer=layers.get(given.wrong.output) or given.wrong.node)
        return self._after(trial, settings, values, tapped, given)

    def layer_ratios(self, inputs: Mapping[str, Array], settings: SessionSettings) -> Mapping[str, float]:
        """Return the noise ratio of each layer's output, as ``inner.layer_ratios``, given a session's choices.

        Empty where the file makes none.

        Raises:
            ReferenceUnavailable: The file cannot be evaluated.
            RuntimeFailure: The file does not run with its inner values as outputs.
        """
        self._open(inputs)
        if not self._names or self._model is None:
            return {}
        tapped = with_choices(self._model, self._file, self._names, inputs, settings)
        decide = forcing({name: tapped[name] for name in self._names})
        model = reload_onnx(self._file)
        return layer_ratios(
            self._file, model, Evaluated(self._file, model), inputs, unit_rounding=self._u, decide=decide
        )

    def _open(self, inputs: Mapping[str, Array]) -> None:
        """Read the file, and forget what is known of other inputs."""
        if self._model is None:
            self._model = reload_proto(self._file)
            if self._model.functions:
                self._model = inliner.inline_local_functions(self._model)
            self._names = _choices(self._model)
            self._reference = OnnxReference(self._model, self._file.parent)
        if inputs is not self._inputs:
            self._inputs, self._agrees, self._known = inputs, None, []

    def _evaluate(self, noise: Noise | None, decide: Decide) -> Mapping[str, Array]:
        assert self._reference is not None, "it is open"
        return self._reference.run(self._inputs, noise=noise, decide=decide)

    def _given(self, choices: dict[str, Array], *, ties_are_open: bool = False) -> Given:
        for known, given in self._known:
            if known.keys() == choices.keys() and all(np.array_equal(v, choices[n]) for n, v in known.items()):
                return given
        given = follow(self._evaluate, choices, unit_rounding=self._u, seed=self._seed, ties_are_open=ties_are_open)
        self._known += [] if ties_are_open else [(choices, given)]
        return given

    def _compared(self, trial: Trial, chosen: Chosen) -> Followed:
        """The file's own float64 evaluation against what is right, so that no choice hides a fault of the export."""
        assert self._reference is not None, "it is open"
        wanted = set(self._names)
        own: dict[str, Array] = {}
        self._reference.run(self._inputs, watch=lambda name, v: own.update({name: v}) if name in wanted else None)
        given = self._given(own)
        found = given.trial(trial).compare_exact(given.outputs, trial.reference)
        if found.status is Status.FAIL:
            given = self._given(dict(chosen(wanted)), ties_are_open=True)
            if given.wrong is not None:
                reason = f"a wrong decision in float64 already: {given.wrong.words}"
                return Followed(found=failed(reason), layer=given.wrong.node)
            found = given.trial(trial).compare_exact(given.outputs, trial.reference)
        reason = f"in float64, the file is not what it is made from: {found.reason}"
        return Followed(found=replace(found, reason=reason if found.reason else ""))

    def _after(
        self,
        trial: Trial,
        settings: SessionSettings,
        values: Mapping[str, Array],
        tapped: Mapping[str, Array],
        given: Given,
    ) -> Followed:
        """What comes after choices that are right."""
        right = given.trial(trial)
        found, told = right.compare(values), given.told()
        if found.status is not Status.FAIL:
            return Followed(found=found, told=told)
        seen = {name: tapped[name] for name in values}
        is_same = all(np.array_equal(value, seen[name], equal_nan=True) for name, value in values.items())
        if not is_same and right.compare(seen).status is not Status.FAIL:
            if given.followed or self._near():
                reason = "a session that has its decisions as outputs too decides otherwise, and is right"
                reason = f"{found.reason}; {reason}"
                return Followed(found=replace(found, status=Status.INCONCLUSIVE, reason=reason), told=told)
            return Followed(found=found, told=told, remark=tapping_hides(settings))
        decide = forcing({name: tapped[name] for name in self._names})
        found = self._undecided(found, given.unsteady, decide)
        if found.status is not Status.FAIL:
            return Followed(found=found, told=told)
        layer, remark = self._fault(settings, tapped)
        return Followed(found=found, told=told, layer=layer, remark=remark)

    def _fault(self, settings: SessionSettings, tapped: Mapping[str, Array]) -> tuple[str | None, str]:
        """The first layer that diverges, given the choices."""
        model = reload_onnx(self._file)
        decide = forcing({name: tapped[name] for name in self._names})
        evaluated = Evaluated(self._file, model)
        try:
            layer = first_divergent(
                self._file, model, evaluated, self._inputs, settings, unit_rounding=self._u, decide=decide
            )
        except RuntimeFailure as error:
            return None, f"the layers could not be tapped: {error}"
        return layer, "" if layer else tapping_hides(settings)

    def _undecided(self, found: Comparison, unsteady: Collection[str] = (), decide: Decide | None = None) -> Comparison:
        """What was found, but no failure where rounding changes a choice that cannot be followed."""
        if found.status is not Status.FAIL or not (unsteady or self._has_inner):
            return found
        names = list(unsteady) or self._near(decide, inner=True)
        if not names:
            return found
        reason = f"{found.reason}; rounding decides at {', '.join(names)}, which cannot be followed"
        return replace(found, status=Status.INCONCLUSIVE, reason=reason)

    @property
    def _has_inner(self) -> bool:
        """Whether something chooses in a subgraph."""
        graphs = [] if self._model is None else _subgraphs(self._model.graph)
        return any(has_rule(node.domain, node.op_type) for graph in graphs for node in graph.node)

    def _near(self, decide: Decide | None = None, *, inner: bool = False) -> list[str]:
        """The nodes whose choice changes with all that counts as rounding at once; inner ones, or all."""
        steady = Steadiness()

        def watch(node: Decision) -> Sequence[Array] | None:
            if node.is_inner or not inner:
                steady.decide(node)
            return None if decide is None else decide(node)

        for run in range(-1, NOISE_RUNS):
            steady.begin(is_exact=run < 0)
            self._evaluate(None if run < 0 else Noise(seed=run, unit_rounding=FACTOR * self._u), watch)
        return list(steady.changed)


def _with(found: Comparison, why: str) -> Comparison:
    """What was found, with the reason why decisions have no part in it; a pass stands as it is."""
    return found if found.status is Status.PASS else replace(found, reason=f"{found.reason}; {why}")


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for attribute in (a for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        yield attribute.g
        yield from _subgraphs(attribute.g)


def _gives_floats(node: onnx.NodeProto) -> bool:
    """Return whether a node is a cast to floats of more than a byte, which rounds and does not choose."""
    if node.op_type != "Cast":
        return False
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
    return to not in SMALL_ELEMENTS and onnx.helper.tensor_dtype_to_np_dtype(to).kind not in "iub"


def _choices(model: onnx.ModelProto) -> list[str]:
    """The values of a model that tell what it chooses."""
    names = []
    for node in model.graph.node:
        rule = RULES[node.op_type] if has_rule(node.domain, node.op_type) and not _gives_floats(node) else None
        taken = [] if rule is None else [node.output[i] for i in rule.taken if i < len(node.output)]
        names += taken if rule is not None and len(taken) == len(rule.taken) and all(taken) else []
    return names
