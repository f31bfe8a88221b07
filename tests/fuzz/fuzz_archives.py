"""Damage of zip archives and of the pickles inside of them and elsewhere: valid containers with other content."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from typing import TYPE_CHECKING, Any

from fuzz_bytes import EXTREMES, PLAIN
from fuzz_text import STRANGE_TEXT, damage_json, damage_npy

if TYPE_CHECKING:
    from random import Random

MARKER = "marker"
"""The folder that a payload makes where it is executed, in the current folder."""


class Payload:
    """An object whose unpickling makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def damage_zip(random: Random, content: bytes) -> bytes:
    """Write the archive anew with one thing changed, or change a field of its directory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    if random.random() < 0.35 or not members:
        return _damage_field(random, content)
    for _ in range(random.choice((1, 1, 2))):
        _damage_members(random, members)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for info, data in members:
            method = (
                random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                if random.random() < 0.1
                else info.compress_type
            )
            copy = zipfile.ZipInfo(info.filename, info.date_time)
            archive.writestr(copy, data, method)
        archive.comment = b"" if random.random() < 0.9 else random.randbytes(random.choice((4, 300)))
    return written.getvalue()


def _damage_members(random: Random, members: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    at = random.randrange(len(members))
    info, data = members[at]
    match random.randrange(10):
        case 0:
            if len(members) > 1:
                del members[at]
        case 1:
            name = random.choice(
                (info.filename, *STRANGE_TEXT[2:7], info.filename + "x", info.filename.upper(), "../" + info.filename)
            )
            members[at] = zipfile.ZipInfo(name.replace("\0", "") or "x"), data
        case 2:
            members.append((info, random.choice((data, b"", random.choice(members)[1]))))
        case 3:
            other = random.randrange(len(members))
            members[at], members[other] = (info, members[other][1]), (members[other][0], data)
        case _:
            members[at] = info, damage_member(random, info.filename, data)


def damage_member(random: Random, name: str, data: bytes) -> bytes:
    """Change the content of a member by what its name says it is."""
    if random.random() < 0.2:
        return random.choice(PLAIN)(random, data)
    if name.endswith(".json"):
        return damage_json(random, data)
    if name.endswith(".npy"):
        return damage_npy(random, data)
    if name.endswith(".pkl") or data[:1] == b"\x80":
        return damage_pickle(random, data)
    if data[:2] == b"PK":
        return damage_zip(random, data)
    if name.endswith(".py"):
        return damage_code(random, data)
    return random.choice(PLAIN)(random, data)


def _damage_field(random: Random, content: bytes) -> bytes:
    """Change one field of a local header, of the central directory or of its end, where it lies."""
    signature, fields = random.choice(
        (
            (b"PK\x01\x02", ((8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (28, "H"), (30, "H"), (42, "I"))),
            (b"PK\x05\x06", ((4, "H"), (8, "H"), (10, "H"), (12, "I"), (16, "I"), (20, "H"))),
            (b"PK\x03\x04", ((6, "H"), (8, "H"), (14, "I"), (18, "I"), (22, "I"), (26, "H"), (28, "H"))),
        )
    )
    starts = [at for at in range(len(content) - 3) if content[at : at + 4] == signature]
    if not starts:
        return content
    offset, form = random.choice(fields)
    at = random.choice(starts) + offset
    size = struct.calcsize(form)
    old = int.from_bytes(content[at : at + size], "little")
    new = random.choice((*EXTREMES, old + 1, old - 1, old + 100, old * 2, 8, 14, 99)) % (1 << 8 * size)
    return content[:at] + new.to_bytes(size, "little") + content[at + size :]


CODE = (
    "    torch.save(x, \"marker\")\n", "    while True:\n      pass\n", "    _9 = torch.zeros([100000, 100000])\n",
    "    ops.profiler._record_function_enter(\"a\")\n", "    print(x)\n",
    "    _8 = torch.from_file(\"m.ts\", False, 8)\n",
    "    assert False\n", "    raise AssertionError(\"a\\nb\")\n", "    _7 = uninitialized(Tensor)\n", "  def f(\n",
    "\0\n", "    return x\n",
    "    for _i in range(4611686018427387904):\n      pass\n", "    import os\n", "    _6 = torch.rand([2])\n",
    "    return self\n",
)  # fmt: skip
"""Lines of TorchScript that a traced model does not have."""


def damage_code(random: Random, content: bytes) -> bytes:
    """Change TorchScript's own source text: lines moved, taken out, put in, and words exchanged."""
    lines = content.decode("utf-8", "replace").splitlines(keepends=True)
    at = random.randrange(len(lines) + 1)
    match random.randrange(5):
        case 0 if at < len(lines):
            del lines[at]
        case 1:
            other = random.randrange(len(lines) + 1)
            lines[at:at] = lines[other : other + 1]
        case 2 | 3:
            inner = [i for i, line in enumerate(lines) if line.startswith("    ")] or [at]
            lines.insert(random.choice(inner), random.choice(CODE))
        case _ if at < len(lines):
            words = lines[at].split(" ")
            words[random.randrange(len(words))] = random.choice(
                (*lines[at].split(), "None", "9" * 30, "[]", "self", "annotate")
            )
            lines[at] = " ".join(words)
    return "".join(lines).encode()


