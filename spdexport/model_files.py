"""Models as files: ONNX written whole or not at all, and marked with metadata; torch programs written."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.errors import ExportError, SourceError
from spdexport.files.onnx_reading import check_model
from spdexport.files.unfinished import data_name
from spdexport.files.writing import Deferred, writing
from spdexport.ranges import read_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from spdexport.files.atomic import Pending
    from spdexport.ranges import Ranges

METADATA_PREFIX = "spdexport."
"""What the names of our entries in a model's metadata begin with."""

EXTERNAL_DATA_FROM = 1_500_000_000
"""Bytes of weights above which they go to a file beside the model: protobuf stops at 2 GiB."""

INLINE_UP_TO = 1024
"""Bytes of a weight that is in the model itself even where others are beside it: shapes and the like."""

_CHUNK = 1 << 24


def write_onnx(model: ir.Model, output: Pending, *, external_from: int | None = None) -> tuple[Path, ...]:
    """Write a model to a file on its way to its name, and check it there.

    Weights above ``external_from`` bytes (None: ``EXTERNAL_DATA_FROM``) go to a file beside it that is named by its own
    content, so that the model, whichever name it is moved to, and an older model there are each whole with the data
    they refer to.

    Returns:
        The data files written.

    Raises:
        ExportError: onnx.checker finds the model invalid.
        OutputError: The system does not let it be written.
    """
    values = [v for graph in model.graphs() for v in graph.initializers.values() if v.const_value is not None]
    outside = [v for v in values if _nbytes(v.const_value) > INLINE_UP_TO]
    size = sum(_nbytes(v.const_value) for v in outside)
    data: tuple[Path, ...] = ()
    if size <= (EXTERNAL_DATA_FROM if external_from is None else external_from):
        _write_proto(model, _inside(values), output)
    else:
        with output.beside() as beside:
            with writing(data_name(output.final, ""), size=size):
                places, digest = _write_data(outside, beside.path)
            name = data_name(output.final, digest)
            tensors = {v: _placed(v, place, name) for v, place in places.items()}
            _write_proto(model, {**_inside(values), **tensors}, output)
            data = (output.publish(beside, digest),)
    _check(model, output.path)
    return data


def _nbytes(tensor: ir.TensorProtocol | None) -> int:
    """Return the size of a weight that may be in a file of its own: text may not."""
    return 0 if tensor is None or tensor.dtype is ir.DataType.STRING else tensor.nbytes


def _inside(values: Iterable[ir.Value]) -> dict[ir.Value, ir.TensorProtocol]:
    """Return the weights that are in other files as ones that are in the model."""
    return {
        v: ir.Tensor(v.const_value.numpy().copy(), dtype=v.const_value.dtype, name=v.name)
        for v in values
        if isinstance(v.const_value, ir.ExternalTensor) and v.const_value.nbytes <= INLINE_UP_TO
    }


def _placed(value: ir.Value, offset: int, data: Path) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None
    assert isinstance(tensor.shape, ir.Shape)
    return ir.ExternalTensor(
        data.name, offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=data.parent
    )


def _write_data(values: Iterable[ir.Value], path: Path) -> tuple[dict[ir.Value, int], str]:
    """Write weights one behind the other, and return where each begins, and the SHA-256 of them all."""
    places, digest, end = {}, hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for value in values:
            places[value] = end
            content = _content(value.const_value)
            for start in range(0, len(content), _CHUNK):
                piece = content[start : start + _CHUNK]
                digest.update(piece)
                while piece:
                    piece = piece[file.write(piece) :]
            end += len(content)
    return places, digest.hexdigest()


def _content(tensor: ir.TensorProtocol | None) -> memoryview:
    """Return the bytes of a weight as ONNX has them, without a copy where they lie so in memory."""
    assert tensor is not None
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _write_proto(model: ir.Model, instead: Mapping[ir.Value, ir.TensorProtocol], output: Pending) -> None:
    """Write the model itself, with other tensors in the place of some; the model given stays as it is."""
    before = {value: value.const_value for value in instead}
    try:
        for value, tensor in instead.items():
            value.const_value = tensor
        content = ir.to_proto(model).SerializeToString()
    finally:
        for value, old in before.items():
            value.const_value = old
    with writing(output.final, size=len(content)):
        output.path.write_bytes(content)


def older_data(output: Path, data: Iterable[Path]) -> tuple[str, ...]:
    """Return a note on data files of earlier models of this name: they are left, as a copy of one may need them."""
    older = sorted(set(output.parent.glob(f"{glob.escape(output.stem)}.*.data")) - set(data))
    if not older:
        return ()
    return (f"of an earlier {output.name}, and not needed by this one: {', '.join(path.name for path in older)}",)


def _check(model: ir.Model, path: Path) -> None:
    try:
        if all(value.shape is not None for value in (*model.graph.inputs, *model.graph.outputs)):
            onnx.checker.check_model(path)
        else:
            check_model(onnx.load(path, load_external_data=False), path)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"onnx.checker refuses the exported model: {str(error).splitlines()[0]}",
            where="the exported graph",
            hint="Please report this with the model; convert --opset N may avoid it.",
        ) from error


def save_program(program: ExportedProgram, path: Path, final: Path | None = None) -> None:
    """Save a program so that plain torch loads it, with bytes that do not depend on the file's name or on the machine.

    torch writes the name of a file into the archive, hence an open file, and stack traces with the paths of source
    files.

    Args:
        program: The program.
        path: Where to write it.
        final: The name that the file is to have, for errors; None if that is ``path``.

    Raises:
        OutputError: The system does not let it be written.
    """
    import torch  # ONNX files are read without it

    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    metas = [node.meta for graph in graphs for node in graph.nodes if "stack_trace" in node.meta]
    traces = [meta.pop("stack_trace") for meta in metas]
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    try:
        with writing(final or path, size=size), path.open("wb") as file:
            archive = Deferred(file)
            torch.export.save(program, archive)  # type: ignore[arg-type]
            archive.check()
    finally:
        # Graphs inside of the program may be shared with the caller's.
        for meta, trace in zip(metas, traces, strict=True):
            meta["stack_trace"] = trace


def write_metadata(model: ir.Model, entries: Mapping[str, Any]) -> None:
    """Put entries into the model's metadata, as JSON with sorted keys, under spdexport's prefix."""
    for key, value in sorted(entries.items()):
        model.metadata_props[METADATA_PREFIX + key] = json.dumps(value, sort_keys=True)


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def recorded_ranges(model: ir.Model, path: Path) -> Ranges:
    """Return the sizes that a file says it holds for, of dynamic axes that have a limit.

    Raises:
        SourceError: What it says are no sizes.
    """
    try:
        return read_ranges(read_metadata(model).get("ranges", {}))
    except ValueError as error:
        raise SourceError(
            f"The entry 'ranges' of the file's metadata tells no sizes: {error}.",
            where=str(path),
            hint="Give a file as spdexport wrote it, or convert the model again.",
        ) from error


def read_metadata(model: ir.Model) -> dict[str, Any]:
    """Return the entries that ``write_metadata`` wrote; empty for a file that spdexport did not make.

    Entries that are no JSON, or nested too deep to be read, are left out: the file may have passed through any hands.
    """
    entries = {}
    for key, text in model.metadata_props.items():
        if key.startswith(METADATA_PREFIX):
            # ValueError: an integer of thousands of digits, too. RecursionError: brackets within brackets.
            with contextlib.suppress(ValueError, RecursionError):
                entries[key.removeprefix(METADATA_PREFIX)] = json.loads(text, parse_constant=_refuse_constant)
    return entries
