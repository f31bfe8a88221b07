"""Zip archives, read by one reader: what is checked is what is loaded, and damage is told.

Only plain archives are read; ``zip_directory`` has the rules. Checksums (CRC-32) are compared whenever a member is
read. torch can be told to write none (``torch.serialization.set_crc32_options(False)``): then all of them are 0, in the
headers and in the directory. Such an archive is read as it is, and ``Archive.has_checksums`` tells.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spdexport.errors import InputError, SourceError
from spdexport.files.limits import check_limit
from spdexport.files.reading import reading
from spdexport.files.zip_directory import Member, NotPlainError, read_directory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

_CHUNK = 1 << 20
_FREE = 1 << 30
"""Bytes that any archive may unpack to."""

_PARSED = 1 << 21
_ALIGNMENT = 64
_PADDING_EXTRA = 0x4246  # torch's own
_ZIP64_EXTRA = 20
_LOCAL_HEADER = 30
_NEVER = (1980, 1, 1, 0, 0, 0)
_ALWAYS_FITS = 1 << 31

_HINT = "Copy it again, or save it again with the program that made it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The members of a plain archive. Made by ``open_archive``; no file stays open.

    Attributes:
        path: The file.
        length: How many bytes the file has.
        names: The names of the members, in the order of the directory.
        comment: The comment of the archive.
        has_checksums: Whether damage to a member's bytes is told.
        content: The bytes of the archive, if it is in memory.
    """

    path: Path
    length: int
    names: tuple[str, ...]
    comment: bytes
    has_checksums: bool
    content: bytes | None = field(repr=False)
    _members: Mapping[str, Member] = field(repr=False)
    _identity: tuple[int, ...] = field(repr=False)
    _error: type[InputError] = field(repr=False)

    def size(self, name: str) -> int:
        """Return how many bytes a member unpacks to."""
        return self._members[name].size

    def read(self, name: str) -> bytes:
        """Return the bytes of a member, whose checksum was compared.

        Raises:
            InputError: The member is damaged; of the class that the archive was opened with.
            KeyError: There is no such member.
        """
        with self._reading(name), self.open(name) as stream:
            content = stream.read(self.size(name))
            self._check_length(name, len(content))
        return content

    @property
    def is_unpacked(self) -> bool:
        """Whether all members are in the file as they are, so that they may be mapped into memory."""
        return all(member.method == zipfile.ZIP_STORED for member in self._members.values())

    def read_parsed(self, name: str) -> bytes:
        """Return the bytes of a member that a parser is to work through, which takes far longer than reading them.

        torch does not pack such members, so that the file is larger than they are.

        Raises:
            InputError: The member is damaged, or unpacks to more than 2 MiB and more than the whole file has.
            KeyError: There is no such member.
        """
        self._check_parsed(name)
        return self.read(name)

    def open(self, name: str) -> zipfile.ZipExtFile:
        """Open a member to read it piece by piece; its checksum is compared with its last byte.

        The stream raises what ``zipfile`` raises for damage: its user puts ``reading`` around it.

        Raises:
            InputError: The file is not the one any more that was opened.
            KeyError: There is no such member.
        """
        return self._stream(name, self._file(), close=True)

    def verify(self, *, parsed: Collection[str] = ()) -> None:
        """Compare the checksums of all members.

        Args:
            parsed: Those that a parser is to work through, which are held to what ``read_parsed`` says.

        Raises:
            InputError: A member is damaged, or too large to be parsed.
        """
        for name in parsed:
            self._check_parsed(name)
        with self._file() as file:
            for name in self.names:
                for _ in self._pieces(name, file):
                    pass

    def in_memory(self) -> Archive:
        """Return the archive rewritten in memory, so that what is checked and what is loaded are the same bytes.

        It counts as being as long as the file that it was read from.

        Raises:
            InputError: A member is damaged.
        """
        copy = open_archive(self.path, error=self._error, content=self.rewritten().getvalue())
        return replace(copy, length=self.length)

    def rewritten(self, members: Mapping[str, bytes] | None = None) -> io.BytesIO:
        """Return a plain archive of the same members in the same order, unpacked and aligned as torch aligns them.

        Args:
            members: What to write in place of what members hold, by name.

        Raises:
            InputError: A member is damaged.
            KeyError: There is no such member.
        """
        members = members or {}
        for name in members:
            self._members[name]
        result = io.BytesIO()
        with self._file() as file, zipfile.ZipFile(result, "w") as archive:
            for name in self.names:
                size = len(members[name]) if name in members else self.size(name)
                info = zipfile.ZipInfo(name, _NEVER)
                header = _LOCAL_HEADER + len(name.encode()) + 4 + (_ZIP64_EXTRA if size >= _ALWAYS_FITS else 0)
                padding = -(result.tell() + header) % _ALIGNMENT
                info.extra = struct.pack(f"<2H{padding}x", _PADDING_EXTRA, padding)
                with archive.open(info, "w", force_zip64=size >= _ALWAYS_FITS) as entry:
                    for piece in [members[name]] if name in members else self._pieces(name, file):
                        entry.write(piece)
        result.seek(0)
        return result

    def _check_parsed(self, name: str) -> None:
        if self.size(name) > max(_PARSED, self.length):
            raise self._error(
                f"The member unpacks to {self.size(name)} bytes, more than the file has.",
                where=f"{self.path}, member {name}",
                hint="Save it again with torch, which does not pack this member.",
            )

    def _pieces(self, name: str, file: IO[bytes]) -> Iterator[bytes]:
        """The bytes of a member, a few at a time, out of the opened file."""
        with self._reading(name), self._stream(name, file, close=False) as stream:
            length = 0
            while piece := stream.read(_CHUNK):
                length += len(piece)
                yield piece
            self._check_length(name, length)

    def _stream(self, name: str, file: IO[bytes], *, close: bool) -> zipfile.ZipExtFile:
        """The bytes of a member as a stream; whether closing it closes the file."""
        member = self._members[name]
        info = zipfile.ZipInfo(name)
        info.compress_type, info.compress_size, info.file_size = member.method, member.packed, member.size
        if self.has_checksums:
            info.CRC = member.crc
        file.seek(member.start)
        return zipfile.ZipExtFile(file, "r", info, close_fileobj=close)  # type: ignore[call-overload,no-any-return]

    def _check_length(self, name: str, length: int) -> None:
        if length != self.size(name):
            raise EOFError(f"it unpacks to {length} bytes in place of {self.size(name)}")

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(
            f"{self.path}, member {name}", error=self._error, what="The member of the archive is damaged", hint=_HINT
        )

    def _file(self) -> IO[bytes]:
        if self.content is not None:
            return io.BytesIO(self.content)
        file = self.path.open("rb")
        if _identity(file) != self._identity:
            file.close()
            raise self._error("The file changed while it was read.", where=str(self.path), hint="Try again.")
        return file


