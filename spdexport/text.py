r"""Text from models and files, which nobody vouches for, made safe to show: on a terminal, in a log, in a report.

One way everywhere: what could command a terminal, turn lines around or break XML is shown as Python writes it in source
code, ``\x1b`` or ``\u202e``, so that a reader sees that it is there and what it is. All other Unicode stays as it is.
"""

from __future__ import annotations

import re

_COMMANDING = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0 but the tab and the line break
    "\x7f-\x9f"  # DEL and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what changes the direction of text
    "\u2028\u2029"  # line breaks that few know as such
    "\ud800-\udfff\ufffe\uffff"  # what is no character: bytes of file names that are no UTF-8, and what XML cannot hold
    "]"
)


def printable(text: str) -> str:
    """Return the text with what terminals obey and XML cannot hold in visible form; tabs and line breaks stay.

    Line breaks as Windows writes them become plain ones. Harmless text, paths among it, is returned unchanged.
    """
    return _COMMANDING.sub(lambda found: _visible(found[0]), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return the text as ``printable`` does, with tabs and line breaks in visible form too.

    For names: one that holds a line break must not look like two lines of a report.
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def json_text(text: str) -> str:
    """Return JSON with the same characters escaped as JSON escapes them, so that a reader gets back what they were."""
    return _COMMANDING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
