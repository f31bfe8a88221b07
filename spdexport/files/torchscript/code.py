"""What the code of a TorchScript archive may do when nobody vouches for it.

All code of the archive is looked at, whether it is reached or not: methods, functions, ``__setstate__``. Every name in
it must be known: a local one, one of the archive's own classes and functions, or an operator without effects. Whatever
else there is, is refused; so is a loop that is known to have no end or too many trips.

What a name is, is decided as torch decides it. ``torch.NAME`` and ``ops.SPACE.NAME`` are operators, and so is the
method NAME of a tensor, text or list; the method of an object is the archive's own code. Where it cannot be told which
of the two a method is, and the operator has effects, it is refused.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import torch

from spdexport.errors import SourceError
from spdexport.files.limits import check_limit
from spdexport.files.torchscript.operators import CLASSES, OPERATORS
from spdexport.files.torchscript.scope import OwnClass, Place, Program, bindings, members_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.files.torchscript.text import Code

_ROOTS = frozenset(("torch", "ops", "CONSTANTS", "__torch__"))
_RESERVED = _ROOTS | {"print"}
_TYPED = frozenset(("annotate", "unchecked_cast", "uninitialized", "isinstance"))
"""Functions that take a type."""
_NAMES = _TYPED | frozenset(
    (
        "AssertionError", "_to_tensor", "abs", "all", "any", "awaitable", "bin", "bool", "chr", "complex", "dict",
        "divmod", "enumerate", "float", "fork", "getattr", "hasattr", "hash", "hex", "id", "inf", "infj", "int", "len",
        "list", "max", "min", "nan", "nanj", "oct", "ord", "pow", "range", "rangelist", "round", "sorted", "str", "sum",
        "tuple", "zip",
    )
)  # fmt: skip
"""The functions and numbers that code knows without a prefix, other than print."""
_BASES = frozenset(("Enum", "Interface", "Module", "ModuleInterface", "NamedTuple"))
_PLAIN = (
    ast.Assert, ast.Assign, ast.AugAssign, ast.BinOp, ast.BoolOp, ast.Break, ast.Call, ast.Compare, ast.Constant,
    ast.Continue, ast.Delete, ast.Dict, ast.Expr, ast.For, ast.If, ast.IfExp, ast.List, ast.ListComp, ast.Pass,
    ast.Raise, ast.Return, ast.Slice, ast.Subscript, ast.Tuple, ast.UnaryOp, ast.While, ast.With, ast.comprehension,
    ast.keyword, ast.withitem, ast.boolop, ast.cmpop, ast.expr_context, ast.operator, ast.unaryop,
)  # fmt: skip
"""What is as harmless as its parts."""


def check_code(codes: Mapping[str, Code], where: Mapping[str, str]) -> frozenset[str]:
    """Make sure that code has no effects but on tensors, whatever part of it runs.

    Args:
        codes: The code by the name of its place, such as ``__torch__.torch.nn.modules.conv``.
        where: The file and member of each.

    Returns:
        The full names of the classes that it defines.

    Raises:
        PickleRefusedError: It uses an operator or a construct that is not known to be without effects.
        SourceError: It has a loop that has no end, or more trips than the limit.
        RecursionError: It is nested too deep.
    """
    classes: dict[str, OwnClass] = {}
    functions: set[str] = set()
    program = Program(classes={}, functions=frozenset())
    for space, code in codes.items():
        place = Place(program=program, code=code, where=where[space])
        for node in code.tree.body:
            if f"{space}.".startswith("__torch__.torch.classes."):
                place.refuse(node, f"a name of torch's own, {space}")  # which means something else to torch
            if isinstance(node, ast.ClassDef):
                name = f"{space}.{node.name}"
                if name in classes:
                    place.refuse(node, f"a second class {node.name}")
                classes[name] = OwnClass(name=name, members=members_of(node, place))
            elif isinstance(node, ast.FunctionDef):
                functions.add(f"{space}.{node.name}")
    program = Program(classes=classes, functions=frozenset(functions))
    for space, code in codes.items():
        place = Place(program=program, code=code, where=where[space])
        for node in code.tree.body:
            match node:
                case ast.ClassDef():
                    _check_class(place, node, f"{space}.{node.name}")
                case ast.FunctionDef():
                    _check_function(place, node)
                case ast.Assign(targets=[ast.Name(id="op_version_set")], value=ast.Constant()):
                    pass  # archives of the first versions begin with it
                case _:
                    _refuse_kind(place, node)
    return frozenset(classes)


def _check_class(place: Place, node: ast.ClassDef, name: str) -> None:
    bases = [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
    if node.decorator_list or node.keywords or not set(bases) <= _BASES or len(bases) > 1:
        place.refuse(node, "a class of another kind")
    for line in node.body:
        match line:
            case ast.FunctionDef():
                _check_function(place, line, owner=name)
            case ast.AnnAssign(target=ast.Name(), annotation=kind, value=value):
                _check_type(place, kind)
                if value is not None:
                    _check(place, value)
            case ast.Assign(targets=[ast.Name()], value=value):
                _check(place, value)
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="__annotations__"))], value=value):
                _check_type(place, value)
            case ast.Pass():
                pass
            case _:
                _refuse_kind(place, line)


def _check_function(place: Place, node: ast.FunctionDef, *, owner: str | None = None) -> None:
    """Check a function, a method, or a function in a function, which knows the names of the one around it."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if node.decorator_list or arguments.vararg or arguments.kwarg:
        place.refuse(node, "a function of another kind")
    types = {**place.types, **{parameter.arg: parameter.annotation for parameter in parameters}}
    if owner is not None and parameters:
        # torch takes the first one as the object, whatever is written there.
        types[parameters[0].arg] = ast.parse(owner, mode="eval").body
    bound = {name: list(values) for name, values in place.bound.items()}
    for name, value in bindings(node):
        bound.setdefault(name, []).append(value)
    for name in (*bound, *types):
        if name in _RESERVED:
            place.refuse(node, f"another meaning of {name}")
    inner = replace(place, bound=bound, types=types)
    for kind in (*(parameter.annotation for parameter in parameters), node.returns):
        if kind is not None:
            _check_type(inner, kind)
    for default in (*arguments.defaults, *arguments.kw_defaults):
        if default is not None:
            _check(place, default)
    for line in node.body:
        _check(inner, line)


