"""The hash of what an ONNX model computes with, by which a file is known to be the one that was written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping


def content_hash(model: ir.Model) -> str:
    """Return the SHA-256 of what a model computes with: its graph and weights, in hexadecimal.

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


def graph_hash(graph: ir.Graph) -> str:
    """Return the same of one graph, such as a body of an If; what it takes from the graphs around it counts by name."""
    digest = hashlib.sha256()
    _hash_graph(digest, graph)
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
