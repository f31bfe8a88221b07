"""The pickles of a TorchScript archive, read as torch's C++ unpickler reads them, and checked before it does.

``data.pkl`` holds the module and ``constants.pkl`` the constants of its code. torch's unpickler calls no Python, but it
makes objects of whatever class a pickle names, C++ classes that do things among them; it takes the size of a tensor
from the pickle and its bytes from another member, and does not compare the two; and it follows objects that hold
themselves until the stack ends. So the pickle is taken apart here first, by the few operations that torch writes, and
what is not a tensor, a container, a number, a text or an object of the archive's own classes is refused.
"""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.errors import PickleRefusedError, SourceError
from spdexport.files.torchscript.operators import CLASSES
from spdexport.files.torchscript.scope import HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DEPTH = 500
"""How deep values may hold each other; modules of modules are some ten deep, and torch's own reader is recursive."""

_DAMAGED = "Save it again with torch.jit.save."

_STORAGES = {
    "Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Int": 4, "Long": 8, "Half": 2, "BFloat16": 2, "Float": 4, "Double": 8,
    "ComplexHalf": 4, "ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "UInt16": 2,
    "UInt32": 4, "UInt64": 8, "Float8_e5m2": 1, "Float8_e4m3fn": 1, "Float8_e5m2fnuz": 1, "Float8_e4m3fnuz": 1,
    "Float8_e8m0fnu": 1, "QUInt4x2": 1, "QUInt2x4": 1,
}  # fmt: skip
"""Bytes of an element of each kind of storage."""

_PACKED = {"QUInt4x2": 2, "QUInt2x4": 4}
"""How many numbers share an element."""

_PLAIN = frozenset(
    (
        "torch.jit._pickle build_intlist",
        "torch.jit._pickle build_boollist",
        "torch.jit._pickle build_doublelist",
        "torch.jit._pickle build_tensorlist",
        "torch.jit._pickle restore_type_tag",
        "collections OrderedDict",
        "builtins complex",
        "torch device",
        "torch per_tensor_affine",
        "torch per_channel_affine",
        "torch per_channel_affine_float_qparams",
    )
)
"""What torch's unpickler knows by name and what only makes a container, a number or the kind of a tensor."""

_DENSE = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_qtensor")
_CLASS_NAME = re.compile(r"__torch__\.[\w.]+")


@dataclass(frozen=True, slots=True)
class _Name:
    """What GLOBAL pushes: a class or function, by its name, "module name"."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes of another member, as elements of a kind, several numbers of which may share one."""

    member: str
    kind: str
    elements: int


@dataclass(slots=True, eq=False)
class _Value:
    """Any value that holds others: a container, an object, or the result of a call."""

    parts: list[Any]


@dataclass(slots=True, eq=False)
class _Tensor(_Value):
    """A dense tensor; ``parts`` is what is said of it beside its elements."""

    storage: _Storage
    offset: int
    sizes: list[int]
    strides: list[int]


class _Mark:
    """What MARK pushes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleSource:
    """Where a pickle stands, and what it may refer to.

    Attributes:
        where: The file and member, for messages.
        folder: The members that hold the bytes of its tensors, ``data/`` or ``constants/``, with all before it.
        sizes: The sizes of the archive's members in bytes.
        classes: The names of the classes that the archive's own code defines.
        read: Returns the bytes of a member.
        byte_order: ``little`` or ``big``, of the numbers in these bytes.
    """

    where: str
    folder: str
    sizes: Mapping[str, int]
    classes: frozenset[str]
    read: Callable[[str], bytes]
    byte_order: str = "little"


def check_values(content: bytes, source: PickleSource) -> frozenset[str]:
    """Make sure that a pickle of an archive holds nothing but data, and that its tensors lie inside of their bytes.

    Returns:
        The members with the bytes of its tensors.

    Raises:
        PickleRefusedError: It holds something else, or values that hold themselves.
        SourceError: It is damaged.
    """
    machine = _Machine(source)
    try:
        for operation, argument, _ in pickletools.genops(content):
            step = _STEPS.get(operation.name)
            if step is None:
                raise _refused(source, f"the pickle operation {operation.name}")
            step(machine, argument)
        (result,) = machine.stack
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as exc:
        raise SourceError(f"The pickle is damaged: {exc}.", where=source.where, hint=_DAMAGED) from exc
    _check_shape(result, source)
    return frozenset(machine.members)


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, source: PickleSource) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.members: set[str] = set()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """Take what was pushed since the last mark off the stack, and the mark."""
        for start in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[start], _Mark):
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise ValueError("a mark is missing")

    def extend(self, values: Sequence[Any]) -> None:
        """Put values into the container on top of the stack."""
        self.stack[-1].parts.extend(values)

    def remember(self, index: int) -> None:
        # torch makes room for the index that is named: one that is far off asks for memory.
        if index > len(self.memo):
            raise ValueError(f"the memo has {len(self.memo)} entries, and {index} is named")
        self.memo[index] = self.stack[-1]

    def name(self, argument: str) -> None:
        """GLOBAL: a class or function."""
        module, _, name = argument.partition(" ")
        kind = name.removesuffix("Storage")
        known = argument in _PLAIN or argument in _DENSE or (module == "torch" and kind in _STORAGES)
        if not known and argument != "torch._utils _rebuild_sparse_tensor":
            _check_class(f"{module}.{name}", self.source)
        self.push(_Name(argument))

    def call(self) -> None:
        """REDUCE: what a name makes of its arguments. Those of an enumeration are no tuple."""
        arguments, function = self.stack.pop(), self.stack.pop()
        match function:
            case _Name(name="torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_qtensor"):
                self.push(_tensor(arguments.parts))
            case _Name(name="torch._utils _rebuild_sparse_tensor"):
                _check_sparse(arguments.parts, self.source)
                self.push(_Value(arguments.parts))
            case _Name(name="torch.jit._pickle restore_type_tag"):
                for found in _CLASS_NAME.findall(arguments.parts[1]):
                    _check_class(found, self.source)
                self.push(_Value(arguments.parts[:1]))
            case _Name():
                self.push(_Value([arguments]))
            case _:
                raise ValueError("something is called that has no name")

    def build(self) -> None:
        """BUILD: the state of an object."""
        state = self.stack.pop()
        self.extend([state])

    def make(self) -> None:
        """NEWOBJ: an object without its state."""
        arguments, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, _Name) or arguments.parts:
            raise ValueError("an object is made of something that is no class")
        self.push(_Value([]))

    def storage(self) -> None:
        """BINPERSID: the bytes of a tensor."""
        _, kind, key, _, elements = self.stack.pop().parts
        name = kind.name.removeprefix("torch ").removesuffix("Storage")
        member = f"{self.source.folder}{key}"
        if member not in self.source.sizes:
            raise ValueError(f"the bytes of a tensor are missing, {member}")
        if not 0 <= elements * _STORAGES[name] <= self.source.sizes[member]:
            size = self.source.sizes[member]
            raise ValueError(f"a tensor says that {member}, of {size} bytes, holds {elements} elements of {name}")
        self.members.add(member)
        self.push(_Storage(member, name, elements))


def _tensor(arguments: Sequence[Any]) -> _Tensor:
    """A dense tensor, whose every element is one of its storage's."""
    storage, offset, lengths, steps, *rest = arguments
    sizes, strides = lengths.parts, steps.parts
    if not isinstance(storage, _Storage) or len(sizes) != len(strides):
        raise ValueError("a tensor is not made of a storage, sizes and strides")
    if any(type(number) is not int or number < 0 for number in (offset, *sizes, *strides)):
        raise ValueError("a tensor has sizes or strides that are no numbers of at least 0")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and last >= storage.elements * _PACKED.get(storage.kind, 1):
        raise ValueError(f"a tensor of sizes {sizes} reaches beyond its {storage.elements} elements")
    return _Tensor(rest, storage, offset, sizes, strides)


