"""The names of classes, from a file that people write."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

from spdexport.errors import InputError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text

if TYPE_CHECKING:
    from pathlib import Path

_WHAT, _HINT = "The names of the classes cannot be read", "Write one name a line, or a JSON list of names."


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of classes: a JSON list, as a file called .json has it, or a text of one name a line.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    text = read_text(path, error=InputError, what=_WHAT, hint=_HINT)
    if any(unicodedata.category(character) == "Cc" and character not in "\t\n\r\f" for character in text):
        raise InputError(f"{_WHAT}: it holds control characters, and is no text.", where=str(path), hint=_HINT)
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith(("[", "{"))
    if not is_json:
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    with reading(path, error=InputError, what=_WHAT, hint=_HINT):
        names = json.loads(text)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{_WHAT}: it is no list of texts.", where=str(path), hint=_HINT)
    return tuple(names)
