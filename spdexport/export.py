"""ExportedProgram to an ONNX model with named inputs, outputs and axes; models to files, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.utils._pytree as pytree

from spdexport.errors import ExportError
from spdexport.files.hashing import sha256_file
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

METADATA_PREFIX = "spdexport."
"""What the names of our entries in a model's metadata begin with."""

EXTERNAL_DATA_FROM = 1_500_000_000
"""Bytes of weights above which they go to a file beside the model: protobuf stops at 2 GiB."""

KEPT_NODE_METADATA = ("pkg.torch.onnx.name_scopes",)
"""Node metadata that stays: the module path. The rest holds stack traces with paths of the exporting machine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """An ONNX model and the program whose nodes have the names of its values.

    Attributes:
        model: The ONNX model; weights are views of the program's tensors.
        lowered: The program after the exporter's own lowering of operators.
    """

    model: ir.Model
    lowered: ExportedProgram


def export_onnx(
    program: ExportedProgram, *, opset: int | None = None, axes: Mapping[str, Mapping[int, str]] | None = None
) -> Exported:
    """Export a program, in memory.

    Args:
        program: Any ExportedProgram in eval mode.
        opset: The opset that the model must have; None for the exporter's default.
        axes: Names for dynamic axes: input name to axis to name. Further ones are called after their input and axis.

    Raises:
        ExportError: An operator has no ONNX form, or the exporter gives another opset than asked for.
    """
    try:
        with quiet():
            result = torch.onnx.export(program, dynamo=True, optimize=True, opset_version=opset, verbose=False)
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export fails: {_root_cause(error)}",
            where="the exporter",
            hint="Try torch.onnx.export on the model by itself; spdexport changes only convolutions and linear layers.",
        ) from error
    assert result is not None, "the dynamo exporter returns its program"
    assert result.exported_program is not None, "and keeps what it lowered"
    model = result.model
    got = model.opset_imports.get("", 0)
    if opset is not None and got != opset:
        raise ExportError(
            f"The exporter gives opset {got} where {opset} was asked for.",
            where="--opset",
            hint=f"Ask for opset {got}, or leave --opset out.",
        )
    _name_axes(model, axes or {})
    _name_outputs(model, program)
    _clean_metadata(model)
    return Exported(model=model, lowered=result.exported_program)


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


def content_hash(model: ir.Model) -> str:
    """The SHA-256 of what a model computes with: its graph and weights, in hexadecimal.

    Operators in their order, attributes, connections, opsets, declared inputs and outputs, and the names, dtypes,
    shapes and bytes of all weights count. Metadata, names of nodes, and where the weights are stored do not. A model
    has the same hash before it is written and after it is read back.
    """
    digest = hashlib.sha256()
    _hash_words(digest, "opsets", *(f"{d}={v}" for d, v in sorted(_opsets(model.opset_imports).items())))
    _hash_graph(digest, model.graph)
    for function in model.functions.values():
        _hash_words(digest, "function", *map(str, function.identifier()), *map(str, function.attributes.values()))
        _hash_words(digest, *(f"{d}={v}" for d, v in sorted(_opsets(function.opset_imports).items())))
        _hash_graph(digest, function)
    return digest.hexdigest()


def _opsets(imports: Mapping[str, int]) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


def _hash_words(digest: hashlib._Hash, *words: str) -> None:
    # The lengths make the text unambiguous: no name can imitate the words that follow it.
    digest.update("".join(f"{len(word)}:{word}" for word in words).encode() + b"\n")


def _hash_graph(digest: hashlib._Hash, graph: ir.Graph | ir.Function) -> None:
    for kind, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        _hash_words(digest, kind, *(f"{v.name}:{v.type}:{v.shape and [str(d) for d in v.shape]}" for v in values))
    for node in graph:
        domain = "" if node.domain == "ai.onnx" else node.domain
        _hash_words(digest, "node", node.op_type, domain, node.overload)
        _hash_words(digest, *("" if v is None else v.name or "" for v in node.inputs))
        _hash_words(digest, *(v.name or "" for v in node.outputs))
        for name in sorted(node.attributes):
            _hash_attribute(digest, node.attributes[name])
    weights = graph.initializers if isinstance(graph, ir.Graph) else {}
    for name in sorted(weights):
        tensor = weights[name].const_value
        assert tensor is not None, "an initializer has a value"
        _hash_words(digest, "weight", name)
        _hash_tensor(digest, tensor)


def _hash_attribute(digest: hashlib._Hash, attribute: ir.Attr) -> None:
    _hash_words(digest, attribute.name, str(attribute.type), attribute.ref_attr_name or "")
    value: Any = attribute.value
    match attribute.type:
        case ir.AttributeType.GRAPH:
            _hash_graph(digest, value)
        case ir.AttributeType.GRAPHS:
            for graph in value:
                _hash_graph(digest, graph)
        case ir.AttributeType.TENSOR if value is not None:
            _hash_tensor(digest, value)
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS if value is not None:
            # The file keeps float32, memory what the exporter was given.
            digest.update(np.asarray(value, dtype=np.float32).tobytes())
        case _:
            _hash_words(digest, *map(str, value if isinstance(value, tuple | list) else [value]))


def _hash_tensor(digest: hashlib._Hash, tensor: ir.TensorProtocol) -> None:
    _hash_words(digest, str(tensor.dtype), str([int(d) for d in tensor.shape]))  # type: ignore[arg-type]
    if tensor.dtype is ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
        return
    flat = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    for start in range(0, flat.size, 1 << 22):
        digest.update(flat[start : start + (1 << 22)].tobytes())


def write_onnx(
    model: ir.Model, temporary: Path, final: Path, *, external_from: int = EXTERNAL_DATA_FROM
) -> tuple[Path, ...]:
    """Write a model to a temporary file that is to be moved to ``final``, and check it there.

    Weights above ``external_from`` bytes go to a file beside it that is named by its own content, so that the model,
    whichever name it is moved to, and an older model there are each whole with the data they refer to.

    Returns:
        The data files written.

    Raises:
        ExportError: onnx.checker finds the model invalid.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size <= external_from:
        ir.save(model, temporary)
        _check(temporary)
        return ()
    data = temporary.with_name(temporary.name + ".data")
    try:
        ir.save(model, temporary, external_data=data.name, size_threshold_bytes=1024)
        named = final.with_name(f"{final.stem}.{sha256_file(data)[:16]}.data")
        proto = onnx.load(temporary, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = named.name
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        data.replace(named)
    finally:
        data.unlink(missing_ok=True)
    _check(temporary)
    return (named,)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Save a program so that plain torch loads it, with bytes that do not depend on the file's name.

    torch writes the name into the archive, hence a fixed one first.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".spdexport.") as folder:
        fixed = Path(folder) / "program.pt2"
        torch.export.save(program, fixed)
        fixed.replace(path)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"onnx.checker refuses the exported model: {str(error).splitlines()[0]}",
            where="the exported graph",
            hint="Please report this with the model; --opset may avoid it.",
        ) from error


