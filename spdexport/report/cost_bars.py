"""What every layer costs, before and now, as bars beside one another, for a template to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.report.numbers import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.planning import LayerPlan

MOST = 24
"""Layers that are drawn: of more, those that cost most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBars:
    """One layer.

    Attributes:
        name: The layer.
        before, after: Widths in percent of the widest.
        told: Both numbers in words.
        dearer: Whether it costs more than it did.
    """

    name: str
    before: float
    after: float
    told: str
    dearer: bool


def cost_bars(layers: Sequence[LayerPlan]) -> tuple[CostBars, ...]:
    """Return the bars of the layers that cost most, in the model's order; none where no layer costs anything else."""
    if all(layer.macs_before == layer.macs_after for layer in layers):
        return ()
    costly = sorted(layers, key=lambda layer: max(layer.macs_before, layer.macs_after), reverse=True)[:MOST]
    widest = max(max(layer.macs_before, layer.macs_after) for layer in costly)
    return tuple(
        CostBars(
            name=layer.name,
            before=round(100 * layer.macs_before / widest, 2),
            after=round(100 * layer.macs_after / widest, 2),
            told=f"{short(layer.macs_before)} → {short(layer.macs_after)}",
            dearer=layer.macs_after > layer.macs_before,
        )
        for layer in layers
        if layer in costly
    )
