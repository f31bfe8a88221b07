"""NumPy archives, written so that equal arrays give equal bytes, and read without any pickle.

numpy's format has no bfloat16. Such arrays are written as float32, which holds all their values, and the comment of the
zip file names them, so that reading gives bfloat16 again.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from spdexport.errors import ExampleInputError
from spdexport.files.archive import open_archive
from spdexport.files.npy import read_array
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.errors import InputError

_NEVER = (1980, 1, 1, 0, 0, 0)
"""The date of the entries, the earliest that a zip file can hold."""


def write_npz(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write arrays by name, and a comment as JSON.

    Args:
        path: The file.
        arrays: By any names; not ``np.savez``, which takes them as keyword arguments, so that "file" is its own.
        about: What the comment says beside the names of bfloat16 arrays.
    """
    brief = sorted(name for name, value in arrays.items() if np.asarray(value).dtype == ml_dtypes.bfloat16)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            array = np.asarray(value).astype(np.float32) if name in brief else np.asarray(value)
            info = zipfile.ZipInfo(f"{name}.npy", _NEVER)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        archive.comment = json.dumps({**about, **({"bfloat16": brief} if brief else {})}, ensure_ascii=True).encode()


def read_npz(path: Path, *, error: type[InputError] = ExampleInputError) -> Iterator[tuple[str, Array]]:
    """Read the arrays of a file one at a time, bfloat16 ones that ``write_npz`` wrote as such.

    Args:
        path: The file.
        error: The class to raise.

    Raises:
        InputError: Of class ``error``: the file is damaged or of another kind, or an array is, or would need a pickle.
    """
    if (kind := sniff(path, error=error)) is not FileKind.NPZ:
        raise error(f"It is a {kind}, not a NumPy archive.", where=str(path), hint="Write it with numpy.savez.")
    archive = open_archive(path, error=error)
    brief = _bfloat16(archive.comment)
    for member in archive.names:
        name = member.removesuffix(".npy")
        with (
            reading(path, error=error, what=f"{name!r} is not a tensor", hint="Give an array of numbers for it."),
            archive.open(member) as stream,
        ):
            value = read_array(stream, archive.size(member))
        yield name, value.astype(ml_dtypes.bfloat16) if name in brief and value.dtype == np.float32 else value


def _bfloat16(comment: bytes) -> list[str]:
    """The names in a comment of ours; none in any other."""
    try:
        said = json.loads(comment)
    except (ValueError, RecursionError):  # a comment of anybody else's
        return []
    names = said.get("bfloat16", []) if isinstance(said, dict) else []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
