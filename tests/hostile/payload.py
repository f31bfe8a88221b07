"""What a hostile file is: made into a folder of valid files, with what must become of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "marker"
"""The folder, in the current one, that code makes where it is executed."""

Make = Callable[[Path], None]
"""Makes the file in a folder that holds every valid file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """One hostile file.

    Attributes:
        name: What it does, in words.
        file: The file or folder that commands are given.
        make: Makes it.
        refused: Whether it must be refused wherever it is read. Others may be read, without any effect.
        slow: Whether it takes seconds to make or to read.
    """

    name: str
    file: str
    make: Make
    refused: bool = True
    slow: bool = False


class Payload:
    """An object whose unpickling makes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


class Evaluated:
    """An object whose unpickling evaluates text that makes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').mkdir({MARKER!r})",)


CODE = f"__import__('os').mkdir({MARKER!r})"
"""An expression that makes the marker."""