def _root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: the exporter wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _name_axes(model: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give symbolic dimensions, which the exporter calls ``s77``, the names that were asked for."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            wanted = axes.get(value.name or "", {}).get(axis)
            if symbol is None or symbol in names or not re.fullmatch(r"[su]\d+", symbol):
                continue
            fallback = "batch" if axis == 0 and "batch" not in names.values() else f"{value.name}_dim{axis}"
            names[symbol] = wanted or fallback
    if not names:
        return

    def renamed(shape: ir.Shape) -> ir.Shape:
        def dim(d: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
            if isinstance(d, int) or d.value is None:
                return d
            return ir.SymbolicDim(re.sub(r"\b[su]\d+\b", lambda m: names.get(m[0], m[0]), str(d.value)))

        return ir.Shape([dim(d) for d in shape])

    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [v for node in model.graph for v in node.outputs]
    for value in values:
        if value.shape is not None and any(isinstance(d, ir.SymbolicDim) for d in value.shape):
            value.shape = renamed(value.shape)


def _name_outputs(model: ir.Model, program: ExportedProgram) -> None:
    """Call outputs after the model's own structure: dict keys and field names; else ``output``, ``output_1``, ..."""
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(model.graph.outputs):
        return
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = pytree.tree_flatten_with_path(tree)[0]
    taken = {v.name for v in model.graph.inputs} | {v.name for v in model.graph.initializers.values()}
    for (path, _), value in zip(paths, model.graph.outputs, strict=True):
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", "")))) for p in path]
        name = ".".join(parts)
        if not parts or all(part.isdigit() for part in parts):
            name = "_".join(["output", *parts]) if len(paths) > 1 else "output"
        if value.is_graph_input() or name in taken:
            continue
        taken.add(name)
        for node in model.graph:
            for other in node.outputs:
                if other.name == name and other is not value:
                    other.name = f"{name}_value"
        value.name = name


def _clean_metadata(model: ir.Model) -> None:
    """Drop what differs from machine to machine, so that equal models have equal bytes."""
    from spdexport import __version__

    model.producer_name, model.producer_version = "spdexport", __version__
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        kept = {k: v for k, v in node.metadata_props.items() if k in KEPT_NODE_METADATA}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
    for value in [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def name_scopes(node: ir.Node) -> tuple[str, ...]:
    """The module paths of a node from the outermost in, as the exporter recorded them; empty where it did not."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    return tuple(re.findall(r"'([^']*)'", text))
