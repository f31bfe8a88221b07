"""What an engine is given to do, and what an engine is: no more than that sums of two shards merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

SHARDS = 64
"""Into how many shards samples are cut, at most. It depends on no machine, so that the order in which numbers are
added, and with it their rounding, is the same on every cluster."""


class Sums(Protocol):
    """Sums over samples."""

    def merge(self, other: Self) -> Self:
        """Return the sums over the samples of both, of which the other's come later."""


S = TypeVar("S", bound=Sums)
S_co = TypeVar("S_co", bound=Sums, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive samples.

    Attributes:
        start: The number of the first.
        stop: The number behind the last; None for all that there are.
    """

    start: int
    stop: int | None


Done = Callable[[int], None]
"""Told how many samples more are done."""

Run = Callable[[Shard, Done], Iterator[tuple[str, S]]]
"""Yields the sums over a shard by name, each name once, and the same names in the same order for every shard."""


class Work(Protocol[S_co]):
    """What is to be done over samples, in plain values, so that another process can do it too."""

    def open(self, *, threads: int | None) -> Run[S_co]:
        """Read the model and all that is needed beside it, once for all shards.

        Args:
            threads: How many threads an operator may use; None leaves that to the runtime.
        """


class EngineKind(StrEnum):
    """Where work is done."""

    LOCAL = "local"
    RAY = "ray"


class Engine(Protocol):
    """Does work over samples, and adds up what comes of it."""

    @property
    def kind(self) -> EngineKind:
        """Its name."""

    def running(self) -> AbstractContextManager[None]:
        """Surround the works of one command: workers are there as long as the block lasts."""

    def sums(self, work: Work[S], *, samples: int | None, unit: int, done: Done) -> Iterator[tuple[str, S]]:
        """Yield the sums over all samples by name, inside of ``running``.

        Args:
            work: What is to be done.
            samples: How many there are; None where nobody knows, which only this process can do.
            unit: Samples that run together: no shard begins between them.
            done: Told of what is done.
        """


def cut(samples: int, unit: int, *, shards: int = SHARDS) -> tuple[Shard, ...]:
    """Return the shards of so many samples: all but the last are of one length, which is a number of whole units."""
    each = unit * max(-(-samples // (unit * shards)), 1)
    return tuple(Shard(start=start, stop=min(start + each, samples)) for start in range(0, samples, each))
