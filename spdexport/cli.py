"""The command line: parse, one call, render, exit status. Everything heavy is imported inside the commands."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from spdexport import __version__
from spdexport.cli_options import (
    DEBUG,
    check_options,
    factor_options,
    form_option,
    given,
    model_options,
    opset_option,
    pickle_option,
    provider_option,
    report_option,
    report_options,
    repro_option,
    seed_option,
    source_argument,
    talk_options,
    verify_option,
)
from spdexport.errors import SpdExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.report.common import Result

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


@main.command(short_help="Convert SOURCE to ONNX in factorized form, and verify it.")
@source_argument
@click.option(
    "-o",
    "--output",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="What to write: OUT.onnx, and OUT.pt2 for the factorized program. Repeatable.",
)
@model_options
@factor_options
@form_option
@opset_option
@verify_option
@provider_option
@check_options
@report_options
@repro_option
@talk_options
@click.pass_context
def convert(
    context: click.Context,
    /,
    *,
    source: Path | None,
    output: Sequence[Path],
    verify: bool,
    providers: Sequence[str],
    report: Path | None,
    junit: Path | None,
    html: Path | None,
    repro: Path | None,
    verbose: bool,
    quiet: bool,
    **_: Any,
) -> int:
    """Convert SOURCE to ONNX with its layers in factorized form, and verify the file."""
    import spdexport

    if repro is not None and not verify:
        raise UsageError("--repro saves what a check found.", where="--repro and --no-verify", hint="Give one of them.")
    files = {"report": report, "junit": junit, "html": html, "repro": repro}
    with _run(files, [source, *output], verbose=verbose, quiet=quiet) as (progress, finish):
        result = spdexport.convert(
            source, output, verify=verify, providers=providers or None, progress=progress, **given(context)
        )
        finish(result)
    return _exit_status(result)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="SOURCE", help="What the file was made from.")
@model_options
@factor_options
@form_option
@opset_option
@provider_option
@check_options
@report_options
@repro_option
@talk_options
@click.pass_context
def verify(
    context: click.Context,
    /,
    *,
    file: Path,
    against: Path | None,
    providers: Sequence[str],
    report: Path | None,
    junit: Path | None,
    html: Path | None,
    repro: Path | None,
    verbose: bool,
    quiet: bool,
    **_: Any,
) -> int:
    """Check the ONNX file FILE against the SOURCE it was made from.

    Options that shaped the file are read from it where they are not given. SOURCE may be another ONNX file too. Without
    SOURCE and --factory, what ONNX Runtime computes is compared with what FILE itself says.
    """
    import spdexport

    files = {"report": report, "junit": junit, "html": html, "repro": repro}
    with _run(files, [file, against], verbose=verbose, quiet=quiet) as (progress, finish):
        result = spdexport.verify(
            file, against=against, providers=providers or None, progress=progress, **given(context)
        )
        finish(result)
    return _exit_status(result)


@main.command(short_help="Fold V and U of FILE into one dense layer again.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--if-cheaper", is_flag=True, help="Leave a chain that has fewer multiply-accumulates than its fold.")
@click.option("--explain", is_flag=True, help="List each candidate, and why it was folded or not.")
@pickle_option
@seed_option
@verify_option
@provider_option
@report_options
@talk_options
def fold(
    *,
    file: Path,
    output: Path,
    if_cheaper: bool,
    explain: bool,
    allow_pickle: bool,
    seed: int,
    verify: bool,
    providers: Sequence[str],
    report: Path | None,
    junit: Path | None,
    html: Path | None,
    verbose: bool,
    quiet: bool,
) -> int:
    """Fold V, mask, U (and the delta beside them) of FILE, .onnx or .pt2, into one dense layer again.

    Whatever chain of convolutions or linear layers is one of them is folded, and sums of such chains on one input.
    """
    from dataclasses import replace

    import spdexport

    files = {"report": report, "junit": junit, "html": html}
    with _run(files, [file, output], verbose=verbose, quiet=quiet) as (progress, finish):
        result = spdexport.fold(
            file,
            output,
            verify=verify,
            providers=providers or None,
            seed=seed,
            allow_pickle=allow_pickle,
            if_cheaper=if_cheaper,
            progress=progress,
        )
        finish(replace(result, notes=(*result.notes, *result.explained())) if explain else result)
    return _exit_status(result)


@main.command(short_help="List the layers of SOURCE with components and costs.")
@source_argument
@model_options
@factor_options
@report_option
@talk_options
@click.pass_context
def inspect(
    context: click.Context, /, *, source: Path | None, report: Path | None, verbose: bool, quiet: bool, **_: Any
) -> int:
    """List the layers of SOURCE with geometry, components and costs. Nothing is written."""
    import spdexport

    with _run({"report": report}, [source], verbose=verbose, quiet=quiet) as (progress, finish):
        finish(spdexport.inspect(source, progress=progress, **given(context)))
    return 0


@contextlib.contextmanager
def _run(
    reports: Mapping[str, Path | None], others: Sequence[Path | None], *, verbose: bool, quiet: bool
) -> Iterator[tuple[Callable[[str], None], Callable[[Result], None]]]:
    """What surrounds every command: its progress, and what is done with its result.

    Yields:
        Told what is being done; and told the result, which it writes to ``reports`` and prints after the block.
    """
    if verbose and quiet:
        raise UsageError("--verbose and --quiet contradict each other.", where="-v and -q", hint="Give one of them.")
    from spdexport.quiet import quiet as hush
    from spdexport.report.progress import progress_on, standard_error
    from spdexport.report.written import report_files

    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        # Opened before the work, so that a folder that cannot be written to is told at once.
        write = stack.enter_context(report_files(reports, others))
        told = stack.enter_context(progress_on(standard_error(), verbose=verbose, quiet=quiet))
        if not verbose and not click.get_current_context().meta[DEBUG]:
            # The user's own code prints and warns too, and what is read from standard output is the result.
            stack.enter_context(hush())
        # Only now, for this brings torch: its import is part of what the progress is shown for.
        from spdexport.report import github, terminal
        from spdexport.report.workflow_commands import fenced, on_github

        yield told, results.append
        remark = write(results[0])
    with fenced(click.echo) if on_github() else contextlib.nullcontext():
        terminal.show(results[0], verbose=verbose, quiet=quiet)
    if on_github():
        github.tell(results[0], click.echo)
    if remark:
        click.echo(remark, err=True)


def _exit_status(result: Any) -> int:
    """The exit status of a verdict; nothing verified, because nobody asked, is no failure."""
    from spdexport.verification.result import Status

    return {Status.PASS: 0, Status.NOT_RUN: 0, Status.FAIL: 1, Status.INCONCLUSIVE: 3}[result.verdict]
