"""The console of rich, on which nothing from models and files has a meaning of its own, and tables that fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spdexport import speech
from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import ConsoleOptions, JustifyMethod, RenderableType, RenderResult
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table, and what becomes of it where there is no room.

    Attributes:
        header: What stands above it.
        least: Characters that it is never narrower than, as far as its cells have them: what is longer is folded. 0 for
            the longest word. None for numbers, which stand at the right and are never folded.
        rank: Which columns go first where not all have room: those with the greatest. A column of rank 0 stays.
        told: What it is called where it is told that it went; the header, if empty.
    """

    header: str
    least: int | None = None
    rank: int = 0
    told: str = ""


class FittingTable:
    """A table that fits any width without cutting anything: columns go by their ranks, and a line tells which.

    Names and texts are folded. What has been cut looks whole: a number that lost its unit is another number.
    """

    GAP = 2

    def __init__(self, *columns: Column) -> None:
        self.columns = columns
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: Text | str) -> None:
        """Add a row, a cell for each column; a text of its own has a style."""
        assert len(cells) == len(self.columns), "a cell for each column"
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give what rich prints at this width."""
        kept = self._kept(options.max_width)
        table = Table(box=None, pad_edge=False, padding=(0, self.GAP, 0, 0), header_style="dim")
        for index, width in zip(kept, self._widths(kept, options.max_width), strict=True):
            column = self.columns[index]
            justify: JustifyMethod = "right" if column.least is None else "left"
            table.add_column(column.header, justify=justify, no_wrap=column.least is None, overflow="fold", width=width)
        for row in self._rows:
            table.add_row(*(row[index] for index in kept))
        yield table
        gone = [column.told or column.header for i, column in enumerate(self.columns) if i not in kept]
        if gone:
            whole = self._room(range(len(self.columns)))
            yield Text(f"left out for want of width: {', '.join(gone)}; {whole} columns show all", style="dim")

    def _kept(self, width: int) -> list[int]:
        """The columns that have room, of those of equal rank the first."""
        kept = list(range(len(self.columns)))
        while self._room(kept) > width and any(self.columns[i].rank for i in kept):
            kept.remove(max(kept, key=lambda i: (self.columns[i].rank, i)))
        return kept

    def _room(self, kept: Sequence[int]) -> int:
        """The characters that some columns take at least."""
        return sum(self._least(index) for index in kept) + self.GAP * (len(kept) - 1)

    def _natural(self, index: int) -> int:
        return max(cell.cell_len for cell in self._cells(index))

    def _least(self, index: int) -> int:
        least = self.columns[index].least
        if least == 0:
            return max(cell_len(word) for cell in self._cells(index) for word in cell.plain.split() or [""])
        return self._natural(index) if least is None else min(self._natural(index), least)

    def _cells(self, index: int) -> list[Text]:
        return [Text(self.columns[index].header), *(row[index] for row in self._rows)]

    def _widths(self, kept: Sequence[int], width: int) -> list[int]:
        """The width of each column that is kept: what is too much is taken from the widest that can be folded."""
        found = [self._natural(index) for index in kept]
        least = [self._least(index) for index in kept]
        while sum(found) + self.GAP * (len(kept) - 1) > width and found != least:
            widest = max((i for i in range(len(kept)) if found[i] > least[i]), key=found.__getitem__)
            found[widest] -= 1
        return found
