"""ONNX Runtime for browsers: found where npm put it, and its files held against those that are known.

It is megabytes of WebAssembly, so that it is no part of this package. Of its builds the plain one is taken: it has the
kernels of the CPU, no others, and runs on one thread, which needs no headers that ``python -m http.server`` does not
send.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spdexport.errors import InputError, RuntimeMissingError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_head

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "onnxruntime-web"
VERSION = "1.30.0"
"""The version that the lab was tried with."""

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of the package's folder ``dist``."""

KNOWN: Mapping[str, Mapping[str, str]] = {
    "1.30.0": {
        "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    }
}
"""SHA-256 of the files of versions that are known, as npm's registry has them."""

GET = f"npm pack {NAME}@{VERSION}"
"""The command that gets it into the working directory."""

_LARGEST = 1 << 26
"""Bytes that a file of the runtime has at most; the largest of the known ones has 14 MB."""
_UNPACKED = 1 << 30
"""Bytes that are unpacked of an archive at most."""
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}(?:-[0-9A-Za-z.-]{1,60})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebRuntime:
    """ONNX Runtime for browsers.

    Attributes:
        path: The folder or archive that it was read from.
        version: What the package calls its version.
        files: The content of ``FILES``, by name.
        is_known: Whether their hashes are those of ``KNOWN``; False for a version that is not there.
    """

    path: Path
    version: str
    files: Mapping[str, bytes]
    is_known: bool


def find_runtime(given: str | Path | None) -> WebRuntime:
    """Read the runtime from where the user says, or where npm leaves it.

    Args:
        given: The unpacked package, or the .tgz that ``npm pack`` writes. None for ``node_modules/onnxruntime-web`` in
            the working directory or above it, and else for such a .tgz in the working directory.

    Raises:
        RuntimeMissingError: There is none; the error has the command that gets it.
        InputError: It is something else, damaged, or not what this version of the package has.
    """
    path = Path(given) if given is not None else _nearest()
    if path is None or not path.exists():
        raise RuntimeMissingError(
            f"The lab needs {NAME}, which runs the file in the browser, and there is none"
            + ("." if path is None else " at this path."),
            where=f"the working directory, {Path.cwd()}" if path is None else f"--runtime {path}",
            hint=f"Get it into the working directory: {GET}. Or name the package, unpacked or as .tgz, with --runtime.",
        )
    found = _from_folder(path) if path.is_dir() else _from_archive(path)
    return _checked(path, found)


def _nearest() -> Path | None:
    here = Path.cwd()
    folders = (folder / "node_modules" / NAME for folder in (here, *here.parents))
    archives = (here / f"{NAME}-{version}.tgz" for version in sorted(KNOWN, reverse=True))
    return next((path for path in (*folders, *archives) if path.exists()), None)


def _wanted(name: str) -> str:
    """Return where a file is in the package."""
    return name if name == "package.json" else f"dist/{name}"


def _from_folder(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in ("package.json", *FILES):
        path = folder / _wanted(name)
        if not path.is_file():
            raise _not_the_package(folder, f"it has no {_wanted(name)}")
        with reading(path, error=InputError, what="The file cannot be read"), path.open("rb") as file:
            found[name] = _bounded(file, path)
    return found


def _from_archive(path: Path) -> dict[str, bytes]:
    members = {f"package/{_wanted(name)}": name for name in ("package.json", *FILES)}
    found: dict[str, bytes] = {}
    read_head(path, error=InputError)  # a pipe would never end
    with (
        reading(path, error=InputError, what="The archive cannot be read", hint=f"Get it again: {GET}."),
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|") as archive,
    ):
        for member in archive:
            if unpacked.tell() > _UNPACKED:
                raise InputError("The archive unpacks to more than 1 GiB.", where=str(path), hint=f"Get it: {GET}.")
            name = members.get(member.name)
            file = archive.extractfile(member) if name is not None and member.isfile() else None
            if name is not None and file is not None:
                found[name] = _bounded(file, path)
            if len(found) == len(members):
                break
    if missing := [member for member, name in members.items() if name not in found]:
        raise _not_the_package(path, f"it has no {missing[0]}")
    return found


def _bounded(file: IO[bytes], path: Path) -> bytes:
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise _not_the_package(path, "a file is larger than any of it is")
    return content


def _checked(path: Path, found: Mapping[str, bytes]) -> WebRuntime:
    with reading(path, error=InputError, what="Its package.json cannot be read", hint=f"Get the package: {GET}."):
        package = json.loads(found["package.json"])
    name, version = (package.get(key) if isinstance(package, dict) else None for key in ("name", "version"))
    if name != NAME or not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise _not_the_package(path, "its package.json has another name, or no version")
    hashes = KNOWN.get(version)
    for file in FILES if hashes is not None else ():
        if hashes is not None and hashlib.sha256(found[file]).hexdigest() != hashes[file]:
            raise InputError(
                f"{file} is not the file that {NAME} {version} has.",
                where=str(path),
                hint=f"It was damaged or changed; get the package again: {GET}.",
            )
    return WebRuntime(
        path=path, version=version, files={file: found[file] for file in FILES}, is_known=hashes is not None
    )


def _not_the_package(path: Path, why: str) -> InputError:
    return InputError(
        f"This is not the npm package {NAME}: {why}.",
        where=str(path),
        hint=f"Get it: {GET}, and name it with --runtime.",
    )
