"""What a search is asked for: a loss that is not to be exceeded, or a cost that is to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from spdexport.errors import UsageError


class LossKind(StrEnum):
    """What is lost, as the options name it."""

    TOP1 = "top1_drop"
    RELATIVE_L2 = "relative_l2"
    KL = "kl"
    METRIC = "metric_drop"


class CostKind(StrEnum):
    """What is saved, as the options name it."""

    LATENCY = "latency"
    MACS = "macs"
    SIZE = "size"


LOSS_OPTIONS = {
    LossKind.TOP1: "--max-top1-drop",
    LossKind.RELATIVE_L2: "--max-relative-l2",
    LossKind.KL: "--max-kl",
    LossKind.METRIC: "--max-metric-drop",
}
COST_OPTIONS = {kind: f"--{kind.value}" for kind in CostKind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One limit; either ``loss`` or ``cost`` is set.

    Attributes:
        loss: What may be lost, up to ``limit``, for the least cost.
        cost: What is to be at most ``limit`` times the dense model's, for the least loss.
        limit: The number.
        metric: The user's own measure, ``FILE.py:NAME``, which is the loss; None for others.
    """

    loss: LossKind | None = None
    cost: CostKind | None = None
    limit: float
    metric: str | None = None

    @property
    def option(self) -> str:
        """The option that set it."""
        return LOSS_OPTIONS[self.loss] if self.loss is not None else COST_OPTIONS[self.cost or CostKind.MACS]


def budget_of(*, metric: str | None = None, **limits: float | None) -> Budget:
    """Return the one budget among some options.

    Args:
        metric: ``FILE.py:NAME`` of the user's own measure.
        **limits: By the names of ``LossKind`` (with ``max_`` before them) and ``CostKind``; None for those not given.

    Raises:
        UsageError: There is none, there are several, or it is no number that it can be.
    """
    losses = {kind: limits.get(f"max_{kind.value}") for kind in LossKind}
    costs = {kind: limits.get(kind.value) for kind in CostKind}
    given = [LOSS_OPTIONS[kind] for kind, limit in losses.items() if limit is not None]
    given += [COST_OPTIONS[kind] for kind, limit in costs.items() if limit is not None]
    everything = ", ".join((*LOSS_OPTIONS.values(), *COST_OPTIONS.values()))
    if len(given) != 1:
        raise UsageError(
            "There is no budget to search within." if not given else "A search is within one budget.",
            where=" and ".join(given) or "the command",
            hint=f"Give one of {everything}.",
        )
    if (metric is None) == (losses[LossKind.METRIC] is not None):
        raise UsageError(
            "There is no metric whose drop would be limited." if metric is None else "Nothing limits the metric.",
            where="--max-metric-drop" if metric is None else "--metric",
            hint="Give --metric FILE.py:NAME and --max-metric-drop together.",
        )
    for loss, limit in losses.items():
        if limit is not None:
            if not (math.isfinite(limit) and limit >= 0):
                raise _impossible(limit, LOSS_OPTIONS[loss], "Give a number from 0 on, such as 1%.")
            # All accuracy is no budget: who writes 1 means 1%.
            if loss is LossKind.TOP1 and limit >= 1:
                raise _impossible(limit, LOSS_OPTIONS[loss], f"Give a share such as {limit / 100:g}, or {limit:g}%.")
            return Budget(loss=loss, limit=limit, metric=metric)
    for cost, limit in costs.items():
        if limit is not None:
            if not 0 < limit < 1:
                raise _impossible(limit, COST_OPTIONS[cost], "Give a share of the dense model's, such as 0.5.")
            return Budget(cost=cost, limit=limit)
    raise AssertionError("one of them is given")


def _impossible(limit: float, option: str, hint: str) -> UsageError:
    return UsageError(f"{limit:g} is no budget.", where=option, hint=hint)
