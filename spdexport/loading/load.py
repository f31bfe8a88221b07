"""One function for every kind of source: ``load`` tells what it is by content, and calls that kind's loader."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spdexport.errors import PickleRefusedError, SourceError, UsageError
from spdexport.files.archive import open_archive
from spdexport.files.hashing import sha256_file
from spdexport.files.pickles import load_weights_only
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff
from spdexport.files.tensors import read_tensors
from spdexport.files.torchscript import checked_torchscript
from spdexport.loading.factory import FactoryResult, call_factory
from spdexport.loading.inputs import as_example_inputs
from spdexport.loading.model import ExampleInputs, LoadedModel
from spdexport.loading.programs import load_program
from spdexport.loading.state_dict import fit, unwrap
from spdexport.sources.spd import from_state_dict, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spdexport.sources.components import ComponentSet

_SOURCES = "a .pt2 program, a TorchScript archive, a state dict or SPD run with --factory, or a pickled module"

_RAN = "The file was unpickled, which ran code that it names (--trust)."
_UNREAD = "The archive's code was not looked at before it ran (--trust)."
_UNCHECKED = "The file carries no checksums, so that damage to it cannot be told."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A source and the options that tell how to load it."""

    path: Path
    factory: str | None
    trust: bool
    seed: int

    @property
    def where(self) -> str:
        return str(self.path)

    def call_factory(self, what: str) -> FactoryResult:
        """The factory's module, for a source that has weights but no code."""
        if self.factory is None:
            raise UsageError(
                f"The source is {what}: it has weights but not the model's code.",
                where=self.where,
                hint="Name a callable that makes the model: --factory FILE.py:NAME or --factory package.module:NAME.",
            )
        return call_factory(self.factory, seed=self.seed)

    def refuse_factory(self, what: str) -> None:
        """Say that a factory has no use with a source that brings its own code."""
        if self.factory is not None:
            raise UsageError(
                f"The source is {what}, which needs no factory.",
                where=f"--factory {self.factory}",
                hint="Leave out either --factory or the source.",
            )


def load(source: str | Path | None, *, factory: str | None = None, trust: bool = False, seed: int = 0) -> LoadedModel:
    """Load a model from a file, a run directory, or a factory alone. All tensors of files arrive on the CPU.

    Args:
        source: The file or folder, or None for the factory's own module.
        factory: ``FILE.py:NAME`` or ``package.module:NAME``; called without arguments.
        trust: Whether code that the source brings may run: pickled objects, TorchScript with effects.
        seed: Seeds torch, numpy and random before the factory is called.

    Raises:
        UsageError: Neither source nor factory is given, or one is given that the other makes useless, or is missing.
        SourceError: The source cannot be read, or the factory fails, or the two do not fit.
        PickleRefusedError: The source brings code that may have effects, and ``trust`` is False.
        ComponentsError: The source is an SPD run with V and U that cannot be used.
    """
    if source is None:
        if factory is None:
            raise UsageError("There is no model.", where="SOURCE", hint=f"Give {_SOURCES}, or --factory alone.")
        made = call_factory(factory, seed=seed)
        return LoadedModel(kind="factory", module=made.module, inputs=made.inputs)
    path = Path(source)
    loader = _LOADERS[sniff(path)]
    return loader(_Request(path=path, factory=factory, trust=trust, seed=seed))


def _load_program(request: _Request) -> LoadedModel:
    request.refuse_factory("a .pt2 program")
    program = load_program(request.path, trust=request.trust)
    return LoadedModel(
        kind="pt2",
        program=program,
        inputs=_sample_inputs(program.example_inputs),
        path=request.path,
        sha256=sha256_file(request.path),
        notes=_checksum_notes(request.path),
    )


def _checksum_notes(path: Path) -> tuple[str, ...]:
    """What is to be said of an archive that torch was told to write without checksums."""
    return () if open_archive(path).has_checksums else (_UNCHECKED,)


def _sample_inputs(sample: object) -> ExampleInputs | None:
    """The inputs that a program was exported with, where there are any and all of them are tensors."""
    match sample:
        case (tuple() | list() as args, dict() as kwargs):
            values = [*args, *kwargs.values()]
            if values and all(isinstance(value, torch.Tensor) for value in values):
                return as_example_inputs((tuple(args), kwargs), "saved in the program")
    return None


