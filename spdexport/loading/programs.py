"""Loading a ``.pt2`` program without running code that it brings."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from spdexport.errors import SourceError
from spdexport.files.archive import open_archive
from spdexport.files.pickles import check_archive_pickles, check_values, weights_only_forced
from spdexport.files.reading import reading

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch.export import ExportedProgram


def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """``torch.export.load``, after a check that nothing in the archive would be run.

    What is checked and what is loaded are the same bytes: an archive written from the members that were read.

    Args:
        path: A ``.pt2`` file.
        trust: Skip the check.

    Raises:
        PickleRefusedError: The archive holds more than data.
        SourceError: It is damaged, beyond a limit, or of a version that this torch cannot read.
    """
    archive = open_archive(path).in_memory()
    if not trust:
        check_archive_pickles(archive)
    guard = nullcontext() if trust else weights_only_forced()
    with reading(
        path,
        what=f"torch {torch.__version__} cannot load the program",
        hint="Export it again with this version of torch.",
    ):
        program = _loaded(archive.content or b"", guard)
    check_values([program.state_dict, program.constants], archive.length, str(path), SourceError)
    return program


def _loaded(content: bytes, guard: AbstractContextManager[None]) -> ExportedProgram:
    """What torch makes of an archive; failures say what torch only logs.

    Raises:
        Exception: The deserializer raises whatever it trips over in a file of another version.
    """
    with guard, _quiet_torch() as causes:
        try:
            return torch.export.load(io.BytesIO(content))
        except Exception as exc:
            raise ValueError(causes[0] if causes else f"{type(exc).__name__}: {exc}") from exc


_LOGGERS = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")


@contextmanager
def _quiet_torch() -> Iterator[list[str]]:
    """Collect what torch.export logs while it loads (causes of failures, with tracebacks), instead of showing it."""
    causes: list[str] = []

    class _Collect(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            # Other loggers tell of fallbacks that are no failure.
            if record.name == "torch.export" and record.exc_info and record.exc_info[1] is not None:
                causes.append(str(record.exc_info[1]) or type(record.exc_info[1]).__name__)
            return False

    collect = _Collect()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(collect)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield causes
    finally:
        for logger in loggers:
            logger.removeFilter(collect)
