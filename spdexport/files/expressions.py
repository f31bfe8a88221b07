"""Expressions of sizes, as exported programs hold them: told apart from other code, and measured before they are run.

torch gives the expressions to sympy, which evaluates them and multiplies products of sums out, and runs guards as
Python. Both take as long as an expression asks for: ``10**10**10`` has ten characters. An expression is therefore held
to an upper bound of what it can become: the bits of its value, where every symbol is a size below 2^63, and the terms
that it has when all products are multiplied out.
"""

from __future__ import annotations

import ast
import math
import re
from typing import NamedTuple

# Names of nodes, inputs, parameters, layers ("layer@1" is a second call) and types. No quote, bracket, '=' or space.
NAME = re.compile(r"[\w.$#:/@\-]*")
_IDENTIFIER = re.compile(r"([^\W\d]\w*)?")
_FLOAT = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?|-?inf|nan")
# torch counts up to the largest of its unbacked symbols, one by one.
_ENDLESS_SYMBOL = re.compile(r"[a-z]{1,3}\d{7,}")

_MATH_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.IfExp,
)  # fmt: skip
_GUARD_NODES = (*_MATH_NODES, ast.Attribute, ast.Subscript)
# sympy's own classes, by the names that its printer writes.
_SYMPY = frozenset((
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or",
    "Not", "Xor", "ITE", "Piecewise", "ExprCondPair", "BooleanTrue", "BooleanFalse", "Infinity", "NegativeInfinity",
    "IntInfinity", "NegativeIntInfinity", "Tuple",
))  # fmt: skip
# torch's functions for sympy, and those that its other printer writes.
_TORCH = frozenset((
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "IntTrueDiv", "FloatTrueDiv", "LShift", "RShift", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "FloatPow", "PowByNatural", "Identity", "ceiling", "floor", "sqrt", "log",
    "log2", "exp", "cast_symbool_to_symint_guardless",
))  # fmt: skip
_OPAQUE = ("OpaqueUnaryFn_", "BitwiseFn_")
_BUILTINS = frozenset(("max", "min", "int", "float", "bool", "abs", "round", "not", "and", "or"))
_TENSOR_ATTRIBUTES = frozenset(("size", "stride", "storage_offset", "item", "dim"))

_POWERS = frozenset(("Pow", "PowByNatural", "LShift", "RShift"))
_EXPONENTIALS = frozenset(("exp", "cosh", "sinh"))
_LOGARITHMS = frozenset(("log", "log2"))
_SIZE_BITS = 63
_FLOAT_BITS = 1100
_LENGTH, _NODES, _BITS, _TERMS = 200_000, 20_000, 16_384, 2_000
"""Characters, nodes, bits and terms of one expression."""
_TERM_COST = 200


class _Bound(NamedTuple):
    """What an expression can become at most.

    Attributes:
        bits: Of its value.
        terms: When all is multiplied out.
        constant: Its value, if it is a plain number.
    """

    bits: int
    terms: int
    constant: float | None = None


def expression_cost(text: str) -> int | None:
    """Return what an expression of sizes costs sympy; None if the text is no expression as torch writes them.

    The cube of its depth is about what assumptions about nested functions cost, and its terms are what multiplying out
    does. A program of hundreds of expressions has some hundred thousand in all; ten million take about half a minute.
    """
    return _cost(text, guard=False)


def is_guard(text: str) -> bool:
    """Return whether a text is a guard as torch writes them: an expression of the sizes of inputs, too."""
    return _cost(text, guard=True) is not None


def is_symbol(text: str) -> bool:
    """Return whether a text can be the name of a symbol."""
    return len(text) <= 100 and not _ENDLESS_SYMBOL.fullmatch(text)


def _cost(text: str, *, guard: bool) -> int | None:
    if len(text) > _LENGTH:
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for absurd nesting
        return None
    nodes = list(ast.walk(tree))
    allowed = _GUARD_NODES if guard else _MATH_NODES
    if len(nodes) > _NODES or not all(isinstance(x, allowed) and _is_plain_node(x, guard) for x in nodes):
        return None
    bounds: dict[ast.AST, _Bound] = {}
    depths: dict[ast.AST, int] = {}
    terms = 1
    for node in reversed(nodes):  # from the inside to the outside
        bounds[node] = bound = _bound(node, bounds)
        depths[node] = 1 + max((depths[part] for part in ast.iter_child_nodes(node)), default=0)
        terms = max(terms, bound.terms)
        if bound.bits > _BITS or (bound.terms > _TERMS and not guard):
            return None
    return depths[tree] ** 3 + _TERM_COST * terms


