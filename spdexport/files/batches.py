"""Data sets larger than memory, read in batches: axis 0 of every array counts the samples.

Works with numpy alone: .npz (its members are read as a stream), .npy (mapped into memory), safetensors (read in
slices), and folders of such files, one after another in the order of their names.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import safetensors

from spdexport.errors import ExampleInputError
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spdexport.conv import Array

UNNAMED = ""
"""The name of an array that has none: that of a .npy file."""

KINDS = "a .npz, .npy or safetensors file, or a folder of such"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Named arrays of one length, in one file or several.

    Attributes:
        path: The file or folder.
        files: The files in order.
        samples: How many samples there are.
    """

    path: Path
    files: tuple[Path, ...]
    samples: int

    def batches(self, size: int) -> Iterator[Mapping[str, Array]]:
        """Consecutive samples of each file, ``size`` of them, or fewer where a file ends.

        Raises:
            ExampleInputError: A file changed, or is damaged.
        """
        for file in self.files:
            try:
                yield from _READERS[sniff(file, error=ExampleInputError)](file, size)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
                raise _unreadable(file, error) from error


def open_data(path: str | Path) -> DataSet:
    """Look at a data set: its files, and that their arrays have one length and hold what can be read.

    Raises:
        ExampleInputError: A file is of another kind, damaged or empty, arrays have different lengths, or files hold
            arrays of different names.
    """
    path = Path(path)
    files: tuple[Path, ...] = (path,)
    if path.is_dir():
        files = tuple(file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ExampleInputError("The folder holds no files.", where=str(path), hint=f"Give {KINDS}.")
    total, names = 0, None
    for file in files:
        kind = sniff(file, error=ExampleInputError)
        if kind not in _SHAPES:
            raise ExampleInputError(f"Data cannot be read from a {kind}.", where=str(file), hint=f"Give {KINDS}.")
        try:
            shapes = _SHAPES[kind](file)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
            raise _unreadable(file, error) from error
        total += _length(shapes, file)
        if names is not None and set(shapes) != names:
            raise ExampleInputError(
                f"The arrays are called {_listed(shapes)}, and those of the first file {_listed(names)}.",
                where=str(file),
                hint="Give all files the same names.",
            )
        names = set(shapes)
    return DataSet(path=path, files=files, samples=total)


def _length(shapes: Mapping[str, tuple[int, ...]], file: Path) -> int:
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) == 1 and (only := lengths.pop()):
        return only
    told = ", ".join(f"{name or 'the array'} {shape}" for name, shape in shapes.items()) or "none"
    raise ExampleInputError(
        f"The arrays have no common number of samples on axis 0: {told}.",
        where=str(file),
        hint="Save arrays whose first axis is the same, one entry for each sample.",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(name or "(none)" for name in names))


def _unreadable(file: Path, error: Exception) -> ExampleInputError:
    text = str(error).splitlines()
    return ExampleInputError(
        f"The data cannot be read: {text[0] if text else type(error).__name__}.",
        where=str(file),
        hint="Write or copy the file again.",
    )


# --- .npz: every member is a .npy file inside of the archive ---


def _npz_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with zipfile.ZipFile(file) as archive:
        found = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                found[name.removesuffix(".npy")] = _header(member)[0]
        return found


def _npz_batches(file: Path, size: int) -> Iterator[dict[str, Array]]:
    with zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy"): archive.open(name) for name in archive.namelist()}
        try:
            heads = {name: _header(member) for name, member in members.items()}
            rows = min(shape[0] for shape, _ in heads.values())
            for start in range(0, rows, size):
                number = min(size, rows - start)
                yield {name: _rows(members[name], *heads[name], number) for name in members}
        finally:
            for member in members.values():
                member.close()


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype of a .npy file, which is left at its first number.

    Raises:
        ValueError: It holds objects, or is in column order, whose samples lie all over the file.
    """
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_column_order, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would need a pickle")
    if is_column_order and len(shape) > 1:
        raise ValueError("it is stored in column order (Fortran); save numpy.ascontiguousarray of it")
    return shape, dtype


def _rows(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic], number: int) -> Array:
    wanted = (number, *shape[1:])
    length = int(np.prod(wanted)) * dtype.itemsize
    content = member.read(length)
    if len(content) != length:
        raise ValueError("it ends before its last sample")
    return np.frombuffer(bytearray(content), dtype=dtype).reshape(wanted)


# --- .npy ---


def _npy(file: Path) -> Array:
    array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _npy_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    return {UNNAMED: _npy(file).shape}


def _npy_batches(file: Path, size: int) -> Iterator[dict[str, Array]]:
    array = _npy(file)
    for start in range(0, array.shape[0], size):
        yield {UNNAMED: np.array(array[start : start + size])}


# --- safetensors ---


def _safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(file, framework="numpy") as archive:
        return {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118


def _safetensors_batches(file: Path, size: int) -> Iterator[dict[str, Array]]:
    with safetensors.safe_open(file, framework="numpy") as archive:
        slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118
        rows = min(part.get_shape()[0] for part in slices.values())
        for start in range(0, rows, size):
            yield {name: np.asarray(part[start : min(start + size, rows)]) for name, part in slices.items()}


_SHAPES = {FileKind.NPZ: _npz_shapes, FileKind.NPY: _npy_shapes, FileKind.SAFETENSORS: _safetensors_shapes}
_READERS = {FileKind.NPZ: _npz_batches, FileKind.NPY: _npy_batches, FileKind.SAFETENSORS: _safetensors_batches}
