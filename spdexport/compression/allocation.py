"""One form for each layer: the least loss at every cost.

The loss is a sum over layers, and so is the cost; for a price lambda of cost each layer by itself takes the form of the
least ``weight * error + lambda * cost``. Those are the corners of the lower convex hull of its forms, in the plane of
cost and loss, and lambda falls from corner to corner: all that any lambda chooses are the hulls' edges, of all layers,
in the order of their slopes (Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers";
BALF, arXiv 2509.25136, has one multiplier over all layers too). Each point of that frontier has the least loss of all
choices of its cost; between two of them there may be better choices that no lambda finds, by less than the step between
the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Option(Protocol):
    """What is chosen among: a ``Candidate``."""

    @property
    def error(self) -> float:
        """What is lost; not negative."""

    @property
    def cost(self) -> float:
        """What it costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One choice for every layer.

    Attributes:
        chosen: Which of its options each layer takes.
        loss: The sum of weight times error.
        cost: The sum of the costs.
        price: The lambda down to which this choice is the best: loss that one more unit of cost would save is less.
    """

    chosen: tuple[int, ...]
    loss: float
    cost: float
    price: float


def frontier(layers: Sequence[Sequence[Option]], weights: Sequence[float] | None = None) -> tuple[Allocation, ...]:
    """Return the choices of every lambda, from the cheapest to the one of least loss.

    Args:
        layers: The options of each layer, at least one of each.
        weights: By which each layer's errors count; 1 if None.
    """
    weights = [1.0] * len(layers) if weights is None else weights
    hulls = [_hull(options, weight) for options, weight in zip(layers, weights, strict=True)]
    steps = sorted(
        (
            (_slope(layers[n], weight, cheap, dear), n, dear)
            for n, (hull, weight) in enumerate(zip(hulls, weights, strict=True))
            for cheap, dear in pairwise(hull)
        ),
        key=lambda step: (-step[0], step[1]),
    )
    chosen = [hull[0] for hull in hulls]
    found = [_allocation(layers, weights, chosen, steps[0][0] if steps else 0.0)]
    for index, (slope, layer, option) in enumerate(steps):
        chosen[layer] = option
        following = steps[index + 1][0] if index + 1 < len(steps) else 0.0
        # Edges of one slope are taken together: a lambda tells none of them from the others.
        if following < slope:
            found.append(_allocation(layers, weights, chosen, following))
    return tuple(found)


def at_cost(points: Sequence[Allocation], cost: float) -> Allocation:
    """Return the point of a frontier that loses least among those that cost no more; the cheapest if none does."""
    return next((point for point in reversed(points) if point.cost <= cost), points[0])


def at_loss(points: Sequence[Allocation], loss: float) -> Allocation:
    """Return the cheapest point of a frontier that loses no more; the one of least loss if none does."""
    return next((point for point in points if point.loss <= loss), points[-1])


def _hull(options: Sequence[Option], weight: float) -> list[int]:
    """The options at the corners of the lower convex hull, from the cheapest to the one of least loss."""
    order = sorted(range(len(options)), key=lambda n: (options[n].cost, weight * options[n].error, n))
    hull: list[int] = []
    for index in order:
        if hull and weight * options[index].error >= weight * options[hull[-1]].error:
            continue
        while hull and options[index].cost <= options[hull[-1]].cost:
            hull.pop()
        while len(hull) > 1 and _slope(options, weight, hull[-1], index) >= _slope(options, weight, *hull[-2:]):
            hull.pop()
        hull.append(index)
    return hull


def _slope(options: Sequence[Option], weight: float, cheap: int, dear: int) -> float:
    """The loss that is saved for each unit of cost, from one option to a dearer one."""
    saved = weight * (options[cheap].error - options[dear].error)
    return saved / (options[dear].cost - options[cheap].cost)


def _allocation(
    layers: Sequence[Sequence[Option]], weights: Sequence[float], chosen: Sequence[int], price: float
) -> Allocation:
    taken = [options[index] for options, index in zip(layers, chosen, strict=True)]
    return Allocation(
        chosen=tuple(chosen),
        loss=sum(weight * option.error for option, weight in zip(taken, weights, strict=True)),
        cost=sum(option.cost for option in taken),
        price=price,
    )
