"""What a search came to, as rows that reports show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spdexport.compression.result import Combination, LayerShare, Point
from spdexport.prepare import LEFT_DENSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.compression.combinations import Combinations
    from spdexport.compression.search import Found, Search, Trial
    from spdexport.conv import Skipped
    from spdexport.planning import Plan
    from spdexport.planning.plan import Decision

NOT_CHEAPER = "the search keeps it dense: no form of it costs less"
NOT_WORTH = "the search keeps it dense: its forms lose more for what they save than those of other layers"


def points(trials: Sequence[Trial], taken: Trial | None) -> tuple[Point, ...]:
    """Return a row for each choice that was tried, the dearest first."""
    return tuple(
        Point(
            cost=trial.cost,
            macs=trial.macs,
            size=trial.size,
            loss=trial.lost.value,
            bound=trial.bound,
            accepted=trial.accepted,
            chosen=trial is taken,
        )
        for trial in sorted(trials, key=lambda trial: -trial.cost)
    )


def layers(search: Search, found: Found, taken: Trial | None) -> tuple[LayerShare, ...]:
    """Return a row for each layer that the choice changes, in the order of the graph."""
    if taken is None:
        return ()
    rows = [
        (site, options[0], options[index])
        for site, options, index in zip(search.sites, found.candidates, taken.allocation.chosen, strict=True)
        if index
    ]
    errors = sum(form.error for _, _, form in rows) or 1.0
    saved = sum(dense.cost - form.cost for _, dense, form in rows) or 1.0
    return tuple(
        LayerShare(
            name=site.name,
            form=form.kind.value,
            ranks=form.ranks,
            error=form.error,
            loss_share=form.error / errors,
            cost_share=(dense.cost - form.cost) / saved,
            cost=form.cost / dense.cost,
        )
        for site, dense, form in rows
    )


def with_reasons(search: Search, found: Found, plan: Plan, left: Iterable[Skipped]) -> Plan:
    """Return the plan of the file, in which layers that the search leaves dense have its reason.

    Those that it does not look at, ``left``, have the reason why.
    """
    why = {skipped.name: skipped.reason for skipped in left}
    options = dict(zip((site.name for site in search.sites), found.candidates, strict=True))

    def told(decision: Decision) -> Decision:
        layer = decision.layer
        if layer.reason != LEFT_DENSE or layer.name not in {*options, *why}:
            return decision
        reason = why.get(layer.name) or (NOT_WORTH if len(options[layer.name]) > 1 else NOT_CHEAPER)
        return replace(decision, layer=replace(layer, reason=reason))

    return replace(plan, decisions=tuple(map(told, plan.decisions)))


def combinations(found: Combinations | None) -> tuple[Combination, ...]:
    """Return a row for each combination of forms and fewer bits that was judged."""
    return tuple(
        Combination(
            name=row.name,
            storage=None if row.lowering is None else row.lowering.storage.value,
            keeps_ends=row.lowering is not None and row.lowering.keeps_ends,
            interval=row.lost.interval(),
            bound=row.bound,
            accepted=row.accepted,
            macs=1.0 if row.trial is None else row.trial.macs,
            size=row.size,
            timing=row.timing,
            chosen=found is not None and row is found.taken,
        )
        for row in (() if found is None else found.rows)
    )
