"""Whether a conversion is worth its work, told before it: the V and U of an exact SVD seldom are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.cost import dense_shape, pair_shape, shape_macs
from spdexport.forms import FormKind
from spdexport.lowrank import rank_for_energy, singular_values
from spdexport.planning import FormChoice

if TYPE_CHECKING:
    from spdexport.options import Options
    from spdexport.planning import Plan

ENERGIES = (0.999, 0.99, 0.95, 0.9)
"""Shares of the squared singular values that truncation is tried with, the gentlest first."""
ENOUGH = 0.95
"""The share of the dense cost that a truncation has to come to, to be worth its error."""


def costs_more(plan: Plan, components: str, options: Options) -> str:
    """Return what to tell of a plan whose V and U, of the SVD alone, cost more than the dense model; else nothing.

    Args:
        plan: What is to be done.
        components: Where V and U come from, as ``Prepared`` tells it: who has components of their own wants them.
        options: What was asked for.
    """
    asked = options.plan is not None or options.masks is not None or options.asks_for_live_masks
    if components != "svd" or asked or options.form is not FormChoice.FACTORIZED or options.planning.truncates:
        return ""
    if not plan.macs_before or plan.macs_after <= plan.macs_before:
        return ""
    said = f"V and U of the exact SVD will cost {plan.macs_after / plan.macs_before:.2f} times the dense model."
    for energy in ENERGIES:
        share = _truncated(plan, energy) / plan.macs_before
        if share < ENOUGH:
            gain = f"The same command with --form auto --energy {energy:g} comes to {share:.2f} times"
            return f"{said} {gain}, as an approximation; spdexport compress, given data, finds forms that lose less."
    return (
        f"{said} The same command with --form auto leaves each layer in its cheapest form; spdexport compress, given "
        "data, finds forms that cost less."
    )


def _truncated(plan: Plan, energy: float) -> int:
    """The multiply-accumulates of the cheapest forms where weights may be truncated."""
    total = 0
    for decision in plan.decisions:
        site, layer = decision.site, decision.layer
        if decision.factors is None or layer.form is FormKind.DENSE or site.is_lookup:
            total += layer.macs_before
            continue
        sigma = singular_values(site.weight, site.spec, site.weight.dtype)
        pair = pair_shape(site, max(rank_for_energy(sigma, energy), 1))
        total += min(shape_macs(site, dense_shape(site)), shape_macs(site, pair))
    return total
