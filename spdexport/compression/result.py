"""What a search came to, as reports tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.pipeline import Conversion

if TYPE_CHECKING:
    from spdexport.compression.bounds import Interval
    from spdexport.compression.budgets import Budget
    from spdexport.ort.timing import Ratio

RESISTS = 0.9
"""A cost, relative to dense, above which a model is said to resist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One choice that the search tried.

    Attributes:
        cost: By the cost model, relative to the dense layers.
        macs: Multiply-accumulates, likewise.
        size: Numbers that are stored, likewise.
        loss: What was lost on the selection set.
        bound: What is lost at most of data to come, as the selection set tells.
        accepted: Whether the bound is within the budget; None for a budget of cost.
        chosen: Whether it is the one that was taken.
    """

    cost: float
    macs: float
    size: float
    loss: float
    bound: float
    accepted: bool | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Forms, fewer bits, or both, judged on the selection set.

    Attributes:
        name: What it is, in a word or two.
        storage: What numbers are stored as; None for float32.
        keeps_ends: Whether the first and the last layer stay in float32.
        interval: The loss by both steps together, and where that of data to come lies.
        bound: What is lost at most of data to come.
        accepted: Whether the budget is kept.
        macs: Multiply-accumulates, relative to dense.
        size: Bytes of the file, relative to the dense one's.
        timing: The time of one batch over the dense model's, in pairs.
        chosen: Whether it is the one that was taken.
    """

    name: str
    storage: str | None
    keeps_ends: bool
    interval: Interval
    bound: float
    accepted: bool
    macs: float
    size: float
    timing: Ratio | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """What one layer has in the choice that was taken.

    Attributes:
        name: The layer's name.
        form: Its kind of form.
        ranks: Channels of each group between its stages.
        error: The relative error of its output before the fit, of squares.
        loss_share: That, as a share of all layers' errors.
        cost_share: What it saves, as a share of what all layers save.
        cost: What its form costs, relative to the dense layer.
    """

    name: str
    form: str
    ranks: tuple[int, ...]
    error: float
    loss_share: float
    cost_share: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the file loses on samples that nothing was chosen by.

    Attributes:
        interval: The loss, and where that of data to come lies.
        samples: How many there are.
        labelled: Whether they have labels; without, the dense model's answers count as right.
    """

    interval: Interval
    samples: int
    labelled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The search.

    Attributes:
        budget: What was asked for.
        loss: What is lost, in a few words.
        cost: The cost model, in words.
        sets: How the samples came about.
        confidence: Of the bounds.
        points: All choices that were tried, from the dearest to the cheapest.
        layers: Those that the choice changes, in the order of the graph.
        test: What the file loses.
        timing: The time of the file over that of the dense one, in pairs; None where it was not taken.
        kept_dense: Why the dense model was written after all; None where it was not.
        combinations: Forms and fewer bits beside each other; empty where fewer bits were not asked for.
        least: What the taken one has least of, of those that keep the budget, such as ``the least time in int8``; ""
            without combinations.
        storage: What the numbers of the result are stored as; None for float32.
        not_lowered: Why the result is not in the fewer bits that were asked for; None where it is.
    """

    budget: Budget
    loss: str
    cost: str
    sets: str
    confidence: float
    points: tuple[Point, ...]
    layers: tuple[LayerShare, ...]
    test: Judged | None
    timing: Ratio | None
    kept_dense: str | None
    combinations: tuple[Combination, ...] = ()
    least: str = ""
    storage: str | None = None
    not_lowered: str | None = None

    @property
    def chosen(self) -> Point | None:
        """The choice that was taken; None for the dense model."""
        return next((point for point in self.points if point.chosen), None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compression(Conversion):
    """A conversion to the forms that a search found.

    Attributes:
        search: How they were found, and what they lose.
    """

    search: Searched
