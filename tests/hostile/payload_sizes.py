"""Files that ask for more than there is: archives that unpack to 6 GB, headers that claim 100 GB, text without end."""

from __future__ import annotations

import functools
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from payload import Hostile, Make
from payload_pickles import members_of

GB = 10**9
UNPACKED = 6 * GB
BLOCK = 64 << 20


@functools.cache
def _zeros(size: int) -> bytes:
    """Return so many zeros deflated, without ever holding them."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(BLOCK)
    first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    more = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)  # like each one after it
    blocks, rest = divmod(size, BLOCK)
    return first + more * (blocks - 1) + packer.compress(bytes(rest)) + packer.flush()


def archive(path: Path, members: dict[str, bytes], bombs: dict[str, bytes]) -> None:
    """Write an archive of members as they are, and of others that are followed by 6 GB of zeros."""
    packed = _zeros(UNPACKED)
    with zipfile.ZipFile(path, "w") as written:
        for name, content in members.items():
            written.writestr(name, content)
        for name, head in bombs.items():
            _add_bomb(written, name, head, packed)


def _add_bomb(written: zipfile.ZipFile, name: str, head: bytes, packed: bytes) -> None:
    """Add a member of a head and zeros, its content deflated already."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.file_size = len(head) + UNPACKED
    info.compress_size = len(start) + len(packed)
    info.CRC = _checksum(head)
    info.header_offset = written.fp.tell()  # type: ignore[union-attr]
    written.fp.write(info.FileHeader(zip64=True))  # type: ignore[union-attr]
    written.fp.write(start + packed)  # type: ignore[union-attr]
    written.filelist.append(info)
    written.NameToInfo[name] = info
    written.start_dir = written.fp.tell()  # type: ignore[union-attr]
    written._didModify = True  # type: ignore[attr-defined]


def _checksum(head: bytes) -> int:
    checksum, block = zlib.crc32(head), bytes(BLOCK)
    blocks, rest = divmod(UNPACKED, BLOCK)
    for _ in range(blocks):
        checksum = zlib.crc32(block, checksum)
    return zlib.crc32(bytes(rest), checksum)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """Return the header of a .npy file of any shape."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _bomb_npz(folder: Path) -> None:
    archive(folder / "hostile.npz", {}, {"x.npy": npy_header((UNPACKED // 64, 1, 4, 4))})


def _bomb_in(source: str, target: str, member: str, head: bytes = b"") -> Make:
    """Return what puts 6 GB into a member of an archive of torch's."""

    def make(folder: Path) -> None:
        root, members = members_of(folder / source)
        head_of = head or members.pop(member, b"")
        members.pop(member, None)
        archive(folder / target, {root + name: content for name, content in members.items()}, {root + member: head_of})

    return make


def _claimed_npz(folder: Path) -> None:
    with zipfile.ZipFile(folder / "hostile.npz", "w") as written:
        written.writestr("x.npy", npy_header((100 * GB // 64, 1, 4, 4)) + bytes(64))


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _claimed_storage(folder: Path) -> None:
    """Save a tensor whose sizes say 100 GB, which its storage lacks."""
    small = torch.ones(4).as_strided((25 * GB,), (0,))
    torch.save({"x": small, "conv": small}, folder / "hostile.pt")


def _many(count: int) -> Make:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "hostile.npz", "w") as written:
            content = npy_header((1,)) + bytes(4)
            for number in range(count):
                written.writestr(f"{number}.npy", content)

    return make


def _write(name: str, content: Callable[[], bytes]) -> Make:
    return lambda folder: (folder / name).write_bytes(content()) and None


SIZES = (
    Hostile(name="npz that unpacks to 6 GB", file="hostile.npz", make=_bomb_npz, slow=True),
    Hostile(name="state dict that unpacks to 6 GB", file="hostile.pt", make=_bomb_in("state.pt", "hostile.pt",
    "data/0"), slow=True),
    Hostile(name=".pt2 whose JSON unpacks to 6 GB", file="hostile.pt2", slow=True,
            make=_bomb_in("m.pt2", "hostile.pt2", "models/model.json")),
    Hostile(name=".pt2 with a member of 6 GB", file="hostile.pt2", slow=True,
            make=_bomb_in("m.pt2", "hostile.pt2", "extra/note", b"x")),
    Hostile(name="TorchScript whose code unpacks to 6 GB", file="hostile.ts", slow=True,
            make=_bomb_in("m.ts", "hostile.ts", "code/__torch__/more.py", b"#")),
    Hostile(name="npy that claims 100 GB", file="hostile.npy",
            make=_write("hostile.npy", lambda: npy_header((100 * GB // 64, 1, 4, 4)) + bytes(640))),
    Hostile(name="npy whose sizes overflow", file="hostile.npy",
            make=_write("hostile.npy", lambda: npy_header((2**62, 2**62, 4, 4)) + bytes(640))),
    Hostile(name="npy of negative sizes", file="hostile.npy",
            make=_write("hostile.npy", lambda: npy_header((-1, 1, 4, 4)) + bytes(640))),
    Hostile(name="npz that claims 100 GB", file="hostile.npz", make=_claimed_npz),
    Hostile(name="npz of 150000 arrays", file="hostile.npz", make=_many(150_000), slow=True),
    Hostile(name="safetensors that claims 100 GB", file="hostile.safetensors", make=_write(
        "hostile.safetensors", lambda: _safetensors(
            {"x": {"dtype": "F32", "shape": [25 * GB], "data_offsets": [0, 100 * GB]}}, bytes(64)))),
    Hostile(name="safetensors with a header of 100 GB", file="hostile.safetensors",
            make=_write("hostile.safetensors", lambda: struct.pack("<Q", 100 * GB) + b"{" + bytes(64))),
    Hostile(name="torch.save file that claims 100 GB", file="hostile.pt", make=_claimed_storage),
    Hostile(name="JSON nested 100000 times", file="hostile.json",
            make=_write("hostile.json", lambda: b'{"conv": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    Hostile(name="JSON with a number of a million digits", file="hostile.json",
            make=_write("hostile.json", lambda: b'{"conv": [' + b"9" * 1_000_000 + b"]}")),
    Hostile(name="JSON of 150000 names", file="hostile.json", make=_write(
        "hostile.json", lambda: json.dumps({f"x{number}": [1.0] for number in range(150_000)}).encode())),
)  # fmt: skip
"""More than there is."""
