"""Reading what torch.save wrote without ever running what a pickle asks for."""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spdexport.errors import InputError, PickleRefusedError, SourceError
from spdexport.files.archive import Archive, check_unpacked, open_archive
from spdexport.files.limits import check_limit
from spdexport.files.programs import check_program
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_STAND_INS = 100
"""Classes and functions that a checkpoint may name beside its tensors before nobody looks for more."""
_ZIP = b"PK\x03\x04"
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_TO_DO = "Save it again as tensors (a state dict), or, if you trust where it comes from, add --trust."
_TENSORS_ONLY = "Save it again as plain tensors: a dict of them with torch.save, or as safetensors."
# What torch's weights-only unpickler says when the pickle asks for something other than data, as against being damaged.
_REFUSAL = re.compile(r"Unsupported|not an allowed|unrecognized|GLOBAL|weights_only. argument is not supported")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_OPERATION = re.compile(r"Unsupported operand (\d+)")
_OPERATIONS = {ord(operation.code): operation.name for operation in pickletools.opcodes}


def load_weights_only(path: str | Path, *, error: type[InputError] = SourceError) -> object:
    """Return what a torch.save file (zip or legacy) or plain pickle holds, on the CPU, if it is nothing but data.

    Args:
        path: The file; tensors of a zip archive are mapped from it, not read.
        error: The class to raise for a damaged file.

    Raises:
        PickleRefusedError: The pickle names functions or classes other than those of plain tensors; none was called.
        InputError: The file is damaged, of class ``error``.
    """
    # Only what is a model can be loaded with --trust; masks, components and inputs never.
    return _contents(Path(path), error, _TO_DO if error is SourceError else _TENSORS_ONLY, ())


class StandIn:
    """Stands for an object whose class is not loaded: it takes what is given to it, and keeps nothing of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def load_checkpoint(path: Path) -> tuple[object, PickleRefusedError | None]:
    """Load what a training script saved, with stand-ins for what is no data: arguments, metrics of numpy, schedulers.

    Returns:
        What ``load_weights_only`` returns, with a ``StandIn`` in the place of each object of a class or function that
        the pickle names; none of those is imported or called. And the refusal that ``load_weights_only`` has for the
        file; None where there is no such object.

    Raises:
        PickleRefusedError: Stand-ins do not help either, as for subclasses of list and dict.
        SourceError: The file is damaged.
    """
    names: list[str] = []
    first: PickleRefusedError | None = None
    while True:
        try:
            content = _contents(path, SourceError, _TO_DO, names)
        except SourceError as error:
            asked = error.names if isinstance(error, PickleRefusedError) else ()
            # torch leaves the module of Python's own functions out of its words.
            full = [name if "." in name else f"builtins.{name}" for name in asked]
            more = [name for name in full if _DOTTED.fullmatch(name) and name not in names]
            if isinstance(error, PickleRefusedError):
                first = first or error
            if not more or len(names) > _STAND_INS:
                raise first or error from error
            names += more
        else:
            return content, _refusal(names, where=str(path)) if names else None


def _contents(path: Path, error: type[InputError], hint: str, stand_ins: Sequence[str]) -> object:
    file: Path | io.BytesIO = path
    mapped = sniff(path, error=error) is FileKind.TORCH_ZIP
    if mapped:
        archive = open_archive(path, error=error)
        # The largest part of a checkpoint is only compared with its checksums here, and mapped from the file later.
        archive.verify(parsed=tuple(name for name in archive.names if name.endswith(".pkl")))
        mapped = archive.is_unpacked
        file = path if mapped else archive.rewritten()
    with torch.serialization.safe_globals([(StandIn, name) for name in stand_ins]):
        content = _loaded(file, str(path), error, hint, mmap=mapped)
    check_values(content, path.stat().st_size, str(path), error)
    return content


def check_archive_pickles(archive: Archive) -> None:
    """Make sure that ``torch.export.load`` of these bytes would run no code that they bring.

    torch unpickles several members without weights_only (weights and constants whose config says ``use_pickle``,
    ``opaque_obj_*``), falls back to it for others (sample inputs, and all of the older layout), loads compiled
    libraries (``data/aotinductor``), and evaluates some strings of the program's JSON as Python. So: every member
    that is or may be read as a pickle must load weights-only; compiled code and pickled objects are refused; and the
    strings are checked by ``check_program``. Use ``weights_only_forced`` around the load itself as a second guard.

    Raises:
        PickleRefusedError: A member is not plain data; the message names it.
        SourceError: The archive, or a member, is damaged.
    """
    if not archive.names:
        raise SourceError("The archive is empty.", where=str(archive.path), hint="Copy or save it again.")
    # The older layout has no folder around its members.
    root = "" if "serialized_exported_program.json" in archive.names else archive.names[0].partition("/")[0] + "/"
    raw, pickled = _payloads(archive, root)
    for name in archive.names:
        inner = name.removeprefix(root)
        where = f"{archive.path}, member {inner}"
        if inner.startswith("data/aotinductor/"):
            raise PickleRefusedError("The archive holds compiled code, which would be run.", where=where, hint=_TO_DO)
        if Path(inner).name.startswith(("opaque_obj_", "custom_obj_")):
            raise PickleRefusedError("The archive holds a pickled object.", where=where, hint=_TO_DO)
        if inner in raw:
            continue
        if inner == "serialized_exported_program.json" or (inner.startswith("models/") and inner.endswith(".json")):
            check_program(archive.read_parsed(name), where=where)
        elif inner in pickled or inner.endswith(".pt") or _looks_pickled(archive, name):
            _check_pickle(archive, name, where)


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


def _payloads(archive: Archive, root: str) -> tuple[set[str], set[str]]:
    """The members that torch reads as raw tensor bytes, and those that it unpickles, by the archive's own configs."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for name in archive.names:
        inner = name.removeprefix(root)
        if not (inner.startswith(("data/weights/", "data/constants/")) and inner.endswith("_config.json")):
            continue
        content = archive.read_parsed(name)
        with reading(
            f"{archive.path}, member {inner}",
            what="The list of the program's weights cannot be read",
            hint="Save the program again with torch.export.save.",
        ):
            config: dict[str, Any] = json.loads(content)["config"]
            for payload in config.values():
                member = f"{inner.rpartition('/')[0]}/{payload['path_name']}"
                (pickled if payload["use_pickle"] else raw).add(member)
    # A name in both is unpickled by one of its readers.
    return raw - pickled, pickled


