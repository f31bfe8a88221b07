"""Which files a command or function reads and writes, by the names of its arguments: none may overwrite another."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from spdexport.errors import SpdExportError, UsageError
from spdexport.files.atomic import failed_name
from spdexport.files.guard import NamedFile, NamedFolder, check_outputs
from spdexport.files.pretrained_folders import is_pretrained, is_pretrained_file
from spdexport.files.sniff import FileKind, sniff
from spdexport.sources.run_files import CONFIGS, EXPORT, config_folders, is_run_file

Read: TypeAlias = NamedFile | NamedFolder

_ENVIRONMENT = ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STATE")
"""Variables of the environment that name files of GitHub's runner, which no output may overwrite."""


def check_overwriting(
    arguments: Mapping[str, object], *, reports: Iterable[str] = (), in_place: bool = False, verify: bool = True
) -> None:
    """Refuse the arguments of a command or function if one file would overwrite another.

    Args:
        arguments: Values by the names that the arguments have; those that are no path, and those that name no file,
            make no difference.
        reports: Names of arguments beside those of WRITES that name what is written, each of an option of its name.
        in_place: Whether the output is to replace the model that is read.
        verify: Whether the output is checked, so that one that fails is written under another name.

    Raises:
        UsageError: An output is a file that is read or is written twice, or cannot be replaced.
    """
    written = {**WRITES, **{name: f"--{name}" for name in reports}}
    writes = [file for name, option in written.items() for file in _written(option, arguments.get(name), verify=verify)]
    if not writes:
        return
    reads = [read for name, expand in READS.items() for read in expand(arguments.get(name))]
    # Only a file that exists can hold weights of an ONNX model; to know which do, the model has to be read.
    if any(file.path.exists() for file in writes):
        reads += [data for read in reads if isinstance(read, NamedFile) for data in _external_data(read)]
    reads += [NamedFile(path=Path(os.environ[x]), option=f"${x}") for x in _ENVIRONMENT if os.environ.get(x)]
    check_outputs(
        [read for read in reads if isinstance(read, NamedFile)],
        [read for read in reads if isinstance(read, NamedFolder)],
        writes,
        in_place=in_place,
    )


def _paths(value: object) -> list[Path]:
    """The paths that an argument is: one, several, or none where it is something else."""
    if isinstance(value, str | Path):
        return [Path(value)]
    if isinstance(value, Sequence):
        return [Path(one) for one in value if isinstance(one, str | Path)]
    return []


def _file(option: str) -> Callable[[object], Iterator[Read]]:
    def expand(value: object) -> Iterator[Read]:
        for path in _paths(value):
            yield NamedFile(path=path, option=option)

    return expand


def _model(option: str) -> Callable[[object], Iterator[Read]]:
    """A model or components: a file, or an SPD run."""

    def expand(value: object) -> Iterator[Read]:
        for path in _paths(value):
            if path.is_dir():
                yield NamedFolder(path=path, option=option, takes=is_run_file)
                yield from _inside(path, option, is_run_file)
                if (path / EXPORT).is_dir():
                    yield NamedFolder(path=path / EXPORT, option=option, takes=is_run_file)
                    yield from _inside(path / EXPORT, option, is_run_file)
                if is_pretrained(path):
                    yield NamedFolder(path=path, option=option, takes=is_pretrained_file)
                    yield from _inside(path, option, is_pretrained_file)
            else:
                yield NamedFile(path=path, option=option, is_model=option in ("SOURCE", "FILE"))
                if is_run_file(path.name):
                    for folder in config_folders(path.parent):
                        for name in CONFIGS:
                            yield NamedFile(path=folder / name, option=option)

    return expand


def _data(option: str) -> Callable[[object], Iterator[Read]]:
    """Inputs: a file, or a folder, all of which is read but what is hidden."""

    def expand(value: object) -> Iterator[Read]:
        for path in _paths(value):
            if path.is_dir():
                yield NamedFolder(path=path, option=option, takes=_is_seen)
                yield from _inside(path, option, _is_seen)
            else:
                yield NamedFile(path=path, option=option)

    return expand


def _is_seen(name: str) -> bool:
    return not name.startswith(".")


def _inside(folder: Path, option: str, takes: Callable[[str], bool]) -> Iterator[NamedFile]:
    with contextlib.suppress(OSError):  # that the folder cannot be read, its reader tells
        yield from (NamedFile(path=path, option=option) for path in sorted(folder.iterdir()) if takes(path.name))


def _function(option: str) -> Callable[[object], Iterator[Read]]:
    """The file of ``FILE.py:NAME`` or ``package.module:NAME``; of modules, those in the folder of the command."""

    def expand(value: object) -> Iterator[Read]:
        target = value.rpartition(":")[0] if isinstance(value, str) else ""
        if not target:
            return
        yield NamedFile(path=Path(target), option=option)
        module = Path(*target.split("."))
        for path in (module.with_name(f"{module.name}.py"), module / "__init__.py"):
            if path.is_file():
                yield NamedFile(path=path, option=option)

    return expand


