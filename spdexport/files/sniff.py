"""What kind of file something is, told by its content and never by its ending."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path

from spdexport.errors import InputError, SourceError

_ZIP = b"PK\x03\x04"
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


def sniff(path: str | Path, *, error: type[InputError] = SourceError) -> FileKind:
    """Tell what kind of file ``path`` is, reading its first bytes and a zip's list of members.

    Args:
        path: A file or folder.
        error: The class to raise, since the caller knows whether it is a model, a mask or an input.

    Raises:
        InputError: The file is missing, empty, unreadable, or a zip archive that has been cut off.
    """
    path = Path(path)
    if path.is_dir():
        return FileKind.DIRECTORY
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise error("There is no such file.", where=str(path), hint="Check the path.") from None
    except OSError as exc:
        raise error(
            f"The file cannot be read: {exc.strerror}.", where=str(path), hint="Check its permissions."
        ) from exc
    if not head:
        raise error("The file is empty.", where=str(path), hint="Write or copy it again.")
    if head.startswith(_ZIP):
        return _sniff_zip(path, error)
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


def _sniff_zip(path: Path, error: type[InputError]) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as exc:
        raise error(
            f"The archive is cut off or damaged: {exc}.", where=str(path), hint="Copy or save it again."
        ) from exc
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
