"""Commands to the runner of GitHub Actions: lines of standard output that begin with ``::``.

Names and reasons come from models and files that nobody vouches for: what is in a command is escaped.
"""

from __future__ import annotations

from spdexport.text import printable


def annotation(level: str, title: str, message: str) -> str:
    """Return one command that annotates the run: ``::error title=...::...``, on one line whatever the texts hold.

    Args:
        level: ``error``, ``warning`` or ``notice``.
        title: Short.
        message: May have several lines.
    """
    head = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={head}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\n", "%0A")
