"""The reports that a command line asks for, told by its bare words, for one that click cannot read.

An older report must not be taken for that of a run that never began. What is written here replaces nothing else: no
file that another word names, nor one that is no report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.files.guard import identity
from spdexport.report.formats import formats
from spdexport.sources.run_files import is_run_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from spdexport.files.guard import Identity


def reports_in(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the files of reports that may be replaced, by the option's name.

    Args:
        arguments: The command line.
    """
    asked: dict[str, Path] = {}
    others: list[str] = []
    waiting, known = "", formats()
    for word in arguments:
        option, equals, value = word.partition("=")
        if waiting:
            asked[waiting] = Path(word)  # of an option that is given twice, the last one counts
            waiting = ""
        elif option.removeprefix("--") in known and option.startswith("--"):
            name = option.removeprefix("--")
            if equals:
                asked[name] = Path(value)
            else:
                waiting = name
        else:
            others += [word, word.rpartition(":")[0], value]
    named = {identity(Path(other)) for other in others if other}
    return {option: path for option, path in asked.items() if _may_be_replaced(path, known[option].mark, named)}


def _may_be_replaced(path: Path, mark: bytes | None, named: AbstractSet[Identity]) -> bool:
    """Whether a file is a report with this mark, is empty, or is not there, and no other word is about it.

    In a folder that another word names, nothing new is written: it may be one of data, all of whose files are read.
    """
    if identity(path) in named or is_run_file(path.name):
        return False
    try:
        if not path.exists():
            return identity(path.parent) not in named
        if not path.is_file():
            return False
        content = path.read_bytes() if mark is None else path.open("rb").read(1000)
    except (OSError, ValueError):
        return False
    if not content:
        return True
    if mark is not None:
        return mark in content
    try:
        report = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(report, dict) and "schema_version" in report
