"""Components that say something else than the weight beside them: told, since the weight delta hides it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import ComponentsError
from spdexport.factors import Factors, delta_ratio
from spdexport.forms import DeltaUse
from spdexport.names import some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spdexport.conv import ConvSpec
    from spdexport.planning.plan import Decision, Plan

_FOREIGN = 1e-3
"""The norm of a weight delta over the weight's, from which on it is told that the delta hides what V and U say."""

_CHANGED = 0.25
"""The same, of the components that a run brings itself: training leaves 0.05 to 0.2, which the layers' table shows."""

_AS_LARGE = 0.7
"""The same, from which on components are looked at in other orders; wrong orders of trained ones have 0.9 to 1.5."""

_FITS = 0.5
"""Another order fits where it leaves less than this of the delta."""


def hidden_notes(plan: Plan, *, beside: bool) -> tuple[str, ...]:
    """Return what the user should know of weight deltas that are added back beside components without a mask.

    Args:
        plan: The decisions.
        beside: Whether the components come from elsewhere than the weights.
    """
    told_from = _FOREIGN if beside else _CHANGED
    kept = [
        (layer.delta_ratio, layer.name)
        for d in plan.decisions
        if (layer := d.layer).delta is DeltaUse.KEPT and layer.delta_ratio is not None and layer.delta_ratio > told_from
    ]
    if not kept:
        return ()
    largest, where = max(kept)
    names = some([name for _, name in kept])
    told = (
        f"the weight delta, {largest:.1%} of the weight's norm in {where}, is added back in {names}: whatever V and U "
        "were changed to beside an unchanged weight, it takes away again; --edit changes components for good"
    )
    return (told,)


def check_orders(plan: Plan, where: str) -> None:
    """Refuse components that are nothing like the weight as they stand, and fit it in another order of axes.

    Raises:
        ComponentsError: Says which order fits, and how to write it.
    """
    for decision in plan.decisions:
        ratio = decision.layer.delta_ratio
        if decision.factors is None or ratio is None or ratio < _AS_LARGE:
            continue
        for order, other in _orders(decision):
            left = delta_ratio(decision.site.weight, other, decision.site.spec)
            if left < _FITS * ratio:
                raise ComponentsError(
                    f"V and U of {decision.site.name} leave a weight delta of {ratio:.0%} of the weight's norm, and of "
                    f"{left:.1%} where they are read as {order}.",
                    where=f"{where}, layer {decision.site.name}",
                    hint="Write V with its rows in (in / groups, *kernel) order, and U as (C, out), so that the weight "
                    "is (V U)^T.",
                )


def _orders(decision: Decision) -> Iterator[tuple[str, Factors]]:
    """The other orders that have the same shapes, in words, with the factors that they mean."""
    factors, spec = decision.factors, decision.site.spec
    assert factors is not None, "asked for where there are some"
    trained = factors.as_trained
    sizes, names = _patch(spec)
    V = np.asarray(trained.V)
    for order in permutations(range(len(sizes))):
        if order == tuple(range(len(sizes))):
            continue
        # The rows are taken to be in another order; bringing them back gives ours.
        given = V.reshape(*V.shape[:-2], *(sizes[i] for i in order), V.shape[-1])
        lead = V.ndim - 2
        back = [lead + order.index(i) for i in range(len(sizes))]
        turned = given.transpose(*range(lead), *back, lead + len(sizes)).reshape(V.shape)
        yield f"V with rows in ({', '.join(names[i] for i in order)}) order", replace(trained, V=turned)
    if V.ndim == 2 and V.shape[0] == trained.U.shape[1]:
        yield "the weight V U, and not its transpose", Factors(V=np.asarray(trained.U).T, U=V.T)


def _patch(spec: ConvSpec) -> tuple[Sequence[int], Sequence[str]]:
    """The axes of the rows of V: their sizes and names."""
    sizes = (spec.in_channels // spec.groups, *spec.kernel)
    assert math.prod(sizes) == spec.patch, "a patch has a value for each channel and tap"
    return sizes, ("in", *("kernel width", "kernel height", "kernel depth")[: spec.axes][::-1])
