"""Writing a file so that its name always holds the old content or the whole new one."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from spdexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


class RejectedError(Exception):
    """What was written must not take its name. Raised by `set_aside`; the caller catches it outside of `replacing`."""


def failed_name(path: Path) -> Path:
    """The name that a rejected file gets: ``OUT.failed.onnx`` for ``OUT.onnx``."""
    return path.with_name(f"{path.stem}.failed{path.suffix}")


def set_aside(temporary: Path, path: Path) -> NoReturn:
    """Give a file that was to become ``path`` the name of a failed one, and leave ``path`` as it is.

    Raises:
        RejectedError: Always, so that no other file of the same block takes its name either.
    """
    temporary.replace(failed_name(path))
    raise RejectedError(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and move it to ``path`` if the block succeeds.

    The temporary file has the final ending, because libraries choose formats by it. It exists, empty, with the
    permissions that the umask gives to new files; a writer may overwrite it or replace it. If the block raises
    anything, KeyboardInterrupt included, it is removed and an existing ``path`` stays as it was.

    Raises:
        UsageError: The folder does not exist, cannot be written to, or ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError("The output is an existing folder.", where=str(path), hint="Name a file.")
    if not path.parent.is_dir():
        raise UsageError(
            "The folder of the output does not exist.", where=str(path), hint=f"Make it: mkdir -p {path.parent}"
        )
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        # Created here, before any long work, so that a folder that cannot be written to is told at once.
        temporary.touch(exist_ok=False)
    except OSError as exc:
        raise UsageError(
            f"The output cannot be written: {exc.strerror}.", where=str(path), hint="Check the folder's permissions."
        ) from exc
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105  (Path.replace gives no clearer error and hides that this is atomic)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
