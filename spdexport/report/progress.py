"""Progress on standard error: a line that changes on a terminal, plain lines elsewhere if they are asked for."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from spdexport.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


@contextmanager
def progress_on(console: Console, *, verbose: bool, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield the function that long work tells what it is doing.

    Args:
        console: On standard error.
        verbose: Write a line for every step.
        quiet: Write nothing.
    """

    def line(step: str) -> None:
        console.print(Text(one_line(step)), highlight=False, soft_wrap=True)

    def nothing(_: str) -> None:
        pass

    if quiet:
        yield nothing
    elif verbose:
        yield line
    elif console.is_terminal:
        with console.status("starting") as status:
            yield lambda step: status.update(Text(one_line(step)))
    else:
        yield nothing
