"""Things that are no files, links that lead elsewhere, and the configuration of a run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from payload import MARKER, Hostile, Make

SECRET = "the secret of another file"


def _link(name: str, target: str) -> Make:
    return lambda folder: (folder / name).symlink_to(target)


def _fifo(name: str) -> Make:
    return lambda folder: os.mkfifo(folder / name)


def _socket(folder: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(os.path.relpath(folder / "hostile"))
    finally:
        made.close()


def _run_with(change: Callable[[Path], None]) -> Make:
    return lambda folder: change(folder / "run")


def _fifo_checkpoint(run: Path) -> None:
    os.mkfifo(run / "model_200.pth")


def _fifo_config(run: Path) -> None:
    (run / "final_config.yaml").unlink()
    os.mkfifo(run / "final_config.yaml")


def _link_checkpoint(run: Path) -> None:
    (run / "model_200.pth").symlink_to("/dev/zero")


def _loop_checkpoint(run: Path) -> None:
    (run / "model_200.pth").symlink_to("model_200.pth")


def _folder_checkpoint(run: Path) -> None:
    (run / "model_200.pth").mkdir()
    (run / "model_200.pth" / "x").write_text("x")


def _config(text: str) -> Make:
    return _run_with(lambda run: (run / "final_config.yaml").write_text(text) and None)


def _bombed_yaml() -> str:
    lines = ["a: &a [" + ", ".join(["x"] * 10) + "]"]
    for old, new in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{new}: &{new} [" + ", ".join([f"*{old}"] * 10) + "]")
    return "\n".join([*lines, "sigmoid_type: *j", "ci_config: *j"])


def _fifo_in_data(folder: Path) -> None:
    os.mkfifo(folder / "data" / "a.fifo")


def _link_in_data(folder: Path) -> None:
    (folder / "data" / "c.npz").symlink_to("/dev/zero")


def _write(name: str, content: str) -> Make:
    return lambda folder: (folder / name).write_text(content) and None


SPECIAL = (
    Hostile(name="FIFO", file="hostile", make=_fifo("hostile")),
    Hostile(name="FIFO called .onnx", file="hostile.onnx", make=_fifo("hostile.onnx")),
    Hostile(name="link to /dev/zero", file="hostile", make=_link("hostile", "/dev/zero")),
    Hostile(name="link to itself", file="hostile", make=_link("hostile", "hostile")),
    Hostile(name="link to nothing", file="hostile", make=_link("hostile", "nothing")),
    Hostile(name="socket", file="hostile", make=_socket),
    Hostile(name="run with a FIFO as checkpoint", file="run", make=_run_with(_fifo_checkpoint)),
    Hostile(name="run with a FIFO as configuration", file="run", make=_run_with(_fifo_config), refused=False),
    Hostile(name="run with /dev/zero as checkpoint", file="run", make=_run_with(_link_checkpoint)),
    Hostile(name="run with a checkpoint that links to itself", file="run", make=_run_with(_loop_checkpoint)),
    Hostile(name="run with a folder as checkpoint", file="run", make=_run_with(_folder_checkpoint), refused=False),
    Hostile(name="folder of data with a FIFO", file="data", make=_fifo_in_data),
    Hostile(name="folder of data with /dev/zero", file="data", make=_link_in_data),
    Hostile(name="pointer of git LFS", file="hostile", make=_write(
        "hostile", f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n")),
    Hostile(name="empty file", file="hostile", make=_write("hostile", "")),
)  # fmt: skip
"""What is no file."""

CONFIGURATIONS = tuple(
    Hostile(name=f"configuration with {name}", file="run", make=_config(text), refused=False)
    for name, text in (
        ("a call", f"sigmoid_type: !!python/object/apply:os.mkdir [{MARKER}]\n"),
        ("a new object", f"ci_config: !!python/object/new:os.system ['mkdir {MARKER}']\n"),
        ("a name", "sigmoid_type: !!python/name:os.system\n"),
        ("a module", "sigmoid_type: !!python/module:antigravity\n"),
        ("aliases of 10^10 words", _bombed_yaml()),
        ("lists nested deeply", "sigmoid_type: " + "[" * 20_000),
        ("control characters", 'sigmoid_type: "\\e[31m"\nci_fn_type: "<script>"\n'),
    )
)
"""Configurations of runs."""


_NAMES = ("<script>alert(1)</script>", "\x1b[2J", "::error::x\n::warning::y")

TEXTS = (
    *(
        Hostile(name=f"JSON with the name {name!r}", file="hostile.json", make=_write(
            "hostile.json", json.dumps({name: [1.0], f"{name}.V": [[1.0]], "layers": name})))
        for name in _NAMES
    ),
    *(
        Hostile(name=f"JSON with the label {name!r}", file="hostile.json", refused=False, make=_write(
            "hostile.json", json.dumps({"conv:0": name, "fc:1": name * 1000})))
        for name in _NAMES
    ),
    Hostile(name="JSON plan with paths", file="hostile.json", make=_write(
        "hostile.json", json.dumps({"schema_version": 1, "factory": "evil.py:make", "components": "/etc/passwd"}))),
)  # fmt: skip
"""Text that is shown in errors."""
