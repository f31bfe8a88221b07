"""The directory of a zip archive, read only where no two readers could differ about it.

A zip file says where its members are in several places, and readers differ in which of them they believe: a file can
be harmless to Python's ``zipfile`` and harmful to torch's own reader. So only plain archives are read, those that leave
readers nothing to differ about. The rules, all of which torch, numpy and ``zipfile`` keep when they write:

1. The last end record of the file ends with the file; the comment that it announces is all that follows it.
2. A zip64 locator, if there is one, stands right before the end record, and the zip64 end record right before that.
   Where the end record says something else than the zip64 one, it says that the number does not fit into it.
3. The central directory ends where the first of these records begins, and holds as many entries as they say.
4. The members fill the file from its first byte to the central directory, without gap and overlap. What stands behind
   a member's bytes is its data descriptor or nothing.
5. The header of a member, its data descriptor and its entry in the directory have the same name, sizes and checksum,
   as far as they have them.
6. Nothing is encrypted, spread over several files, or packed by a method that is unknown here.
7. Names are text without control characters, differ by more than case, because torch does not tell it, and none is
   there twice. In NumPy archives, where they name arrays, case counts, and NUL alone may not be in them.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LOCAL, _ENTRY, _DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
_END, _LOCATOR64, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_LOCAL_FIELDS = struct.Struct("<4s5H3I2H")
_ENTRY_FIELDS = struct.Struct("<4s6H3I5H2I")
_END_FIELDS = struct.Struct("<4s4H2IH")
_LOCATOR64_FIELDS = struct.Struct("<4sIQI")
_END64_FIELDS = struct.Struct("<4sQ2H2I4Q")
_SHORT, _LONG = 0xFFFF, 0xFFFFFFFF
"""What stands in a field of two or four bytes whose number did not fit."""
_ZIP64_EXTRA = 1

_HAS_DESCRIPTOR, _UTF8 = 0x0008, 0x0800
_FLAGS = _HAS_DESCRIPTOR | _UTF8 | 0x0006  # the last two bits only tell how the bytes were packed
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class NotPlainError(Exception):
    """The archive breaks one of the rules; says which."""


class Member(NamedTuple):
    """One member.

    Attributes:
        name: Its name.
        stored_name: Its name as it is in the file.
        flags: The general purpose bits.
        method: How it is packed.
        crc: Its checksum.
        packed: Bytes in the file.
        size: Bytes that it unpacks to.
        header: Where its header begins.
        start: Where its bytes begin.
    """

    name: str
    stored_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """What an archive holds.

    Attributes:
        members: In the order of the central directory.
        comment: The comment of the archive.
    """

    members: tuple[Member, ...]
    comment: bytes


def read_directory(file: IO[bytes], *, count: Callable[[int], None]) -> Directory:
    """Read the directory of a plain archive.

    Args:
        file: The archive.
        count: Called with the number of members before any of them is looked at, to refuse too many.

    Raises:
        NotPlainError: The archive breaks a rule.
    """
    start, length, number, comment = _read_end(file)
    count(number)
    file.seek(start)
    entries = _entries(_exactly(file, length), number)
    _check_names(entries)
    return Directory(members=_located(file, entries, start), comment=comment)


def _read_end(file: IO[bytes]) -> tuple[int, int, int, bytes]:
    """Where the central directory begins, its length, how many entries it has, and the comment (rules 1 to 3)."""
    end = file.seek(0, os.SEEK_END)
    tail_start = max(end - _END_FIELDS.size - _SHORT, 0)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_FIELDS.size:
        raise NotPlainError("its end is missing")
    _, disk, first_disk, here, number, length, start, commented = _END_FIELDS.unpack_from(tail, at)
    comment = tail[at + _END_FIELDS.size :]
    if len(comment) != commented:
        raise NotPlainError("something stands behind its end, or its comment is cut off")
    if disk or first_disk or here != number:
        raise NotPlainError("it is spread over several files")
    records = tail_start + at
    if wide := _read_end64(file, records):
        for narrow, exact, unknown in zip(
            (number, length, start), (wide.number, wide.length, wide.start), (_SHORT, _LONG, _LONG), strict=True
        ):
            if narrow not in (exact, unknown):
                raise NotPlainError("its two end records contradict each other")
        number, length, start, records = wide
    if start + length != records:
        raise NotPlainError("its directory is not where its end says")
    return start, length, number, comment


class _End64(NamedTuple):
    number: int
    length: int
    start: int
    record: int


def _read_end64(file: IO[bytes], end: int) -> _End64 | None:
    """The zip64 end record in front of an end record; None if there is none (rule 2)."""
    at = end - _LOCATOR64_FIELDS.size
    if at < 0:
        return None
    file.seek(at)
    sign, disk, record, disks = _LOCATOR64_FIELDS.unpack(_exactly(file, _LOCATOR64_FIELDS.size))
    if sign != _LOCATOR64:
        return None
    if record != at - _END64_FIELDS.size or disk or disks > 1:
        raise NotPlainError("its zip64 end record is not where it belongs")
    file.seek(record)
    sign, size, _, _, disk, first_disk, here, number, length, start = _END64_FIELDS.unpack(
        _exactly(file, _END64_FIELDS.size)
    )
    if sign != _END64 or size != _END64_FIELDS.size - 12 or disk or first_disk or here != number:
        raise NotPlainError("its zip64 end record is damaged")
    return _End64(number, length, start, record)


def _entries(directory: bytes, number: int) -> list[Member]:
    """The entries of a central directory, as many as its end says (rules 3 and 6)."""
    entries = []
    at = 0
    for _ in range(number):
        if len(directory) - at < _ENTRY_FIELDS.size:
            raise NotPlainError("its directory holds fewer entries than its end says")
        (
            sign, _, needed, flags, method, _, _, crc, packed, size, named, extended, commented, disk, _, _, header,
        ) = _ENTRY_FIELDS.unpack_from(directory, at)  # fmt: skip
        at += _ENTRY_FIELDS.size
        stored_name, extra = directory[at : at + named], directory[at + named : at + named + extended]
        at += named + extended + commented
        if sign != _ENTRY or at > len(directory):
            raise NotPlainError("its directory is damaged")
        name = _decoded(stored_name, flags)
        size, packed, header, disk = _widened(extra, ((size, _LONG), (packed, _LONG), (header, _LONG), (disk, _SHORT)))
        if flags & 1:
            raise NotPlainError(f"its member {name} is encrypted")
        if disk or flags & ~_FLAGS or method not in METHODS or needed & 0xFF > zipfile.MAX_EXTRACT_VERSION:
            raise NotPlainError(f"its member {name} is packed in a way that is not known")
        if method == zipfile.ZIP_STORED and packed != size:
            raise NotPlainError(f"its member {name} has two sizes")
        entries.append(Member(name, stored_name, flags, method, crc, packed, size, header))
    if at != len(directory):
        raise NotPlainError("its directory holds more entries than its end says")
    return entries


def _decoded(stored: bytes, flags: int) -> str:
    try:
        return stored.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise NotPlainError(f"the name {stored[:40]!r} of a member is not UTF-8") from None


def _widened(extra: bytes, fields: Sequence[tuple[int, int]]) -> list[int]:
    """The fields, each with what it holds where it did not fit, by the zip64 part of the extra field."""
    wide = [(number, unknown) for number, unknown in fields if number == unknown]
    if not wide:
        return [number for number, _ in fields]
    parts = _parts(extra)
    if len(parts) != 1:
        # Two of them contradict each other. None: the number itself is the largest that fits.
        if parts:
            raise NotPlainError("the zip64 fields of a member are there twice")
        return [number for number, _ in fields]
    result, at = [], 0
    for number, unknown in fields:
        if number != unknown:
            result.append(number)
            continue
        form = struct.Struct("<Q" if unknown == _LONG else "<I")
        if at + form.size > len(parts[0]):
            raise NotPlainError("the zip64 fields of a member are cut off")
        result.append(form.unpack_from(parts[0], at)[0])
        at += form.size
    return result


def _parts(extra: bytes) -> list[bytes]:
    """The zip64 parts of an extra field, which is a list of parts with kind and length."""
    found, at = [], 0
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if at + length > len(extra):
            raise NotPlainError("the extra fields of a member are cut off")
        if kind == _ZIP64_EXTRA:
            found.append(extra[at : at + length])
        at += length
    return found


def _check_names(entries: Sequence[Member]) -> None:
    """Refuse names that readers understand differently (rule 7)."""
    names = [entry.name for entry in entries]
    is_numpy = all(name.endswith(".npy") for name in names)
    for name in names:
        # Readers end a name at its first NUL; the inputs that NumPy archives name arrays after may have any other.
        if not name or "\0" in name or not (is_numpy or name.isprintable()):
            raise NotPlainError(f"it has a member of the name {name[:40]!r}")
    known: set[str] = set()
    for name in names:
        key = name if is_numpy else name.lower()
        if key in known:
            raise NotPlainError(f"it has two members of the name {name}")
        known.add(key)


def _located(file: IO[bytes], entries: Sequence[Member], end: int) -> tuple[Member, ...]:
    """The members with where their bytes begin (rules 4 and 5).

    Args:
        file: The archive.
        entries: The entries of its directory.
        end: Where the directory begins.
    """
    order = sorted(range(len(entries)), key=lambda index: entries[index].header)
    limits = [*(entries[index].header for index in order), end]
    if limits.pop(0) != 0:
        raise NotPlainError("something stands in front of its first member")
    found = list(entries)
    for index, limit in zip(order, limits, strict=True):
        entry = entries[index]
        start = entry.header + _check_header(file, entry)
        behind = limit - (start + entry.packed)
        if behind < 0:
            raise NotPlainError(f"its member {entry.name} overlaps with what comes behind it")
        if behind > 24:
            raise NotPlainError(f"something stands behind its member {entry.name}")
        file.seek(start + entry.packed)
        if _exactly(file, behind) not in _descriptors(entry):
            raise NotPlainError(f"something else stands behind its member {entry.name} than the directory says")
        found[index] = entry._replace(start=start)
    return tuple(found)


def _check_header(file: IO[bytes], entry: Member) -> int:
    """Hold a member's header against its entry, and return the header's length."""
    file.seek(entry.header)
    fields = _exactly(file, _LOCAL_FIELDS.size)
    sign, _, flags, method, _, _, crc, packed, size, named, extended = _LOCAL_FIELDS.unpack(fields)
    if sign != _LOCAL:
        raise NotPlainError(f"its member {entry.name} is not where the directory says")
    stored_name, extra = _exactly(file, named), _exactly(file, extended)
    if flags & _HAS_DESCRIPTOR:
        # What is not known before the bytes are written stands behind them.
        agrees = crc in (0, entry.crc) and all(
            number in (0, exact, _LONG) for number, exact in ((size, entry.size), (packed, entry.packed))
        )
    else:
        exact = _widened(extra, ((size, _LONG), (packed, _LONG)))
        agrees = crc == entry.crc and exact == [entry.size, entry.packed]
    if not agrees or (stored_name, flags, method) != (entry.stored_name, entry.flags, entry.method):
        raise NotPlainError(f"the header of its member {entry.name} contradicts the directory")
    return _LOCAL_FIELDS.size + len(stored_name) + len(extra)


def _descriptors(entry: Member) -> tuple[bytes, ...]:
    """What may stand behind a member's bytes."""
    if not entry.flags & _HAS_DESCRIPTOR:
        return (b"",)
    numbers = (entry.crc, entry.packed, entry.size)
    forms = [struct.pack("<I2Q", *numbers)]
    if max(entry.packed, entry.size) <= _LONG:
        forms.append(struct.pack("<3I", *numbers))
    return tuple(sign + form for form in forms for sign in (_DESCRIPTOR, b""))


def _exactly(file: IO[bytes], length: int) -> bytes:
    content = file.read(length)
    if len(content) != length:
        raise NotPlainError("it is cut off")
    return content