def _check_sparse(arguments: Sequence[Any], source: PickleSource) -> None:
    """Make sure that the indices of a sparse tensor, which torch believes, lie inside of it."""
    _, lengths, _, indices, values, *_ = arguments
    sizes = lengths.parts
    axes, count = indices.sizes
    bytes_ = 8 * math.prod(indices.sizes)
    if indices.storage.kind != "Long" or bytes_ > source.sizes[indices.storage.member] or axes > len(sizes):
        raise ValueError("a sparse tensor has no proper indices")
    if values.sizes != [count, *sizes[axes:]]:
        raise ValueError(f"a sparse tensor of {count} indices and sizes {sizes} has values of sizes {values.sizes}")
    found: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.ndarray(
        (axes, count),
        np.dtype(np.int64).newbyteorder("<" if source.byte_order == "little" else ">"),
        source.read(indices.storage.member),
        8 * indices.offset,
        tuple(8 * stride for stride in indices.strides),
    )
    if (found < 0).any() or (found >= np.array(sizes[:axes], np.int64)[:, None]).any():
        raise ValueError("a sparse tensor has indices beyond its sizes")


def _check_class(name: str, source: PickleSource) -> None:
    if name not in source.classes and name not in CLASSES:
        raise _refused(source, f"{name}, which the archive does not define")


def _check_shape(value: Any, source: PickleSource) -> None:
    """Refuse values that hold themselves, or each other too deep."""
    open_: set[int] = set()
    done: set[int] = set()
    todo: list[tuple[Any, bool]] = [(value, False)]
    while todo:
        found, leave = todo.pop()
        if leave:
            open_.remove(id(found))
            done.add(id(found))
            continue
        if not isinstance(found, _Value) or id(found) in done:
            continue
        if id(found) in open_:
            raise _refused(source, "an object that holds itself")
        open_.add(id(found))
        if len(open_) > _DEPTH:
            raise _refused(source, f"values that hold each other more than {_DEPTH} deep")
        todo.append((found, True))
        todo.extend((part, False) for part in found.parts)


def _refused(source: PickleSource, what: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"The archive holds something else than tensors and plain data: {what}.", where=source.where, hint=HINT
    )


def _fixed(value: object) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _container(machine: _Machine, _: Any) -> None:
    machine.push(_Value([]))


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = machine.stack[-count:]
        if len(values) < count:
            raise ValueError("a tuple is cut off")
        del machine.stack[-count:]
        machine.push(_Value(values))

    return step


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda *_: None,
    "STOP": lambda *_: None,
    "MARK": lambda machine, _: machine.push(_Mark()),
    "NONE": _fixed(None),
    "NEWTRUE": _fixed(True),
    "NEWFALSE": _fixed(False),
    "BININT": _argument,
    "BININT1": _argument,
    "BININT2": _argument,
    "LONG1": _argument,
    "BINFLOAT": _argument,
    "BINUNICODE": _argument,
    "EMPTY_TUPLE": _container,
    "EMPTY_LIST": _container,
    "EMPTY_DICT": _container,
    "TUPLE": lambda machine, _: machine.push(_Value(machine.marked())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEMS": lambda machine, _: machine.extend(machine.marked()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, argument: machine.name(argument),
    "NEWOBJ": lambda machine, _: machine.make(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}
"""What torch's pickler writes; anything else was not written by it."""
