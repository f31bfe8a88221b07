"""The story in a few functions: convert, verify, inspect, factorize. Folding has a module of its own.

What needs torch is imported where it is used, for a file alone can be verified without it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from spdexport.errors import UsageError
from spdexport.files.atomic import RejectedError, failed_name, pending
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.files.writing import writing
from spdexport.model_files import older_data, save_program, write_onnx
from spdexport.options import Options, OptionsDict
from spdexport.ort.installed import has_torch, require_torch, versions
from spdexport.overwriting import check_overwriting, output_paths
from spdexport.recorded import (
    as_recorded,
    blaming,
    check_given,
    check_hashes,
    may_be_source,
    read_record,
    taken_note,
)
from spdexport.route_metadata import plan_text
from spdexport.routes import find_route, is_onnx, no_program
from spdexport.steps import Remark
from spdexport.verification.check import Check, Progress
from spdexport.verification.file_alone import verify_files
from spdexport.verification.file_inputs import GivenArrays, read_arrays
from spdexport.verification.ports import input_shapes
from spdexport.verification.result import Status, Verification
from spdexport.worth import costs_more

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch.export import ExportedProgram

    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.ort.providers import Provider
    from spdexport.planning import Plan
    from spdexport.precision import Precision
    from spdexport.ranges import Ranges
    from spdexport.rewrite.onnx_trim import Trimming


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What a source holds and what would become of it.

    Attributes:
        plan: The decision for each layer.
        components: Where V and U come from: ``spd``, ``file``, ``svd`` or ``search``.
        hashes: SHA-256 of source, components and masks, and of the files written, by name.
        notes: What the user should know.
        seed: Of every random number.
        versions: Of everything that took part.
        ranges: The sizes that the model holds for, of dynamic axes that have a limit.
    """

    plan: Plan
    components: str
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]
    ranges: Ranges = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion(Inspection):
    """What a conversion did.

    Attributes:
        outputs: The files written; of a conversion that failed its check, ``OUT.failed.onnx`` alone.
        verification: What the check found; None where it was not asked for.
        trimming: What dead channels were removed from the ONNX file, and what was padded; None where it has all that
            the plan says.
    """

    outputs: tuple[Path, ...]
    verification: Verification | None
    trimming: Trimming | None = None

    @property
    def verdict(self) -> Status:
        """The verification's verdict; ``not_run`` without one."""
        return Status.NOT_RUN if self.verification is None else self.verification.verdict


