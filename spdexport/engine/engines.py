"""The engines by their names; and the one that does all in this process."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, assert_never

from spdexport.engine.work import EngineKind, Shard
from spdexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from spdexport.engine.work import Done, Engine, S, Work


class Local:
    """Does all work in this process: one shard, of all samples."""

    kind = EngineKind.LOCAL

    def running(self) -> AbstractContextManager[None]:
        """Return what needs no preparation."""
        return nullcontext()

    def sums(self, work: Work[S], *, samples: int | None, unit: int, done: Done) -> Iterator[tuple[str, S]]:  # noqa: ARG002
        """Yield the sums; see ``Engine``. Each is there as soon as the work yields it."""
        yield from work.open(threads=None)(Shard(start=0, stop=samples), done)


def engine_named(name: str) -> Engine:
    """Return the engine of a name, which can run here.

    Raises:
        UsageError: There is none of that name.
        RuntimeMissingError: What it needs is not installed.
    """
    try:
        kind = EngineKind(name)
    except ValueError:
        raise UsageError(
            f"{name!r} is no engine.", where="--engine", hint=f"Choose one of {', '.join(EngineKind)}."
        ) from None
    match kind:
        case EngineKind.LOCAL:
            return Local()
        case EngineKind.RAY:
            from spdexport.engine.on_ray import OnRay

            return OnRay()
        case _:
            assert_never(kind)
