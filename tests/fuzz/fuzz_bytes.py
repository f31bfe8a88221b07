"""Damage that knows nothing of formats: bits, blocks, lengths, and halves of two files put together."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

Damage = Callable[[Random, bytes], bytes]
"""One change of a file's content."""

EXTREMES = (0, 1, -1, 2, 127, 128, 255, 256, -128, 32767, 65535, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**40, 2**62,
            2**63 - 1, -(2**63), 2**64 - 1)  # fmt: skip
"""Integers at which something overflows, or asks for too much."""


def flip(random: Random, content: bytes) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(random: Random, content: bytes) -> bytes:
    """Put other bytes over one to four of them."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4) if changed else 0):
        changed[random.randrange(len(changed))] = random.choice((0, 0xFF, 0x80, random.randrange(256)))
    return bytes(changed)


def truncate(random: Random, content: bytes) -> bytes:
    """Cut the end off, often close to it."""
    if random.random() < 0.3:
        return content[: max(len(content) - random.randint(1, 64), 0)]
    return content[: random.randrange(len(content) + 1)]


def _block(random: Random, content: bytes) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(start + random.choice((1, 2, 4, 8, 16, 64, 256)), len(content))


def delete(random: Random, content: bytes) -> bytes:
    """Take a block out."""
    start, end = _block(random, content)
    return content[:start] + content[end:]


def repeat(random: Random, content: bytes) -> bytes:
    """Put a copy of a block elsewhere."""
    start, end = _block(random, content)
    at = random.randrange(len(content) + 1)
    return content[:at] + content[start:end] * random.choice((1, 1, 2, 50)) + content[at:]


def insert(random: Random, content: bytes) -> bytes:
    """Put bytes in between."""
    at, count = random.randrange(len(content) + 1), random.choice((1, 2, 4, 8, 64, 1024))
    return content[:at] + random.choice((b"\0" * count, b"\xff" * count, random.randbytes(count))) + content[at:]


def extreme(random: Random, content: bytes) -> bytes:
    """Make some integer of the file huge, negative or zero."""
    form = random.choice("bBhHiIqQ")
    size = struct.calcsize(form)
    if len(content) < size:
        return content
    order, bits = random.choice("<<<>"), 8 * size
    value = random.choice(EXTREMES) % (1 << bits)
    value -= (1 << bits) if form.islower() and value >> (bits - 1) else 0
    at = random.randrange(len(content) - size + 1)
    return content[:at] + struct.pack(order + form, value) + content[at + size :]


PLAIN: tuple[Damage, ...] = (flip, overwrite, truncate, delete, repeat, insert, extreme)
"""All of it that needs one file."""


def splice(random: Random, content: bytes, other: bytes) -> bytes:
    """Put the beginning of one valid file before the end of another one."""
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]