GLOBALS = (
    b"cos\nmkdir\n", b"cposix\nmkdir\n", b"ctorch\nload\n", b"cbuiltins\nexec\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"c__main__\nNet\n",
    b"ctorch.nn.modules.conv\nConv2d\n", b"c\n\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nSize\n", b"ctorch.serialization\n_get_layout\n",
    b"cbuiltins\nset\n",
)  # fmt: skip
"""Names that a pickle can ask for; what makes a folder makes the marker."""


def damage_pickle(random: Random, content: bytes) -> bytes:
    """Change one operation of a pickle: its argument, its place, its number, or the name that it asks for."""
    try:
        starts = [at for _, _, at in pickletools.genops(content)]
    except (ValueError, IndexError, EOFError, UnicodeDecodeError, OverflowError):
        return random.choice(PLAIN)(random, content)
    ends = [*starts[1:], len(content)]
    at = random.randrange(len(starts))
    start, end = starts[at], ends[at]
    match random.randrange(9):
        case 0:
            return content[:start] + content[end:]
        case 1:
            return content[:end] + content[start:end] * random.choice((1, 1, 300)) + content[end:]
        case 2:
            other = random.randrange(len(starts))
            return content[:start] + content[starts[other] : ends[other]] + content[end:]
        case 3 | 4:
            named = [i for i, s in enumerate(starts) if content[s : s + 1] == b"c"]
            at = random.choice(named) if named else at
            return content[: starts[at]] + random.choice(GLOBALS) + content[ends[at] :]
        case 5:
            numbers = [s for s in starts if content[s : s + 1] in b"JKM"]
            if not numbers:
                return content[:start] + b"J" + struct.pack("<i", -1) + content[start:]
            place = random.choice(numbers)
            value = random.choice((-1, 0, 2**31 - 1, -(2**31), 7, 255))
            width = {b"J": 5, b"K": 2, b"M": 3}[content[place : place + 1]]
            return content[:place] + b"J" + struct.pack("<i", value) + content[place + width :]
        case 6:
            payload = pickle.dumps(Payload(), protocol=2)[2:-1]
            return content[:start] + payload + random.choice((b"", b"0")) + content[start:]
        case 7:
            return (
                content[:start]
                + random.choice((b"(", b"]", b"}", b"R", b"b", b"0", b"2", b".", b"Q", b"u", b"e", b"s"))
                + content[start:]
            )
        case _:
            deep = random.choice((b"(", b"]a", b"}s", b"\x85", b"2"))
            return content[:start] + deep * random.choice((50, 5000)) + content[start:]