def _baseline(value: object) -> Iterator[Read]:
    """A file of masks, unless it is one of the words that a baseline may be."""
    if value not in ("ones", "gates"):
        yield from _file("--baseline")(value)


def _external_data(model: NamedFile) -> Iterator[NamedFile]:
    """The files that hold the weights of an ONNX model; none of what cannot be read, which its reader tells."""
    with contextlib.suppress(SpdExportError, OSError, ValueError):
        if sniff(model.path) not in (FileKind.ONNX, FileKind.UNKNOWN) or not _names_data(model.path):
            return
        from spdexport.files.onnx_reading import external_files, load_onnx  # heavy, and seldom needed

        for path in external_files(load_onnx(model.path)):
            yield NamedFile(path=path, option=f"the weights of {model.option}")


def _names_data(path: Path) -> bool:
    """Whether the key that external data have is anywhere in the file, which costs far less than to parse it."""
    return _has(path, b"location")


def _has(path: Path, key: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(key) >= 0


def _written(option: str, value: object, *, verify: bool) -> Iterator[NamedFile]:
    """The files that an argument names, and those that are written beside them."""
    for path in _paths(value):
        yield NamedFile(path=path, option=option)
        if option != "-o":
            continue
        if path.suffix == ".safetensors":
            yield NamedFile(path=importances_name(path), option="the importances beside -o:")
        elif verify:
            yield NamedFile(path=failed_name(path), option="what -o becomes if the check fails:")


def importances_name(masks: Path) -> Path:
    """Return the name of the importances that are written beside masks: ``OUT.importances.safetensors``."""
    return masks.with_name(f"{masks.stem}.importances{masks.suffix}")


def output_beside(source: Path | None, factory: str | None) -> Path:
    """Return the name of the ONNX file where none is given: beside the source, or called as its factory.

    Raises:
        UsageError: There is a file of that name that spdexport did not write.
    """
    if source is None:
        path = Path(f"{(factory or 'model').rpartition(':')[2]}.onnx")
    elif source.is_dir():
        whole = source.resolve()
        path = (source.parent if source.name else whole.parent) / f"{whole.name}.onnx"
    elif source.suffix == ".onnx":
        path = source.with_suffix(".converted.onnx")
    else:
        path = source.with_suffix(".onnx")
    if path.exists() and not (path.is_file() and _has(path, b"spdexport.options")):
        raise UsageError(
            "There is no -o, and the file that stands where the output would go was not written by spdexport.",
            where=str(path),
            hint="Name the output: -o OUT.onnx.",
        )
    return path


def output_paths(output: str | Path | Sequence[str | Path]) -> tuple[Path | None, Path | None]:
    """Return the ONNX file and the program file among the outputs, or None.

    Raises:
        UsageError: An output is neither, there are two of a kind, or there is none.
    """
    paths = [Path(output)] if isinstance(output, str | Path) else [Path(p) for p in output]
    found: dict[str, Path] = {}
    for path in paths:
        if path.suffix not in (".onnx", ".pt2"):
            raise UsageError(
                f"An output named {path.name!r} has no known format.",
                where="-o",
                hint="End it in .onnx, or in .pt2 for the factorized program.",
            )
        if path.suffix in found:
            raise UsageError(f"There are two outputs ending in {path.suffix}.", where="-o", hint="Give one of each.")
        found[path.suffix] = path
    if not found:
        raise UsageError("There is no output.", where="-o", hint="Give -o OUT.onnx.")
    return found.get(".onnx"), found.get(".pt2")


READS: Mapping[str, Callable[[object], Iterator[Read]]] = {
    "source": _model("SOURCE"),
    "file": _model("FILE"),
    "against": _model("--against"),
    "components": _model("--components"),
    "factory": _function("--factory"),
    "inputs": _data("--inputs"),
    "data": _data("--data"),
    "cache": _data("--cache"),
    "selection": _data("--selection"),
    "test": _data("--test"),
    "metric": _function("--metric"),
    "masks": _file("--masks"),
    "edit": _file("--edit"),
    "harvest": _file("--harvest"),
    "names": _file("--names"),
    "labels": _file("--labels"),
    "classes": _file("--classes"),
    "plan": _file("--plan"),
    "sets": _file("--sets"),
    "baseline": _baseline,
    "dense": _file("--dense"),
    "runtime": _data("--runtime"),
    "config": _file("--config"),
}
"""What is read, by the names of arguments."""

WRITES: Mapping[str, str] = {
    "output": "-o",
    "save_components": "--save-components",
    "save_plan": "--save-plan",
    "repro": "--repro",
    "log_file": "--log-file",
}
"""The options that name what is written, by the names of arguments; those of reports are added by who has them."""
