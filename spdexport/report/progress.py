"""Progress on standard error: a line that changes on a terminal, plain lines elsewhere if they are asked for."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_on(console: Console, *, verbose: bool, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield the function that long work tells what it is doing.

    Args:
        console: On standard error.
        verbose: Write a line for every step.
        quiet: Write nothing.
    """

    def line(step: str) -> None:
        console.print(step, highlight=False, markup=False, soft_wrap=True)

    def nothing(_: str) -> None:
        pass

    if quiet:
        yield nothing
    elif verbose:
        yield line
    elif console.is_terminal:
        with console.status("starting") as status:
            yield lambda step: status.update(_escaped(step))
    else:
        yield nothing


def standard_error() -> Console:
    """A console on standard error as it is now, wherever ``sys.stderr`` leads later."""
    return Console(file=sys.stderr)


def _escaped(step: str) -> str:
    """Text that rich does not read as markup: layer and input names may hold brackets."""
    return step.replace("[", r"\[")
