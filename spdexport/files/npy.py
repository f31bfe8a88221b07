"""Arrays in NumPy's format, read as far as the bytes that are there bear out what the header says.

What is wrong with an array is a ValueError here, as it is in numpy: whoever reads a file puts ``reading`` around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    import io
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.errors import InputError

_VERSIONS = ((1, 0), (2, 0), (3, 0))
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """What stands in front of the numbers.

    Attributes:
        shape: The shape.
        dtype: The dtype, in the byte order of the file.
        column_order: Whether the first index runs fastest (Fortran's order).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    column_order: bool


def read_header(stream: io.BufferedIOBase, length: int) -> NpyHeader:
    """Read the header of an array, and leave the stream at its first number.

    Args:
        stream: The array, from its first byte on.
        length: How many bytes there are, with the header.

    Raises:
        ValueError: It is no array, it holds Python objects, or there are fewer numbers than the header says.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _VERSIONS:
        raise ValueError(f"its version {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_order, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would need a pickle")
    if any(size < 0 for size in shape) or not dtype.itemsize:
        raise ValueError(f"its shape {shape} of dtype {dtype} is none")
    needed, there = math.prod(shape) * dtype.itemsize, length - stream.tell()
    if needed > there:
        raise ValueError(f"it needs {needed} bytes for the shape {shape} of dtype {dtype}, and there are {there}")
    return NpyHeader(shape=shape, dtype=dtype, column_order=column_order)


def read_array(stream: io.BufferedIOBase, length: int) -> Array:
    """Read an array, in the byte order of this machine, and the stream to its end.

    Args:
        stream: The array, from its first byte on.
        length: How many bytes there are, with the header.

    Raises:
        ValueError: As for ``read_header``, or the numbers end early.
    """
    header = read_header(stream, length)
    array: Array = np.empty(header.shape[::-1] if header.column_order else header.shape, header.dtype)
    # An array without axes or numbers has no bytes to view.
    target = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    for start in range(0, target.nbytes, _CHUNK):
        piece = stream.read(min(_CHUNK, target.nbytes - start))
        if len(piece) != min(_CHUNK, target.nbytes - start):
            raise ValueError("it ends before its last number")
        target[start : start + len(piece)] = piece
    while stream.read(_CHUNK):  # a member of an archive compares its checksum with its last byte
        pass
    return native(array.T if header.column_order else array)


def native(array: Array) -> Array:
    """Return the same numbers in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_npy(path: Path, *, error: type[InputError]) -> Array:
    """Read a .npy file.

    Args:
        path: The file.
        error: The class to raise.

    Raises:
        InputError: Of class ``error``: it is damaged, or of another kind.
    """
    if (kind := sniff(path, error=error)) is not FileKind.NPY:
        raise error(f"It is a {kind}, not an array.", where=str(path), hint="Write it with numpy.save.")
    with (
        reading(path, error=error, what="The array cannot be read", hint="Save it again with numpy.save."),
        path.open("rb") as stream,
    ):
        return read_array(stream, path.stat().st_size)
