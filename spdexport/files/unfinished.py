"""What a run that was killed left in a folder: files that are on their way to their name, told by theirs.

A file has such a name only where the system cannot keep it without one, or for the moment in which it takes the place
of another. Whoever makes it holds its lock (see ``locks``), so that one whose lock is free is nobody's. The next run
that writes into the folder removes it.

A model whose weights are in a file beside it needs a name before it is checked, and its weights do, too. The model's
then tells the digest of the data, which is in the name of the data as well: "if I am nobody's, so are they". This claim
is made only for data that were not there before, and ends when the model gets its own name.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
from typing import TYPE_CHECKING

from spdexport.files.locks import folder_lock, is_at, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = 16
"""How many hexadecimal digits of the hash of data are in their name."""

_NAME = re.compile(rf"\..*\.[0-9a-f]{{8}}(?:-([0-9a-f]{{{DIGEST}}}))?\.spdexport(?:\.[^.]*)?", re.DOTALL)
_KEPT = 100
"""How many bytes of a file's name are in that of the file on its way to it: a name has 255 at most."""


def unfinished_name(path: Path, claim: str = "") -> Path:
    """Return a new name beside ``path``, with its ending: libraries choose formats by it.

    Args:
        path: The file that it is to become.
        claim: The digest of the data that are nobody's if this file is.
    """
    stem = os.fsencode(path.stem)[:_KEPT].decode(errors="ignore")
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _KEPT else ""
    return path.with_name(f".{stem}.{secrets.token_hex(4)}{'-' * bool(claim)}{claim}.spdexport{suffix}")


def data_name(path: Path, digest: str) -> Path:
    """Return the name of the file that holds a model's weights: their content is in it."""
    return path.with_name(f"{path.stem}.{digest[:DIGEST]}.data")


def remove_unfinished(folder: Path) -> None:
    """Remove what runs that are gone left in a folder; what cannot be read, locked or removed stays."""
    for path, claim in _unfinished(folder):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if try_lock(descriptor) and is_at(descriptor, path):
                    with folder_lock(folder):
                        if claim:
                            _remove_data(folder, claim, of=path)
                        path.unlink()
            finally:
                os.close(descriptor)


def release_data(folder: Path, claim: str, path: Path) -> None:
    """Remove the data that an unfinished file claims, with the file itself, for it will not be finished.

    Args:
        folder: Where they are.
        claim: The digest of the data.
        path: The unfinished file.
    """
    with folder_lock(folder):
        _remove_data(folder, claim, of=path)
        path.unlink(missing_ok=True)


def is_claimed(folder: Path, digest: str) -> bool:
    """Return whether an unfinished file of a folder claims the data of this digest."""
    return any(claim == digest[:DIGEST] for _, claim in _unfinished(folder))


def _unfinished(folder: Path) -> list[tuple[Path, str]]:
    """Return the unfinished files of a folder with the digests of the data that they claim."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, _NAME.fullmatch(entry.name)) for entry in entries]
    except OSError:  # a folder that may not be listed
        return []
    return [(folder / name, match[1] or "") for name, match in found if match]


def _remove_data(folder: Path, digest: str, *, of: Path) -> None:
    """Remove data that nothing but ``of`` claims, and no model of the folder names."""
    if any(claim == digest and path.name != of.name for path, claim in _unfinished(folder)):
        return
    for data in folder.glob(f"*.{digest}.data"):
        if not any(_mentions(model, os.fsencode(data.name)) for model in _models(folder)):
            data.unlink(missing_ok=True)


def _models(folder: Path) -> Iterator[Path]:
    """Yield the finished models of a folder: whatever is no data and no unfinished file."""
    for path in folder.iterdir():
        if path.suffix.lower() == ".onnx" and not _NAME.fullmatch(path.name) and path.is_file():
            yield path


def _mentions(path: Path, name: bytes) -> bool:
    """Return whether a file holds these bytes; a model names its data so, whatever else is in it."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name) >= 0
