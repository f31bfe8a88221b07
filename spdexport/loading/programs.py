"""Loading a ``.pt2`` program without running code that it brings."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from spdexport.errors import SourceError
from spdexport.files.pickles import check_archive_pickles, weights_only_forced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch.export import ExportedProgram


def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """``torch.export.load``, after a check that nothing in the archive would be run.

    Args:
        path: A ``.pt2`` file.
        trust: Skip the check.

    Raises:
        PickleRefusedError: The archive holds more than data.
        SourceError: It is damaged, or of a version that this torch cannot read.
    """
    if not trust:
        check_archive_pickles(path)
    guard = nullcontext() if trust else weights_only_forced()
    # An open file rather than the path: torch logs a warning for paths that do not end in .pt2.
    with path.open("rb") as file, guard, _quiet_torch() as said:
        try:
            return torch.export.load(file)
        # The deserializer raises whatever it trips over in a file of another version: KeyError, AssertionError, ...
        except Exception as exc:
            cause = said[0] if said else f"{type(exc).__name__}: {exc}"
            raise SourceError(
                f"torch {torch.__version__} cannot load the program: {cause.splitlines()[0]}",
                where=str(path),
                hint="Export it again with this version of torch.",
            ) from exc


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
