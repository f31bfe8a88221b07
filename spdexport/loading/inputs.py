"""Example inputs: from shapes on the command line, from a file, or from a factory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from spdexport.arrays import to_torch
from spdexport.errors import ExampleInputError, UsageError
from spdexport.files.npy import read_npy
from spdexport.files.pickles import load_weights_only
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff
from spdexport.files.tensors import read_tensors
from spdexport.loading.model import LABELS, ExampleInputs, named_tensors
from spdexport.names import count, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spdexport.conv import Array

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
_SHAPE = re.compile(r"(?:(?P<name>[^=:]*)=)?(?P<shape>[^=:]*)(?::(?P<dtype>[^=:]*))?")
_SIZES = re.compile(r"\d{1,12}(x\d{1,12})*")
_LARGEST = 2**36
"""Values of the largest tensor that is made of a shape."""
_POSITION = re.compile(r"(?:arg_?)?(\d+)")
COMPUTED, EXPECTED = "output:", "reference:"
"""What names begin with in a file of ``--repro``, which holds outputs beside the inputs: they are no inputs."""
SHAPE = "--input-shape"
"""The origin of inputs that were made of shapes."""
_EXAMPLE = "For example --input-shape 2x3x32x32, or tokens=2x16:int64; a scalar is 'scalar'."


def parse_input_shape(text: str) -> tuple[str | None, tuple[int, ...], torch.dtype]:
    """Read ``[NAME=]SIZExSIZE...[:dtype]``, such as ``2x3x32x32`` or ``tokens=2x16:int64``.

    ``scalar`` in place of the sizes means a tensor without axes; the dtype is float32 if not given.

    Raises:
        UsageError: The text has not this form.
    """
    where = f"--input-shape {text}"
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise UsageError("The shape is not of the form [NAME=]2x3x32x32[:dtype].", where=where, hint=_EXAMPLE)
    name, sizes, dtype = match.group("name", "shape", "dtype")
    if name is not None and not name.isidentifier():
        raise UsageError(f"{name!r} is not the name of an argument.", where=where, hint=_EXAMPLE)
    if sizes != "scalar" and not _SIZES.fullmatch(sizes):
        raise UsageError(f"{sizes!r} is not a shape: sizes joined by 'x' are.", where=where, hint=_EXAMPLE)
    shape = () if sizes == "scalar" else tuple(int(size) for size in sizes.split("x"))
    if 0 in shape:
        raise UsageError("A size is 0.", where=where, hint="Give sizes of at least 1.")
    if math.prod(shape) > _LARGEST:
        raise UsageError(f"A tensor of {math.prod(shape)} values is too large.", where=where, hint=_EXAMPLE)
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"{dtype!r} is not a dtype.", where=where, hint=f"Use one of {', '.join(_DTYPES)}.")
    return name, shape, _DTYPES[dtype or "float32"]


def inputs_from_shapes(texts: Sequence[str], seed: int) -> ExampleInputs:
    """Random inputs of the given shapes: those without a name positional in their order, those with one by keyword.

    Floats are drawn from a standard normal; integers and booleans are 0 or 1, which is a valid index into any
    embedding of two rows.

    Raises:
        UsageError: A text cannot be read, or a name appears twice.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        name, shape, dtype = parse_input_shape(text)
        if name in kwargs:
            raise UsageError(f"The input {name!r} is given twice.", where=f"--input-shape {text}", hint="Remove one.")
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            value = torch.randn(shape, generator=generator, dtype=wide).to(dtype)
        else:
            value = torch.randint(0, 2, shape, generator=generator).to(dtype)
        if name is None:
            args.append(value)
        else:
            kwargs[name] = value
    return ExampleInputs(args=tuple(args), kwargs=kwargs, origin=SHAPE)


def check_shapes(inputs: ExampleInputs, texts: Sequence[str]) -> None:
    """Refuse shapes that are given beside inputs and are not theirs; a dtype counts where it is written.

    A shape without a name is that of the next input, one with a name that of the input called so, or of the only one.

    Raises:
        UsageError: A text cannot be read, or says something else than the inputs.
    """
    tensors = inputs.tensors()
    named = named_tensors(inputs.kwargs)
    nameless = iter(tensors)
    for text in texts:
        name, shape, dtype = parse_input_shape(text)
        tensor = next(nameless, None) if name is None else named.get(name, tensors[0] if len(tensors) == 1 else None)
        if tensor is None:
            held = f"no input {name!r}" if name is not None else f"{count(len(tensors), 'input')} only"
            raise _contradiction(f"The inputs have {held}", text)
        if tuple(tensor.shape) != shape or (dtype != tensor.dtype and text.rpartition(":")[1]):
            raise _contradiction(f"The inputs hold a tensor of {_described(tensor)}", text)


def _contradiction(what: str, text: str) -> UsageError:
    return UsageError(
        f"{what}, and --input-shape says {text}.",
        where="--inputs and --input-shape",
        hint="Leave --input-shape out: the inputs tell their shapes.",
    )


def _described(tensor: torch.Tensor) -> str:
    return f"{shape_of(tensor.shape)}:{str(tensor.dtype).removeprefix('torch.')}"


