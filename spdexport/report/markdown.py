"""Text from models and files in Markdown, where it can neither format nor mention anybody."""

from __future__ import annotations

import json

from spdexport.text import printable

_SPECIAL = "&<>\"'|`*_[]\\~@#"
"""Characters that mean something in HTML or in GitHub's Markdown."""


def cell(text: str) -> str:
    """Return text that is neither HTML nor Markdown nor a mention, on one line of a table."""
    return "".join(f"&#{ord(c)};" if c in _SPECIAL else c for c in " ".join(printable(text).split()))


def literal(text: str) -> str:
    """Return a text as Python and JSON write it, for a line of code inside of a fence, which it cannot end."""
    return json.dumps(text).replace("`", "\\u0060")