def _check(place: Place, node: ast.AST) -> None:
    """Check a statement or an expression, with all of its parts."""
    match node:
        case ast.Name(ctx=ast.Load()):
            _check_name(place, node)
            return
        case ast.Name():
            return
        case ast.Attribute():
            _check_attribute(place, node)
            return
        case ast.Call(func=ast.Name(id=name), args=[value, kind]) if name == "isinstance":
            _check(place, value)
            _check_type(place, kind)
            return
        case ast.Call(func=ast.Name(id=name), args=[kind, *values]) if name in _TYPED:
            _check_type(place, kind)
            for value in values:
                _check(place, value)
            return
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Name(id=key)]) if key in place.code.literals:
            _check(place, value)
            _check_member(place, node, value, place.name_in(node, key))
            return
        case ast.Call(func=ast.Name(id="getattr")):
            place.refuse(node, "getattr of a name that is not written out")
        case ast.FunctionDef():
            _check_function(place, node)
            return
        case ast.AnnAssign():
            _check_type(place, node.annotation)
            _check(place, node.target)
            if node.value is not None:
                _check(place, node.value)
            return
        case ast.For() | ast.While():
            _check_loop(place, node)
        case _ if not isinstance(node, _PLAIN):
            _refuse_kind(place, node)
    for part in ast.iter_child_nodes(node):
        _check(place, part)


def _check_name(place: Place, node: ast.Name) -> None:
    name = node.id
    if name in place.code.literals or name in place.bound or name in place.types or name in _NAMES:
        return
    place.refuse(node, name if name == "print" else f"the name {place.code.word(name)}")


def _check_attribute(place: Place, node: ast.Attribute) -> None:
    path = place.path(node) or ""
    match path.split("."):
        case ["torch", name]:
            _check_operator(place, node, "aten", name)
        case ["torch", "autograd", "grad"]:
            pass
        case ["ops", space, name]:
            _check_operator(place, node, space, name)
        case ["CONSTANTS", _]:
            pass
        case ["__torch__", *_]:
            _check_own(place, node, path)
        case [root, *_] if root in _ROOTS:
            place.refuse(node, path)
        case _:
            if isinstance(node.ctx, ast.Load):
                _check_member(place, node, node.value, place.code.word(node.attr))
            _check(place, node.value)


