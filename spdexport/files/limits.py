"""How much of a file is read before it is refused: files come from anywhere, and exhaustion is an attack too.

Wherever a file's own size bounds what it may ask for, nothing else is needed. The limits here are for the rest. They
hold for everything inside of ``reading_limits``, as the precision of ``decimal`` does inside of its context: the
readers that ask for them lie deep below the functions that a user calls.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit.

    Attributes:
        name: Its name on the command line, in ``--limit NAME=N``.
        default: What holds where the user does not say.
        unit: What is counted, in words.
    """

    name: str
    default: int
    unit: str


LIMITS = {
    limit.name: limit
    for limit in (
        Limit(name="unpacked", default=100, unit="times the size of an archive, or 1 GiB, that its members unpack to"),
        Limit(name="tensors", default=100_000, unit="tensors, arrays or members of one file"),
        Limit(name="nodes", default=50_000, unit="nodes of a graph, with the bodies of the functions that it calls"),
        Limit(name="trips", default=100_000, unit="trips of the loops in one evaluation"),
        Limit(name="code", default=32, unit="MiB of code and pickles of a TorchScript archive"),
        Limit(name="value", default=2, unit="GiB of one value in a graph"),
    )
}
"""Every limit by its name."""

_current: ContextVar[Mapping[str, int]] = ContextVar("limits", default={})  # noqa: B039  (it is never changed)


def limit(name: str) -> int:
    """Return the limit of that name that holds here."""
    return _current.get().get(name, LIMITS[name].default)


def limits_here() -> Mapping[str, int]:
    """Return the limits that were changed here: ``reading_limits`` of them lets the same hold in another process."""
    return _current.get()


@contextmanager
def reading_limits(**limits: int) -> Iterator[None]:
    """Let other limits hold inside of the block: ``with spdexport.reading_limits(nodes=100_000): ...``.

    Args:
        **limits: The names are those of ``LIMITS``; limits that are missing stay as they are.

    Raises:
        UsageError: There is no such limit, or its number is less than 1.
    """
    for name, number in limits.items():
        if name not in LIMITS:
            raise UsageError(f"There is no limit {name!r}.", where="--limit", hint=f"Choose from {', '.join(LIMITS)}.")
        if number < 1:
            raise UsageError(
                f"A limit of {number} lets nothing pass.", where=f"--limit {name}", hint="Give a number of at least 1."
            )
    token = _current.set({**_current.get(), **limits})
    try:
        yield
    finally:
        _current.reset(token)


def check_limit(name: str, number: int, what: str, *, where: str, error: type[InputError]) -> None:
    """Refuse what is beyond a limit, with the limit and the option that raises it.

    Args:
        name: The limit.
        number: What was counted, in the limit's unit.
        what: What there is too much of, as the beginning of a sentence: "The graph has 60000 nodes".
        where: The file, and the place in it.
        error: The class to raise.

    Raises:
        InputError: The number is greater than the limit.
    """
    allowed = limit(name)
    if number > allowed:
        raise error(
            f"{what}, and the limit is {allowed} {LIMITS[name].unit}.",
            where=where,
            hint=f"If you trust where the file comes from, raise the limit: --limit {name}={number}.",
        )
