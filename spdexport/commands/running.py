"""What surrounds every command: its progress, what is done with its result, and the exit status of a verdict."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spdexport.cli_options import DEBUG
from spdexport.errors import UsageError

if TYPE_CHECKING:
    from spdexport.report.common import Result

FILES = ("report", "junit", "html", "repro")
"""The options that name a file for the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Where the result of a command goes, and how much is said.

    Attributes:
        files: The file for each of FILES that the command has, or None.
        verbose: Whether to say more.
        quiet: Whether to say the verdict alone.
    """

    files: Mapping[str, Path | None]
    verbose: bool
    quiet: bool

    @contextlib.contextmanager
    def run(self, others: Sequence[Path | None]) -> Iterator[tuple[Callable[[str], None], Callable[[Result], None]]]:
        """Surround the work of a command.

        Args:
            others: The files that the command reads and writes, which no report may overwrite.

        Yields:
            Told what is being done; and told the result, which is written to ``files`` and printed after the block.
        """
        if self.verbose and self.quiet:
            raise UsageError(
                "--verbose and --quiet contradict each other.", where="-v and -q", hint="Give one of them."
            )
        from spdexport.quiet import quiet as hush
        from spdexport.report.progress import progress_on, standard_error
        from spdexport.report.written import report_files

        results: list[Result] = []
        with contextlib.ExitStack() as stack:
            # Opened before the work, so that a folder that cannot be written to is told at once.
            write = stack.enter_context(report_files(self.files, others))
            told = stack.enter_context(progress_on(standard_error(), verbose=self.verbose, quiet=self.quiet))
            if not self.verbose and not click.get_current_context().meta[DEBUG]:
                # The user's own code prints and warns too, and what is read from standard output is the result.
                stack.enter_context(hush())
            # Only now, for this brings torch: its import is part of what the progress is shown for.
            from spdexport.report import github, terminal
            from spdexport.report.workflow_commands import fenced, on_github

            yield told, results.append
            remark = write(results[0])
        with fenced(click.echo) if on_github() else contextlib.nullcontext():
            terminal.show(results[0], verbose=self.verbose, quiet=self.quiet)
        if on_github():
            github.tell(results[0], click.echo)
        if remark:
            click.echo(remark, err=True)


def reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gather the options of reports and talk into one argument, the first, for a command that has them."""

    @functools.wraps(command)
    def gathered(**options: Any) -> Any:
        files = {name: options.pop(name) for name in FILES if name in options}
        from spdexport.files.limits import reading_limits

        talk = {name: options.pop(name) for name in ("verbose", "quiet")}
        with reading_limits(**options.pop("limits")):
            return command(Reporting(files=files, **talk), **options)

    return gathered


def exit_status(result: Any) -> int:
    """The exit status of a verdict, and of the user's limits; nothing verified, because nobody asked, is no failure."""
    from spdexport.report.common import verification_of
    from spdexport.verification.result import Status

    found = verification_of(result)
    if found is not None and found.exceeds:
        return 1
    return {Status.PASS: 0, Status.NOT_RUN: 0, Status.FAIL: 1, Status.INCONCLUSIVE: 3}[result.verdict]
