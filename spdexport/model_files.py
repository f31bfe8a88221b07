"""Models as files: ONNX read, written whole or not at all, and marked with metadata; torch programs written."""

from __future__ import annotations

import contextlib
import glob
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from spdexport.errors import ExportError, SourceError
from spdexport.files.atomic import RejectedError
from spdexport.files.hashing import sha256_file
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch.export import ExportedProgram

METADATA_PREFIX = "spdexport."
"""What the names of our entries in a model's metadata begin with."""

EXTERNAL_DATA_FROM = 1_500_000_000
"""Bytes of weights above which they go to a file beside the model: protobuf stops at 2 GiB."""

INLINE_UP_TO = 1024
"""Bytes of a weight that is in the model itself even where others are beside it: shapes and the like."""


def load_onnx(path: Path) -> ir.Model:
    """A model, its external data left in its file until a weight is read.

    Raises:
        SourceError: The file is missing, is no ONNX model, or lacks the file that holds its weights.
    """
    if not path.is_file():
        raise SourceError("There is no such file.", where=str(path), hint="Name an ONNX file.")
    kind = sniff(path)
    if kind not in (FileKind.ONNX, FileKind.UNKNOWN):
        raise SourceError(
            f"An ONNX file is needed here, and this is a {kind}.",
            where=str(path),
            hint="Name the .onnx file; what it was made from goes behind --against.",
        )
    try:
        model = ir.load(path)
    # protobuf and onnx_ir raise whatever they trip over in a damaged file.
    except Exception as error:
        text = str(error).strip()
        raise SourceError(
            f"The file is not a valid ONNX model: {text.splitlines()[0] if text else type(error).__name__}",
            where=str(path),
            hint="Write or copy it again, with the data files that belong to it.",
        ) from error
    if not model.graph.outputs:
        # To protobuf, an empty file is an empty model.
        raise SourceError(
            "The file is not a valid ONNX model: it has no graph.", where=str(path), hint="Write or copy it again."
        )
    for tensor in _external_tensors(model):
        _check_external(tensor, path)
    return model


def external_files(model: ir.Model) -> tuple[Path, ...]:
    """The files beside a model that hold its weights, sorted; none where all are in the model itself."""
    return tuple(sorted({Path(tensor.path) for tensor in _external_tensors(model)}))


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Weights in other files: initializers, those of subgraphs too, and tensors inside of nodes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            yield from (a.value for a in node.attributes.values() if isinstance(a.value, ir.ExternalTensor))


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    data = Path(tensor.path)
    needed = (tensor.offset or 0) + (tensor.length or 0)
    if not data.is_file() or data.stat().st_size < needed:
        what = "is shorter than the model says" if data.is_file() else "is missing"
        raise SourceError(
            f"The file {data.name}, which holds weights of the model, {what}.",
            where=str(path),
            hint="Copy the model together with its data file.",
        )


def write_onnx(model: ir.Model, temporary: Path, final: Path, *, external_from: int | None = None) -> tuple[Path, ...]:
    """Write a model to a temporary file that is to be moved to ``final``, and check it there.

    Weights above ``external_from`` bytes (None: ``EXTERNAL_DATA_FROM``) go to a file beside it that is named by its own
    content, so that the model, whichever name it is moved to, and an older model there are each whole with the data
    they refer to.

    Returns:
        The data files written.

    Raises:
        ExportError: onnx.checker finds the model invalid.
    """
    weights = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None]
    size = sum(nbytes for nbytes in weights if nbytes > INLINE_UP_TO)
    if size <= (EXTERNAL_DATA_FROM if external_from is None else external_from):
        ir.save(model, temporary)
        _check(temporary)
        return ()
    data = temporary.with_name(temporary.name + ".data")
    try:
        ir.save(model, temporary, external_data=data.name, size_threshold_bytes=INLINE_UP_TO)
        named = final.with_name(f"{final.stem}.{sha256_file(data)[:16]}.data")
        proto = onnx.load(temporary, load_external_data=False)
        for tensor in _stored_tensors(proto.graph):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = named.name
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        data.replace(named)
    finally:
        data.unlink(missing_ok=True)
    _check(temporary)
    return (named,)


def _stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a graph and of the graphs inside of it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _stored_tensors(inner)


@contextlib.contextmanager
def no_data_left(output: Path) -> Iterator[None]:
    """Remove the data files of a model that was not finished, but not those that were there before."""
    before = _data_files(output)
    try:
        yield
    except RejectedError:
        raise
    except BaseException:
        for path in _data_files(output) - before:
            path.unlink(missing_ok=True)
        raise


def older_data(output: Path, data: Iterable[Path]) -> tuple[str, ...]:
    """A note on data files of earlier models of this name: they are left, as a copy of such a model may need them."""
    older = sorted(_data_files(output) - set(data))
    if not older:
        return ()
    return (f"of an earlier {output.name}, and not needed by this one: {', '.join(path.name for path in older)}",)


def _data_files(output: Path) -> set[Path]:
    return set(output.parent.glob(f"{glob.escape(output.stem)}.*.data"))


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"onnx.checker refuses the exported model: {str(error).splitlines()[0]}",
            where="the exported graph",
            hint="Please report this with the model; --opset may avoid it.",
        ) from error


def save_program(program: ExportedProgram, path: Path) -> None:
    """Save a program so that plain torch loads it, with bytes that do not depend on the file's name or on the machine.

    torch writes the name into the archive, hence a fixed one first, and stack traces with the paths of source files.
    """
    import torch  # ONNX files are read without it

    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    metas = [node.meta for graph in graphs for node in graph.nodes if "stack_trace" in node.meta]
    traces = [meta.pop("stack_trace") for meta in metas]
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".spdexport.") as folder:
            fixed = Path(folder) / "program.pt2"
            torch.export.save(program, fixed)
            fixed.replace(path)
    finally:
        # Graphs inside of the program may be shared with the caller's.
        for meta, trace in zip(metas, traces, strict=True):
            meta["stack_trace"] = trace


def write_metadata(model: ir.Model, entries: Mapping[str, Any]) -> None:
    """Put entries into the model's metadata, as JSON with sorted keys, under spdexport's prefix."""
    for key, value in sorted(entries.items()):
        model.metadata_props[METADATA_PREFIX + key] = json.dumps(value, sort_keys=True)


def read_metadata(model: ir.Model) -> dict[str, Any]:
    """The entries that ``write_metadata`` wrote; empty for a file that spdexport did not make.

    Entries that are no JSON are left out: the file may have passed through any hands.
    """
    entries = {}
    for key, text in model.metadata_props.items():
        if key.startswith(METADATA_PREFIX):
            with contextlib.suppress(json.JSONDecodeError):
                entries[key.removeprefix(METADATA_PREFIX)] = json.loads(text)
    return entries
