"""Data sets larger than memory, read in batches: axis 0 of every array counts the samples.

Works with numpy alone: .npz (its members are read as a stream), .npy (mapped into memory), safetensors (read in
slices), and folders of such files, one after another in the order of their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import safetensors

from spdexport.errors import ExampleInputError
from spdexport.files.archive import open_archive
from spdexport.files.npy import NpyHeader, native, read_header
from spdexport.files.reading import reading
from spdexport.files.safetensors_header import check_header
from spdexport.files.sniff import FileKind, sniff
from spdexport.names import some

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from spdexport.conv import Array

UNNAMED = ""
"""The name of an array that has none: that of a .npy file."""

Data: TypeAlias = "Iterable[Mapping[str, Array]] | Iterable[Array]"
"""Batches: arrays by input name, or one array for a model with one input; axis 0 counts the samples."""

KINDS = "a .npz, .npy or safetensors file, or a folder of such"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Named arrays of one length, in one file or several.

    Attributes:
        path: The file or folder.
        files: The files in order.
        lengths: How many samples each of them has.
    """

    path: Path
    files: tuple[Path, ...]
    lengths: tuple[int, ...]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(self.lengths)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Mapping[str, Array]]:
        """Consecutive samples of each file, ``size`` of them, or fewer where a file ends.

        Args:
            size: Samples of a batch.
            start: The first sample of all.
            stop: The one behind the last; None for all that follow.

        Raises:
            ExampleInputError: A file changed, or is damaged.
        """
        begins = 0
        for file, length in zip(self.files, self.lengths, strict=True):
            first, last = max(start - begins, 0), length if stop is None else min(stop - begins, length)
            begins += length
            if first >= last:
                continue
            kind = _kind(file)
            with _reading(file):
                # To the end of the file, whatever it holds by now, where nobody named an end.
                yield from _READERS[kind](file, size, first, None if stop is None else last)


def open_data(path: str | Path) -> DataSet:
    """Look at a data set: its files, and that their arrays have one length and hold what can be read.

    Raises:
        ExampleInputError: A file is of another kind, damaged or empty, arrays have different lengths, or files hold
            arrays of different names.
    """
    path = Path(path)
    files: tuple[Path, ...] = (path,)
    if path.is_dir():
        # Links that lead nowhere and the like are among them, to be told: without them, samples would be missing.
        files = tuple(file for file in sorted(path.iterdir()) if not file.is_dir() and not file.name.startswith("."))
        if not files:
            raise ExampleInputError("The folder holds no files.", where=str(path), hint=f"Give {KINDS}.")
    lengths: list[int] = []
    names = None
    for file in files:
        kind = _kind(file)
        with _reading(file):
            shapes = _SHAPES[kind](file)
        lengths.append(_length(shapes, file))
        if names is not None and set(shapes) != names:
            raise ExampleInputError(
                f"The arrays are called {_listed(shapes)}, and those of the first file {_listed(names)}.",
                where=str(file),
                hint="Give all files the same names.",
            )
        names = set(shapes)
    return DataSet(path=path, files=files, lengths=tuple(lengths))


def named_batches(data: Data) -> Iterator[Mapping[str, Array]]:
    """Yield batches as arrays by name; one that is an array alone has the name ``UNNAMED``."""
    for part in data:
        yield part if isinstance(part, Mapping) else {UNNAMED: np.asarray(part)}


def filled(part: Mapping[str, Array], batch: int | None) -> Mapping[str, Array]:
    """Return samples with the last of them repeated up to a fixed batch; None where a model takes any number."""
    if batch is None:
        return part
    return {
        name: np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)]) for name, array in part.items()
    }


def _kind(file: Path) -> FileKind:
    kind = sniff(file, error=ExampleInputError)
    if kind not in _SHAPES:
        raise ExampleInputError(f"Data cannot be read from a {kind}.", where=str(file), hint=f"Give {KINDS}.")
    return kind


def _reading(file: Path) -> AbstractContextManager[None]:
    return reading(file, error=ExampleInputError, what="The data cannot be read", hint="Write or copy the file again.")


