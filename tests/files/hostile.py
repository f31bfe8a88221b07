"""Files that are damaged, absurd or planted, made by what they are made of; every maker writes one to a path."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LOCAL, ENTRY, END = struct.Struct("<I5H3I2H"), struct.Struct("<I6H3I5H2I"), struct.Struct("<I4H2IH")
END64, LOCATOR64 = struct.Struct("<IQ2H2I4Q"), struct.Struct("<IIQI")
WIDE = 0xFFFFFFFF


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


class Zip:
    """A zip archive written by hand, so that it can say different things in different places."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def member(self, name: str, data: bytes, **said: int) -> tuple[str, bytes, int]:
        """Write a member; ``said`` is what its header says instead of the truth: crc, packed, size, flags, method."""
        offset, raw = len(self.bytes), name.encode()
        crc, packed, size = (
            said.get("crc", zlib.crc32(data)),
            said.get("packed", len(data)),
            said.get("size", len(data)),
        )
        flags, method = said.get("flags", 0), said.get("method", 0)
        self.bytes += LOCAL.pack(0x04034B50, 20, flags, method, 0, 0x21, crc, packed, size, len(raw), 0) + raw + data
        return name, data, offset

    def directory(self, entries: list[tuple[str, bytes, int]], shift: int = 0, **said: int) -> int:
        start = len(self.bytes)
        for name, data, offset in entries:
            raw = name.encode()
            crc, size = said.get("crc", zlib.crc32(data)), said.get("size", len(data))
            flags, method = said.get("flags", 0), said.get("method", 0)
            self.bytes += ENTRY.pack(
                0x02014B50, 20, said.get("needed", 20), flags, method, 0, 0x21, crc, said.get("packed", len(data)),
                size, len(raw), 0, 0, 0, 0, 0, offset - shift,
            ) + raw  # fmt: skip
        return start

    def end(self, number: int, start: int, length: int, comment: bytes = b"") -> None:
        self.bytes += END.pack(0x06054B50, 0, 0, number, number, length, start, len(comment)) + comment

    def end64(self, number: int, start: int, length: int) -> int:
        at = len(self.bytes)
        self.bytes += END64.pack(0x06064B50, 44, 45, 45, 0, 0, number, number, length, start)
        return at

    def locator64(self, at: int) -> None:
        self.bytes += LOCATOR64.pack(0x07064B50, 0, at, 1)
        self.bytes += END.pack(0x06054B50, 0, 0, 0xFFFF, 0xFFFF, WIDE, WIDE, 0)

    def close(self, entries: list[tuple[str, bytes, int]], comment: bytes = b"", **said: int) -> bytes:
        start = self.directory(entries, **said)
        self.end(len(entries), start, len(self.bytes) - start, comment)
        return bytes(self.bytes)


def two_readers(good: Mapping[str, bytes], name: str, evil: bytes, mode: str) -> bytes:
    """An archive whose member ``name`` is good to one reader and evil to another."""
    archive = Zip()
    if mode != "orphan":
        archive.member("archive/padding", bytes(60_000))
    right = [archive.member(key, data) for key, data in good.items()]
    *_, offset = archive.member(name, evil)
    wrong = [(key, evil if key == name else data, offset if key == name else at) for key, data, at in right]
    if mode == "orphan":
        return archive.close(wrong)
    bad = archive.directory(wrong)
    length = len(archive.bytes) - bad
    if mode == "offset":
        archive.directory(right, length)
        archive.end(len(right), bad, length)
    else:
        other = archive.end64(len(right), bad, length)
        start = archive.directory(right)
        archive.end64(len(right), start, len(archive.bytes) - start)
        archive.locator64(other)
    return bytes(archive.bytes)


def flipped(content: bytes, at: int) -> bytes:
    """The bytes with one bit of one of them turned over."""
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(shape: str, dtype: str = "<f4", body: bytes = bytes(64), version: int = 1) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + body


def header(entries: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def legacy_claim(numel: int) -> bytes:
    """A legacy checkpoint whose one storage says that it has more numbers than the file."""
    content = saved({"a": torch.ones(5)}, _use_new_zipfile_serialization=False)
    at = content.index(b"K\x05N")
    return content[:at] + b"\x8a\x08" + struct.pack("<q", numel) + content[at + 2 :]


def packed_pickle(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def claiming(name: str, size: int) -> bytes:
    """An archive with a small packed member that says that it unpacks to ``size`` bytes."""
    data = zlib.compress(bytes(1000))[2:-4]
    archive = Zip()
    entry = archive.member(name, data, size=size, method=8)
    return archive.close([entry], size=size, method=8)


def changed(content: bytes, name: str, change: Callable[[dict[str, object]], object]) -> bytes:
    """A program with the JSON of the member that is called so at its end changed."""
    parts = members(content)
    full = next(key for key in parts if key.endswith(name))
    value = json.loads(parts[full])
    change(value)
    parts[full] = json.dumps(value).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, data in parts.items():
            archive.writestr(key, data)
    return buffer.getvalue()


def float8(path: Path) -> None:
    safetensors.torch.save_file({"fc": torch.ones(8).to(torch.float8_e4m3fn)}, path)
