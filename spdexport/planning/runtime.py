"""Which layers have masks that are known only at run time: inputs of the model, its gates, or one for each location."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport import cost
from spdexport.conv import Skipped
from spdexport.errors import UsageError
from spdexport.forms import DeltaUse, FormKind, GateMode, Role, RunTime, RuntimeInput, VariableMask
from spdexport.names import count, layer_of_call
from spdexport.planning.patterns import check_patterns, matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import ConvSite
    from spdexport.factors import Factors
    from spdexport.gates import GateFunction
    from spdexport.planning.decide import FactorSource
    from spdexport.planning.plan import Decision, Plan

ALL = "all"
"""What stands for every layer with components."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What the user wants to be known only at run time.

    Attributes:
        masks: Patterns of the layers with an input ``mask/<layer>``; ``all`` for each with components.
        per_location: Whether these inputs have the axes of the output's locations.
        delta_masks: Whether the same layers have an input ``delta_mask/<layer>``.
        routing: Whether they have an input ``routing/<layer>``.
        required: Whether an input that is omitted is an error rather than all ones.
        gates: Whose activations the run's gates read; None for no gates.
        threshold: Importances above it make a mask of 1, others of 0; None for the importances themselves.
        importances: Whether these are outputs, ``ci/<layer>``.
        activations: Whether the activations of V are outputs, ``activation/<layer>``.
    """

    masks: tuple[str, ...] = ()
    per_location: bool = False
    delta_masks: bool = False
    routing: bool = False
    required: bool = False
    gates: GateMode | None = None
    threshold: float | None = None
    importances: bool = False
    activations: bool = False

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return bool(self.masks) or self.gates is not None or self.activations

    def names(self, layer: str) -> bool:
        """Whether the layer is to have an input."""
        return ALL in self.masks or matches(layer, self.masks)


def masked_source(source: FactorSource, options: RuntimeOptions, gates: Mapping[str, GateFunction]) -> FactorSource:
    """The factors with a mask of ones wherever something else than a fixed mask is the mask.

    A layer has a mask if run-time masks or gates name it, even if all its values are one.
    """

    def masked(site: ConvSite) -> Factors | Skipped | None:
        found = source(site)
        if found is None or isinstance(found, Skipped) or found.mask is not None:
            return found
        is_masked = options.names(site.name) or (options.gates is not None and layer_of_call(site.name) in gates)
        if not (is_masked or found.located is not None):
            return found
        return replace(found, mask=np.ones((*found.V.shape[:-2], found.components)))

    return masked


def with_runtime(plan: Plan, options: RuntimeOptions, gates: Mapping[str, GateFunction]) -> Plan:
    """The plan with what is known only at run time; the layers concerned take the form of their own V and U.

    Args:
        plan: What was decided, of a source that ``masked_source`` gave.
        options: What the user wants.
        gates: The run's causal-importance functions by layer.

    Raises:
        UsageError: A pattern names no layer with components, or an option has nothing to work on.
    """
    decisions = _with_passes([_with_runtime(decision, options, gates) for decision in plan.decisions])
    _check(plan.decisions, decisions, options)
    return replace(plan, decisions=tuple(decisions))


def _with_runtime(decision: Decision, options: RuntimeOptions, gates: Mapping[str, GateFunction]) -> Decision:
    factors, layer = decision.factors, layer_of_call(decision.site.name)
    if factors is None:
        return decision
    is_input = options.names(decision.site.name)
    gate = None if options.gates is None else gates.get(layer)
    if not (is_input or gate is not None or factors.located is not None or options.activations):
        return decision
    channels = decision.site.spec.groups * factors.components

    def given(role: Role, channels: int = 0) -> RuntimeInput | None:
        if not is_input:
            return None
        return RuntimeInput(role=role, layer=layer, per_location=options.per_location, channels=channels)

    mask = VariableMask(
        layer=layer,
        input=given(Role.MASK, channels),
        located=factors.located,
        gate=gate,
        mode=options.gates or GateMode.EXACT,
        threshold=options.threshold,
        shows_importance=options.importances and gate is not None,
        shows_activation=options.activations,
    )
    delta_mask = None
    if options.delta_masks and decision.layer.delta is DeltaUse.KEPT and is_input:
        delta_mask = VariableMask(layer=layer, input=given(Role.DELTA_MASK))
    run_time = RunTime(mask=mask, delta_mask=delta_mask, routing=given(Role.ROUTING) if options.routing else None)
    return _literal(replace(decision, run_time=run_time, made=None))


def _literal(decision: Decision) -> Decision:
    """The decision with the source's own V and U, all of them, and the cost of that."""
    assert decision.factors is not None, "only layers with components have masks"
    assert decision.run_time is not None, "it was just decided"
    site, components = decision.site, decision.factors.components
    form = FormKind.literal(decision.layer.delta)
    shape = cost.pair_shape(site, components, form)
    routed = cost.shape_macs(site, cost.dense_shape(site)) if decision.run_time.routing is not None else 0
    layer = replace(
        decision.layer,
        form=form,
        kept=components,
        reason=f"its mask is {decision.run_time.mask.told()}: all components stay",
        truncation=None,
        truncated_to=None,
        macs_after=cost.shape_macs(site, shape) + routed,
        params_after=cost.shape_parameters(shape) + decision.run_time.mask.size,
        weighed=(),
        gain=None,
    )
    return replace(decision, layer=layer)