def _looks_pickled(archive: Archive, name: str) -> bool:
    with reading(f"{archive.path}, member {name}"), archive.open(name) as member:
        head = member.read(4)
    return head == _ZIP or (len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5)


def _check_pickle(archive: Archive, name: str, where: str) -> None:
    """Make sure that a member loads as plain data; it may be an archive of its own."""
    content = archive.read_parsed(name)
    if not content:
        return  # torch reads an empty member as an empty dict
    if content.startswith(_ZIP):
        inner = open_archive(where, content=content)
        inner.verify(parsed=inner.names)
    _loaded(io.BytesIO(content), where, SourceError, _TO_DO)


def _loaded(file: Path | io.BytesIO, where: str, error: type[InputError], hint: str, *, mmap: bool = False) -> object:
    """What ``torch.load`` makes of nothing but data.

    Raises:
        PickleRefusedError: There is more than data, with ``hint``.
        InputError: It is damaged, of class ``error``.
    """
    with reading(where, error=error, what="The pickle is damaged", hint="Copy or save it again."):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the pickle's protocol is not torch's own
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as exc:  # torch's unpickler raises whatever it trips over
            if (refused := _refused_names(exc, file)) and not _is_cut_off(file):
                raise _refusal(refused, where=where, hint=hint) from exc
            if "Invalid magic number" in str(exc):
                raise error(
                    "The file is a pickle, but torch.save did not write it.",
                    where=where,
                    hint="Write it with torch.save, or as safetensors.",
                ) from exc
            raise ValueError(_first_line(exc)) from exc


def check_values(content: object, length: int, where: str, error: type[InputError]) -> None:
    """Refuse tensors that are far more than the file that they come from: too many, too large, or without values.

    A tensor may be a view that repeats one number as often as it says, and costs nothing until it is copied.

    Args:
        content: Tensors in nested containers.
        length: Bytes of the file.
        where: The file.
        error: The class to raise.

    Raises:
        InputError: Of class ``error``.
    """
    count = total = 0
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise error(
                    f"The file has a tensor without values, on the device {value.device}.",
                    where=where,
                    hint="Save the tensors from the CPU.",
                )
            count, total = count + 1, total + value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
            seen.add(id(value))
            todo += [*value, *value.values()] if isinstance(value, dict) else value
    check_limit("tensors", count, f"The file has {count} tensors", where=where, error=error)
    check_unpacked(total, length, "The tensors of the file are", where=where, error=error)


def _refused_names(exc: Exception, file: Path | io.BytesIO) -> list[str]:
    """What the pickle asked for that is not data; empty if the failure has another cause."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it reads sound zip files only, and raises anything for others
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


def _is_cut_off(file: Path | io.BytesIO) -> bool:
    """Whether a file of pickles ends or breaks inside of one, so that a name it asks for may be part of another.

    The object is the fourth of the pickles that torch writes one after another into a legacy file.
    """
    content = file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
    stream = io.BytesIO(content)
    if content.startswith(_ZIP):
        return False
    for _ in range(4):
        try:
            for _ in pickletools.genops(stream):
                pass
        except ValueError:
            return True
        if stream.tell() == len(content):
            break
    return False


def _refusal(names: list[str], *, where: str, hint: str = _TO_DO) -> PickleRefusedError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return PickleRefusedError(
        f"The file holds pickled objects, and loading them would run code: it asks for {shown}.",
        where=where,
        hint=hint,
        names=names,
    )


def _first_line(exc: Exception) -> str:
    # torch's refusals begin with a general advice and name the cause in a line "WeightsUnpickler error: ...".
    text = str(exc).strip() or type(exc).__name__
    cause = text.partition("WeightsUnpickler error: ")[2].strip() or text
    return cause.splitlines()[0]
