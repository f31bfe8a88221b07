"""Reading what torch.save wrote without ever running what a pickle asks for."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spdexport.errors import InputError, PickleRefusedError, SourceError
from spdexport.files.programs import check_program
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_TO_DO = "Save it again as tensors (a state dict), or, if you trust where it comes from, add --trust."
_TENSORS_ONLY = "Save it again as plain tensors: a dict of them with torch.save, or as safetensors."
# What torch's weights-only unpickler says when the pickle asks for something other than data, as against being damaged.
_REFUSAL = re.compile(r"Unsupported|not an allowed|unrecognized|GLOBAL|weights_only. argument is not supported")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_OPERATION = re.compile(r"Unsupported operand (\d+)")
_OPERATIONS = {ord(operation.code): operation.name for operation in pickletools.opcodes}
# What torch raises for a damaged file: its zip reader, its unpickler, or the code that rebuilds tensors.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    AssertionError, OSError, OverflowError,
)  # fmt: skip


def load_weights_only(path: str | Path, *, error: type[InputError] = SourceError) -> object:
    """What a torch.save file (zip or legacy) or plain pickle holds, on the CPU, if it is nothing but data.

    Args:
        path: The file; tensors of a zip archive are mapped from it, not read.
        error: The class to raise for a damaged file.

    Raises:
        PickleRefusedError: The pickle names functions or classes other than those of plain tensors; none was called.
        InputError: The file is damaged, of class ``error``.
    """
    path = Path(path)
    mapped = sniff(path, error=error) is FileKind.TORCH_ZIP
    try:
        return _load_data(path, mmap=mapped)
    except _DAMAGE as exc:
        if refused := _refused_names(exc, path):
            # Only what is a model can be loaded with --trust; masks, components and inputs never.
            raise _refusal(refused, where=str(path), hint=_TO_DO if error is SourceError else _TENSORS_ONLY) from exc
        if "Invalid magic number" in str(exc):
            raise error(
                "The file is a pickle, but torch.save did not write it.",
                where=str(path),
                hint="Write it with torch.save, or as safetensors.",
            ) from exc
        raise error(f"The file is damaged: {_first_line(exc)}", where=str(path), hint="Copy or save it again.") from exc


def check_archive_pickles(path: str | Path) -> None:
    """Make sure that ``torch.export.load`` of this ``.pt2`` file would run no code that the file brings.

    torch unpickles several members without weights_only (weights and constants whose config says ``use_pickle``,
    ``opaque_obj_*``), falls back to it for others (sample inputs, and all of the older layout), loads compiled
    libraries (``data/aotinductor``), and evaluates some strings of the program's JSON as Python. So: every member
    that is or may be read as a pickle must load weights-only; compiled code and pickled objects are refused; and the
    strings are checked by ``check_program``. Use ``weights_only_forced`` around the load itself as a second guard.

    Raises:
        PickleRefusedError: A member is not plain data; the message names it.
        SourceError: The archive, or a member, is damaged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
    except (zipfile.BadZipFile, EOFError, OSError) as exc:
        raise SourceError(
            f"The archive is cut off or damaged: {exc}", where=str(path), hint="Copy or save it again."
        ) from exc


@contextmanager
def weights_only_forced() -> Iterator[None]:
    """Make every ``torch.load`` of this process weights-only, even where its caller asked otherwise.

    It holds for all threads, since torch reads it from the environment.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    names = archive.namelist()
    if len({name.lower() for name in names}) != len(names):
        # zipfile and torch's own reader could pick different ones of the two, and torch ignores case.
        raise PickleRefusedError("The archive has two members of the same name.", where=str(path), hint=_TO_DO)
    # The older layout has no folder around its members.
    root = "" if "serialized_exported_program.json" in names else names[0].partition("/")[0] + "/"
    raw, pickled = _payloads(archive, root)
    for name in names:
        inner = name.removeprefix(root)
        where = f"{path}, member {inner}"
        if inner.startswith("data/aotinductor/"):
            raise PickleRefusedError("The archive holds compiled code, which would be run.", where=where, hint=_TO_DO)
        if Path(inner).name.startswith(("opaque_obj_", "custom_obj_")):
            raise PickleRefusedError("The archive holds a pickled object.", where=where, hint=_TO_DO)
        if inner in raw:
            continue
        if inner == "serialized_exported_program.json" or (inner.startswith("models/") and inner.endswith(".json")):
            check_program(archive.read(name), where=where)
        elif inner in pickled or inner.endswith(".pt") or _looks_pickled(archive, name):
            _check_pickle(archive.read(name), where)


def _payloads(archive: zipfile.ZipFile, root: str) -> tuple[set[str], set[str]]:
    """The members that torch reads as raw tensor bytes, and those that it unpickles, by the archive's own configs."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for name in archive.namelist():
        inner = name.removeprefix(root)
        if not (inner.startswith(("data/weights/", "data/constants/")) and inner.endswith("_config.json")):
            continue
        try:
            config: dict[str, Any] = json.loads(archive.read(name))["config"]
            for payload in config.values():
                member = f"{inner.rpartition('/')[0]}/{payload['path_name']}"
                (pickled if payload["use_pickle"] else raw).add(member)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise SourceError(
                "The list of the program's weights cannot be read.",
                where=f"{archive.filename}, member {inner}",
                hint="Save the program again with torch.export.save.",
            ) from exc
    # A name in both is unpickled by one of its readers.
    return raw - pickled, pickled


def _looks_pickled(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as member:
        head = member.read(4)
    return head == b"PK\x03\x04" or (len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5)


def _check_pickle(content: bytes, where: str) -> None:
    if not content:
        return  # torch reads an empty member as an empty dict
    try:
        _load_data(io.BytesIO(content))
    except _DAMAGE as exc:
        if refused := _refused_names(exc, io.BytesIO(content)):
            raise _refusal(refused, where=where) from exc
        raise SourceError(f"The pickle is damaged: {_first_line(exc)}", where=where, hint="Save it again.") from exc


def _load_data(file: Path | io.BytesIO, *, mmap: bool = False) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the pickle's protocol is not torch's own
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _refused_names(exc: Exception, file: Path | io.BytesIO) -> list[str]:
    """What the pickle asked for that is not data; empty if the failure has another cause."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except _DAMAGE:  # it reads zip files only
        names = []
    if names:
        return sorted(names)
    cause = _first_line(exc)
    if operation := _OPERATION.search(cause):
        # torch knows the operations of protocol 2; of the others, those that exist may name classes.
        code = _OPERATIONS.get(int(operation[1]))
        return [] if code is None else [f"the pickle operation {code}"]
    if _REFUSAL.search(str(exc)):
        return sorted(set(_GLOBAL.findall(str(exc)))) or [cause]
    return []


def _refusal(names: list[str], *, where: str, hint: str = _TO_DO) -> PickleRefusedError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return PickleRefusedError(
        f"The file holds pickled objects, and loading them would run code: it asks for {shown}.",
        where=where,
        hint=hint,
    )


def _first_line(exc: Exception) -> str:
    # torch's refusals begin with a general advice and name the cause in a line "WeightsUnpickler error: ...".
    text = str(exc).strip() or type(exc).__name__
    cause = text.partition("WeightsUnpickler error: ")[2].strip() or text
    return cause.splitlines()[0]
