"""The user's limits to what masks, ranks and deltas may change: judged apart from equivalence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spdexport.errors import UsageError

if TYPE_CHECKING:
    from spdexport.options import Options
    from spdexport.verification.result import Approximation, Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an approximation may change on the user's own inputs.

    Attributes:
        relative_l2: Of ``Approximation.relative_l2``; None for no limit.
        top1_drop: Of ``Approximation.top1_drop``; None for no limit.
    """

    relative_l2: float | None = None
    top1_drop: float | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return self.relative_l2 is not None or self.top1_drop is not None

    def check(self, options: Options, *, verify: bool) -> None:
        """Refuse limits that are no numbers, or that nothing could be judged on.

        Raises:
            UsageError: Says which.
        """
        for name, value in (("--max-relative-l2", self.relative_l2), ("--max-top1-drop", self.top1_drop)):
            if value is None:
                continue
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{value} is no limit.", where=name, hint="Give a number from 0 on.")
            if options.inputs is None:
                raise UsageError(
                    "A limit is judged on inputs of yours, and there are none.", where=name, hint="Give --inputs FILE."
                )
            if not verify:
                raise UsageError(
                    "A limit is judged by the check.", where=f"{name} and --no-verify", hint="Give one of them."
                )

    def judge(self, found: Verification) -> Verification:
        """Return the verification with its approximation held against the limits.

        Raises:
            UsageError: There is a limit for classes, and the first output has none.
        """
        change = found.approximation
        if change is None or not self.are_set:
            return found
        exceeded = []
        if self.relative_l2 is not None and not change.relative_l2 <= self.relative_l2:
            exceeded.append(
                f"outputs differ by {change.relative_l2:.3g} in relative norm, and {self.relative_l2:g} is allowed"
            )
        if self.top1_drop is not None:
            drop = change.top1_drop
            if drop is None:
                raise UsageError(
                    "The model has no top class: its first output is not (batch, classes).",
                    where="--max-top1-drop",
                    hint="Give --max-relative-l2.",
                )
            if not drop <= self.top1_drop:
                exceeded.append(f"{_drop(change)}, and {self.top1_drop:g} is allowed")
        limited = replace(
            change,
            max_relative_l2=self.relative_l2,
            max_top1_drop=self.top1_drop,
            exceeded=tuple(exceeded),
        )
        return replace(found, approximation=limited)


def _drop(change: Approximation) -> str:
    if change.top1_before is None or change.top1_after is None:
        return f"the top class is another one for {change.top1_drop:.3g} of the samples"
    return f"accuracy drops by {change.top1_drop:.3g}, from {change.top1_before:.3g} to {change.top1_after:.3g}"
