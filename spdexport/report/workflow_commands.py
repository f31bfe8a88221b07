"""Commands to the runner of GitHub Actions: lines of standard output that begin with ``::``.

Names and reasons come from models and files that nobody vouches for: what is in a command is escaped, and what is
printed beside them can be fenced off.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def on_github() -> bool:
    """Whether this runs in a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotation(level: str, title: str, message: str) -> str:
    """One command that annotates the run: ``::error title=...::...``, on one line whatever the texts hold.

    Args:
        level: ``error``, ``warning`` or ``notice``.
        title: Short.
        message: May have several lines.
    """
    head = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={head}::{_escaped(message)}"


@contextmanager
def fenced(say: Callable[[str], object]) -> Iterator[None]:
    """Have the runner obey nothing that is printed meanwhile: a layer's name may look like a command.

    Args:
        say: Prints a line on standard output.
    """
    token = secrets.token_hex(16)
    say(f"::stop-commands::{token}")
    try:
        yield
    finally:
        say(f"::{token}::")


def _escaped(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
