"""What a file records of how it was made, against what the user says of it.

The metadata is the file's own claim, and gives it no rights: of the options only those are read back that a conversion
records, each with its own kind of value, and never a path or a permission. One that is given must agree with the
record, and components and masks are told by their hashes.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from spdexport.errors import PlanError, SourceError, UsageError
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.files.pretrained_folders import is_pretrained
from spdexport.files.sniff import FileKind, sniff
from spdexport.model_files import METADATA_PREFIX, read_metadata, recorded_ranges
from spdexport.options import CHOICES, NOT_RECORDED, RECORDED, Options, OptionsDict
from spdexport.planning import FormChoice, parse_plan
from spdexport.precision.recorded import recorded_precision
from spdexport.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

    from spdexport.precision import Precision

_ENTRIES: Mapping[str, type] = {
    "components": str,
    "content": str,
    "folded": dict,
    "options": dict,
    "plan": dict,
    "precision": dict,
    "ranges": dict,
    "sha256": dict,
    "source": str,
    "trimming": dict,
    "version": str,
}
"""The entries of the metadata that are read, with the kind of JSON value that each is."""

_TRUNCATES = ("rank", "energy", "max_error")
_SHAPES = (*_TRUNCATES, "delta", "mask_threshold", "gates", "gate_threshold")
"""The options that change what is called intended."""

_CONCERNS = ("layers", "exclude")
"""The options that tell which layers are concerned by those, and by masks."""

_STATIC = "--static-batch"
"""The one option whose name on a command line is of the other value."""

_SHOWN = 8
"""Options that are listed in a sentence."""

_AGAIN = "Give a file as spdexport wrote it, or convert the model again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a file says of how it was made.

    Attributes:
        path: The file.
        options: Those of ``RECORDED`` that it has, by name, as JSON values that were checked.
        is_complete: Whether the file records options at all.
        source: ``torch`` or ``onnx``, or another word; empty where it says nothing.
        sha256: Of the source, components and masks, by what they are.
        plan: Its statement about its own layers, which was not checked.
        folded: Whether its layers were folded after the conversion.
        precision: How its numbers are stored; None for as the source has them.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    source: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    plan: object = None
    folded: bool = False
    precision: Precision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The options given, completed by a record.

    Attributes:
        options: All of them.
        taken: Of those that were not given, the ones that change what is intended, as JSON values by name.
        unnamed: All options that the record gave a value of its own, by name.
        given: The options that the user gave.
    """

    options: Options
    taken: Mapping[str, Any]
    unnamed: frozenset[str]
    given: frozenset[str]


def read_record(model: ir.Model, path: Path) -> Record:
    """Read what a file says of how it was made; entries that are missing are those of an older version, or none.

    Raises:
        SourceError: An entry or an option has a value that no conversion records; it names it.
    """
    metadata = read_metadata(model)
    for name, kind in _ENTRIES.items():
        if METADATA_PREFIX + name not in model.metadata_props:
            continue
        if name not in metadata:
            raise _not_recorded(f"The entry {name!r} of its metadata is not JSON", path)
        if not isinstance(metadata[name], kind):
            what = f"The entry {name!r} of its metadata is a {_kind(metadata[name])}, not a {_kind(kind())}"
            raise _not_recorded(what, path)
    hashes = metadata.get("sha256", {})
    if wrong := [name for name, value in hashes.items() if not isinstance(value, str)]:
        raise _not_recorded(f"The hash of {wrong[0]!r} in its metadata is a {_kind(hashes[wrong[0]])}", path)
    recorded_ranges(model, path)
    options = metadata.get("options", {})
    for name, value in options.items():
        _check_option(name, value, path, str(metadata.get("version", "")))
    return Record(
        path=path,
        options=options,
        is_complete="options" in metadata,
        source=metadata.get("source", ""),
        sha256=hashes,
        plan=metadata.get("plan"),
        folded="folded" in metadata,
        precision=recorded_precision(model, path),
    )


def may_be_source(against: Path, model: ir.Model) -> bool:
    """Return whether a model says that it was made from an ONNX file, and this may be the one.

    What spdexport itself wrote is a source only where it is the very file; else it is one to compare with.
    """
    metadata = read_metadata(model)
    if metadata.get("source") != "onnx" or not isinstance(metadata.get("options"), dict):
        return False
    hashes = metadata.get("sha256")
    if isinstance(hashes, dict) and hashes.get("source") == sha256_file(against):
        return True
    return not read_metadata(load_onnx(against))


