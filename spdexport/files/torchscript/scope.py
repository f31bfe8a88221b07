"""What the names in the code of a TorchScript archive stand for: its classes and functions, and local values."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from spdexport.errors import PickleRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.files.torchscript.text import Code

HINT = "If you trust where the file comes from, add --trust."

_BEYOND = 1 << 64
"""Greater than any integer that torch knows."""

_STEPS = 20
"""How many steps are taken to find out what class a value is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnClass:
    """A class of the archive.

    Attributes:
        name: Its full name.
        members: The types of its fields and the results of its methods, by name; None for the values of an enumeration.
    """

    name: str
    members: Mapping[str, ast.expr | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """All that the code of an archive defines, by full name."""

    classes: Mapping[str, OwnClass]
    functions: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A module, class or function, and what is known in it.

    Attributes:
        program: What the archive defines.
        code: The member.
        where: The file and member, for messages.
        bound: What its local names are bound to, each time; None for what is not written out.
        types: The types of its parameters.
    """

    program: Program
    code: Code
    where: str
    bound: Mapping[str, list[ast.expr | None]] = field(default_factory=dict)
    types: Mapping[str, ast.expr | None] = field(default_factory=dict)

    def at(self, node: ast.AST) -> str:
        """Return where a part of the code stands, with its line."""
        line = getattr(node, "lineno", None)
        return self.where if line is None else f"{self.where}, line {line}"

    def refuse(self, node: ast.AST, what: str) -> NoReturn:
        """Refuse a part of the code.

        Raises:
            PickleRefusedError: Always.
        """
        raise PickleRefusedError(
            f"The archive's code uses {what}; only what is known to have no effects runs without trust.",
            where=self.at(node),
            hint=HINT,
        )

    def name_in(self, node: ast.AST, literal: str) -> str:
        """Return the name of a field or part that a literal holds.

        Raises:
            PickleRefusedError: It is escaped: torch writes names into the source of programs without escaping them.
        """
        name = self.code.string(literal)
        if name is None or "\\" in name:
            self.refuse(node, f"a name that is not plainly written ({name})")
        return name

    def path(self, node: ast.expr | None) -> str | None:
        """Return ``a.b.c`` as it stands in the text, or None for another expression."""
        match node:
            case ast.Name(id=name):
                return self.code.word(name)
            case ast.Attribute(value=value, attr=name):
                before = self.path(value)
                return None if before is None else f"{before}.{self.code.word(name)}"
        return None

    def class_of(self, node: ast.expr | None, steps: int = _STEPS) -> OwnClass | None:
        """Return the class of the archive that a value is known to be an object of, or None."""
        if node is None or steps == 0:
            return None
        match node:
            case ast.Name(id=name) if name in self.types and name not in self.bound:
                return self._named(self.types[name])
            case ast.Name(id=name) if name not in self.types and len(self.bound.get(name, [])) == 1:
                return self.class_of(self.bound[name][0], steps - 1)
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Name(id=key)]):
                owner, member = self.class_of(value, steps - 1), self.code.string(key)
            case ast.Call(func=ast.Attribute(value=value, attr="__new__")):
                return self._named(value)
            case ast.Call(func=ast.Attribute(value=value, attr=name)) | ast.Attribute(value=value, attr=name):
                owner, member = self.class_of(value, steps - 1), self.code.word(name)
            case _:
                return None
        return None if owner is None or member is None else self._named(owner.members.get(member))

    def _named(self, kind: ast.expr | None) -> OwnClass | None:
        return self.program.classes.get(self.path(kind) or "")

    def number(self, node: ast.expr | None) -> int | None:
        """Return the integer that an expression is known to be, or None."""
        match node:
            case ast.Constant(value=int(value)) if value < _BEYOND:
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if value < _BEYOND:
                return -value
            case ast.Name(id=name) if name not in self.types and len(self.bound.get(name, [])) == 1:
                (value_of,) = self.bound[name]
                return None if isinstance(value_of, ast.Name) else self.number(value_of)
        return None

    def always(self, condition: ast.expr) -> bool:
        """Return whether a condition is known to hold whenever it is asked."""
        match condition:
            case ast.Constant(value=value):
                return bool(value)
            case ast.Name(id=name) if name not in self.types:
                values = self.bound.get(name, [])
                return bool(values) and all(isinstance(value, ast.Constant) and value.value is True for value in values)
        return False


def members_of(node: ast.ClassDef, place: Place) -> dict[str, ast.expr | None]:
    """Return the members of a class, as ``OwnClass`` has them.

    Raises:
        PickleRefusedError: Two of them have one name.
    """
    members: dict[str, ast.expr | None] = {}
    for line in node.body:
        kind: ast.expr | None
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
                pass
            case ast.FunctionDef(name=name, returns=kind):
                pass
            case ast.Assign(targets=[ast.Name(id=name)]):
                kind = None
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="__annotations__"), slice=ast.Name(id=key))]):
                # Names that are no identifiers, such as the numbers of a list's modules.
                name, kind = place.name_in(line, key), line.value
            case _:
                continue
        name = place.code.word(name)
        if name in members:
            place.refuse(line, f"a second {name} in one class")
        members[name] = kind
    return members


def bindings(function: ast.FunctionDef | ast.While) -> Iterator[tuple[str, ast.expr | None]]:
    """Return the names that are bound anywhere in a function or loop, and to what where it is written."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from _assigned(target, value)
            case ast.For(target=target) | ast.comprehension(target=target) | ast.AugAssign(target=target):
                yield from _assigned(target, None)
            case ast.withitem(optional_vars=ast.expr() as target):
                yield from _assigned(target, None)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, None
            case ast.FunctionDef(name=name) if node is not function:
                yield name, None


def _assigned(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    match target, value:
        case ast.Name(id=name), _:
            yield name, value
        case ((ast.Tuple(elts=parts) | ast.List(elts=parts)), ast.Tuple(elts=values)) if len(parts) == len(values):
            for part, its in zip(parts, values, strict=True):
                yield from _assigned(part, its)
        case ((ast.Tuple(elts=parts) | ast.List(elts=parts)), _):
            for part in parts:
                yield from _assigned(part, None)
