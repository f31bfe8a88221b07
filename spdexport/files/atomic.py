"""Writing a file so that its name always holds the old content or the whole new one, and nothing else is left behind.

Where the system can (Linux, on most file systems), what is being written has no name at all until it is whole, so that
a run that is killed leaves nothing. Elsewhere it has one of ``unfinished``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from spdexport.errors import UsageError
from spdexport.files.locks import folder_lock, is_at, try_lock
from spdexport.files.unfinished import (
    DIGEST,
    data_name,
    is_claimed,
    release_data,
    remove_unfinished,
    unfinished_name,
)
from spdexport.files.writing import NO_ROOM, refused, writing

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_LINKED = {errno.EEXIST, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What is said where a file without a name cannot have this one, or none at all, and may yet be copied."""


class RejectedError(Exception):
    """What was written must not take its name. Raised by `Pending.set_aside`; caught outside of `pending`."""


def failed_name(path: Path) -> Path:
    """Return the name that a rejected file gets: ``OUT.failed.onnx`` for ``OUT.onnx``."""
    return path.with_name(f"{path.stem}.failed{path.suffix}")


class Pending:
    """A file on its way to its name. Made by `pending`.

    Attributes:
        final: The name that it is to have, as the user gave it.
        path: By what it can be opened now, by other processes too, to be written and read. The system's name of an open
            file, which has no ending, where it has none of its own. The file is there from the beginning, with the
            permissions that the umask gives; write into it, and do not put another one in its place.
    """

    def __init__(self, final: Path, *, durable: bool) -> None:
        self.final = final
        self._durable = durable
        # The working folder may be another one when all is done.
        self._target = final.absolute()
        self._folder = self._target.parent
        self._name: Path | None = None
        self._claim = ""
        remove_unfinished(self._folder)
        self._descriptor = self._open_unnamed()
        if self._descriptor < 0:
            self._open_named()
        self.path = self._name or Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def _open_unnamed(self) -> int:
        """Return the descriptor of a new file without a name; -1 where there is no such thing."""
        flag = getattr(os, "O_TMPFILE", 0)
        if not flag:
            return -1
        try:
            descriptor = os.open(self._folder, os.O_RDWR | flag, 0o666)
        except OSError:  # file systems say it in many ways; what is wrong with the folder is said again
            return -1
        if not is_at(descriptor, Path(f"/proc/{os.getpid()}/fd/{descriptor}"), follow_symlinks=True):
            os.close(descriptor)
            return -1
        try_lock(descriptor)
        return descriptor

    def _open_named(self) -> None:
        while True:
            self._name = unfinished_name(self._target, self._claim)
            self._descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try_lock(self._descriptor)
            # Whoever saw it before it was locked may have taken it for a file that is nobody's.
            if is_at(self._descriptor, self._name):
                return
            os.close(self._descriptor)

    def publish(self, data: Pending, digest: str) -> Path:
        """Give a model and its data names in the folder, those of the data for good, so that both can be opened.

        Data that were not there before are removed if the model is not finished.

        Args:
            data: The data, written; they are made for the same folder.
            digest: Their SHA-256 in hexadecimal.

        Returns:
            The data's name, which ``data_name`` gives, too.

        Raises:
            OutputError: The system refuses.
        """
        named = data_name(self.final, digest)
        target = data_name(self._target, digest)
        with writing(named):
            self._sync()
            data._sync()
            with folder_lock(self._folder):
                # Data that an earlier model left, or a copy of it needs, were there before us and stay.
                ours = not target.exists() or is_claimed(self._folder, digest)
                self._claim = digest[:DIGEST] if ours else ""
                self.give_name()
                data._take(target)
        return named

    @contextlib.contextmanager
    def beside(self) -> Iterator[Pending]:
        """Open a file for the data of this one, which ``publish`` names; without that, nothing of it remains."""
        data = Pending(data_name(self.final, ""), durable=self._durable)
        try:
            yield data
        finally:
            data.abandon()
            data.close()

    def set_aside(self) -> NoReturn:
        """Give the file the name of a failed one, and leave the one that it was to replace as it is.

        Raises:
            RejectedError: Always, so that no other file of the same block takes its name either.
            OutputError: The system refuses.
        """
        failed = failed_name(self._target)
        with writing(failed_name(self.final)):
            self._sync()
            self._take(failed)
        raise RejectedError(self.final)

    def finish(self) -> None:
        """Give the file its name; one that has it is replaced.

        Raises:
            OSError: The system refuses.
        """
        self._sync()
        self._take(self._target)

    def abandon(self) -> None:
        """Remove the file, and the data that it alone claims."""
        if self._name is None:
            return
        with contextlib.suppress(OSError):  # a folder that is gone holds nothing that could be removed
            if self._claim:
                release_data(self._folder, self._claim, self._name)
            else:
                self._name.unlink(missing_ok=True)
        self._name = None

    def close(self) -> None:
        """Let go of the file, and with that of its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync(self) -> None:
        """Have it on the disk before anything refers to it, so that a power cut leaves the old file or the new one."""
        if self._durable:
            os.fsync(self._descriptor)

    def give_name(self) -> Path:
        """Give the file a name in its folder, that of an unfinished one, and return it; ``path`` is it, too, then.

        Raises:
            OSError: The system refuses.
        """
        before, self._name = self._name, unfinished_name(self._target, self._claim)
        # It is known before it exists, so that a signal in between leaves nothing.
        if before is not None:
            self._rename(before, self._name)
        elif not self._link(self._name):
            self._copy(self._name)
        self.path = self._name
        return self.path

    def _rename(self, before: Path, name: Path) -> None:
        if os.name != "nt":
            before.rename(name)
            return
        self.close()  # Windows moves no open files
        before.rename(name)
        self._descriptor = os.open(name, os.O_RDWR)
        try_lock(self._descriptor)

    def _take(self, target: Path) -> None:
        """Give the file its own name."""
        if self._name is None and not self._link(target):
            self.give_name()
        if self._name is not None:
            if os.name == "nt":
                self.close()
            self._name.replace(target)
            self._name = None
        self._settled()

    def _link(self, name: Path) -> bool:
        """Give the file without a name this one, and return whether that is done: not if another file has it."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            # Python follows the link only where a folder is given, too.
            os.link(f"/proc/self/fd/{self._descriptor}", name, src_dir_fd=folder, follow_symlinks=True)
        except OSError as error:
            if error.errno not in _NOT_LINKED:
                raise
            return False
        finally:
            os.close(folder)
        return True

    def _copy(self, name: Path) -> None:
        """Let a copy with this name take the place of the file without one, where the system can give it none."""
        copy = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        unnamed, self._descriptor = self._descriptor, copy
        try:
            try_lock(copy)
            with self.path.open("rb") as source, open(copy, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target, 1 << 24)
            self._sync()
        finally:
            os.close(unnamed)

    def _settled(self) -> None:
        """Have the folder on the disk, too."""
        if self._durable and os.name != "nt":
            with contextlib.suppress(OSError):  # some file systems cannot, and need not
                folder = os.open(self._folder, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def check_folder(path: Path) -> None:
    """Refuse an output whose folder does not exist, before any work is done for it.

    Raises:
        UsageError: It does not.
    """
    if not path.parent.is_dir():
        raise UsageError(
            "The folder of the output does not exist.", where=str(path), hint=f"Make it: mkdir -p {path.parent}"
        )


@contextlib.contextmanager
def pending(path: str | Path, *, durable: bool = True) -> Iterator[Pending]:
    """Open a new file beside ``path``, and let it become ``path`` if the block succeeds.

    If the block raises anything, KeyboardInterrupt included, the new file is removed and an existing ``path`` stays as
    it was. What runs that were killed left in the folder is removed.

    Args:
        path: The file that is to be there in the end.
        durable: Whether it has to outlast a power cut.

    Raises:
        UsageError: The folder does not exist, or ``path`` is a folder or a device.
        OutputError: The system does not let the file be written.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            raise UsageError("The output is an existing folder.", where=str(path), hint="Name a file.")
        check_folder(path)
        if path.exists() and not path.is_file():
            raise UsageError(
                "The output is a device or a pipe, which no file can replace.", where=str(path), hint="Name a file."
            )
        # Opened here, before any long work, so that a folder that cannot be written to is told at once.
        output = Pending(path, durable=durable)
    try:
        try:
            yield output
        except OSError as error:
            if error.errno in NO_ROOM or (error.filename is not None and str(error.filename) == str(output.path)):
                raise refused(error, path) from error
            raise
        with writing(path):
            output.finish()
    finally:
        output.abandon()
        output.close()


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a new, empty file, which becomes ``path`` if the block succeeds: as `pending` has it.

    Write into the file by its path, as often as is needed; nothing may take its place. Its path need not be in the same
    folder, nor have the same ending.

    Raises:
        UsageError, OutputError: As for `pending`.
    """
    with pending(path, durable=durable) as output:
        yield output.path


@contextlib.contextmanager
def named_beside(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file in the folder of another, with its ending, and remove it after the block.

    Raises:
        OSError: The system does not let it be made.
    """
    file = Pending(path, durable=False)
    try:
        yield file.give_name()
    finally:
        file.abandon()
        file.close()
