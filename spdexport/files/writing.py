"""The boundary around everything that writes: a disk that is full or read-only is no fault of this package."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from spdexport.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What the system says only to those who write, whatever file they had in mind."""

ELSEWHERE = "Name a file in another folder, or"
"""How the advice begins for a file that the user named."""

_FAULTS = {
    errno.EFBIG: (
        "the file would be larger than the system allows",
        "Raise the limit (ulimit -f), or split the model.",
    ),
    errno.EROFS: ("the file system is read-only", "{elsewhere} mount it for writing."),
    errno.EACCES: ("permission denied", "{elsewhere} check the folder's permissions."),
    errno.EPERM: ("permission denied", "{elsewhere} check the folder's permissions."),
    errno.ENAMETOOLONG: ("the name is too long", "Name a shorter one."),
    errno.ENOENT: ("its folder is gone", "Make the folder again, and run the command again."),
    errno.ENOTDIR: ("its folder is gone", "Make the folder again, and run the command again."),
    errno.ESTALE: ("its folder is gone", "Make the folder again, and run the command again."),
    getattr(errno, "EDQUOT", -1): ("your quota of the disk is used up", "{elsewhere} free some space."),
}


@contextlib.contextmanager
def writing(where: str | Path, *, size: int | None = None, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Turn what the system refuses inside of the block into an error about the file that is written.

    Only what writes belongs into the block, for a file that cannot be *read* is another error. Libraries are given
    open files of Python, or give bytes, so that all that they trip over is an ``OSError``.

    Args:
        where: The file, under the name that the user gave.
        size: How many bytes are to be written there at least, if that is known: the error tells what is missing.
        elsewhere: How the advice begins.

    Raises:
        OutputError: The system refused; its exception is the cause.
    """
    # Before anything is written: what is there of the file afterwards is part of what it takes.
    room = "" if size is None else _room(Path(where), size)
    try:
        yield
    except OSError as exc:
        raise refused(exc, where, room=room, elsewhere=elsewhere) from exc


def refused(exc: OSError, where: str | Path, *, room: str = "", elsewhere: str = ELSEWHERE) -> OutputError:
    """Return the error about an output that the system does not let be written.

    Args:
        exc: What the system says.
        where: The file, under the name that the user gave.
        room: How much space there is and how much it takes, as the end of a sentence, if that is known.
        elsewhere: As for ``writing``.
    """
    if exc.errno == errno.ENOSPC:
        reason, hint = f"the disk is full{room}", "{elsewhere} free some space."
    else:
        said = (exc.strerror or str(exc) or type(exc).__name__).strip().rstrip(".")
        reason, hint = _FAULTS.get(exc.errno or 0, (said, "{elsewhere} look after the disk."))
    return OutputError(
        f"The output cannot be written: {reason}.", where=str(where), hint=hint.format(elsewhere=elsewhere)
    )


def _room(path: Path, size: int) -> str:
    """Return how much space there is and how much a file takes, as the end of a sentence; nothing if it fits."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    return (
        f", where the file takes at least {_mebibytes(size)} MiB and {_mebibytes(free)} MiB are free"
        if free < size
        else ""
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g}" if count < 2**20 * 1000 else f"{count / 2**20:.0f}"


class Deferred(io.RawIOBase):
    """A file for a library that cannot bear an exception while it writes: the first one is kept, and the rest dropped.

    torch's writer of archives is of that kind: what is raised below it ends the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise what was kept.

        Raises:
            OSError: Something was not written.
            BaseException: A signal came meanwhile.
        """
        if self._error is not None:
            raise self._error

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Write, unless something could not be written before, and return the number of bytes all the same."""
        if self._error is None:
            try:
                self._file.write(data)
            except BaseException as error:  # a signal's too, which ends the run a little later
                self._error = error
        return memoryview(data).nbytes

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to another place, as any file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place where the next byte goes."""
        return self._file.tell()
