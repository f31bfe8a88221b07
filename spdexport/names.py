"""Names and numbers in words: which module a call belongs to, what a misspelt name may have meant, plurals, shapes."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


CLASSES = "The right classes are called 'labels' in a file of inputs, and are no input of the model."
"""What is said where a file of inputs has names that the model has not."""


_CALL = re.compile(r"(.+?)( in \S+)?(#\d+)?", re.DOTALL)


def layer_of_call(name: str) -> str:
    """Return the layer's name without what tells its calls apart.

    ``conv#2`` is the second call of ``conv``, ``conv in choice.then`` one inside of a branch.
    """
    found = _CALL.fullmatch(name)
    return name if found is None else found[1]


def call_in(layer: str, place: str) -> str:
    """Return the name of a layer's call in a body of If, Loop or Scan; an empty place is the main graph."""
    return f"{layer} in {place}" if place else layer


def layer_of_parameter(name: str) -> str:
    """Return the layer that a weight or bias belongs to: ``conv1`` for ``conv1.U`` and for ``conv1.U.weight``."""
    layer, _, last = name.rpartition(".")
    head, _, tail = layer.rpartition(".")
    return head if tail in ("U", "V") and last not in ("U", "V") and head else layer


def count(number: int, what: str) -> str:
    """Return a number of things: ``1 layer``, ``2 layers``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def some(names: Sequence[str], shown: int = 5) -> str:
    """Return the first few of many names, and how many more there are."""
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def shape_of(shape: Iterable[object]) -> str:
    """Return a shape in words: ``8x3``; ``scalar`` without axes."""
    return "x".join(map(str, shape)) or "scalar"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known names nearest to ``name``, or, where none is near, with the first few of all."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not known:
        return "There is no such layer in this model."
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"The names are {', '.join(known[:8])}{more}."
