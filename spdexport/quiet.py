"""Keeping away what the libraries print while they trace and export; what matters of it is checked on the result."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

from spdexport.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator


_TRACING = "torch.__trace"
"""The logger of torch that takes no notice of ``logging.disable``: what pytest catches of it hides a test's message."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be warned, logged or written to standard output or standard error until the block ends.

    An exception leaves the block as it is: its message is what the user needs, not the graphs that torch logs with it.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    tracing = logging.getLogger(_TRACING)
    was_silent, tracing.disabled = tracing.disabled, True
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        tracing.disabled = was_silent


@contextlib.contextmanager
def heard(name: str) -> Iterator[list[str]]:
    """Collect the first lines of the errors that a logger tells instead of raising them, which are not printed."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                found.append(first_line(record.exc_info[1]))

    logger, listener = logging.getLogger(name), Listener()
    propagate = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
