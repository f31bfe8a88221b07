"""Named tensors from any file that people keep them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch

from spdexport.arrays import to_torch
from spdexport.files.limits import check_limit
from spdexport.files.npy import native
from spdexport.files.npz import read_npz
from spdexport.files.pickles import load_weights_only
from spdexport.files.reading import reading
from spdexport.files.safetensors_header import check_header
from spdexport.files.sniff import FileKind, read_text, sniff

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.errors import InputError

_KINDS = "safetensors, .npz, JSON ({name: list}), or a dict of tensors written by torch.save"


def read_tensors(path: str | Path, *, error: type[InputError]) -> dict[str, torch.Tensor]:
    """Return the named tensors of a file, on the CPU, told by content; no pickle is executed.

    A JSON list of floats becomes float32, of integers int64, of booleans bool.

    Args:
        path: A safetensors, npz or JSON file, or a dict of tensors, arrays or lists written by torch.save.
        error: The class to raise for a file that is missing, damaged or of another kind.

    Raises:
        PickleRefusedError: The file has pickled objects.
        InputError: Of class ``error``.
    """
    path = Path(path)
    kind = sniff(path, error=error)
    reader = _READERS.get(kind)
    if reader is None:
        raise error(f"Tensors cannot be read from a {kind}.", where=str(path), hint=f"Give {_KINDS}.")
    return reader(path, error)


def _read_safetensors(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    check_header(path, error=error)
    with reading(path, error=error):
        return safetensors.torch.load_file(path)


def _read_npz(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    return {name: _entry(name, value, path, error) for name, value in read_npz(path, error=error)}


def _read_json(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    text = read_text(path, error=error, what="The file is damaged", hint="Copy or write it again.")
    with reading(path, error=error):
        content: object = json.loads(text)
    return _from_mapping(content, path, error)


def _read_torch(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    return _from_mapping(load_weights_only(path, error=error), path, error)


def _from_mapping(content: object, path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise error(
            f"The file holds a {type(content).__name__}, not tensors by name.", where=str(path), hint=f"Give {_KINDS}."
        )
    what = f"The file has {len(content)} tensors"
    check_limit("tensors", len(content), what, where=str(path), error=error)
    result: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise error(f"The name {name!r} is not text.", where=str(path), hint="Use strings as names.")
        if isinstance(value, dict):
            raise error(
                f"{name!r} is a dict, and tensors are expected one level deep.",
                where=str(path),
                hint=f"Write the names in full, such as {name + '.' + str(next(iter(value), 'x'))!r}.",
            )
        result[name] = _entry(name, value, path, error)
    return result


def _entry(name: str, value: object, path: Path, error: type[InputError]) -> torch.Tensor:
    with reading(path, error=error, what=f"{name!r} is not a tensor", hint="Give an array of numbers for it."):
        if not isinstance(value, torch.Tensor):
            return _tensor(value)
        if value.layout is not torch.strided or value.is_quantized:
            raise TypeError("it is sparse or quantized")
        return value.detach()


def _tensor(value: object) -> torch.Tensor:
    """A tensor of an array, or of a nested list or number.

    Raises:
        ValueError: The lists are ragged.
        TypeError: Something in it is not a number, or of a dtype that torch has not.
    """
    if not isinstance(value, np.ndarray | np.generic | list | tuple | float | int):
        raise TypeError(f"a {type(value).__name__} is not an array")
    array = np.asarray(value)
    if array.dtype.kind not in "bifuc" and array.dtype.name != "bfloat16":
        raise TypeError(f"dtype {array.dtype} is not a number")
    tensor = to_torch(native(array))
    # Numbers written as text have no precision of their own; float32 is what models use.
    return tensor.float() if not hasattr(value, "dtype") and tensor.is_floating_point() else tensor


_READERS: dict[FileKind, Callable[[Path, type[InputError]], dict[str, torch.Tensor]]] = {
    FileKind.SAFETENSORS: _read_safetensors,
    FileKind.NPZ: _read_npz,
    FileKind.JSON: _read_json,
    FileKind.TORCH_ZIP: _read_torch,
    FileKind.PICKLE: _read_torch,
}
