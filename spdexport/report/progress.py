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
def progress_on(
    console: Console, *, verbose: bool, quiet: bool, steps: bool = False
) -> Iterator[Callable[[str], None]]:
    """Yield the function that long work tells what it is doing.

    Args:
        console: On standard error.
        verbose: Write a line for every step.
        quiet: Write nothing.
        steps: Where there is no terminal, write a line for each step that begins, and none for its parts: what stands
            before the first colon is the step.
    """
    told: set[str] = set()

    def line(step: str) -> None:
        console.print(Text(one_line(step)), highlight=False, soft_wrap=True)

    def first_of_step(step: str) -> None:
        begun = step.partition(":")[0]
        if begun not in told:
            told.add(begun)
            line(step)

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
        yield first_of_step if steps else nothing
