"""Damage of JSON, YAML, and the headers of npy and safetensors files: the form is kept, the meaning is not."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from fuzz_bytes import EXTREMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

STRANGE_TEXT = (
    "", "x" * 5000, "\x1b[31mred", "\u202eabc", "a\nb\r\nc", "../../up", "/etc/passwd", "\ud800", "conv", "fc",
    "<script>alert(1)</script>", "::error::x", "nan", "-0", "\x00", "conv.weight", "%s%n{0}", "__class__",
)  # fmt: skip
"""Words that something may stumble over."""

LONG = "a number of 5000 digits"
"""What stands for one, which Python would not write as text."""


def odd_value(random: Random) -> Any:
    """Return a value that JSON can hold, of any type."""
    match random.randrange(9):
        case 0:
            return random.choice(EXTREMES)
        case 1:
            return random.choice((0.0, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"), 0.5))
        case 2:
            return random.choice(STRANGE_TEXT)
        case 3:
            return random.choice((True, False, None))
        case 4:
            return [odd_value(random) for _ in range(random.randrange(4))]
        case 5:
            return {random.choice(STRANGE_TEXT): odd_value(random) for _ in range(random.randrange(3))}
        case 6:
            return nested(random.choice((3, 200)), random.choice(([], 1)))
        case 7:
            return [random.choice(EXTREMES)] * random.choice((1, 5, 3000))
        case _:
            return random.choice((10**20, 10**400, LONG))


def nested(depth: int, inner: Any) -> Any:
    """Return a list in a list, so many times."""
    for _ in range(depth):
        inner = [inner]
    return inner


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON value with every key or index in it."""
    todo = [value]
    while todo:
        holder = todo.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ():
            yield holder, key
            todo.append(holder[key])


def damage_value(random: Random, value: Any) -> Any:
    """Change one place of a JSON value: another value, gone, twice, swapped with another one, or under another name."""
    found = list(places(value))
    if not found or random.random() < 0.03:
        return odd_value(random)
    holder, key = random.choice(found)
    match random.randrange(7):
        case 0 | 1 | 2:
            holder[key] = odd_value(random)
        case 3:
            del holder[key]
        case 4:
            other, place = random.choice(found)
            try:
                holder[key], other[place] = other[place], holder[key]
            except (KeyError, IndexError):
                holder[key] = None
            if _is_circular(value):
                return odd_value(random)
        case 5 if isinstance(holder, dict):
            holder[random.choice(STRANGE_TEXT)] = holder.pop(key)
        case _:
            holder[key] = _nearby(random, holder[key])
    return value


