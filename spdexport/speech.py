"""Everything that is printed goes through here: standard output and standard error, guarded while a command runs.

What is printed may hold names from models and files, words of libraries, and tracebacks. Inside of ``guarded_streams``
all of it is made ``printable``, and on GitHub no line of it is a command to the runner, which reads both streams. A
stream that cannot be written never ends in a traceback: standard output raises ``SilencedError``, and standard error,
where there is nobody left to tell, is dropped.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO, TYPE_CHECKING, TextIO, cast

from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RUNNERS = ("##[", "##vso[", "##teamcity[")
"""What other commands to runners begin with, wherever in a line: the older form of GitHub, Azure and TeamCity."""


class SilencedError(Exception):
    """Standard output cannot be written: its reader has gone, it is closed, or the disk is full.

    No ``OSError``, so that no library in between takes it for one and ends the program with a status of its own.
    """


def on_github() -> bool:
    """Return whether this runs in a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def say(text: str, *, err: bool = False) -> None:
    """Print a text and a line break.

    Args:
        text: May hold anything.
        err: On standard error.

    Raises:
        SilencedError: Standard output cannot be written.
    """
    _stream(err=err).write(f"{text}\n")


def command(line: str) -> None:
    """Print a command to the runner of GitHub, which reads lines of standard output that begin with ``::``.

    Raises:
        SilencedError: Standard output cannot be written.
    """
    _stream(err=False).put(f"{line}\n")


def styled(*, err: bool) -> IO[str]:
    """Return a stream for a console of rich, whose own colours are no danger, and which makes the text printable."""
    return cast("IO[str]", _Styled(_stream(err=err)))


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard standard output and standard error until the block ends, whoever prints on them."""
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Guarded(sys.stdout, err=False), _Guarded(sys.stderr, err=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Write out what is still held back.

    Raises:
        SilencedError: Standard output cannot be written.
    """
    for err in (True, False):
        _stream(err=err).flush()


def give_up() -> None:
    """Drop from now on what standard output cannot take."""
    _stream(err=False).give_up()


class _Borrowed(io.TextIOBase):
    """A stream in front of somebody else's, which may be closed by the time that nobody holds this one any more."""

    def __del__(self) -> None:
        """Leave the other stream alone: to close this one would flush it, whose failure Python prints from 3.13 on."""


class _Guarded(_Borrowed):
    """A standard stream that prints what it is given in a form that commands nobody."""

    def __init__(self, stream: TextIO | None, *, err: bool) -> None:
        self._stream = stream
        self._line = ""
        self._error: Exception | None = None
        self._is_given_up = err

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def write(self, text: str | bytes, /) -> int:
        if isinstance(text, bytes):  # what click writes for a shell to complete commands with
            text = text.decode()
        # Progress bars of libraries go back to the start of their line.
        self.write_styled(printable(text.replace("\r\n", "\n").replace("\r", "\n")))
        return len(text)

    def write_styled(self, text: str) -> None:
        """Write text whose control characters are meant."""
        self.put(self._defused(text))

    def put(self, text: str) -> None:
        """Write text that may be a command to the runner in its newer form, and in no older one."""
        for start in _RUNNERS:
            text = text.replace(start, "\\x23" + start[1:])
        self._try(lambda stream: _write(stream, text))

    def flush(self) -> None:
        if self._stream is not None:  # nothing is lost where nothing was written
            self._try(lambda stream: stream.flush())

    def give_up(self) -> None:
        """Drop from now on what cannot be written."""
        self._is_given_up = True

    def _try(self, act: Callable[[TextIO], object]) -> None:
        """Do something with the stream; once it has failed it is left alone, and fails again.

        The first to try it may take that lightly, as click does.
        """
        if self._error is None:
            try:
                if self._stream is None:
                    raise OSError("it is closed")
                act(self._stream)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._error = error
                with contextlib.suppress(OSError, ValueError):
                    # What it still holds would fail again when the interpreter ends, and be told then.
                    _point_nowhere(self.fileno())
        if self._error is not None and not self._is_given_up:
            said = getattr(self._error, "strerror", None) or str(self._error)
            raise SilencedError(said) from self._error

    def _defused(self, text: str) -> str:
        """Text in which no line is a command, whatever of its first line was written before."""
        if not on_github():
            return text
        *ended, last = text.split("\n")
        shown = []
        for line in ended:
            shown.append(self._continued(line))
            self._line = ""
        return "\n".join((*shown, self._continued(last)))

    def _continued(self, part: str) -> str:
        """Text that goes on in the line that is being written, which keeps in mind what may become a command."""
        whole = self._line + part
        is_command = whole.lstrip().startswith("::")
        self._line = whole if whole.strip() in ("", ":") else "no command"
        return part.replace(":", "\\x3a", 1) if is_command else part


class _Styled(_Borrowed):
    """A guarded stream for text whose control characters are those of a console."""

    def __init__(self, stream: _Guarded) -> None:
        self._guarded = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._guarded.encoding

    def isatty(self) -> bool:
        return self._guarded.isatty()

    def fileno(self) -> int:
        return self._guarded.fileno()

    def write(self, text: str, /) -> int:
        self._guarded.write_styled(text)
        return len(text)

    def flush(self) -> None:
        self._guarded.flush()


def _write(stream: TextIO, text: str) -> None:
    """Write text, with what the stream's encoding lacks in visible form."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _stream(*, err: bool) -> _Guarded:
    stream = sys.stderr if err else sys.stdout
    return stream if isinstance(stream, _Guarded) else _Guarded(stream, err=err)


def _open_missing() -> None:
    """Open what is closed of the three standard files.

    Else the next file that is opened gets the number, and what a library prints there ends up in a model.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _point_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
    finally:
        os.close(nowhere)
