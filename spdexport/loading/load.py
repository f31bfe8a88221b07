"""One function for every kind of source: ``load`` tells what it is by content, and calls that kind's loader."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spdexport.errors import IncompleteError, PickleRefusedError, SourceError, UsageError
from spdexport.files.archive import open_archive
from spdexport.files.hashing import sha256_file
from spdexport.files.pickles import load_checkpoint, load_weights_only
from spdexport.files.pretrained_folders import INDEX, OLDER, WEIGHTS, is_pretrained
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff
from spdexport.files.tensors import read_tensors
from spdexport.files.torchscript import checked_torchscript
from spdexport.invocation import command_line
from spdexport.loading.checkpoints import Found, find_states, several
from spdexport.loading.factory import FactoryResult, call_factory
from spdexport.loading.guessing import blanks_in, guess_factory, shape_like
from spdexport.loading.inputs import as_example_inputs
from spdexport.loading.model import ExampleInputs, LoadedModel
from spdexport.loading.pretrained import load_pretrained
from spdexport.loading.programs import load_program
from spdexport.loading.spd_runs import module_of_run
from spdexport.loading.state_dict import fit, fits, fitting_part
from spdexport.names import count, some
from spdexport.sources.spd import from_state_dict, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    state_key: str | None
    has_inputs: bool

    @property
    def where(self) -> str:
        return str(self.path)

    def call_factory(self, what: str, state: Mapping[str, torch.Tensor]) -> FactoryResult:
        """Return the factory's module, for a source that has weights, those of ``state`` among them, but no code."""
        if self.factory is None:
            raise self._incomplete(what, state)
        return call_factory(self.factory, seed=self.seed)

    def _incomplete(self, what: str, state: Mapping[str, torch.Tensor]) -> IncompleteError:
        """Return the error that names all that is missing at once, with what it may be."""
        inside = (self.path,) if self.path.is_dir() else ()
        guess = guess_factory(state, (*inside, self.path.parent, Path.cwd()))
        factory = guess or "FILE.py:NAME"
        hint = f"Name a callable that makes the model: --factory {factory}"
        hint += ", whose layers have these names" if guess else " or --factory package.module:NAME"
        missing, blanks = ["--factory", factory], [] if guess else [factory]
        if not self.has_inputs:
            shape = shape_like(state)
            hint += f"; and if it returns no example inputs and several sizes would do, --input-shape {shape}"
            missing += ["--input-shape", shape]
            blanks += blanks_in(shape)
        return IncompleteError(
            f"The source is {what}: it has weights but not the model's code.",
            where=self.where,
            hint=f"{hint}.",
            missing=missing,
            blanks=blanks,
        )

    def refuse_factory(self, what: str) -> None:
        """Say that a factory has no use with a source that brings its own code."""
        if self.factory is not None:
            raise UsageError(
                f"The source is {what}, which needs no factory.",
                where=f"--factory {self.factory}",
                hint="Leave out either --factory or the source.",
            )


def load(
    source: str | Path | None,
    *,
    factory: str | None = None,
    trust: bool = False,
    state_key: str | None = None,
    seed: int = 0,
    has_inputs: bool = False,
) -> LoadedModel:
    """Load a model from a file, a run directory, or a factory alone. All tensors of files arrive on the CPU.

    Args:
        source: The file or folder, or None for the factory's own module.
        factory: ``FILE.py:NAME`` or ``package.module:NAME``; called without arguments.
        trust: Whether code that the source brings may run: pickled objects, TorchScript with effects.
        state_key: The key of the state dict in a checkpoint that holds several, dotted for one inside of another.
        seed: Seeds torch, numpy and random before the factory is called.
        has_inputs: Whether example inputs are given, so that they are not named among what is missing.

    Raises:
        IncompleteError: The source has no code, and there is no factory.
        UsageError: Neither source nor factory is given, or one is given that the other makes useless, or is missing.
        SourceError: The source cannot be read, or the factory fails, or the two do not fit.
        PickleRefusedError: The source brings code that may have effects, and ``trust`` is False.
        ComponentsError: The source is an SPD run with V and U that cannot be used.
    """
    if source is None:
        if factory is None:
            raise UsageError("There is no model.", where="SOURCE", hint=f"Give {_SOURCES}, or --factory alone.")
        if state_key is not None:
            raise no_keys("a factory", state_key)
        made = call_factory(factory, seed=seed)
        return LoadedModel(kind="factory", module=made.module, inputs=made.inputs)
    path = Path(source)
    kind = sniff(path)
    if state_key is not None and kind not in _CHECKPOINTS:
        raise no_keys(str(kind), state_key)
    request = _Request(path=path, factory=factory, trust=trust, seed=seed, state_key=state_key, has_inputs=has_inputs)
    return _LOADERS[kind](request)


