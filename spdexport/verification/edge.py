"""An edge while its cases run: comparisons come in, one result comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdexport.names import count
from spdexport.verification.result import SEVERITY, EdgeResult, Status

if TYPE_CHECKING:
    from spdexport.verification.compare import Comparison


@dataclass(slots=True)
class Edge:
    """Collects the comparisons of one edge.

    Attributes:
        edge: As ``EdgeResult.edge``.
        provider: As ``EdgeResult.provider``.
        setting: What the reason begins with, where an edge runs in more than one setting.
        compared: The name of each case and what was found on it.
        given: A status and reason that stand whatever is compared.
        first: The first layer that diverges.
        remark: What is added to the reason.
        followed: On which inputs decisions were followed, and what was.
    """

    edge: str
    provider: str | None = None
    setting: str = ""
    compared: list[tuple[str, Comparison]] = field(default_factory=list)
    given: tuple[Status, str] | None = None
    first: str | None = None
    remark: str = ""
    followed: list[tuple[str, str]] = field(default_factory=list)

    def settle(self, status: Status, reason: str) -> None:
        """Fix the result without, or in spite of, comparisons."""
        self.given = (status, reason)

    def add(self, case: str, found: Comparison) -> None:
        """Take in what was found on a case."""
        self.compared.append((case, found))

    def result(self) -> EdgeResult:
        """Return the worst case as the edge's result."""
        if self.given is not None:
            status, reason = self.given
            return self._plain(status, reason)
        if not self.compared:
            return self._plain(Status.INCONCLUSIVE, "no input could be compared")
        case, found = max(self.compared, key=lambda c: (SEVERITY.index(c[1].status), c[1].noise_ratio))
        reason = (
            f"{found.reason}, on input {case}" if found.reason else f"{count(len(self.compared), 'input')} compared"
        )
        return EdgeResult(
            edge=self.edge,
            provider=self.provider,
            status=found.status,
            noise_ratio=max(c.noise_ratio for _, c in self.compared),
            max_abs=max(c.max_abs for _, c in self.compared),
            first_divergence=self.first,
            reason=self._words(reason),
            setting=self.setting,
        )

    def _plain(self, status: Status, reason: str) -> EdgeResult:
        """A result without numbers."""
        return EdgeResult(
            edge=self.edge, provider=self.provider, status=status, reason=self._words(reason), setting=self.setting
        )

    def _words(self, reason: str) -> str:
        text = f"{self.setting}: {reason}" if self.setting else reason
        followed = [f"{told}, on input {case}" for case, told in self.followed[:1]]
        more = len(self.followed) - 1
        followed += [f"and on {count(more, 'other input')}"] if more > 0 else []
        return "; ".join(filter(None, (text, self.remark, " ".join(followed))))


def not_run(edge: str, reason: str) -> EdgeResult:
    """Return the result of an edge that there was nothing to run for."""
    return EdgeResult(edge=edge, status=Status.NOT_RUN, reason=reason)
