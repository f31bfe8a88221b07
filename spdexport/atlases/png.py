"""PNG files of a few colours, with what Python itself brings.

The format is that of the PNG specification (third edition, W3C 2025): a signature, then chunks of length, kind, data
and CRC-32. The image data are rows, each behind a byte that says how it is filtered (0: not at all), all deflated.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PALETTE = 256

_INDEXED, _TRUECOLOUR = 3, 2


def encode_indexed(indices: Array, palette: Array, *, transparent: int | None = None) -> bytes:
    """Return a PNG whose pixels are rows of a palette, in as few bits as the palette needs.

    Args:
        indices: Shape (height, width), uint8.
        palette: Shape (colours, 3), uint8; at most 256 colours.
        transparent: The colour that is not drawn; None for none.
    """
    height, width = indices.shape
    depth = next(bits for bits in (1, 2, 4, 8) if len(palette) <= 1 << bits)
    per_byte = 8 // depth
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = indices
    # The leftmost pixel is in the highest bits.
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    rows = np.bitwise_or.reduce(padded.reshape(height, -1, per_byte) << shifts, axis=2).astype(np.uint8)
    chunks = [_chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    if transparent is not None:
        chunks.append(_chunk(b"tRNS", bytes(0 if i == transparent else 255 for i in range(transparent + 1))))
    return _file(width, height, depth, _INDEXED, chunks, rows)


def encode_colours(pixels: Array) -> bytes:
    """Return a PNG of an image, with a palette where it has few enough colours, bit for bit the same pixels.

    Args:
        pixels: Shape (height, width, 3), uint8.
    """
    height, width, _ = pixels.shape
    palette, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(palette) <= LARGEST_PALETTE:
        return encode_indexed(indices.reshape(height, width).astype(np.uint8), palette)
    return _file(width, height, 8, _TRUECOLOUR, [], np.ascontiguousarray(pixels).reshape(height, -1))


def rounded(pixels: Array) -> Array:
    """Return an image with so many bits of each channel that it has at most 256 colours, and 4 bits at least."""
    for bits in (8, 7, 6, 5):
        found = _rounded(pixels, bits)
        if len(np.unique(found.reshape(-1, 3), axis=0)) <= LARGEST_PALETTE:
            return found
    return _rounded(pixels, 4)


def _rounded(pixels: Array, bits: int) -> Array:
    steps = (1 << bits) - 1
    levels = np.rint(pixels.astype(np.float64) / 255 * steps)
    return np.rint(levels / steps * 255).astype(np.uint8)


def _file(width: int, height: int, depth: int, kind: int, chunks: list[bytes], rows: Array) -> bytes:
    lines = np.zeros((height, rows.shape[1] + 1), np.uint8)
    lines[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(lines.tobytes(), 9)
    return b"".join([SIGNATURE, _chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
