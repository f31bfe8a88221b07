"""The command line: the commands together, and every end of a run turned into its exit status."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from spdexport import __version__
from spdexport.cli_help import IncompleteCommand
from spdexport.cli_options import DEBUG
from spdexport.commands.ablate import ablate
from spdexport.commands.atlas import atlas
from spdexport.commands.bench import bench
from spdexport.commands.compress import compress
from spdexport.commands.convert import convert
from spdexport.commands.fold import fold
from spdexport.commands.inspect import inspect
from spdexport.commands.lab import lab
from spdexport.commands.masks import masks
from spdexport.commands.misspelt import meant
from spdexport.commands.running import REPORTS
from spdexport.commands.verify import verify
from spdexport.errors import OutputError, SpdExportError, UsageError
from spdexport.invocation import invoked_with
from spdexport.speech import SilencedError, command, flush, give_up, guarded_streams, on_github, say
from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spdexport.report.unfinished import Failure
    from spdexport.report.written import ReportFiles

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended: 128 + SIGINT."""

_STATUSES = """
\b
Exit status:
  0   done and equivalent     4   input cannot be used
  1   not equivalent          5   model cannot be traced or exported
  2   wrong usage             70  a fault of spdexport's own
  3   inconclusive            74  a file or standard output cannot be written
  130 interrupted (Ctrl-C)    143 terminated
"""


_asked_to_end: list[int] = []
"""The signals that asked this run to end, the first of them first."""


