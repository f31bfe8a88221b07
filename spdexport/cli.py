"""The command line: the commands together, and every end of a run turned into its exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from spdexport import __version__
from spdexport.cli_options import DEBUG
from spdexport.commands.ablate import ablate
from spdexport.commands.bench import bench
from spdexport.commands.convert import convert
from spdexport.commands.fold import fold
from spdexport.commands.inspect import inspect
from spdexport.commands.masks import masks
from spdexport.commands.verify import verify
from spdexport.errors import SpdExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended: 128 + SIGINT."""

_STATUSES = """
\b
Exit status:
  0   done and equivalent     4   input cannot be used
  1   not equivalent          5   model cannot be traced or exported
  2   wrong usage             70  a fault of spdexport's own
  3   inconclusive
"""


class _Program(click.Group):
    """The commands, with every end of a run turned into its exit status and at most three lines of error."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run, and exit."""
        try:
            with _unwound_when_terminated():
                # A command returns its exit status; --help and --version return 0 through click's own Exit.
                status = super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.ClickException as error:
            _tell(_usage(error))
            status = UsageError.exit_status
        except click.Abort:  # what click makes of KeyboardInterrupt
            click.echo("Interrupted.", err=True)
            status = INTERRUPTED
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors become statuses here, where it is known whether --debug was given."""
        try:
            return super().invoke(ctx)
        except SpdExportError as error:
            return _end(ctx, error)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        # The one place that catches everything: a fault of our own is to be told as one.
        except Exception as error:
            return _end(ctx, _own_fault(error))


@contextlib.contextmanager
def _unwound_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the program as an exception does, so that temporary files are removed on the way."""
    if threading.current_thread() is not threading.main_thread():  # who alone gets signals
        yield
        return

    def terminate(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(context: click.Context, error: SpdExportError) -> int:
    if context.meta.get(DEBUG):
        click.echo(traceback.format_exc().rstrip(), err=True)
    _tell(error)
    return error.exit_status


def _tell(error: SpdExportError) -> None:
    """Three lines on standard error, whatever line breaks the parts have."""
    what, where, hint = (" ".join(part.split()) for part in (error.what, error.where, error.hint))
    click.echo(f"error: {what}\n  where: {where}\n  to do: {hint}", err=True)
    from spdexport.report.workflow_commands import annotation, on_github

    if on_github():
        click.echo(annotation("error", "spdexport", f"{what}\nwhere: {where}\nto do: {hint}"))


def _usage(error: click.ClickException) -> UsageError:
    """One of click's own errors as one of ours."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "spdexport"
    return UsageError(error.format_message(), where=command, hint=f"See {command} --help.")


def _own_fault(error: Exception) -> SpdExportError:
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


for command in (convert, verify, fold, inspect, bench, masks, ablate):
    main.add_command(command)
