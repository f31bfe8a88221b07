"""The file of ``--log-file``: every step with its time, the whole report, and what went wrong, as they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spdexport.files.writing import writing
from spdexport.text import printable

if TYPE_CHECKING:
    from pathlib import Path


class LogFile:
    """A log that is written line by line, so that one of a run that was killed tells how far it came."""

    def __init__(self, path: Path) -> None:
        """Begin the log; an older one of that name is gone.

        Raises:
            OutputError: The file cannot be written.
        """
        self._path = path
        with writing(path):
            path.write_text("", encoding="utf-8")

    def tell(self, text: str) -> None:
        """Write a text with the time in front of its first line, and the others indented.

        Raises:
            OutputError: The file cannot be written any more.
        """
        first, *rest = printable(text).splitlines() or [""]
        lines = [f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {first}", *(f"    {line}".rstrip() for line in rest)]
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
