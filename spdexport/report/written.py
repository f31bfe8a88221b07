"""The reports that are files: begun before the work, and finished with its result or with what went wrong."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from spdexport.errors import OutputError, SpdExportError
from spdexport.files.atomic import RejectedError, replacing
from spdexport.files.writing import writing
from spdexport.report.formats import formats
from spdexport.report.unfinished import NOT_OVER, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spdexport.report.common import Result
    from spdexport.report.log_file import LogFile

REPRO = "repro"
"""The option that names a file for the worst input: no report, and written as one."""


class ReportFiles:
    """The reports of one run.

    A file of an earlier run is replaced before the work by one that tells that there is no result yet. So whatever
    ends this run, a power cut too, what is read from the file is never the result of another one.
    """

    def __init__(self, asked: Mapping[str, Path | None], log: LogFile | None = None) -> None:
        """Take the files.

        Args:
            asked: A path for each option that is a format of report, and for ``REPRO``, or None.
            log: Told the result or what went wrong; None where none is kept.
        """
        self._log = log
        self._asked = {option: path for option, path in asked.items() if path is not None}
        self._begun: dict[str, Path] = {}

    def begin(self) -> None:
        """Write into each report that there is no result yet, and see that the worst input can be saved.

        Raises:
            SpdExportError: A file cannot be written; the others are begun all the same.
        """
        first: SpdExportError | None = None
        for option, path in self._asked.items():
            try:
                if option != REPRO:
                    write_text(path, formats()[option].of_failure(NOT_OVER))
                    self._begun[option] = path
                else:
                    # Not begun as the others are: it is no result, and where nothing ran, there is none to save.
                    with contextlib.suppress(RejectedError), replacing(path):
                        raise RejectedError(path)
            except SpdExportError as error:
                first = first or error
        if first is not None:
            raise first

    def finish(self, result: Result) -> tuple[str | None, OutputError | None]:
        """Write the result into every file.

        Returns:
            What the user should know about the files, or None; and the first error, or None. A file that could be
            written is, whatever became of the others.
        """
        remark: str | None = None
        first: OutputError | None = None
        for option, path in self._asked.items():
            try:
                if option == REPRO:
                    remark = _write_repro(result, path)
                else:
                    write_text(path, formats()[option].of_result(result))
                    del self._begun[option]
            except SpdExportError as error:
                # When the work began, all of them could be written, so that the command line is not at fault.
                first = first or OutputError(error.what, where=error.where, hint=error.hint)
        if self._log is not None:
            from spdexport.report.terminal import as_text

            self._log.tell(f"result\n{as_text(result, width=120, verbose=True)}")
        return remark, first

    def fail(self, failure: Failure) -> list[str]:
        """Write into each report that was begun, and has no result, why.

        Returns:
            What the user should know about files that could not be written.
        """
        remarks = fail_reports(self._begun, failure)
        if self._log is not None:
            with contextlib.suppress(OutputError):  # the error that there is says more than one about the log
                self._log.tell(f"error: {failure.what}\nwhere: {failure.where}\nto do: {failure.hint}")
        return remarks


def fail_reports(files: Mapping[str, Path], failure: Failure) -> list[str]:
    """Write into reports why there is no result.

    Args:
        files: By the option's name.
        failure: What went wrong.

    Returns:
        What the user should know about files that could not be written.
    """
    return [said for option, path in files.items() for said in _fail_one(option, path, failure)]


def _fail_one(option: str, path: Path, failure: Failure) -> Iterator[str]:
    try:
        write_text(path, formats()[option].of_failure(failure))
    except SpdExportError as error:
        yield f"{path} does not tell of this error, and what it holds is of no use: {error.what}"


def write_text(path: Path, text: str) -> None:
    """Write a report; an existing file is replaced only by a whole new one.

    Raises:
        SpdExportError: The file cannot be written.
    """
    with replacing(path) as temporary, writing(path):
        temporary.write_text(text, encoding="utf-8")


def _write_repro(result: Result, path: Path) -> str | None:
    from spdexport.report.common import verification_of
    from spdexport.report.repro import write_repro

    verification = verification_of(result)
    if verification is None or verification.worst is None:
        return f"{path} was not written: ONNX Runtime ran on no input, so that there is none to save"
    write_repro(verification.worst, path)
    return None