def open_archive(path: str | Path, *, error: type[InputError] = SourceError, content: bytes | None = None) -> Archive:
    """Read the directory of an archive, and refuse what is not plain or unpacks to too much.

    Args:
        path: The file.
        error: The class to raise, since the caller knows whether it is a model, a mask or an input.
        content: The bytes of the archive where it is no file but a member of one, which ``path`` then only names.

    Raises:
        InputError: Of class ``error``: the archive is damaged or not plain, or beyond the limits ``unpacked`` or
            ``tensors``.
    """
    path = Path(path)
    where = str(path)

    def count(number: int) -> None:
        check_limit("tensors", number, f"The archive has {number} members", where=where, error=error)

    with (
        reading(where, error=error, what="The archive cannot be read", hint=_HINT),
        path.open("rb") if content is None else io.BytesIO(content) as file,
    ):
        identity = _identity(file) if content is None else ()
        length = file.seek(0, os.SEEK_END)
        try:
            directory = read_directory(file, count=count)
        except NotPlainError as exc:
            what = f"The archive is cut off or damaged, or not a plain one: {exc}."
            raise error(what, where=where, hint=_HINT) from exc
    total = sum(member.size for member in directory.members)
    check_unpacked(total, length, "The members of the archive are", where=where, error=error)
    return Archive(
        path=path,
        length=length,
        names=tuple(member.name for member in directory.members),
        comment=directory.comment,
        has_checksums=any(member.crc for member in directory.members),
        _members={member.name: member for member in directory.members},
        content=content,
        _identity=identity,
        _error=error,
    )


def check_unpacked(total: int, length: int, what: str, *, where: str, error: type[InputError]) -> None:
    """Refuse what is more than 1 GiB and more than the limit ``unpacked`` times the file.

    Args:
        total: How many bytes it is.
        length: How many the file has.
        what: What there is too much of, with its verb.
        where: The file.
        error: The class to raise.

    Raises:
        InputError: Of class ``error``.
    """
    if total > _FREE:
        times = -(-total // max(length, 1))
        check_limit("unpacked", times, f"{what} {times} times as large as the file", where=where, error=error)


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    """What tells whether a file is still the same and unchanged."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