def no_keys(what: str, state_key: str) -> UsageError:
    """Return the error of a key where there is no checkpoint."""
    return UsageError(
        f"The source is {what}, and only a checkpoint holds state dicts to choose among.",
        where=f"--state-key {state_key}",
        hint="Leave --state-key out.",
    )


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
        # Its objects may bring their state back with code of their own, which may leave gradients off.
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
    refused: PickleRefusedError | None = None
    if request.trust:
        try:
            content = load_weights_only(request.path)
        except PickleRefusedError:
            content, notes = _unpickle(request), (*notes, _RAN)
    else:
        content, refused = load_checkpoint(request.path)
    if isinstance(content, torch.nn.Module):
        if request.state_key is not None:
            raise no_keys("a pickled module", request.state_key)
        request.refuse_factory("a pickled module")
        loaded = _from_module(request, content)
    else:
        try:
            found = find_states(content, request.where, request.state_key)
        except SourceError as error:
            # What is looked for may be among what was left out.
            raise refused or error from None
        loaded = _from_states(request, found)
    if refused is not None:
        notes = (*notes, f"what is no plain data was left out: {some(refused.names)}")
    return replace(loaded, notes=(*loaded.notes, *notes))


def _from_module(request: _Request, module: torch.nn.Module) -> LoadedModel:
    return LoadedModel(kind="pickle", module=module, path=request.path, sha256=sha256_file(request.path))


def _unpickle(request: _Request) -> object:
    try:
        content: object = torch.load(request.path, map_location="cpu", weights_only=False)
    # The file's own code runs here, and any exception is its.
    except Exception as exc:
        raise _unpickling_failed(exc, request.path) from exc
    if not isinstance(content, torch.nn.Module | dict):
        raise SourceError(
            f"The pickle holds a {type(content).__name__}, not a module.",
            where=request.where,
            hint="Save the module, or better its state_dict().",
        )
    return content


def _unpickling_failed(exc: Exception, path: Path) -> SourceError:
    """Return the error of a pickle whose code is not here, or fails; of code that lies nearby, with how to name it."""
    attribute = _ATTRIBUTE.search(str(exc)) if isinstance(exc, AttributeError) else None
    # Of the script that runs now, Python tells the module's full name.
    if attribute is not None and attribute["module"].rpartition(".")[2] == "__main__":
        what = f"The class {attribute['name']} was saved from a script that ran by itself, and is not here."
        hint = f"Save model.state_dict() in that script, and name the class: --factory SCRIPT.py:{attribute['name']}."
    elif attribute is not None:
        what = f"The module {attribute['module']} has no {attribute['name']}, which the model was saved with."
        hint = f"Use the version of {attribute['module']} that it was saved with, or save model.state_dict() there."
    elif isinstance(exc, ModuleNotFoundError) and exc.name:
        what = f"The model was saved with classes of the Python module {exc.name}, which is not found."
        hint = _where_it_is(exc.name.partition(".")[0], path)
    else:
        what = f"Unpickling raised {type(exc).__name__}: {' '.join(str(exc).split())}"
        hint = "Save model.state_dict() where the model was saved, and name its class with --factory FILE.py:NAME."
    return SourceError(what, where=str(path), hint=hint)


def _where_it_is(name: str, path: Path) -> str:
    for folder in dict.fromkeys((path.resolve().parent, Path.cwd())):
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            command = command_line() or "spdexport ..."
            return f"It is in {folder}: run the command as PYTHONPATH={shlex.quote(str(folder))} {command}"
    return f"Install {name}, or run the command as PYTHONPATH=FOLDER spdexport ... with the folder that {name} is in."


def _load_safetensors(request: _Request) -> LoadedModel:
    tensors = read_tensors(request.path, error=SourceError)
    return _from_states(request, find_states(tensors, request.where, request.state_key))


