"""The strings of an exported program that torch evaluates as Python.

``torch.export.load`` reads the program from JSON, and not all of it as data: expressions of symbolic sizes go through
``sympy.sympify``, which evaluates them; guards and the names of nodes are pasted into source text that is executed;
an operator's name is resolved by attribute look-up from ``torch``, ``math`` or ``operator``, and called; a tree of
inputs may name a module to import. What torch itself writes there is of a very plain shape. Anything else is refused.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from spdexport.errors import PickleRefusedError, SourceError

# Names of nodes, inputs, parameters, layers ("layer@1" is a second call) and types. No quote, bracket, '=' or space.
_NAME = re.compile(r"[\w.$#:/@\-]*")
_IDENTIFIER = re.compile(r"\w*")
_TARGET = re.compile(
    r"torch\.ops\.(?!load_library\b|import_module\b)(?!_)\w+\.(?!__)\w+(\.(?!__)\w+)?"
    r"|torch\.ops\._\w+\.(?!__)\w+(\.(?!__)\w+)?"
    r"|torch\.ops\.aten\.__(i?and|i?or|i?xor|i?lshift|i?rshift)__\.\w+"
    r"|_operator\.(?!__|methodcaller|attrgetter|call)\w+"
    r"|math\.(?!_)\w+"
    r"|torch\.(sym_\w+|_functorch\.predispatch\.\w+|amp\.autocast_mode\._(enter|exit)_autocast)"
)
# Values that torch only shows, or puts into source text with quotes and escapes.
_FREE = frozenset(("metadata", "as_string", "as_strings", "torch_version"))
_MATH_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.IfExp,
)  # fmt: skip
_GUARD_NODES = (*_MATH_NODES, ast.Attribute, ast.Subscript)
# Functions of lower case that torch's printer of sympy expressions writes; the others begin with a capital.
_FUNCTIONS = frozenset(("ceiling", "floor", "sqrt", "log", "log2", "exp", "cast_symbool_to_symint_guardless"))
_BUILTINS = frozenset(("max", "min", "int", "float", "bool", "abs", "round", "not", "and", "or"))
_TENSOR_ATTRIBUTES = frozenset(("size", "stride", "storage_offset", "item", "dim"))


def check_program(content: bytes, *, where: str) -> None:
    """Make sure that the JSON of an exported program holds no text that torch would run as code.

    Args:
        content: The member ``models/<name>.json`` of a ``.pt2`` archive.
        where: The file and member, for messages.

    Raises:
        PickleRefusedError: A string is not of the shape that torch itself writes.
        SourceError: It is not the JSON of a program.
    """
    try:
        program = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise SourceError(
            "The program's JSON cannot be read.", where=where, hint="Save the program again with torch.export.save."
        ) from exc
    _walk(program, where)


def _walk(program: Any, where: str) -> None:
    """Check every text of the JSON by the key that it stands under."""
    todo = [("", program)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            if bad := [name for name in value if not _NAME.fullmatch(name)]:
                raise _refusal("name", bad[0], where)
            todo += [(name, entry) for name, entry in value.items() if name not in _FREE]
        elif isinstance(value, list):
            todo += [(key, entry) for entry in value]
        elif isinstance(value, str):
            _check_text(value, key, where)


def _check_text(text: str, key: str, where: str) -> None:
    if key == "expr_str":
        fine = _is_plain(text, _MATH_NODES)
    elif key == "guards_code":
        fine = _is_plain(text, _GUARD_NODES)
    elif key == "target":
        fine = _TARGET.fullmatch(text) is not None
    elif key in ("in_spec", "out_spec"):
        fine = _is_plain_tree(text)
    else:
        fine = _NAME.fullmatch(text) is not None
    if not fine:
        raise _refusal(key, text, where)


def _is_plain(text: str, allowed: tuple[type[ast.AST], ...]) -> bool:
    """Whether it is one expression of numbers, symbols and known functions (for guards: of sizes of inputs, too)."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for absurd nesting
        return False
    guard = ast.Attribute in allowed
    # The path of an input in a guard, L['x']['key'], may have any key that is a plain name.
    return all(isinstance(node, allowed) and _is_plain_node(node, guard) for node in ast.walk(tree))


def _is_plain_node(node: ast.AST, guard: bool) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            return (_NAME if guard else _IDENTIFIER).fullmatch(text) is not None
        case ast.Name(id=name):
            return not name.startswith("__")
        case ast.Call(func=ast.Name(id=name)):
            return name[0].isupper() or name in _FUNCTIONS or (guard and name in _BUILTINS)
        case ast.Call(func=ast.Attribute()):
            return guard
        case ast.Call():
            return False
        case ast.Attribute(value=ast.Name(id="math"), attr=name):
            return not name.startswith("_")
        case ast.Attribute(value=ast.Name(id="torch"), attr=name):
            return name.startswith("sym_")
        case ast.Attribute(attr=name):
            return name in _TENSOR_ATTRIBUTES
        case _:
            return True


def _is_plain_tree(text: str) -> bool:
    """Whether a pytree's text names only containers and keys, and no module to import."""
    try:
        todo = [json.loads(text)]
    except (ValueError, RecursionError):
        return False
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "__enum__" in value or value.get("type") == "collections.defaultdict":
                return False  # both make torch import a module that the text names
            if isinstance(context := value.get("context"), str):
                try:
                    todo.append(json.loads(context))
                except (ValueError, RecursionError):
                    return False
            todo += [entry for name, entry in value.items() if name != "context" or not isinstance(entry, str)]
            todo += list(value)
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str) and not _NAME.fullmatch(value):
            return False
    return True


def _refusal(what: str, text: str, where: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"The program holds text that torch would run as code ({what}: {text[:80]!r}).",
        where=where,
        hint="Save the program again with torch.export.save, or, if you trust where it comes from, add --trust.",
    )