def _check_option(name: str, value: object, path: Path, version: str) -> None:
    if name in NOT_RECORDED:
        raise _not_recorded(
            f"The file's metadata give the option {name}, which only you can give",
            path,
            f"Give {_option(name)} yourself.",
        )
    if name not in RECORDED:
        by = f", and was made by spdexport {printable(version)[:40]}" if version else ""
        raise _not_recorded(
            f"The file's metadata give the option {name!r}, which this version of spdexport does not record{by}",
            path,
            "Use the version that wrote the file, or convert the model again.",
        )
    if not _READERS[name](value):
        raise _not_recorded(f"The file's metadata give the option {name} as {_shown(value)}, which it cannot be", path)


def _not_recorded(what: str, path: Path, hint: str = _AGAIN) -> SourceError:
    return SourceError(f"{what}.", where=str(path), hint=hint)


def as_recorded(given: OptionsDict, record: Record) -> Completed:
    """Complete the options given by those that a file records.

    Raises:
        SourceError: The options that the file records do not go together, or its plan is none.
        UsageError: An option that is given differs from the record, or does not go together with others.
    """
    completed: dict[str, Any] = dict(record.options)
    if given.get("masks") is None:
        # What only makes sense with masks; that they are missing is told by their hash.
        completed.pop("mask_threshold", None)
        completed.pop("keep_masks", None)
    try:
        Options.of({**completed, "masks": given.get("masks")})  # type: ignore[typeddict-item]
    except UsageError as error:
        raise _not_recorded(
            f"The options in the file's metadata cannot be ({error.where}): {error.what[:-1]}", record.path
        ) from error
    if "seed" in completed:
        # The factory's, without which its random weights are others; the one that is given is the check's.
        given = {k: v for k, v in given.items() if k != "seed"}  # type: ignore[assignment]
    options = Options.of({**completed, **given})  # type: ignore[typeddict-item]
    for name, value in options.recorded().items():
        if name in given and name in record.options and value != record.options[name]:
            raise UsageError(
                f"The file was made with {name} = {record.options[name]!r}, not {value!r}.",
                where=f"{record.path}, {_option(name)}",
                hint="Leave the option out: it is read from the file.",
            )
    planned = options.form is FormChoice.AUTO or options.form.chain is not None or options.planning.truncates
    if record.is_complete and planned:
        # What was chosen then is a statement that the file makes; what it computes is worked out anew.
        options = replace(options, plan=_stated_plan(record))
    unnamed = [n for n in completed if n not in given and getattr(options, n) != _DEFAULTS[n]]
    taken = [name for name in _SHAPES if name in unnamed]
    if taken or options.masks is not None:
        taken += [name for name in _CONCERNS if name in unnamed]
    values = options.recorded()
    return Completed(
        options=options,
        taken={name: values[name] for name in taken},
        unnamed=frozenset(unnamed),
        given=frozenset(given),
    )


def _stated_plan(record: Record) -> Any:
    try:
        return parse_plan(record.plan, str(record.path), strict=False)
    except PlanError as error:
        raise _not_recorded(
            f"The plan in the file's metadata cannot be used: {error.what.rpartition(': ')[2][:-1]}", record.path
        ) from error


def taken_note(taken: Mapping[str, Any]) -> str:
    """Return what the user should know of options that shape the model and were taken from the file."""
    what = "truncated" if any(name in taken for name in _TRUNCATES) else "changed"
    return f"taken from the file, not given: {as_options(taken)} (the file is compared with the {what} model)"


def as_options(values: Mapping[str, Any]) -> str:
    """Return options as a command line has them."""
    listed = [(name, value) for name, many in values.items() for value in (many if isinstance(many, list) else [many])]
    shown = [_with_value(name, value) for name, value in listed]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return " ".join([*shown[:_SHOWN], *more])


@contextmanager
def blaming(record: Record, completed: Completed) -> Iterator[None]:
    """Let an error about an option that came from the file say so, for the user never gave it.

    Raises:
        SourceError: In the place of a ``UsageError`` that names such an option.
    """
    try:
        yield
    except UsageError as error:
        named = [_name(option) for option in re.findall(r"--[a-z][a-z-]*", error.where)]
        ours = [name for name in named if name in completed.unnamed]
        if not ours or completed.given.intersection(named):
            raise
        hint = "Give the source that the file was made from, with the same --masks and --components."
        raise SourceError(
            error.what,
            where=f"{record.path}, which records {as_options({n: completed.options.recorded()[n] for n in ours})}",
            hint=hint,
        ) from error


