"""A TorchScript archive, checked member by member, and written again for torch out of what was checked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from spdexport.errors import PickleRefusedError, SourceError
from spdexport.files.archive import open_archive
from spdexport.files.limits import check_limit
from spdexport.files.torchscript.code import check_code
from spdexport.files.torchscript.scope import HINT
from spdexport.files.torchscript.text import UnreadableError, parse, write
from spdexport.files.torchscript.values import PickleSource, check_values

if TYPE_CHECKING:
    import io
    from pathlib import Path

    from spdexport.files.archive import Archive
    from spdexport.files.torchscript.text import Code

_PICKLES = {"data.pkl": "data/", "constants.pkl": "constants/"}
"""The pickles that torch reads, with the folder that each one's tensors are in."""

_PLAIN = ("version", ".data/version", "byteorder")
"""What torch reads beside code and pickles, all of it numbers and words."""


def checked_torchscript(path: Path) -> io.BytesIO:
    """Return a TorchScript archive as torch may load it: nothing in it has effects but on tensors.

    What torch gets is written here. Its code comes from the trees that were checked, and members that loading does not
    need are left out: the lines of the original source, and files that somebody added.

    Args:
        path: The archive.

    Raises:
        PickleRefusedError: Its code may have effects, or its pickles hold something else than data. The message names
            the operator or class, and where it stands.
        SourceError: It is damaged, or has a loop that is beyond the limit.
    """
    archive = open_archive(path)
    root = archive.names[0].partition("/")[0] + "/"
    if stray := [name for name in archive.names if not name.startswith(root)]:
        raise SourceError(
            "The archive has members outside of its folder.",
            where=f"{path}, member {stray[0]}",
            hint="Save it again with torch.jit.save.",
        )
    read = [name for name in archive.names if name.endswith(".py") or name.removeprefix(root) in _PICKLES]
    total = -(-sum(map(archive.size, read)) >> 20)
    check_limit("code", total, f"The archive's code and pickles have {total} MiB", where=str(path), error=SourceError)
    codes = _parsed(archive, root)
    where = {space: f"{path}, {_member(space, root)}" for space in codes}
    checked = {_member(space, root): _written(code, where[space]) for space, code in codes.items()}
    try:
        classes = check_code(codes, where)
    except RecursionError:
        _unreadable(UnreadableError("it is nested too deep", None), str(path))
    sizes = {name: archive.size(name) for name in archive.names}
    order = archive.read(f"{root}byteorder").decode("latin-1") if f"{root}byteorder" in sizes else "little"
    tensors: set[str] = set()
    for name, folder in _PICKLES.items():
        if root + name in sizes:
            source = PickleSource(
                where=f"{path}, {root}{name}",
                folder=root + folder,
                sizes=sizes,
                classes=classes,
                read=archive.read,
                byte_order=order,
            )
            checked[root + name] = archive.read_parsed(root + name)
            tensors |= check_values(checked[root + name], source)
    needed = {*checked, *tensors, *(root + name for name in _PLAIN)}
    kept = replace(archive, names=tuple(name for name in archive.names if name in needed))
    return kept.rewritten(checked)


def _parsed(archive: Archive, root: str) -> dict[str, Code]:
    """The code of the archive by the name of its place, ``__torch__.a.b`` for ``code/__torch__/a/b.py``."""
    codes: dict[str, Code] = {}
    for name in archive.names:
        inner = name.removeprefix(root)
        if not (inner.startswith("code/") and inner.endswith(".py")):
            continue
        space = inner.removeprefix("code/").removesuffix(".py").replace("/", ".")
        if _member(space, root) != name or space.split(".")[0] != "__torch__":
            continue  # torch looks for nothing there
        try:
            codes[space] = parse(archive.read_parsed(name))
        except UnreadableError as exc:
            _unreadable(exc, f"{archive.path}, {name}")
    return codes


def _written(code: Code, where: str) -> bytes:
    try:
        return write(code)
    except UnreadableError as exc:
        _unreadable(exc, where)


def _member(space: str, root: str) -> str:
    return f"{root}code/{space.replace('.', '/')}.py"


def _unreadable(error: UnreadableError, where: str) -> NoReturn:
    raise PickleRefusedError(
        f"The archive's code cannot be read, so that nothing is known of what it does: {error.why}.",
        where=where if error.line is None else f"{where}, line {error.line}",
        hint=HINT,
    ) from error
