"""Locks that tell whether the process that made a file is still there: they end with it, however it ends.

They are advisory and never waited for without end: a lock that the system or the file system does not know is no
error, and what it would have allowed is then not done.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 40  # Windows keeps others from bytes that are locked: one that no file has

    def try_lock(descriptor: int) -> bool:
        """Lock an open file until it is closed, and return whether that is done: not if another process has it."""
        try:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock an open file until it is closed, and return whether that is done: not if another process has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


PATIENCE = 2.0
"""Seconds that a folder's lock is waited for: it is held for moments, unless by someone for other reasons."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside of the block, so that two processes do not name and remove files at once.

    Where a folder cannot be locked, or is locked by someone else for longer than ``PATIENCE``, the block runs all the
    same.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that opens no folders, or one that is gone: what is done in it tells
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while not try_lock(descriptor) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path, *, follow_symlinks: bool = False) -> bool:
    """Return whether an open file is the one that this path leads to now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=follow_symlinks))
    except OSError:
        return False