def check_given(options: Options, record: Record, source: object) -> None:
    """Refuse a verification that lacks what the file was made with, before the long work, and say all that is missing.

    Args:
        options: The options as they are completed.
        record: What the file says.
        source: What it is to be compared with: a path, a module, ...; None for the factory's module.

    Raises:
        UsageError: Something is missing.
    """
    kind = sniff(source) if isinstance(source, str | Path) else None
    needs_factory = kind is FileKind.DIRECTORY and not is_pretrained(Path(str(source)))
    # What is in a checkpoint is known only once it is read.
    brings_components = kind in (FileKind.DIRECTORY, FileKind.TORCH_ZIP, FileKind.PICKLE, FileKind.SAFETENSORS)
    made_with = [
        what
        for what, given in (("components", options.components), ("masks", options.masks), ("edit", options.edit))
        if what in record.sha256 and given is None and not (what == "components" and brings_components)
    ]
    missing = [f"--{what} FILE" for what in made_with]
    if "components" in made_with:
        missing[0] += " (or the run that they are of as --against)"
    if needs_factory and options.factory is None:
        missing = ["--factory FILE.py:NAME, which makes the model", *(f"{m}, which it was made with" for m in missing)]
        raise UsageError(
            f"The source is a run, which has no code: {' and '.join(['the factory', *made_with])} "
            f"{'are' if made_with else 'is'} missing.",
            where=f"{record.path}, --against",
            hint=f"Give {'; '.join(missing)}.",
        )
    if missing:
        raise UsageError(
            _made_with(" and ".join(made_with)),
            where=str(record.path),
            hint=f"Give {' and '.join(missing)}.",
        )


def check_hashes(hashes: Mapping[str, str], record: Record) -> None:
    """Refuse components and masks that are not those that the file was made with.

    Raises:
        UsageError: They are missing, too many, or others.
    """
    for what in ("components", "masks", "edit"):
        before, now = record.sha256.get(what), hashes.get(what)
        if before == now or not record.sha256:
            continue
        if now is None:
            raise UsageError(
                _made_with(what),
                where=str(record.path),
                hint=f"Give --{what} FILE.",
            )
        if before is None:
            raise UsageError(
                f"The file was made without {what}.", where=f"{record.path}, --{what}", hint=f"Leave --{what} out."
            )
        raise UsageError(
            f"The file was made with other {what}: their content has another hash.",
            where=f"{record.path}, --{what}",
            hint="Give the ones it was made with, or convert again.",
        )


def _made_with(what: str) -> str:
    """Say that something is missing: masks and components are several, and an edit is one."""
    told = what.replace("edit", "an edit")
    return f"The file was made with {told}, and {'it is' if what == 'edit' else 'they are'} not given."


def _with_value(name: str, value: object) -> str:
    if name == "dynamic_batch" and value is False:
        return _STATIC
    return _option(name) if value is True else f"{_option(name)} {printable(str(value))}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _name(option: str) -> str:
    if option == _STATIC:
        return "dynamic_batch"
    return option.removeprefix("--").replace("-", "_")


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _shown(value: object) -> str:
    # Of an integer with thousands of digits, Python itself makes no text.
    text = hex(value) if _is_integer(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # An integer may be too large for a float.
    return (_is_integer(value) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value))


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_integer,
    "int | None": lambda value: value is None or _is_integer(value),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}
"""Whether a JSON value is one of an option, by the type that the option has in ``Options``."""


def _reader(name: str, annotation: str) -> Callable[[object], bool]:
    """Return what tells whether a JSON value is one of this option; its range is checked with all of them together."""
    if name in CHOICES:
        allowed = {choice.value for choice in CHOICES[name]}
        optional = annotation.endswith("| None")
        return lambda value: (value is None and optional) or (isinstance(value, str) and value in allowed)
    return _KINDS[annotation]


_TYPES = {f.name: str(f.type) for f in fields(Options)}
_READERS = {name: _reader(name, _TYPES[name]) for name in RECORDED}
_DEFAULTS = {f.name: f.default for f in fields(Options) if f.default is not MISSING}