def convert(
    source: Source,
    output: str | Path | Sequence[str | Path],
    *,
    verify: bool = True,
    providers: str | Sequence[str] | None = None,
    thorough: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    max_relative_l2: float | None = None,
    max_top1_drop: float | None = None,
    save_plan: str | Path | None = None,
    in_place: bool = False,
    dry_run: bool = False,
    precision: Precision | None = None,
    progress: Progress = _silent,
    **options: Unpack[OptionsDict],
) -> Conversion:
    """Convert a model to ONNX with its layers in factorized form, and check the file.

    Args:
        source: A file (an ONNX model too) or SPD run directory, an ``nn.Module``, or an ``ExportedProgram``; None for
            ``factory`` alone.
        output: One or more files to write: ``.onnx`` for ONNX, ``.pt2`` for the factorized program, which an ONNX
            source cannot give.
        verify: Whether to check the result. A file that fails is left as ``OUT.failed.onnx``, and never as OUT; so is
            one whose approximation exceeds a limit.
        providers: ONNX Runtime providers for the device edge beside the CPU: ``cuda``, ``openvino``. None means CUDA
            where it can run.
        thorough: Whether the check compares every layer's output too, and leaves out no input for time.
        atol: An absolute tolerance of outputs in the place of the model's own; NaN, shapes and weights are judged
            without it.
        rtol: A relative tolerance; the two add up.
        max_relative_l2: A limit to the relative norm of what masks, ranks and deltas change, on ``inputs``.
        max_top1_drop: A limit to what is lost in accuracy on ``inputs`` with labels; without them, to the share of
            samples that get another top class.
        save_plan: A file for the plan, which the option ``plan`` repeats.
        in_place: Whether an output is the source's own file, which is replaced once the check has not failed.
        dry_run: Whether to plan alone: no model is written, and nothing is checked.
        precision: How the file's numbers are stored; None for what the plan says, or else as the source has them.
        progress: Told what is being done.
        **options: See ``spdexport.Options``.

    Raises:
        UsageError: Options that do not go together, or name nothing, or an output that would overwrite what is read.
        InputError: The source, components, masks or inputs cannot be used.
        ModelError: The model cannot be traced or exported.
        OutputError: The system does not let an output be written.
    """
    check = Check.of(
        providers=providers,
        thorough=thorough,
        atol=atol,
        rtol=rtol,
        max_relative_l2=max_relative_l2,
        max_top1_drop=max_top1_drop,
        progress=progress,
    )
    chosen = Options.of(_for_target(options, check.providers) if providers else options)
    check.limits.check(chosen, verify=verify)
    onnx_path, program_path = output_paths(output)
    paths = {"source": source, "output": (onnx_path, program_path), "save_plan": save_plan, **options}
    check_overwriting(paths, in_place=in_place, verify=verify)
    if program_path and is_onnx(source):
        raise no_program(source, f"-o {program_path}")
    verification: Verification | None = None
    written: list[Path] = []
    with contextlib.ExitStack() as stack:
        # Outside of what a failed check undoes: the plan is what it is.
        plan_file = stack.enter_context(pending(save_plan)) if save_plan else None
        stack.enter_context(contextlib.suppress(RejectedError))
        # The outputs are opened first, so that a folder that cannot be written to is told before the long work.
        program_file = stack.enter_context(pending(program_path)) if program_path and not dry_run else None
        onnx_file = stack.enter_context(pending(onnx_path)) if onnx_path and not dry_run else None
        route = find_route(source, chosen, progress, precision=precision)
        if plan_file:
            with writing(plan_file.final):
                plan_file.path.write_text(plan_text(route), encoding="utf-8")
        if warning := costs_more(route.prepared.plan, route.prepared.components, chosen):
            progress(Remark(warning))
        if not dry_run:
            progress("placing factors")
        if program_file and program_path:
            save_program(route.program(), program_file.path, program_path)
            written = [program_path]
        if onnx_file and onnx_path:
            progress("exporting to ONNX")
            data = write_onnx(route.model(), onnx_file, external_from=route.external_from)
            written = [onnx_path, *data, *written]
        if verify and not dry_run:
            verification = route.verify(
                onnx_file.path if onnx_file else None,
                (onnx_path or written[0]).name,
                replace(check, seed=chosen.seed),
            )
            verification = check.limits.judge(verification)
            if verification.verdict is Status.FAIL or verification.exceeds:
                rejected = onnx_file or program_file
                assert rejected is not None, "there is at least one output"
                written = [failed_name(rejected.final), *(p for p in written if p.suffix == ".data")]
                # What is under the name that was asked for is not what was checked.
                verification = replace(verification, artifacts={})
                rejected.set_aside()
    prepared = route.prepared
    # A failed file leaves the one before it, and its data, in their place.
    older = older_data(onnx_path, written) if onnx_path in written else ()
    return Conversion(
        plan=prepared.plan,
        components=prepared.components,
        hashes={**prepared.hashes, **{path.name: sha256_file(path) for path in written}},
        notes=(*prepared.notes, *older),
        seed=chosen.seed,
        versions=versions(),
        outputs=tuple(written),
        verification=verification,
        trimming=route.trimming if onnx_path and not dry_run else None,
        ranges=prepared.ranges,
    )