def _with_passes(decisions: list[Decision]) -> list[Decision]:
    """The decisions with what gates cost: their own maps and, of exact ones, the dense pass up to the last.

    The dense pass has the layers before the last gate, and V once more for each layer that does not read the same in
    both passes, which is each but the first.
    """
    exact = [i for i, d in enumerate(decisions) if _gate(d) is not None and _mode(d) is GateMode.EXACT]
    last = max(exact, default=0)
    found = []
    for index, decision in enumerate(decisions):
        site, gate = decision.site, _gate(decision)
        macs = parameters = 0
        if index < last:
            dense = cost.dense_shape(site)
            macs += cost.shape_macs(site, dense)
            parameters += cost.shape_parameters(dense) if decision.run_time is not None else 0
        if index in exact and index and decision.factors is not None:
            v = replace(site.spec, out_channels=site.spec.groups * decision.factors.components)
            macs += cost.dense_macs(v, site.applications)
        if gate is not None:
            macs += site.positions * sum(layer.weight.size for layer in gate.layers)
            parameters += sum(layer.weight.size + layer.bias.size for layer in gate.layers)
        layer = replace(
            decision.layer,
            macs_after=decision.layer.macs_after + macs,
            params_after=decision.layer.params_after + parameters,
        )
        found.append(replace(decision, layer=layer) if macs or parameters else decision)
    return found


def _gate(decision: Decision) -> GateFunction | None:
    return None if decision.run_time is None else decision.run_time.mask.gate


def _mode(decision: Decision) -> GateMode | None:
    return None if decision.run_time is None else decision.run_time.mask.mode


def runtime_notes(plan: Plan) -> tuple[str, ...]:
    """What the user should know of what is known only at run time."""
    notes = []
    modes = {_mode(d) for d in plan.decisions if _gate(d) is not None}
    if GateMode.EXACT in modes:
        notes.append(
            "gates exact: importances come from the dense model, of which the file holds a second pass, as in SPD"
        )
    if GateMode.LOCAL in modes:
        notes.append("gates local: importances come from the masked model's own activations, which differ from SPD's")
    roles = dict.fromkeys(i.role for i in plan.runtime_inputs)
    for role in roles:
        layers = [i.layer for i in plan.runtime_inputs if i.role is role]
        first = ", ".join(f"{role}/{layer}" for layer in layers[:3]) + (", ..." if len(layers) > 3 else "")
        notes.append(f"{count(len(layers), f'{role} input')}: {first}")
    return tuple(notes)


def _check(before: Sequence[Decision], decisions: Sequence[Decision], options: RuntimeOptions) -> None:
    names = [decision.site.name for decision in before if decision.factors is not None]
    check_patterns(tuple(p for p in options.masks if p != ALL), names, "--runtime-masks")
    found = [decision.run_time for decision in decisions if decision.run_time is not None]
    if options.masks and not any(run_time.mask.input is not None for run_time in found):
        raise UsageError(
            "No layer has components, so none can have a mask.",
            where="--runtime-masks",
            hint="Look at the layers with spdexport inspect.",
        )
    if options.delta_masks and not any(run_time.delta_mask is not None for run_time in found):
        raise UsageError(
            "No weight delta is kept, so none can be masked.",
            where="--runtime-delta-masks",
            hint="Give --delta keep with it; without, layers with masks drop their delta.",
        )
    if options.gates is not None and not any(run_time.mask.gate is not None for run_time in found):
        raise UsageError(
            "No layer that is decomposed has a causal-importance function.",
            where="--gates",
            hint="Give the SPD run or checkpoint that they are in as the source or as --components.",
        )
    for decision in decisions:
        if decision.run_time is not None and decision.run_time.mask.gate is not None and "#" in decision.site.name:
            raise UsageError(
                f"{layer_of_call(decision.site.name)} is called more than once, and SPD has one importance for it.",
                where=f"--gates, layer {layer_of_call(decision.site.name)}",
                hint=f"Leave the layer out with --exclude '{layer_of_call(decision.site.name)}*'.",
            )
    if before and any(
        d.layer.truncation is not None and r.run_time is not None for d, r in zip(before, decisions, strict=True)
    ):
        raise UsageError(
            "A truncated weight has no components for a mask to choose among.",
            where="--rank, --energy or --max-error",
            hint="Leave it out, or leave the layers out of the run-time masks.",
        )