def _length(shapes: Mapping[str, tuple[int, ...]], file: Path) -> int:
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    # Samples without a number need no bytes, so that nothing would bound how many of them a file may claim.
    if len(lengths) == 1 and all(math.prod(shape) for shape in shapes.values()) and (only := lengths.pop()):
        return only
    told = some([f"{name or 'the array'} {shape}" for name, shape in shapes.items()]) or "none"
    raise ExampleInputError(
        f"The arrays have no common number of samples on axis 0: {told}.",
        where=str(file),
        hint="Save arrays whose first axis is the same, one entry for each sample.",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(name or "(none)" for name in names))


# --- .npz: every member is a .npy file inside of the archive ---


def _npz_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    archive = open_archive(file, error=ExampleInputError)
    found = {}
    for name in archive.names:
        with archive.open(name) as member:
            found[name.removesuffix(".npy")] = _header(member, archive.size(name)).shape
    return found


def _npz_batches(file: Path, size: int, first: int, last: int | None) -> Iterator[dict[str, Array]]:
    archive = open_archive(file, error=ExampleInputError)
    with ExitStack() as opened:
        members = {
            name.removesuffix(".npy"): (opened.enter_context(archive.open(name)), archive.size(name))
            for name in archive.names
        }
        heads = {name: _header(member, length) for name, (member, length) in members.items()}
        rows = _end(min(head.shape[0] for head in heads.values()), last)
        for start in range(0, first, size):  # a stream is read up to where it is wanted
            for name, (member, _) in members.items():
                _rows(member, heads[name], min(size, first - start))
        for start in range(first, rows, size):
            number = min(size, rows - start)
            yield {name: _rows(member, heads[name], number) for name, (member, _) in members.items()}


def _end(rows: int, last: int | None) -> int:
    """Where to stop in a file that has so many samples now.

    Raises:
        ValueError: It has fewer than it had.
    """
    if last is not None and last > rows:
        raise ValueError("it has fewer samples than before")
    return rows if last is None else last


def _header(member: io.BufferedIOBase, length: int) -> NpyHeader:
    """The header of an array, which is left at its first number.

    Raises:
        ValueError: It holds objects, or is in column order, whose samples lie all over the file.
    """
    header = read_header(member, length)
    if header.column_order and len(header.shape) > 1:
        raise ValueError("it is stored in column order (Fortran); save numpy.ascontiguousarray of it")
    return header


def _rows(member: io.BufferedIOBase, header: NpyHeader, number: int) -> Array:
    wanted = (number, *header.shape[1:])
    length = math.prod(wanted) * header.dtype.itemsize
    content = member.read(length)
    if len(content) != length:
        raise ValueError("it ends before its last sample")
    return native(np.frombuffer(bytearray(content), dtype=header.dtype).reshape(wanted))


# --- .npy ---


def _npy(file: Path) -> Array:
    with file.open("rb") as stream:
        read_header(stream, file.stat().st_size)
    array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _npy_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    return {UNNAMED: _npy(file).shape}


def _npy_batches(file: Path, size: int, first: int, last: int | None) -> Iterator[dict[str, Array]]:
    array = _npy(file)
    rows = _end(array.shape[0], last)
    for start in range(first, rows, size):
        yield {UNNAMED: native(np.array(array[start : min(start + size, rows)]))}


# --- safetensors ---


def _safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    check_header(file, error=ExampleInputError)
    with safetensors.safe_open(file, framework="numpy") as archive:
        return {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118


def _safetensors_batches(file: Path, size: int, first: int, last: int | None) -> Iterator[dict[str, Array]]:
    check_header(file, error=ExampleInputError)
    with safetensors.safe_open(file, framework="numpy") as archive:
        slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118
        rows = _end(min(part.get_shape()[0] for part in slices.values()), last)
        for start in range(first, rows, size):
            yield {name: np.asarray(part[start : min(start + size, rows)]) for name, part in slices.items()}


_SHAPES = {FileKind.NPZ: _npz_shapes, FileKind.NPY: _npy_shapes, FileKind.SAFETENSORS: _safetensors_shapes}
_READERS = {FileKind.NPZ: _npz_batches, FileKind.NPY: _npy_batches, FileKind.SAFETENSORS: _safetensors_batches}
