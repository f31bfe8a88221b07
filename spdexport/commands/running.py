"""What surrounds every command: its progress, what is done with its result, and the exit status of a verdict."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spdexport.cli_kinds import pop_given
from spdexport.cli_options import DEBUG
from spdexport.errors import UsageError
from spdexport.report.formats import formats
from spdexport.speech import SilencedError, flush, on_github, say

if TYPE_CHECKING:
    from spdexport.report.common import Result

REPORTS = "spdexport.reports"
"""The key under which the context of a whole run keeps the reports that were begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Where the result of a command goes, and how much is said.

    Attributes:
        files: The file for each format of report that the command has, and for ``repro``, or None.
        verbose: Whether to say more.
        quiet: Whether to say the verdict alone.
        log_file: Where every step and the whole report go besides; None for nowhere.
    """

    files: Mapping[str, Path | None]
    verbose: bool
    quiet: bool
    log_file: Path | None = None

    @contextlib.contextmanager
    def run(self) -> Iterator[tuple[Callable[[str], None], Callable[[Result], None]]]:
        """Surround the work of a command.

        Yields:
            Told what is being done; and told the result, which is written to ``files`` and printed after the block.

        Raises:
            UsageError: Options contradict each other, or an output would overwrite what is read.
            OutputError: A report cannot be written; the result was printed all the same.
        """
        context = click.get_current_context()
        if self.verbose and self.quiet:
            raise UsageError(
                "--verbose and --quiet contradict each other.", where="-v and -q", hint="Give one of them."
            )
        from spdexport.overwriting import check_overwriting
        from spdexport.quiet import quiet as hush
        from spdexport.report.console import standard_console
        from spdexport.report.log_file import LogFile
        from spdexport.report.progress import progress_on
        from spdexport.report.written import ReportFiles

        asked = {"in_place": False, "verify": True, **context.params}
        check_overwriting(_files(context.params), reports=formats(), in_place=asked["in_place"], verify=asked["verify"])
        log = LogFile(self.log_file) if self.log_file is not None else None
        reports = context.meta[REPORTS] = ReportFiles(self.files, log)
        reports.begin()
        results: list[Result] = []
        with contextlib.ExitStack() as stack:
            shown = stack.enter_context(progress_on(standard_console(err=True), verbose=self.verbose, quiet=self.quiet))
            if not self.verbose and not context.meta[DEBUG]:
                # The user's own code prints and warns too, and what is read from standard output is the result.
                stack.enter_context(hush())
            # Only now, for this brings torch: its import is part of what the progress is shown for.
            from spdexport.report import github, terminal

            def told(step: str) -> None:
                shown(step)
                if log is not None:
                    log.tell(step)

            yield told, results.append
            remark, error = reports.finish(results[0])
        # A verdict that was reached is told, whatever became of the files, and of standard output.
        try:
            terminal.show(results[0], verbose=self.verbose, quiet=self.quiet)
            flush()
        except SilencedError as silenced:
            if not isinstance(silenced.__cause__, BrokenPipeError):  # whose reader wanted no more
                terminal.show(results[0], quiet=True, console=standard_console(err=True))
            raise
        if on_github():
            github.tell(results[0])
        if remark:
            say(remark, err=True)
        if error is not None:
            raise error


def _files(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that name files: those that click read as paths, and two that may be something else as well."""
    return {
        name: value
        for name, value in values.items()
        if name in ("factory", "metric", "baseline") or any(isinstance(one, Path) for one in _listed(value))
    }


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, tuple) else (value,)


def reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gather the options of a command into its two first arguments; it takes by name what is left, and all of it.

    The first is a ``Reporting``. The second has the keywords for the functions of ``spdexport`` that were given; what
    was not is left out, for ``verify`` reads from the file what is not given.
    """

    @functools.wraps(command)
    def gathered(**options: Any) -> Any:
        from spdexport.files.limits import reading_limits

        del options["config"]  # what it says is among the others
        files = {name: options.pop(name) for name in (*formats(), "repro") if name in options}
        talk = {name: options.pop(name) for name in ("verbose", "quiet", "log_file")}
        with reading_limits(**options.pop("limits")):
            return command(Reporting(files=files, **talk), pop_given(options), **options)

    return gathered


def exit_status(result: Any) -> int:
    """Return the exit status of a verdict, and of the user's limits.

    Nothing verified, because nobody asked, is no failure.
    """
    from spdexport.report.common import verification_of
    from spdexport.verification.result import Status

    found = verification_of(result)
    if found is not None and found.exceeds:
        return 1
    return {Status.PASS: 0, Status.NOT_RUN: 0, Status.FAIL: 1, Status.INCONCLUSIVE: 3}[result.verdict]
