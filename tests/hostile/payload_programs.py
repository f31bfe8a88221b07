"""Programs whose text torch would run: expressions, guards, targets and trees of a .pt2; TorchScript with effects."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from payload import CODE, MARKER, Hostile, Make
from payload_pickles import members_of, rewritten

PROGRAM = "models/model.json"


def _with_program(change: Callable[[Any], None]) -> Make:
    """Return what writes the program with its JSON changed."""

    def members(found: dict[str, bytes]) -> None:
        program = json.loads(found[PROGRAM])
        change(program)
        found[PROGRAM] = json.dumps(program).encode()

    return rewritten("m.pt2", "hostile.pt2", members)


def holders(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value that has a key."""
    todo = [value]
    while todo:
        current = todo.pop()
        if isinstance(current, dict):
            if key in current:
                yield current
            todo += current.values()
        elif isinstance(current, list):
            todo += current


def _set(key: str, value: Any) -> Callable[[Any], None]:
    def change(program: Any) -> None:
        found = list(holders(program, key))
        assert found, f"a program has {key}"
        for holder in found:
            holder[key] = value

    return change


def _tree(node_type: str, context: str) -> str:
    node = {"type": node_type, "context": context, "children_spec": []}
    return json.dumps([1, node])


_NODE_NAME = f"x\n{CODE}\n"
_TEXTS: dict[str, Callable[[Any], None]] = {
    "an expression": _set("expr_str", CODE),
    "an expression by attributes": _set("expr_str", f"().__class__.__base__.__subclasses__() or {CODE}"),
    "an expression that never ends": _set("expr_str", "2**3**4**5**6"),
    "an expression of a great factorial": _set("expr_str", "factorial(10**9)"),
    "an expression nested deeply": _set("expr_str", "(" * 5000 + "s0" + ")" * 5000),
    "a great sum of expressions": _set("expr_str", "+".join(f"s{i}**99" for i in range(3000))),
    "a target": _set("target", "os.mkdir"),
    "a target of torch's": _set("target", "torch.ops.load_library"),
    "a target that crashes": _set("target", "torch.ops.prim.PythonOp.default"),
    "a tree of inputs": _set("in_spec", _tree("builtins.dict", json.dumps({"__enum__": True, "fqn": "os:mkdir"}))),
    "a tree of outputs": _set(
        "out_spec", _tree("collections.defaultdict", json.dumps({"default_factory_module": "this"}))
    ),
}


def _guards(program: Any) -> None:
    program["guards_code"] = [CODE, f"L['x'].__class__.__init__.__globals__['os'].mkdir({MARKER!r})"]


def _names(program: Any) -> None:
    for holder in holders(program, "as_tensor"):
        if isinstance(holder["as_tensor"], dict):
            holder["as_tensor"]["name"] = _NODE_NAME


def _two_readers(mode: str) -> Make:
    """Return what writes a program of which Python's zip reader and torch's see different members.

    Args:
        mode: ``offset``: data stand in front of the archive, or do not; ``end64``: two directories, one by the end
            record's 64-bit locator and one by its place; ``plain``: what torch sees in both cases alone.
    """

    def make(folder: Path) -> None:
        root, members = members_of(folder / "m.pt2")
        program = json.loads(members[PROGRAM])
        _set("expr_str", CODE)(program)
        text = json.dumps(program).encode()
        written = bytearray()
        if mode != "plain":
            _local(written, "padding", bytes(60_000))
        good = [(root + name, content, _local(written, root + name, content)) for name, content in members.items()]
        place = _local(written, root + PROGRAM, text)
        bad = [(n, text, place) if n == root + PROGRAM else (n, c, at) for n, c, at in good]
        (folder / "hostile.pt2").write_bytes(_ended(written, good, bad, mode))

    return make


Entry = tuple[str, bytes, int]


def _local(written: bytearray, name: str, content: bytes) -> int:
    """Add a member, aligned as torch wants it, and return where it begins."""
    start, text = len(written), name.encode()
    gap = -(start + 30 + len(text) + 4) % 64
    extra = struct.pack("<HH", 0x4246, gap) + b"Z" * gap
    sizes = (zlib.crc32(content), len(content), len(content), len(text), len(extra))
    written += struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0x5221, *sizes) + text + extra + content
    return start


