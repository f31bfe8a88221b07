from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spdexport.compression.allocation import at_cost, at_loss, frontier


@dataclass(frozen=True)
class Option:
    error: float
    cost: float


numbers = st.integers(0, 20).map(float)
layers = st.lists(st.lists(st.builds(Option, numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=200)
@given(layers, st.data())
def test_no_choice_of_all_is_better_at_the_price(options: list[list[Option]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from((1.0, 0.5, 3.0)), min_size=len(options), max_size=len(options)))
    points = frontier(options, weights)
    every = [
        (sum(w * o.error for w, o in zip(weights, choice, strict=True)), sum(o.cost for o in choice))
        for choice in itertools.product(*options)
    ]
    assert points[0].cost == min(cost for _, cost in every)
    assert points[-1].loss == pytest.approx(min(loss for loss, _ in every))
    for point in points:
        assert point.loss == pytest.approx(
            sum(w * o[i].error for w, o, i in zip(weights, options, point.chosen, strict=True))
        )
        # Optimal for its cost: no choice costs as little and loses less.
        assert not [1 for loss, cost in every if cost <= point.cost and loss < point.loss - 1e-9]
        # And for its price, which is what makes it a point of the frontier.
        best = min(loss + point.price * cost for loss, cost in every)
        assert point.loss + point.price * point.cost == pytest.approx(best)


@settings(max_examples=100)
@given(layers)
def test_more_cost_always_buys_less_loss(options: list[list[Option]]) -> None:
    points = frontier(options)
    for before, after in itertools.pairwise(points):
        assert before.cost < after.cost
        assert before.loss > after.loss
        assert before.price > after.price


def test_hull_convex_layers_are_solved_at_every_cost_of_the_frontier() -> None:
    a = [Option(9, 1), Option(4, 2), Option(1, 3), Option(0, 5)]
    b = [Option(12, 2), Option(2, 4), Option(0, 8), Option(2, 5)]
    points = frontier([a, b])
    assert [(p.cost, p.loss) for p in points] == [(3, 21), (6, 6), (7, 3), (13, 0)]
    assert all(p.chosen[1] != 3 for p in points), "dominated"


def test_a_point_is_found_by_cost_and_by_loss() -> None:
    points = frontier([[Option(0, 10), Option(3, 4), Option(9, 1)]])
    assert at_cost(points, 5).cost == 4
    assert at_cost(points, 4).cost == 4
    assert at_cost(points, 0.5).cost == 1, "nothing is cheaper"
    assert at_loss(points, 5).cost == 4
    assert at_loss(points, 0).cost == 10
    assert at_loss(points, -1).cost == 10


def test_a_weight_of_nothing_makes_a_layer_as_cheap_as_it_gets() -> None:
    layer = [Option(0, 10), Option(3, 4)]
    assert {p.chosen[1] for p in frontier([layer, layer], [1.0, 0.0])} == {1}
