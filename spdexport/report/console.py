"""The console of rich, on which nothing from models and files has a meaning of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from spdexport import speech
from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment


class SafeConsole(Console):
    """A console that shows control characters of what it is given, and obeys its own alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the text of every segment made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def standard_console(*, err: bool = False) -> SafeConsole:
    """Return a console on standard output, or on standard error, as it is now, wherever that leads later."""
    return SafeConsole(file=speech.styled(err=err))