def _is_circular(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def _nearby(random: Random, value: Any) -> Any:
    """Return a value of the same type that is a little off."""
    match value:
        case bool():
            return not value
        case int() | float():
            return random.choice((value + 1, value - 1, -value, value * 1000, 0, 0.5))
        case str():
            return random.choice((value + "x", value[1:], value.upper(), value * 2, value.replace(".", "/")))
        case list():
            return random.choice((value * 2, value[:-1], value[::-1], [value]))
        case dict():
            return random.choice(({}, {**value, "more": 1}, [value]))
    return 0


def as_json(value: Any, *, ensure_ascii: bool = True) -> bytes:
    """Return the value as JSON."""
    text = json.dumps(value, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    return text.replace(f'"{LONG}"'.encode(), b"1" * 5000)


def dump_json(random: Random, value: Any) -> bytes:
    """Return the value as JSON, now and then with a key twice, in another encoding, or nested too deep."""
    text = as_json(value, ensure_ascii=random.random() < 0.9)
    match random.randrange(25):
        case 0:
            return text.replace(b"{", b'{"twice": 1, "twice": 2, ', 1)
        case 1:
            return text.decode("utf-8", "replace").encode(random.choice(("utf-16", "utf-8-sig", "utf-32")))
        case 2:
            depth = random.choice((900, 3000, 100_000))
            return b"[" * depth + text + b"]" * depth
    return text


def damage_json(random: Random, content: bytes) -> bytes:
    """Change the meaning of a JSON file."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for _ in range(random.choice((1, 1, 1, 3))):
        value = damage_value(random, value)
    return dump_json(random, value)


_REPEATED = "\n".join(
    f"{new}: &{new} [{', '.join([old] * 9)}]"
    for new, old in zip("bcdefgh", ("x", "*b", "*c", "*d", "*e", "*f", "*g"), strict=True)
)
YAML_LINES = (
    "x: !!python/object/apply:os.mkdir [marker]", "x: !!python/name:os.system", "a: &a [*a]", "sigmoid_type: [1, 2]",
    "sigmoid_type: 17", "ci_fn_type: {a: b}", "ci_config: {fn_type: 3}", "ci_config: [1]", "? [a, b]\n: c", "- 1",
    "%YAML 9.9", _REPEATED, "x: " + "[" * 3000, "2001-99-99: 2001-99-99", "x: 0x" + "f" * 5000, "\tx: 1",
    "sigmoid_type: \"\\e[31m\"", "...", "---", "x: !!int abc", "x: !!timestamp 2001-13-45", "<<: 3", "<<: [1, 2]",
    "x: 1e999999999", "x: 1:99:99:99", "? !!set {a}",
)  # fmt: skip
"""Lines that a configuration never has."""


def damage_yaml(random: Random, content: bytes) -> bytes:
    """Change, take out or add a line."""
    lines = content.decode("utf-8", "replace").splitlines()
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines) + 1)
        match random.randrange(4):
            case 0 if at < len(lines):
                del lines[at]
            case 1 if at < len(lines):
                lines[at] = lines[at].partition(":")[0] + ": " + as_json(odd_value(random)).decode()
            case 2 if at < len(lines):
                lines[at] = " " * random.randrange(4) + lines[at]
            case _:
                lines.insert(at, random.choice(YAML_LINES))
    return ("\n".join(lines) + "\n").encode()


def damage_npy(random: Random, content: bytes) -> bytes:
    """Change the header of a .npy file: its type, its order, its shape, its version or its length."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        return content
    length = struct.unpack("<H", content[8:10])[0]
    header, data = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    shape = header.partition("'shape': ")[2].partition(")")[0] + ")"
    descr = header.partition("'descr': ")[2].partition(",")[0]
    version = (1, 0)
    match random.randrange(8):
        case 0 | 1:
            header = header.replace(descr, random.choice(DESCRIPTIONS))
        case 2 | 3:
            sizes = [
                str(random.choice((*EXTREMES, 3, 4, 12))) for _ in range(random.choice((0, 1, 2, 4, 4, 4, 33, 65)))
            ]
            header = header.replace(shape, f"({', '.join(sizes)}{',' if sizes else ''})")
        case 4:
            header = header.replace("False", random.choice(("True", "1", "None", "[]")))
        case 5:
            header = random.choice(
                ("{" * 500, "{}", "[1, 2]", "__import__('os')", "'" * 99, header[:-20] + "\n", "{'descr': 1}")
            )
        case 6:
            version = random.choice(((2, 0), (3, 0), (9, 9), (0, 0), (255, 255)))
        case _:
            length = random.choice((0, 1, 5, 65535, length - 1, length + 1, length + 64))
            return content[:8] + struct.pack("<H", max(length, 0)) + content[10:]
    text = header.encode("latin1", "replace")
    size = struct.pack("<H" if version[0] < 2 else "<I", min(len(text), 65535))
    return content[:6] + bytes(version) + size + text + data


DESCRIPTIONS = (
    "'|O'", "'<f8'", "'<f2'", "'>f4'", "'<c8'", "'|b1'", "'<U99999999'", "'|S0'", "'|V8'", "'<M8[ns]'", "'<i8'",
    "'<u8'", "[('a', '<f4')]", "[('a', '|O')]", "'<f16'", "'x'", "''", "None", "[]", "('<f4', (1000000, 1000))",
)  # fmt: skip
"""Types that the header of a .npy file can name."""


def damage_safetensors(random: Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or what it says of its own length."""
    if len(content) < 8:
        return content
    length = struct.unpack("<Q", content[:8])[0]
    data = content[8 + length :]
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return content
    if random.random() < 0.15:
        return struct.pack("<Q", random.choice((*EXTREMES, length - 1, length + 1)) % 2**64) + content[8:]
    names = [name for name in header if name != "__metadata__"]
    change = random.randrange(7)
    if change < 3 and names:
        entry = header[random.choice(names)]
        match change:
            case 0:
                entry["dtype"] = random.choice(
                    ("F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "C64", "U64", "F4", "", "f32", None)
                )
            case 1:
                entry["shape"] = [random.choice(EXTREMES) for _ in range(random.randrange(5))]
            case _:
                entry["data_offsets"] = [
                    random.choice((*EXTREMES, 8, 12, len(data))) for _ in range(random.choice((2, 2, 2, 1, 3)))
                ]
    else:
        header = damage_value(random, header)
    text = dump_json(random, header)
    return struct.pack("<Q", len(text)) + text + data


TEXT: dict[str, Callable[[Random, bytes], bytes]] = {
    "json": damage_json,
    "yaml": damage_yaml,
    "npy": damage_npy,
    "safetensors": damage_safetensors,
}
"""By format."""
