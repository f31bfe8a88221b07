"""How a file is checked: what the user asked of the check, in one value that travels to where it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from spdexport.ort.sessions import parse_providers
from spdexport.verification.compare import Tolerance
from spdexport.verification.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.ort.providers import Provider

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a subject is checked, whatever it is.

    Attributes:
        seed: Of generated inputs and simulated rounding.
        providers: Providers beside the CPU on which the device edge runs.
        thorough: Whether to compare every layer's output too, and to leave out no input for time.
        tolerance: The user's, for outputs: weights are judged without; None for the model's own.
        limits: To what the approximation may change.
        progress: Told what is being done.
    """

    seed: int = 0
    providers: Sequence[Provider] = ()
    thorough: bool = False
    tolerance: Tolerance | None = None
    limits: Limits = field(default_factory=Limits)
    progress: Progress = field(default=lambda _: None)

    @classmethod
    def of(
        cls,
        *,
        providers: str | Sequence[str] | None,
        thorough: bool,
        atol: float | None,
        rtol: float | None,
        max_relative_l2: float | None,
        max_top1_drop: float | None,
        progress: Progress,
    ) -> Self:
        """Return the check that keywords of ``convert`` and ``verify`` ask for; see there.

        Raises:
            UsageError: A tolerance is negative or not finite, or a provider is unknown or missing.
        """
        tolerance = Tolerance.of(atol, rtol)
        return cls(
            providers=parse_providers(providers),
            thorough=thorough,
            tolerance=tolerance,
            limits=Limits(relative_l2=max_relative_l2, top1_drop=max_top1_drop),
            progress=progress,
        )
