"""A search under a budget: in words, as tables that fit 80 columns, and as a picture for a page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text

from spdexport.compression.budgets import CostKind, LossKind
from spdexport.compression.result import RESISTS
from spdexport.names import count
from spdexport.report.numbers import ratio
from spdexport.report.picture import Label
from spdexport.report.tables import results_table
from spdexport.text import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spdexport.compression.result import Point, Searched
    from spdexport.report.console import FittingTable

POINTS_LEGEND = "cost, MACs and size relative to dense; loss on the selection set, and at most of data to come"
LAYERS_LEGEND = (
    "cost relative to the dense layer; shares of all layers' errors before the fit, and of all that is saved"
)

COMBINATIONS_LEGEND = (
    "loss of both steps together on the selection set; size of graph and weights and time of one batch, relative to "
    "dense"
)

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 24, 52
"""Of the picture and its margins, in its own units."""


def title(found: Searched) -> str:
    """Return what was found, in a sentence."""
    chosen = found.chosen
    if found.storage is not None:
        return _title_of_storage(found)
    if chosen is None:
        return f"The dense model was written: {found.kept_dense}"
    told = f"{chosen.cost:.2f} of the dense cost, {chosen.macs:.2f} of its MACs, {chosen.size:.2f} of its size"
    if found.budget.loss is not None and chosen.cost > RESISTS:
        return (
            f"This model resists: {_amount(found, found.budget.limit)} buys {1 - chosen.cost:.0%} of the cost ({told})"
        )
    return told


def _title_of_storage(found: Searched) -> str:
    """The same of a result in fewer bits."""
    taken = next(row for row in found.combinations if row.chosen)
    ends = ", the first and the last layer in float32" if taken.keeps_ends else ""
    forms = "the dense layers" if found.chosen is None else f"forms of {found.chosen.macs:.2f} of the MACs"
    return f"{forms} stored as {found.storage}{ends}"


def headline(found: Searched) -> list[str]:
    """Return what was found, what it costs, and what it loses, in lines that stand first."""
    said = [title(found)]
    if found.not_lowered is not None:
        said.append(f"The result stays in float32: {found.not_lowered}")
    if found.test is not None and (found.chosen is not None or found.storage is not None):
        seen = found.test.interval
        low, high = _amount(found, seen.low), _amount(found, seen.high)
        said.append(
            f"{found.loss} of the file on {count(found.test.samples, 'test sample')}: {_amount(found, seen.estimate)} "
            f"({seen.confidence:.0%} interval {low} to {high})"
            + ("" if found.test.labelled else "; without labels, the dense model's own answers count as right")
        )
    if found.timing is not None:
        said.append(
            f"time: {found.timing.median:.2f} of the dense model's, in pairs of runs "
            f"({found.timing.confidence:.0%} interval {found.timing.low:.2f} to {found.timing.high:.2f})"
        )
    if found.storage == "float16":
        said.append("on a CPU half precision saves size and no time: ONNX Runtime computes it in float32 there")
    return said


def summary(found: Searched) -> list[str]:
    """Return what was asked for, what was seen to be lost, and on which samples."""
    limit = _amount(found, found.budget.limit) if found.budget.loss is not None else f"{found.budget.limit:g} of dense"
    said = [f"budget: {found.budget.option} {limit}; cost: {found.cost}"]
    if found.chosen is not None:
        loss, bound = _amount(found, found.chosen.loss), _amount(found, found.chosen.bound)
        said.append(f"{found.loss} on the selection set {loss}, at most {bound} with {found.confidence:.0%} confidence")
    reached = _reached(found)
    if reached is not None and reached > found.budget.limit:
        said.append(f"no choice costs as little as was asked for: this is the cheapest, at {reached:.2f} of dense")
    said.append(f"samples: {found.sets}")
    return said


def _reached(found: Searched) -> float | None:
    """What the choice costs by what the budget limits; None for a budget of loss."""
    chosen = found.chosen
    taken = next((row for row in found.combinations if row.chosen), None)
    if found.budget.cost is CostKind.SIZE and taken is not None:
        return taken.size
    if chosen is None or found.budget.cost is None:
        return None
    match found.budget.cost:
        case CostKind.LATENCY:
            return None if found.timing is None else found.timing.low
        case CostKind.MACS:
            return chosen.macs
        case CostKind.SIZE:
            return chosen.size


class Page(Protocol):
    """What is written on."""

    def write(self, what: RenderableType, *, wrap: bool = True) -> None:
        """Write a table."""

    def line(self, text: str, style: str = "") -> None:
        """Write a paragraph."""

    def item(self, text: str) -> None:
        """Write a line of a list."""

    def heading(self, text: str) -> None:
        """Begin a section."""


def write(page: Page, found: Searched) -> None:
    """Write what the search found, before the conversion to it."""
    page.heading("search")
    for said in summary(found):
        page.item(said)
    if found.points:
        page.heading("loss against cost, of all choices that were tried")
        page.write(points_table(found))
        page.line(POINTS_LEGEND, "dim")
    if found.combinations:
        page.heading("forms and fewer bits, within one budget")
        page.write(combinations_table(found))
        page.line(COMBINATIONS_LEGEND, "dim")
        page.item(why_taken(found))
    if found.layers:
        page.heading("layers that change")
        page.write(layers_table(found))
        page.line(LAYERS_LEGEND, "dim")


def points_table(found: Searched) -> FittingTable:
    """Return a row for each choice, the dense model first."""
    made = results_table("choice", "cost", "MACs", "size", "loss", "at most", "budget")
    made.add_row(Text("dense"), "1", "1", "1", "0", "0", "kept" if found.budget.loss is not None else "-")
    for number, point in enumerate(found.points, 1):
        made.add_row(
            Text(f"{number}, taken" if point.chosen else str(number)),
            f"{point.cost:.3f}",
            f"{point.macs:.3f}",
            f"{point.size:.3f}",
            _amount(found, point.loss),
            _amount(found, point.bound),
            {None: "-", True: "kept", False: "exceeded"}[point.accepted],
        )
    return made


def combination_rows(found: Searched) -> list[tuple[str, ...]]:
    """Return the cells of a row for each combination: name, loss, its interval, at most, MACs, size, time, budget."""
    rows: list[tuple[str, ...]] = []
    for row in found.combinations:
        low, high = _amount(found, row.interval.low), _amount(found, row.interval.high)
        rows.append(
            (
                f"{row.name}{', ends float32' if row.keeps_ends else ''}{', taken' if row.chosen else ''}",
                _amount(found, row.interval.estimate),
                f"{low} to {high}",
                _amount(found, row.bound),
                f"{row.macs:.2f}",
                f"{row.size:.2f}",
                "-" if row.timing is None else f"{row.timing.median:.2f}",
                "kept" if row.accepted else "exceeded",
            )
        )
    return rows


def why_taken(found: Searched) -> str:
    """Return why one of the combinations was taken, or none."""
    taken = next((row for row in found.combinations if row.chosen), None)
    if taken is None:
        return "none was taken: none keeps the budget"
    if not taken.accepted:
        return f"{taken.name} was taken: none keeps the budget, and it is the nearest to it"
    return f"{taken.name} was taken: of those that keep the budget, it has {found.least}"


COMBINATIONS = ("combination", "loss", "interval", "at most", "MACs", "size", "time", "budget")


def combinations_table(found: Searched) -> FittingTable:
    """Return a row for each combination of forms and fewer bits."""
    made = results_table(*COMBINATIONS)
    for name, *cells in combination_rows(found):
        made.add_row(Text(name), *cells)
    return made


def layers_table(found: Searched) -> FittingTable:
    """Return a row for each layer that changes."""
    made = results_table("layer", "form", "ranks", "cost", "of the loss", "of the gain")
    for layer in found.layers:
        made.add_row(
            Text(one_line(layer.name)),
            layer.form,
            "x".join(map(str, layer.ranks)),
            f"{layer.cost:.2f}",
            f"{layer.loss_share:.1%}",
            f"{layer.cost_share:.1%}",
        )
    return made


def _amount(found: Searched, value: float) -> str:
    """A loss in its own unit: accuracy and norms as percentages."""
    if not math.isfinite(value):
        return "-"
    if found.budget.loss in (LossKind.KL, LossKind.METRIC):
        return ratio(value)
    return f"{100 * value:.2f}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One choice in the picture; y goes downwards.

    Attributes:
        x, y: Cost and loss.
        bound: The height of what is lost at most.
        chosen: Whether it was taken.
        refused: Whether it is beyond the budget.
        title: What it is, in words.
    """

    x: float
    y: float
    bound: float
    chosen: bool
    refused: bool
    title: str


