"""Text from models and files, which nobody vouches for, made safe to put into reports."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text without what XML 1.0 cannot hold and terminals obey: control characters and lone surrogates.

    Each becomes U+FFFD, the replacement character; tabs and line breaks stay.
    """
    return "".join(c if _allowed(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _allowed(code: int) -> bool:
    if code < 0x20:
        return code in (0x09, 0x0A, 0x0D)
    return not (0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF))
