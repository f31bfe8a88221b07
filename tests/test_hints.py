"""What errors and reports advise can be done: an option that they name is one of the command that shows them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import spdexport
from spdexport.cli import main

PACKAGE = Path(spdexport.__file__).parent
COMMANDS = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in main.commands.items()}

SOURCES = ("convert", "verify", "inspect", "masks")
"""The commands that read a source and decide about its layers."""

CHECKS = ("convert", "verify", "fold")

SHOWN_BY = {
    "ablation": ("ablate",),
    "atlases": ("atlas",),
    "capture": SOURCES,
    "files": (*SOURCES, "fold"),
    "files/guard.py": ("convert", "fold"),
    "files/limits.py": tuple(COMMANDS),
    "folding.py": ("fold",),
    "importance": ("masks",),
    "lab_folder.py": ("lab",),
    "laboratory": ("lab",),
    "loading": SOURCES,
    "masks.py": ("convert", "verify", "inspect"),
    "measuring": ("bench",),
    "model_files.py": ("convert", "verify", "fold", "bench", "ablate", "atlas"),
    "onnx_prepare.py": ("convert", "verify"),
    "ort/sessions.py": CHECKS,
    "recorded.py": ("verify",),
    "report/explain.py": CHECKS,
    "sources": SOURCES,
    "verification/file_alone.py": ("verify", "fold"),
    "verification/file_inputs.py": ("convert", "verify", "fold", "bench", "ablate"),
    "verification/limits.py": ("convert", "verify"),
}
"""The commands that can show what a module or folder says. What is said of an option that was given is not at stake."""

_OPTION = re.compile(r"--[a-z][a-z0-9-]*")


def hints(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of hints and notes: constants that are no docstrings and not the place of an error."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    places = {id(c) for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "where" for c in ast.walk(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | places:
            yield node.lineno, node.value


def named_options(text: str) -> Iterator[tuple[str | None, str]]:
    """The options in a text, each with the command that stands before it, if one does."""
    for match in _OPTION.finditer(text):
        before = [word.lower() for word in text[: match.start()].split()[-4:]]
        yield next((word for word in reversed(before) if word in COMMANDS), None), match[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_option_that_is_named_exists(path: Path) -> None:
    for line, text in hints(path):
        for command, option in named_options(text):
            known = COMMANDS[command] if command else set().union(*COMMANDS.values()) | {"--help", "--force-reinstall"}
            assert option in known, f"{path.name}, line {line}: {text}"


@pytest.mark.parametrize("where", SHOWN_BY)
def test_each_command_has_the_options_that_it_advises(where: str) -> None:
    path = PACKAGE / where
    said = 0
    files = [file for file in path.rglob("*.py") if str(file.relative_to(PACKAGE)) not in SHOWN_BY]
    for file in sorted(files) if path.is_dir() else [path]:
        for line, text in hints(file):
            for command, option in named_options(text):
                said += 1
                lacking = [c for c in SHOWN_BY[where] if option not in COMMANDS[c]] if command is None else []
                assert not lacking, f"{file.name}, line {line}, shown by {lacking}: {text}"
    assert said or path.is_file()
