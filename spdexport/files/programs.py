"""The strings of an exported program that torch evaluates as Python.

``torch.export.load`` reads the program from JSON, and not all of it as data: expressions of symbolic sizes go through
``sympy.sympify``, which evaluates them; guards and the names of nodes are pasted into source text that is executed;
an operator's name is resolved by attribute look-up from ``torch``, ``math`` or ``operator``, and called; a tree of
inputs may name a module to import. What torch itself writes there is of a very plain shape. Anything else is refused,
and so is an operator that acts on something else than tensors.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch

from spdexport.errors import PickleRefusedError, SourceError
from spdexport.files.expressions import NAME, expression_cost, is_guard, is_symbol
from spdexport.files.limits import check_limit
from spdexport.files.reading import reading
from spdexport.files.torchscript.operators import EFFECTS, OPERATORS

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
# Operators that make a tensor as long as a number says.
_COUNTED = re.compile(
    r"torch\.ops\.aten\.(arange|range|linspace|logspace|eye|randperm|tri[lu]_indices|\w+_window)(\.\w+)?"
)
_SIZES = frozenset(("size", "sizes", "shape", "repeats"))
_GIB = 1 << 30
_COST = 10_000_000
"""Of all expressions together; ``expression_cost`` has the unit."""
_LARGEST = 1 << 64
"""Beyond any integer that torch writes."""
_BITS = 256
"""Of all sizes of a tensor together: beyond any memory, and still a number that can be shown."""


def check_program(content: bytes, *, where: str) -> None:
    """Make sure that the JSON of an exported program holds no text that torch would run as code.

    Args:
        content: The member ``models/<name>.json`` of a ``.pt2`` archive.
        where: The file and member, for messages.

    Raises:
        PickleRefusedError: A string is not of the shape that torch itself writes.
        SourceError: It is not the JSON of a program.
    """
    with reading(
        where, what="The program's JSON cannot be read", hint="Save the program again with torch.export.save."
    ):
        program = json.loads(content)
    _walk(program, where)


def _walk(program: Any, where: str) -> None:
    """Check every text and number of the JSON by the key that it stands under."""
    todo = [("", program)]
    known: set[tuple[str, str]] = set()
    nodes = cost = 0
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            if bad := [name for name in value if not NAME.fullmatch(name)]:
                raise _refusal("name", bad[0], where)
            if key == "range_constraints" and (bad := [name for name in value if not is_symbol(name)]):
                raise _absurd(f"the symbol {bad[0][:80]}", where)
            _check_sizes(value, where)
            todo += [(name, entry) for name, entry in value.items() if name not in _FREE]
        elif isinstance(value, list):
            if key == "nodes":
                nodes += len(value)
                check_limit("nodes", nodes, f"The program has {nodes} nodes", where=where, error=SourceError)
            todo += [(key, entry) for entry in value]
        elif isinstance(value, str):
            if (key, value) not in known:
                cost += _check_text(value, key, where)
                known.add((key, value))
                if cost > _COST:
                    raise _absurd("expressions of sizes that take too long to evaluate", where)
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            raise _absurd(f"the number {str(value)[:40]} under {key!r}", where)


def _check_sizes(entry: dict[str, Any], where: str) -> None:
    """Refuse a tensor of absurd size: what is said of one, and what an operator is told to make."""
    lists = [entry.get("sizes")]
    argument = entry.get("arg")
    name = entry.get("name")
    if isinstance(name, str) and name in _SIZES and isinstance(argument, dict):
        lists += [argument.get("as_ints"), argument.get("as_sym_ints")]
    target, inputs = entry.get("target"), entry.get("inputs")
    if isinstance(target, str) and isinstance(inputs, list) and _COUNTED.fullmatch(target):
        lists += [[value.get("arg")] for value in inputs if isinstance(value, dict)]
    for sizes in lists:
        if isinstance(sizes, list):
            told = [size.get("as_int") if isinstance(size, dict) else size for size in sizes]
            numbers = [max(number, 1) for number in told if isinstance(number, int)]
            if sum(number.bit_length() for number in numbers) > _BITS:
                raise _absurd("a tensor of more numbers than a machine can count", where)
            count = math.prod(numbers)
            what = f"The program has a tensor of {count} numbers"
            check_limit("value", -(-count // _GIB), what, where=where, error=SourceError)


def _absurd(what: str, where: str) -> SourceError:
    return SourceError(
        f"The program holds {what}, which torch never writes.",
        where=where,
        hint="Save the program again with torch.export.save.",
    )


def _check_text(text: str, key: str, where: str) -> int:
    """Refuse a text that is not of the shape that torch writes, and return what it costs to evaluate."""
    cost: int | None = 0
    if key == "expr_str":
        cost = expression_cost(text)
        fine = cost is not None
    elif key == "guards_code":
        fine = is_guard(text)
    elif key in ("target", "as_operator"):
        fine = _TARGET.fullmatch(text) is not None
        if fine and not _is_without_effects(text):
            raise PickleRefusedError(
                f"The program calls {text[:80]}, which is no operator that acts on tensors alone ({key}).",
                where=where,
                hint="If you trust where it comes from, add --trust.",
            )
    elif key in ("in_spec", "out_spec"):
        fine = _is_plain_tree(text)
    else:
        fine = NAME.fullmatch(text) is not None
    if not fine:
        raise _refusal(key, text, where)
    return cost or 0


def _is_without_effects(target: str) -> bool:
    """Return whether what torch calls by this name is an operator that acts on nothing but tensors.

    Most operators go through torch's dispatcher, which lets a program be looked at without being run. Those that only
    TorchScript's interpreter knows do not: they run whoever looks, so that they must be on its list.
    """
    if not target.startswith("torch.ops."):
        return True
    found: Any = torch
    for part in target.split(".")[1:]:
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):  # torch tells which library is missing
            return True
    if isinstance(found, torch._ops.HigherOrderOperator):
        return found.name() not in EFFECTS["higher_order"]
    if not isinstance(found, torch._ops.OpOverload):
        return False
    space, _, name = found._schema.name.partition("::")
    if name in OPERATORS.get(space, ()):
        return True
    if space in EFFECTS and (not EFFECTS[space] or name in EFFECTS[space]):
        return False
    return bool(torch._C._dispatch_has_kernel(found.name()))


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
        elif isinstance(value, str) and not NAME.fullmatch(value):
            return False
    return True


def _refusal(what: str, text: str, where: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"The program holds text that torch would run as code, and does not write itself ({what}: {text[:80]!r}).",
        where=where,
        hint="Save the program again with torch.export.save, or, if you trust where it comes from, add --trust.",
    )
