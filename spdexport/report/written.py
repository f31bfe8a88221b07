"""The reports that are files: opened before the work, written after it, whatever the verdict is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from spdexport.errors import UsageError
from spdexport.files.atomic import RejectedError, replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.report.common import Result


@contextlib.contextmanager
def report_files(
    asked: Mapping[str, Path | None], others: Sequence[Path | None]
) -> Iterator[Callable[[Result], str | None]]:
    """Yield the function that writes the reports of a result.

    A file that exists is replaced only by a whole new one, at the end of the block; an error leaves all as they were.

    Args:
        asked: A path for ``report``, ``junit``, ``html`` and ``repro``, or None, by the option's name.
        others: Files of the same command, which no report may overwrite.

    Yields:
        Takes the result, and returns what the user should know about the files; None if nothing.

    Raises:
        UsageError: A report cannot be written, or would overwrite another file.
    """
    wanted = {option: path for option, path in asked.items() if path is not None}
    taken = [path.resolve() for path in others if path]
    for option, path in wanted.items():
        if path.resolve() in taken:
            raise UsageError("The report would overwrite another file.", where=f"--{option} {path}", hint="Rename it.")
        taken.append(path.resolve())
    repro = wanted.pop("repro", None)
    if repro is not None:
        _try(repro)
    with contextlib.ExitStack() as stack:
        files = {option: stack.enter_context(replacing(path)) for option, path in wanted.items()}

        def write(result: Result) -> str | None:
            for option, file in files.items():
                file.write_text(_text(option, result), encoding="utf-8")
            return None if repro is None else _write_repro(result, repro)

        yield write


def _try(path: Path) -> None:
    """Tell at once whether a file can be written that may not be written in the end."""
    with contextlib.suppress(RejectedError), replacing(path):
        raise RejectedError(path)


def _text(option: str, result: Result) -> str:
    # Here, because each brings libraries that only its own report needs.
    if option == "junit":
        from spdexport.report.junit import to_junit

        return to_junit(result)
    if option == "html":
        from spdexport.report.html_report import to_html

        return to_html(result)
    from spdexport.report.json_report import as_text, to_json

    return as_text(to_json(result))


def _write_repro(result: Result, path: Path) -> str | None:
    from spdexport.report.common import verification_of
    from spdexport.report.repro import write_repro

    verification = verification_of(result)
    if verification is None or verification.worst is None:
        return f"{path} was not written: ONNX Runtime ran on no input, so that there is none to save"
    write_repro(verification.worst, path)
    return None
