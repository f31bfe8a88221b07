"""The story in a few functions: convert, verify, inspect, factorize. Folding has a module of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import onnx_ir as ir

from spdexport import __version__
from spdexport.errors import SourceError, UsageError
from spdexport.export import (
    Exported,
    content_hash,
    export_onnx,
    read_metadata,
    save_program,
    write_metadata,
    write_onnx,
)
from spdexport.files.atomic import replacing
from spdexport.files.hashing import sha256_file
from spdexport.files.sniff import FileKind, sniff
from spdexport.loading.inputs import inputs_from_file, inputs_from_shapes
from spdexport.options import Options, OptionsDict
from spdexport.prepare import Prepared, Source, prepare
from spdexport.runtime import Provider, parse_providers, versions
from spdexport.verify.alone import verify_files
from spdexport.verify.result import Status, Verification
from spdexport.verify.run import Subject, verify_subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram

    from spdexport.plan import Plan

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What a source holds and what would become of it.

    Attributes:
        plan: The decision for each layer.
        components: Where V and U come from: ``spd``, ``file`` or ``svd``.
        hashes: SHA-256 of source, components and masks, and of the files written, by name.
        notes: What the user should know.
        seed: Of every random number.
        versions: Of everything that took part.
    """

    plan: Plan
    components: str
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion(Inspection):
    """What a conversion did.

    Attributes:
        outputs: The files written; of a conversion that failed its check, ``OUT.failed.onnx`` alone.
        verification: What the check found; None where it was not asked for.
    """

    outputs: tuple[Path, ...]
    verification: Verification | None

    @property
    def verdict(self) -> Status:
        """The verification's verdict; ``not_run`` without one."""
        return Status.NOT_RUN if self.verification is None else self.verification.verdict


class _RejectedError(Exception):
    """The check failed: the outputs must not take their names."""


def convert(
    source: Source,
    output: str | Path | Sequence[str | Path],
    *,
    verify: bool = True,
    providers: Sequence[str] | None = None,
    progress: Progress = _silent,
    **options: Unpack[OptionsDict],
) -> Conversion:
    """Convert a model to ONNX with its layers in factorized form, and check the file.

    Args:
        source: A file or SPD run directory, an ``nn.Module``, or an ``ExportedProgram``; None for ``factory`` alone.
        output: One or more files to write: ``.onnx`` for ONNX, ``.pt2`` for the factorized program.
        verify: Whether to check the result. A file that fails is left as ``OUT.failed.onnx``, and never as OUT.
        providers: ONNX Runtime providers for the device edge beside the CPU: ``cuda``, ``tensorrt``. None means CUDA
            where it can run.
        progress: Told what is being done.
        **options: See ``spdexport.Options``.

    Raises:
        UsageError: Options that do not go together, or name nothing.
        InputError: The source, components, masks or inputs cannot be used.
        ModelError: The model cannot be traced or exported.
    """
    chosen = Options.of(options)
    onnx_path, program_path = _output_paths(output)
    asked = parse_providers(providers)
    verification: Verification | None = None
    with contextlib.suppress(_RejectedError), contextlib.ExitStack() as stack:
        # The outputs are opened first, so that a folder that cannot be written to is told before the long work.
        program_file = stack.enter_context(replacing(program_path)) if program_path else None
        onnx_file = stack.enter_context(replacing(onnx_path)) if onnx_path else None
        prepared = prepare(source, chosen, progress)
        progress("placing factors")
        intended = prepared.factorized()
        written: list[Path] = []
        if program_file and program_path:
            save_program(intended, program_file)
            written.append(program_path)
        if onnx_file and onnx_path:
            progress("exporting to ONNX")
            exported = export_onnx(intended, opset=chosen.opset, axes=prepared.captured.axes)
            write_metadata(exported.model, _metadata(prepared, chosen, exported.model))
            data = write_onnx(exported.model, onnx_file, onnx_path)
            written = [onnx_path, *data, *written]
            if verify:
                subject = _subject(onnx_file, onnx_path.name, prepared, intended, chosen, lambda: exported)
                verification = verify_subject(subject, providers=asked, seed=chosen.seed, progress=progress)
                if verification.verdict is Status.FAIL:
                    failed = onnx_path.with_name(f"{onnx_path.stem}.failed{onnx_path.suffix}")
                    onnx_file.replace(failed)
                    written = [failed, *data]
                    raise _RejectedError
    return Conversion(
        plan=prepared.plan,
        components=prepared.components,
        hashes={**prepared.hashes, **{path.name: sha256_file(path) for path in written}},
        notes=prepared.notes,
        seed=chosen.seed,
        versions=versions(),
        outputs=tuple(written),
        verification=verification,
    )


