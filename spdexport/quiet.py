"""Keeping away what the libraries print while they trace and export; what matters of it is checked on the result."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


_TRACING = "torch.__trace"
"""The logger of torch that takes no notice of ``logging.disable``: what pytest catches of it hides a test's message."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines, nothing on standard output or standard error until the block ends.

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