def curve(found: Searched) -> dict[str, Any] | None:
    """Loss against cost as a picture; None without any choice."""
    if not found.points:
        return None
    limit = found.budget.limit if found.budget.loss is not None else 0.0
    finite = [value for point in found.points for value in (point.loss, point.bound) if math.isfinite(value)]
    greatest = max([limit, *finite, 1e-9]) * 1.1
    lowest = min([0.0, *finite])

    def up(value: float) -> float:
        share = (min(value, greatest) - lowest) / (greatest - lowest)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    def along(cost: float) -> float:
        return round(LEFT + min(max(cost, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def mark(point: Point) -> Mark:
        return Mark(
            x=along(point.cost),
            y=up(point.loss),
            bound=up(point.bound),
            chosen=point.chosen,
            refused=point.accepted is False,
            title=f"cost {point.cost:.3f}, {found.loss} {_amount(found, point.loss)}, "
            f"at most {_amount(found, point.bound)}",
        )

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "limit": up(limit) if found.budget.loss is not None else None,
        "up": [
            Label(x=LEFT - 8, y=up(value) + 4, text=_amount(found, value), anchor="end")
            for value in (greatest * step / 4 for step in range(5))
        ],
        "along": [
            Label(x=along(step / 5), y=HEIGHT - BOTTOM + 20, text=f"{step / 5:.1f}", anchor="middle")
            for step in range(6)
        ],
        "marks": [mark(point) for point in found.points],
    }


def values(found: Searched) -> dict[str, Any]:
    """Return what the page shows."""
    return {
        "title": title(found),
        "summary": [*headline(found)[1:], *summary(found)],
        "curve": curve(found),
        "layers": found.layers,
        "combinations": combination_rows(found),
        "columns": COMBINATIONS,
        "why_taken": why_taken(found),
        "loss": found.loss,
    }
