"""Tables of layers and edges that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from spdexport.forms import DeltaUse, FormKind
from spdexport.names import count
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
_UNFOLDED = 24
"""Characters of a layer's name that always fit on one line; longer ones are folded, never cut."""

STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.INCONCLUSIVE: "yellow", Status.NOT_RUN: "dim"}


def words(status: Status) -> str:
    """A status in plain words."""
    return status.value.replace("_", " ")


def converted_layers(layers: Sequence[LayerPlan], *, verbose: bool) -> Table:
    """What became of each layer that has components; of very many those whose cost changes most."""
    table = _table([layer.name for layer in layers])
    forms = {_form(layer) for layer in layers}
    if len(forms) > 1:
        table.add_column("form")
    add_numbers(table, "C", "live", "even", "MACs", "now", "params", "now")
    fates = {layer.delta for layer in layers} - {"none"}
    if fates:
        table.add_column("delta")
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
    """The layers that a table has: all, or of very many those whose cost changes most."""
    return list(layers) if verbose or len(layers) <= MANY else _matter_most(layers)


def legend(layers: Sequence[LayerPlan]) -> str:
    """What the short headers mean, and what became of the deltas where it is the same of all."""
    fates = {layer.delta for layer in layers} - {"none"}
    return f"{LEGEND}; delta: what V U leaves of the weight, {fates.pop()}" if len(fates) == 1 else LEGEND


def inspected_layers(layers: Sequence[LayerPlan]) -> Table:
    """Every layer that could be decomposed, with what decides whether V and U pay."""
    table = _table([layer.name for layer in layers])
    add_numbers(table, "C", "live", "even", "delta", "dense", "factors")
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


def edges(results: Sequence[EdgeResult]) -> Table:
    """One line for each edge, more where it has more to say."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("edge", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("noise", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
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
    """Which layers of many the table has; empty where it has them all."""
    if verbose or len(layers) <= MANY:
        return ""
    return f"the {SHOWN} of {count(len(layers), 'layer')} whose cost changes most; --verbose shows all"


def results_table(first: str, *numbers: str) -> Table:
    """Return a table with a column of names and one for each kind of number, by their headers."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    add_numbers(table, *numbers)
    return table


def add_numbers(table: Table, *headers: str) -> None:
    """Add a column of numbers for each header."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def _table(names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    longest = max((len(one_line(name)) for name in names), default=0)
    table.add_column("layer", overflow="fold", min_width=min(longest, _UNFOLDED))
    table.add_column("geometry", overflow="fold")
    return table


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
