"""Forms and fewer bits together: which of the two, or both, keeps a budget for the least cost.

Both steps lose something, and one budget is for their sum: forms that are quantized afterwards have a smaller share of
it. So the frontier is searched once more, and each choice is judged as the file will be: fitted, and in fewer bits.
Multiply-accumulates do not tell eight bits from thirty-two. Where they are what is to be least, combinations are
compared by the time that a batch takes here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.compression.budgets import CostKind
from spdexport.compression.timing import paired
from spdexport.planning import Objective
from spdexport.precision import Storage, Unstorable
from spdexport.steps import Remark

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.compression.budgets import Budget
    from spdexport.compression.losses import Lost
    from spdexport.compression.lowering import Lowering, Wanted
    from spdexport.compression.search import Found, Search, Trial
    from spdexport.conv import Array
    from spdexport.ort.timing import Ratio

SECONDS = 4.0
"""How long the time of a combination is measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combined:
    """One combination, judged on the selection set.

    Attributes:
        trial: The choice of forms; None for the dense layers.
        lowering: What makes its numbers fewer bits; None for float32.
        lost: What is lost on the selection set, by both steps.
        bound: What is lost at most of data to come.
        accepted: Whether the bound is within the budget; of a budget of cost, whether the cost is.
        size: Bytes of the file, relative to the dense one's.
        timing: Its time over the dense model's, at the batch that is timed; None before that.
    """

    trial: Trial | None
    lowering: Lowering | None
    lost: Lost
    bound: float
    accepted: bool
    size: float
    timing: Ratio | None = None

    @property
    def name(self) -> str:
        """What it is, in a word or two."""
        forms = [] if self.trial is None else ["factorized"]
        return " + ".join([*forms, *([] if self.lowering is None else [self.lowering.storage.value])])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combinations:
    """All that were judged.

    Attributes:
        rows: In the order in which they came about.
        taken: The best; None where the dense model is.
        refused: Why the result is not in the fewer bits that were asked for; None where it is, or needs not be.
        least: What the best has least of, and among which, in a few words.
    """

    rows: tuple[Combined, ...]
    taken: Combined | None
    refused: str | None
    least: str


