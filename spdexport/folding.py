"""Fold a file: the factorized layers of an ONNX model or a torch program become one layer each again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport import __version__
from spdexport.content import content_hash
from spdexport.errors import SourceError, UsageError
from spdexport.files.atomic import Pending, RejectedError, failed_name, pending
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.files.sniff import FileKind, sniff
from spdexport.model_files import (
    METADATA_PREFIX,
    older_data,
    read_metadata,
    save_program,
    write_metadata,
    write_onnx,
)
from spdexport.ort.installed import versions
from spdexport.ort.sessions import parse_providers
from spdexport.overwriting import check_overwriting
from spdexport.rewrite.fold_result import told
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.verification.check import Check
from spdexport.verification.computed import with_computed_weights
from spdexport.verification.file_alone import verify_files
from spdexport.verification.result import Status, Verification

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Skipped
    from spdexport.rewrite.fold_result import FoldedChain
    from spdexport.rewrite.onnx_fold import FoldResult

Progress = Callable[[str], None]

ENDINGS = {FileKind.ONNX: ".onnx", FileKind.PT2: ".pt2"}
"""The kinds of files that are folded, and what the names of their folded files end in."""

MADE_WITH = ("components", "options", "plan", "sha256", "source", "trimming")
"""The entries of a file's metadata that are kept when it is folded: the model, and what was decided about it before."""


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Folding:
    """What folding a file did.

    Attributes:
        outputs: The files written; of a fold that failed its check, ``OUT.failed.onnx`` or ``.pt2`` alone.
        folded: The layers that were folded, in the graph's order.
        declined: Chains that were looked at and are not one layer, each with its reason.
        verification: What the check found; None where it was not asked for.
        hashes: SHA-256 of ``source`` and of the files written, by name.
        notes: What the user should know.
        seed: Of every random number.
        versions: Of everything that took part.
    """

    outputs: tuple[Path, ...]
    folded: tuple[FoldedChain, ...]
    declined: tuple[Skipped, ...]
    verification: Verification | None
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]

    @property
    def verdict(self) -> Status:
        """The verification's verdict; ``not_run`` without one."""
        return Status.NOT_RUN if self.verification is None else self.verification.verdict

    def explained(self) -> tuple[str, ...]:
        """Return one line for each candidate: what it became, or why it is not one layer."""
        return (*map(told, self.folded), *map(told, self.declined))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What one kind of file gave: the data files beside it, the layers, the check, and notes."""

    data: tuple[Path, ...]
    folded: tuple[FoldedChain, ...]
    declined: tuple[Skipped, ...]
    verification: Verification | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The arguments of ``fold``."""

    source: Path
    sha256: str
    output: Path
    verify: bool
    providers: str | Sequence[str] | None
    seed: int
    trust: bool
    if_cheaper: bool
    progress: Progress


def fold(
    file: str | Path,
    output: str | Path,
    *,
    verify: bool = True,
    providers: str | Sequence[str] | None = None,
    seed: int = 0,
    trust: bool = False,
    allow_pickle: bool = False,
    if_cheaper: bool = False,
    in_place: bool = False,
    progress: Progress = _silent,
) -> Folding:
    """Turn V, mask and U, and the delta beside them, into one layer again, in an ONNX file or a torch program.

    Layers are recognized by structure, so the file need not come from spdexport: any chain of convolutions or linear
    layers that is one of them, and sums of such chains on the same input. The same file gives the same bytes. Where
    there is nothing to fold, a copy is written.

    Args:
        file: An ONNX model or a ``.pt2`` program, told by its content.
        output: The file to write, ending in ``.onnx`` or ``.pt2`` as ``file`` is one; another file than
            those that are read, but for ``in_place``.
        verify: Whether to check the result: an ONNX file on ONNX Runtime against the float64 evaluation of ``file``, a
            program in float64 against the one it was. A file that fails is left as ``OUT.failed.onnx``, and never as
            OUT.
        providers: For an ONNX file, providers to check on beside the CPU: ``cuda``, ``openvino``. None means CUDA where
            it can run.
        seed: Of the check's inputs.
        trust: Whether a program may hold pickled objects, whose loading runs code that they name.
        allow_pickle: The older name of ``trust``.
        if_cheaper: Whether to leave a chain that has fewer multiply-accumulates than the one layer that it is; it is
            then among ``declined``, with both numbers. Otherwise everything that folds exactly is folded.
        in_place: Whether ``output`` is ``file``, which is replaced once the check has not failed.
        progress: Told what is being done.

    Raises:
        UsageError: The output does not fit the file, or would overwrite what is read, or providers are asked for that a
            program does not run on.
        SourceError: The file is missing, damaged, or of another kind.
        OutputError: The system does not let the output be written.
    """
    source, output = Path(file), Path(output)
    kind = sniff(source)
    _check_kind(kind, source, output)
    check_overwriting({"file": source, "output": output}, in_place=in_place, verify=verify)
    if kind is FileKind.PT2 and providers is not None and parse_providers(providers):
        raise UsageError(
            "A .pt2 program is checked in torch, and runs on no provider of ONNX Runtime.",
            where="--provider",
            hint="Leave --provider out.",
        )
    request = _Request(
        source=source,
        sha256=sha256_file(source),
        output=output,
        verify=verify,
        providers=providers,
        seed=seed,
        trust=trust or allow_pickle,
        if_cheaper=if_cheaper,
        progress=progress,
    )
    written: _Written | None = None
    target = output
    with contextlib.suppress(RejectedError), pending(output) as unfinished:
        written = _fold_onnx(request, unfinished) if kind is FileKind.ONNX else _fold_program(request, unfinished)
        if written.verification is not None and written.verification.verdict is Status.FAIL:
            target = failed_name(output)
            # What is under the name that was asked for is not what was checked.
            written = replace(written, verification=replace(written.verification, artifacts={}))
            unfinished.set_aside()
    assert written is not None, "a rejected file was written, too"
    notes = written.notes
    if not written.folded and not written.declined:
        notes = (*notes, "nothing was folded: no layer has factors")
    elif not written.folded:
        notes = (*notes, "nothing was folded: each candidate was declined")
    outputs = (target, *written.data)
    if target == output:
        notes = (*notes, *older_data(output, written.data))
    return Folding(
        outputs=outputs,
        folded=written.folded,
        declined=written.declined,
        verification=written.verification,
        hashes={"source": request.sha256, **{path.name: sha256_file(path) for path in outputs}},
        notes=notes,
        seed=seed,
        versions=versions(),
    )


