"""Tables of layers and edges. Where they do not fit, columns go by their ranks: see ``console.FittingTable``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from spdexport.forms import DeltaUse, FormKind
from spdexport.names import count
from spdexport.report.console import Column, FittingTable
from spdexport.report.explain import edge_reason
from spdexport.report.numbers import below, ratio, short
from spdexport.text import one_line
from spdexport.verification.result import EdgeResult, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.planning import LayerPlan

MANY = 30
"""Layers up to which all are shown."""
SHOWN = 12
"""Layers shown of more than MANY."""
_UNFOLDED = 20
"""Characters of a layer's name that always fit on one line; longer ones are folded, never cut."""

STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.INCONCLUSIVE: "yellow", Status.NOT_RUN: "dim"}


def words(status: Status) -> str:
    """Return a status in plain words."""
    return status.value.replace("_", " ")


_LAYER = (Column(header="layer", least=_UNFOLDED), Column(header="geometry", least=0, rank=4))
_COMPONENTS = (Column(header="C", rank=3), Column(header="live", rank=2), Column(header="even", rank=5))


def converted_layers(layers: Sequence[LayerPlan], *, verbose: bool) -> FittingTable:
    """Return what became of each layer that has components; of very many those whose cost changes most."""
    forms = {_form(layer) for layer in layers}
    fates = {layer.delta for layer in layers} - {"none"}
    table = FittingTable(
        *_LAYER,
        *([Column(header="form", least=0, rank=1)] if len(forms) > 1 else []),
        *_COMPONENTS,
        Column(header="MACs", rank=1),
        Column(header="now"),
        Column(header="params", rank=6, told="params"),
        Column(header="now", rank=6, told="params now"),
        *([Column(header="delta", least=0, rank=7)] if fates else []),
    )
    seen = shown(layers, verbose=verbose)
    for layer in seen:
        table.add_row(
            Text(one_line(layer.name)),
            layer.geometry,
            *([_form(layer)] if len(forms) > 1 else []),
            _number(layer.components),
            _number(layer.live),
            below(layer.break_even),
            short(layer.macs_before),
            short(layer.macs_after),
            short(layer.params_before),
            short(layer.params_after),
            *([_delta(layer, alike=len(fates) == 1)] if fates else []),
        )
    rest = [layer for layer in layers if layer not in seen]
    if rest:
        costs = [
            short(sum(getattr(x, name) for x in rest))
            for name in ("macs_before", "macs_after", "params_before", "params_after")
        ]
        end = [""] * bool(fates)
        blank = [""] * (len(table.columns) - 1 - len(costs) - len(end))
        table.add_row(f"{len(rest)} more", *blank, *costs, *end)
    return table


def shown(layers: Sequence[LayerPlan], *, verbose: bool) -> list[LayerPlan]:
    """Return the layers that a table has: all, or of very many those whose cost changes most."""
    return list(layers) if verbose or len(layers) <= MANY else _matter_most(layers)


def legend(layers: Sequence[LayerPlan]) -> str:
    """Return what the short headers mean, and what became of the deltas where it is the same of all."""
    fates = {layer.delta for layer in layers} - {"none"}
    return f"{LEGEND}; delta: what V U leaves of the weight, {fates.pop()}" if len(fates) == 1 else LEGEND


def inspected_layers(layers: Sequence[LayerPlan]) -> FittingTable:
    """Return every layer that could be decomposed, with what decides whether V and U pay."""
    table = FittingTable(
        *_LAYER,
        *_COMPONENTS,
        Column(header="delta", rank=6),
        Column(header="dense", rank=1),
        Column(header="factors"),
    )
    for layer in layers:
        table.add_row(
            Text(one_line(layer.name)),
            layer.geometry,
            _number(layer.components),
            _number(layer.live),
            below(layer.break_even),
            ratio(layer.delta_ratio),
            short(layer.macs_before),
            short(layer.macs_after) if layer.is_decomposed else "-",
        )
    return table


def edges(results: Sequence[EdgeResult]) -> FittingTable:
    """Return one line for each edge, more where it has more to say."""
    table = FittingTable(
        Column(header="edge", least=14),
        Column(header="status", least=12),
        Column(header="noise", rank=1),
        Column(header="", least=10),
    )
    for edge in results:
        name = f"{edge.edge} ({edge.provider})" if edge.provider else edge.edge
        table.add_row(
            Text(one_line(name)),
            Text(words(edge.status), STYLES[edge.status]),
            ratio(edge.noise_ratio),
            Text(one_line(edge_reason(edge))),
        )
    return table


LEGEND = "C: components; even: break-even, so many live ones cost no more than dense"
INSPECTED_LEGEND = f"{LEGEND}; MACs dense, and as V and U with the delta where it is kept"
"""What the short headers mean."""


def more_below(layers: Sequence[LayerPlan], *, verbose: bool) -> str:
    """Return which layers of many the table has; empty where it has them all."""
    if verbose or len(layers) <= MANY:
        return ""
    return f"the {SHOWN} of {count(len(layers), 'layer')} whose cost changes most; --verbose shows all"


def results_table(first: str, *numbers: str) -> FittingTable:
    """Return a table with a column of names and one for each kind of number, by their headers; the last go first."""
    ranked = (Column(header=header, rank=rank) for rank, header in enumerate(numbers))
    return FittingTable(Column(header=first, least=_UNFOLDED), *ranked)


def _matter_most(layers: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Those whose cost changes most, in the model's order."""
    changed = sorted(layers, key=lambda layer: abs(layer.macs_after - layer.macs_before), reverse=True)[:SHOWN]
    return [layer for layer in layers if layer in changed]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _delta(layer: LayerPlan, *, alike: bool) -> str:
    """The ratio and what became of it, unless the legend tells; a delta that is only rounding is none."""
    if layer.delta is DeltaUse.NONE:
        return "none"
    return ratio(layer.delta_ratio) if alike else f"{ratio(layer.delta_ratio)} {layer.delta}"


def _form(layer: LayerPlan) -> str:
    """The form in a few characters: ``rank 12`` for V and U that were made anew, ``tucker2 8x16`` with its ranks."""
    if layer.ranks:
        return f"{layer.form} {'x'.join(map(str, layer.ranks))}"
    return f"rank {layer.kept}" if layer.form is FormKind.RECOMPRESSED else layer.form.replace("+", " +")
