"""Named tensors from any file that people keep them in."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from spdexport.arrays import to_torch
from spdexport.files.npz import read_npz
from spdexport.files.pickles import load_weights_only
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.errors import InputError

_KINDS = "safetensors, .npz, JSON ({name: list}), or a dict of tensors written by torch.save"


def read_tensors(path: str | Path, *, error: type[InputError]) -> dict[str, torch.Tensor]:
    """The named tensors of a file, on the CPU, told by content; no pickle is executed.

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
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError) as exc:  # KeyError: a dtype that torch has not
        raise _damaged(path, exc, error) from exc


def _read_npz(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    try:
        result = {}
        for name, value in read_npz(path):
            try:
                result[name] = _tensor(value)
            except (ValueError, TypeError) as exc:
                raise _bad_entry(path, name, exc, error) from exc
        return result
    except ValueError as exc:
        name, what = exc.args
        raise _bad_entry(path, name, ValueError(what), error) from exc
    except (zipfile.BadZipFile, OSError, EOFError) as exc:
        raise _damaged(path, exc, error) from exc


def _read_json(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as exc:
        raise _damaged(path, exc, error) from exc
    return _from_mapping(content, path, error)


def _read_torch(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    return _from_mapping(load_weights_only(path, error=error), path, error)


def _from_mapping(content: object, path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise error(
            f"The file holds a {type(content).__name__}, not tensors by name.", where=str(path), hint=f"Give {_KINDS}."
        )
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
        try:
            result[name] = value.detach() if isinstance(value, torch.Tensor) else _tensor(value)
        except (ValueError, TypeError, OverflowError) as exc:
            raise _bad_entry(path, name, exc, error) from exc
    return result


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
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    tensor = to_torch(array)
    # Numbers written as text have no precision of their own; float32 is what models use.
    return tensor.float() if not hasattr(value, "dtype") and tensor.is_floating_point() else tensor


def _damaged(path: Path, exc: Exception, error: type[InputError]) -> InputError:
    return error(f"The file is damaged: {exc}".splitlines()[0], where=str(path), hint="Copy or write it again.")


def _bad_entry(path: Path, name: str, exc: Exception, error: type[InputError]) -> InputError:
    return error(
        f"{name!r} is not a tensor: {exc}".splitlines()[0], where=str(path), hint="Give an array of numbers for it."
    )


_READERS: dict[FileKind, Callable[[Path, type[InputError]], dict[str, torch.Tensor]]] = {
    FileKind.SAFETENSORS: _read_safetensors,
    FileKind.NPZ: _read_npz,
    FileKind.JSON: _read_json,
    FileKind.TORCH_ZIP: _read_torch,
    FileKind.PICKLE: _read_torch,
}