def _check_kind(kind: FileKind, source: Path, output: Path) -> None:
    if kind not in ENDINGS:
        raise SourceError(
            f"A {kind} cannot be folded.", where=str(source), hint="Give an ONNX model or a .pt2 program."
        )
    ending = ENDINGS[kind]
    if output.suffix != ending:
        raise UsageError(
            f"The output {output.name!r} does not end in {ending}, as that of an input of its kind ({kind}) has to.",
            where="-o",
            hint=f"Name the output {output.stem}{ending}.",
        )


def _fold_onnx(request: _Request, unfinished: Pending) -> _Written:
    # Names are checked before the work; CUDA is looked for only where something would run on it.
    providers = parse_providers(request.providers) if request.verify or request.providers is not None else ()
    request.progress("loading")
    model = ir.external_data.load_to_model(load_onnx(request.source))
    request.progress("folding")
    result = _most_folded(model, if_cheaper=request.if_cheaper)
    folded = result.model
    # What the file was made with still tells which model it is; its content is hashed anew.
    made = {key: value for key, value in read_metadata(folded).items() if key in MADE_WITH}
    for key in [key for key in folded.metadata_props if key.startswith(METADATA_PREFIX)]:
        del folded.metadata_props[key]
    layers = [chain.name for chain in result.folded]
    entries = {
        **made,
        "version": __version__,
        "folded": {"layers": layers, "of": request.sha256},
        "content": content_hash(folded),
    }
    write_metadata(folded, entries)
    data = write_onnx(folded, unfinished)
    verification = None
    if request.verify:
        verification = verify_files(
            unfinished.path,
            Check(seed=request.seed, providers=providers, progress=request.progress),
            name=request.output.name,
            reference=request.source,
            inputs=None,
        )
    return _Written(data=data, folded=result.folded, declined=result.declined, verification=verification)


def _most_folded(model: ir.Model, *, if_cheaper: bool) -> FoldResult:
    """The folds of a model; weights that it computes are stored where that makes one layer of more."""
    result, computed = fold_onnx(model, if_cheaper=if_cheaper), with_computed_weights(model)
    if computed is None:
        return result
    stored = fold_onnx(computed, if_cheaper=if_cheaper)
    nodes = [{node for chain in found.folded for node in chain.nodes} for found in (result, stored)]
    return stored if len(nodes[1]) > len(nodes[0]) else replace(result, declined=stored.declined)


def _fold_program(request: _Request, unfinished: Pending) -> _Written:
    request.progress("loading")
    # Only programs need torch.
    from spdexport.loading import load
    from spdexport.rewrite.torch_fold import fold_program
    from spdexport.verification.programs import verify_programs

    loaded = load(request.source, trust=request.trust)
    assert loaded.program is not None, "a .pt2 file holds a program"
    request.progress("folding")
    result = fold_program(loaded.program, if_cheaper=request.if_cheaper)
    save_program(result.program, unfinished.path, request.output)
    verification = None
    if request.verify:
        verification = verify_programs(
            loaded.program,
            result.program,
            example=loaded.inputs,
            seed=request.seed,
            artifacts={request.source.name: request.sha256, request.output.name: sha256_file(unfinished.path)},
            progress=request.progress,
        )
    return _Written(
        data=(), folded=result.folded, declined=result.declined, verification=verification, notes=loaded.notes
    )
