"""No output overwrites what is read, nor another output: told before the work, by the identity of the files."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Identity = tuple[object, ...]
"""Equal for two paths if they are one file, or will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file that is read or will be written, and what names it.

    Attributes:
        path: The file.
        option: The option or argument, as ``where`` of an error shows it: ``--masks``, ``SOURCE``.
        is_model: Whether it is the model itself, which ``--in-place`` lets an output replace.
    """

    path: Path
    option: str
    is_model: bool = False

    def __str__(self) -> str:
        return f"{self.option} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFolder:
    """A folder that is read, with what is read of it: a new file of such a name would be read the next time.

    Attributes:
        path: The folder.
        option: The option or argument that names it.
        takes: Whether a file of that name, right inside of the folder, is read.
    """

    path: Path
    option: str
    takes: Callable[[str], bool]

    def __str__(self) -> str:
        return f"{self.option} {self.path}"


def check_outputs(
    reads: Sequence[NamedFile], folders: Sequence[NamedFolder], writes: Sequence[NamedFile], *, in_place: bool = False
) -> None:
    """Refuse outputs that are files which are read, or one another.

    Files are told by what they are: links, ``..``, relative paths and the case of letters, where the file system
    ignores it, make no difference; nor does it matter that an output does not exist yet.

    Args:
        reads: What is read.
        folders: Folders of which files are read.
        writes: What will be written; those that ``--in-place`` is about have the option ``-o``.
        in_place: Whether ``-o`` is to replace the model that is read.

    Raises:
        UsageError: Two are one; an output is a device or a pipe, which cannot be replaced; or ``in_place`` is set, and
            no output is the model.
    """
    known = [(identity(one.path), one) for one in reads]
    replaced = False
    taken: list[tuple[Identity, NamedFile]] = []
    for one in writes:
        _check_kind(one)
        key = identity(one.path)
        for other in (read for other_key, read in known if other_key == key):
            if other.is_model and one.option == "-o":
                if not in_place:
                    raise UsageError(
                        "The output would overwrite the model that it is made of.",
                        where=f"{one} and {other}",
                        hint="Name another file, or give --in-place to replace it after the check.",
                    )
                replaced = True
                continue
            raise _overwriting("The output would overwrite another file, which is read.", one, other)
        for folder in folders:
            if folder.takes(one.path.name) and identity(_parent(one.path)) == identity(folder.path):
                raise _overwriting("The output would overwrite or join the files that are read.", one, folder)
        for other_key, other in taken:
            if other_key == key:
                raise _overwriting("The output would overwrite another file, which is written too.", one, other)
        taken.append((key, one))
    if in_place and not replaced:
        raise UsageError(
            "No output is the model that is read, so that there is nothing to replace.",
            where="--in-place",
            hint="Name the model's own file with -o, or leave the option out.",
        )


def identity(path: Path) -> Identity:
    """Return what two paths have in common if they are one file, or will be."""
    real = Path(os.path.realpath(path))
    try:
        found = real.stat()
    except (OSError, ValueError):  # ValueError: no file system takes such a name
        return _identity_to_be(real)
    return (found.st_dev, found.st_ino)


def _identity_to_be(real: Path) -> Identity:
    """Of a file that does not exist: its folder, and its name as the file system compares it."""
    folder, name = real.parent, real.name
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return (str(real),)
    if _ignores_case(folder):
        name = unicodedata.normalize("NFC", name).casefold()
    return (found.st_dev, found.st_ino, name)


def _ignores_case(folder: Path) -> bool:
    """Whether the file system of a folder takes ``A`` and ``a`` for one, seen by a name that is there."""
    for path in (*_some_entries(folder), folder, *folder.parents):
        other = path.with_name(path.name.swapcase()) if path.name else path
        if other.name != path.name:
            try:
                return other.samefile(path)
            except (OSError, ValueError):
                return False
    return False


def _some_entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry, _ in zip(entries, range(8), strict=False)]
    except OSError:
        return []


def _parent(path: Path) -> Path:
    return Path(os.path.realpath(path.parent))


def _check_kind(one: NamedFile) -> None:
    """Refuse devices, pipes and sockets: what is written beside them and moved would put a file in their place.

    ``/dev/stdout`` is a link whose target may be a file, but the link itself is what would be replaced.
    """
    whole = Path(os.path.abspath(one.path))  # noqa: PTH100  (links must stay, and `..` must not)
    is_device = whole.is_relative_to("/dev") and not whole.is_relative_to("/dev/shm")
    if not is_device and not whole.is_relative_to("/proc"):
        try:
            mode = whole.stat().st_mode
        except (OSError, ValueError):
            return
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of a folder the writer tells
            return
    raise UsageError(
        "The output is a device or a pipe, and files are written whole or not at all.",
        where=str(one),
        hint="Name a file, and copy it to where it shall go.",
    )


def _overwriting(what: str, one: NamedFile, other: NamedFile | NamedFolder) -> UsageError:
    return UsageError(what, where=f"{one} and {other}", hint="Name the output otherwise.")
