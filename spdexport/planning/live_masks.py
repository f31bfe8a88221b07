"""Masks that are live: known only at run time, as inputs of the model, from its gates, or one for each location.

They are a constraint on the plan. A layer with a live mask has one admissible form, which is its own V and U with all
components; what its masks cost is added to what the form costs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from spdexport import cost
from spdexport.errors import UsageError
from spdexport.forms import GateMode, LiveInput, Role, RunTime, VariableMask
from spdexport.gates import GlobalShare
from spdexport.names import count, layer_of_call
from spdexport.planning.patterns import check_patterns, matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import ConvSite
    from spdexport.factors import Factors
    from spdexport.gates import GateFunction
    from spdexport.planning.plan import Plan

ALL = "all"
"""What stands for every layer with components."""


class MaskInputs(StrEnum):
    """What becomes of a caller that leaves a mask out."""

    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What the user wants to be known only at run time.

    Attributes:
        runtime_masks: Patterns of layers whose mask is an input ``mask/<layer>``, (batch, C); ``all`` for every layer
            with components.
        runtime_masks_per_location: Whether these inputs are (batch, *locations, C).
        runtime_delta_masks: Whether the same layers have an input ``delta_mask/<layer>``, without the axis of C.
        runtime_routing: Whether they have an input ``routing/<layer>``: where it is 0, the original layer is used.
        mask_inputs: ``optional``, one that is left out being all ones, or ``required``.
        gates: ``exact`` or ``local``: masks are the run's causal importances, computed in the graph. None for no gates.
        gate_threshold: Where given, gates make masks of 1 above it and 0 elsewhere.
        gate_outputs: Whether the importances are outputs, ``ci/<layer>``.
        activation_outputs: Whether the activations of V are outputs, ``activation/<layer>``.
    """

    runtime_masks: tuple[str, ...] = ()
    runtime_masks_per_location: bool = False
    runtime_delta_masks: bool = False
    runtime_routing: bool = False
    mask_inputs: MaskInputs = MaskInputs.OPTIONAL
    gates: GateMode | None = None
    gate_threshold: float | None = None
    gate_outputs: bool = False
    activation_outputs: bool = False

    @property
    def asks_for_live_masks(self) -> bool:
        """Whether it asks for anything."""
        return bool(self.runtime_masks) or self.gates is not None or self.activation_outputs

    @property
    def requires_masks(self) -> bool:
        """Whether an input that is omitted is an error rather than all ones."""
        return self.mask_inputs is MaskInputs.REQUIRED

    def masks_layer(self, layer: str) -> bool:
        """Return whether the layer is to have an input."""
        return ALL in self.runtime_masks or matches(layer, self.runtime_masks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMasks:
    """What the planner knows of live masks before it decides.

    Attributes:
        options: What the user wants.
        gates: The run's causal-importance functions by layer.
    """

    options: LiveOptions = field(default_factory=LiveOptions)
    gates: Mapping[str, GateFunction | GlobalShare] = field(default_factory=dict)

    def masked(self, layer: str, factors: Factors) -> Factors:
        """Return the factors, with a mask of ones wherever something else than a fixed mask is the mask.

        A layer has a mask if run-time masks or gates name it, even if all its values are one.
        """
        is_masked = self.options.masks_layer(layer) or self._gate(layer) is not None or factors.located is not None
        if factors.mask is not None or not is_masked:
            return factors
        return replace(factors, mask=np.ones((*factors.V.shape[:-2], factors.components)))

    def of(self, site: ConvSite, factors: Factors, *, keeps_delta: bool) -> RunTime | None:
        """Return what of a layer is known only at run time; None for nothing.

        Args:
            site: The layer.
            factors: As ``masked`` gives them.
            keeps_delta: Whether the layer's form has the weight delta.
        """
        options, layer = self.options, layer_of_call(site.name)
        is_input, gate = options.masks_layer(site.name), self._gate(site.name)
        if not (is_input or gate is not None or factors.located is not None or options.activation_outputs):
            return None

        def entry(role: Role, channels: int = 0) -> LiveInput | None:
            if not is_input:
                return None
            return LiveInput(role=role, layer=layer, per_location=options.runtime_masks_per_location, channels=channels)

        mask = VariableMask(
            layer=layer,
            input=entry(Role.MASK, site.spec.groups * factors.components),
            located=factors.located,
            gate=gate,
            mode=options.gates or GateMode.EXACT,
            threshold=options.gate_threshold,
            shows_importance=options.gate_outputs and gate is not None,
            shows_activation=options.activation_outputs,
        )
        delta_mask = None
        if options.runtime_delta_masks and keeps_delta and is_input:
            delta_mask = VariableMask(layer=layer, input=entry(Role.DELTA_MASK))
        return RunTime(
            mask=mask, delta_mask=delta_mask, routing=entry(Role.ROUTING) if options.runtime_routing else None
        )

    def check(self, layers: Sequence[tuple[ConvSite, RunTime | None]]) -> None:
        """Refuse what has nothing to work on.

        Args:
            layers: The layers with components, and what of each is known only at run time.

        Raises:
            UsageError: A pattern names no layer with components, or an option finds no layer, or too many calls of one.
        """
        options = self.options
        check_patterns(
            tuple(p for p in options.runtime_masks if p != ALL), [site.name for site, _ in layers], "--runtime-masks"
        )
        found = [run_time for _, run_time in layers if run_time is not None]
        if options.runtime_masks and not any(run_time.mask.input is not None for run_time in found):
            raise UsageError(
                "No layer has components, so none can have a mask.",
                where="--runtime-masks",
                hint="Look at the layers with spdexport inspect.",
            )
        if options.runtime_delta_masks and not any(run_time.delta_mask is not None for run_time in found):
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
        if options.gates is GateMode.LOCAL and any(isinstance(run.mask.gate, GlobalShare) for run in found):
            raise UsageError(
                "The run has one causal-importance function for all layers, which reads all of them before any mask is "
                "known: it cannot read the masked model.",
                where="--gates=local",
                hint="Give --gates, or --gates=exact: the importances come from the dense model, as in SPD.",
            )
        calls = Counter(layer_of_call(site.name) for site, _ in layers)
        for site, run_time in layers:
            layer = layer_of_call(site.name)
            if run_time is not None and site.inside:
                _check_inside(site, run_time)
            if run_time is not None and run_time.mask.gate is not None and calls[layer] > 1:
                raise UsageError(
                    f"{layer} is called more than once, and SPD has one importance for it.",
                    where=f"--gates, layer {layer}",
                    hint=f"Leave the layer out with --exclude '{layer}*'.",
                )

    def _gate(self, name: str) -> GateFunction | GlobalShare | None:
        return None if self.options.gates is None else self.gates.get(layer_of_call(name))


def _check_inside(site: ConvSite, run_time: RunTime) -> None:
    """Refuse what a layer in a body of If, Loop or Scan cannot have.

    A mask that is an input is the same at each step, and importances of what the layer itself reads are known there.
    """
    hint = "Leave the layers in bodies out with --exclude '* in *'."
    if run_time.reads_dense:
        raise UsageError(
            f"The layer is inside of {site.inside}, of which the model has no second, dense pass that exact gates could"
            " read.",
            where=f"--gates=exact, layer {site.name}",
            hint=f"Give --gates local. {hint}",
        )
    if run_time.mask.shows_importance or run_time.mask.shows_activation:
        option = "--activation-outputs" if run_time.mask.shows_activation else "--gate-outputs"
        raise UsageError(
            f"The layer is inside of {site.inside}, which may run never or many times: what it computes there is no "
            "output of the model.",
            where=f"{option}, layer {site.name}",
            hint=hint,
        )


NOTHING_LIVE = LiveMasks()
"""Of a model whose masks are all fixed, but for those that have another value at each location."""


def truncates_live() -> UsageError:
    """Return the error of a layer whose weight is to be truncated, and whose mask is live."""
    return UsageError(
        "A truncated weight has no components for a mask to choose among.",
        where="--rank, --energy or --max-error",
        hint="Leave it out, or leave the layers out of the run-time masks.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """What live masks cost beside the form of a layer.

    Attributes:
        macs: Multiply-accumulates for one sample.
        parameters: Numbers that the model stores.
    """

    macs: int = 0
    parameters: int = 0

    def __add__(self, other: LiveCost) -> LiveCost:
        return LiveCost(macs=self.macs + other.macs, parameters=self.parameters + other.parameters)


def live_costs(layers: Sequence[tuple[ConvSite, Factors | None, RunTime | None]]) -> list[LiveCost]:
    """Return what live masks cost in each layer: its masks, its routing, its gate, and the dense pass of exact gates.

    The dense pass has the layers before the last gate, whether they have components or not, and V once more for each
    gate that does not read the same in both passes, which is each but that of the first layer.

    Args:
        layers: All layers of the model in their order, their factors, and what of each is known only at run time.
    """
    exact = [i for i, (_, _, run_time) in enumerate(layers) if run_time is not None and run_time.reads_dense]
    last = max(exact, default=0)
    costs = []
    for index, (site, factors, run_time) in enumerate(layers):
        found = _own_cost(site, run_time) if run_time is not None else LiveCost()
        if index < last:
            dense = cost.dense_shape(site)
            stored = cost.shape_parameters(dense) if run_time is not None else 0
            found += LiveCost(macs=cost.shape_macs(site, dense), parameters=stored)
        if index in exact and index and factors is not None:
            v = replace(site.spec, out_channels=site.spec.groups * factors.components)
            found += LiveCost(macs=cost.dense_macs(v, site.applications))
        costs.append(found)
    return costs


def _own_cost(site: ConvSite, run_time: RunTime) -> LiveCost:
    macs, parameters = 0, run_time.mask.size
    if run_time.routing is not None:
        macs += cost.shape_macs(site, cost.dense_shape(site))
    if run_time.mask.gate is not None:
        macs += site.positions * run_time.mask.gate.macs
        parameters += run_time.mask.gate.parameters
    return LiveCost(macs=macs, parameters=parameters)


def live_notes(plan: Plan) -> tuple[str, ...]:
    """Return what the user should know of what is known only at run time."""
    notes = []
    masks = [d.run_time.mask for d in plan.decisions if d.run_time is not None]
    modes = {mask.mode for mask in masks if mask.gate is not None}
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
