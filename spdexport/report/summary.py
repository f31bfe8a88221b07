"""What a plan changes, in sentences: costs before and after, why each form, and what truncating would gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.forms import DeltaUse, FormKind
from spdexport.names import count, layer_of_call, some
from spdexport.planning import ENERGY, FormChoice, Objective
from spdexport.report.numbers import below, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.planning import LayerPlan, Plan
    from spdexport.rewrite.onnx_dead import RemovedChannels
    from spdexport.rewrite.onnx_trim import Trimming

_SHOWN = 4
"""Layers named in a sentence."""


def totals(plan: Plan) -> list[str]:
    """Return what all layers cost before and after."""
    before, after = plan.macs_before, plan.macs_after
    share = f", {after / before:.2f} times the dense cost" if before else ""
    lines = [f"MACs for one sample: {short(before)} -> {short(after)}{share}"]
    if plan.params_before:
        lines.append(f"parameters of these layers: {short(plan.params_before)} -> {short(plan.params_after)}")
    return lines


def how_chosen(plan: Plan) -> str:
    """Return what the forms were chosen by; empty where one was given."""
    if plan.options.form is not FormChoice.AUTO:
        return ""
    what = {Objective.MACS: "MACs", Objective.PARAMS: "parameters", Objective.LATENCY: "latency"}
    least = what[plan.options.optimize_for]
    return f"the cheapest form of each layer, counted in {plan.cost}" if plan.cost else f"of least {least}"


def reasons(plan: Plan, layers: Sequence[LayerPlan]) -> list[str]:
    """Return why each of these layers has its form, where that was weighed or truncated."""
    if plan.options.form in (FormChoice.FACTORIZED, FormChoice.DENSE) and not plan.options.truncates:
        return []
    return [f"{layer.name}: {layer.reason}" for layer in layers]


def gains(plan: Plan) -> list[str]:
    """Return where exact forms gain nothing, that they do not, and what an approximation would."""
    weighed = [layer for layer in plan.layers if layer.gain is not None]
    if not weighed or plan.options.form is not FormChoice.AUTO:
        return []
    said = []
    if all(layer.form is FormKind.DENSE for layer in plan.layers):
        numbers = ", ".join(f"{x.name} {x.live} live, break-even {below(x.break_even)}" for x in weighed[:_SHOWN])
        more = f", and {len(weighed) - _SHOWN} more" if len(weighed) > _SHOWN else ""
        said.append(f"Exact pruning gains nothing here: every layer is cheapest dense ({numbers}{more}).")
    macs = plan.macs_after + sum(x.gain.macs - x.macs_after for x in weighed if x.gain is not None)
    if macs < plan.macs_after:
        said.append(f"--energy {ENERGY} would come to {short(macs)} MACs: an approximation, which you have to allow.")
    else:
        said.append(f"--energy {ENERGY} would gain nothing either.")
    paying = [
        (x.gain.paying_error, f"{x.name} {x.gain.paying_error:.3g} (rank {x.gain.paying_rank})")
        for x in weighed
        if x.gain is not None and x.gain.paying_error is not None
    ]
    if paying:
        names = some([text for _, text in sorted(paying)], _SHOWN)
        said.append(f"--max-error begins to make layers cheaper at {names}.")
    return said


def dearer(plan: Plan, *, verbose: bool) -> str:
    """Return that V and U cost more than the dense layers, where they do; else empty."""
    found = [layer for layer in plan.layers if layer.macs_after > layer.macs_before]
    # What was measured to be faster may have more multiply-accumulates.
    if not found or plan.options.form is FormChoice.AUTO:
        return ""
    names = some([layer.name for layer in found], len(found) if verbose else _SHOWN)
    verb = "costs" if len(found) == 1 else "cost"
    whole = "This costs more than the dense model. " if plan.macs_after > plan.macs_before else ""
    if plan.options.form.chain is not None:
        why = "their ranks are too high. --rank, --energy or --max-error truncates them"
        return f"{whole}{count(len(found), 'layer')} ({names}) {verb} more as {plan.options.form} than dense: {why}."
    why = "their live components are above the break-even number"
    if any(layer.delta is DeltaUse.KEPT for layer in found):
        why += ", or their delta is kept beside V and U"
    if plan.exactly_gated:
        why += ", and exact gates read the dense model beside them"
    return f"{whole}{count(len(found), 'layer')} ({names}) {verb} more as V and U than dense: {why}."


def trimmed(plan: Plan, trimming: Trimming | None) -> list[str]:
    """Return what removing dead channels came to, and padding; empty where nothing was done."""
    said = []
    if trimming is not None and trimming.layers:
        macs = macs_left(plan, trimming)
        gone = sum(layer.gone for layer in trimming.layers)
        what = f"dead channels: {count(trimming.channels, 'channel')} that nothing live writes or reads removed"
        more = f", {count(gone, 'layer')} with nothing else altogether" if gone else ""
        said.append(f"{what}{more}; MACs {short(plan.macs_after)} -> {short(macs)}")
    if trimming is not None and trimming.padded:
        pairs = count(len(trimming.padded), "layer")
        said.append(
            f"components of {pairs} padded with zeros to whole lanes of {plan.options.padding}, which run faster"
        )
    return said


def macs_left(plan: Plan, trimming: Trimming) -> int:
    """Multiply-accumulates of the layers of a plan for one sample, without their dead channels."""
    return round(sum(x.macs_after * trimming.share_left(layer_of_call(x.name)) for x in plan.layers))


def removed(layer: RemovedChannels) -> str:
    """Return what was removed from one layer."""
    if layer.gone:
        return f"{layer.name} ({layer.operator}): all of it"
    parts = [(layer.inputs, layer.inputs_before, "input"), (layer.outputs, layer.outputs_before, "output")]
    told = [f"{len(found)} of {count(before, f'{what} channel')}" for found, before, what in parts if found]
    return f"{layer.name} ({layer.operator}): {' and '.join(told)}"