def verify(
    file: str | Path,
    *,
    against: Source = None,
    providers: Sequence[str] | None = None,
    progress: Progress = _silent,
    **options: Unpack[OptionsDict],
) -> Verification:
    """Check an ONNX file against the source it was made from, against another ONNX file, or by itself.

    Without a source, what ONNX Runtime computes is compared with what the file says (or another file, given as
    ``against``) in float64, and the weights with the hash that the file carries.

    With a source, options that shaped the file (delta, form, layers, ...) are read from its metadata where they are not
    given.

    Args:
        file: The ONNX file.
        against: The source, as for ``convert``, or an ONNX file; None for ``factory`` alone, or for no source at all.
        providers: As for ``convert``.
        progress: Told what is being done.
        **options: What tells what the source is: see ``spdexport.Options``.

    Raises:
        UsageError: Components, masks or an option are not those that the file was made with.
        InputError: The file or the source cannot be used.
        CaptureError: The model cannot be traced.
    """
    path = Path(file)
    asked = parse_providers(providers)
    model = _load_onnx(path)
    other = _other_file(against)
    if other is not None or (against is None and options.get("factory") is None):
        return _verify_files(path, other, Options.of(options), asked, progress)
    metadata = read_metadata(model)
    chosen = _as_recorded(options, metadata, path)
    prepared = prepare(against, chosen, progress)
    _check_hashes(prepared, metadata, path)
    progress("placing factors")
    intended = prepared.factorized()

    @cache
    def exported() -> Exported:
        return export_onnx(intended, opset=chosen.opset, axes=prepared.captured.axes)

    subject = _subject(path, path.name, prepared, intended, chosen, exported)
    return verify_subject(subject, providers=asked, seed=chosen.seed, progress=progress)


def inspect(source: Source, *, progress: Progress = _silent, **options: Unpack[OptionsDict]) -> Inspection:
    """List the layers of a source with geometry, components and costs; nothing is written.

    Args:
        source: As for ``convert``.
        progress: Told what is being done.
        **options: See ``spdexport.Options``.

    Raises:
        UsageError, InputError, CaptureError: As ``convert`` does.
    """
    chosen = Options.of(options)
    prepared = prepare(source, chosen, progress)
    return Inspection(
        plan=prepared.plan,
        components=prepared.components,
        hashes=prepared.hashes,
        notes=prepared.notes,
        seed=chosen.seed,
        versions=versions(),
    )


def factorize(source: Source, **options: Unpack[OptionsDict]) -> ExportedProgram:
    """The factorized model as a torch program: ``factorize(module, inputs=(x,)).module()(x)`` runs it.

    Args:
        source: As for ``convert``; a module given here is not changed.
        **options: See ``spdexport.Options``.

    Raises:
        UsageError, InputError, CaptureError: As ``convert`` does.
    """
    return prepare(source, Options.of(options)).factorized()


def _output_paths(output: str | Path | Sequence[str | Path]) -> tuple[Path | None, Path | None]:
    """The ONNX file and the program file among the outputs."""
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


def _metadata(prepared: Prepared, options: Options, model: ir.Model) -> dict[str, Any]:
    return {
        "content": content_hash(model),
        "version": __version__,
        "options": options.recorded(),
        "plan": prepared.plan.as_json(),
        "sha256": dict(prepared.hashes),
        "components": prepared.components,
    }


def _subject(
    file: Path,
    name: str,
    prepared: Prepared,
    intended: ExportedProgram,
    options: Options,
    exported: Callable[[], Exported],
) -> Subject:
    effective = prepared.effective()

    @cache
    def plain() -> ir.Model:
        return export_onnx(effective, opset=options.opset, axes=prepared.captured.axes).model

    return Subject(
        file=file,
        name=name,
        module=prepared.loaded.module,
        program=prepared.captured.program,
        effective=effective,
        intended=intended,
        lowered=lambda: exported().lowered,
        plain=plain,
        plan=prepared.plan,
        example=prepared.captured.inputs,
        own_inputs=not options.input_shape,
    )


