"""Folders for what is not to outlast a run: those of runs that were killed are removed by the next one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.files.locks import is_at, try_lock
from spdexport.files.writing import writing

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "spdexport-run."

_ELSEWHERE = "Set TMPDIR to another folder, or"


def writing_scratch(path: Path) -> contextlib.AbstractContextManager[None]:
    """Return ``writing`` for a file in such a folder, which the user did not name."""
    return writing(path, elsewhere=_ELSEWHERE)


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new, empty folder, and remove it with all that is in it.

    The folder is locked, which tells it from those whose process is gone. They are removed, too, if they are the
    user's own.

    Args:
        parent: Where it is made: beside what it is to become. None for the system's temporary folders.

    Raises:
        OutputError: The system does not let it be made. What the block writes into it is the block's to guard.
    """
    guard = writing_scratch if parent is None else writing
    parent = parent or Path(tempfile.gettempdir())
    _remove_unlocked(parent)
    # The name is known before the folder is there, so that a signal in between leaves nothing.
    folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
    descriptor = None
    try:
        with guard(parent):
            descriptor = _made(folder)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # a signal, and whoever sends one wants it to end, not to stay
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _made(folder: Path) -> int | None:
    """Make a folder, and return the descriptor that holds its lock; None where folders cannot be opened."""
    while True:
        folder.mkdir(mode=0o700)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders
            return None
        except FileNotFoundError:  # taken for one that is nobody's, before it was locked
            continue
        try_lock(descriptor)
        if is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)


def _remove_unlocked(parent: Path) -> None:
    if os.name == "nt":
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                own = os.fstat(descriptor).st_uid == os.getuid()
                if own and try_lock(descriptor) and is_at(descriptor, folder):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