def _directory(entries: list[Entry], shift: int = 0) -> bytes:
    found = b""
    for name, content, start in entries:
        sizes = (zlib.crc32(content), len(content), len(content), len(name.encode()))
        head = struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0x5221, *sizes, 0, 0, 0, 0, 0, start - shift
        )
        found += head + name.encode()
    return found


def _end(entries: list[Entry], directory: bytes, start: int) -> bytes:
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(entries), len(entries), len(directory), start, 0)


def _end64(entries: list[Entry], directory: bytes, start: int) -> bytes:
    counts = (len(entries), len(entries), len(directory), start)
    return struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, *counts)


def _ended(written: bytearray, good: list[Entry], bad: list[Entry], mode: str) -> bytes:
    """Return the archive with its directories."""
    first = len(written)
    if mode == "plain":
        directory = _directory(bad)
        return bytes(written + directory + _end(bad, directory, first))
    other = _directory(bad)
    written += other
    if mode == "offset":
        directory = _directory(good, len(other))
        return bytes(written + directory + _end(good, directory, first))
    locator = len(written)
    written += _end64(bad, other, first)
    start, directory = len(written), _directory(good)
    written += directory + _end64(good, directory, start)
    written += struct.pack("<IIQI", 0x07064B50, 0, locator, 1)
    return bytes(written + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


TEXTS = (
    *(
        Hostile(name=f".pt2, code in {name}", file="hostile.pt2", make=_with_program(change))
        for name, change in {**_TEXTS, "guards": _guards, "names of nodes": _names}.items()
    ),
    *(
        Hostile(name=f".pt2 with two readers, {mode}", file="hostile.pt2", make=_two_readers(mode))
        for mode in ("plain", "offset", "end64")
    ),
)
"""Code in the text of programs."""


# --- TorchScript: a program of its own, which runs when it is loaded or traced ---

_BODIES = {
    "writes a file": f'torch.save(x, "{MARKER}")',
    "writes a file when a branch is taken": f'if x.numel() > 0:\n            torch.save(x, "{MARKER}")',
    "maps a file": f'x = x + torch.from_file("{MARKER}", True, 8).sum()',
    "never ends": "i = 0\n        while i < 4611686018427387904:\n            i = i + 1\n        x = x + i",
    "asks for memory": "x = x + torch.zeros([60000, 60000]).sum()",
    "prints": 'print("\033[31m", x)',
    "raises": 'raise RuntimeError("\033[31m::error::a")',
}


def _scripted(name: str, *methods: str) -> bytes:
    """Return a TorchScript archive of a class with some methods; each class needs a name of its own."""
    module = type(name, (torch.jit.ScriptModule,), {"__module__": "hostile"})()
    for method in methods:
        module.define(method)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def _script(number: int, body: str) -> Make:
    forward = f"def forward(self, x: Tensor) -> Tensor:\n        {body}\n        return torch.relu(x)\n"
    return lambda folder: (folder / "hostile.ts").write_bytes(_scripted(f"Script{number}", forward)) and None


def _script_with_state(folder: Path) -> None:
    """Make a class whose state is set by a method that writes: it runs when the archive is loaded."""
    content = _scripted(
        "Stateful",
        "def forward(self, x: Tensor) -> Tensor:\n        return torch.relu(x)\n",
        "def __getstate__(self) -> int:\n        return 1\n",
        "def __setstate__(self, state: int) -> None:\n"
        f'        torch.save(torch.zeros([2]), "{MARKER}")\n        self.training = False\n',
    )
    (folder / "hostile.ts").write_bytes(content)


def _script_with_pickle(folder: Path) -> None:
    """Put a payload into the constants of an archive."""
    import pickle

    from payload import Payload

    root, members = members_of(folder / "m.ts")
    members["constants.pkl"] = pickle.dumps(Payload(), protocol=2)
    with zipfile.ZipFile(folder / "hostile.ts", "w") as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)


SCRIPTS = (
    *(
        Hostile(name=f"TorchScript that {what}", file="hostile.ts", make=_script(number, body), refused=False)
        for number, (what, body) in enumerate(_BODIES.items())
    ),
    Hostile(
        name="TorchScript that writes when it is loaded", file="hostile.ts", make=_script_with_state, refused=False
    ),
    Hostile(name="TorchScript with a pickle", file="hostile.ts", make=_script_with_pickle),
)
"""TorchScript with effects."""
