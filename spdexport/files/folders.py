"""Writing a folder so that its name holds the old files or all of the new ones, and no file of anybody else's is lost.

A folder of ours has a manifest, a JSON file that lists all files of the folder. One with a file beside those is not
replaced: whoever put it there wants it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import UsageError
from spdexport.files.scratch import scratch_folder
from spdexport.files.writing import writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HINT = "Name a folder that is not there yet, or an empty one."


@contextlib.contextmanager
def replacing_folder(path: str | Path, *, manifest: str, reads: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a new, empty folder, which takes the place of ``path`` if the block succeeds.

    If the block raises anything, KeyboardInterrupt included, the new folder is removed and an existing one stays as it
    was. The two change places by two renamings, so that a kill between them leaves the old one under another name.

    Args:
        path: The folder that is to be there in the end; no link is replaced, but where it leads.
        manifest: The name of the file with ``{"files": [...]}``, which the block writes.
        reads: Files that are read for it, which must not be in the folder that is replaced.

    Raises:
        UsageError: The folder that it would be in does not exist; or ``path`` is no folder, the working directory,
            holds a file that its manifest does not list, or one of ``reads``.
        OutputError: The system does not let it be written.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UsageError(
            "The folder of the output does not exist.", where=str(path), hint=f"Make it: mkdir -p {Path(path).parent}"
        )
    _check(target, Path(path), manifest, reads)
    with scratch_folder(target.parent) as scratch:
        new = scratch / "new"
        with writing(path):
            new.mkdir()
        yield new
        _check(target, Path(path), manifest, reads)
        with writing(path):
            _swap(new, target, scratch / "old")


def _check(target: Path, path: Path, manifest: str, reads: Iterable[Path]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError("The output is a folder, and a file has its name.", where=str(path), hint=_HINT)
    if Path.cwd().is_relative_to(target):
        raise UsageError("The output is the working directory, or above it.", where=str(path), hint=_HINT)
    for read in reads:
        if Path(os.path.realpath(read)).is_relative_to(target):
            raise UsageError(f"The output would replace {read}, which is read.", where=str(path), hint=_HINT)
    with writing(path):
        present = sorted(
            p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir() or p.is_symlink()
        )
    ours = _listed(target / manifest) if present else set()
    if foreign := [name for name in present if name not in ours]:
        raise UsageError(
            f"The output is a folder with files that spdexport did not write there: {', '.join(foreign[:3])}"
            + (f" and {len(foreign) - 3} more." if len(foreign) > 3 else "."),
            where=str(path),
            hint=_HINT,
        )


def _listed(manifest: Path) -> set[str]:
    """Return the files that a manifest lists, and itself; none where there is no manifest of ours."""
    try:
        content = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, list):
        return set()
    return {manifest.name, *(name for name in files if isinstance(name, str))}


def _swap(new: Path, target: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
