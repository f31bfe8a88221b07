"""ONNX files, which come from anywhere, read by one door: what every command refuses, it refuses here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.errors import SourceError
from spdexport.files.onnx_sizes import Sizes
from spdexport.files.onnx_structure import MAKE_AGAIN, check_structure, inner_graphs, stored_tensors
from spdexport.files.reading import reading
from spdexport.files.sniff import FileKind, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator

_INVALID = "The file is not a valid ONNX model"
_AGAIN = "Write or copy it again, with the data files that belong to it."


def load_onnx(path: Path) -> ir.Model:
    """Read a model that nothing is known of, and check it; its external data stay in their file until they are needed.

    Raises:
        SourceError: The file is missing, is no ONNX model, is invalid, lacks the file that holds its weights, or is
            beyond a limit.
    """
    if not path.is_file():
        raise SourceError("There is no such file.", where=str(path), hint="Name an ONNX file.")
    kind = sniff(path)
    if kind not in (FileKind.ONNX, FileKind.UNKNOWN):
        raise SourceError(
            f"An ONNX file is needed here, and this is a {kind}.",
            where=str(path),
            hint="Name the .onnx file; verify --against takes what it was made from.",
        )
    proto = _parsed(path)
    if not proto.graph.output:
        # To protobuf, an empty file is an empty model.
        raise SourceError(f"{_INVALID}: it has no graph.", where=str(path), hint="Write or copy it again.")
    check_structure(proto, path)
    _check(proto, path)
    with reading(path, what=_INVALID, hint=_AGAIN):
        model = _model(proto, path)
    Sizes(proto, str(path))
    return model


def reload_onnx(path: Path) -> ir.Model:
    """Read a model again that ``load_onnx`` has checked, or that was written here.

    Raises:
        SourceError: The file was changed since, and cannot be read.
    """
    proto = _parsed(path)
    with reading(path, what=_INVALID, hint=_AGAIN):
        return _model(proto, path)


def reload_proto(path: Path) -> onnx.ModelProto:
    """Read such a model for what works on the format itself, its external data left out.

    Raises:
        SourceError: As ``reload_onnx`` does.
    """
    proto = _parsed(path)
    with reading(path, what=_INVALID, hint=_AGAIN):
        _make_plain(proto.graph)
    return proto


def external_files(model: ir.Model) -> tuple[Path, ...]:
    """Return the files beside a model that hold its weights, sorted; none where all are in the model itself."""
    return tuple(sorted({Path(tensor.path) for tensor in _external_tensors(model)}))


def _parsed(path: Path) -> onnx.ModelProto:
    with reading(path, what=_INVALID, hint=_AGAIN):
        return onnx.load(path, format="protobuf", load_external_data=False)


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """Let onnx.checker look at a model.

    Raises:
        SourceError: The checker refuses it.
    """
    with reading(path, what="onnx.checker refuses the file", hint=MAKE_AGAIN):
        check_model(proto, path)


def check_model(proto: onnx.ModelProto, path: Path) -> None:
    """Let onnx.checker look at a model, which asks for the rank of inputs and outputs where runtimes do not.

    Args:
        proto: The model, its external data left in their files.
        path: The file that it is in.

    Raises:
        Exception: The checker refuses it, by whatever it raises for that.
    """
    if all(value.type.tensor_type.HasField("shape") for value in _tensors(proto.graph)):
        onnx.checker.check_model(path)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in _tensors(copy.graph):
        value.type.tensor_type.shape.SetInParent()
    for tensor in stored_tensors(copy.graph):
        # The checker knows no folder for bytes; where these data are has been looked at.
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            for name in ("dims", "data_location", "external_data"):
                tensor.ClearField(name)
            tensor.dims.append(0)
    onnx.checker.check_model(copy.SerializeToString())


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs and outputs of a graph that are tensors."""
    yield from (value for value in (*graph.input, *graph.output) if value.type.HasField("tensor_type"))


def _model(proto: onnx.ModelProto, path: Path) -> ir.Model:
    _make_plain(proto.graph)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def _make_plain(graph: onnx.GraphProto) -> None:
    """Say in one way what ONNX can say in two.

    Axes of a negative size are of no fixed size, as ONNX Runtime takes them, sparse tensors are dense ones, and inputs
    and outputs without a name at the end of a node are not there.
    """
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for names in (node.input, node.output):
            while names and not names[-1]:
                del names[-1]
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                tensor = _dense(attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
            for inner in inner_graphs(attribute):
                _make_plain(inner)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A tensor of which few elements are not zero, with all of them; its size has been checked against the limit."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Weights in other files: initializers, those of subgraphs too, and tensors inside of nodes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            yield from (a.value for a in node.attributes.values() if isinstance(a.value, ir.ExternalTensor))
