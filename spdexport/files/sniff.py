"""What kind of file something is, told by its content and never by its ending."""

from __future__ import annotations

import stat
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import InputError, SourceError
from spdexport.files.archive import open_archive
from spdexport.files.reading import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

_ZIP = b"PK\x03\x04"
_LFS = b"version https://git-lfs"
_HEAD = 64
_NPY = b"\x93NUMPY"
# Tags of the fields that may follow ir_version in an ONNX ModelProto, from the producer's name to the metadata.
_ONNX_TAGS = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72))


class FileKind(StrEnum):
    """The kinds of files and folders that are told apart; the value is what messages call them."""

    PT2 = "torch.export program (.pt2)"
    TORCHSCRIPT = "TorchScript archive"
    TORCH_ZIP = "torch.save file"
    PICKLE = "pickle or legacy torch.save file"
    SAFETENSORS = "safetensors file"
    NPZ = "NumPy archive (.npz)"
    NPY = "NumPy array (.npy)"
    ONNX = "ONNX model"
    JSON = "JSON file"
    DIRECTORY = "directory"
    UNKNOWN = "file of unknown kind"


def read_head(path: Path, *, error: type[InputError], where: str | None = None) -> bytes:
    """Return the first bytes of a file, after making sure that it is one: nothing else is opened.

    A pipe would block, and a device never end.

    Args:
        path: The file.
        error: The class to raise, since the caller knows whether it is a model, a mask or an input.
        where: What messages call it; None for its path.

    Raises:
        InputError: There is no such file, it is not a regular file, it is empty, cannot be read, or is the pointer that
            Git LFS keeps in place of a file.
    """
    where = where or str(path)
    mode = _mode(path, error, where)
    if not stat.S_ISREG(mode):
        kind = "directory" if stat.S_ISDIR(mode) else "pipe, a socket or a device"
        raise error(f"It is a {kind}, not a file.", where=where, hint="Name a regular file.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as exc:
        raise _unreadable(exc, error, where) from exc
    if not head:
        raise error("The file is empty.", where=where, hint="Write or copy it again.")
    if head.startswith(_LFS):
        raise error(
            "The file is a Git LFS pointer, not the file itself.",
            where=where,
            hint="Fetch the file that it stands for: git lfs pull.",
        )
    return head


def read_text(path: Path, *, error: type[InputError], what: str, hint: str, where: str | None = None) -> str:
    """Return the text of a file that people may write by hand: UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        error: The class to raise.
        what: What is said of a file that is no text.
        hint: What to do then.
        where: What messages call it; None for its path.

    Raises:
        InputError: As ``read_head`` does, or the file is no text.
    """
    read_head(path, error=error, where=where)
    with reading(where or path, error=error, what=what, hint=hint):
        return path.read_text(encoding="utf-8-sig")


def sniff(path: str | Path, *, error: type[InputError] = SourceError) -> FileKind:
    """Tell what kind of file ``path`` is, reading its first bytes and a zip's directory.

    Args:
        path: A file or folder.
        error: The class to raise, since the caller knows whether it is a model, a mask or an input.

    Raises:
        InputError: As ``read_head`` does, or it is a zip archive that is damaged or not a plain one.
    """
    path = Path(path)
    if stat.S_ISDIR(_mode(path, error, str(path))):
        return FileKind.DIRECTORY
    head = read_head(path, error=error)
    if head.startswith(_ZIP):
        return kind_of_archive(open_archive(path, error=error).names)
    if head.startswith(_NPY):
        return FileKind.NPY
    # 8 bytes of header length, little-endian, then the header's JSON. Before JSON: the length may begin with any byte.
    if head[8:9] == b"{" and head[4:8] == b"\0\0\0\0":
        return FileKind.SAFETENSORS
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return FileKind.PICKLE
    if len(head) > 2 and head[0] == 0x08 and head[1] < 0x40 and head[2] in _ONNX_TAGS:
        return FileKind.ONNX
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return FileKind.JSON
    return FileKind.UNKNOWN


def _mode(path: Path, error: type[InputError], where: str) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise error("There is no such file.", where=where, hint="Check the path.") from None
    except OSError as exc:
        raise _unreadable(exc, error, where) from exc


def _unreadable(exc: OSError, error: type[InputError], where: str) -> InputError:
    return error(
        f"The file cannot be read: {exc.strerror}.", where=where, hint="Check the path and the permissions along it."
    )


def kind_of_archive(names: Sequence[str]) -> FileKind:
    """Tell the kind of an archive by the names of its members."""
    # torch puts all members of its archives under one folder, whose name is free.
    inner = {name.partition("/")[2] for name in names}
    if "serialized_exported_program.json" in names:
        return FileKind.PT2  # the layout before torch 2.8
    if "archive_format" in inner and any(n.startswith("models/") and n.endswith(".json") for n in inner):
        return FileKind.PT2
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return FileKind.TORCHSCRIPT
    if "data.pkl" in inner:
        return FileKind.TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        return FileKind.NPZ
    return FileKind.UNKNOWN