def _is_plain_node(node: ast.AST, guard: bool) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            # The path of an input in a guard, L['x']['key'], may have any key that is a plain name.
            if guard:
                return NAME.fullmatch(text) is not None
            return (_IDENTIFIER.fullmatch(text) is not None and is_symbol(text)) or _FLOAT.fullmatch(text) is not None
        case ast.Constant(value=value):
            return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
        case ast.Name(id=name):
            return not name.startswith("__") and is_symbol(name)
        case ast.Call(func=ast.Name(id="Float"), keywords=keywords):
            return all(
                isinstance(k.value, ast.Constant) and isinstance(k.value.value, int) and k.value.value <= _BITS
                for k in keywords
            )
        case ast.Call(func=ast.Name(id=name)):
            known = name in _SYMPY or name in _TORCH or name.startswith(_OPAQUE)
            return known or (guard and (name[0].isupper() or name in _BUILTINS))
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


def _bound(node: ast.AST, bounds: dict[ast.AST, _Bound]) -> _Bound:
    """The bound of a node by those of its parts."""
    match node:
        case ast.Constant(value=int(number)):
            return _Bound(number.bit_length(), 1, number)
        case ast.Constant(value=value):
            return _Bound(_FLOAT_BITS, 1, _number(value))
        case ast.Name():
            return _Bound(_SIZE_BITS, 1)
        case ast.Subscript(value=value):
            # An entry of an input's sizes; the index is no part of the value.
            return _Bound(max(_SIZE_BITS, bounds[value].bits), 1)
        case ast.UnaryOp(op=op, operand=operand):
            inner = bounds[operand]
            negated = -inner.constant if isinstance(op, ast.USub) and inner.constant is not None else None
            return _Bound(inner.bits, inner.terms, negated)
        case ast.BinOp(left=left, op=op, right=right):
            return _operation(type(op).__name__, [bounds[left], bounds[right]])
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
            if name == "Symbol":
                return _Bound(_SIZE_BITS, 1)
            return _operation(name.removeprefix(_OPAQUE[0]).removeprefix("sym_"), [bounds[arg] for arg in args])
        case _:
            return _atom([bounds[part] for part in ast.iter_child_nodes(node)])


def _operation(name: str, parts: list[_Bound]) -> _Bound:
    bits, terms = [part.bits for part in parts], [part.terms for part in parts]
    if name in ("Integer", "Float") and len(parts) == 1:
        return parts[0]
    if name == "FloatPow":
        return _Bound(_FLOAT_BITS, 1)
    if name in ("Add", "Sub"):
        return _Bound(max(bits, default=0) + len(parts), sum(terms))
    if name in ("Mul", "Mult"):
        return _Bound(sum(bits), _product(terms))
    if (name in _POWERS or name == "pow") and len(parts) == 2:
        base, exponent = parts
        if name in ("LShift", "RShift"):
            base = _Bound(2, 1)
        times = _times(exponent.bits) if exponent.constant is None else _ceiling(exponent.constant)
        shifted = parts[0].bits if name in ("LShift", "RShift") else 0
        exact = exponent.constant is not None
        return _Bound(shifted + base.bits * times, _product([base.terms] * min(times, _BITS)) if exact else 1)
    if name in _EXPONENTIALS and parts:
        return _Bound(2 * _times(parts[0].bits), 1)
    if name in _LOGARITHMS and parts:
        return _Bound(parts[0].bits.bit_length() + 1, 1)
    return _atom(parts)


def _atom(parts: list[_Bound]) -> _Bound:
    """A function that is not multiplied out, and whose value is not greater than its arguments."""
    return _Bound(max((part.bits for part in parts), default=0) + 1, 1)


def _number(value: object) -> float | None:
    """The number that a constant or the text of one is; None if it is none."""
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value if isinstance(value, float) else None


def _ceiling(number: float) -> int:
    """The magnitude of a number, as far as it matters."""
    return math.ceil(min(abs(number), _BITS + 1)) if not math.isnan(number) else 0


def _times(bits: int) -> int:
    """The largest number of so many bits, as far as it matters."""
    return 1 << min(bits, _BITS.bit_length())


def _product(numbers: list[int]) -> int:
    """The product, as far as it matters."""
    result = 1
    for number in numbers:
        result *= number
        if result > _TERMS:
            break
    return result