def verify(
    file: str | Path,
    *,
    against: Source = None,
    providers: str | Sequence[str] | None = None,
    thorough: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    max_relative_l2: float | None = None,
    max_top1_drop: float | None = None,
    progress: Progress = _silent,
    **options: Unpack[OptionsDict],
) -> Verification:
    """Check an ONNX file against the source it was made from, against another ONNX file, or by itself.

    Without a source, what ONNX Runtime computes is compared with what the file says (or another file, given as
    ``against``) in float64, and the weights with the hash that the file carries.

    With a source, options that shaped the file (delta, form, layers, ...) are read from its metadata where they are not
    given; those that change what is intended are in ``Verification.recorded``. The seed of a factory is always the
    file's; ``seed`` is that of the check.

    Args:
        file: The ONNX file.
        against: The source, as for ``convert``, or an ONNX file; None for ``factory`` alone, or for no source at all.
        providers: As for ``convert``.
        thorough: As for ``convert``.
        atol: As for ``convert``.
        rtol: As for ``convert``.
        max_relative_l2: As for ``convert``.
        max_top1_drop: As for ``convert``.
        progress: Told what is being done.
        **options: What tells what the source is: see ``spdexport.Options``.

    Raises:
        UsageError: Components, masks or an option are not those that the file was made with.
        InputError: The file or the source cannot be used.
        CaptureError: The model cannot be traced.
    """
    path = Path(file)
    check = Check.of(
        providers=providers,
        thorough=thorough,
        atol=atol,
        rtol=rtol,
        max_relative_l2=max_relative_l2,
        max_top1_drop=max_top1_drop,
        progress=progress,
    )
    given = Options.of(options)
    check.limits.check(given, verify=True)
    model = load_onnx(path)
    other = None
    if is_onnx(against) and not may_be_source(Path(str(against)), model):
        other = Path(str(against))
    if other is not None or (against is None and options.get("factory") is None):
        if check.limits.are_set:
            raise UsageError(
                "A file alone does not tell what it approximates.", where="the limits", hint="Give --against SOURCE."
            )
        return _verify_files(path, other, given, replace(check, seed=given.seed))
    record = read_record(model, path)
    completed = as_recorded(options, record)
    check_given(completed.options, record, against)
    with blaming(record, completed):
        route = find_route(against, completed.options, progress, shapes=input_shapes(model), precision=record.precision)
    check_hashes(route.prepared.hashes, record)
    found = route.verify(
        path,
        path.name,
        replace(check, seed=options.get("seed", completed.options.seed)),
        folded=record.folded,
    )
    if completed.taken:
        found = replace(found, recorded=completed.taken, notes=(taken_note(completed.taken), *found.notes))
    return check.limits.judge(found)


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
    prepared = find_route(source, chosen, progress).prepared
    return Inspection(
        plan=prepared.plan,
        components=prepared.components,
        hashes=prepared.hashes,
        notes=prepared.notes,
        seed=chosen.seed,
        versions=versions(),
        ranges=prepared.ranges,
    )


@overload
def factorize(
    source: Source, *, trainable: Literal[False] = False, **options: Unpack[OptionsDict]
) -> ExportedProgram: ...


@overload
def factorize(source: Source, *, trainable: Literal[True], **options: Unpack[OptionsDict]) -> torch.nn.Module: ...


def factorize(
    source: Source, *, trainable: bool = False, **options: Unpack[OptionsDict]
) -> ExportedProgram | torch.nn.Module:
    """Return the factorized model as a torch program: ``factorize(module, inputs=(x,)).module()(x)`` runs it.

    Args:
        source: As for ``convert``; a module given here is not changed.
        trainable: Whether to give a module to be trained instead, with parameters of its own. Its state dict, saved by
            ``torch.save``, is what ``components`` takes: the layers come back in their forms, with what was trained.
            Batch norm and dropout stay in eval mode, as they were traced.
        **options: See ``spdexport.Options``.

    Raises:
        UsageError, InputError, CaptureError: As ``convert`` does.
    """
    if is_onnx(source):
        raise no_program(source, "factorize")
    route = find_route(source, Options.of(options), _silent)
    return route.trainable() if trainable else route.program()


def _for_target(options: OptionsDict, asked: Sequence[Provider]) -> OptionsDict:
    """The options with the first provider that was named as what the forms are weighed for: lanes are the CPU's."""
    if not asked or options.get("plan") is not None:
        return options
    return {"lane_width": asked[0].lane, "target": asked[0].name, **options}


def _inputs_of(options: Options) -> ExampleInputs | GivenArrays | None:
    if not options.input_shape and isinstance(options.inputs, Path) and not has_torch():
        return read_arrays(options.inputs)
    if options.inputs is None and not options.input_shape:
        return None
    require_torch()
    from spdexport.example_inputs import example_inputs

    return example_inputs(options)


def _verify_files(path: Path, other: Path | None, options: Options, check: Check) -> Verification:
    """Verification without a torch model."""
    usable = {"inputs", "input_shape", "seed"}
    given = [f.name for f in fields(Options) if f.name not in usable and getattr(options, f.name) != f.default]
    if given and other is not None:
        raise UsageError(
            f"{other.name} is an ONNX file that {path.name} was not made from: the two are compared as they are.",
            where=f"--{given[0].replace('_', '-')} and --against {other}",
            hint="Leave the option out, or name the source that the file was made from.",
        )
    if given:
        raise UsageError(
            f"{given[0]} tells something about a source, and there is none.",
            where=f"--{given[0].replace('_', '-')}",
            hint="Give --against SOURCE or --factory, or leave the option out.",
        )
    if other is not None:
        load_onnx(other)
    return verify_files(
        path,
        check,
        name=path.name,
        reference=other,
        inputs=_inputs_of(options),
        own_inputs=options.own_inputs,
    )