def _load_torchscript(request: _Request) -> LoadedModel:
    request.refuse_factory("a TorchScript archive")
    content = str(request.path) if request.trust else checked_torchscript(request.path)
    hint = "Save it again with this version of torch, or use a torch.export program (.pt2)."
    with (
        reading(request.where, what="TorchScript cannot load the archive", hint=hint),
        # Its objects may bring their state back with code of their own, which may warn, and leave gradients off.
        warnings.catch_warnings(),
        torch.set_grad_enabled(torch.is_grad_enabled()),
    ):
        warnings.simplefilter("ignore")
        module = torch.jit.load(content, map_location="cpu")
    return LoadedModel(
        kind="torchscript",
        module=module,
        path=request.path,
        sha256=sha256_file(request.path),
        notes=(*_checksum_notes(request.path), *((_UNREAD,) if request.trust else ())),
    )


def _load_pickle(request: _Request) -> LoadedModel:
    """A torch.save file: a state dict where it is plain data; else a pickled module, if that is allowed."""
    notes = _checksum_notes(request.path) if sniff(request.path) is FileKind.TORCH_ZIP else ()
    try:
        content = load_weights_only(request.path)
    except PickleRefusedError:
        if not request.trust:
            raise
        content, notes = _unpickle(request), (*notes, _RAN)
    if isinstance(content, torch.nn.Module):
        request.refuse_factory("a pickled module")
        return LoadedModel(
            kind="pickle",
            module=content,
            path=request.path,
            sha256=sha256_file(request.path),
            notes=notes,
        )
    return replace(loaded := _from_state(request, unwrap(content, request.where)), notes=(*loaded.notes, *notes))


def _unpickle(request: _Request) -> object:
    try:
        content: object = torch.load(request.path, map_location="cpu", weights_only=False)
    # The file's own code runs here, and any exception is its.
    except Exception as exc:
        raise SourceError(
            f"Unpickling raised {type(exc).__name__}: {' '.join(str(exc).split())}",
            where=request.where,
            hint="The classes of the model must be importable under the names that they had when it was saved.",
        ) from exc
    if not isinstance(content, torch.nn.Module | dict):
        raise SourceError(
            f"The pickle holds a {type(content).__name__}, not a module.",
            where=request.where,
            hint="Save the module, or better its state_dict().",
        )
    return content


def _load_safetensors(request: _Request) -> LoadedModel:
    return _from_state(request, unwrap(read_tensors(request.path, error=SourceError), request.where))


def _from_state(request: _Request, state: Mapping[str, torch.Tensor]) -> LoadedModel:
    components = from_state_dict(state, request.path)
    if components is not None:
        return _from_components(request, components, "an SPD checkpoint")
    made = request.call_factory("a state dict")
    return LoadedModel(
        kind="state_dict",
        module=fit(made.module, state, where=request.where),
        inputs=made.inputs,
        path=request.path,
        sha256=sha256_file(request.path),
    )


def _load_directory(request: _Request) -> LoadedModel:
    components = read_run(request.path)
    if components is None:
        raise SourceError(
            "The folder is no SPD run: it holds no model_{step}.pth.",
            where=request.where,
            hint="Name the run's folder, or a file.",
        )
    return _from_components(request, components, "an SPD run")


def _from_components(request: _Request, components: ComponentSet, what: str) -> LoadedModel:
    made = request.call_factory(what)
    where = str(components.path or request.path)
    return LoadedModel(
        kind="spd_run",
        module=fit(made.module, components.target, where=where),
        inputs=made.inputs,
        components=components,
        path=request.path,
        sha256=components.sha256 or sha256_file(Path(where)),
    )


def _refuse_onnx(request: _Request) -> LoadedModel:
    raise SourceError("An ONNX file holds no torch model.", where=request.where, hint=f"Give {_SOURCES}.")


def _refuse_kind(request: _Request) -> LoadedModel:
    raise SourceError(f"A {sniff(request.path)} is not a model.", where=request.where, hint=f"Give {_SOURCES}.")


_LOADERS: dict[FileKind, Callable[[_Request], LoadedModel]] = {
    FileKind.PT2: _load_program,
    FileKind.TORCHSCRIPT: _load_torchscript,
    FileKind.TORCH_ZIP: _load_pickle,
    FileKind.PICKLE: _load_pickle,
    FileKind.SAFETENSORS: _load_safetensors,
    FileKind.DIRECTORY: _load_directory,
    FileKind.ONNX: _refuse_onnx,
    FileKind.NPZ: _refuse_kind,
    FileKind.NPY: _refuse_kind,
    FileKind.JSON: _refuse_kind,
    FileKind.UNKNOWN: _refuse_kind,
}