class TerminatedError(BaseException):
    """A signal asked the program to end. No ``Exception``, so that nothing on the way takes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Program(click.Group):
    """The commands, with every end of a run turned into its exit status and at most three lines of error."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run, and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        with guarded_streams():
            try:
                with _unwound_when_terminated(), invoked_with(arguments):
                    # A command returns its exit status; --help and --version return 0 through click's own Exit.
                    status = super().main(args, *rest, **{**extra, "standalone_mode": False, "obj": arguments})
                    flush()
            # What comes here was raised before there was a command, or while its end was told.
            except BaseException as error:
                status = _end(error, arguments)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises becomes a status here, before click takes it for something else."""
        try:
            status = super().invoke(ctx)
            flush()
        except click.exceptions.Exit:
            raise
        except BaseException as error:  # every end of a run has a status
            return _end(error, ctx.obj, debug=bool(ctx.meta.get(DEBUG)), reports=ctx.meta.get(REPORTS))
        return status


@contextlib.contextmanager
def _unwound_when_terminated() -> Iterator[None]:
    """Let signals end the program as an exception does, so that what was begun is undone on the way.

    SIGINT stays the ``KeyboardInterrupt`` that it is, and is remembered like the others.
    """
    if threading.current_thread() is not threading.main_thread():  # who alone gets signals
        yield
        return

    _asked_to_end.clear()

    def terminate(number: int, _frame: object) -> NoReturn:
        _asked_to_end.append(number)
        for other in numbers:  # one is enough, and another would end the unwinding
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError(number)

    # Who runs a program under nohup has it ignore that the terminal goes; a shell's background job ignores Ctrl-C.
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(
    error: BaseException, arguments: Sequence[str], *, debug: bool = False, reports: ReportFiles | None = None
) -> int:
    """Tell how a run ended, on the terminal and in its reports, and return the exit status.

    Args:
        error: What ended it.
        arguments: The command line.
        debug: Whether to show the traceback of an error.
        reports: The reports that were begun; None where it did not come to that.
    """
    from spdexport.report.unfinished import Failure

    if _asked_to_end and isinstance(error, Exception):
        # A library on the way made an exception of its own of the one that unwinds.
        first = _asked_to_end[0]
        error = KeyboardInterrupt() if first == signal.SIGINT else TerminatedError(first)
    match error:
        case KeyboardInterrupt() | click.Abort():  # what click makes of the former
            failure = Failure.of_end("interrupted", INTERRUPTED)
            say("Interrupted.", err=True)
        case TerminatedError():
            failure = Failure.of_end("terminated", 128 + error.number)
        case SilencedError():
            # There is nobody to tell. It is no verdict: a reader that went early must not look like a fault found.
            failure = Failure.of(_silenced(error))
            give_up()
            if not isinstance(error.__cause__, BrokenPipeError):
                _tell(_silenced(error), annotate=False)
        case click.exceptions.NoArgsIsHelpError():
            say(error.format_message(), err=True)
            return error.exit_code
        case SystemExit():
            raise error
        case _:
            known = _completed(_known(error), arguments)
            failure = Failure.of(known)
            if debug:
                say("".join(traceback.format_exception(error)).rstrip(), err=True)
            _tell(known)
    _leave_no_older_report(failure, arguments, reports)
    assert failure.exit_status is not None, "a run that ended has a status"
    return failure.exit_status


def _leave_no_older_report(failure: Failure, arguments: Sequence[str], reports: ReportFiles | None) -> None:
    if reports is None:
        from spdexport.report.asked import reports_in
        from spdexport.report.written import fail_reports

        remarks = fail_reports(reports_in(arguments), failure)
    else:
        remarks = reports.fail(failure)
    for remark in remarks:
        say(f"warning: {remark}", err=True)


def _known(error: BaseException) -> SpdExportError:
    """An error as one of ours."""
    match error:
        case SpdExportError():
            return error
        case click.ClickException():
            return _usage(error)
    return _own_fault(error)


def _completed(error: SpdExportError, arguments: Sequence[str]) -> SpdExportError:
    """Add to an error about a command line that lacks something the one that has it."""
    if error.missing:
        blanks = f"{', '.join(error.blanks[:-1])} and {error.blanks[-1]}" if error.blanks[1:] else "".join(error.blanks)
        with_own = f"The command, with your own {blanks}" if blanks else "For example"
        error.hint += f" {with_own}: spdexport {shlex.join([*arguments, *error.missing])}"
    return error


def _tell(error: SpdExportError, *, annotate: bool = True) -> None:
    """Three lines on standard error, whatever line breaks the parts have."""
    what, where, hint = (" ".join(printable(part).split()) for part in (error.what, error.where, error.hint))
    say(f"error: {what}\n  where: {where}\n  to do: {hint}", err=True)
    if annotate and on_github():
        from spdexport.report.workflow_commands import annotation

        with contextlib.suppress(SilencedError):
            command(annotation("error", "spdexport", f"{what}\nwhere: {where}\nto do: {hint}"))


def _silenced(error: SilencedError) -> OutputError:
    return OutputError(
        f"Standard output cannot be written: {error}.",
        where="standard output",
        hint="Look at the reports and files, which are whole, or run the command again with another output.",
    )


def _usage(error: click.ClickException) -> UsageError:
    """One of click's own errors as one of ours."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = context.command_path if context else "spdexport"
    hint = f"See {where} --help."
    if isinstance(error, click.NoSuchOption) and context is not None:
        return UsageError(error.message, where=where, hint=meant(error.option_name, context, main) + hint)
    if isinstance(error, IncompleteCommand) and error.examples:
        hint = f"For example: {error.examples[0]}. {hint}"
    return UsageError(error.format_message(), where=where, hint=hint)


def _own_fault(error: BaseException) -> SpdExportError:
    """An exception that nobody foresaw, with the innermost line of this package that it came through."""
    package = Path(__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(package)]
    last = frames[-1]
    return SpdExportError(
        f"This is a fault of spdexport itself: {type(error).__name__}: {str(error).strip() or '(no message)'}",
        where=f"spdexport/{Path(last.filename).relative_to(package).as_posix()}, line {last.lineno}, in {last.name}",
        hint="Run the command again with --debug, and report what it shows.",
    )


@click.group(cls=_Program, epilog=_STATUSES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spdexport")
def main() -> None:
    """Export models with SPD components to ONNX, and prove that ONNX Runtime computes what was meant.

    SOURCE is told by its content: a .pt2 program, a TorchScript archive, a state dict or an SPD run with --factory,
    an ONNX file, or a pickled module. With --factory alone it is the module that the factory returns.
    """


_COMMANDS: tuple[click.Command, ...] = (convert, compress, verify, fold, inspect, bench, masks, ablate, atlas, lab)
for subcommand in _COMMANDS:
    main.add_command(subcommand)
