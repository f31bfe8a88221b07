"""What a safetensors file says about itself, looked at before its own reader builds objects of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

from spdexport.files.limits import check_limit
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.errors import InputError

_LENGTH = 8


def check_header(path: Path, *, error: type[InputError]) -> None:
    """Refuse a file that is no safetensors file, whose header is longer than the file, or with too many tensors.

    Every tensor has an object in the header's JSON. They are counted by their braces, which are at least as many.

    Args:
        path: The file.
        error: The class to raise.

    Raises:
        InputError: Of class ``error``.
    """
    if (kind := sniff(path, error=error)) is not FileKind.SAFETENSORS:
        raise error(f"It is a {kind}, not a safetensors file.", where=str(path), hint="Save it as safetensors.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > path.stat().st_size - _LENGTH:
            raise error(
                "The file is damaged: its header is longer than the file.",
                where=str(path),
                hint="Copy or write it again.",
            )
        tensors = file.read(length).count(b"{") - 1
    check_limit("tensors", tensors, f"The file has {tensors} tensors", where=str(path), error=error)


def read_metadata(path: Path, *, error: type[InputError]) -> dict[str, str]:
    """Return the texts that a file says about itself; empty for a file of another kind, which says none.

    Raises:
        InputError: Of class ``error``: it is damaged.
    """
    if sniff(path, error=error) is not FileKind.SAFETENSORS:
        return {}
    check_header(path, error=error)
    with reading(path, error=error), safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})
