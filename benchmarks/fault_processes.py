"""Command lines in processes that are forked from one which has everything imported: a run takes a second."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class End(NamedTuple):
    """How a process ended: its exit status, negative for a signal, what it said on standard error, and when."""

    status: int
    said: str
    seconds: float


class Running(NamedTuple):
    """A process, where it says what is wrong, and when it began."""

    process: int
    errors: int
    begun: float


def start(arguments: list[str], scratch: Path, *, limit: int | None = None, output: str = "") -> Running:
    """Run a command line in a process of its own; return once it is at its beginning.

    Args:
        arguments: The command line.
        scratch: The folder for temporary files.
        limit: The bytes that a file may have.
        output: ``closed`` or ``full``: what standard output is.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    errors, said = os.pipe()
    ready, begin = os.pipe()
    process = os.fork()
    if process == 0:
        status = 70
        try:
            _redirect(output, said)
            tempfile.tempdir = str(scratch)
            _use_one_core()
            # A shell may have had this process ignore them.
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            os.write(begin, b".")
            status = _command(arguments)
        finally:
            os._exit(status)
    for descriptor in (said, begin):
        os.close(descriptor)
    os.read(ready, 1)
    os.close(ready)
    return Running(process, errors, time.monotonic())


def wait(running: Running) -> End:
    """Wait for the end of a process."""
    with os.fdopen(running.errors, "rb") as file:
        said = file.read().decode(errors="replace")
    _, code = os.waitpid(running.process, 0)
    return End(os.waitstatus_to_exitcode(code), said, time.monotonic() - running.begun)


def _redirect(output: str, errors: int) -> None:
    os.dup2(errors, 2)
    if output == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full" if output == "full" else os.devnull, os.O_WRONLY)
    os.dup2(writer, 1)


def _use_one_core() -> None:
    """Take one thread: those that wait for each other make a small model slow where others work, too."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {os.getpid() % (os.cpu_count() or 1)})


def _command(arguments: list[str]) -> int:
    from spdexport.cli import main as command

    try:
        command(arguments, prog_name="spdexport")
    except SystemExit as end:
        with contextlib.suppress(OSError):  # what the interpreter makes of it is not the command's
            sys.stdout.flush()
        return end.code if isinstance(end.code, int) else 0
    except BaseException:  # what the interpreter would show
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def import_what_is_used(arguments: list[str], scratch: Path) -> None:
    """Import what a command line imports while it runs, so that no run after it has to."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            _redirect("", os.open(os.devnull, os.O_WRONLY))
            tempfile.tempdir = str(scratch)
            _use_one_core()
            _command(arguments)
            os.write(writer, "\n".join(sys.modules).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        names = file.read().split()
    os.waitpid(process, 0)
    for name in names:
        with contextlib.suppress(Exception):  # some are made, not found
            importlib.import_module(name)


def in_child(work: Callable[[], None]) -> None:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # a child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit("the files to read could not be made")