def _other_file(against: Source) -> Path | None:
    """The ONNX file that is to be compared with, where the source is one."""
    if isinstance(against, str | Path) and sniff(against) is FileKind.ONNX:
        return Path(against)
    return None


def _verify_files(
    path: Path, other: Path | None, options: Options, providers: Sequence[Provider], progress: Progress
) -> Verification:
    """Verification without a torch model."""
    usable = {"inputs", "input_shape", "seed"}
    given = [f.name for f in fields(Options) if f.name not in usable and getattr(options, f.name) != f.default]
    if given:
        raise UsageError(
            f"{given[0]} tells something about a source, and there is none.",
            where=f"--{given[0].replace('_', '-')}",
            hint="Give --against SOURCE or --factory, or leave the option out.",
        )
    if other is not None:
        _load_onnx(other)
    inputs = options.inputs
    if isinstance(inputs, Path):
        inputs = inputs_from_file(inputs)
    elif inputs is None and options.input_shape:
        inputs = inputs_from_shapes(options.input_shape, options.seed)
    return verify_files(
        path,
        name=path.name,
        reference=other,
        providers=providers,
        inputs=inputs,
        own_inputs=not options.input_shape,
        seed=options.seed,
        progress=progress,
    )


def _load_onnx(path: Path) -> ir.Model:
    if not path.is_file():
        raise SourceError("There is no such file.", where=str(path), hint="Name an ONNX file.")
    try:
        model = ir.load(path)
    except Exception as error:
        raise SourceError(
            f"The file is not ONNX: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(path),
            hint="Give a file that spdexport convert wrote.",
        ) from error
    if not model.graph.outputs:
        # To protobuf, an empty file is an empty model.
        raise SourceError(
            "The file is not ONNX: it has no graph.", where=str(path), hint="Give a file that spdexport convert wrote."
        )
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, path)
    return model


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse a model whose weights are not there, before anything reads them."""
    data = Path(tensor.path)
    needed = (tensor.offset or 0) + (tensor.length or 0)
    if not data.is_file() or data.stat().st_size < needed:
        what = "is shorter than the model says" if data.is_file() else "is missing"
        raise SourceError(
            f"The file {data.name}, which holds weights of the model, {what}.",
            where=str(path),
            hint="Copy the model together with its data file.",
        )


def _as_recorded(given: OptionsDict, metadata: Mapping[str, Any], path: Path) -> Options:
    """The options given, completed by those that the file records; one that differs from the record is refused."""
    recorded = metadata.get("options")
    if not isinstance(recorded, dict):
        return Options.of(given)
    known = {f.name for f in fields(Options)}
    completed: dict[str, Any] = {k: v for k, v in recorded.items() if k in known}
    if given.get("masks") is None:
        # What only makes sense with masks; that they are missing is told by their hash.
        completed.pop("mask_threshold", None)
        completed.pop("keep_masks", None)
    options = Options.of({**completed, **given})  # type: ignore[typeddict-item]
    for name, value in options.recorded().items():
        if name in given and name in recorded and value != recorded[name]:
            raise UsageError(
                f"The file was made with {name} = {recorded[name]!r}, not {value!r}.",
                where=f"{path}, --{name.replace('_', '-')}",
                hint="Leave the option out: it is read from the file.",
            )
    return options


def _check_hashes(prepared: Prepared, metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse components and masks that are not those that the file was made with."""
    recorded = metadata.get("sha256")
    if not isinstance(recorded, dict):
        return
    for what in ("components", "masks"):
        before, now = recorded.get(what), prepared.hashes.get(what)
        if before == now:
            continue
        if now is None:
            raise UsageError(
                f"The file was made with {what}, and none are given.", where=str(path), hint=f"Give --{what} FILE."
            )
        if before is None:
            raise UsageError(
                f"The file was made without {what}.", where=f"{path}, --{what}", hint=f"Leave --{what} out."
            )
        raise UsageError(
            f"The file was made with other {what}: their content has another hash.",
            where=f"{path}, --{what}",
            hint="Give the ones it was made with, or convert again.",
        )
