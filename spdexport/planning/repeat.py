"""Repeating the form that a plan has written down for a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spdexport.forms import FormKind, pair_form
from spdexport.lowrank import recompressed
from spdexport.planning.candidates import Choice, literal, truncation
from spdexport.planning.chains import allows_chain, repeated_chain
from spdexport.planning.record import CHAINS
from spdexport.planning.truncation import allows

if TYPE_CHECKING:
    from spdexport.errors import PlanError
    from spdexport.planning.candidates import Layer
    from spdexport.planning.choices import PlanOptions
    from spdexport.planning.record import LayerRecord, PlanRecord


def repeated(layer: Layer, recorded: LayerRecord | None, record: PlanRecord, options: PlanOptions) -> Choice:
    """Return the form that the plan has for a layer, made from the layer's own weight.

    The plan that a file carries about itself says nothing that the options do not allow.

    Args:
        layer: The layer.
        recorded: What the plan says of it; None where that cannot be said of it.
        record: The plan.
        options: What the user wants.

    Raises:
        PlanError: The form does not compute this layer, and the plan must fit.
    """
    if recorded is None:
        return Choice(form=FormKind.DENSE, reason="the plan does not fit this layer")
    if recorded.form in CHAINS:
        return _chain(layer, recorded, record, options)
    if recorded.truncated_to is not None:
        if not record.strict and not allows(options, layer.site.name, layer.sigma, recorded.truncated_to):
            return Choice(form=FormKind.DENSE, reason="the plan truncates this layer further than the options do")
        choice = truncation(layer, min(recorded.truncated_to, layer.rank.full))
        if recorded.form is FormKind.DENSE:
            choice = replace(choice, form=FormKind.DENSE, components=None)
        return replace(choice, reason=recorded.reason, weighed=recorded.weighed)
    choice = _exact(layer, recorded, keep_masks=options.keep_masks)
    wanted = (recorded.form, recorded.kept)
    if record.strict and (choice.form, choice.components) != wanted:
        raise _other_weight(layer, " of rank ".join(str(part) for part in wanted if part is not None), record)
    return replace(choice, reason=recorded.reason, weighed=recorded.weighed)


def _chain(layer: Layer, recorded: LayerRecord, record: PlanRecord, options: PlanOptions) -> Choice:
    """A form of several kernels, at the ranks that were written down."""
    told = (
        f"{recorded.form} of {'ranks' if len(recorded.ranks) > 1 else 'rank'} {' and '.join(map(str, recorded.ranks))}"
    )
    choice = repeated_chain(layer, recorded.form, recorded.ranks)
    if choice is None:
        if record.strict:
            raise record.misfit(f"The layer {layer.site.name!r} has no form {told}.")
        return Choice(form=FormKind.DENSE, reason="the plan has a form that this layer cannot take")
    if record.strict and not recorded.truncates and choice.truncation is not None:
        raise _other_weight(layer, told, record)
    beyond = choice.truncation is not None and not allows_chain(layer, recorded.form, choice.ranks, options)
    if beyond and not record.strict:
        return Choice(form=FormKind.DENSE, reason="the plan truncates this layer further than the options do")
    return replace(choice, reason=recorded.reason, weighed=recorded.weighed)


def _other_weight(layer: Layer, told: str, record: PlanRecord) -> PlanError:
    return record.misfit(
        f"The form {told} that the plan has for {layer.site.name!r} is not its weight here.",
        "Give the --components and --masks that the plan was made with, or make another one.",
    )


def _exact(layer: Layer, recorded: LayerRecord, *, keep_masks: bool) -> Choice:
    """The form that was written down, as far as it computes the effective weight to rounding."""
    if recorded.form is FormKind.RECOMPRESSED:
        assert recorded.kept is not None, "reading the plan saw to it"
        rank = replace(layer.rank, rank=min(recorded.kept, layer.rank.full))
        # More components are added where those of the plan do not hold the weight.
        found = recompressed(layer.weight, layer.site.spec, layer.site.weight.dtype, rank)
        assert found is not None, "every rank pays"
        made = pair_form(layer.site.spec, found[1], layer.site.bias)
        return Choice(form=FormKind.RECOMPRESSED, reason="", components=found[1].components, made=made)
    if recorded.form is FormKind.CONSTANT and not layer.weight.any():
        return Choice(form=FormKind.CONSTANT, reason="", components=1)
    if recorded.form.is_literal:
        return literal(layer, keep_masks=keep_masks)
    return Choice(form=FormKind.DENSE, reason="")
