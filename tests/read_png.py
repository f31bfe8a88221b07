"""Reading PNG files of a palette or of true colours in a test, by the specification and with nothing of the package."""

import struct
import zlib

import numpy as np


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a file, whose lengths and checksums are looked at."""
    assert content[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    at, found = 8, []
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        found.append((kind, data))
        at += 12 + length
    assert found[0][0] == b"IHDR"
    assert found[-1] == (b"IEND", b"")
    return found


def read_png(content: bytes) -> np.ndarray:
    """The pixels: (height, width, 4), uint8, the last of them how opaque it is."""
    parts = dict(chunks(content))
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert rest == [0, 0, 0]
    rows = zlib.decompress(parts[b"IDAT"])
    stride = 1 + -(-width * depth * {2: 3, 3: 1}[kind] // 8)
    lines = np.frombuffer(rows, np.uint8).reshape(height, stride)
    assert not lines[:, 0].any()  # rows that are not filtered
    if kind == 2:
        colours = lines[:, 1:].reshape(height, width, 3)
        return np.concatenate([colours, np.full((height, width, 1), 255, np.uint8)], axis=2)
    bits = np.unpackbits(lines[:, 1:], axis=1)[:, : width * depth].reshape(height, width, depth)
    indices = bits @ (1 << np.arange(depth - 1, -1, -1))
    palette = np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)
    opaque = np.full(len(palette), 255, np.uint8)
    told = np.frombuffer(parts.get(b"tRNS", b""), np.uint8)
    opaque[: len(told)] = told
    return np.concatenate([palette[indices], opaque[indices][..., None]], axis=2)
