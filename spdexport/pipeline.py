"""The story in a few functions: convert, verify, inspect, factorize. Folding has a module of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from spdexport import __version__
from spdexport.content import content_hash
from spdexport.errors import UsageError
from spdexport.export import Exported, export_onnx
from spdexport.files.atomic import RejectedError, failed_name, replacing, set_aside
from spdexport.files.hashing import sha256_file
from spdexport.files.sniff import FileKind, sniff
from spdexport.installed import versions
from spdexport.loading.inputs import inputs_from_file, inputs_from_shapes
from spdexport.model_files import load_onnx, no_data_left, read_metadata, save_program, write_metadata, write_onnx
from spdexport.options import Options, OptionsDict
from spdexport.prepare import Prepared, Source, prepare
from spdexport.recorded import as_recorded, check_hashes
from spdexport.runtime import Provider, parse_providers
from spdexport.verification.alone import verify_files
from spdexport.verification.result import Status, Verification
from spdexport.verification.run import Subject, verify_subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
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
    written: list[Path] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(RejectedError))
        # The outputs are opened first, so that a folder that cannot be written to is told before the long work.
        program_file = stack.enter_context(replacing(program_path)) if program_path else None
        onnx_file = None
        if onnx_path:
            stack.enter_context(no_data_left(onnx_path))
            onnx_file = stack.enter_context(replacing(onnx_path))
        prepared = prepare(source, chosen, progress)
        progress("placing factors")
        intended = prepared.factorized()
        if program_file and program_path:
            save_program(intended, program_file)
            written = [program_path]
        exported: Exported | None = None
        if onnx_file and onnx_path:
            progress("exporting to ONNX")
            exported = export_onnx(intended, opset=chosen.opset, axes=prepared.captured.axes)
            write_metadata(exported.model, _metadata(prepared, chosen, exported.model))
            written = [onnx_path, *write_onnx(exported.model, onnx_file, onnx_path), *written]
        if verify:
            name = (onnx_path or written[0]).name
            subject = _subject(onnx_file, name, prepared, intended, chosen, lambda: exported)
            verification = verify_subject(subject, providers=asked, seed=chosen.seed, progress=progress)
            if verification.verdict is Status.FAIL:
                temporary, path = (onnx_file, onnx_path) if onnx_file else (program_file, program_path)
                assert temporary is not None
                assert path is not None, "there is at least one output"
                written = [failed_name(path), *(p for p in written if p.suffix == ".data")]
                set_aside(temporary, path)
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
    model = load_onnx(path)
    other = _other_file(against)
    if other is not None or (against is None and options.get("factory") is None):
        return _verify_files(path, other, Options.of(options), asked, progress)
    metadata = read_metadata(model)
    chosen = as_recorded(options, metadata, path)
    prepared = prepare(against, chosen, progress)
    check_hashes(prepared, metadata, path)
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
    file: Path | None,
    name: str,
    prepared: Prepared,
    intended: ExportedProgram,
    options: Options,
    exported: Callable[[], Exported | None],
) -> Subject:
    effective = prepared.effective()

    def lowered() -> ExportedProgram:
        found = exported()
        assert found is not None, "only an ONNX file has a program that was lowered for it"
        return found.lowered

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
        lowered=lowered,
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
        load_onnx(other)
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