def _from_states(request: _Request, candidates: Sequence[Found]) -> LoadedModel:
    """Load the one state dict that is there, or, of several, the one that fits the factory's module."""
    modules = [found for found in candidates if found.module is not None]
    if modules and request.factory is None:
        if len(modules) > 1:
            raise several(modules, request.where, "each of a pickled module")
        assert modules[0].module is not None, "they have one"
        return replace(_from_module(request, modules[0].module), notes=modules[0].note)
    if len(candidates) == 1:
        components = from_state_dict(candidates[0].state, request.path)
        if components is not None:
            loaded = _from_components(request, components, "an SPD checkpoint")
            return replace(loaded, notes=(*candidates[0].note, *loaded.notes))
    made = request.call_factory("a state dict", candidates[0].state)
    found, notes = _fitting(made.module, candidates, request.where)
    return LoadedModel(
        kind="state_dict",
        module=fit(made.module, found.state, where=request.where),
        inputs=made.inputs,
        path=request.path,
        sha256=sha256_file(request.path),
        notes=(*found.note, *notes),
    )


def _fitting(module: torch.nn.Module, candidates: Sequence[Found], where: str) -> tuple[Found, tuple[str, ...]]:
    """Return the state dict, or the part of one, that is the module's, and what the user should know of the choice.

    One that does not fit comes back as it is where there is no other.

    Raises:
        SourceError: Several fit, or none of several.
    """
    if len(candidates) > 1:
        fitting = [found for found in candidates if fits(module, found.state)]
        if len(fitting) != 1:
            raise several(candidates, where, f"and {len(fitting) or 'none'} of them fit the factory's module")
        others = ", ".join(found.key for found in candidates if found is not fitting[0])
        return fitting[0], (f"it alone fits the factory's module: {others} left out",)
    (found,) = candidates
    part = None if fits(module, found.state) else fitting_part(module, found.state)
    if part is None:
        return found, ()
    rest = sorted({name.partition(".")[0] for name in found.state} - {part[0]})
    note = f"the tensors below {part[0]!r} are the factory's module: {some(rest)} left out"
    return replace(found, state=part[1]), (note,)


def _load_directory(request: _Request) -> LoadedModel:
    if request.factory is None and is_pretrained(request.path):
        return load_pretrained(request.path, seed=request.seed)
    components = read_run(request.path)
    if components is None:
        weights = next((name for name in _WEIGHTS if (request.path / name).is_file()), None)
        raise SourceError(
            "The folder is no SPD run: it holds no model_{step}.pth, nor ckpts of JAX.",
            where=request.where,
            hint=f"Name {request.path / weights}, with --factory." if weights else "Name the run's folder, or a file.",
        )
    return _from_components(request, components, "an SPD run")


def _from_components(request: _Request, components: ComponentSet, what: str) -> LoadedModel:
    made = request.call_factory(what, components.target)
    where = str(components.path or request.path)
    run = module_of_run(made.module, components, where=where)
    return LoadedModel(
        kind="spd_run",
        module=run.module,
        inputs=made.inputs,
        components=components,
        path=request.path,
        sha256=components.sha256 or sha256_file(Path(where)),
        notes=run.notes,
    )


def _refuse_onnx(request: _Request) -> LoadedModel:
    raise SourceError("An ONNX file holds no torch model.", where=request.where, hint=f"Give {_SOURCES}.")


def _refuse_json(request: _Request) -> LoadedModel:
    with reading(request.where):
        content = json.loads(request.path.read_bytes())
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        return _refuse_kind(request)
    files = sorted({str(name) for name in shards.values()})
    raise SourceError(
        f"The file is the index of a checkpoint in {count(len(files), 'file')} ({some(files)}), and holds no tensors.",
        where=request.where,
        hint="Save the state dict of the whole model into one file, and give that with --factory.",
    )


def _refuse_kind(request: _Request) -> LoadedModel:
    raise SourceError(f"A {sniff(request.path)} is not a model.", where=request.where, hint=f"Give {_SOURCES}.")


_CHECKPOINTS = (FileKind.TORCH_ZIP, FileKind.PICKLE, FileKind.SAFETENSORS)
"""The kinds of files that may hold state dicts."""

_WEIGHTS = (WEIGHTS, INDEX, *OLDER)
"""What the weights are called in folders that Hugging Face's libraries save."""

_ATTRIBUTE = re.compile(r"Can't get attribute '(?P<name>[\w.]+)' on <module '(?P<module>[\w.]+)'")
"""What Python says of a class that a module lacks."""

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
    FileKind.JSON: _refuse_json,
    FileKind.UNKNOWN: _refuse_kind,
}
