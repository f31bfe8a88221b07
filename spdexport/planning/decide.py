"""Deciding which form each layer takes. Pure: nothing is rewritten here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from spdexport import cost
from spdexport.conv import ConvSite, Skipped
from spdexport.factors import (
    Factors,
    absorb_mask,
    break_even,
    delta_is_rounding,
    delta_ratio,
    drop_dead,
    effective_rank,
)
from spdexport.planning.patterns import check_patterns, matches
from spdexport.planning.plan import Decision, Delta, FormChoice, LayerPlan, Plan, PlanOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FactorSource = Callable[[ConvSite], Factors | Skipped | None]
"""Gives a layer's factors; or why it has none; or None, where the source has nothing to say about the layer."""


def make_plan(
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    source: FactorSource,
    options: PlanOptions,
    *,
    others: Iterable[str] = (),
) -> Plan:
    """Decide for every site.

    Args:
        sites: The layers of the model.
        skipped: Layers that no form can replace; passed on to the plan.
        source: Where factors come from.
        options: What the user wants.
        others: What else may be excluded: names of components that no layer of the model has.

    Raises:
        UsageError: A pattern matches nothing.
    """
    names = [s.name for s in sites] + [s.name for s in skipped]
    check_patterns(options.layers, [s.name for s in sites], "--layers")
    check_patterns(options.exclude, [*names, *others], "--exclude")
    decisions: list[Decision] = []
    for site in sites:
        if matches(site.name, options.exclude):
            found: Factors | Skipped | None = Skipped(
                name=site.name, kind=site.spec.kind, reason="excluded by --exclude"
            )
        elif options.layers and not matches(site.name, options.layers):
            found = Skipped(name=site.name, kind=site.spec.kind, reason="not named by --layers")
        else:
            found = source(site)
        if found is None:
            found = Skipped(name=site.name, kind=site.spec.kind, reason="it has no components")
        if isinstance(found, Skipped):
            decisions.append(Decision(site=site, layer=_untouched(site, found.reason), factors=None))
        else:
            decisions.append(_decide(site, found, options))
    return Plan(decisions=tuple(decisions), skipped=tuple(skipped), options=options)


def _untouched(site: ConvSite, reason: str) -> LayerPlan:
    macs = cost.dense_macs(site.spec, site.applications)
    return LayerPlan(
        name=site.name,
        kind=site.spec.kind,
        geometry=site.spec.describe(),
        form="dense",
        components=None,
        live=None,
        rank=None,
        break_even=break_even(site.spec, site.upsampling),
        macs_before=macs,
        macs_after=macs,
        delta_ratio=None,
        delta="none",
        masked=False,
        reason=reason,
    )


def _decide(site: ConvSite, factors: Factors, options: PlanOptions) -> Decision:
    spec, masked = site.spec, factors.mask is not None
    before = cost.dense_macs(spec, site.applications)
    if delta_is_rounding(site.weight, factors, spec):
        what = "none"
    elif options.delta is Delta.KEEP or (options.delta is Delta.AUTO and not masked):
        what = "kept"
    else:
        what = "dropped"
    kept = factors.components if options.keep_masks else max(factors.live, 1)
    even = break_even(spec, site.upsampling)
    pair = cost.shape_macs(site, cost.pair_shape(site, kept))
    if options.form is FormChoice.DENSE:
        form, after, reason = "dense", before, "--form dense"
    else:
        form, after = "factorized", pair
        reason = f"{factors.live} live of {factors.components} components, break-even {math.floor(even)}"
        if what == "kept":
            form, after = "factorized+delta", pair + before
            reason += "; the weight delta is added back"
    return Decision(
        site=site,
        factors=factors,
        layer=LayerPlan(
            name=site.name,
            kind=spec.kind,
            geometry=spec.describe(),
            form=form,
            components=factors.components,
            live=factors.live,
            rank=effective_rank(absorb_mask(drop_dead(factors))),
            break_even=even,
            macs_before=before,
            macs_after=after,
            delta_ratio=delta_ratio(site.weight, factors, spec),
            delta=what,
            masked=masked,
            reason=reason,
        ),
    )
