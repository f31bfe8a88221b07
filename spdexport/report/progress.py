"""Progress on standard error: a line that changes on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from spdexport.steps import Remark, Step, name_of
from spdexport.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

REFRESHES = 8
"""How often in a second the line on a terminal is drawn, so that its seconds pass while a step takes long."""


@contextmanager
def progress_on(
    console: Console, *, verbose: bool, quiet: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Yield the function that long work tells what it is doing: a text, or a ``Step`` or ``Remark`` of ``steps``.

    Args:
        console: On standard error.
        verbose: Write a line whenever something is told, and not only for every step.
        quiet: Write nothing.
        clock: Tells seconds.
    """
    line = ProgressLine(clock)

    def write(text: str, style: str = "") -> None:
        console.print(Text(one_line(text), style), highlight=False, soft_wrap=True)

    def changed(told: str) -> None:
        if isinstance(told, Remark):
            write(f"note: {told}", "yellow")
        else:
            line.tell(told)
            live.refresh()

    def written(told: str) -> None:
        if isinstance(told, Remark):
            write(f"note: {told}")
        elif line.tell(told) or verbose:
            write(f"[{minutes(line.seconds)}] {told}")

    if quiet:
        yield lambda _: None
    elif console.is_terminal and not verbose:
        with Live(get_renderable=line.drawn, console=console, refresh_per_second=REFRESHES, transient=True) as live:
            yield changed
    else:
        yield written


class ProgressLine:
    """What is being done, since when, and for how much longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._told = "starting"
        self._name = ""
        self._first: tuple[float, int] | None = None  # when the step's first count was told, and how many it was

    @property
    def seconds(self) -> float:
        """Since the whole work began."""
        return self._clock() - self._begun

    def tell(self, told: str) -> bool:
        """Take what is being done, and return whether it is another step than before."""
        name = name_of(told)
        is_new = name != self._name
        if is_new:
            self._first = None
        if isinstance(told, Step) and self._first is None:
            self._first = (self._clock(), told.done)
        self._told, self._name = told, name
        return is_new

    def left(self) -> float | None:
        """Return the seconds that the step still takes, if it goes on as it went so far; None where that is unknown."""
        if not isinstance(self._told, Step) or self._told.total is None or self._first is None:
            return None
        since, first = self._first
        done = self._told.done - first
        if done <= 0:
            return None
        return (self._clock() - since) / done * max(self._told.total - self._told.done, 0)

    def text(self) -> str:
        """Return the line: the time that has passed, the step, and the time that is left where it is known."""
        left = self.left()
        more = "" if left is None else f", about {minutes(math.ceil(left))} left"
        return f"{minutes(self.seconds)} {one_line(self._told)}{more}"

    def drawn(self) -> RenderableType:
        """Return the line for a terminal, on which something moves."""
        return Spinner("dots", Text(self.text(), no_wrap=True, overflow="ellipsis"))


def minutes(seconds: float) -> str:
    """Return a time as people read it: ``0:07``, ``12:30``, ``1:02:03``."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