def _check_operator(place: Place, node: ast.AST, space: str, name: str) -> None:
    if name not in OPERATORS.get(space, ()):
        place.refuse(node, f"the operator {space}::{name}")


def _check_member(place: Place, node: ast.AST, value: ast.expr, name: str) -> None:
    """Check a field or method: where it may be an operator, that one has no effects or the object has such a member."""
    if name in OPERATORS["aten"] or not torch._C._jit_get_schemas_for_operator(f"aten::{name}"):
        return
    owner = place.class_of(value)
    if owner is None or name not in owner.members:
        place.refuse(node, f"the operator aten::{name} as a method")


def _check_own(place: Place, node: ast.AST, name: str) -> None:
    """Check a full name: a function or class of the archive, a value of an enumeration, or a class of torch's own."""
    if name in place.program.functions or name in place.program.classes or name in CLASSES:
        return
    before, _, last = name.rpartition(".")
    found = place.program.classes.get(before)
    if found is None or (last != "__new__" and found.members.get(last, node) is not None):
        place.refuse(node, f"{name}, which it does not define")


def _check_type(place: Place, node: ast.AST) -> None:
    """Check a type: names, and classes of the archive."""
    match node:
        case ast.Attribute():
            name = place.path(node) or ""
            if name not in place.program.classes and name not in CLASSES:
                place.refuse(node, f"the type {name or ast.unparse(node)}, which it does not define")
            return
        case ast.Name(id=name) if name in _RESERVED:
            place.refuse(node, f"{name} as a type")
        case ast.Name() | ast.Subscript() | ast.Tuple() | ast.List() | ast.Constant() | ast.expr_context():
            pass
        case _:
            _refuse_kind(place, node)
    for part in ast.iter_child_nodes(node):
        _check_type(place, part)


def _check_loop(place: Place, node: ast.For | ast.While) -> None:
    """Refuse a loop that is known to have no end, or more trips than the limit; of others nothing is known here."""
    if any(map(_leads_out, ast.walk(node))):
        return
    where = place.at(node)
    counted: range | None = None
    match node:
        case ast.While(test=test) if place.always(test):
            raise SourceError("A loop of the archive's code never ends.", where=where, hint="Save a model that does.")
        case ast.While(test=ast.Name(id=test)):
            counted = _counted(place, node, test)
        case ast.For(iter=ast.Call(func=ast.Name(id="range"), args=args)):
            bounds = [place.number(bound) for bound in args]
            known = [bound for bound in bounds if bound is not None]
            if 1 <= len(known) == len(bounds) <= 3 and (len(known) < 3 or known[2] != 0):
                counted = range(*known)
    if counted is not None:
        trips = max(0, -((counted.start - counted.stop) // counted.step))
        what = f"A loop of the archive's code makes {trips} trips"
        check_limit("trips", trips, what, where=where, error=SourceError)


def _counted(place: Place, loop: ast.While, test: str) -> range | None:
    """Return what a loop counts through, as torch writes ``while i < N: i += K``; None for a loop that does not."""
    inside = {id(value) for _, value in bindings(loop) if value is not None}

    def bound(name: str, *, within: bool) -> ast.expr | None:
        values = [v for v in place.bound.get(name, []) if (id(v) in inside) is within]
        return values[0] if len(values) == 1 and name not in place.types else None

    match bound(test, within=True):
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=compare), args=[ast.Name(id=after), end]):
            pass
        case _:
            return None
    match bound(after, within=True):
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="add"), args=[ast.Name(id=counter), step]):
            pass
        case _:
            return None
    match bound(counter, within=True):
        case ast.Name(id=name) if name == after:
            pass
        case _:
            return None
    start, stop, by = (place.number(value) for value in (bound(counter, within=False), end, step))
    if start is None or stop is None or not by:
        return None
    past = {("lt", True): 0, ("le", True): 1, ("gt", False): 0, ("ge", False): -1}.get((compare, by > 0))
    return None if past is None else range(start, stop + past, by)


def _leads_out(node: ast.AST) -> bool:
    return isinstance(node, ast.Break | ast.Return | ast.Raise) or (
        isinstance(node, ast.Attribute) and node.attr == "RaiseException"
    )


def _refuse_kind(place: Place, node: ast.AST) -> NoReturn:
    place.refuse(node, f"a construct that torch does not write ({type(node).__name__})")
