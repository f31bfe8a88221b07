"""The text of TorchScript's serialized code, parsed as the Python that it nearly is, and written again.

torch reads the text with a parser of its own. Where that one and Python's would see two different programs in the same
text, the one that was checked would not be the one that runs. So torch is never given the text of a file: it gets what
is written here from the tree that was checked. Only the texts of string literals pass as they are.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_OURS = frozenset(("async", "await", "except", "finally", "from", "global", "lambda", "nonlocal", "try", "yield"))
"""Keywords of Python that are names in TorchScript, such as those of submodules."""

_PIECES = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"|#[^\n]*')
_WORDS = re.compile(rf"\b({'|'.join(sorted(_OURS))})\b")


class UnreadableError(Exception):
    """The text is not what torch writes; says why and in which line."""

    def __init__(self, why: str, line: int | None) -> None:
        super().__init__(why)
        self.why = why
        self.line = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One member with code.

    Attributes:
        tree: Its tree. Each string literal is a name in it.
        literals: The literals as they stand in the text, with their quotes, by these names.
        literal: What these names begin with.
        masked: What stands before the names that are keywords of Python.
    """

    tree: ast.Module
    literals: Mapping[str, str]
    literal: str
    masked: str

    def word(self, name: str) -> str:
        """Return a name of the tree, or several with dots between them, as it stands in the text."""
        return name.replace(self.masked, "")

    def string(self, name: str) -> str | None:
        """Return what stands between the quotes of a literal, or None where the name is of something else."""
        return self.literals[name][1:-1] if name in self.literals else None


def parse(content: bytes) -> Code:
    """Parse one member.

    Raises:
        UnreadableError: It has a literal, character or construct that torch does not write.
    """
    text = content.decode("latin-1")  # as many characters as bytes: what is in a literal passes unchanged
    literal, masked = _unused(text, "string_"), _unused(text, "word_")
    literals: dict[str, str] = {}

    def replaced(match: re.Match[str]) -> str:
        if match[0].startswith("#"):
            return ""
        name = f"{literal}{len(literals)}"
        literals[name] = match[0]
        # The blanks keep what touches a literal, a prefix or another literal, from becoming one name with it.
        return f" {name} "

    plain = _PIECES.sub(replaced, text)
    for number, line in enumerate(plain.split("\n"), 1):
        if strange := re.search(r"[^\x20-\x7e]|['\"`\\;]", line):
            raise UnreadableError(f"there is {strange[0]!r} outside of a text", number)
    plain = _WORDS.sub(rf"{masked}\1", plain)
    try:
        tree = ast.parse(plain)
    except SyntaxError as exc:
        raise UnreadableError(exc.msg, exc.lineno) from exc
    except ValueError as exc:
        raise UnreadableError(str(exc), None) from exc
    except (RecursionError, MemoryError) as exc:
        raise UnreadableError("it is nested too deep", None) from exc
    _rename_print(tree, _unused(text, "print_"))
    _drop_warnings(tree)
    return Code(tree=tree, literals=literals, literal=literal, masked=masked)


def write(code: Code) -> bytes:
    """Return the text of a tree.

    Raises:
        UnreadableError: It is nested too deep.
    """
    try:
        text = ast.unparse(code.tree)
    except RecursionError as exc:
        raise UnreadableError("it is nested too deep", None) from exc
    text = re.sub(rf"{code.literal}\d+", lambda match: code.literals[match[0]], code.word(text))
    return f"{text}\n".encode("latin-1")


def _rename_print(tree: ast.Module, other: str) -> None:
    """Give local values of the name ``print``, as those of a submodule of that name are, another name.

    Where such a value is set on one way through a function only, torch takes the name for the function ``print``.
    """
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "print"]
        if any(isinstance(node.ctx, ast.Store) for node in names):
            for node in names:
                node.id = other


def _drop_warnings(tree: ast.Module) -> None:
    """Leave of every statement that warns what it would say: torch writes it past Python onto standard error.

    What it says may be computed, so that it stays; nobody looks at the result.
    """
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            lines = getattr(node, name, None)
            if isinstance(lines, list):
                lines[:] = [kept for line in lines for kept in _without_warning(line)]


def _without_warning(line: ast.stmt) -> list[ast.stmt]:
    match line:
        case ast.Expr(value=ast.Call(func=function, args=arguments, keywords=named)) if _warns(function):
            said = [*arguments, *(keyword.value for keyword in named)]
            return [ast.copy_location(ast.Expr(value), line) for value in said] or [ast.copy_location(ast.Pass(), line)]
    return [line]


def _warns(function: ast.expr) -> bool:
    match function:
        case ast.Attribute(value=ast.Name(id="torch"), attr="warn"):
            return True
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="ops"), attr="aten"), attr="warn"):
            return True
    return False


def _unused(text: str, ending: str) -> str:
    """A beginning of names that the text has nowhere."""
    start = "_"
    while start + ending in text:
        start += "_"
    return start + ending