class Combining:
    """The search for the best combination, behind that for forms.

    Args:
        search: The search, which has run.
        found: What it found.
        budget: What both steps together are to keep.
        wanted: The fewer bits.
        objective: What is to be least within a budget of loss.
        feeds: Inputs of the batch that is timed.
        seed: Of the resampling of times.
        progress: Told what is being done.
    """

    def __init__(
        self,
        search: Search,
        found: Found,
        budget: Budget,
        wanted: Wanted,
        *,
        objective: Objective,
        feeds: Mapping[str, Array],
        seed: int,
        progress: Callable[[str], None],
    ) -> None:
        self._search, self._found, self._budget, self._wanted = search, found, budget, wanted
        self._objective, self._feeds, self._seed, self._progress = objective, feeds, seed, progress
        self._dense_bytes = _bytes(search.dense.model)

    def run(self, lowering: Lowering) -> Combinations:
        """Judge what there is, and take the best."""
        rows = [] if self._found.chosen is None else [self._row(self._found.chosen, None)]
        why = None
        try:
            alone, lowering = self._alone(lowering)
            rows.append(alone)
            rows += self._both(lowering, alone)
        except Unstorable as error:
            why = f"the model cannot be stored as {lowering.storage}: {error}"
        return self._best(rows, why)

    def _alone(self, lowering: Lowering) -> tuple[Combined, Lowering]:
        """The dense layers in fewer bits; with the first and the last left in float32 where that keeps the budget."""
        row = self._row(None, lowering)
        if row.accepted or self._budget.loss is None or lowering.storage is not Storage.INT8:
            return row, lowering
        gentler = replace(lowering, keeps_ends=True)
        other = self._row(None, gentler)
        return (other, gentler) if other.bound < row.bound else (row, lowering)

    def _both(self, lowering: Lowering, alone: Combined) -> list[Combined]:
        """The best choice of forms in fewer bits; none where there is none."""
        search, budget = self._search, self._budget
        if budget.loss is not None:
            judged: dict[int, Combined] = {}

            def accepts(trial: Trial) -> bool:
                # What is beyond the budget in float32 is not tried in fewer bits.
                if not trial.accepted:
                    return False
                judged[id(trial)] = self._judged(trial, lowering)
                return judged[id(trial)].accepted

            trial = search.cheapest(budget.limit, accepts)
            return [] if trial is None else [self._timed(judged[id(trial)])]
        trial = self._found.chosen
        if budget.cost is CostKind.LATENCY:
            trial = search.at_time(budget.limit, lowering)
        elif budget.cost is CostKind.SIZE:
            return [] if alone.size <= budget.limit else [self._timed(self._of_size(lowering, alone.size))]
        return [] if trial is None else [self._row(trial, lowering)]

    def _of_size(self, lowering: Lowering, size: float) -> Combined:
        """The choice whose file is of the size that is asked for, where all layers in fewer bits have ``size``.

        In fewer bits as many more numbers fit; the graph itself takes some bytes, of which choices do not know.
        """
        limit = self._budget.limit
        share = limit / size
        row = self._judged(self._search.at_share(share), lowering)
        for _ in range(SIZES):
            if row.size <= limit or share >= 1:
                break
            # On the line through this choice and all layers, and a little below.
            slope = max((size - row.size) / (1 - share), limit)
            share = max(share - BELOW * (row.size - limit) / slope, share / 2)
            row = self._judged(self._search.at_share(share), lowering)
        return row

    def _row(self, trial: Trial | None, lowering: Lowering | None) -> Combined:
        return self._timed(self._judged(trial, lowering))

    def _model(self, row: Combined) -> ir.Model:
        model = self._search.dense.model if row.trial is None else self._search.placed(row.trial.forms)
        return model if row.lowering is None else row.lowering(model)

    def _judged(self, trial: Trial | None, lowering: Lowering | None) -> Combined:
        """A combination without its time."""
        model = self._search.dense.model if trial is None else self._search.placed(trial.forms)
        if lowering is not None:
            what = "the dense model" if trial is None else f"the choice at cost {trial.cost:.2f}"
            self._progress(f"{what} as {lowering.storage}: calibrating and judging it")
            model = lowering(model)
        lost = (
            trial.lost
            if trial is not None and lowering is None
            else self._search.judged(model, "judging a combination")
        )
        bound, size = lost.upper_bound(), _bytes(model) / self._dense_bytes
        accepted = bound <= self._budget.limit if self._budget.loss is not None else False
        return Combined(trial=trial, lowering=lowering, lost=lost, bound=bound, accepted=accepted, size=size)

    def _timed(self, row: Combined) -> Combined:
        """The same with its time, and with whether it keeps a budget of cost."""
        timing = paired(self._model(row), self._search.dense.model, self._feeds, seed=self._seed, seconds=SECONDS)
        row = replace(row, timing=timing)
        match self._budget.cost:
            case CostKind.LATENCY:
                row = replace(row, accepted=timing.median <= self._budget.limit)
            case CostKind.SIZE:
                row = replace(row, accepted=row.size <= self._budget.limit * (1 + SLACK))
            case CostKind.MACS:
                row = replace(row, accepted=row.trial is not None)
        self._progress(
            Remark(
                f"{row.name}: {self._search.loss_title} {row.lost.value:.4g}, at most {row.bound:.4g}; "
                f"{row.size:.2f} of the size, {timing.median:.2f} of the time"
            )
        )
        return row

    def _best(self, rows: Sequence[Combined], why: str | None) -> Combinations:
        """Take the best of those that keep the budget."""
        kept = [row for row in rows if row.accepted]
        lowered = [row for row in kept if row.lowering is not None]
        refused = None
        if self._wanted.required and not lowered:
            refused = why or f"{self._wanted.storage} does not keep the budget, neither alone nor behind other forms"
        among = ""
        if self._wanted.required and lowered:
            kept, among = lowered, f" in {self._wanted.storage}"
        taken = min(kept, key=self._rank, default=None)
        if taken is None and self._budget.cost is not None:
            # Nothing costs as little as was asked for: the cheapest, as without fewer bits.
            by_size = self._budget.cost is CostKind.SIZE
            taken = min(rows, key=lambda row: row.size if by_size else _time(row), default=None)
        return Combinations(rows=tuple(rows), taken=taken, refused=refused, least=f"the least {self._least}{among}")

    @property
    def _least(self) -> str:
        if self._budget.cost is not None:
            return "loss"
        return "size" if self._objective is Objective.PARAMS else "time"

    def _rank(self, row: Combined) -> float:
        return {"loss": row.lost.value, "size": row.size, "time": _time(row)}[self._least]


SIZES = 3
"""How often a choice is looked for again whose file is larger than was asked for."""

BELOW = 1.2
"""By how much more than the line says a choice is made smaller: the choices are not dense."""

SLACK = 0.02
"""Of a size: names and the graph itself take some bytes, of which no choice of forms knows."""


def _time(row: Combined) -> float:
    assert row.timing is not None, "all rows are timed"
    return row.timing.median


def _bytes(model: ir.Model) -> int:
    return len(ir.to_proto(model).SerializeToString())