def inputs_from_file(path: Path) -> ExampleInputs:
    """Return inputs from a safetensors, npz, JSON or weights-only torch.save file.

    The rule: names ``0``, ``1``, ... or ``arg_0``, ``arg_1``, ... are positions, all other names are keywords.
    A file with a single tensor gives one positional input, whatever its name. Names that begin with ``output:`` or
    ``reference:`` are those of outputs, which ``--repro`` saves beside the inputs, and are left out. A .npy file is one
    positional input, and torch.save may have held a tensor, or a tuple of them, which are positional. A tensor
    ``labels`` beside others is set apart: whether it is an input, the model tells.

    Raises:
        ExampleInputError: The file cannot be read, is empty, or its positions have a gap.
    """
    where = str(path)
    kind = sniff(path, error=ExampleInputError)
    if kind is FileKind.NPY:
        return as_example_inputs(read_npy(path, error=ExampleInputError), where)
    if kind in (FileKind.TORCH_ZIP, FileKind.PICKLE):
        content = load_weights_only(path, error=ExampleInputError)
        if not isinstance(content, Mapping):
            return as_example_inputs(content, where)
    tensors = read_tensors(path, error=ExampleInputError)
    tensors = {name: value for name, value in tensors.items() if not name.startswith((COMPUTED, EXPECTED))}
    if not tensors:
        raise ExampleInputError("The file holds no tensors.", where=where, hint="Save the inputs by name.")
    return inputs_by_name(tensors, where)


def inputs_by_name(named: Mapping[str, torch.Tensor], where: str) -> ExampleInputs:
    """Return inputs from tensors by name, by the rule of ``inputs_from_file``.

    Raises:
        ExampleInputError: The positions among the names have a gap.
    """
    tensors = dict(named)
    labels = tensors.pop(LABELS, None) if len(tensors) > 1 else None
    if len(tensors) == 1:
        return ExampleInputs(args=tuple(tensors.values()), origin=where, labels=labels)
    positions: dict[int, torch.Tensor] = {}
    kwargs: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        match = _POSITION.fullmatch(name)
        if match is None:
            kwargs[name] = value
        elif int(match[1]) in positions:
            raise ExampleInputError(f"Position {match[1]} is there twice.", where=where, hint="Remove one of the two.")
        else:
            positions[int(match[1])] = value
    if sorted(positions) != list(range(len(positions))):
        raise ExampleInputError(
            f"The positions {', '.join(map(str, sorted(positions)))} have a gap.",
            where=where,
            hint="Count the positional inputs from 0.",
        )
    args = tuple(positions[i] for i in range(len(positions)))
    return ExampleInputs(args=args, kwargs=kwargs, origin=where, labels=labels)


def as_example_inputs(obj: object, origin: str) -> ExampleInputs:
    """Example inputs as code gives them: a tensor, a tuple or list (positional), a dict (by keyword), or (tuple, dict).

    Each input may be a tensor, or nested: a list, tuple, dict or other pytree of tensors, with None, numbers and texts
    among them. Numpy arrays count as tensors. A module that takes a list and a dict by position is given
    ``((list, dict), {})``.

    Raises:
        ExampleInputError: There is something else in it.
    """
    if isinstance(obj, ExampleInputs):
        return obj
    if isinstance(obj, torch.Tensor | np.ndarray):
        return ExampleInputs(args=(_as_input(obj, "the input", origin),), origin=origin)
    if isinstance(obj, Mapping):
        kwargs = {str(name): _as_input(value, f"input {name!r}", origin) for name, value in obj.items()}
        return ExampleInputs(kwargs=kwargs, origin=origin)
    if isinstance(obj, tuple | list):
        if len(obj) == 2 and isinstance(obj[0], tuple | list) and isinstance(obj[1], Mapping):
            args = tuple(_as_input(value, f"input {i}", origin) for i, value in enumerate(obj[0]))
            return ExampleInputs(args=args, kwargs=as_example_inputs(obj[1], origin).kwargs, origin=origin)
        values = tuple(_as_input(value, f"input {i}", origin) for i, value in enumerate(obj))
        return ExampleInputs(args=values, origin=origin)
    raise _not_a_tensor("what is given", obj, origin)


def _as_input(value: object, what: str, origin: str) -> Any:
    """The input with arrays as tensors, at any depth."""
    leaves, structure = pytree.tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        return _as_leaf(value, what, origin)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(value)[0]]
    found = [_as_leaf(leaf, what + path, origin) for leaf, path in zip(leaves, paths, strict=True)]
    return pytree.tree_unflatten(found, structure)


def _as_leaf(value: object, what: str, origin: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        try:
            return to_torch(value)
        except TypeError:
            raise _not_a_tensor(what, value, origin) from None
    if not isinstance(value, torch.Tensor):
        raise _not_a_tensor(what, value, origin)
    return value.detach()


def _not_a_tensor(what: str, value: object, origin: str) -> ExampleInputError:
    kind = f"{type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return ExampleInputError(
        f"{what[0].upper()}{what[1:]} is of type {kind}, not a tensor.",
        where=origin,
        hint="Give a tensor, a tuple of tensors, or a dict of tensors by argument name.",
    )


def inputs_from_arrays(batch: Mapping[str, Array], origin: str) -> ExampleInputs:
    """Return some samples as the example inputs of a model, with which it is traced and checked.

    Raises:
        ExampleInputError: An array is of a type that torch has not.
    """
    hint = "Save arrays of numbers, of a type that torch has too."
    with reading(origin, error=ExampleInputError, what="The data cannot be the inputs of a model", hint=hint):
        return inputs_by_name({name: to_torch(array) for name, array in batch.items()}, origin)
