"""Patterns of layer names, as ``--layers`` and ``--exclude`` have them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from spdexport.errors import UsageError
from spdexport.names import did_you_mean, layer_of_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a layer's name, or its name without a call number, matches one of the patterns."""
    return any(fnmatchcase(name, p) or fnmatchcase(layer_of_call(name), p) for p in patterns)


def check_patterns(patterns: Sequence[str], names: Iterable[str], option: str) -> None:
    """Refuse a pattern that matches nothing: it is a typing error.

    Raises:
        UsageError: Names the pattern and some layers.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            raise UsageError(
                f"The pattern {pattern!r} matches no layer.", where=option, hint=did_you_mean(pattern, names)
            )
