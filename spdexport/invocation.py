"""The command line that runs, for reports that tell how they were made."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_arguments: ContextVar[Sequence[str] | None] = ContextVar("arguments", default=None)


@contextmanager
def invoked_with(arguments: Sequence[str]) -> Iterator[None]:
    """Let these be the words of the command line inside of the block."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def command_line() -> str:
    """Return the command that runs, as a shell takes it; empty where Python functions were called."""
    arguments = _arguments.get()
    return "" if arguments is None else shlex.join(["spdexport", *arguments])
